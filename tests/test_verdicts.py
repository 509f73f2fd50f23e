"""What a report says of methods planted in the toy bench: a ruinous one, an identical twin, and too few episodes."""

import torch
from doubles import play

from vlaprune import report
from vlaprune.methods.dense import Dense
from vlaprune.pruner import Plan, Pruner, Selection


class Ruinous(Pruner):
    """Sees nothing but the first patch in every second episode, everything in the others."""

    def __init__(self):
        self.episodes = 0

    def plan(self, info):
        return Plan((0,))

    def reset(self):
        self.episodes += 1

    def select(self, site):
        return Selection(torch.arange(1)) if self.episodes % 2 == 0 else None


class Twin(Dense):
    """Dense under another name."""


def verdicts(folder, episodes):
    for name, make in (("dense", Dense), ("ruinous", Ruinous), ("twin", Twin)):
        play(folder / name, make=make, episodes=episodes)
    table = report.summarise(report.find([folder]))
    return {row.Index: row for row in table.set_index("method").itertuples()}


def test_a_method_that_ruins_every_second_episode_is_worse_within_60_and_its_twin_is_not(tmp_path):
    said = verdicts(tmp_path, 30)  # of two tasks
    ruinous, twin = said["ruinous"], said["twin"]
    assert ruinous.paired == 60 and ruinous.verdict == "worse" and ruinous.holm_p < 0.05
    assert ruinous.gained == 0 and 20 <= ruinous.lost <= 30  # a blind policy sometimes stumbles upon the light
    assert twin.verdict == "undecided" and twin.lost == twin.gained == 0 and twin.more > 0


def test_a_few_episodes_are_undecided(tmp_path):
    said = verdicts(tmp_path, 2)
    assert {row.verdict for row in said.values() if row.verdict == row.verdict} == {"undecided"}
