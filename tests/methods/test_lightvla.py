import numpy as np
import pytest
import torch
from handmade import INFO, check_memoryless, kept, look, prune_context, tiny

from vlaprune.meter import Clock
from vlaprune.methods.lightvla import LightVLA
from vlaprune.methods.shared.selecting import distinct_winners, multiplicity, straight_through
from vlaprune.models.tiny import TEXT, tokenize
from vlaprune.nn.block import DecoderConfig
from vlaprune.nn.decoder import Decoder, NullHooks, Tokens
from vlaprune.session import Session
from vlaprune.testing import check_pruner


def reference(visual, text):
    def rms(x):
        return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6)

    v, t = rms(visual.double().numpy()), rms(text.double().numpy())
    a = np.exp(v @ t.T / np.sqrt(v.shape[1]))
    q = rms(a / a.sum(1, keepdims=True) @ t)
    return q @ v.T / np.sqrt(v.shape[1])


def test_laws():
    check_pruner(LightVLA)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_promises_nothing(cameras):
    record = check_memoryless(LightVLA, cameras)
    assert 1 <= record.visual[0] <= 16 * len(cameras) and len(set(record.visual)) == 1
    assert not LightVLA().plan(INFO).budget


@pytest.mark.parametrize("seed", range(5))
def test_keeps_the_distinct_winners(seed):
    torch.manual_seed(seed)
    visual, text = torch.randn(21, 16), torch.randn(4, 16)
    score = reference(visual, text)
    assert np.allclose(LightVLA().scores(visual, text), score, atol=1e-5)
    at = prune_context(visual, text, cameras=((3, 5), (2, 3)))
    assert kept(LightVLA(), at) == sorted(set(score.argmax(1).tolist()))
    assert LightVLA().select(at).values is None


def test_moves_with_the_patches_and_ignores_word_order_and_length():
    visual, text = torch.randn(24, 16), torch.randn(5, 16)
    rows = kept(LightVLA(), prune_context(visual, text, cameras=((4, 6),)))
    order = torch.randperm(24)
    moved = kept(LightVLA(), prune_context(visual[order], text, cameras=((4, 6),)))
    assert sorted(order[moved].tolist()) == rows
    assert kept(LightVLA(), prune_context(visual, text[[3, 1, 4, 0, 2]], cameras=((4, 6),))) == rows
    assert kept(LightVLA(), prune_context(visual * (0.5 + torch.rand(24, 1)), text, cameras=((4, 6),))) == rows


@pytest.mark.parametrize("least", [1, 3, 8, 50])
def test_floor(least):
    visual, text = torch.randn(1, 16).repeat(8, 1) + 1e-3 * torch.randn(8, 16), torch.randn(2, 16)
    winners, rows = (
        kept(LightVLA(), prune_context(visual, text)),
        kept(LightVLA(min_keep=least), prune_context(visual, text)),
    )
    assert set(winners) <= set(rows) and len(rows) == max(len(winners), min(least, 8))
    best = np.argsort(-reference(visual, text).max(0), kind="stable")
    assert rows == sorted(winners + [i for i in best if i not in winners][: len(rows) - len(winners)])


def test_the_floor_never_pushes_a_winner_out():
    score = torch.tensor([[1.0, 0, 0, 0], [0, 9, 8, 7]])
    assert [distinct_winners(score, least).tolist() for least in (1, 3, 4)] == [[0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_degenerate_inputs():
    assert kept(LightVLA(), prune_context(torch.ones(8, 16))) == [0]
    assert kept(LightVLA(), prune_context(torch.full((8, 16), float("nan")))) == [0]
    assert kept(LightVLA(), prune_context(torch.randn(8, 16), torch.zeros(0, 16))) == [0]
    assert kept(LightVLA(), prune_context(torch.randn(1, 16), cameras=((1, 1),))) == [0]
    broken = torch.randn(8, 16)
    broken[2] = float("nan")
    assert 2 not in kept(LightVLA(), prune_context(broken))


def trained(noise="uniform", scale=1.0):
    pruner = LightVLA(noise).train()
    pruner.noise_scale = scale
    return pruner


@pytest.mark.parametrize("scale", [0.0, 1.0])
def test_training_is_the_hard_gather_with_the_gradient_of_the_softmax(scale):
    visual, text = torch.randn(8, 16), torch.randn(3, 16, requires_grad=True)
    at, weight = prune_context(visual, text), torch.randn(8, 16)
    chosen = trained(scale=scale).select(at)
    assert chosen.keep.shape == (8,) and torch.equal(chosen.values, visual[chosen.keep])
    (got,) = torch.autograd.grad((chosen.values * weight).sum(), text)
    generator = torch.rand(8, 8, generator=torch.Generator().manual_seed(0))
    soft = (LightVLA().scores(visual, text) + scale * generator).softmax(1) @ visual
    (want,) = torch.autograd.grad((soft * weight).sum(), text)
    assert torch.allclose(got, want, atol=1e-6) and got.abs().sum() > 0


def test_patches_get_the_gradient_of_the_gather():
    visual = torch.randn(8, 16, requires_grad=True)
    winners, rows = straight_through(torch.randn(5, 8), visual)
    (got,) = torch.autograd.grad(rows.sum(), visual)
    assert torch.equal(got, torch.zeros(8, 16).index_add(0, winners, torch.ones(5, 16)))


def test_without_noise_training_picks_what_inference_picks():
    for seed in range(5):
        torch.manual_seed(seed)
        at = prune_context(torch.randn(8, 16))
        assert sorted(set(trained(scale=0.0).select(at).keep.tolist())) == kept(LightVLA(), at)


@pytest.mark.parametrize("kind", ["uniform", "gumbel"])
def test_loud_noise_picks_by_lot(kind):
    total = 400
    at = prune_context(torch.randn(total, 16), cameras=((20, 20),))
    picks = trained(kind, 1e6).select(at).keep
    assert abs(len(picks.unique()) / total - (1 - np.exp(-1))) < 0.06


def test_noise_is_a_function_of_seed_and_draw():
    at, other = prune_context(torch.randn(8, 16), seed=1), prune_context(torch.randn(8, 16), seed=2)
    pruner = trained(scale=1e6)
    first, second = pruner.select(at).keep, pruner.select(at).keep
    assert not torch.equal(first, second)
    pruner.reset()
    assert torch.equal(pruner.select(at).keep, first)
    assert not torch.equal(trained(scale=1e6).select(other).keep, first)


def training_session(model, words, pruner):
    session = Session(pruner, model.info, model.decoder.config, Clock())
    session.begin(model.layout(len(words)), (), model.special)
    return session


def test_training_in_a_model():
    """Duplicates stand at their winner's position, other rows are untouched, and the words learn through the choice."""
    model, words = tiny(), tokenize("lift the cube")
    images = torch.from_numpy(np.stack([*look(0, "").images.values()]))[None]
    numbers = torch.tensor([words + [0] * (TEXT - len(words))])
    (prompt,) = model.embed(model.encode_images(images), torch.zeros(1, 8), numbers)
    session = training_session(model, words, trained())
    call = session.begin(model.layout(len(words)), (), model.special)
    after, span = call.enter(0, prompt), call.trace.layout.visual
    assert len(after.index) == len(prompt.index)
    for outside in (slice(0, span.start), slice(span.stop, None)):
        assert torch.equal(after.hidden[outside], prompt.hidden[outside])
        assert torch.equal(after.index[outside], prompt.index[outside])
    assert torch.equal(after.hidden, prompt.hidden[after.index])
    assert len(after.index.unique()) < len(after.index)
    (after.hidden[1:33] * torch.randn(32, 32)).sum().backward()
    assert model.word.weight.grad.abs().sum() > 0


def test_packed_training_backpropagates():
    model, words = tiny(), tokenize("lift the cube")
    images = torch.from_numpy(np.stack([np.stack([*look(i, "").images.values()]) for i in range(3)]))
    numbers = torch.tensor([words + [0] * (TEXT - len(words))] * 3)
    sessions = [training_session(model, words, trained()) for _ in range(3)]
    loss = model.train_loss(images, torch.zeros(3, 8), numbers, torch.zeros(3, 8, 7), torch.zeros(3, 4), sessions)
    loss.backward()
    assert torch.isfinite(loss) and model.vision.embed.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("wrong", [{"noise": "normal"}, {"min_keep": 0}])
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match="lightvla"):
        LightVLA(**wrong)


@torch.no_grad()
def test_multiplicity_bias_is_the_training_pass_without_noise():
    """Dropped duplicates with log(count) on the winner's key give the rows that stay what duplicates give them."""
    torch.manual_seed(0)
    decoder = Decoder(DecoderConfig(16, 3, 2, 2, 8, 32, causal=False)).eval()
    visual, ask = torch.randn(8, 16), torch.randn(4, 16)
    score = torch.randn(8, 8)
    winners = score.argmax(1)
    picks = distinct_winners(score, 1)
    doubled = Tokens(torch.cat((visual[winners], ask)), torch.cat((winners, torch.arange(8, 12))))
    bias = torch.cat((multiplicity(score, picks).log(), torch.zeros(4)))
    once = Tokens(torch.cat((visual[picks], ask)), torch.cat((picks, torch.arange(8, 12))), None, bias)
    rows = [decoder([t], [NullHooks()])[0][-4:] for t in (doubled, once)]
    assert torch.allclose(*rows, atol=1e-5)
    plain = Tokens(once.hidden, once.index)
    assert not torch.allclose(rows[0], decoder([plain], [NullHooks()])[0][-4:], atol=1e-3)


def test_multiplicities_sum_to_the_number_of_rows():
    at = prune_context(torch.randn(8, 16))
    chosen = LightVLA(multiplicity_bias=True).select(at)
    assert chosen.multiplicity.sum() == 8 and (chosen.multiplicity >= 1).all()
    assert LightVLA().select(at).multiplicity is None
