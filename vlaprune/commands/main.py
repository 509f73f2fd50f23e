"""The command `vlaprune`: finds the subcommand and hands it the rest of the line. Heavy imports happen in the jobs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches

import vlaprune
from vlaprune import cli
from vlaprune.commands import completion, demo, export, importing, lists, new, tune, usage, watch

Job = Callable[[], None]
SCRIPTS: dict[str, tuple[Job, str]] = {  # these also exist as separate scripts: vlaprune-eval and so on
    "eval": (cli.evaluate, "run episodes of a model with a pruning method on a benchmark"),
    "profile": (cli.profile, "measure what methods save and cost: time, FLOPs, floors, fidelity"),
    "train": (cli.train, "train the small policies, or fine-tune with a learnt method"),
    "serve": (cli.serve, "serve a pruned policy over a websocket, for openpi's client"),
    "report": (cli.report, "make tables and an HTML page from recorded runs"),
    "doctor": (cli.doctor, "say what is missing for a run, and what to do about it"),
}
OTHERS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "watch": (watch.main, "show how far the runs in a folder are"),
    "demo": (demo.main, "compare dense, FastV and random on a simulated robot, with a table and a page"),
    "tune": (tune.main, "find the settings of a method that are worth their milliseconds"),
    "list": (lists.main, "list models, methods, benches, robots, experiments or devices"),
    "export": (export.main, "write runs as logs of Inspect or as a dataset of the Hugging Face hub"),
    "import": (importing.main, "take results of vla-eval as a run that a report can pair with"),
    "new": (new.main, "write a package with a method, a model or a benchmark of your own"),
    "completion": (completion.main, "print the completion script of bash or zsh"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command line. Exit code 2 if there is no such command."""
    try:
        _run(argv)
    except BrokenPipeError:
        cli.hang_up()


def _run(argv: Sequence[str] | None) -> None:
    first, *rest = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    if first in ("-h", "--help", "help"):
        print(text(), flush=True)
    elif first in ("-V", "--version"):
        print(f"vlaprune {vlaprune.__version__}")
    elif first in SCRIPTS:
        sys.argv = [f"vlaprune {first}", *rest]
        SCRIPTS[first][0]()
    elif first in OTHERS:
        sys.exit(_exit_code(OTHERS[first][0], rest))
    else:
        near = get_close_matches(first, [*SCRIPTS, *OTHERS], 1)
        meant = f"did you mean {near[0]}? " if near else ""
        print(f"vlaprune has no command {first!r}; {meant}use one of {', '.join([*SCRIPTS, *OTHERS])}", file=sys.stderr)
        sys.exit(2)


def _exit_code(command: Callable[[Sequence[str]], int], rest: Sequence[str]) -> int:
    """Runs a command and returns its exit code: 2 with one line for an error that the user can fix, 1 for a bug."""
    try:
        code = command(rest)
        sys.stdout.flush()  # here a closed pipe is noticed, not when the interpreter ends
        return code
    except BrokenPipeError:
        raise
    except Exception as error:
        return cli.print_error(error)


def text() -> str:
    """The help of the command `vlaprune`."""
    about = {name: said for name, (_, said) in [*SCRIPTS.items(), *OTHERS.items()]}
    return "\n".join(
        [
            "vlaprune evaluates visual-token pruning in vision-language-action policies.",
            "",
            "usage: vlaprune COMMAND ...        vlaprune COMMAND --help explains its settings",
            "",
            *(f"  {line}" for line in usage.table(about)),
            "",
            "  vlaprune eval model=toy bench=toy method=fastv episodes=3     a first run, in seconds",
            "  vlaprune --version",
        ]
    )
