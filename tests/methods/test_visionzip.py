import numpy as np
import pytest
import torch
from handmade import INFO, check_keeps_all, check_memoryless, kept, look, merged, prune_context, tiny

from vlaprune.methods.dense import Dense
from vlaprune.methods.visionzip import VisionZip
from vlaprune.policy import Policy
from vlaprune.pruner import Pruner
from vlaprune.testing import check_pruner


def reference(x, score, count, context):
    """One image: row -> value."""
    order = np.argsort(-score, kind="stable").tolist()
    out = {i: x[i] for i in order[: count - context]}
    rest = sorted(order[count - context :])
    seats = rest[:: max(1, len(rest) // context)][:context] if context else []
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    homes = {i: max(seats, key=lambda s: unit[i] @ unit[s]) for i in rest if i not in seats} if context else {}
    for s in seats:
        guests = [x[i] for i, home in homes.items() if home == s]
        out[s] = x[s] + (np.mean(guests, axis=0) if guests else 0)
    return out


def test_laws():
    check_pruner(VisionZip)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing_and_keeps_its_budget(cameras):
    assert check_memoryless(VisionZip, cameras).visual == (4 * len(cameras),) * 6
    check_keeps_all(lambda: VisionZip(1.0, 0.0), cameras)


@pytest.mark.parametrize(
    "count, share", [(10, 0.0), (10, 0.2), (10, 0.5), (10, 1.0), (30, 0.136), (34, 0.5), (35, 0.1)]
)
def test_equals_the_loop_on_each_camera(count, share):
    torch.manual_seed(count)
    at = prune_context(torch.randn(35, 16), cameras=((3, 5), (4, 5)), tower=torch.rand(35))
    x, score, want = at.visual.double().numpy(), at.vision_attention.numpy(), {}
    first = -(-count * 15 // 35)
    for start, stop, k in ((0, 15, first), (15, 35, count - first)):
        part = reference(x[start:stop], score[start:stop], k, round(share * k))
        want |= {start + i: value for i, value in part.items()}
    got = merged(VisionZip(count, share), at)
    assert sorted(got) == sorted(want) and len(got) == count
    for row, value in want.items():
        assert np.allclose(got[row], value, atol=1e-5)


def test_degenerate_inputs():
    for tower in (torch.ones(8), torch.full((8,), float("nan"))):
        assert kept(VisionZip(3, 0.0), prune_context(torch.ones(8, 16), torch.zeros(0, 16), tower=tower)) == [0, 1, 2]
        assert len(kept(VisionZip(3, 0.5), prune_context(torch.zeros(8, 16), tower=tower))) == 3
    two = prune_context(torch.randn(8, 16), cameras=((2, 2), (2, 2)), tower=torch.rand(8))
    assert len(kept(VisionZip(1, 1.0), two)) == len(kept(VisionZip(1, 0.0), two)) == 1
    with pytest.raises(ValueError, match="more than the 8"):
        VisionZip(9).select(two)
    with pytest.raises(ValueError, match="vision tower was not read"):
        VisionZip(3).select(prune_context(torch.randn(8, 16)))


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"contextual": 1.1}])
def test_bad_parameters(wrong):
    with pytest.raises(ValueError, match=r"visionzip|budget"):
        VisionZip(**wrong)


class Peek(Pruner):
    """Notes what the tower gave."""

    def plan(self, info):
        return VisionZip().plan(info)

    def select(self, context):
        self.seen = context.vision_attention
        return None


@torch.no_grad()
def test_what_the_tower_gives():
    """Mean over heads and queries of the last block's softmax; sums to 1 in each image; its cost is the method's."""
    model, frames = tiny(), [look(0, "lift the cube"), look(1, "lift the cube")]
    shown, norm = [], model.vision.blocks[-1].norm_attention
    hook = norm.register_forward_hook(lambda module, args, out: shown.append(out))
    policy = Policy(model, Peek, slots=2)
    policy.act(dict(enumerate(frames)))
    hook.remove()
    block = model.vision.blocks[-1]
    q, k, _ = block.qkv(shown[0].clone()).unflatten(-1, (3, block.heads, -1)).permute(2, 0, 3, 1, 4)
    want = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean((1, 2))
    got = torch.stack([s.pruner.seen for s in policy.sessions])
    assert torch.allclose(got, want.reshape(2, 32), atol=1e-6)
    assert torch.allclose(got.unflatten(1, (2, 16)).sum(-1), torch.ones(2, 2))
    assert policy.drain(0)[0].flops["method"] == 2 * 2 * 16 * 16 * 64


def test_nothing_is_read_unless_asked(monkeypatch):
    """Only the session whose method asks is charged; with no such session nothing is computed."""
    calls = []
    monkeypatch.setattr("vlaprune.models.small.received", lambda q, k: calls.append(1) or torch.zeros(2, 16))
    policy = Policy(tiny(), Dense)
    policy.act({0: look(0, "lift the cube")})
    assert not calls and policy.drain(0)[0].flops["method"] == 0
    assert policy.sessions[0].trace.vision_attention is None
    made = iter([Dense(), Peek()])
    mixed = Policy(tiny(), lambda: next(made), slots=2)
    mixed.act({0: look(0, "lift the cube"), 1: look(1, "lift the cube")})
    assert len(calls) == 1 and mixed.drain(0)[0].flops["method"] == 0 < mixed.drain(1)[0].flops["method"]


def test_a_wrong_shape_is_refused():
    session = Policy(tiny(), Peek).sessions[0]
    call = session.begin(tiny().layout(3), (), torch.zeros(1))
    with pytest.raises(ValueError, match="one number for each"):
        call.record_vision_attention(torch.zeros(31))
    assert VisionZip().plan(INFO).vision_attention and not Dense().plan(INFO).vision_attention
