"""LightVLA*: a learnt set of queries asks for visual tokens; what no query asks for is dropped.

Jiang et al., arXiv:2509.12594, ablation "LightVLA*" (Figures 4 and 5): learnable queries in place of LightVLA's
generated ones, at the output of the vision encoder or at the first decoder layers. Its code was never published
(LiAutoAD/LightVLA, commit 22b7abe "Clean ablation code").

Everything else here is inferred and follows LightVLA: the number of queries and their initialisation, RMS norms, scores
q . v / sqrt(d), the winner of each query, noise and straight-through gradient in training. So at most `size` tokens
go on, and with random weights the choice means nothing: this method must be trained.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from vlaprune.errors import UserError
from vlaprune.methods.lightvla import LightVLA
from vlaprune.methods.shared.scoring import rms
from vlaprune.nn.load import fill, read, save
from vlaprune.pruner import ModelInfo, Plan, PruneContext


class LightVLAStar(LightVLA):
    """Keeps the distinct winners of the queries; starts in evaluation mode.

    Training and choice as in LightVLA.

    size      number of queries (inferred: 64)
    layer     0: the vision output; 1: after the first decoder layer; higher also works
    weights   a safetensors file that `save` wrote, or `random`
    noise     added to the scores in training: uniform or gumbel
    min_keep  at least so many go on, filled up by best score
    multiplicity_bias  as in LightVLA

    The parameter `query` [size, d] exists once `plan` has told the width d. To train several sequences at a time,
    assign one instance's `query` to the others before they plan.
    """

    name = "lightvla_star"

    def __init__(
        self,
        size: int = 64,
        layer: int = 0,
        weights: str = "random",
        noise: str = "uniform",
        min_keep: int = 1,
        multiplicity_bias: bool = False,
    ) -> None:
        super().__init__(noise, min_keep, multiplicity_bias)
        if size < 1:
            raise UserError(f"lightvla_star size={size}; use at least 1")
        self.size, self.layer, self.weights = size, layer, weights
        self.query: nn.Parameter | None = None

    def plan(self, info: ModelInfo) -> Plan:
        """Acts before one layer. Creates or loads the queries: UserError if they do not fit."""
        if self.query is None:
            generator = torch.Generator().manual_seed(0)
            self.query = nn.Parameter(torch.randn(self.size, info.hidden_size, generator=generator))
            if self.weights != "random":
                state, card = read(self.weights)
                if (layer := card.get("layer", self.layer)) != self.layer:
                    raise UserError(f"queries {self.weights} were trained at layer {layer}; set layer={layer}")
                self.check_policy(card, info, self.weights)
                fill(self, state, self.weights)
        return Plan((self.layer,))

    def save(self, path: Path, policy: str) -> None:
        """Writes the queries where `weights` can load them, to act with these weights of the policy."""
        card = {"method": "lightvla_star", "size": self.size, "layer": self.layer, "policy": policy}
        save(path, self, card)

    def _charge(self, context: PruneContext) -> None:
        """Charges the FLOPs of the matrix product of `scores`."""
        context.charge(self.size, *context.visual.shape)

    def scores(self, visual: Tensor, text: Tensor | None = None) -> Tensor:
        """[size, n] how much each query asks for each visual row, whatever the text."""
        if self.query is None:
            raise UserError("lightvla_star has no queries yet; call plan first")
        score: Tensor = rms(self.query.to(visual.device)) @ rms(visual).T * visual.shape[1] ** -0.5
        return score
