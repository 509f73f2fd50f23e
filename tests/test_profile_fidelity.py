"""The fidelity gate: zero for dense, worse for less, by phase; a correlation that is one is found, noise is not."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from doubles import play
from scipy.stats import spearmanr

from vlaprune import cli
from vlaprune.benchmark import Interface
from vlaprune.methods.dense import Dense
from vlaprune.methods.random import Random
from vlaprune.models.cogact import CogACT
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy
from vlaprune.profile import gate
from vlaprune.profile.fidelity import Replay, correlate_losses, overlap, replay, score
from vlaprune.profile.page import Page
from vlaprune.profile.recording import Frame, Recording, synthetic
from vlaprune.records import EpisodeRecord, Header, Run
from vlaprune.stats.ranks import partial_rank

SIZES = {
    "image": 56, "dino_width": 32, "dino_depth": 3, "dino_heads": 2, "siglip_width": 32, "siglip_depth": 3,
    "siglip_heads": 2, "siglip_ffn": 48, "width": 32, "layers": 6, "heads": 2, "ffn": 48,
}  # fmt: skip
GRIP = Interface("axis_angle", "close_positive", "delta", ("main",), "position2")


@pytest.fixture(scope="module")
def seen():
    return synthetic(Toy().interface, 64, episodes=3, steps=5)


def replayed(make, seen):
    return replay(Policy(Toy(), make), seen, seed=7)


def test_dense_equals_dense_and_fewer_tokens_stray_further(seen):
    dense = replayed(Dense, seen)
    same = score(seen, GRIP, dense, replayed(Dense, seen))
    assert (same.rmse, same.flips, same.agreement, same.steady) == (0, 0, 1, 1) and same.cosine == pytest.approx(1)
    some, few = (score(seen, GRIP, dense, replayed(lambda k=k: Random(keep=k), seen)) for k in (0.75, 0.1))
    assert 0 < some.rmse < few.rmse and few.agreement < 1 and few.steady < some.steady


def test_another_seed_moves_a_policy_that_draws_noise_and_no_other():
    diffusion = CogACT(weights="random", head="DiT-tiny", sizes=SIZES, dtype="float32")
    for model, noisy in ((Toy(), False), (diffusion, True)):
        recording = synthetic(model.interface, 64, episodes=1, steps=2)
        assert gate.draws_noise(model, recording, 7) == noisy
        again, other = gate.judge(model, recording, [], 7, reseed=True)
        assert again.fidelity.rmse == 0 and (other.fidelity.rmse > 0) == noisy and other.replay.kept.all()
    page = Page("x")
    gate.fill(page, [again, other], {})
    assert gate.RESEEDED in "".join(page.parts)


def test_kept_tokens_are_those_of_the_last_site(seen):
    half = replayed(lambda: Random(layer=2, keep=0.5), seen)
    assert (
        (half.kept.sum(1) == 32).all()
        and half.total == 64
        and half.visual.mean() == pytest.approx((2 * 64 + 4 * 32) / 6)
    )


def hand(chunks, phases=("approach", "approach", "carry", "carry")):
    frames = [Frame(None, "t", i // 2, i % 2, p) for i, p in enumerate(phases)]
    return Recording(frames, {}), Replay(np.array(chunks, float), np.ones((4, 6), bool), np.full(4, 6.0))


def test_scores_by_hand():
    dense = [[[0, 1]], [[2, 1]], [[0, -1]], [[2, -1]]]  # one motion number of standard deviation 1, one gripper
    strays = [[[0, 1]], [[3, 1]], [[0, 1]], [[2, -1]]]
    recording, a = hand(dense)
    said = score(recording, GRIP, a, hand(strays)[1], tolerance=0.5)
    assert said.rmse == pytest.approx(0.5) and said.flips == 0.25
    assert said.phases == {"approach": pytest.approx(0.5**0.5), "carry": 0}
    assert said.agreement == pytest.approx((0.5 + 1) / 2)  # the first differs at its second call, the other never


def test_each_motion_number_is_measured_in_its_own_deviation():
    """Deviations of 1 and 10 in the dense actions; the second number is off by 1 at every call."""
    dense = np.array([[[0, 0, 1]], [[2, 20, 1]], [[0, 0, 1]], [[2, 20, 1]]])
    recording, a = hand(dense)
    assert score(recording, GRIP, a, hand(np.add(dense, [0, 1, 0]))[1]).rmse == pytest.approx((0.01 / 2) ** 0.5)


def test_what_is_kept_is_steady_within_an_episode_and_not_over_a_reset():
    recording, a = hand([[[0, 1]], [[2, 1]]] * 2)
    for course, steady in (([0, 0, 1, 1], 1), ([0, 1, 1, 0], 0)):
        kept = np.array([[1, 1, 0, 0], [0, 0, 1, 1]], bool)[course]
        assert score(recording, GRIP, a, replace(a, kept=kept)).steady == steady


def test_overlap_is_intersection_over_union():
    a, b = np.array([[1, 1, 0, 0]], bool), np.array([[0, 1, 1, 0]], bool)
    assert overlap(a, b) == pytest.approx(1 / 3) and overlap(a, a) == 1


def test_a_correlation_is_found_and_noise_is_not():
    rng = np.random.default_rng(0)
    truth = np.linspace(0, 1, 20).round(1)  # with ties
    scores, tokens = truth + 0.1 * rng.standard_normal(20), rng.permutation(20)
    told = correlate_losses(scores, truth, tokens)
    assert told.low > 0.6 and told.low < told.rho < told.high <= 1 and told.arms == 20
    assert told.rho == pytest.approx(spearmanr(scores, truth).statistic)
    assert np.isnan(correlate_losses(scores, np.zeros(20), tokens).rho)
    noise = correlate_losses(rng.standard_normal(20), truth, tokens)
    assert noise.low < 0 < noise.high
    with pytest.raises(ValueError, match="3 arms"):
        correlate_losses([1, 2, 3], [1, 2, 3], [1, 2, 3])


def test_what_the_token_count_explains_is_taken_out():
    rng = np.random.default_rng(1)
    tokens = np.arange(200.0)
    a, b = (tokens + 20 * rng.standard_normal(200) for _ in "ab")
    assert abs(partial_rank(a, b, tokens)) < 0.2 < 0.8 < np.corrcoef(a, b)[0, 1]
    assert np.isnan(partial_rank(tokens, b, tokens))


def test_beyond_the_token_count_is_the_partial_correlation_of_ranks():
    rng = np.random.default_rng(2)
    tokens = np.arange(12.0)
    scores, lost = (tokens + 3 * rng.standard_normal(12) for _ in "ab")
    told = correlate_losses(scores, lost, tokens)
    ab, at, bt = (spearmanr(x, y).statistic for x, y in ((scores, lost), (scores, tokens), (lost, tokens)))
    assert told.beyond == pytest.approx((ab - at * bt) / ((1 - at**2) * (1 - bt**2)) ** 0.5)
    assert abs(told.beyond - told.rho) > 0.2


def judged(label, **known):
    recording, a = hand([[[0, 1]], [[2, 1]]] * 2)
    return gate.Judged(label, a, score(recording, GRIP, a, a), **known)


def recorded(won):
    """A run with the outcomes of its episodes, one character each."""
    records = {("t", i): EpisodeRecord("t", i, c == "1", 1, ()) for i, c in enumerate(won)}
    return Run(Path("run"), Header({}, {}, {"t": len(won)}), records)


def test_a_loss_is_what_dense_has_more_on_the_episodes_of_both():
    worse, better, unknown = arms = [judged(label) for label in ("worse", "better", "unknown")]
    gate.losses(arms, {"worse": recorded("1101"), "better": recorded("111111")}, recorded("11110"))
    assert (worse.loss, worse.episodes) == (0.25, 4)
    assert (better.loss, better.episodes) == (pytest.approx(-0.2), 5)
    assert (unknown.loss, unknown.episodes) == (None, 0)


def test_a_loss_foretells_nothing_below_150_shared_episodes():
    for episodes, told in ((149, False), (150, True)):
        found = gate.correlations([judged(str(i), episodes=episodes, loss=i / 10) for i in range(4)])
        assert bool(found) == told
    assert found.keys() == judged("any").scores.keys() and found["rmse"].arms == 4
    few = [judged(str(i), episodes=150 - (i == 3), loss=i / 10) for i in range(4)]
    assert gate.correlations(few) == {}  # three arms


def command(monkeypatch, script, *argv):
    monkeypatch.setattr(sys, "argv", [script.__name__, *argv])
    script()


def test_losses_are_of_the_episodes_shared_with_dense(tmp_path, monkeypatch):
    """Runs of the toy, then the page from their journals: methods and budgets come from there."""
    monkeypatch.setattr(gate, "LEAST", 4)
    monkeypatch.chdir(tmp_path)
    toy = ("model=toy", "bench=toy")
    for number, method in enumerate(("dense", "random", "random", "bottomk", "uniform")):
        keep = () if method == "dense" else (f"method.keep={0.5 / (number + 1)}",)
        one = (f"method={method}", *keep, "episodes=2", "logger=csv", f"output=runs/{number}")
        command(monkeypatch, cli.evaluate, *toy, *one)
    page = ("mode=fidelity", "runs=[runs]", "record=2", "observations=seen.npz", "output=out", "hydra.run.dir=.")
    command(monkeypatch, cli.profile, *toy, *page)
    lines = (tmp_path / "out" / "fidelity.csv").read_text().splitlines()
    assert [line.split(",")[0].split()[0] for line in lines[1:]] == ["dense", "bottomk", "random", "random", "uniform"]
    assert "rank correlation with the loss" in (tmp_path / "out" / "fidelity.md").read_text()
    with pytest.raises(SystemExit):
        command(monkeypatch, cli.profile, *toy, *page, "runs=[runs/1]")


def test_runs_of_other_weights_are_refused(tmp_path):
    run = play(tmp_path / "run", episodes=1)
    with pytest.raises(ValueError, match="ran with weights None, not abc"):
        gate.arms([run], run, dict, "abc")


def test_runs_of_another_seed_than_the_dense_one_are_refused(tmp_path):
    """Episode 3 of seed 8 is another draw than episode 3 of seed 7: nothing is paired."""
    dense, other = (play(tmp_path / str(seed), episodes=1, seed=seed) for seed in (7, 8))
    with pytest.raises(ValueError, match=r"differs from .* in more than the method .*seed"):
        gate.arms([dense, other], dense, dict, None)
