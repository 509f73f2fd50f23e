import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import INFO, check_memoryless, prune_context
from scipy.ndimage import map_coordinates
from stepwise import CONFIGS

from vlaprune.methods.grids import GridS, assign_patches, sample
from vlaprune.models.tiny import Tiny
from vlaprune.testing import check_pruner


def planned(**options):
    pruner = GridS(**options)
    pruner.plan(INFO)
    return pruner


@pytest.mark.parametrize(("height", "width"), [(4, 4), (3, 5), (1, 6), (2, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_samples_agree_with_scipy(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    grid, points = torch.randn(height, width, 3, generator=generator), torch.rand(20, 2, generator=generator)
    points[:4] = torch.tensor([[0.0, 0], [1, 1], [0, 1], [1, 0]])
    where = [points[:, 1].double().numpy() * (height - 1), points[:, 0].double().numpy() * (width - 1)]
    want = np.stack([map_coordinates(grid[..., c].double().numpy(), where, order=1) for c in range(3)], 1)
    assert np.allclose(sample(grid, points).numpy(), want, atol=1e-5)


def test_a_plane_is_read_exactly_at_the_corners_too():
    y, x = torch.meshgrid(torch.arange(4.0), torch.arange(5.0), indexing="ij")
    plane, points = (1 + 2 * y - 3 * x)[..., None], torch.rand(50, 2)
    points[:3] = torch.tensor([[1.0, 1], [0, 0], [1, 0.5]])
    want = 1 + 2 * 3 * points[:, 1] - 3 * 4 * points[:, 0]
    assert torch.allclose(sample(plane, points)[:, 0], want, atol=1e-5)
    assert float(sample(torch.tensor([[[1.0], [2], [3], [4]]]), torch.tensor([[0.5, 0]]))) == 2.5


def test_the_gradient_by_the_points_is_the_difference_quotient():
    grid = torch.randn(4, 4, 2, dtype=torch.float64)
    points = (0.05 + 0.9 * torch.rand(10, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: sample(grid, p), (points,))


def test_seats_are_the_nearest_free_patches():
    points = torch.tensor([[0.0, 0], [0.05, 0], [1, 1], [0.5, 0.5]])
    assert assign_patches(points, 3, 3).tolist() == [0, 1, 8, 4]
    for seed in range(5):
        points = torch.rand(12, 2, generator=torch.Generator().manual_seed(seed))
        free, want = set(range(12)), []
        for x, y in points.tolist():
            want.append(min(free, key=lambda i, x=x, y=y: ((i % 4 - 3 * x) ** 2 + (i // 4 - 2 * y) ** 2, i)))
            free.remove(want[-1])
        assert assign_patches(points, 3, 4).tolist() == want


def test_every_camera_gets_its_samples_from_one_sampler():
    pruner, tokens = planned(tokens=3), torch.randn(20, 16)
    chosen = pruner.select(prune_context(tokens, cameras=((2, 4), (3, 4))))
    assert len(chosen.keep) == 6 and (chosen.keep[:3] < 8).all() and (chosen.keep[3:] >= 8).all()
    points = pruner.points(tokens[8:].mean(0)).sigmoid().view(3, 2)
    want = sample(tokens[8:].view(3, 4, 16), points) + pruner.place(points)
    assert torch.allclose(chosen.values[3:], want, atol=1e-6)
    flat = pruner.select(prune_context(torch.ones(8, 16)))
    assert torch.allclose(flat.values - 1, pruner.place(pruner.points(torch.ones(16)).sigmoid().view(3, 2)), atol=1e-5)


def test_the_gradient_reaches_the_points_and_every_token():
    pruner, tokens = planned(tokens=4).train(), torch.randn(8, 16, requires_grad=True)
    pruner.select(prune_context(tokens)).values.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pruner.parameters())
    assert (tokens.grad.abs().sum(1) > 0).all()  # through the mean, those that are not sampled too


def test_plans_once_alike_and_saved_layers_come_back(tmp_path):
    first, second, path = planned(tokens=4), planned(tokens=4), str(tmp_path / "grids.safetensors")
    before = copy.deepcopy(first.state_dict())
    first.plan(INFO)
    assert all(
        torch.equal(v, before[k]) and torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items()
    )
    torch.nn.init.normal_(first.points[2].weight)
    first.save(path, INFO.weights)
    again = planned(tokens=4, weights=path)
    assert torch.equal(again.points[2].weight, first.points[2].weight)
    with pytest.raises(ValueError, match="wrong shapes"):
        planned(tokens=5, weights=path)
    with pytest.raises(ValueError, match="with a policy of weights none, this one has other; set"):
        GridS(tokens=4, weights=path).plan(replace(INFO, weights="other"))
    with pytest.raises(ValueError, match="tokens=0"):
        GridS(tokens=0)


def test_the_shipped_sampler_acts_with_the_policy_it_was_trained_with_and_no_other():
    sampler = GridS(tokens=16, weights="robosuite")
    sampler.plan(Tiny(weights="robosuite-grids").info)
    assert sampler.points[2].weight.shape == (32, 512)
    with pytest.raises(ValueError, match=r"tiny-robosuite\.grids\.safetensors was trained together with a policy of"):
        GridS(tokens=16, weights="robosuite").plan(Tiny().info)


@pytest.mark.parametrize("cameras", [("one",), ("left", "right")])
def test_remembers_nothing(cameras):
    assert check_memoryless(lambda: GridS(tokens=5), cameras).visual[0] == 5 * len(cameras)


def test_laws():
    check_pruner(GridS)
    assert (CONFIGS / "grids.yaml").is_file()
