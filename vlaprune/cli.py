"""The six console scripts. Heavy imports live inside the jobs, so that --help answers at once."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlaprune import errors

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from vlaprune.evaluation.progress import RunStatus
    from vlaprune.pruner import Pruner


def evaluate() -> None:
    """vlaprune-eval: rolls out episodes and journals them."""
    _hydra("eval", _evaluate)


def profile() -> None:
    """vlaprune-profile: what methods save and what they cost, all in one run."""
    if _helped("profile"):
        return
    from vlaprune import config

    arguments = list(sys.argv[1:])
    sys.argv[1:], arms = config.arms(arguments)
    _hydra("profile", lambda cfg: _profile(cfg, arms, arguments))


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
    except Exception as error:
        sys.exit(print_error(error))


def hang_up() -> None:
    """Stops printing, because whoever read the output, such as head, has closed it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def report() -> None:
    """vlaprune-report: tables from recorded runs."""
    try:
        from vlaprune.report import command

        command.main()
    except BrokenPipeError:
        hang_up()
    except Exception as error:
        sys.exit(print_error(error))


def _helped(name: str) -> bool:
    """Prints the help of a command, if the command line asks for it; needs neither Hydra nor torch."""
    if not {"-h", "--help"} & set(sys.argv[1:]):
        return False
    from vlaprune.commands.usage import usage

    print(usage(name, Path(sys.argv[0]).name, sys.argv[1:]))
    return True


def print_error(error: BaseException, folder: Path | None = None) -> int:
    """Prints an error and returns the exit code: 2 where the user can correct it, 1 for a bug."""
    is_user_error = errors.is_user_error(error)
    print(errors.line(error) if is_user_error else errors.bug(error, folder), file=sys.stderr)
    return 2 if is_user_error else 1


def _hydra(name: str, job: Callable[[DictConfig], None]) -> None:
    """Runs jobs under Hydra. Exit code 2, and one line, for what the user can correct; 1 for a bug."""
    if _helped(name):
        return
    from vlaprune import config
    from vlaprune.evaluation import progress

    config.prepare()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come as they are, to be told in one line
    sys.argv[1:] = config.arguments(sys.argv[1:])
    board = progress.Board()
    left = Path("multirun.yaml")  # Hydra writes it into the folder of every sweep and has no switch for that
    own = left.exists()
    try:
        codes = _launch(name, job)
    finally:
        statuses = board.close()
        if not own:
            left.unlink(missing_ok=True)
    if statuses:
        _verdicts(statuses)
    codes += [status.code for status in statuses]
    if any(codes):
        sys.exit(1 if 1 in codes else max(codes))


def _launch(name: str, job: Callable[[DictConfig], None]) -> list[int]:
    """Lets Hydra make the configuration and start the jobs; returns exit codes of jobs and errors in this process."""
    import hydra

    from vlaprune import config

    codes: list[int] = []

    def guarded(cfg: Any) -> None:
        codes.append(_guarded(name, job, cfg))

    try:
        hydra.main(version_base="1.3", config_path=config.config_path(), config_name=name)(guarded)()
    except SystemExit as stop:
        if stop.code:
            sys.exit(stop.code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if config.is_config_error(error):
            given = [word for word in sys.argv[1:] if not word.startswith("-")]
            error = config.explain(error, given, lambda chosen: config.composed(chosen, name)[0], config.options)
        codes.append(print_error(error))
    return codes


def _guarded(name: str, job: Callable[[DictConfig], None], cfg: Any) -> int:
    """Runs one job and returns its exit code. The error of a sweep's job goes to the sweep, which counts it."""
    from vlaprune import config
    from vlaprune.evaluation import progress

    sweep_job = config.job()
    folder = None
    if sweep_job is None:
        progress.detach_from_board()
    else:
        progress.end_with_the_sweep()
    try:
        cfg = config.check(cfg, name)
        folder = Path(cfg.get("output", "."))
        job(cfg)
    except Exception as error:
        if config.is_config_error(error):
            error = errors.UserError(str(error))
        if sweep_job is None:
            return print_error(error, folder)
        is_user_error = errors.is_user_error(error)
        text = errors.line(error) if is_user_error else " / ".join(errors.bug(error, folder).split("\n"))
        if not sweep_job.fail(" ".join(text.split()), 2 if is_user_error else 1):
            raise  # on another machine: the exception is all that comes back
    return 0


def _verdicts(statuses: Sequence[RunStatus]) -> None:
    """Prints the tables of a finished sweep, with the baseline where one was named."""
    from vlaprune.records import read
    from vlaprune.report import sweep

    try:
        runs = [read(f) for f in dict.fromkeys(f for s in statuses for f in (s.baseline, s.folder) if f)]
        print(*sweep.told(runs), sep="\n\n")
    except Exception as error:
        print(f"no table of this sweep: {errors.line(error)}", file=sys.stderr)


def _evaluate(cfg: DictConfig) -> None:
    from vlaprune import config
    from vlaprune.api.evaluation import run_composed

    run_composed(cfg, job=config.job())


def _serve(cfg: DictConfig) -> None:
    import asyncio

    from vlaprune import config
    from vlaprune.interop.vla_eval import VlaEvalServer
    from vlaprune.models.backends import kernel
    from vlaprune.policy import Policy, card_of
    from vlaprune.serve import Server, check_installed

    servers = {"openpi": Server, "vla_eval": VlaEvalServer}
    if cfg.protocol not in servers:
        raise errors.UserError(f"protocol={cfg.protocol}; use one of {', '.join(servers)}")
    token: Any = cfg.token
    if token is not None and (type(token) is not str or not token):
        raise errors.UserError(
            "token (or VLAPRUNE_TOKEN) is empty or no text; give one, in quotes if it is a number, or none"
        )
    if not 0 <= cfg.port <= 65535:
        raise errors.UserError(f"port={cfg.port}; use 0 (any that is free) to 65535")
    check_installed()
    model, make_pruner, client = config.build(cfg, "client")
    control = config.control(cfg, client)
    policy = Policy(model, make_pruner, cfg.slots, control)
    about = {
        "model": model.info.name,
        "method": policy.sessions[0].name,
        "options": config.plain(cfg.method),
        "weights": str(card_of(model).get("sha256", "none")),
        "actions": control.actions_per_call(model.chunk),
        "cameras": list(model.interface.cameras),
    }

    def ready(port: int) -> None:
        print(f"{about['model']} with {about['method']} at ws://{cfg.host}:{port}, {cfg.slots} slots", flush=True)

        if cfg.token is None and cfg.host not in ("127.0.0.1", "localhost", "::1"):
            print("anyone who reaches this machine can use the policy: set VLAPRUNE_TOKEN", flush=True)

    any_client: Any = client
    options: dict[str, Any] = {"idle": float(cfg.idle), "token": token, "origins": list(cfg.origins)}
    server = servers[cfg.protocol](policy, any_client, about, cfg.seed, **options)
    with kernel("sdpa"):
        asyncio.run(server.run(cfg.host, cfg.port, ready))


def _train(cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from vlaprune import config
    from vlaprune.training import cloning, tuning

    words = list(HydraConfig.get().overrides.task)
    typed = config.typed(words)
    target = cfg.model._target_
    if "weights" in cfg.model and not config.takes("model", target, "weights"):
        raise errors.UserError(
            f"model {target.rpartition('.')[2]} has no weights to train; use model=tiny or model=smol"
        )
    bench = config.make("bench", cfg.bench)
    learnt = cfg.tune if cfg.tune is not None else tuning.is_learnable(config.make("method", cfg.method))
    unread = [f"recipe.{key}" for key in cfg.tuning.recipe] if learnt else ["tuning"]
    for key in typed:
        if key in unread or key.split(".")[0] in unread:
            there = f"set tuning.{key}" if learnt else "it belongs to a method that is learnt, or to tune=true"
            raise errors.UserError(f"{key}={typed[key]} is not read here; {there}")
    if learnt and "model.weights" not in typed:
        cfg.model.weights = cfg.tuning.weights
    elif learnt and cfg.tuning.weights is not None:
        both = f"model.weights={cfg.model.weights} and tuning.weights={cfg.tuning.weights}"
        raise errors.UserError(f"{both} say both what training begins with; leave one out")
    node = config.model_node(cfg, config.robot_of(bench))
    subject = cloning.Subject(
        bench,
        lambda: config.make("model", node),
        lambda: config.make("method", cfg.method),
        config.control(cfg, bench),
        config.identity(cfg, bench),
        config.typed_words(words, ("model", "bench"), without=("model.weights",)),
    )
    (tuning if learnt else cloning).main(cfg, subject)


def _profile(cfg: DictConfig, arms: list[list[str]], arguments: list[str]) -> None:
    from tempfile import TemporaryDirectory

    import torch

    from vlaprune import config
    from vlaprune.models.backends import kernel
    from vlaprune.profile import job

    torch.set_num_threads(cfg.threads)

    def makers(arms: Sequence[tuple[str, DictConfig]]) -> list[tuple[str, Callable[[], Pruner]]]:
        return [(label, partial(config.make, "method", node)) for label, node in arms]

    methods = makers(config.methods(arms))
    for _, make in methods:
        make()  # a wrong option speaks before the weights are loaded
    bench = config.make("bench", cfg.bench)
    if "/" in str(cfg.name or ""):  # told now, and not when all has been measured
        raise errors.UserError(f"name={cfg.name} names a folder; give that with output=, and a name without a slash")
    place = Path(cfg.output).absolute()
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise errors.UserError(f"output={cfg.output}: {there} is no folder that can be written to; name another one")
    with TemporaryDirectory() as scratch:
        setting = job.ProfileJob(
            cfg,
            partial(config.load, cfg, bench),
            methods,
            lambda keeps, own_too: makers(config.all_methods(keeps, cfg.methods, own_too)),
            partial(config.control, cfg, bench),
            bench,
            config.identity(cfg, bench)["bench"],
            config.recorded_method,
            lambda device: config.provenance(device) | {"command": " ".join(["vlaprune-profile", *arguments])},
            Path(scratch),
        )
        with kernel("sdpa"):  # what is not timed, such as a recording; each arm enters its own
            for path in job.MODES[cfg.mode](setting):
                print(path)
