"""Tables of worlds that do not wait: which runs are paired, what the numbers are, what the page shows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlaprune.records import EpisodeRecord, Header, Run, StepRecord
from vlaprune.report import delay
from vlaprune.report.delay_charts import charts, html
from vlaprune.stats.rates import mean_interval

BENCH = {"name": "toy", "margin": 0.05}


def call(ms, late=1, held=1, stale=0):
    told = {"ms": ms, "late": late, "held": held, "stale": stale, "dropped": 0}
    return StepRecord((10,) * 2, (10,) * 2, 8, (8,) * 2, 0, {"prompt": 1.0}, {}, delay=told)


def run(method, said, successes, steps=20, ms=100.0, hz=20.0, jerk=1.0, spread=1, layer=None, **identity):
    """A run whose episode i succeeds if successes[i], and takes `steps` steps; of a method one more or less."""
    identity = {
        **{
            "model": {"name": "toy"},
            "method": {"name": method} | ({"layer": layer} if layer else {}),
            "bench": BENCH,
            "seed": 7,
            "execute": 4,
        },
        **identity,
    }
    more = [0] * 4 if method == "dense" else [spread, spread, -spread, -spread]
    if said is not None:
        identity["delay"] = said
    episodes = {
        ("reach", i): EpisodeRecord(
            "reach",
            i,
            bool(won),
            steps,
            (call(ms), call(ms)) if said else (replace(call(ms), delay={}),),
            motion={
                "world_seconds": (steps + more[i % 4]) / hz,
                "path_hand": 3.0,
                "jerk_hand": jerk,
                "jerk_turn": 0.0,
                "flips": 1.0,
            },
        )
        for i, won in enumerate(successes)
    }
    provenance = {"delay": "modelled, not measured"} if said else {}
    return Run(Path(f"runs/{method}"), Header(identity, provenance, {"reach": len(successes)}), episodes)


HOLD = {"mode": "hold", "ms": 100}
THOR = {"mode": "hold", "device": "thor", "model": "oft", "share": 0.6}
WON, HALF = [1] * 40, [1, 0] * 20


@pytest.fixture
def study():
    return delay.table(
        [
            run("dense", None, WON, 16),
            run("dense", HOLD, HALF),
            run("fastv", HOLD, HALF),
            run("dense", THOR, HALF, 30, ms=120.0),
            run("fastv", THOR, WON, 24, ms=60.0, jerk=0.5),
            run("random", THOR, [0] * 40, 40, ms=60.0),
        ]
    )


def test_every_method_is_held_against_dense_under_the_same_delay_and_no_other(study):
    rows = study.set_index(["mode", "where", "method"])
    assert list(rows.index) == [
        ("hold", "100 ms", "dense"),
        ("hold", "100 ms", "fastv"),
        ("wait", "0 ms", "dense"),
        ("hold", "thor as oft, modelled", "dense"),
        ("hold", "thor as oft, modelled", "fastv"),
        ("hold", "thor as oft, modelled", "random"),
    ]
    thor = study[study["where"] == "thor as oft, modelled"].set_index("method")
    assert thor.loc["fastv", "difference"] == pytest.approx(0.5) and thor.loc["fastv", "gained"] == 20
    assert rows.loc[("hold", "100 ms", "fastv"), "difference"] == 0
    assert np.isnan(rows.loc[("wait", "0 ms", "dense"), "difference"])


def test_numbers_are_those_of_the_world(study):
    rows = study.set_index(["where", "method"])
    fastv = rows.loc[("thor as oft, modelled", "fastv")]
    assert fastv["seconds"] == pytest.approx(1.2) and fastv["ms"] == 60 and fastv["late"] == 1
    assert fastv["replans"] == pytest.approx(2 / 1.2) and fastv["held"] == pytest.approx(2 / 24)
    assert fastv["sooner"] == pytest.approx(0.3)  # on the 20 episodes in which both succeed
    assert fastv["jerk_hand_change"] == pytest.approx(-0.5)
    assert np.isnan(rows.loc[("thor as oft, modelled", "random"), "seconds"])


def test_a_verdict_is_of_success_first_and_then_of_time(study):
    said = {(r.where, r.method): delay.verdict(r) for r in study.itertuples()}
    assert said["thor as oft, modelled", "fastv"] == "no worse and sooner"
    assert said["thor as oft, modelled", "random"] == "worse"
    assert said["thor as oft, modelled", "dense"] == "baseline"


def test_sooner_needs_a_spread_and_ten_episodes():
    """Two successes of one length each say nothing of how sure the difference is."""
    few = [1, 1] + [0] * 38
    alike = [run("dense", THOR, HALF, 30), run("fastv", THOR, WON, 24, spread=0)]
    rare = [run("dense", THOR, few, 30), run("fastv", THOR, WON, 24)]
    for runs in (alike, rare):
        (row,) = delay.table(runs).query("method == 'fastv'").itertuples()
        assert row.sooner > 0 and np.isinf(row.sooner_low) and delay.verdict(row) == "no worse"


def test_seeds_that_repeat_each_other_make_no_interval_narrower():
    def both(seed):
        return [run("dense", THOR, WON, 24, seed=seed), run("fastv", THOR, WON, 24, seed=seed)]

    once, often = (delay.table([r for s in range(n) for r in both(s)]) for n in (1, 8))
    (one,), (many,) = (rows.query("method == 'fastv'").itertuples() for rows in (once, often))
    assert many.episodes == 8 * one.episodes
    assert (many.sooner_low, many.sooner_high) == pytest.approx((one.sooner_low, one.sooner_high))


def test_runs_that_differ_in_more_than_method_and_delay_are_refused_in_one_line():
    """An `execute` of 8 without delay is not what an `execute` of 4 with delay can be held against."""
    for other in ({"execute": 8}, {"bench": {"name": "other", "margin": 0.05}}):
        runs = [run("dense", None, WON), run("dense", HOLD, HALF, **other)]
        with pytest.raises(ValueError, match="differ in more than method and delay"):
            delay.table(runs)


def test_a_method_without_its_baseline_is_not_called_one():
    rows = delay.table([run("dense", HOLD, WON), run("fastv", THOR, WON)])
    assert [delay.verdict(r) for r in rows.itertuples()] == ["baseline", "not compared"]
    assert "not compared" not in delay.markdown(delay.table([run("dense", HOLD, WON)]))


def test_one_label_is_one_method_under_every_delay():
    """Two depths of a method are not the same method with and without delay."""
    rows = delay.table([run("fastv", None, WON, layer=2), run("fastv", HOLD, HALF, layer=9)])
    assert sorted(rows["method"]) == ["fastv layer=2", "fastv layer=9"] and rows["cost"].isna().all()


def test_the_page_says_where_milliseconds_come_from_and_has_a_chart_of_each(study):
    text = delay.markdown(study)
    assert "## Break-even" in text and "no worse and sooner" in text
    assert "- hold, thor as oft, modelled: modelled, not measured" in text
    keys = [c.key for c in charts(study)]
    assert keys == ["rate-hold", "seconds-hold", "break-even", "motion-jerk_hand", "motion-path_hand", "motion-flips"]
    page = html(study)
    assert page.count("<svg") == 2 * len(keys) and "fastv" in page and "http" not in page.replace("http-equiv", "")


def test_a_mean_needs_two_values_for_an_interval():
    middle, interval = mean_interval([3.0])
    assert middle == 3 and np.isinf([interval.low, interval.high]).all()
    middle, interval = mean_interval([1.0, 2.0, 3.0])
    assert middle == 2 and interval.high - 2 == pytest.approx(2 - interval.low) == pytest.approx(
        4.303 / 3**0.5, rel=1e-3
    )


def test_the_interval_shown_lies_beside_the_margin_exactly_where_there_is_a_verdict(study):
    """Several methods of one delay: Holm asks more of each, and the interval says so."""
    for r in study[study["verdict"].notna()].itertuples():
        beside = {"no worse": r.held_low >= -0.05, "worse": r.held_high <= -0.05}
        assert beside.get(r.verdict, r.held_low <= -0.05 <= r.held_high), r.method
    assert "margin of 5 points" in " ".join(study.attrs["notes"])


def test_a_study_of_one_method_alone_has_its_charts():
    alone = delay.table([run("fastv", HOLD, WON), run("fastv", {"mode": "hold", "ms": 200}, HALF)])
    assert [c.key for c in charts(alone)] == ["rate-hold", "seconds-hold"] and alone["verdict"].isna().all()


def test_the_cost_of_delay_is_paired_with_the_same_method_without(study):
    """Half of 40 episodes are lost at 100 ms, none gained; fastv was never run without delay, so nothing is said."""
    rows = study.set_index(["where", "method"])
    dense = rows.loc[("100 ms", "dense")]
    assert (dense["cost"], dense["cost_lost"], dense["cost_gained"]) == (-0.5, 20, 0)
    assert dense["cost_low"] < -0.5 < dense["cost_high"] < 0
    assert np.isnan(rows.loc[("100 ms", "fastv"), "cost"]) and np.isnan(rows.loc[("0 ms", "dense"), "cost"])
    assert "| 20 / 0" in delay.markdown(study)


def test_modes_of_one_method_are_lines_of_one_chart():
    modes = [run("dense", {"mode": mode, "ms": 100}, HALF) for mode in ("hold", "overlap", "stale")]
    rows = delay.table([run("dense", {"mode": "hold", "ms": 0}, WON), *modes])
    assert [c.title for c in charts(rows)] == [
        "Success against delay, dense",
        "Seconds to success against delay, dense",
    ]
    assert all(f"{mode} at 0 ms: 100" in charts(rows)[0].wide for mode in ("hold", "overlap", "stale"))
