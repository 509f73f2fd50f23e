"""The five console scripts. Heavy imports live inside the jobs, so that --help answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

USER_ERRORS = (ValueError, TypeError, RuntimeError, OSError, KeyError, ImportError)


def evaluate() -> None:
    """vlaprune-eval: rolls out episodes and journals them."""
    _hydra("eval", _evaluate)


def profile() -> None:
    """vlaprune-profile: not there yet."""
    _later("vlaprune-profile", "per-stage FLOPs and milliseconds of rollouts are in every vlaprune-eval run")


def train() -> None:
    """vlaprune-train: demonstrations, then behaviour cloning."""
    _hydra("train", _train)


def doctor() -> None:
    """vlaprune-doctor: what is missing for a run, and what to do about it."""
    try:
        from vlaprune.doctor import main

        sys.exit(main())
    except USER_ERRORS as error:
        _say(error)
        sys.exit(2)


def report() -> None:
    """vlaprune-report: tables from recorded runs."""
    parser = argparse.ArgumentParser(prog="vlaprune-report", description="Side-by-side tables from recorded runs.")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders that hold some")
    parser.add_argument(
        "--baseline", default="dense", help="label of the run that others are paired with (default: dense)"
    )
    parser.add_argument("--tasks", action="store_true", help="one row per task as well")
    parser.add_argument("--untimed", action="store_true", help="no milliseconds: the runs shared their machine")
    parser.add_argument("--timed", action="store_true", help="print speed-ups even of runs that shared their machine")
    parser.add_argument("--partial", action="store_true", help="show runs with episodes missing, marked with *")
    parser.add_argument(
        "--mixed", action="store_true", help="show runs of other protocols, weights or episodes, marked with †"
    )
    parser.add_argument("--output", type=Path, default=Path("results/tables"), help="folder for NAME.{csv,md,tex}")
    parser.add_argument("--name", default="table", help="name of the files (default: table)")
    args = parser.parse_args()
    try:
        from vlaprune import report as tables

        comparison = tables.compare(tables.find(args.runs), args.baseline, args.partial, args.mixed)
        table = tables.tabulate(comparison, args.tasks, args.timed)
        if args.untimed:
            table = table.drop(columns=["ms", "ms_method", "speedup"], errors="ignore")
        print(tables.markdown(table), *table.attrs["notes"], sep="\n\n")
        for path in tables.write(table, args.output, args.name):
            print(path)
    except USER_ERRORS as error:
        _say(error)
        sys.exit(2)


def _later(name: str, instead: str) -> None:
    print(f"{name}: not part of this release yet; {instead}", file=sys.stderr)
    sys.exit(2)


def _say(error: BaseException) -> None:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    print(f"{type(error).__name__}: {' '.join(str(text).split())}", file=sys.stderr)


def _hydra(name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs a job under Hydra. Exit code 2 for what the user can mend: one line says what came and what is allowed."""
    import hydra
    from hydra.core.hydra_config import HydraConfig

    from vlaprune import config

    config.prepare()
    started, failed = [], []

    def guarded(cfg: Any) -> None:
        started.append(True)
        try:
            job(cfg)
        except USER_ERRORS as error:
            if not str(HydraConfig.get().launcher._target_).endswith("BasicLauncher"):
                raise  # another process: the exception is all that comes back
            failed.append(error)
            _say(error)

    try:
        hydra.main(version_base="1.3", config_path=config.config_path(), config_name=name)(guarded)()
    except SystemExit as stop:
        if stop.code:
            sys.exit(stop.code if started else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    if failed:
        sys.exit(2)


def _evaluate(cfg: DictConfig) -> None:
    from tqdm import tqdm

    from vlaprune import config, power
    from vlaprune import report as tables
    from vlaprune.policy import Policy
    from vlaprune.records import EpisodeRecord, Recorder, read
    from vlaprune.rollout import Rules, Shard, rollout

    config.check(cfg)
    shard = Shard(cfg.shard.index, cfg.shard.count)
    model, make_pruner, bench = config.build(cfg)
    policy = Policy(model, make_pruner, cfg.slots, config.control(cfg, bench))
    recorder = Recorder(
        cfg.output, config.header(cfg, model, bench, shard.suffix), config.sinks(cfg), shard.suffix, tqdm.write
    )
    done = recorder.done()
    label = f"{model.info.name} {tables.label(recorder.header)} {bench.name}"
    asked = {(t, e) for t, n in recorder.header.tasks.items() for e in shard.of(n)}
    if not shard.index:
        print(power.power_line(min(recorder.header.tasks.values()), len(recorder.header.tasks)))
    mine = [r for r in done if (r.task, r.episode) in asked]
    won = [r.success for r in mine]
    try:
        with tqdm(total=len(asked), initial=len(won), desc=label, unit="episode") as bar:

            def progress(record: EpisodeRecord) -> None:
                won.append(record.success)
                bar.set_postfix_str(f"success {sum(won)}/{len(won)}, {record.task}")
                bar.update()

            rules = Rules(cfg.seed, cfg.time_limit)
            rollout(policy, bench, recorder, shard, rules, progress)
    except KeyboardInterrupt:
        tqdm.write(f"stopped with {len(won)} of {len(asked)} episodes in {recorder.folder}; the same command goes on")
        raise
    finally:
        recorder.close()
    run = read(cfg.output)
    print(tables.summary(run))
    if recorder.raised:
        raise RuntimeError(
            f"{recorder.raised} episodes raised (error lines in {recorder.folder}); run the same command again "
            "to redo just these"
        )


def _train(cfg: DictConfig) -> None:
    from vlaprune import config, train

    bench = config.make(cfg.bench)
    node = config.model_node(cfg, bench)
    train.main(cfg, bench, lambda: config.make(node), lambda: config.make(cfg.method))
