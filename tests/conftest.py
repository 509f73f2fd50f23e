import signal

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from vlaprune import config


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
