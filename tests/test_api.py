"""The Python interface gives what the command line gives, with names or with objects of one's own."""

import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import vlaprune
from vlaprune import config
from vlaprune.api.evaluation import described, setting
from vlaprune.bench.toy import Toy as Lights
from vlaprune.config.names import files_read
from vlaprune.methods.dense import Dense
from vlaprune.methods.lightvla import LightVLA
from vlaprune.models.toy import Toy
from vlaprune.policy import card_of
from vlaprune.pruner import Budget, ModelInfo, Plan, PruneContext, Pruner, Selection
from vlaprune.records import read


@dataclass
class FirstHalf(Pruner):
    """Keeps the first tokens."""

    keep: float = 0.5

    def plan(self, info: ModelInfo) -> Plan:
        return Plan((0,), budget={0: Budget(self.keep)})

    def select(self, context: PruneContext) -> Selection:
        return Selection(torch.arange(Budget(self.keep).count(context.total)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Dense by name, a method of one's own as an object, on the toy world."""
    folder = tmp_path_factory.mktemp("api")
    common = {"model": "toy", "bench": "toy", "episodes": 2}
    dense = vlaprune.evaluate(method="dense", output=folder / "dense", **common)
    mine = vlaprune.evaluate(method=FirstHalf(0.25), output=folder / "mine", **common)
    return folder, dense, mine


def test_a_run_by_name_is_that_of_the_command_line(runs, tmp_path):
    command = ["model=toy", "method=dense", "bench=toy", "logger=csv", "episodes=2", f"output={tmp_path / 'run'}"]
    code = f"import sys; from vlaprune.cli import evaluate; sys.argv = ['vlaprune-eval', *{command}]; evaluate()"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    theirs = read(tmp_path / "run")
    assert runs[1].header.identity == theirs.header.identity and runs[1].header.tasks == theirs.header.tasks
    for key, record in runs[1].episodes.items():
        other = theirs.episodes[key]
        assert (record.success, record.steps) == (other.success, other.steps)
        assert [c.flops for c in record.calls] == [c.flops for c in other.calls]


def test_an_object_is_recorded_by_its_own_name_and_options(runs):
    _, _, mine = runs
    method = mine.header.identity["method"]
    assert method["name"] == "firsthalf" and method["keep"] == 0.25 and method["package"] == __name__
    assert {c.visual for r in mine.episodes.values() for c in r.calls} == {(16,) * 6}


def test_the_same_call_goes_on_and_another_is_refused(runs):
    folder, _, mine = runs
    again = vlaprune.evaluate("toy", FirstHalf(0.25), "toy", episodes=2, output=folder / "mine")
    assert again.episodes == mine.episodes
    with pytest.raises(ValueError, match="another run"):
        vlaprune.evaluate("toy", FirstHalf(0.5), "toy", episodes=2, output=folder / "mine")


def test_models_and_benchmarks_may_be_objects(tmp_path):
    run = vlaprune.evaluate(Toy(chunk=2), FirstHalf, Lights(), episodes=1, output=tmp_path)
    assert run.header.identity["model"]["name"] == "toy" and run.header.identity["bench"]["name"] == "toy"
    assert len(run.episodes) == 2 and run.header.identity["execute"] == 2


def test_two_weights_are_two_models():
    one, other = Toy(), Toy()
    assert described("model", one) == described("model", other)
    with torch.no_grad():
        other.decoder.norm.weight[0] += 1
    assert described("model", one) != described("model", other)
    other = Toy()
    one.head, other.head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)  # no part of the decoder, drawn at random
    assert described("model", one) != described("model", other)


def test_what_a_function_makes_is_recorded_like_the_object(runs, tmp_path):
    _, _, mine = runs
    made = vlaprune.evaluate("toy", lambda: FirstHalf(0.25), "toy", episodes=1, output=tmp_path)
    assert made.header.identity["method"] == mine.header.identity["method"]
    with pytest.raises(ValueError, match="another run"):
        vlaprune.evaluate("toy", lambda: FirstHalf(0.5), "toy", episodes=1, output=tmp_path)


def test_options_that_are_paths_or_dataclasses_tell_runs_apart():
    @dataclass
    class Nested(FirstHalf):
        budget: Budget = field(default_factory=lambda: Budget(0.5))
        file: Path = Path("a")

    one, other = (described("method", Nested(budget=Budget(share))) for share in (0.5, 0.25))
    assert one["budget"] == {"amount": 0.5} and one["file"] == "a" and one != other


def test_a_number_of_numpy_is_a_number():
    """`for keep in np.linspace(0.25, 1, 4)`."""
    assert described("method", FirstHalf(np.float64(0.5))) == described("method", FirstHalf(0.5))


@dataclass
class Given(FirstHalf):
    """A method with an option of any kind."""

    given: object = None


@pytest.mark.parametrize(
    "value",
    [
        lambda x: [np.int64(x)],
        lambda x: {"layers": [{"keep": np.float32(x)}]},
        lambda x: [Path(str(x))],
        lambda x: (torch.full((2,), float(x)), 1),
        lambda x: [Budget(x)],
        lambda x: torch.arange(5000) == 2000 + x,
        lambda x: np.where(np.arange(5000) == 2000 + x, 1.5, 0),
        lambda x: (torch.float32, torch.bfloat16, torch.float16)[x],
        lambda x: torch.zeros(1, dtype=(torch.float32, torch.bfloat16, torch.float64)[x]),
    ],
)
def test_two_values_of_an_option_are_two_methods_wherever_they_stand(value):
    one, again, other = (described("method", Given(given=value(x))) for x in (1, 1, 2))
    assert one == again != other


def test_an_option_that_no_journal_can_hold_is_named_and_the_others_are_kept():
    with pytest.warns(UserWarning, match=r"the option given\.0 is of type function, .* give each its own output="):
        assert described("method", Given(0.25, [lambda: 1]))["keep"] == 0.25
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        described("method", Given(given=torch.nn.Linear(1, 1)))  # its weights are recorded
        described("method", Given(given=torch.device("cpu")))  # where a run is made is no part of what it is


def test_every_number_of_the_weights_tells_models_apart():
    one, other = Toy(), Toy()
    one.head, other.head = torch.nn.Linear(100, 100, bias=False), torch.nn.Linear(100, 100, bias=False)
    with torch.no_grad():
        other.head.weight.copy_(one.head.weight)
        assert described("model", one) == described("model", other)
        other.head.weight[50, 50] += 1  # far from the first and the last
    assert described("model", one) != described("model", other)


def test_the_weights_of_a_module_are_recorded():
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.decoder = Toy().decoder  # kept among the submodules, not as a plain attribute

    one, other = Wrapped(), Wrapped()
    assert described("model", one)["weights"] == described("model", other)["weights"]
    with torch.no_grad():
        other.decoder.norm.weight[0] += 1
    assert described("model", one)["weights"] != described("model", other)["weights"]


def test_the_weights_of_a_decoder_behind_a_property_are_recorded():
    class Hides(Toy):
        decoder = property(lambda self: self.hidden[0], lambda self, made: setattr(self, "hidden", [made]))

    one, other = Hides(), Hides()
    assert described("model", one)["weights"] == described("model", other)["weights"]
    with torch.no_grad():
        other.decoder.norm.weight[0] += 1
    assert described("model", one)["weights"] != described("model", other)["weights"]


def test_options_of_a_class_that_is_no_dataclass_tell_its_runs_apart():
    assert described("method", LightVLA(extra=10)) != described("method", LightVLA(drop=0.1))
    assert described("method", LightVLA(extra=10)) == described("method", LightVLA(extra=10))

    class Holds(FirstHalf):
        def __init__(self, scores):
            super().__init__(0.5)
            self.scores = scores

    one, other = (described("method", Holds(torch.full((4,), float(x)))) for x in (1, 2))
    assert one != other

    class Keeps(Dense):
        def __init__(self, amount):
            self._amount = amount

    with pytest.raises(ValueError, match="takes amount and keeps it nowhere") as error:
        described("method", Keeps(3))
    assert "\n" not in str(error.value)


def test_a_file_that_a_method_reads_is_known_by_what_is_in_it(tmp_path):
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"one")
    before = files_read({"weights": str(path), "noise": "uniform", "size": 3})
    path.write_bytes(b"two")
    assert list(before) == ["weights_sha256"] and before != files_read({"weights": str(path)})
    assert files_read({"weights": str(tmp_path / "gone.safetensors")}) == {}


def test_a_model_without_a_card_is_told_apart_by_its_info():
    class Plain:
        info = ModelInfo("plain", 1, 1, 1, 1, weights="abc")

    assert card_of(Plain()) == {"sha256": "abc"}


def test_load_runs_has_a_row_an_episode(runs):
    folder, dense, mine = runs
    table = vlaprune.load_runs(folder)
    assert len(table) == len(dense.episodes) + len(mine.episodes) == 8
    assert set(table["method"]) == {"dense", "firsthalf keep=0.25"} and table["success"].dtype == bool
    pd.testing.assert_frame_equal(table, vlaprune.load_runs([dense, folder / "mine"]))
    assert (table.groupby("method")["kept"].mean() == pd.Series({"dense": 64.0, "firsthalf keep=0.25": 16.0})).all()


def test_compare_gives_verdicts(runs):
    folder, dense, mine = runs
    table = vlaprune.compare(folder).set_index("method")
    assert table.loc["firsthalf keep=0.25", "paired"] == 4 and table.loc["dense", "kept"] == 64
    assert isinstance(table.loc["firsthalf keep=0.25", "verdict"], str)
    assert vlaprune.compare([dense, mine], by_task=True)["task"].nunique() == 3


@pytest.mark.parametrize(
    "value, text",
    [
        (np.float64(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (0.5, "0.5"),
        (None, "null"),
        (True, "true"),
        ("a b", '"a b"'),
        ([1, 2], "[1,2]"),
        ({"a": 1}, "{a: 1}"),
    ],
)
def test_values_are_written_as_hydra_reads_them(value, text):
    assert setting("method__keep", value) == f"method.keep={text}"


def test_bad_settings_speak_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="kep"):
        vlaprune.evaluate("toy", "fastv", "toy", episodes=1, method__kep=0.5, output=tmp_path)
    with pytest.raises(ValueError, match="use a number, text"):
        vlaprune.evaluate("toy", "fastv", "toy", episodes=1, seed=object(), output=tmp_path)
    with pytest.raises(AttributeError, match="it has compare"):
        vlaprune.evaluat  # noqa: B018


def test_importing_the_package_is_light():
    code = "import sys, vlaprune; assert len([m for m in sys.modules if m.startswith('vlaprune')]) == 1"
    subprocess.run([sys.executable, "-c", code + "; vlaprune.load_runs; assert 'torch' not in sys.modules"], check=True)


def test_a_typed_class_has_the_options_typed_with_it_wherever_a_command_line_is_composed():
    """The others are those of the file that the class replaces."""
    words = ["model=toy", "bench=toy", f"method._target_={__name__}.FirstHalf", "method.keep=0.25"]
    with config.with_objects(words, {}) as cfg:
        assert dict(cfg.method) == {"_target_": f"{__name__}.FirstHalf", "keep": 0.25}
    assert config.composed(words)[0].method == {"_target_": f"{__name__}.FirstHalf", "keep": 0.25}
