"""Real-time chunking: guidance by the true vector-Jacobian product. Properties of the rule, then of pi0 and pi0.5."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.control import Control, Controller
from vlaprune.delay import Delay, Guide, soft_mask
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.models.guidance import denoise_guided, guided_velocity, sample, strength
from vlaprune.models.paligemma import FlowConstants, denoise
from vlaprune.models.pi0 import Pi0, Pi05
from vlaprune.nn.backend import EAGER
from vlaprune.nn.expert import flow_times
from vlaprune.policy import Policy
from vlaprune.profile.products import Products

ONES = torch.ones(2, 6, 3)


def normal(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net(x, time):
    """A velocity that mixes rows and numbers."""
    mix = normal(9, 3, 3) / 2
    return torch.tanh(x @ mix + x.flip(1) * time) + 0.3 * x


def test_the_mask_is_the_papers():
    assert soft_mask(10, 2, 6) == pytest.approx([1, 1, 0.571, 0.287, 0.115, 0.026, 0, 0, 0, 0], abs=1e-3)
    assert soft_mask(8, 3, 3).tolist() == [1] * 3 + [0] * 5  # nothing of the old chunk beyond those that are executed
    assert soft_mask(8, 9, 4).tolist() == [1] * 4 + [0] * 4 and not soft_mask(8, 2, 0).any()


def test_the_strength_is_bounded_at_both_ends_and_symmetric():
    assert [round(strength(t, 5.0), 2) for t in flow_times(5).tolist()] == [5.0, 4.25, 2.17, 2.17, 4.25]
    assert strength(0.3, 99.0) == pytest.approx(strength(0.7, 99.0)) and strength(0.5, 9.0) == 2.0


def test_without_weights_it_is_plain_sampling():
    noise = normal(0, 2, 6, 3)
    x = noise
    for time in flow_times(5).tolist():
        x = x - net(x, time) / 5
    times = flow_times(5).tolist()
    out = sample(lambda y, step: net(y, times[step]), noise, 5, normal(1, 2, 6, 3), 0 * ONES, 5.0)
    assert torch.equal(out, x)


def test_the_jacobian_is_the_networks_and_not_the_identity():
    """A flow to one point: what a step makes of the actions is that point wherever it stands, so nothing guides it."""
    point, noise = normal(2, 2, 6, 3), normal(3, 2, 6, 3)
    times = flow_times(5).tolist()
    out = sample(lambda x, step: (x - point) / times[step], noise, 5, normal(4, 2, 6, 3), ONES, 5.0)
    assert torch.allclose(out, point, atol=1e-5)
    x, time, previous = noise, 0.6, normal(4, 2, 6, 3)
    guided = guided_velocity(lambda y: (y - point) / time, x, time, previous, ONES, 5.0)
    identity = (x - point) / time - strength(time, 5.0) * (previous - point)
    assert torch.allclose(guided, (x - point) / time, atol=1e-5) and (identity - guided).abs().max() > 1


def test_the_product_is_that_of_the_whole_jacobian():
    x, previous, weights, time = normal(5, 2, 6, 3), normal(6, 2, 6, 3), normal(7, 2, 6, 3).sigmoid(), 0.4

    def made(y):
        return (y.view_as(x) - time * net(y.view_as(x), time)).flatten()

    jacobian = torch.autograd.functional.jacobian(made, x.flatten())
    error = ((previous - made(x.flatten()).view_as(x)) * weights).flatten()
    expected = net(x, time) - strength(time, 5.0) * (jacobian.T @ error).view_as(x)
    assert torch.allclose(guided_velocity(lambda y: net(y, time), x, time, previous, weights, 5.0), expected, atol=1e-4)


def test_for_gaussian_data_it_is_the_closed_form_and_draws_nearer_as_beta_grows():
    mu, var, noise, previous = 0.5, 0.3, normal(8, 2, 6, 3), torch.full((2, 6, 3), 2.0)
    times = flow_times(50).tolist()

    def slope(t):  # of the velocity in x: E[noise - actions | x] of actions N(mu, var)
        return (t - (1 - t) * var) / ((1 - t) ** 2 * var + t**2)

    def velocity(x, step):
        return slope(times[step]) * (x - (1 - times[step]) * mu) - mu

    apart = []
    for beta in (0.0, 1.0, 5.0):
        x = noise
        for step, t in enumerate(times):
            v = velocity(x, step)
            g = (1 - t * slope(t)) * (previous - (x - t * v))
            x = x - (v - strength(t, beta) * g) / 50
        out = sample(velocity, noise, 50, previous, ONES, beta)
        assert torch.allclose(out, x, atol=1e-4)
        apart.append(float((out - previous).abs().mean()))
    assert apart[0] > apart[1] > apart[2]


def test_what_agrees_already_is_left_alone_and_rows_without_weight_follow_the_network_only():
    x, time = normal(10, 2, 6, 3), 0.5
    agrees = x - time * net(x, time)
    assert torch.equal(guided_velocity(lambda y: net(y, time), x, time, agrees, ONES, 5.0), net(x, time))
    weights = torch.zeros(2, 6, 3)
    weights[:, :2] = 1
    rowwise = guided_velocity(lambda y: torch.tanh(y), x, time, agrees + 1, weights, 5.0)  # no row sees another
    assert torch.equal(rowwise[:, 2:], torch.tanh(x)[:, 2:]) and not torch.equal(rowwise[:, :2], torch.tanh(x)[:, :2])


# -- models ------------------------------------------------------------------------------------------------------------

SIZES = {
    "image": 28, "vision_width": 32, "vision_layers": 1, "vision_heads": 2, "vision_ffn": 64, "layers": 3, "heads": 2,
    "head_size": 16, "width": 32, "ffn": 64, "expert_width": 32, "expert_ffn": 64, "vocabulary": 512,
}  # fmt: skip


@pytest.fixture(scope="module", params=[Pi0, Pi05])
def model(request):
    return request.param("random", steps=5, chunk=8, sizes=SIZES, device="cpu", dtype="float32")


def look(model, episode=0):
    bench = ToyBench(cameras=model.interface.cameras, image=28)
    with bench.open(bench.tasks()[0]) as world:
        world.reset(episode)
        return world.observe()


def drawn(model, guide, make=Dense):
    policy = Policy(model, make)
    policy.reset(0, 3)
    sessions = policy.sessions
    (chunk,) = model.predict_guided([look(model)], sessions, [guide])
    return chunk.numpy(), sessions[0].finish()


def guide(model, frozen=2, end=6, beta=5.0, value=0.4):
    return Guide(np.full((model.chunk, 7), value), soft_mask(model.chunk, frozen, end), beta)


def test_a_models_gradient_is_that_of_its_whole_expert(model):
    """One step: along any direction, what changes of the plain actions is what the guidance weighs."""
    net, constants = model.net, FlowConstants.of(model.net, 1)
    state = None if model.adaptive else normal(1, 1, 32)
    prompt = [[(normal(2 + i, 1, 5, 16), normal(20 + i, 1, 5, 16), None)] for i in range(3)]
    noise, previous, weights = normal(40, 1, 8, 32), normal(41, 1, 8, 32), normal(42, 1, 8, 32).sigmoid()

    def plain(x):
        return denoise(net, constants, (), EAGER, x, state, prompt, [5])[0]

    def guided(beta):
        return denoise_guided(net, constants, (), noise, state, prompt, [5], previous, weights, beta)[0]

    gradient, error = guided(1.0) - guided(0.0), (previous - plain(noise)) * weights
    assert torch.allclose(guided(0.0), plain(noise), atol=1e-5)
    for seed in range(3):
        way = normal(50 + seed, 1, 8, 32)
        moved = (plain(noise + 1e-2 * way) - plain(noise - 1e-2 * way)) / 2e-2
        assert float((moved * error).sum()) == pytest.approx(float((way * gradient).sum()), rel=0.02, abs=0.02)
        assert abs(float((way * (gradient - error)).sum())) > 0.1  # the identity's would differ


def test_no_guide_and_no_weight_are_the_plain_chunk_to_the_bit(model):
    policy = Policy(model, Dense)
    policy.reset(0, 3)
    (plain,) = model.predict([look(model)], policy.sessions)
    assert np.array_equal(drawn(model, None)[0], plain.numpy())
    assert np.array_equal(drawn(model, guide(model, 0, 0))[0], plain.numpy())


def test_a_guided_chunk_goes_on_from_the_one_before_the_more_so_the_larger_beta(model):
    plain, cost = drawn(model, None)
    target = guide(model).previous
    apart = [np.abs(drawn(model, guide(model, beta=b))[0] - target)[:2].mean() for b in (0.5, 2.0, 5.0)]
    assert np.abs(plain - target)[:2].mean() > apart[0] > apart[1] > apart[2]
    _, guided = drawn(model, guide(model))
    assert cost.flops["decode"] < guided.flops["decode"] and guided.flops["prompt"] == cost.flops["prompt"]


@pytest.mark.parametrize("guided", [False, True])
def test_a_chunk_is_charged_what_torch_was_seen_to_compute(model, guided):
    """Backward included: every linear layer's product once more, each of attention's twice more."""
    with sdpa_kernel(SDPBackend.MATH), Products(lambda: "call") as seen:
        _, record = drawn(model, guide(model) if guided else None)
    assert sum(record.flops.values()) == sum(work.flops for work in seen.found["call"])


def test_pruning_the_prompt_changes_nothing_of_the_rule(model):
    def make():
        return FastV(layer=1, keep=0.5)

    plain, target = drawn(model, None, make)[0], guide(model).previous
    guided, record = drawn(model, guide(model), make)
    assert np.abs(guided - target)[:2].mean() < np.abs(plain - target)[:2].mean() and min(record.visual) < record.total


def test_a_model_that_was_guided_draws_plain_chunks_as_before(model):
    before = drawn(model, None)[0]
    drawn(model, guide(model))
    assert np.array_equal(drawn(model, None)[0], before)


class Constant:
    expected, note = 400.0, ""

    def __init__(self, ms):
        self.time = ms

    def ms(self, seed, call, record):
        return self.time


def played(model, mode, ms):
    bench = ToyBench(cameras=model.interface.cameras, image=28)
    policy = Policy(model, Dense, control=Control(execute=4), delay=Delay(mode, Constant(ms), 5.0, bench.hold))
    policy.reset(0, 3)
    with bench.open(bench.tasks()[0]) as world:
        world.reset(0)
        for _ in range(3):
            for action in policy.act({0: world.observe()})[0]:
                world.step(action)
    return np.stack(policy.controllers[0].executed)


def test_rtc_without_delay_is_a_world_that_waits_and_with_delay_it_differs_from_overlap_after_the_second_call(model):
    assert np.array_equal(played(model, "rtc", 0.0), played(model, "wait", 0.0))
    rtc, overlap = played(model, "rtc", 400.0), played(model, "overlap", 400.0)
    assert np.array_equal(rtc[:6], overlap[:6]) and not np.array_equal(rtc[6:], overlap[6:])


def test_the_guide_is_what_is_left_of_the_chunk_that_is_executed():
    controller = Controller(Control(execute=4), Delay("rtc", Constant(0.0), 5.0, ToyBench().hold))
    assert controller.guide() is None  # nothing yet
    chunk = np.arange(8.0)[:, None].repeat(7, 1)
    controller.actions(chunk, late=2)  # holds for 2, executes 2 and 3; the next call starts now
    found = controller.guide()
    assert found.previous[:, 0].tolist() == [4, 5, 6, 7, 0, 0, 0, 0]
    assert found.weights.tolist() == soft_mask(8, 2, 4).tolist() and found.beta == 5.0
    controller.forget()
    assert controller.guide() is None
