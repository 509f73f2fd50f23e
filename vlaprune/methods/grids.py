"""GridS: a learnt sampler puts a few points on each picture's grid of tokens and reads it between the patches.

"GridS", arXiv:2605.11817 (ICML 2026); authors' code Fediory/Grid-Sampler@11d58d7, `core_idea/grid_pytorch.py`,
`openpi/src/openpi/models/grid.py`. It is trained with the policy (vlaprune-train method=grids); untrained it means
nothing.

As in the code: z is the mean of a camera's tokens; points P = sigmoid(MLP(z)), hidden width 512; a token is the
bilinear sample at P, corners of the grid being corners of the unit square, plus MLP(P), hidden width 256; one sampler
serves all cameras; 16 points each; neither language nor state is read; no noise in training.
Differences: a sample goes on in the place of the nearest patch that no earlier point has, with that patch's position
(openpi numbers the samples one after the other). Which activation stands between the layers of both MLPs is inferred
(GELU).
Defect not copied: a coordinate of exactly 1 gets weight 0 from all four neighbours, a token of zeros.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.files import shipped_file
from vlaprune.nn.load import fill, read, save
from vlaprune.pruner import Learned, ModelInfo, Plan, PruneContext, Selection


def sample(grid: Tensor, points: Tensor) -> Tensor:
    """[K, d] bilinear samples of a grid [h, w, d] at points [K, 2], x then y, from 0 (first patch) to 1 (last)."""
    height, width = grid.shape[:2]
    place = points * points.new_tensor([width - 1, height - 1])
    low = place.detach().floor().clamp(min=0)
    low = torch.minimum(low, low.new_tensor([max(width - 2, 0), max(height - 2, 0)]))  # 1 lies in the last cell
    (x, y), (right, down) = low.long().unbind(1), (place - low).unbind(1)
    next_x, next_y = (x + 1).clamp(max=width - 1), (y + 1).clamp(max=height - 1)
    upper = grid[y, x] * (1 - right)[:, None] + grid[y, next_x] * right[:, None]
    lower = grid[next_y, x] * (1 - right)[:, None] + grid[next_y, next_x] * right[:, None]
    return upper * (1 - down)[:, None] + lower * down[:, None]


def mlp(x: Tensor, first: Tensor, bias: Tensor, second: Tensor, shift: Tensor) -> Tensor:
    """Two linear layers with a GELU between them."""
    return F.linear(F.gelu(F.linear(x, first, bias)), second, shift)


def assign_patches(points: Tensor, height: int, width: int) -> Tensor:
    """[K] distinct patches: for each point [K, 2] in turn the nearest one that is free."""
    every = torch.arange(height * width, device=points.device)
    places = torch.stack((every % width, every // width), 1)
    offset = (points.detach() * points.new_tensor([width - 1, height - 1]))[:, None] - places
    far = offset.square().sum(2)
    picks: list[Tensor] = []
    for _ in range(points.shape[0]):
        picks.append(far[len(picks)].argmin(0, keepdim=True))
        far.index_fill_(1, picks[-1], float("inf"))
    return torch.cat(picks)


class GridS(Learned):
    """Puts samples in place of the tokens; starts in evaluation mode.

    tokens   samples of each camera (16 or 4 as published), at most as many as it has patches
    weights  a safetensors file that `save` wrote, the name of one shipped with the package (robosuite), or `random`

    Its layers exist once `plan` has told the width of the tokens.
    """

    def __init__(self, tokens: int = 16, weights: str = "random") -> None:
        super().__init__()
        if tokens < 1:
            raise UserError(f"grids tokens={tokens}; use at least 1")
        self.tokens, self.weights = tokens, weights
        self.points: nn.Sequential | None = None
        self._there: list[Tensor] = []

    def train(self, mode: bool = True) -> GridS:
        """Switches between training and evaluation; drops cached weights, which may have changed."""
        self._there = []
        return super().train(mode)

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before layer 0. Creates or loads the sampler's layers: UserError if they do not fit."""
        if self.points is None:
            width = info.hidden_size
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.points = nn.Sequential(nn.Linear(width, 512), nn.GELU(), nn.Linear(512, 2 * self.tokens))
                self.place = nn.Sequential(nn.Linear(2, 256), nn.GELU(), nn.Linear(256, width))
            if self.weights != "random":
                path = str(shipped_file(info.name, self.weights, "grids.safetensors"))
                state, card = read(path)
                self.check_policy(card, info, path)
                fill(self, state, path)
        return Plan((0,))

    def save(self, path: Path, policy: str) -> None:
        """Writes the layers where `weights` can load them, to act with these weights of the policy."""
        save(path, self, {"method": "grids", "tokens": self.tokens, "policy": policy})

    def sampled(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Patches [K] and values [K, d] in fp32 for the tokens [h w, d] of one camera."""
        if self.points is None:
            raise UserError("grids has no layers yet; call plan first")
        rows, weights = tokens.float(), self._weights(tokens.device)
        points = mlp(rows.mean(0), *weights[:4]).sigmoid().view(-1, 2)[: height * width]
        return assign_patches(points, height, width), sample(rows.view(height, width, -1), points) + mlp(
            points, *weights[4:]
        )

    def _weights(self, device: torch.device) -> list[Tensor]:
        """Weights and biases of both MLPs on a device; outside training they are copied there once."""
        if self.training:
            return [p.to(device) for p in self.parameters()]
        if not self._there or self._there[0].device != device:
            self._there = [p.detach().to(device) for p in self.parameters()]
        return self._there

    def _charge(self, context: PruneContext, samples: int) -> None:
        """Charges the FLOPs of both MLPs for one camera with this many samples."""
        for rows, weight in zip((1, 1, samples, samples), self._weights(context.visual.device)[::2], strict=True):
            context.charge(rows, *weight.shape)

    def select(self, context: PruneContext) -> Selection:
        """Replaces the tokens of every camera by its samples."""
        keep, values = [], []
        with torch.autocast(context.visual.device.type, enabled=False):
            for view in context.layout.views:
                own = context.visual[view.slice]
                rows, found = self.sampled(own, view.height, view.width)
                self._charge(context, rows.shape[0])
                keep.append(rows + view.start)
                values.append(found)
        return Selection(torch.cat(keep), values=torch.cat(values).to(context.visual))
