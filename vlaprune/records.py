"""The journal: one JSON line per finished episode, the source of truth for resume and for every table. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol
from zlib import crc32

from vlaprune.errors import UserError

SCHEMA = 2  # of a journal's lines
MOST = 1_000_000  # episodes of a task that a run may ask for

MOTION = ("world_seconds", "path_hand", "path_turn", "jerk_hand", "jerk_turn", "flips")  # of an episode
REAL = ("path_real", "jerk_real")  # of an episode in a world that tells where the hand is
DELAY = ("late", "held", "stale", "dropped")  # control steps of a call
UNPROVED = "without proof of pruning"  # what every table says of a run whose layers nobody saw
STAGES = ("vision", "projector", "prompt", "decode", "head", "method")  # of a model call
TIMED = ("pictures", *STAGES, "other")  # parts of its time; FLOPs of the first and last are not counted


@dataclass(frozen=True)
class StepRecord:
    """One model call.

    rows, columns  tokens computed, and attended to, at each layer of the prompt pass; empty, with total 0 and no flops,
                   where nobody could count them: an answer of a black box, of which only `ms` is known
    total          V, the visual tokens that came from the projector
    visual         visual tokens computed at each layer
    decoded        decode passes after the prompt
    flops          by stage: vision, projector, prompt, decode, head, method (attention rows that it
                   looks at, and products of its own: `Trace.charge`); 2 per multiply-accumulate
    ms             milliseconds by stage, the names of TIMED; of the whole packed call where `packed` > 1
    packed         sequences in the model call that this one was part of; 1 where it was alone
    cold           why the time is not that of a steady state: "compile", "capture", "allocate", or "first" for a black
                   box's first answer; empty where it is
    first_rows     where the method asked for a second pass of the prompt, tokens computed at each layer of the first;
                   rows, columns and visual are then those of the second, flops and ms those of both
    delay          where the world did not wait: ms, and in control steps late, held, stale, dropped (delay.Waited)
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    total: int
    visual: tuple[int, ...]
    decoded: int
    flops: Mapping[str, float]
    ms: Mapping[str, float]
    packed: int = 1
    cold: str = ""
    first_rows: tuple[int, ...] = ()
    delay: Mapping[str, float] = field(default_factory=dict)

    @property
    def steady(self) -> bool:
        """Whether its time is that of a steady state: timed, alone on the device, nothing compiled or allocated."""
        return bool(self.ms) and self.packed == 1 and not self.cold

    @property
    def counted(self) -> bool:
        """Whether its tokens were counted; not those of a black box."""
        return bool(self.rows)

    @property
    def pruned(self) -> bool:
        """Whether visual tokens were dropped or reused at some layer. ValueError where they were not counted."""
        return min(self.visual) < self.total


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished attempt at a task; `episode` alone decides its initial state.

    calls    the model calls; none where another harness ran the episode and its results were imported
    ended    when it was over, seconds since 1970. Like `seconds` and `attempts` no part of the outcome: records that
             differ only in these are equal
    seconds  how long it took on the wall clock
    motion   how the robot moved, see evaluation/motion.py; empty in journals from before it was recorded
    attempts how often it was begun: more than 1 where its simulator raised before
    """

    task: str
    episode: int
    success: bool
    steps: int
    calls: tuple[StepRecord, ...]
    ended: float = field(default=0.0, compare=False)
    seconds: float = field(default=0.0, compare=False)
    motion: Mapping[str, float] = field(default_factory=dict)
    attempts: int = field(default=1, compare=False)

    @property
    def counted(self) -> bool:
        """Whether the tokens of its calls were counted."""
        return bool(self.calls) and all(call.counted for call in self.calls)

    @property
    def ending(self) -> str:
        """How the episode ended, in words."""
        return f"{'achieved' if self.success else 'lost'} after {self.steps} steps"


@dataclass(frozen=True)
class Header:
    """What a run is: everything that must be equal for its episodes to stand in one table row.

    identity    what decides the numbers: model, method, bench, seed, execute (resolved configuration); with `proof`
                "none" where no layer was seen: a black box, or results of another harness
    provenance  what is good to know and may differ when a run is resumed: command, commit, versions, hardware (device,
                cpu, cores, threads), host, boot (the same until the host restarts), pid, started (seconds since 1970),
                load (processes ready to run, mean of the last minute), device_users (processes on the GPU, this one
                included; null where unknown), video, slots, shard
    tasks       task name -> number of episodes asked for
    """

    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]
    tasks: Mapping[str, int]

    @property
    def proved(self) -> bool:
        """Whether the tokens that the layers computed prove what was pruned."""
        return self.identity.get("proof") != "none"


def film_name(task: str, episode: int) -> str:
    """Where, below a run's folder, the film of an episode is."""
    plain = "".join(c if c.isalnum() or c in "-_." else "-" for c in task.lower())
    return f"videos/{plain}-{episode:04d}.mp4"


class Sink(Protocol):
    """A logger: CSV, wandb, or a third party's. It may fail; the run goes on and says so once."""

    def open(self, header: Header, folder: Path, done: Sequence[EpisodeRecord]) -> None:
        """Called when a run begins or goes on; `done` are the episodes that the journal already holds."""

    def episode(self, record: EpisodeRecord) -> None:
        """Called when an episode is finished and journalled."""

    def close(self) -> None:
        """Called when the run is over."""


@dataclass
class Run:
    """A recorded run as read back from its folder.

    stopped  why and when a rule ended it early (`anytime`), unless more episodes were run since; else None
    headers  of every start of the run: of another commit or machine, where it went on there
    made     the header of the start that finished each episode; empty for a run that was not read from a journal
    """

    folder: Path
    header: Header
    episodes: dict[tuple[str, int], EpisodeRecord] = field(default_factory=dict)
    errors: list[Mapping[str, Any]] = field(default_factory=list)
    stopped: Mapping[str, Any] | None = None
    headers: list[Header] = field(default_factory=list)
    made: dict[tuple[str, int], Header] = field(default_factory=dict, repr=False)

    @property
    def starts(self) -> list[Header]:
        """The headers of the starts that finished an episode, each once; a start that found none to run is left out."""
        return list({id(header): header for header in self.made.values()}.values()) or [self.header]

    @property
    def missing(self) -> list[tuple[str, int]]:
        """Episodes that were asked for and are not there."""
        asked = ((task, i) for task, count in self.header.tasks.items() for i in range(count))
        return [key for key in asked if key not in self.episodes]


class _Damaged(ValueError):
    """Raised for a line whose checksum does not fit its content."""


def encode(line: Mapping[str, Any]) -> bytes:
    """A line of a journal with its checksum (CRC-32 of what stands before it) and a newline.

    ValueError for a number that `read` would refuse, such as NaN; only a header, whose options may be any, keeps it.
    """
    body = json.dumps(line, separators=(",", ":"), allow_nan=line["kind"] == "header").encode()
    return body[:-1] + b',"crc":"%08x"}\n' % crc32(body)


def _decode(line: bytes) -> dict[str, Any]:
    """Decodes a line that `encode` wrote. Raises _Damaged where a single bit differs."""
    head, _, tail = line.rpartition(b',"crc":"')
    body = head + b"}"
    if tail != b'%08x"}' % crc32(body):
        raise _Damaged
    data: dict[str, Any] = json.loads(body)
    return data


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Kind and content of the whole lines of a journal. A torn last line (killed while writing) is left out.

    UserError for any other damage, and for a value that no journal of ours holds.
    """
    whole = path.read_bytes().split(b"\n")[:-1]  # what no newline ends was never finished
    header: Header | None = None
    for number, line in enumerate(whole, 1):
        try:
            data = _decode(line)
            kind = str(data.pop("kind", None))
            content = _KINDS[kind](data)
            header = content if kind == "header" else header
            if kind == "episode" and header is not None and content.counted != header.proved:
                raise UserError("token counts missing" if header.proved else f"token counts in a run {UNPROVED}")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            what = "is damaged" if isinstance(error, _Damaged) else f"is no line of a journal ({_short(error)})"
            todo = "delete that line and run again to redo it" if number > 1 else "move that file away and run again"
            raise UserError(f"{path} line {number} {what}; {todo}") from None
        yield kind, content


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:100]


def read(folder: Path | str) -> Run:
    """Reads every journal of a run (one per shard). UserError where they do not belong together or none is there."""
    folder = Path(folder)
    run: Run | None = None
    for path in sorted(folder.glob("journal*.jsonl")):
        for kind, content in _lines(path):
            if kind == "header":
                header = content
                if run is not None and run.header.identity != content.identity:
                    raise UserError(f"{folder} mixes two runs: {differences(run.header, content)}")
                if run is None:
                    run = Run(folder, content)
                elif sum(content.tasks.values()) > sum(run.header.tasks.values()):
                    run.header = content
                run.headers.append(content)
            elif run is None:
                raise UserError(f"{path} has no header line; it is no journal of vlaprune")
            elif kind == "episode":
                run.episodes.setdefault((content.task, content.episode), content)
                run.made.setdefault((content.task, content.episode), header)
                run.stopped = None
            elif kind == "stop":
                run.stopped = content
            else:
                run.errors.append(content)
    if run is None:
        raise UserError(f"{folder} holds no run; a run's folder has a journal.jsonl")
    if run.stopped is not None and not run.missing:  # episodes of other journals completed it
        run.stopped = None
    if run.stopped is not None:
        _forget_later(run, run.stopped)
    return run


def _forget_later(run: Run, stop: Mapping[str, Any]) -> None:
    """Leaves out episodes behind those that the rule saw: which of them had finished depends on their length."""
    order = [(task, episode) for task, count in run.header.tasks.items() for episode in range(count)]
    seen = set(order[: int(stop.get("after", len(order)))])
    for kept in (run.episodes, run.made):
        for key in [key for key in kept if key not in seen]:
            del kept[key]


def written(path: Path) -> set[tuple[str, int]]:
    """The episodes that one journal holds."""
    return {(record.task, record.episode) for kind, record in _lines(path) if kind == "episode"}


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise UserError(f"{value!r} is no count")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise UserError(f"{value!r} is no number")
    return value


def _plain(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) is not kind:
            raise UserError(f"{value!r} is no {kind.__name__}")
        return value

    return check


def _tuple(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: tuple(map(check, _plain(list)(value)))


def _mapping(check: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: {key: check(item) for key, item in _plain(dict)(value).items()}


def _made(kind: Any) -> Callable[[Any], Any]:
    """A function that builds a record from what JSON holds and checks every field against its annotation."""

    def build(data: Any) -> Any:
        types = {f.name: str(f.type) for f in fields(kind)}
        return kind(**{key: _FIELDS[types[key]](value) for key, value in _plain(dict)(data).items()})

    return build


def _header(data: dict[str, Any]) -> Header:
    if data.pop("schema", None) != SCHEMA:
        raise UserError(f"another version of vlaprune wrote it, this one writes schema {SCHEMA}")
    header: Header = _made(Header)(data)
    if any(count > MOST for count in header.tasks.values()):
        raise UserError(f"more than {MOST} episodes of a task")
    return header


def _episode(data: dict[str, Any]) -> EpisodeRecord:
    record: EpisodeRecord = _made(EpisodeRecord)(data)
    if len({len(call.visual) for call in record.calls}) > 1:
        raise UserError("an episode with calls of several depths")
    if any(bool(c.visual) != c.counted or (c.flops and not c.counted) for c in record.calls):
        raise UserError("a call with token counts at no layer")
    return record


def _noted(**checks: Callable[[Any], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that checks a line which stays a mapping: it must have exactly these keys."""

    def check(data: dict[str, Any]) -> dict[str, Any]:
        if data.keys() != checks.keys():
            raise UserError(f"keys {sorted(data)}, not {sorted(checks)}")
        return {key: checks[key](value) for key, value in data.items()}

    return check


_text = _plain(str)
_FIELDS: Mapping[str, Callable[[Any], Any]] = {  # annotation -> check
    "int": _count,
    "float": _number,
    "bool": _plain(bool),
    "str": _text,
    "tuple[int, ...]": _tuple(_count),
    "tuple[StepRecord, ...]": _tuple(_made(StepRecord)),
    "Mapping[str, float]": _mapping(_number),
    "Mapping[str, int]": _mapping(_count),
    "Mapping[str, Any]": _plain(dict),
}
_KINDS: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "header": _header,
    "episode": _episode,
    "error": _noted(task=_text, episode=_count, error=_text, traceback=_text),
    "stop": _noted(
        rule=_text, alpha=_number, baseline=_text, after=_count, of=_count, lost=_count, gained=_count, log_e=_number,
        verdict=_text,
    ),
}  # fmt: skip


def without(header: Header, *parts: str) -> Header:
    """A header with the identity alone, without these parts of it, such as `method` and `seed`."""
    return Header({key: value for key, value in header.identity.items() if key not in parts}, {}, {})


def differences(old: Header, new: Header) -> str:
    """The settings in which two headers differ, as "key old -> new"."""
    a, b = _flat(old.identity), _flat(new.identity)
    return ", ".join(f"{k} {a.get(k)} -> {b.get(k)}" for k in sorted(a.keys() | b.keys()) if a.get(k) != b.get(k))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return out


def as_recorded(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as it comes back from a journal: a list for a tuple."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return plain


def recorded(folder: Path, header: Header) -> Run | None:
    """The run that a folder already holds, if it holds one. UserError where it is another run than `header` says."""
    if not any(True for path in folder.glob("journal*.jsonl") for _ in _lines(path)):
        return None
    old = read(folder)
    plain = as_recorded(header.identity)
    if old.header.identity != plain:
        raise UserError(
            f"{folder} holds another run ({differences(old.header, Header(plain, {}, {}))}); "
            "choose another output=, or delete that folder"
        )
    return old


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; NaN for no values."""
    return sum(values) / len(values) if values else float("nan")


COUNTS = ("visual", "kept", "kept_layers", "gflops", *(f"gflops_{stage}" for stage in STAGES))


def _counts(calls: Sequence[StepRecord]) -> dict[str, Any]:
    """Tokens and FLOPs of an episode's calls, by the names of COUNTS."""
    return {
        "visual": calls[0].total,
        "kept": mean([mean(c.visual) for c in calls]),
        "kept_layers": "|".join(f"{mean(layer):g}" for layer in zip(*(c.visual for c in calls), strict=True)),
        "gflops": mean([sum(c.flops.values()) for c in calls]) / 1e9,
        **{f"gflops_{s}": mean([c.flops.get(s, 0.0) for c in calls]) / 1e9 for s in STAGES},
    }


def episode_row(record: EpisodeRecord) -> dict[str, Any]:
    """One episode as one row: counts, and means over its model calls.

    proved       1, or 0 without proof of pruning: all that nobody could count is then empty
    kept         visual tokens computed, mean over layers; kept_layers the same at each layer, joined by "|"
    gflops_*     10^9 FLOPs a call by stage
    delay_ms     milliseconds that a call took in the world's time; late a call, held, stale and dropped of the episode,
                 in control steps; empty where the world waited
    world_seconds and the others of MOTION and REAL, empty where they were not recorded
    ms_*         milliseconds a call, mean over the calls that were neither packed nor cold; empty where there is none
    """
    calls: Sequence[StepRecord] = record.calls
    row: dict[str, Any] = {
        "task": record.task,
        "episode": record.episode,
        "success": int(record.success),
        "steps": record.steps,
        "attempts": record.attempts,
        "proved": int(record.counted),
        "calls": len(calls) or "",
    }
    row |= _counts(calls) if record.counted else dict.fromkeys(COUNTS, "")
    timed = [c.ms for c in calls if c.steady]
    row["ms"] = mean([sum(ms.values()) for ms in timed]) if timed else ""
    named = timed and record.counted  # a black box has one time, of no stage
    row |= {f"ms_{s}": mean([ms.get(s, 0.0) for ms in timed]) if named else "" for s in TIMED}
    late = [c.delay for c in calls if c.delay]
    row["delay_ms"] = mean([d["ms"] for d in late]) if late else ""
    row["late"] = mean([d["late"] for d in late]) if late else ""
    row |= {key: sum(d[key] for d in late) if late else "" for key in DELAY[1:]}
    return row | {key: record.motion.get(key, "") for key in (*MOTION, *REAL)}
