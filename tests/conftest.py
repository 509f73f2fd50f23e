import gc
import signal

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from vlaprune import config

# Files that take longest, or start processes of their own: they begin first, so that none is left alone at the end.
FIRST = ("test_libero_episodes", "test_compiled", "test_presets", "test_cli", "test_devices", "test_fuzz", "test_kills")


def pytest_collection_modifyitems(items):
    """The files in FIRST before all others; a file's tests stay together, as its fixtures want it."""
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
    for item in items:
        alone = item.path.stem in ("test_libero_episodes", "test_compiled")
        item.add_marker(pytest.mark.xdist_group(item.nodeid if alone else item.path.stem))


def pytest_collection_finish():
    """What was imported lives as long as the tests do: the collector need not look at it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tiny products of these tests are slower on many threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def signals_of_a_terminal():
    """Ctrl-C and hang-up end what the tests start, even where pytest runs under nohup or as a job in the background."""
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture
def parity(record_property):
    """Asserts that two arrays are equal up to `atol`; the difference becomes a row of results/parity.md.

    model  whose row it is
    what   what was compared with whose code
    """

    def check(model, what, ours, theirs, atol):
        ours, theirs = (np.asarray(x, dtype=np.float64) for x in (ours, theirs))
        assert ours.shape == theirs.shape
        difference, scale = np.abs(ours - theirs).max(), np.abs(theirs).max()
        record_property("parity", (model, what, float(difference), float(scale), atol))
        assert difference <= atol, f"{what}: {difference}"

    return check


@pytest.fixture(scope="module")
def composed():
    """What vlaprune-eval composes in the toy world from some overrides."""
    config.prepare()

    def make(*overrides):
        cfg = compose("eval", ["bench=toy", *overrides], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        return cfg

    with initialize_config_dir(config.config_path(), version_base="1.3"):
        yield make
