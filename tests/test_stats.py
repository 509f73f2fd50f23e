"""Checks of vlaprune.stats.paired against statsmodels, published vectors, likelihoods and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as sps
from scipy.optimize import minimize_scalar
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from vlaprune.stats import exact, level, rates
from vlaprune.stats import paired as stats
from vlaprune.stats.paired import EProcess, Pairs, pair, tango, verdict

Z = sps.norm.ppf(0.975)
tables = st.tuples(*[st.integers(0, 60)] * 4).filter(any).map(lambda counts: Pairs(*counts))
quick = settings(max_examples=60, deadline=None)


def swap(pairs: Pairs) -> Pairs:
    return Pairs(pairs.both, pairs.gained, pairs.lost, pairs.neither)


def scale(pairs: Pairs, k: int) -> Pairs:
    return Pairs(k * pairs.both, k * pairs.lost, k * pairs.gained, k * pairs.neither)


def draws(rng, n, lost, gained, both, runs):
    """Distinct simulated tables and how often each came up."""
    cells = [both, lost, gained, 1 - both - lost - gained]
    rows, times = np.unique(rng.multinomial(n, cells, size=runs), axis=0, return_counts=True)
    return [Pairs(*row) for row in rows.tolist()], times / runs


# one proportion


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (12, 24), (0, 50), (50, 50), (485, 500)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_rate_intervals_agree_with_statsmodels(k, n, confidence):
    for ours, theirs in ((rates.wilson, "wilson"), (rates.clopper_pearson, "beta")):
        found = ours(k, n, confidence)
        oracle = proportion_confint(k, n, alpha=1 - confidence, method=theirs)
        assert (found.low, found.high) == pytest.approx(oracle, abs=1e-9)


def test_wilson_gives_the_spec_table():
    table = {(12, 24): (31, 69), (67, 96): (60, 78), (27, 30): (74, 97), (485, 500): (95.1, 98.2)}
    for (k, n), (low, high) in table.items():
        found = rates.wilson(k, n)
        assert (100 * found.low, 100 * found.high) == pytest.approx((low, high), abs=0.6)


@pytest.mark.parametrize(("k", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_no_rate_without_episodes(k, n):
    for interval in (rates.wilson, rates.clopper_pearson):
        with pytest.raises(ValueError, match=f"no success rate of {k} out of {n} episodes"):
            interval(k, n)


# pairs


def test_pair_counts_by_episode_not_by_order():
    dense = {("a", 0): True, ("a", 1): True, ("b", 0): False, ("b", 1): False, ("b", 2): True}
    method = {("b", 2): True, ("b", 1): True, ("b", 0): False, ("a", 1): False, ("a", 0): True}
    assert pair(dense, method) == Pairs(both=2, lost=1, gained=1, neither=1)
    assert pair({0: np.True_, 1: np.False_}, {0: np.False_, 1: np.True_}) == Pairs(0, 1, 1, 0)


def test_pair_refuses_different_episodes_and_none():
    with pytest.raises(ValueError, match=r"^not the same.*method lacks 2, dense lacks 1$"):
        pair({1: True, 2: True, 3: True}, {3: True, 4: True})
    with pytest.raises(ValueError, match="hold an episode"):
        pair({}, {})
    with pytest.raises(ValueError, match="must be >= 0"):
        Pairs(3, -1, 0, 0)


@quick
@given(tables)
def test_mcnemar_agrees_with_statsmodels(pairs):
    oracle = mcnemar([[pairs.both, pairs.lost], [pairs.gained, pairs.neither]], exact=True)
    expected = oracle.pvalue if pairs.lost + pairs.gained else 1.0
    assert stats.mcnemar_exact(pairs) == pytest.approx(min(1.0, expected))


def newcombe(pairs, confidence=0.95):
    """The interval of the paired difference of Newcombe 1998, method 8: what Tango's is compared with."""
    a, b, c, d, n = pairs.both, pairs.gained, pairs.lost, pairs.neither, pairs.n
    p1, p2 = (a + b) / n, (a + c) / n
    one, two = rates.wilson(a + b, n, confidence), rates.wilson(a + c, n, confidence)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = (a * d - b * c) / math.sqrt(margins) if margins else 0.0
    down, up = (p1 - one.low, two.high - p2), (one.high - p1, p2 - two.low)
    reach = [math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)) for x, y in (down, up)]
    return rates.Interval(p1 - p2 - reach[0], p1 - p2 + reach[1])


def test_newcombe_vectors():
    found = newcombe(Pairs(both=36, gained=12, lost=2, neither=0))  # spec 7.5
    assert (found.low, found.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    # By hand: p1 = p2 = 1, phi = 0, so each side is Wilson's z^2 / (n + z^2).
    found = newcombe(Pairs(both=54, gained=0, lost=0, neither=0))
    assert found.high == pytest.approx(Z**2 / (54 + Z**2)) and found.low == -found.high
    # The reason why verdict() does not use it: no width at all after two episodes.
    assert newcombe(Pairs(1, 0, 0, 1)).high == newcombe(Pairs(1, 0, 0, 1)).low == 0


def test_tango_vectors():
    found = tango(Pairs(both=1, gained=1, lost=7, neither=12))  # Fagerland et al. 2014
    assert (found.low, found.high) == pytest.approx((-0.517, -0.026), abs=5e-4)
    for n in (1, 5, 2000):
        assert tango(Pairs(0, n, 0, 0)).low == -1 and tango(Pairs(0, 0, n, 0)).high == 1
    for n in (1, 2, 54, 2000):  # by hand: with nothing discordant, z^2 / (n + z^2)
        found = tango(Pairs(n, 0, 0, 0))
        assert (found.low, found.high) == pytest.approx((-(Z**2) / (n + Z**2), Z**2 / (n + Z**2)))


@pytest.mark.parametrize(("lost", "gained", "n"), [(2, 12, 50), (7, 1, 21), (0, 5, 30), (9, 9, 96)])
def test_tango_ends_solve_the_score_equation(lost, gained, n):
    """The restricted estimate is found here by maximising the likelihood, not by its formula."""
    found = tango(Pairs(n - lost - gained, lost, gained, 0))
    for end, side in ((found.low, 1), (found.high, -1)):

        def deviance(rate, end=end):
            cells = np.array([rate, rate + end, 1 - 2 * rate - end])
            return -np.sum(sps.multinomial.logpmf([lost, gained, n - lost - gained], n, cells))

        bounds = (max(0, -end) + 1e-12, (1 - end) / 2 - 1e-12)
        rate = minimize_scalar(deviance, bounds=bounds, method="bounded", options={"xatol": 1e-12})
        error = math.sqrt(n * (2 * rate.x + end - end**2))
        assert (gained - lost - n * end) / error == pytest.approx(side * Z, abs=2e-3)


@quick
@given(tables, st.sampled_from([newcombe, tango]))
def test_paired_intervals_hold_the_estimate_mirror_and_shrink(pairs, interval):
    found, mirrored, longer = interval(pairs), interval(swap(pairs)), interval(scale(pairs, 3))
    assert -1 - 1e-9 <= found.low <= pairs.difference + 1e-9
    assert pairs.difference - 1e-9 <= found.high <= 1 + 1e-9
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-8)
    assert longer.high - longer.low <= found.high - found.low + 1e-8
    wide = interval(pairs, 0.99)
    assert wide.low <= found.low + 1e-8 and found.high <= wide.high + 1e-8


@pytest.mark.parametrize(
    ("n", "lost", "gained", "both", "published"),
    [(500, 0.025, 0.005, 0.945, 0.961), (96, 0.09, 0.03, 0.66, 0.946)],
)
def test_paired_intervals_cover(n, lost, gained, both, published):
    found, weights = draws(np.random.default_rng(1), n, lost, gained, both, 2500)
    covered = {}
    for interval in (newcombe, tango):
        ends = [interval(pairs) for pairs in found]
        inside = [end.low <= gained - lost <= end.high for end in ends]
        covered[interval.__name__] = float(np.dot(inside, weights))
    assert covered["newcombe"] == pytest.approx(published, abs=0.012)
    assert covered["tango"] == pytest.approx(0.952, abs=0.012)


# several methods, several tasks


def test_holm_agrees_with_statsmodels():
    rng = np.random.default_rng(1)
    for count in (1, 2, 3, 5, 12) * 2:
        pvalues = (rng.integers(0, 40, count) / rng.choice([39, 400])).tolist()  # with ties
        assert stats.holm(pvalues) == pytest.approx(list(multipletests(pvalues, method="holm")[1]))


def test_holm_by_hand():
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([]) == []


def cluster_oracle(values, clusters):
    """The sandwich written out: every pair of residuals of the same task."""
    residuals = np.array(values, float) - np.mean(values)
    meat = sum(
        x * y
        for x, task in zip(residuals, clusters, strict=True)
        for y, other in zip(residuals, clusters, strict=True)
        if task == other
    )
    tasks = len(set(clusters))
    return math.sqrt(meat * tasks / (tasks - 1)) / len(values)


def test_clustered_error():
    values, clusters = [1, 1, 0, 1, 0, 0, 0, 1, 1], list("aaabbbbcc")
    found = stats.clustered_error({"a": (2, 3), "b": (1, 4), "c": (2, 2)})
    assert found == pytest.approx(cluster_oracle(values, clusters))
    # differences of the same shape: a lost 1 of 3, b gained 2 of 4, c nothing of 2
    tasks = {"a": (-1, 3), "b": (2, 4), "c": (0, 2)}
    expected = cluster_oracle([-1, 0, 0, 1, 1, 0, 0, 0, 0], clusters)
    assert stats.clustered_error(tasks) == pytest.approx(expected)
    # by hand: two tasks of 10, all against nothing; residual sums +-5, sqrt(2 * 50) / 20
    assert stats.clustered_error({"a": (10, 10), "b": (0, 10)}) == pytest.approx(0.5)
    assert stats.clustered_error({"a": (7, 10), "b": (7, 10)}) == pytest.approx(0)


def test_clustered_error_sees_what_pooling_hides():
    rng = np.random.default_rng(2)
    rates = rng.uniform(0.3, 1.0, size=(400, 10))
    means = rng.binomial(50, rates) / 50
    runs = [{str(i): (round(50 * m), 50) for i, m in enumerate(row)} for row in means]
    error = math.sqrt(np.mean([stats.clustered_error(run) ** 2 for run in runs]))
    assert error == pytest.approx(means.mean(axis=1).std(), rel=0.1)
    assert error > 2.5 * math.sqrt(0.65 * 0.35 / 500)


@pytest.mark.parametrize("tasks", [{}, {"only": (5, 10)}, {"a": (5, 10), "b": (0, 0)}])
def test_clustered_error_needs_two_tasks(tasks):
    with pytest.raises(ValueError, match="needs two tasks with episodes"):
        stats.clustered_error(tasks)


# verdicts


def beside(found, margin):
    """The interval that is shown lies beside the margin exactly where a verdict is reached; Tango's but for its end."""
    held = found.held
    side = {"no worse": held.low >= -margin, "worse": held.high <= -margin}
    assert side.get(found.decision, held.low <= -margin <= held.high)
    assert held.low in (-margin, found.interval.low) or held.low < found.interval.low  # wider by Holm, or ended there
    assert held.high in (-margin, found.interval.high) or held.high > found.interval.high


@quick
@given(tables, st.sampled_from([0.0, 0.02, 0.05]))
def test_verdict_follows_the_interval(pairs, margin):
    found = verdict(pairs, margin)
    assert found.interval == tango(pairs) and found.p == stats.mcnemar_exact(pairs)
    beside(found, margin)
    if found.decision == "undecided":
        assert found.more >= 1 and "more episodes" in found.words
    else:
        assert found.more == 0 and (found.decision == "no worse" or found.p <= 0.0501)
    assert found.words.startswith(found.decision) and "\n" not in found.words


@pytest.mark.parametrize("margin", [0.02, 0.05])
def test_small_samples_are_undecided(margin):
    for n in range(1, 6):
        for lost in range(n + 1):
            for gained in range(n - lost + 1):
                found = verdict(Pairs(n - lost - gained, lost, gained, 0), margin)
                assert found.decision == "undecided" or gained >= 4
    for n in (10, 24, 50, 70):
        assert verdict(Pairs(n, 0, 0, 0), margin).decision == "undecided"


def test_the_number_of_further_episodes():
    # Nothing discordant: z^2 / (n + z^2) < margin from n = z^2 (1 - m) / m = 73 on.
    assert verdict(Pairs(40, 0, 0, 10), 0.05).more == 73 - 50
    # Integer multiples of a table decide just where the number says, to 1 %.
    for table in (Pairs(45, 3, 2, 0), Pairs(38, 8, 4, 0), Pairs(480, 8, 6, 6)):
        found = verdict(table, 0.05 if table.n == 50 else 0.02)
        factor = 1 + found.more / table.n
        margin = 0.05 if table.n == 50 else 0.02
        assert verdict(scale(table, math.floor(0.99 * factor)), margin).decision == "undecided"
        assert verdict(scale(table, math.ceil(factor)), margin).decision != "undecided"
    # All below the margin, but five losses against none have p = 0.0625: wait for a sixth.
    found = verdict(Pairs(49, 5, 0, 0), 0.02)
    assert found.interval.high < -0.02 and (found.decision, found.more) == ("undecided", 6)
    assert verdict(Pairs(58, 6, 0, 0), 0.02).decision == "worse"
    assert "over a million more" in verdict(Pairs(90, 5, 0, 5), 0.05).words


def test_the_further_episodes_decide_half_the_time():
    now = Pairs(44, 3, 2, 1)
    n = now.n + verdict(now, 0.05).more
    found, weights = draws(np.random.default_rng(3), n, 0.06, 0.04, 0.88, 800)
    decided = [stats.against(pairs, 0.05) <= 0.05 for pairs in found]
    assert np.dot(decided, weights) == pytest.approx(0.5, abs=0.06)


@settings(max_examples=15, deadline=None)
@given(st.lists(tables, min_size=1, max_size=5), st.sampled_from([0.0, 0.05]))
def test_verdicts_together_are_holm_of_verdicts_alone(several, margin):
    alone, together = [verdict(pairs, margin) for pairs in several], stats.verdicts(several, margin)
    adjusted = stats.holm([v.adjusted for v in alone])
    assert [v.adjusted for v in together] == pytest.approx(adjusted)
    assert [v.decision != "undecided" for v in together] == [p <= 0.05 for p in adjusted]
    for one, held in zip(alone, together, strict=True):
        assert held.decision in (one.decision, "undecided") and held.interval == one.interval
        assert held.more >= one.more  # company never makes it easier
        beside(held, margin)


def test_the_further_episodes_of_one_among_several():
    clear, open_ = Pairs(40, 60, 0, 0), Pairs(45, 3, 2, 0)
    alone, among = verdict(open_, 0.05), stats.verdicts([open_, clear, clear], 0.05)[0]
    assert among.more == alone.more  # the others are decided: Holm's last step is the plain level
    assert stats.verdicts([open_, open_], 0.05)[0].more > alone.more


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_of_six_methods_on_the_margin_none_is_decided_most_of_the_time(margin):
    """Wrong decisions among six methods, each exactly on the margin: in at most 5 % (plus noise) of 500 draws."""
    rng = np.random.default_rng(7)
    lost = 0.06 + margin / 2
    drawn = rng.multinomial(50, [0.7, lost, lost - margin, 0.3 - 2 * lost + margin], size=(500, 6))
    wrong = [min(stats.holm([stats.against(Pairs(*c), margin) for c in row])) <= 0.05 for row in drawn.tolist()]
    assert np.mean(wrong) <= 0.05 + 0.02


def test_verdict_words():
    words = verdict(Pairs(450, 20, 10, 20), 0.02).words
    assert words.startswith("undecided (over a million more episodes")
    words = verdict(Pairs(60, 30, 0, 0), 0.05).words
    assert words.startswith("worse: -33.3 points, 95 % interval [-43.6, -24.5], margin 5, n = 90,")
    assert words.endswith(", lost 30, gained 0, McNemar p = 1.9e-09")
    with pytest.raises(ValueError, match="margin is a proportion"):
        verdict(Pairs(10, 0, 0, 0), -0.02)
    with pytest.raises(ValueError, match="margin is a proportion"):
        verdict(Pairs(10, 0, 0, 0), 5)


@pytest.mark.parametrize("success", [0.97, 0.7])
def test_every_second_episode_ruined_is_worse_within_60(success):
    rng = np.random.default_rng(4)
    calls, stops = [], []
    for _ in range(300):
        dense = dict(enumerate((rng.random(60) < success).tolist()))
        method = {i: ok and i % 2 == 1 for i, ok in dense.items()}
        calls += [verdict(pair(dense, method), margin).decision for margin in (0.02, 0.05)]
        state = EProcess()
        for i in dense:
            state = state.after(dense[i], method[i])
        stops.append(state.stopped and state.lost > state.gained)
    assert set(calls) == {"worse"} and all(stops)


@pytest.mark.parametrize(("flip", "n"), [(0.02, 300), (0.12, 96), (0.5, 40)])
def test_an_identical_twin_is_seldom_worse(flip, n):
    rng = np.random.default_rng(5)
    found, weights = draws(rng, n, flip / 2, flip / 2, 1 - flip, 500)
    for margin in (0.0, 0.02, 0.05):  # at no margin the test is at its most eager
        worse = [p.difference < -margin and stats.against(p, margin) <= 0.05 for p in found]
        assert np.dot(worse, weights) <= 0.05


@pytest.mark.parametrize(("n", "margin"), [(10, 0.02), (24, 0.05), (60, 0.01)])
def test_a_method_on_the_margin_is_wrongly_decided_in_2_5_percent_on_each_side_at_most(n, margin):
    """By enumeration of every table at 400 rates of changes (scripts/level.py for larger n)."""
    for side in (1, -1):
        rate, _ = level.worst(n, margin, side)
        assert 0.008 < rate <= 0.025


@pytest.mark.parametrize(("n", "margin", "lost"), [(200, 0.02, 0.022), (400, 0.01, 0.011)])
def test_rare_events_are_no_excuse(n, margin, lost):
    """Where the asymptotic score called 5.2 % worse (issue 14, A13): the tables that can come up are enumerated."""
    gained = lost - margin
    wrong = score = 0.0
    for x in range(4 * math.ceil(n * lost) + 4):
        for y in range(8):
            chance = sps.multinomial.pmf([x, y, n - x - y], n, [lost, gained, 1 - lost - gained])
            if chance > 1e-9 and y - x < -n * margin:
                wrong += chance * (stats.against(Pairs(n - x - y, x, y, 0), margin) <= 0.05)
                score += chance * (exact.statistic(np.array(y), np.array(x), n, -margin) <= -Z)
    assert wrong <= 0.025 and score > 0.045


@pytest.mark.parametrize(("lost", "gained", "n", "delta"), [(6, 1, 20, -0.05), (5, 0, 30, -0.02), (1, 5, 24, 0.05)])
def test_the_exact_p_is_a_sum_over_every_table(lost, gained, n, delta):
    """At each rate of changes that the counts leave possible: all tables at least as extreme, by scipy's trinomial."""
    every = np.array([(y, x, n - x - y) for y in range(n + 1) for x in range(n + 1 - y)])
    seen = exact.statistic(np.array(gained), np.array(lost), n, delta)
    extreme = every[exact.statistic(every[:, 0], every[:, 1], n, delta) <= seen + 1e-9]
    tried = np.linspace(max(0, -delta), (1 - delta) / 2, 300)
    low, high = proportion_confint(lost + gained, n, alpha=1e-6, method="beta")
    tried = [q for q in tried if low <= 2 * q + delta <= high]
    chance = [sps.multinomial.pmf(extreme, n, [q + delta, q, 1 - 2 * q - delta]).sum() for q in tried]
    assert exact.below(gained, lost, n, delta) == pytest.approx(max(chance) + 1e-6, rel=2e-3)


def test_the_exact_p_tends_to_the_score():
    for lost, gained, delta in ((300, 240, -0.02), (150, 100, -0.02), (60, 90, 0.01)):
        normal = sps.norm.cdf(exact.statistic(np.array(gained), np.array(lost), 4000, delta))
        assert exact.below(gained, lost, 4000, delta) == pytest.approx(normal, rel=0.05)
    assert exact.below(0, 0, 500, 0.05) == pytest.approx(1e-6)  # no rate of changes at all fits: the least p there is


# several seeds


def test_repeats_of_an_episode_count_as_the_episode():
    """Seeds that change nothing tell nothing: three equal seeds decide and bound as one seed does."""
    dense = {("t", i): i >= 4 for i in range(40)}
    method = {("t", i): i >= 13 for i in range(40)}
    one = pair(dense, method)
    thrice = [{(*k, s): v for k, v in m.items() for s in (0, 1, 2)} for m in (dense, method)]
    three = pair(*thrice, cluster=lambda key: key[:2])
    assert (three.n, three.lost, three.design, three.net) == (120, 27, pytest.approx(3), (9, 0))
    assert stats.mcnemar_exact(three) == stats.mcnemar_exact(one)
    for a, b in zip(tango(three).__dict__.values(), tango(one).__dict__.values(), strict=True):
        assert a == pytest.approx(b, abs=1e-9)
    assert stats.against(three, 0.05) == pytest.approx(stats.against(one, 0.05))
    assert pair(*thrice).design == 1 and tango(pair(*thrice)).high < tango(one).high  # what not clustering claims
    whole = rates.wilson(108, 120, design=rates.design_effect([[1] * 3] * 36 + [[0] * 3] * 4))
    assert whole.low == pytest.approx(rates.wilson(36, 40).low, abs=1e-9)
    same = {("t", i, s): True for i in range(80) for s in (0, 1)}
    assert pair(same, same, lambda key: key[:2]).effective == (0, 0, 80)  # no change seen proves no independence


def test_seeds_that_differ_as_episodes_do_count_nearly_in_full():
    rng = np.random.default_rng(9)
    drawn = rng.random((200, 3)) < 0.2
    assert rates.design_effect(drawn.astype(float)) == pytest.approx(1, abs=0.15)
    assert rates.design_effect([[1.0], [0.0]]) == rates.design_effect([]) == 1


def test_intervals_of_clustered_rates_cover():
    rng = np.random.default_rng(10)
    inside = []
    for _ in range(300):
        own = rng.beta(2, 1, 60)[:, None]  # episodes differ in how hard they are
        won = rng.random((60, 3)) < own
        found = rates.wilson(int(won.sum()), 180, design=rates.design_effect(won.astype(float)))
        inside.append(found.low <= 2 / 3 <= found.high)
    assert 0.92 <= np.mean(inside) <= 0.99


def test_aa_noise():
    first = {i: i % 3 > 0 for i in range(60)}
    second = {i: ok ^ (i < 6) for i, ok in first.items()}
    rate, interval = stats.aa_noise(first, second)
    assert rate == 0.1 and interval == rates.wilson(6, 60)
    assert stats.aa_noise(first, first)[0] == 0


# anytime stopping


def test_e_process_by_hand_and_without_overflow():
    assert math.exp(stats.e_process(0, 0)) == pytest.approx(1)
    assert math.exp(stats.e_process(2, 0)) == pytest.approx(4 / 3)  # 2^2 * 1/3
    assert math.exp(stats.e_process(1, 1)) == pytest.approx(4 / 6)  # 2^2 * 1/6
    assert stats.e_process(10**6, 0) == pytest.approx(10**6 * math.log(2) - math.log(10**6 + 1))
    assert stats.e_process(7, 3) == stats.e_process(3, 7)


@given(st.integers(0, 300), st.integers(0, 300))
def test_e_process_is_a_martingale_under_the_fair_coin(lost, gained):
    now = stats.e_process(lost, gained)
    after = [stats.e_process(lost + 1, gained), stats.e_process(lost, gained + 1)]
    assert np.logaddexp(*after) - math.log(2) == pytest.approx(now, abs=1e-8)


def first_stops(rng, lost, gained, cap, runs):
    """Episode at which each run stops (cap if never), and whether it did."""
    table = np.array([[stats.e_process(x, y) for y in range(120)] for x in range(150)])
    draw = rng.random((runs, cap))
    losses = np.minimum(np.cumsum(draw < lost, axis=1), 149)
    gains = np.minimum(np.cumsum((draw >= lost) & (draw < lost + gained), axis=1), 119)
    crossed = table[losses, gains] >= -math.log(0.05)
    stopped = crossed.any(axis=1)
    return np.where(stopped, crossed.argmax(axis=1) + 1, cap), stopped


@pytest.mark.parametrize(("rate", "cap"), [(0.02, 2000), (0.1, 500)])
def test_e_process_seldom_stops_a_twin(rate, cap):
    _, stopped = first_stops(np.random.default_rng(7), rate, rate, cap, 1500)
    assert 0.01 < stopped.mean() <= 0.05
    assert rate > 0.02 or stopped.mean() == pytest.approx(0.025, abs=0.01)


@pytest.mark.parametrize(
    ("lost", "gained", "cap", "mean"),
    [(0.035, 0.005, 2000, 363), (0.09, 0.03, 1200, 284), (0.30, 0.03, 400, 37)],
)
def test_e_process_stops_when_published(lost, gained, cap, mean):
    after, stopped = first_stops(np.random.default_rng(8), lost, gained, cap, 1000)
    assert after.mean() == pytest.approx(mean, rel=0.06) and stopped.mean() > 0.99


def test_monitor_remembers_its_peak():
    state = EProcess()
    for _ in range(8):
        state = state.after(dense=True, method=False)
    assert state.stopped and (state.lost, state.gained) == (8, 0)
    for _ in range(8):
        state = state.after(dense=False, method=True)
    assert state.stopped and stats.e_process(8, 8) < 0
    quiet = EProcess().after(True, True).after(False, False)
    assert quiet == EProcess() and not quiet.stopped
    assert not EProcess(alpha=1e-6, lost=8, peak=stats.e_process(8, 0)).stopped


# laws that a mutation run found nobody to hold


def test_worse_needs_mcnemar_too():
    """Five losses of ten against no gain: the exact test of the margin rejects, but a fair coin does it once in 16."""
    five = Pairs(5, 5, 0, 0)
    assert 2 * exact.below(0, 5, 10, -0.02) < 0.05 < stats.mcnemar_exact(five)
    assert verdict(five, 0.02).decision == "undecided" and stats.against(five, 0.02) == stats.mcnemar_exact(five)


def test_an_undecided_interval_is_at_the_level_that_holm_asks_of_it():
    open_, clear = Pairs(45, 3, 2, 0), Pairs(40, 60, 0, 0)
    wide, narrow = tango(open_, 1 - 0.05 / 4), tango(open_)
    assert stats.verdicts([open_] * 4, 0.05)[0].held == wide and wide.low < narrow.low
    assert stats.verdicts([open_, clear, clear], 0.05)[0].held == narrow  # the others are decided
    assert stats.verdicts([open_, clear, clear], 0.05)[1].held.low == pytest.approx(tango(clear, 1 - 0.05 / 3).low)


def test_seeds_that_balance_each_other_count_no_more_than_in_full():
    assert rates.design_effect([[1.0, 0.0]] * 30) == 1


@pytest.mark.parametrize("n", [20, 50, 100, 200, 500])
def test_the_interval_of_a_mean_change_holds_for_rare_losses(n):
    """Exactly, by the binomial distribution: the true loss lies in it in 94 % of studies or more, rare or not."""
    found = [rates.mean_change([[-1.0] * k + [0.0] * (n - k)])[1] for k in range(n + 1)]
    for loss in [*np.linspace(0.1 / n, 12 / n, 120), *np.linspace(0.02, 0.5, 40)]:
        chance = binom.pmf(range(n + 1), n, loss)
        assert sum(p for p, one in zip(chance, found, strict=True) if one.low <= -loss <= one.high) > 0.94


def test_the_mean_change_of_strata_weighs_them_alike_and_knows_when_it_knows_nothing():
    middle, interval = rates.mean_change([[1.0] * 10, [0.0] * 1000])
    assert middle == 0.5 and interval.low < 0.5 < interval.high
    assert rates.mean_change([[1.0], [0.0] * 10])[1].high == np.inf
    one, more = (rates.mean_change([[0.0, -1.0] * n])[1] for n in (20, 40))
    assert one.high - one.low > more.high - more.low


def test_an_unseen_change_is_as_large_as_those_seen():
    """Means over seven perturbations change by sevenths; a whole change that nobody saw would drown them."""
    small, large = (rates.mean_change([[-size] * 5 + [0.0] * 45])[1] for size in (1 / 7, 1.0))
    assert (small.high - small.low) * 7 == pytest.approx(large.high - large.low)
