import numpy as np
import pytest
import torch
from stepwise import Episode, attend, check_config, constant, play, prompt

from vlaprune.methods.dense import Dense
from vlaprune.methods.ttfvla import TTFVLA
from vlaprune.models.toy import STYLES
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup

GRID = ((4, 4),)


def frames(seed, count, quiet=0.6):
    """Pictures [16, 16, 3] of 4 x 4 patches of which most stand still, and tokens [16, 8] that all change."""
    rng = np.random.default_rng(seed)
    level = rng.integers(40, 200, (4, 4, 3))
    for _ in range(count):
        level = np.where(rng.random((4, 4, 1)) < quiet, level, (level + rng.integers(-30, 30, level.shape)) % 256)
        yield level.repeat(4, 0).repeat(4, 1).astype(np.uint8), rng.normal(size=(16, 8)).astype(np.float32)


def reference(shown, attention, threshold, interval, relevant, mode):
    """The authors' loop, token by token: what each call hands to the decoder."""
    before, stored, out = None, None, []
    for step, (image, tokens) in enumerate(shown):
        grey = (image / 127.5 - 1) @ np.array([0.299, 0.587, 0.114])
        fused = tokens.copy()
        if step % interval:
            order = sorted(range(16), key=lambda i: (-float(attention[step - 1][i]), i))
            for i in range(16):
                y, x = 4 * (i // 4), 4 * (i % 4)
                changed = np.abs(grey - before)[y : y + 4, x : x + 4].mean() > threshold
                wanted = i in order[:relevant]
                new = {"hybrid": changed or wanted, "pixel": changed, "attention": wanted}[mode]
                if not new:
                    fused[i] = stored[i]
        before, stored = grey, fused
        out.append(fused)
    return out


def course(method, shown, attention):
    """What each call hands to the decoder."""
    episode, out = Episode(method, prompt(GRID)), []
    for (image, tokens), score in zip(shown, attention, strict=True):
        tokens = torch.from_numpy(tokens)
        assert episode.call(constant(score), tokens, images=[torch.from_numpy(image)])[0] in (None, list(range(16)))
        out.append((episode.values[0] if episode.values else tokens).numpy())
    return out


@pytest.mark.parametrize("mode", ["hybrid", "pixel", "attention"])
@pytest.mark.parametrize("interval", [1, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_agrees_with_the_authors_loop(mode, interval, seed):
    shown = list(frames(seed, 9))
    attention = torch.rand(9, 16, generator=torch.Generator().manual_seed(seed))
    method = TTFVLA(threshold=0.05, interval=interval, relevant=4, mode=mode)
    want = reference(shown, attention, 0.05, interval, 4, mode)
    for got, expected in zip(course(method, shown, attention), want, strict=True):
        assert np.array_equal(got, expected)


def test_a_frozen_world_keeps_the_tokens_of_the_keyframe_and_no_token_grows_old():
    image = np.full((16, 16, 3), 90, np.uint8)
    tokens = [np.full((16, 8), float(i), np.float32) for i in range(7)]
    got = course(TTFVLA(relevant=1, mode="pixel"), [(image, t) for t in tokens], torch.rand(7, 16))
    assert [int(g[0, 0]) for g in got] == [0, 0, 0, 3, 3, 3, 6]


@pytest.mark.parametrize("style", STYLES)
def test_every_call_a_keyframe_or_every_token_relevant_is_dense(style):
    _, dense = play(Dense, style)
    for options in ({"interval": 1}, {"relevant": 1.0}, {"relevant": 1.0, "mode": "attention"}):
        _, fused = play(lambda options=options: TTFVLA(**options), style)
        assert all(np.array_equal(a, b) for a, b in zip(dense, fused, strict=True))


def test_reset_and_another_prompt_are_keyframes():
    episode, pictures = Episode(TTFVLA(), prompt(GRID)), [p for p, _ in frames(0, 3)]
    for layout in (prompt(GRID), prompt(GRID, words=5)):
        episode.call(attend(0, 16), images=[torch.from_numpy(pictures[0])], layout=layout)
        assert not episode.values
        episode.call(attend(0, 16), images=[torch.from_numpy(pictures[1])], layout=layout)
        assert episode.values
        episode.number = 1  # no keyframe by number
    episode.pruner.reset()
    episode.call(attend(0, 16), images=[torch.from_numpy(pictures[2])], layout=layout)
    assert not episode.values


def test_pixels_alone_need_no_attention():
    episode = Episode(TTFVLA(mode="pixel"), prompt(GRID))
    assert not episode.plan.reads
    assert set(Episode(TTFVLA(), prompt(GRID), layers=32).plan.reads) == {15}
    assert QueryGroup.TEXT in Episode(TTFVLA(), prompt(GRID)).plan.reads.values()


@pytest.mark.parametrize("mode", ["hybrid", "pixel", "attention"])
def test_laws(mode):
    check_pruner(lambda: TTFVLA(mode=mode, threshold=0.1))


@pytest.mark.parametrize("bad", [{"interval": 0}, {"threshold": -1.0}, {"mode": "attention_guided"}, {"relevant": 2.0}])
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))) as error:
        TTFVLA(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(TTFVLA)
