"""Laws that every method keeps, and what a context gives to any of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from doubles import calibrated
from handmade import prune_context
from stepwise import CONFIGS, Episode, attend, prompt

from vlaprune import config
from vlaprune.benchmark import Observation
from vlaprune.methods.dense import Dense
from vlaprune.models.oft import OFT
from vlaprune.models.pi0 import Pi0
from vlaprune.models.tiny import Tiny
from vlaprune.policy import Policy
from vlaprune.pruner import ModelInfo
from vlaprune.trace import AttentionRows, Layout, QueryGroup, Trace, View

NAMES = sorted(path.stem for path in Path(CONFIGS).glob("*.yaml"))
INFO = ModelInfo("handmade", 6, 2, 16, 8)
GRIDS = ((4, 4), (3, 4))
TOTAL = 28


def made(name):
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    if name == "spvla":
        node["edges"] = False  # every patch of these pictures has one
    if name == "grids":
        node["tokens"] = 4  # of 12 patches
    return calibrated(lambda: config.make("method", node), INFO, TOTAL)()


def pictures(seed, grids=GRIDS):
    """One image per camera of which a fifth of the patches change from call to call."""
    rng, moving = np.random.default_rng(0), np.random.default_rng(seed)
    images = []
    for height, width in grids:
        image = rng.integers(0, 255, (height, 4, width, 4, 3), dtype=np.uint8)
        move = moving.random((height, width)) < 0.2
        image.transpose(0, 2, 1, 3, 4)[move] = moving.integers(0, 255, (move.sum(), 4, 4, 3), dtype=np.uint8)
        images.append(torch.from_numpy(image.reshape(4 * height, 4 * width, 3)))
    return images


def chosen(name, kind, spoil=False):
    """What a method keeps in five calls, and the values it puts there, rounded to bfloat16.

    The hidden states are numbers of bfloat16, held in the dtype `kind`, and nearly parallel. With `spoil` everything
    that a call has shown is overwritten when it is over, as captured graphs do.
    """
    episode, out, values = Episode(made(name), prompt(GRIDS)), [], []
    episode.filled = True
    for step in range(5):
        generator = torch.Generator().manual_seed(step // 2)
        visual, text = ((2 + 0.2 * torch.randn(n, 16, generator=generator)).bfloat16().to(kind) for n in (TOTAL, 3))
        tower = torch.rand(TOTAL, generator=generator)
        moved, shown = torch.full((2, 7), float(step), dtype=torch.float64), pictures(step)
        out.append(episode.call(attend(step // 2, TOTAL), visual, text, shown, tower=tower, executed=moved))
        values += [v.bfloat16() for v in episode.values if v is not None]
        for tensor in (visual, text, tower, moved, *shown) if spoil else ():
            tensor.fill_(7)
    return out, values


@pytest.mark.parametrize("name", NAMES)
def test_what_a_method_remembers_is_its_own(name):
    """Another call may overwrite every tensor that this one was shown."""
    (lent, values), (spoilt, others) = (chosen(name, torch.float32, spoil) for spoil in (False, True))
    assert lent == spoilt and all(torch.equal(a, b) for a, b in zip(values, others, strict=True))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dense"])
def test_hidden_states_in_bf16_are_scored_in_fp32(name):
    """The large models compute in bf16. Scores that were rounded to it would tie, and choose otherwise."""
    (coarse, values), (fine, exact) = chosen(name, torch.bfloat16), chosen(name, torch.float32)
    assert coarse == fine and all(torch.equal(a, b) for a, b in zip(values, exact, strict=True))
    fewer = any(kept is not None and len(kept) < TOTAL for call in coarse for kept in call.values())
    assert fewer or (name == "ttfvla" and values)  # which keeps all, with values of its own


def test_a_context_shows_what_is_behind_the_rows_that_are_alive():
    """Pixels, tower attention and attention of rows 1, 4, 6 of 8, not of the first three."""
    view, alive = View("main", 0, 2, 4), torch.tensor([1, 4, 6])
    layout = Layout(12, range(1, 9), range(9, 11), range(11, 12), 11, (view,))
    image = torch.arange(4 * 8 * 3, dtype=torch.uint8).reshape(4, 8, 3)
    trace = Trace(layout, [image], 0, vision_attention=torch.arange(8.0))
    weights = torch.rand(2, 1, 12)
    trace.add_weights(1, QueryGroup.LAST, weights)
    context = prune_context(torch.randn(3, 16), alive=alive)
    context = type(context)(**{**vars(context), "trace": trace})
    assert torch.equal(context.vision_attention, alive.float())
    for row, token in zip(context.pixels, alive.tolist(), strict=True):
        y, x = 2 * (token // 4), 2 * (token % 4)
        assert torch.equal(row, image[y : y + 2, x : x + 2])
    assert torch.equal(context.attention(1, QueryGroup.LAST), weights[..., 1 + alive])


def test_means_over_layers_heads_and_rows_are_means():
    """Of reads that are kept apart: 3 layers, 4 heads, groups of 2 and 3 rows, columns gone in one layer."""
    layout = Layout(12, range(1, 9), range(9, 11), range(11, 14), 10, (View("main", 0, 2, 4),))
    generator, full = torch.Generator().manual_seed(0), {}
    trace = Trace(layout, (), 0)
    for layer in range(3):
        columns = torch.tensor([0, 2, 3, 5, 7, 9, 10]) if layer == 1 else None
        for group, count in ((QueryGroup.TEXT, 2), (QueryGroup.ACTION, 3)):
            weights = torch.rand(4, count, 14 if columns is None else len(columns), generator=generator)
            trace.add(layer, AttentionRows.known(weights, columns), {group: (0, count)})
            full[layer, group] = torch.zeros(4, count, 14)
            full[layer, group][..., slice(None) if columns is None else columns] = weights
    of = {g: torch.stack([full[n, g][..., 1:9] for n in range(3)]) for g in (QueryGroup.TEXT, QueryGroup.ACTION)}
    for group, weights in of.items():
        assert torch.allclose(trace.per_row(range(3), group), weights.mean((0, 1)), atol=1e-6)
        assert torch.allclose(trace.per_head(range(3), group), weights.mean(2), atol=1e-6)
    both = torch.cat(list(of.values()), 2)
    for layer in range(3):
        got = trace.received(layer, QueryGroup.TEXT | QueryGroup.ACTION)
        assert torch.allclose(got, both[layer].mean((0, 1)), atol=1e-6)


SMALL = {"image": 56, "width": 32, "layers": 2, "heads": 2, "ffn": 48}
PRISMATIC = SMALL | {"dino_width": 32, "dino_depth": 2, "dino_heads": 2, "siglip_width": 32, "siglip_depth": 2}
PRISMATIC |= {"siglip_heads": 2, "siglip_ffn": 48}
FLOW = SMALL | {"vision_width": 32, "vision_layers": 2, "vision_heads": 2, "vision_ffn": 48, "head_size": 16}
FLOW |= {"expert_width": 32, "expert_ffn": 48, "vocabulary": 300}
MANY = {
    "tiny": lambda cameras: Tiny("random", cameras, width=32, layers=2, heads=2, vision_width=64, image=64),
    "oft": lambda cameras: OFT("random", cameras=cameras, sizes=PRISMATIC, device="cpu", dtype="float32"),
    "pi0": lambda cameras: Pi0("random", cameras=cameras, sizes=FLOW, device="cpu", dtype="float32", steps=1),
}


@pytest.mark.parametrize("name", MANY)
def test_cameras_stand_in_the_order_of_the_model(name):
    """`wrist` before `primary`, against the alphabet: names, pictures and tokens follow."""
    cameras = ("wrist", "primary")
    model = MANY[name](cameras)
    policy = Policy(model, Dense)
    size = 64 if name == "tiny" else 224
    shown = {c: np.full((size, size, 3), 60 + 120 * i, dtype=np.uint8) for i, c in enumerate(cameras)}
    policy.act({0: Observation(dict(reversed(shown.items())), np.zeros(8), "lift the cube")})
    trace = policy.trace(0)
    assert [v.camera for v in trace.layout.views] == list(cameras)
    assert [int(image.float().median()) for image in trace.images] == [60, 180]
    first = trace.layout.views[0].tokens
    assert (trace.pixels[first.start : first.stop].float().mean() - 60).abs() < 1


@pytest.mark.parametrize(
    ("name", "option", "lowest"),
    [
        *(
            (name, "layer", 1)
            for name in ("bottomk", "efficientvla", "fastv", "flashvla", "ties", "ties_hard", "vlapruner")
        ),
        ("safe", "layer", 2),
        ("teamvla", "layer", 1),
        ("teamvla", "window", 1),
        ("teamvla", "tau", 1),
        ("ttfvla", "interval", 1),
        ("vlaiap", "window", 1),
        ("efficientvla", "key", 1),
        ("vlapruner", "window", 1),
        ("dart", "pivots", 1),
        ("dart", "text_pivots", 0),
        ("lightvla", "min_keep", 1),
        ("lightvla", "extra", 0),
        ("lightvla_star", "size", 1),
        ("prumerge", "neighbours", 0),
        ("adp", "streak", 0),
        ("safe", "interval", 0),
    ],
)
def test_the_lowest_number_that_means_something_is_taken_and_the_next_refused(name, option, lowest):
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    with pytest.raises(ValueError, match=f"{option}={lowest - 1}"):
        config.make("method", node | {option: lowest - 1})
    method = calibrated(lambda: config.make("method", node | {option: lowest}), INFO, TOTAL)()
    episode = Episode(method, prompt(GRIDS))
    for step in range(2):
        episode.call(attend(step, TOTAL), images=pictures(step), tower=torch.rand(TOTAL))


@pytest.mark.parametrize(
    ("name", "option", "low", "high"),
    [
        ("efficientvla", "alpha", 0, 1),
        ("infoentropy", "share", 0, 1),
        ("infoentropy", "threshold", -1, 1),
        ("lightvla", "drop", 0, 1),
        ("safe", "fusion", 0, 1),
        ("sparsevlm", "recycle", 0, 1),
        ("specprune", "alpha", 0, 1),
        ("specprune", "similar", 0, 1),
        ("spvla", "least", 0, 1),
        ("teamvla", "context", 0, 1),
        ("visionzip", "contextual", 0, 1),
        ("vlacache", "growth", 0, 1),
        ("vlacache", "threshold", -1, 1),
        ("vlaiap", "decay", 0, 1),
        ("vlaiap", "lock", 0, 1),
        ("vlapruner", "gamma", 0, 1),
    ],
)
def test_both_ends_of_a_range_are_taken_and_what_lies_beyond_is_refused(name, option, low, high):
    node = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    for value in (float(low), float(high)):
        assert config.make("method", node | {option: value})
    for value in (low - 0.01, high + 0.01):
        with pytest.raises(ValueError, match=option) as refusal:
            config.make("method", node | {option: value})
        assert "\n" not in str(refusal.value)
