"""Names are declared by YAML files: a class may move, two packages may call theirs alike, data is never code."""

import textwrap

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from vlaprune import config, report
from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.config.names import identified, named
from vlaprune.errors import UserError
from vlaprune.models.toy import Toy
from vlaprune.records import Header

TOY = ["model=toy", "bench=toy"]


@pytest.fixture
def header():
    """The header of a run of the toy with some overrides."""

    def make(*overrides):
        cfg, _ = config.composed([*TOY, *overrides])
        HydraConfig.instance().set_config(cfg)
        return config.header(cfg, Toy(), ToyBench())

    return make


def node(target, **options):
    return OmegaConf.create({"_target_": target, **options})


def test_a_journal_names_the_parts_by_their_files_and_no_module(header):
    for name in ("ties", "ties_hard", "fastv"):
        said = header(f"method={name}").identity
        assert [said[part]["name"] for part in ("model", "method", "bench")] == ["toy", name, "toy"]
        assert "vlaprune" not in str({part: said[part] for part in ("model", "method")})
    assert said["bench"]["margin"] == 0.05 and said["bench"]["protocol"] == "vlaprune"


def test_a_class_that_moves_resumes_its_run():
    old, new = (identified("mine", node(f"vlaprune_mine.{module}.Mine", keep=0.5)) for module in ("old", "new.place"))
    assert old == new == {"name": "mine", "package": "vlaprune_mine", "keep": 0.5}


def test_two_packages_with_one_name_are_told_apart():
    headers = [Header({"method": identified("mine", node(f"{package}.methods.Mine"))}, {}, {}) for package in "ab"]
    labels = [report.label(h, headers) for h in headers]
    assert labels == ["a mine", "b mine"] and headers[0].identity != headers[1].identity


def test_a_method_without_a_budget_is_called_by_its_name():
    """InfoEntropy has one in a mode only; two arms that differ in it are told apart."""
    headers = [Header({"method": {"name": "infoentropy", "keep": keep}}, {}, {}) for keep in (None, 0.5)]
    assert [report.label(h, headers) for h in headers] == ["infoentropy", "infoentropy keep=0.5"]


def test_a_class_on_the_command_line_is_called_as_it_was_typed():
    cfg, names = config.composed([*TOY, "method=fastv", "method._target_=my.module.Mine"])
    assert names == {"model": "toy", "method": "my.module.Mine", "bench": "toy"} == named(cfg.hydra)


@pytest.mark.parametrize(
    "target",
    [
        *("pandas.read_pickle", "numpy.load", "builtins.dict", "os.system", "subprocess.Popen", "torch.load"),
        *("vlaprune.models.toy.Toy", "nothing", "no.such.Class", "vlaprune.methods.fastv.Nosuch", "", ".", "a..b"),
    ],
)
def test_only_a_class_that_fits_its_role_is_ever_called(target):
    with pytest.raises(UserError, match=r"^method\._target_=") as error:
        config.make("method", node(target, filepath_or_buffer="x"))
    assert "\n" not in str(error.value)


def test_a_module_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "mymod_of_here.py").write_text(
        textwrap.dedent("""
        from vlaprune.methods.dense import Dense
        import nothing_of_this_name
        class Mine(Dense): pass
        """)
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):  # its own cause, a bug of that file
        config.make("method", node("mymod_of_here.Mine"))
    text = (tmp_path / "mymod_of_here.py").read_text().replace("import nothing_of_this_name", "")
    (tmp_path / "mymod_of_here2.py").write_text(text)
    assert type(config.make("method", node("mymod_of_here2.Mine"))).__name__ == "Mine"


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"_target_": "pandas.read_pickle", "filepath_or_buffer": "x"}, "names the method None"),
        ({"name": "pandas.read_pickle"}, "names the method pandas.read_pickle"),
        ({"name": "fastv,dense"}, "names the method fastv,dense"),
        ({"name": "fastv", "keeep": 1.0}, "did you mean keep"),
    ],
)
def test_a_journal_is_never_code(said, match):
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):
        HydraConfig.instance().set_config(compose("eval", TOY, return_hydra_config=True))
        with pytest.raises(UserError, match=match):
            config.recorded_method(said)
        assert config.recorded_method({"name": "fastv", "keep": 0.5, "_target_": "os.system"}).keep == 0.5
