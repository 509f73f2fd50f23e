"""Model servers of vla-eval as policies, and ours as theirs: the published package on the other end, both ways."""

import csv
import re
from contextlib import contextmanager

import numpy as np
import pytest
from test_serve import served
from vla_eval.api import run as run_theirs
from vla_eval.api import serve_background
from vla_eval.benchmarks.base import StepBenchmark, StepResult
from vla_eval.model_servers.predict import PredictModelServer
from vla_eval.specs import GRIPPER_CLOSE_NEG, GRIPPER_CLOSE_POS, IMAGE_RGB, POSITION_DELTA, RAW, ROTATION_AA

import vlaprune
from vlaprune import cli, report
from vlaprune.bench.toy import Toy as Lights
from vlaprune.benchmark import Observation
from vlaprune.interop.vla_eval import VlaEvalServer
from vlaprune.methods.fastv import FastV
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.records import read
from vlaprune.report.page import page
from vlaprune.serve import Client

CLIENT = Client(["main"], ["images/main"], state="state", prompt="task_description", robot=None)
SPEC = {"position": POSITION_DELTA, "rotation": ROTATION_AA, "gripper": GRIPPER_CLOSE_POS}


class TheirLights(StepBenchmark):
    """The toy world as a benchmark of vla-eval."""

    def get_tasks(self):
        return [{"name": task.name, "suite": "toy"} for task in Lights().tasks()]

    def reset(self, task):
        (own,) = (one for one in Lights().tasks() if one.name == task["name"])
        self._opened = Lights().open(own)
        self._world = self._opened.__enter__()
        self._world.reset(task["episode_idx"])
        return self._world.observe()

    def step(self, action):
        done = self._world.step(action["actions"])
        return StepResult(self._world.observe(), 0.0, done, {})

    def make_obs(self, raw_obs, task):
        state = {"state": raw_obs.state, "states": raw_obs.state}
        return {"images": dict(raw_obs.images), **state, "task_description": raw_obs.instruction}

    def get_step_result(self, step_result):
        return {"success": step_result.done}

    def get_metadata(self):
        return {"max_steps": Lights().tasks()[0].max_steps, "max_episodes_per_task": 50}

    def get_action_spec(self):
        return SPEC

    def get_observation_spec(self):
        return {"main": IMAGE_RGB}


class Server(PredictModelServer):
    """The toy policy as a model server of vla-eval; chunks are theirs to hand out."""

    def __init__(self, method=FastV, spec=None, **options):
        super().__init__(chunk_size=4, **options)
        self._make, self._spec, self._policies = method, spec, {}

    def get_action_spec(self):
        if self._spec is None:
            raise NotImplementedError
        return self._spec

    def get_observation_spec(self):
        return {"image": IMAGE_RGB, "language": RAW}

    async def on_episode_start(self, config, ctx):
        self._policies[ctx.session_id] = Policy(Toy(), self._make)
        await super().on_episode_start(config, ctx)

    def predict(self, obs, ctx):
        seen = Observation({"main": obs["images"]["main"]}, obs["states"], obs["task_description"])
        return {"actions": self._policies[ctx.session_id].act({0: seen})[0]}


class Broken(Server):
    """Answers the third observation of an episode by something else than an action."""

    answer = np.full(7, np.nan)

    def predict(self, obs, ctx):
        if ctx.step >= 2:
            if self.answer is None:
                raise RuntimeError("the checkpoint is gone")
            return {"actions": self.answer}
        return {"actions": np.zeros(7)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def own(folder):
    """Twenty episodes of the toy policy here."""
    return vlaprune.evaluate("toy", "fastv", "toy", episodes=10, output=folder / "own")


@pytest.fixture(scope="module")
def box(folder):
    """The same twenty from a server of vla-eval."""
    with serve_background(Server(spec=SPEC)) as server:
        return evaluate(server.url, folder / "box")


def evaluate(url, output, **settings):
    return vlaprune.evaluate("vla_eval", "dense", "toy", model__url=url, output=output, **{"episodes": 10, **settings})


def outcomes(run):
    return {key: (record.success, record.steps) for key, record in run.episodes.items()}


def test_twenty_episodes_of_a_server_of_vla_eval_end_as_they_do_here(own, box):
    assert len(outcomes(own)) == 20 and outcomes(box) == outcomes(own)
    for key, record in box.episodes.items():
        assert record.motion == own.episodes[key].motion
        assert len(record.calls) == record.steps  # one answer a control step


def test_slots_are_connections_of_their_own(own, folder):
    with serve_background(Server()) as server:
        assert outcomes(evaluate(server.url, folder / "slots", slots=3)) == outcomes(own)


def test_twenty_episodes_that_vla_eval_runs_against_our_server_end_as_they_do_here(own, tmp_path):
    with served(Policy(Toy(), FastV), CLIENT, kind=VlaEvalServer) as port:
        config = {"benchmarks": [{"benchmark": f"{__name__}:TheirLights", "episodes_per_task": 10}]}
        (result,) = run_theirs(config, server_url=f"ws://127.0.0.1:{port}", output_dir=tmp_path)
    theirs = {(t["task"], e["episode_id"]): e for t in result["tasks"] for e in t["episodes"]}
    assert {k: (e["metrics"]["success"], e["steps"]) for k, e in theirs.items()} == outcomes(own)
    assert result["server_info"]["action_spec"]["gripper"]["format"] == "binary_close_positive"


def test_a_run_that_stopped_goes_on(own, folder):
    with serve_background(Server()) as server:
        evaluate(server.url, folder / "stopped", episodes=4)
        evaluate(server.url, folder / "stopped")
    assert outcomes(read(folder / "stopped")) == outcomes(own)


def test_nothing_that_nobody_counted_is_shown_as_a_number(box, own):
    assert not box.header.proved and box.header.identity["proof"] == "none"
    table = report.tabulate(report.compare([box, own], "fastv", mixed=True))
    (row,) = table[~table["proved"]].itertuples()
    unknown = ("kept", "visual", "gflops", "steady", "cold", "packed", "untimed", "flops_cut", "holm_p")
    assert all(table.isna().loc[row.Index, name] for name in unknown)
    assert row.ms_answer > 0 and row.method.endswith("†¶") and row.verdict == "not judged"
    cells = report.pretty(table).loc[row.Index]
    assert cells["pruning"] == "without proof of pruning" and cells["visual tokens"] == cells["GFLOPs/call"] == ""
    rows = list(csv.DictReader((box.folder / "episodes.csv").open()))
    assert {r["proved"] for r in rows} == {"0"}
    assert {r[name] for r in rows for name in r if re.match("visual|kept|gflops|ms_", name)} == {""}


@pytest.mark.parametrize("baseline", ["fastv", "Server"])
def test_every_form_says_without_proof_of_pruning(box, own, baseline, tmp_path):
    comparison = report.compare([own, box], baseline, mixed=True)
    table = report.tabulate(comparison, by_task=True)
    for path in report.write(table, tmp_path):
        text = path.read_text()
        assert ",False," in text if path.suffix == ".csv" else "without proof of pruning" in text
    text = page(comparison, tmp_path / "page.html")
    assert "without proof of pruning" in text and "¶" in text
    assert "without proof of pruning" in report.summary(box)


def test_it_stands_beside_our_runs_only_where_asked(box, own):
    with pytest.raises(ValueError, match=r"without proof of pruning: its model is not known.*--mixed"):
        report.compare([own, box])


def test_two_servers_are_judged_against_each_other(box, folder):
    with serve_background(Server()) as server:
        other = evaluate(server.url, folder / "other", model__called="theirs")
    (row,) = report.tabulate(report.compare([box, other], "Server")).query("method == 'theirs¶'").itertuples()
    assert row.verdict in ("no worse", "undecided") and row.lost == row.gained == 0


def test_a_server_that_says_something_else_of_itself_is_another_policy(folder):
    """The same class on the same address with other options, say; numbers of the two are never one run."""
    with serve_background(Server(spec=SPEC)) as server:
        evaluate(server.url, folder / "once", episodes=1)
        evaluate(server.url, folder / "once", episodes=2)  # the same one goes on
    with serve_background(Server()) as server, pytest.raises(ValueError, match="greeting_sha256"):
        evaluate(server.url, folder / "once", episodes=3)


def test_a_journal_without_counts_must_say_so(box, own, tmp_path):
    for run, words in ((box, "token counts missing"), (own, "token counts in a run without proof")):
        other = own if run is box else box
        lines = [(r.folder / "journal.jsonl").read_bytes().split(b"\n") for r in (other, run)]
        (tmp_path / "journal.jsonl").write_bytes(b"\n".join([lines[0][0], *lines[1][1:]]))
        with pytest.raises(ValueError, match=words):
            read(tmp_path)


SETTINGS = [
    ({"method": "fastv"}, "cannot be pruned from here; use method=dense"),
    ({"video": "all"}, "video=all needs the model"),
    ({"kernel": "compile"}, "kernel=compile needs the model"),
    ({"delay__mode": "hold", "delay__ms": 50}, "delay.mode=hold needs the model"),
    ({"delay__ms": 50}, "delay.ms=50 needs the model"),
    ({"devices": "all"}, "devices=all needs the model"),
    ({"slots": 0}, "slots=0; use a whole number, not below 1"),
    ({"audit__arm": "blind"}, "audit.arm=blind needs the model"),
    ({"model__images": {"wrist": "wrist"}}, r"\['wrist'\]; toy has \['main'\]"),
    ({"model__url": "ws://127.0.0.1:1"}, "no model server answers at ws://127.0.0.1:1 "),
    ({"model__url": "localhost:8000"}, "no model server answers at localhost:8000 "),
]


@pytest.mark.parametrize(("settings", "words"), SETTINGS, ids=lambda v: next(iter(v)) if isinstance(v, dict) else "")
def test_what_a_black_box_cannot_do_is_refused_in_one_line(tmp_path, settings, words):
    given = {"method": "dense", "model__url": "ws://127.0.0.1:1", "episodes": 1, "output": tmp_path, **settings}
    with pytest.raises(ValueError, match=words) as refusal:
        vlaprune.evaluate("vla_eval", given.pop("method"), "toy", **given)
    assert "\n" not in str(refusal.value) and not list(tmp_path.glob("journal*"))


@pytest.mark.parametrize("command", ["train", "profile", "serve"])
def test_only_eval_takes_it(command, monkeypatch, capfd):
    bench = [] if command == "serve" else ["bench=toy"]
    monkeypatch.setattr("sys.argv", [f"vlaprune-{command}", "model=vla_eval", *bench])
    with pytest.raises(SystemExit) as end:
        getattr(cli, command)()
    said = capfd.readouterr().err
    assert end.value.code == 2 and said.count("\n") == 1, said


@contextmanager
def refused(words, tmp_path, server, **settings):
    with serve_background(server) as handle, pytest.raises(ValueError, match=words) as refusal:
        evaluate(handle.url, tmp_path, **settings)
    assert "\n" not in str(refusal.value)
    yield


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (np.full(7, np.nan), "answers an observation by action .*finite"),
        (np.zeros((2, 2, 7)), "answers an observation by action"),
        (None, "the model server at ws.* says: .*the checkpoint is gone"),
    ],
)
def test_what_is_no_action_ends_the_run_in_one_line(tmp_path, answer, words):
    server = Broken(spec=SPEC)
    server.answer, server.chunk_size = answer, None
    with refused(words, tmp_path, server):
        assert not read(tmp_path).episodes


def test_a_server_with_other_conventions_is_refused_unless_one_looks_anyway(tmp_path):
    wrong = {**SPEC, "position": ROTATION_AA}
    with refused("declares other conventions .frame axis_angle vs delta", tmp_path, Server(spec=wrong)):
        pass
    with refused("it sees 1 pictures, 2 are sent", tmp_path, Server(spec=SPEC), bench__cameras=["main", "wrist"]):
        pass
    spec = {**SPEC, "gripper": GRIPPER_CLOSE_NEG}  # the toy world has no gripper: whatever comes fits
    with serve_background(Server(spec=spec)) as server:
        evaluate(server.url, tmp_path / "any", episodes=1)
    with serve_background(Server(spec=wrong)) as server:
        evaluate(server.url, tmp_path / "unchecked", episodes=1, model__check=False)
