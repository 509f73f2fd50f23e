"""The six console scripts. Heavy imports live inside the jobs, so that --help answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vlaprune.evaluation.progress import RunStatus
    from vlaprune.pruner import Pruner

USER_ERRORS = (ValueError, TypeError, RuntimeError, OSError, KeyError, ImportError)


def evaluate() -> None:
    """vlaprune-eval: rolls out episodes and journals them."""
    _hydra("eval", _evaluate)


def profile() -> None:
    """vlaprune-profile: what methods save and what they cost, all in one run."""
    if _helped("profile"):
        return
    from vlaprune import config

    said = list(sys.argv[1:])
    sys.argv[1:], arms = config.arms(said)
    _hydra("profile", lambda cfg: _profile(cfg, arms, said))


def train() -> None:
    """vlaprune-train: demonstrations, then behaviour cloning."""
    _hydra("train", _train)


def serve() -> None:
    """vlaprune-serve: a pruned policy behind a websocket, for openpi's client."""
    _hydra("serve", _serve)


def doctor() -> None:
    """vlaprune-doctor: what is missing for a run, and what to do about it."""
    try:
        from vlaprune.doctor.main import main

        sys.exit(main())
    except USER_ERRORS as error:
        _say(error)
        sys.exit(2)


def report() -> None:
    """vlaprune-report: tables from recorded runs."""
    try:
        from vlaprune.report import command

        command.main()
    except USER_ERRORS as error:
        _say(error)
        sys.exit(2)


def _helped(name: str) -> bool:
    """Prints the help of a command, if the command line asks for it; needs neither Hydra nor torch."""
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return False
    from vlaprune.commands.usage import usage

    print(usage(name, Path(sys.argv[0]).name, sys.argv[1:]))
    return True


def _line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return f"{type(error).__name__}: {' '.join(str(text).split())}"


def _say(error: BaseException) -> None:
    print(_line(error), file=sys.stderr)


def _hydra(name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs a job under Hydra. Exit code 2 for what the user can mend: one line says what came and what is allowed."""
    if _helped(name):
        return
    import hydra

    from vlaprune import config
    from vlaprune.evaluation import progress

    config.prepare()
    started, failed = [], []
    board = progress.Board()

    def guarded(cfg: Any) -> None:
        started.append(True)
        if config.job() is None:
            progress.alone()
        try:
            job(cfg)
        except USER_ERRORS as error:
            one = config.job()
            if one is None:
                failed.append(error)
                _say(error)
            elif not one.fail(_line(error)):
                raise  # on another machine: the exception is all that comes back

    try:
        hydra.main(version_base="1.3", config_path=config.config_path(), config_name=name)(guarded)()
    except SystemExit as stop:
        if stop.code:
            sys.exit(stop.code if started else 2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        statuses = board.close()
    if statuses:
        _verdicts(statuses)
    if failed or any(s.error for s in statuses):
        sys.exit(2)


def _verdicts(statuses: Sequence[RunStatus]) -> None:
    """The table of a finished sweep with the baseline where one was named: one for each suite, model or protocol."""
    from vlaprune import report as tables
    from vlaprune.records import differences, read
    from vlaprune.stats import noise as floor

    try:
        runs = [read(f) for f in dict.fromkeys(f for s in statuses for f in (s.baseline, s.folder) if f)]
        if any("delay" in run.header.identity for run in runs):
            from vlaprune.report import delay

            study = delay.table([run for run in runs if run.episodes], partial=True)
            print(delay.markdown(study))
            return
        if floor.same_method(runs):
            print(*floor.lines(runs), sep="\n")
            return
        groups = floor.alike([run for run in runs if run.episodes])
        for group in groups:
            if group is not groups[0]:
                first, this = (floor.conditions(g[0].header) for g in (groups[0], group))
                print(f"\n{differences(first, this)}:\n")
            table = tables.tabulate(tables.compare(group, partial=True))
            print(tables.terminal(table), tables.below(table), sep="\n\n")
    except USER_ERRORS as error:
        print(f"no table of this sweep: {_line(error)}", file=sys.stderr)


def _evaluate(cfg: DictConfig) -> None:
    from vlaprune import config
    from vlaprune.api.evaluation import run_composed

    run_composed(cfg, job=config.job())


def _serve(cfg: DictConfig) -> None:
    import asyncio

    from vlaprune import config
    from vlaprune.policy import Policy
    from vlaprune.serve import Server

    for key in ("port", "slots", "seed"):
        if type(cfg[key]) is not int:
            raise ValueError(f"{key}={cfg[key]}; use a whole number")
    model, make_pruner, client = config.build(cfg, "client")
    control = config.control(cfg, client)
    policy = Policy(model, make_pruner, cfg.slots, control)
    about = {
        "model": model.info.name,
        "method": policy.sessions[0].name,
        "actions": control.calls(model.chunk),
        "cameras": list(model.interface.cameras),
    }

    def ready(port: int) -> None:
        print(f"{about['model']} with {about['method']} at ws://{cfg.host}:{port}, {cfg.slots} slots", flush=True)

        if cfg.token is None and cfg.host not in ("127.0.0.1", "localhost", "::1"):
            print("anyone who reaches this machine can use the policy: set VLAPRUNE_TOKEN", flush=True)

    own: Any = client
    options = {"idle": float(cfg.idle), "token": cfg.token, "origins": list(cfg.origins)}
    asyncio.run(Server(policy, own, about, cfg.seed, **options).run(cfg.host, cfg.port, ready))


def _train(cfg: DictConfig) -> None:
    from vlaprune import config
    from vlaprune.training import cloning as train
    from vlaprune.training import tuning

    bench = config.make("bench", cfg.bench)
    learnt = cfg.tune if cfg.tune is not None else tuning.learnt(config.make("method", cfg.method))
    if learnt and cfg.model.weights == "random":
        cfg.model.weights = cfg.tuning.weights
    node = config.model_node(cfg, bench)
    job = tuning.main if learnt else train.main
    job(cfg, bench, lambda: config.make("model", node), lambda: config.make("method", cfg.method))


def _profile(cfg: DictConfig, arms: list[list[str]], said: list[str]) -> None:
    from tempfile import TemporaryDirectory

    import torch

    from vlaprune import config
    from vlaprune.profile import job

    config.check_profile(cfg)
    torch.set_num_threads(cfg.threads)

    def makers(arms: Sequence[tuple[str, DictConfig]]) -> list[tuple[str, Callable[[], Pruner]]]:
        return [(label, partial(config.make, "method", node)) for label, node in arms]

    methods = makers(config.methods(arms))
    for _, make in methods:
        make()  # a wrong option speaks before the weights are loaded
    bench = config.make("bench", cfg.bench)
    with TemporaryDirectory() as scratch:
        setting = job.Setting(
            cfg,
            partial(config.load, cfg, bench),
            methods,
            lambda keeps: [
                (label, partial(config.make, "method", node)) for label, node in config.every(keeps, cfg.methods)
            ],
            partial(config.control, cfg, bench),
            bench,
            config.recorded_method,
            lambda device: config.provenance(device) | {"command": " ".join(["vlaprune-profile", *said])},
            Path(scratch),
        )
        for path in job.MODES[cfg.mode](setting):
            print(path)
