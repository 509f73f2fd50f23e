import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vlaprune.nn.dit import SIZES, Diffusion, DiTShape, alpha_bar, ddim, ddim_scales, timesteps

SMALL = DiTShape(width=32, layers=2, heads=2, condition=24, chunk=5)


def head(guidance=1.5, shape=SMALL, steps=10):
    torch.manual_seed(0)
    model = Diffusion(shape, steps, guidance).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():  # so loud that attention is not uniform
            p.normal_(std=3 * p.shape[-1] ** -0.5 if p.ndim > 1 and "positional" not in name else 0.5)
    return model


def draw(sequences=1, shape=SMALL, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sequences, shape.condition, generator=generator), torch.randn(
        sequences, shape.chunk, shape.action, generator=generator
    )


def test_the_schedule_is_the_squared_cosine():
    signal, start = alpha_bar(), math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    for i in range(99):
        assert signal[i] == pytest.approx(
            math.cos(((i + 1) / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 / start, rel=1e-9
        )
    assert signal[99] == pytest.approx(signal[98] * 0.001)  # the last beta is capped


def test_ten_steps_are_the_authors():
    assert timesteps(10) == (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
    assert timesteps(100) == tuple(range(99, -1, -1))
    with pytest.raises(ValueError, match="steps=60"):
        timesteps(60)


def test_ddim_finds_a_single_point_in_any_number_of_steps():
    point, noise = torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(2, 5, 7, dtype=torch.float64)
    signal = alpha_bar()
    for count in (2, 5, 10, 100):
        times = timesteps(count)

        def told(x, i, times=times):
            return (x - math.sqrt(signal[times[i]]) * point) / math.sqrt(1 - signal[times[i]])

        assert torch.allclose(ddim(told, noise, ddim_scales(times)), point, atol=1e-9)


def test_ddim_of_gaussian_data_is_the_product_of_its_steps():
    mean, spread, signal, times = 0.3, 0.4, alpha_bar(), timesteps(10)
    noise = torch.randn(4, 5, 7, dtype=torch.float64)

    def variance(a):
        return a * spread**2 + 1 - a

    def told(x, i):
        a = signal[times[i]]
        return math.sqrt(1 - a) * (x - math.sqrt(a) * mean) / variance(a)

    gain = 1.0
    for time, then in zip(times, [*[signal[t] for t in times[1:]], 1.0], strict=True):
        now = signal[time]
        gain *= (math.sqrt(now * then) * spread**2 + math.sqrt((1 - now) * (1 - then))) / variance(now)
    expected = mean + gain * (noise - math.sqrt(signal[times[0]]) * mean)
    assert torch.allclose(ddim(told, noise, ddim_scales(times)), expected, atol=1e-12)


@torch.inference_mode()
def test_guidance_moves_away_from_the_unconditional():
    model = head()
    z, noise = draw()
    untold = model.net.z_embedder.uncondition.clone()
    assert torch.allclose(model(untold, noise), head(guidance=1.0)(untold, noise), atol=1e-4)
    assert not torch.allclose(model(z, noise), head(guidance=1.0)(z, noise), atol=1e-2)


@torch.inference_mode()
def test_the_condition_and_the_noise_decide_the_chunk():
    model = head()
    z, noise = draw()
    assert torch.equal(model(z, noise), model(z, noise))
    assert not torch.allclose(model(z, noise), model(-z, noise), atol=1e-2)
    assert not torch.allclose(model(z, noise), model(z, draw(seed=2)[1]), atol=1e-2)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@torch.inference_mode()
def test_sequences_side_by_side_do_not_meet(guidance):
    model = head(guidance)
    z, noise = draw(3)
    alone = torch.cat([model(z[i : i + 1], noise[i : i + 1]) for i in range(3)])
    assert torch.allclose(model(z, noise), alone, atol=1e-4)


@torch.inference_mode()
def test_sampling_reads_nothing_back():
    with torch.device("meta"):
        model = Diffusion(SMALL)
        assert model(torch.zeros(2, SMALL.condition), torch.zeros(2, SMALL.chunk, 7)).shape == (2, SMALL.chunk, 7)


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize(("size", "parameters"), [("DiT-S", 12.5e6), ("DiT-B", 89.0e6), ("DiT-L", 307.8e6)])
@torch.inference_mode()
def test_flops_are_what_torch_counts(size, parameters, guidance):
    shape = DiTShape(*SIZES[size])
    with torch.device("meta"):
        model = Diffusion(shape, guidance=guidance)
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.zeros(1, 4096), torch.zeros(1, 16, 7))
    rows = 10 * (2 if guidance > 1 else 1)
    unseen = rows * shape.layers * 4 * 17 * 17 * shape.width  # attention is not counted off an accelerator
    assert counter.get_total_flops() in (model.flops(), model.flops() - unseen)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(parameters, rel=2e-3)
