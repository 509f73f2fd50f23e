import numpy as np
import pytest
import torch
from stepwise import Episode, attend, check_config, constant, play, prompt

from vlaprune.methods.dense import Dense
from vlaprune.methods.shared.scoring import camera_rank
from vlaprune.methods.specprune import SpecPrune
from vlaprune.models.toy import STYLES
from vlaprune.testing import check_pruner
from vlaprune.trace import QueryGroup

GRIDS = [((4, 4),), ((3, 5), (2, 4)), ((1, 7),)]


def pictures(layout, generator):
    return [
        torch.randint(0, 256, (2 * v.height, 2 * v.width, 3), dtype=torch.uint8, generator=generator)
        for v in layout.views
    ]


def altered(images, layout, generator):
    """The same pictures with every patch of a random half made anew."""
    out = []
    for view, old, new in zip(layout.views, images, pictures(layout, generator), strict=True):
        half = torch.rand(view.height, view.width, generator=generator) < 0.5
        out.append(torch.where(half.repeat_interleave(2, 0).repeat_interleave(2, 1)[..., None], new, old))
    return out


def highest(scores, alive, count):
    return {int(i) for i in sorted(alive, key=lambda i: (-scores[i], i))[:count]}


def reference(layout, attention, static, acted, counts, keep=0.8, alpha=0.2, floor=0.1171875):
    """Token by token: what is left after sites 1, 2 and the stages 3, 4, 5 of 6 layers, ranks of layers 0, 1 and 2."""
    every, others, left = set(range(layout.total)), layout.length - layout.total, []
    cameras = [set(v.tokens) for v in layout.views]
    text = [attention(n, QueryGroup.TEXT, len(layout.text)).mean((0, 1)).numpy() for n in (0, 1)]
    alive, core = every, set()
    for n in (0, 1):
        counted = [c * (3 if n == 0 else 1) for c in counts]
        best = set().union(*(highest(text[n], c & alive, k) for c, k in zip(cameras, counted, strict=True)))
        if static is not None:
            alive = alive & ((every - static) | acted | best | core)
            core = set().union(*(highest(text[0], c, k) for c, k in zip(cameras, counts, strict=True)))
        left.append(sorted(alive))
    groups = [(g, len(layout.group(g))) for g in (QueryGroup.TEXT, QueryGroup.ACTION)]
    score = np.zeros(layout.total)
    for n, there in enumerate((every, set(left[0]), set(left[1]))):
        seen = torch.cat([attention(n, g, q) for g, q in groups], 1).mean((0, 1)).numpy()
        for camera in cameras:
            order = sorted(camera & there, key=lambda i: -seen[i])
            for weight, i in zip(np.linspace(10, 0.1, max(2, len(order))), order, strict=False):
                score[i] += alpha * (weight - score[i])
    for _ in range(3):
        count = max(round(floor * layout.total), int(keep * (len(alive) + others)) - others, 1)
        alive = alive if count >= len(alive) else highest(np.round(score, 4), alive, count)
        left.append(sorted(alive))
    return left


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("seed", range(12))
def test_agrees_with_the_reference(seed, grids):
    layout, generator = prompt(grids), torch.Generator().manual_seed(seed)
    episode = Episode(SpecPrune(attended=[0.2, 0.13], static=1.0), layout)
    counts = [max(1, round(f * len(v.tokens))) for f, v in zip((0.2, 0.13), layout.views, strict=False)]
    images, static, acted = pictures(layout, generator), None, None
    for step in range(3):
        attention = attend(seed * 7 + step, layout.total)
        got = episode.call(attention, images=images)
        expected = reference(layout, attention, static, acted, counts)
        alive = sorted(range(layout.total))
        for context, want in zip((1, 2, 3, 4, 5), expected, strict=True):
            alive = got.get(context) or alive
            assert alive == want, (step, context)
        praise = attention(5, QueryGroup.ACTION, 4).mean((0, 1)).numpy()
        acted = set().union(
            *(highest(praise, set(v.tokens) & set(alive), k) for v, k in zip(layout.views, counts, strict=True))
        )
        new = altered(images, layout, generator)
        changed = torch.cat(
            [
                (a != b).any(2).reshape(v.height, 2, v.width, 2).any(3).any(1).flatten()
                for a, b, v in zip(images, new, layout.views, strict=True)
            ]
        )
        images, static = new, {i for i in range(layout.total) if not changed[i]}


def test_first_call_drops_nothing_static_and_a_new_one_begins_after_reset():
    layout = prompt()
    episode, images = (
        Episode(SpecPrune(stages=[], static=1.0), layout),
        pictures(layout, torch.Generator().manual_seed(0)),
    )

    def sites(**options):
        return episode.call(constant(torch.arange(16.0)), images=images, **options)

    assert sites() == {1: None, 2: None}
    assert sites() == {1: [13, 14, 15], 2: [15]}  # the most attended, threefold first; all else stood still
    episode.reset()
    assert sites() == {1: None, 2: None}
    assert sites(layout=prompt(words=5)) == {1: None, 2: None}
    assert sites(layout=prompt(words=5)) == {1: [13, 14, 15], 2: [15]}


def test_unchanged_patches_are_capped_and_moving_ones_stay():
    layout, generator = prompt(), torch.Generator().manual_seed(0)
    images = pictures(layout, generator)
    for static, dropped in ((0.0, 0), (0.5, 8)):
        episode = Episode(SpecPrune(stages=[], static=static), layout)
        episode.call(constant(torch.arange(16.0)), images=images)
        kept = episode.call(constant(torch.arange(16.0)), images=images)[2]
        assert len(kept) == 16 - dropped
    moving = Episode(SpecPrune(stages=[]), layout)
    moving.call(constant(torch.arange(16.0)), images=images)
    assert moving.call(constant(torch.arange(16.0)), images=[255 - i for i in images])[2] == list(range(16))


def test_what_the_last_action_looked_at_stays():
    layout = prompt()
    images = pictures(layout, torch.Generator().manual_seed(0))
    maps = {None: torch.arange(16.0), (5, QueryGroup.ACTION): torch.eye(16)[3]}
    episode = Episode(SpecPrune(stages=[], static=1.0), layout)
    episode.call(constant(maps), images=images)
    assert episode.call(constant(maps), images=images)[2] == [3, 15]


def test_stages_take_a_share_of_the_sequence_down_to_the_floor():
    layout = prompt(((16, 16), (16, 16)), words=20, slots=56)
    images = [torch.zeros(32, 32, 3, dtype=torch.uint8)] * 2
    episode = Episode(SpecPrune(), layout, layers=32)
    assert episode.plan.layers == (1, 2, 6, 11, 16, 21, 26) and sorted(episode.plan.reads) == [0, 1, 12, 31]
    got, others, n = episode.call(attend(0, 512), images=images), layout.length - 512, 512
    for context in (6, 11, 16, 21, 26):
        n = int(0.8 * (n + others)) - others
        assert len(got[context]) == n
    low = Episode(SpecPrune(keep=0.3), layout, layers=32).call(attend(0, 512), images=images)
    assert [low[context] and len(low[context]) for context in (6, 11, 16)] == [
        int(0.3 * (512 + others)) - others,
        60,
        None,
    ]


def test_standing():
    score, camera = torch.tensor([3.0, 1.0, 2.0, 9.0, torch.nan, 9.0]), torch.tensor([0, 0, 0, 1, 1, 1])
    assert torch.allclose(camera_rank(score, camera), torch.tensor([10.0, 0.1, 5.05, 10.0, 0.1, 10.0]))
    assert camera_rank(torch.ones(1), torch.zeros(1)).tolist() == [10.0]


@pytest.mark.parametrize("score", [torch.full((16,), 1 / 16), torch.full((16,), torch.nan), torch.zeros(16)])
def test_broken_attention(score):
    layout = prompt()
    images = pictures(layout, torch.Generator().manual_seed(0))
    episode = Episode(SpecPrune(keep=0.5, static=1.0), layout)
    for _ in range(3):
        got = episode.call(constant(score), images=images)
    assert got[2] == [0]


def test_no_text():
    layout = prompt(words=0)
    images = pictures(layout, torch.Generator().manual_seed(0))
    episode = Episode(SpecPrune(), layout)
    episode.call(attend(0, 16), images=images)
    with pytest.raises(KeyError, match="rows TEXT of layer 0 were not read"):
        episode.call(attend(0, 16), images=images)


@pytest.mark.parametrize("style", STYLES)
def test_laws_and_the_toy(style):
    check_pruner(SpecPrune, [style])
    check_pruner(lambda: SpecPrune(keep=0.5, static=0.3, attended=[0.1], alpha=1.0), [style])
    records, _ = play(SpecPrune, style)
    assert all(r.visual[-1] < 64 for r in records)
    _, dense = play(Dense, style)
    _, all_kept = play(lambda: SpecPrune(static=0.0, keep=1.0), style)
    assert all(np.array_equal(a, b) for a, b in zip(dense, all_kept, strict=True))


BAD = [{"similar": 2.0}, {"static": -0.1}, {"keep": 1.5}, {"floor": float("nan")}, {"alpha": 2.0}]
BAD += [{"attended": []}, {"attended": [2.0]}, {"stages": [-1.0]}]


@pytest.mark.parametrize("bad", BAD)
def test_bad_parameters(bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        SpecPrune(**bad)
    assert "\n" not in str(error.value)


def test_config():
    check_config(SpecPrune)
