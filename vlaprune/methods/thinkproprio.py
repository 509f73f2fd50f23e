"""ThinkProprio: tokens vote as in LightVLA, with the robot's state among what they look at, plus a mean of all tokens.

"ThinkProprio", arXiv:2602.06575 (CoRL 2026); no public code. The rule is from a third party's re-implementation of its
section 3 (secondary). It is trained with the policy (vlaprune-train method=thinkproprio tuning.schedule=cosine); on
weights not trained for it, it is a rule without a meaning of its own.

As told: Q = softmax(rms(v) rms(q)' / sqrt(d)) q, where q are the instruction and the state; token i votes for the token
j of highest rms(Q_i) rms(v_j); every token with a vote goes on, and one more that is the mean of all. Gumbel noise in
training, whose scale falls as a cosine from 1 to 0.01.
Differences: the authors write each number of the state as a word of 256 levels; here the state is looked at as the
model puts it into its prompt, behind the visual tokens; OpenVLA, CogACT and pi0 put none there, so that on them the
rule looks at the instruction alone. The mean takes the place of the first token without a vote; where every token has
one, there is none. Version 2 adds a diversity loss whose form was not found.
"""

import torch
from torch import Tensor

from vlaprune.methods.lightvla import LightVLA
from vlaprune.methods.shared.scoring import rms
from vlaprune.pruner import PruneContext, Selection, ranking


class ThinkProprio(LightVLA):
    """Keeps the winners and a mean token; starts in evaluation mode. Training as in LightVLA.

    noise     added to the scores in training: gumbel (told) or uniform
    min_keep  at least so many winners go on, filled up by best score
    queries   task (state and instruction, and whatever else stands behind the visual tokens) or instruction
    mean      one more token goes on, the mean of all
    multiplicity_bias  as in LightVLA: a winner counts once for each vote, as in training; the mean counts once
    """

    name = "thinkproprio"

    def __init__(
        self,
        noise: str = "gumbel",
        min_keep: int = 1,
        queries: str = "task",
        mean: bool = True,
        multiplicity_bias: bool = False,
    ) -> None:
        super().__init__(noise, min_keep, multiplicity_bias, queries)
        self.mean = mean

    def scores(self, visual: Tensor, text: Tensor) -> Tensor:
        """[n, n] how much each visual row, having looked at the text, votes for each visual row."""
        unit = rms(visual)
        queries = (unit @ rms(text).T * visual.shape[1] ** -0.5).softmax(1) @ text.float()
        score: Tensor = rms(queries) @ unit.T
        return score

    def select(self, context: PruneContext) -> Selection:
        """Keeps the winners, and a mean of all tokens if a place is free."""
        chosen = super().select(context)
        if not self.mean:
            return chosen
        others = torch.ones_like(context.reusable).index_fill(0, chosen.keep, False)
        if self.training:  # a winner is there once for each vote
            free = others.nonzero()[:1, 0]
        else:
            free = ranking(others.float())[: min(1, others.shape[0] - chosen.keep.shape[0])]
        values = context.visual[chosen.keep] if chosen.values is None else chosen.values
        mean = context.visual.float().mean(0, keepdim=True).to(values)
        votes = chosen.multiplicity
        return Selection(
            torch.cat((chosen.keep, free)),
            values=torch.cat((values, mean[: free.shape[0]])),
            multiplicity=None if votes is None else torch.cat((votes, torch.ones_like(votes[: free.shape[0]]))),
        )
