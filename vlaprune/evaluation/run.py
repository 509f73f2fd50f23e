"""The job of vlaprune-eval: episodes into a journal, or, with `only`, recorded episodes once more for films."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlaprune import report
from vlaprune.benchmark import Benchmark
from vlaprune.errors import UserError
from vlaprune.evaluation.film import KINDS, Film
from vlaprune.evaluation.progress import Bar, RunStatus, SweepJob, once, say
from vlaprune.evaluation.recorder import Recorder
from vlaprune.evaluation.replay import Rerun, chosen
from vlaprune.evaluation.rollout import Player, RolloutConfig, Shard, Watcher, rollout
from vlaprune.models.backends import kernel
from vlaprune.records import EpisodeRecord, Header, Sink, read, recorded
from vlaprune.stats.anytime import Anytime, said
from vlaprune.stats.power import power_line


def main(
    cfg: Any,
    policy: Player,
    bench: Benchmark,
    header: Header,
    sinks: Sequence[Sink],
    job: SweepJob | None = None,
    watchers: Sequence[Watcher] = (),
) -> None:
    """Runs the episodes of a configuration, alone or as a job of a sweep; `watchers` hear of every model call."""
    shard = Shard(cfg.shard.index, cfg.shard.count)
    if cfg.only is not None:
        _again(cfg, policy, bench, header, shard)
        return
    if header.identity.get("method", {}).get("weights") == "random":
        untrained = f"method {report.name(header)} has weights=random: it is not trained, and its choices mean nothing"
        once(f"{untrained}; train it with vlaprune-train, and give method.weights=FILE")
    once(power_line(min(header.tasks.values()), len(header.tasks)))
    rule = _rule(cfg, header)
    recorder = Recorder(cfg.output, header, sinks, shard.suffix, say)
    asked = {(t, e) for t, n in header.tasks.items() for e in shard.of(n)}
    mine = [r for r in recorder.done() if (r.task, r.episode) in asked]
    bar = Bar(_status(cfg, header, recorder.folder, len(asked), mine), job)
    left = len(asked) - len(mine)
    if 0 < left < policy.slots:
        once(f"slots={policy.slots}, but {left} episodes are left; the other slots stay empty")
    whole = False
    try:
        with _film(cfg, policy, bench, header) as films:
            config = RolloutConfig(
                cfg.seed, cfg.time_limit, stop=rule, deterministic=cfg.deterministic, max_batch=cfg.max_batch
            )
            if rule is None or not any(map(rule, mine)):
                with kernel(cfg.kernel):
                    rollout(policy, bench, recorder, shard, config, [bar, *films, *watchers])
        if rule is not None and rule.state.stopped:
            recorder.stop(rule.stop)
            say(said(rule.stop))
        lost = [key for key in recorder.raised if not recorder.has(*key)]
        whole = not lost
    except KeyboardInterrupt:
        done = bar.status.done
        say(f"stopped with {done} of {len(asked)} episodes in {recorder.folder}; the same command goes on")
        raise
    finally:
        recorder.close()
        bar.close(whole)
    _finish(cfg, header, recorder, lost, alone=job is None)


def check(cfg: Any) -> None:
    """Raises UserError for settings that do not go together: before a model is loaded."""
    if cfg.video not in KINDS:
        raise UserError(f"video={cfg.video}; use one of {', '.join(KINDS)}")
    if cfg.only is not None and cfg.video == "none":
        raise UserError("only= runs recorded episodes again for their films; add video=all")
    if cfg.only is not None and cfg.stop is not None:
        raise UserError(f"only= and stop={cfg.stop}; recorded episodes run again end nothing, leave out one of the two")
    if cfg.audit.arm is not None and cfg.delay.ms == "measured":
        raise UserError(
            f"audit.arm={cfg.audit.arm} and delay.ms=measured; a call that compiles is made again, so that calls and "
            "scores would not match: give milliseconds, delay.device or delay.table"
        )
    if cfg.stop not in (None, "anytime"):
        raise UserError(f"stop={cfg.stop}; use anytime, or leave it out")
    if cfg.stop is not None and cfg.baseline is None:
        raise UserError("stop=anytime needs the run that it is held against; add baseline=FOLDER")
    if cfg.stop is not None and cfg.shard.count > 1:
        raise UserError("stop=anytime with shard.count > 1; the rule must see all episodes, use slots instead")


def check_folder(cfg: Any, header: Header, job: SweepJob | None) -> None:
    """Raises UserError where the folder holds another run, or the baseline is none or another's: before any episode."""
    run = recorded(Path(cfg.output), header)
    if cfg.only is not None and run is None:
        raise UserError(f"only= runs recorded episodes again, but {cfg.output} holds no run; leave it out")
    if cfg.stop is not None:
        _rule(cfg, header)
    elif cfg.only is None and cfg.baseline is not None:
        _check_baseline(cfg.baseline, job)


def _check_baseline(folder: str, job: SweepJob | None) -> None:
    """Raises UserError where the baseline holds no run; a sweep goes on, since one of its jobs may still make it."""
    try:
        read(folder)
    except UserError as error:
        if job is None:
            raise UserError(f"baseline: {error}") from None
        once(f"baseline: {error}. There has to be a run when this sweep ends")


def _status(cfg: Any, header: Header, folder: Path, asked: int, mine: Sequence[EpisodeRecord]) -> RunStatus:
    """The status of a run that has `asked` episodes to do, of which the records `mine` are there."""
    label = " ".join([header.identity["model"]["name"], report.label(header), header.identity["bench"]["name"]])
    won = sum(r.success for r in mine)
    return RunStatus(label, str(folder), asked, len(mine), won, len(mine), str(cfg.baseline or ""))


def _finish(cfg: Any, header: Header, recorder: Recorder, lost: Sequence[tuple[str, int]], alone: bool) -> None:
    """Says what a run that was not interrupted left; a job of a sweep leaves its summary to the sweep.

    lost  episodes that raised and have no record
    """
    if recorder.more:
        say(
            f"{recorder.folder} holds {recorder.more} more episodes than the {len(header.tasks)} x "
            f"{max(header.tasks.values())} asked for; its summary and files have them all"
        )
    if alone:
        print(report.summary(read(cfg.output)))
    if lost:
        raise UserError(
            f"{len(lost)} episodes raised twice (error lines in {recorder.folder}); run the same command again "
            "to redo just these"
        )


def _again(cfg: Any, policy: Player, bench: Benchmark, header: Header, shard: Shard) -> None:
    run = recorded(Path(cfg.output), header)
    assert run is not None  # see check_folder
    replay = Rerun(run, chosen(run, cfg.only), say)
    with _film(cfg, policy, bench, header, replay.as_recorded) as films, kernel(cfg.kernel):
        config = RolloutConfig(cfg.seed, cfg.time_limit, deterministic=cfg.deterministic, max_batch=cfg.max_batch)
        rollout(policy, bench, replay, shard, config, films)
    print(f"films are in {run.folder}/videos; the journal is as it was")
    if replay.other:
        raise UserError(
            f"{len(replay.other)} episodes did not end as recorded ({', '.join(replay.other)}); run them with the "
            "slots, kernel and machine of the recorded run"
        )


def _rule(cfg: Any, header: Header) -> Anytime | None:
    return None if cfg.stop is None else Anytime(read(cfg.baseline), header)


@contextmanager
def _film(
    cfg: Any,
    policy: Player,
    bench: Benchmark,
    header: Header,
    shows: Callable[[EpisodeRecord], bool] = lambda record: True,
) -> Iterator[Sequence[Film]]:
    """The film of a run, if one is wanted: it shows one frame a model call and plays in the world's own time."""
    if cfg.video == "none":
        yield ()
        return
    execute = header.identity["execute"]
    steps = execute if policy.delay is None else policy.delay.period(execute)
    film = Film(Path(cfg.output), cfg.video, max(1.0, bench.control_hz / steps), cfg.video_megabytes, say, shows)
    try:
        yield (film,)
    finally:
        film.close()
