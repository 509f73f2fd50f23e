"""Presets: each composes into what its paper ran, job by job, and stands for rows of the claims table."""

import itertools
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import OmegaConf

from vlaprune import config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
PRESETS = sorted(p.stem for p in (CONFIGS / "experiment").glob("*.yaml"))
PAPERS = {"ties_simpler", "infoentropy_libero", "vlapruner_libero", "safe_libero", "safe_simpler", "lightvla_libero"}


@pytest.fixture(scope="module", autouse=True)
def hydra():
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):
        yield


def given(name):
    return yaml.safe_load((CONFIGS / "experiment" / f"{name}.yaml").read_text())


def absent(name):
    """Options that a preset names and that are not part of this release yet."""
    chosen = {k.removeprefix("override /"): v for d in given(name).get("defaults", []) for k, v in d.items()}
    return [f"{g}/{o}" for g, o in chosen.items() if not (CONFIGS / g / f"{o}.yaml").is_file()]


def jobs(name):
    """The overrides of every job of a preset."""
    params = given(name)["hydra"]["sweeper"]["params"]
    for values in itertools.product(*(str(v).split(",") for v in params.values())):
        yield [f"experiment={name}", *(f"{k}={v}" for k, v in zip(params, values, strict=True))]


def sample(name):
    """All jobs of a preset if they are few; else the first, and those that differ from it in one parameter."""
    every = list(jobs(name))
    if len(every) <= 30:
        return every
    return [job for job in every if sum(a != b for a, b in zip(job, every[0], strict=True)) <= 1]


def composed(overrides):
    cfg = compose("eval", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    return cfg


def test_every_published_main_table_has_a_preset():
    assert set(PRESETS) >= PAPERS | {"dense_libero", "dense_simpler", "aa"}


@pytest.mark.parametrize("name", PRESETS)
def test_jobs_of_a_preset_compose_and_have_folders_of_their_own(name):
    if missing := absent(name):
        with pytest.raises(ConfigCompositionException, match=missing[0]):
            composed(next(jobs(name)))
        return
    outputs = []
    for overrides in sample(name):
        cfg = composed(overrides)
        assert cfg.hydra.mode == RunMode.MULTIRUN
        config.check(cfg)  # what the command says of it before it builds anything: nothing
        config.make("method", OmegaConf.create(OmegaConf.to_container(cfg.method, resolve=True)))  # its options exist
        assert f".{cfg.bench._target_.rsplit('.', 2)[1]}." in f".{cfg.bench._target_}"
        if "suite" in cfg.bench:
            assert f"bench.suite={cfg.bench.suite}" in overrides
        outputs.append(str(cfg.output))
    assert len(set(outputs)) == len(outputs)


@pytest.mark.parametrize("name", [n for n in PRESETS if n != "aa"])
def test_a_preset_names_methods_that_exist(name):
    methods = str(given(name)["hydra"]["sweeper"]["params"].get("method", "dense")).split(",")
    assert all((CONFIGS / "method" / f"{m}.yaml").is_file() for m in methods)


def test_options_are_part_of_the_folder_of_a_study_of_delay():
    plain, other = (
        composed(["experiment=delay", "method=fastv", "at=hold-50ms", *more]).output
        for more in ([], ["method.keep=0.5", "episodes=3"])
    )
    assert plain.endswith("/fastv/hold-50ms") and other.endswith("/fastv,method.keep=0.5/hold-50ms")


def test_safe_keeps_the_authors_share_of_each_suite():
    """102, 128, 51 and 154 of 512 tokens: R 0.8, 0.75, 0.9 and 0.7 in the authors' script."""
    for suite, kept in (("libero_spatial", 102), ("libero_object", 128), ("libero_goal", 51), ("libero_10", 154)):
        cfg = composed(["experiment=safe_libero", "model=openvla", f"bench.suite={suite}", "method=safe"])
        assert round(512 * cfg.method.keep) == kept and f"method.keep={cfg.method.keep}" in cfg.output


def test_aa_runs_dense_under_conditions_that_should_not_matter():
    cfgs = [composed([*overrides, "model=toy", "bench=toy"]) for overrides in jobs("aa")]
    assert {(c.slots, c.kernel) for c in cfgs} == {(s, k) for s in (1, 4) for k in ("sdpa", "eager")}
    assert {c.method._target_ for c in cfgs} == {"vlaprune.methods.dense.Dense"}
