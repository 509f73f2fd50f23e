"""Ends a run early, by rule: an e-process on the episodes that a method and its baseline end differently. No torch.

The rule may be looked at after every episode: if losses and gains are equally likely, the chance that it ever stops is
at most alpha (Ville 1939; `stats.EProcess`). Episodes are taken in the order of the run's list, not in the order in
which they finish: short, successful episodes finish first in parallel slots, and that order would bias the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlaprune.errors import UserError
from vlaprune.records import EpisodeRecord, Header, Run, differences, without
from vlaprune.stats.paired import EProcess, e_process


class Anytime:
    """The rule `stop=anytime` of one run against its baseline.

    UserError if the baseline has another protocol or lacks an episode that this run asks for.
    """

    def __init__(self, base: Run, header: Header, alpha: float = 0.05) -> None:
        if differing := differences(*(without(h, "method") for h in (base.header, header))):
            raise UserError(f"baseline {base.folder} is no baseline of this run: it differs in {differing}")
        self._order = [(task, episode) for task, count in header.tasks.items() for episode in range(count)]
        if lacking := [key for key in self._order if key not in base.episodes]:
            raise UserError(
                f"baseline {base.folder} lacks {len(lacking)} of the {len(self._order)} episodes of this run; "
                "finish it first, or ask for fewer episodes"
            )
        self._base = base
        self._ours: dict[tuple[str, int], bool] = {}
        self.state, self.seen = EProcess(alpha), 0

    def __call__(self, record: EpisodeRecord) -> bool:
        """Takes a finished episode and returns whether the run may end."""
        self._ours[record.task, record.episode] = record.success
        while not self.state.stopped and self.seen < len(self._order) and self._order[self.seen] in self._ours:
            key = self._order[self.seen]
            self.state = self.state.after(self._base.episodes[key].success, self._ours[key])
            self.seen += 1
        return self.state.stopped

    @property
    def stop(self) -> Mapping[str, Any]:
        """The entry for the journal: the rule, after how many episodes it stopped, and why."""
        state = self.state
        return {
            "rule": "anytime",
            "alpha": state.alpha,
            "baseline": str(self._base.folder),
            "after": self.seen,
            "of": len(self._order),
            "lost": state.lost,
            "gained": state.gained,
            "log_e": round(e_process(state.lost, state.gained), 3),
            "verdict": "worse" if state.lost > state.gained else "better",
        }


def said(stop: Mapping[str, Any]) -> str:
    """The journal's entry of a stopped run (`Anytime.stop`) in words."""
    return (
        f"stopped by rule after {stop['after']} of {stop['of']} episodes: {stop['verdict']} than {stop['baseline']}, "
        f"lost {stop['lost']}, gained {stop['gained']} (e-process, alpha {stop['alpha']:g})"
    )
