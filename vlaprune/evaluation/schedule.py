"""Who runs what, and when a packed call is worth waiting for. Pure: no clock, no process, no model."""

from __future__ import annotations

from collections.abc import Collection, Sequence

Key = tuple[str, int]  # task and episode


class Queue:
    """The episodes of a run that wait for a slot, over all tasks.

    ordered  strictly in the given order, and one that raised comes next. Otherwise a slot stays with the task whose
             simulator it has open, a free one goes to the first task where no slot is, then to the one with the most
             episodes left for each slot.

    An episode that raised is handed out once more: if not ordered, when everything else is under way.
    """

    def __init__(self, todo: Sequence[Key], ordered: bool = False) -> None:
        self._todo = list(todo)
        self._again: list[Key] = []
        self._ordered = ordered
        self._raised: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self._todo) + len(self._again)

    def take(self, task: str | None, others: Collection[str] = ()) -> Key | None:
        """The next episode for a slot that has `task` open, None for none, while other slots have `others` open."""
        waiting = (self._again or self._todo) if self._ordered else (self._todo or self._again)
        if not waiting:
            return None
        key = waiting[0] if self._ordered else next(k for k in waiting if k[0] == self._task(waiting, task, others))
        waiting.remove(key)
        return key

    def raised(self, key: Key) -> bool:
        """Notes that an episode raised; returns whether it will be handed out once more."""
        self._raised[key] = self._raised.get(key, 0) + 1
        if self.given_up(key):
            return False
        self._again.append(key)
        return True

    def given_up(self, key: Key) -> bool:
        """Whether an episode raised twice."""
        return self._raised.get(key, 0) > 1

    @staticmethod
    def _task(waiting: Sequence[Key], task: str | None, others: Collection[str]) -> str:
        left: dict[str, int] = {}
        for name, _ in waiting:
            left[name] = left.get(name, 0) + 1
        if task in left:
            return str(task)
        at = list(others)
        return min(left, key=lambda name: (at.count(name) > 0, -left[name] / (1 + at.count(name)) if name in at else 0))


class Pace:
    """How long a packed call waits for one more observation, from measured times.

    A call of n costs `fixed + n * each` seconds, fitted over the latest calls. Waiting t seconds for the next
    observation saves the fixed part of a call of its own, and holds up all whom the call is for: those who wait, the
    one who comes, and those who would come during the call. It is worth it while t times
    their number is less than what is saved.
    """

    FADE = 0.95  # weight of what was measured before, at each new measurement

    def __init__(self) -> None:
        self._sums = [0.0] * 5  # faded sums of 1, n, n^2, seconds, n * seconds
        self._chunk: float | None = None

    def called(self, size: int, seconds: float) -> None:
        """Notes that a call of `size` observations took `seconds`."""
        new = (1.0, size, size * size, seconds, size * seconds)
        self._sums = [self.FADE * old + x for old, x in zip(self._sums, new, strict=True)]

    def simulated(self, seconds: float) -> None:
        """Notes that a world took `seconds` to execute a chunk and to look."""
        self._chunk = seconds if self._chunk is None else 0.8 * self._chunk + 0.2 * seconds

    @property
    def fixed(self) -> float:
        """Seconds of a call that do not depend on its size; 0 until calls of different sizes were measured."""
        weight, n, nn, s, ns = self._sums
        spread = weight * nn - n * n
        if weight == 0 or spread < 1e-6 * weight * weight:
            return 0.0
        each = max(0.0, (weight * ns - n * s) / spread)
        return max(0.0, (s - each * n) / weight)

    def wait(self, ready: int, ages: Sequence[float]) -> float:
        """Seconds to wait at most for the next observation; 0 to call now.

        ready  observations that wait
        ages   seconds for which each of the other worlds has been at its chunk
        """
        if not ready or not ages or self._chunk is None:
            return 0.0
        left = sorted(max(0.0, self._chunk - age) for age in ages)
        call = self._sums[3] / self._sums[0] if self._sums[0] else 0.0
        during = sum(left[0] < t <= left[0] + call for t in left)
        bound = self.fixed / (ready + 1 + during)
        return bound if left[0] < bound else 0.0
