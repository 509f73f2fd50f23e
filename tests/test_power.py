"""What a run could show, against the published table and simulation."""

import math

import numpy as np
import pytest

from vlaprune.stats import paired as stats
from vlaprune.stats import power


def test_power_gives_the_spec_table():
    table = {(500, 0.025, 0.005): 0.69, (500, 0.035, 0.005): 0.93}
    table |= {(96, 0.09, 0.03): 0.29, (300, 0.09, 0.03): 0.83}
    for (n, lost, gained), chance in table.items():
        assert power.mcnemar_power(n, lost, gained) == pytest.approx(chance, abs=0.006)


def test_mde_by_simulation():
    """The chance flips stay, half of them lost and half gained; the loss comes on top."""
    loss = power.mde(300, 0.12)
    lost, gained = 0.06 + loss, 0.06
    drawn = np.random.default_rng(9).multinomial(300, [0.6, lost, gained, 0.4 - lost - gained], size=3000)
    found = [stats.Pairs(*row) for row in drawn.tolist()]
    called = [stats.mcnemar_exact(p) <= 0.05 and p.lost > p.gained for p in found]
    assert np.mean(called) == pytest.approx(0.8, abs=0.025)


def test_mde_moves_the_right_way():
    sizes = [power.mde(n, 0.05) for n in (6, 12, 24, 50, 100, 200, 500, 2000)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.02
    noise = [power.mde(500, d) for d in (0, 0.01, 0.03, 0.1, 0.3, 1)]  # infinite in the end
    assert noise == sorted(noise)
    assert power.mde(500, 0.03, power=0.9) > power.mde(500, 0.03) > power.mde(500, 0.03, alpha=0.1)
    assert power.mde(5, 0.1) == math.inf  # even five losses of five have p = 0.06
    assert power.mde(20, 0.9) == math.inf  # the flips leave no room for a loss that would show
    with pytest.raises(ValueError, match="n = 0"):
        power.mde(0, 0.1)


def test_power_line():
    line = power.power_line(50, 4)
    assert line.startswith("with 50 episodes per task on 4 tasks you can see a loss of about 7.1 points (pooled), ")
    assert "a loss of about 19.7 points (one task)" in line
    assert "you can see no loss of any size (pooled), no loss of any size (one task)" in power.power_line(1, 4)
