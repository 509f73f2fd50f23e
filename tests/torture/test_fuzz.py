"""Fuzzed command lines over all commands: never a traceback, never a wrong exit code, one line for what is wrong.

Short in CI; `make torture` (TORTURE=long) tries 1,000. Everything runs in this process, with the toy model and world.
"""

import contextlib
import io
import os
import random
import shutil
import sys

import pytest

from vlaprune import cli, config
from vlaprune.config.check import settings

COUNT = 1000 if os.environ.get("TORTURE") == "long" else 40
BASE = {  # a line that succeeds, of each command
    "evaluate": ["model=toy", "bench=toy", "logger=csv", "episodes=1", "output=run"],
    "profile": ["model=toy", "bench=toy", "observations=noise", "calls=1", "seconds=0", "warmup=0", "output=run"],
    "train": ["model=tiny", "bench=robosuite", "output=run"],
    "serve": ["model=toy", "port=0", "bench.cameras=[main]", "bench.images=[image]", "bench.robot=null"],
    "doctor": ["model=toy", "bench=toy"],
    "report": ["recorded"],
}
FILES = {"evaluate": "eval", "profile": "profile", "train": "train", "serve": "serve", "doctor": "eval"}
GROUPS = ("model", "method", "bench")
NONSENSE = [
    "null",
    "[",
    "{",
    "]",
    "1e400",
    "-1",
    "???",
    "${nowhere}",
    "${",
    "'",
    '"',
    "a=b",
    "é",
    "nan",
    "0",
    "x" * 300,
]
TARGETS = ["builtins.dict", "os.system", "pandas.read_pickle", "nothing", ".", "", "vlaprune.models.toy.Toy.predict"]


def paths(tree, above=""):
    """Every dotted setting of a file."""
    for key, value in tree.items():
        yield f"{above}{key}"
        if isinstance(value, dict):
            yield from paths(value, f"{above}{key}.")


def misspelt(rng, word):
    """A word with one letter too many, too few or two exchanged."""
    at = rng.randrange(1, max(2, len(word)))
    return rng.choice([word[:at] + word[at:] + "q", word[: at - 1] + word[at:] + "z", word[:at] + "q" + word[at:]])


def wrong(rng, command):
    """A setting that must be refused with exit code 2."""
    known = sorted(paths(settings(FILES[command])))
    group = rng.choice(GROUPS)
    return rng.choice(
        [
            f"{misspelt(rng, rng.choice(known))}={rng.choice(['1', 'word', 'null'])}",
            f"+{misspelt(rng, rng.choice(known))}=1",
            f"{misspelt(rng, group)}=toy",
            f"{group}={misspelt(rng, 'dense')}",
            f"{group}={rng.choice(['1', 'null', '[]', '1.5'])}" if command != "serve" else "method=null",
            f"~{group}" if command != "serve" else "~method",
            f"{group}._target_={rng.choice(TARGETS)}",
            f"+{group}._partial_=true",
            f"method.{misspelt(rng, 'keep')}=1",
            f"seed={rng.choice(['word', 'null', '1.5', '[1]', '1e400', 'true', '???', '${nowhere}'])}",
            f"{rng.choice(['method.keep', 'seed', group])}=[",
            "=",
            "word",
            f"{rng.choice(known)}=${{",
        ]
    )


def any_of(rng, command):
    """A setting that may or may not be refused."""
    known = sorted(paths(settings(FILES[command])))
    key = rng.choice(
        [*known, "method.keep", "method.layer", "model.layers", "model.chunk", "bench.image", "method.rows"]
    )
    if key.startswith(
        ("episodes", "record", "rounds", "minutes", "seconds", "calls", "block", "warmup", "mode", "mode")
    ):
        key = "method.keep"  # what only takes long is no torture of the command line
    return f"{rng.choice(['', '', '+', '++', '~'])}{key}={rng.choice(NONSENSE)}"


def lines(count):
    """Command, arguments, and whether exit code 2 is certain."""
    rng = random.Random(7)
    for number in range(count):
        command = ("evaluate", "evaluate", "profile", "train", "serve", "doctor", "report")[number % 7]
        if command == "report":
            options = ["--baseline", "--floor", "--name", "--html", "--videos", "--output", "--nosuch", "--tasks", "x"]
            yield command, [rng.choice(["recorded", "nowhere", ""]), *rng.choices([*options, *NONSENSE], k=2)], False
            continue
        sure = rng.random() < 0.7
        more = [wrong(rng, command)] if sure else [any_of(rng, command) for _ in range(rng.randint(1, 3))]
        where = "serve" if command == "serve" else command
        if where == "train":
            sure = sure and not more[0].startswith(("+", "~"))
        yield command, [*BASE[command], *more], sure


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a recorded run; nothing that takes long is done for real."""
    import asyncio

    from vlaprune.benchmark import Finding
    from vlaprune.doctor.checks import models
    from vlaprune.serve import Server
    from vlaprune.training import cloning, tuning

    place = tmp_path_factory.mktemp("fuzz")
    patch = pytest.MonkeyPatch()
    patch.chdir(place)
    patch.setattr(Server, "run", lambda *_: asyncio.sleep(0))
    for module in (cloning, tuning):
        patch.setattr(module, "main", lambda cfg, subject: (subject.make_model(), subject.make_method()))
    patch.setattr(models, "models", lambda nodes, *_: [Finding(name, "not looked at") for name in nodes])
    assert told("evaluate", [*BASE["evaluate"][:-1], "output=recorded"])[0] == 0
    yield place
    patch.undo()


def told(command, argv):
    """Exit code, and the lines of error that are no progress."""
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [f"vlaprune-{command}", *argv]
    code = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            getattr(cli, command)()
        except SystemExit as stop:
            code = stop.code or 0
    said = [line for line in err.getvalue().replace("\r", "\n").splitlines() if line.strip()]
    shown = ("episode/s", "s/episode")  # a bar says the one or the other, by how fast it is
    quiet = [line for line in said if not any(word in line for word in shown)]
    return code, [line for line in quiet if not line.startswith(("blocks:", "arms:"))]


def test_the_lines_that_the_fuzz_begins_with_succeed(folder):
    config.prepare()
    for command, argv in BASE.items():
        if command != "train":  # needs a simulator
            assert told(command, argv)[0] == 0, (command, told(command, argv))


def test_fuzzed_command_lines(folder):
    failures = []
    for command, argv, sure in lines(COUNT):
        shutil.rmtree(folder / "run", ignore_errors=True)
        code, said = told(command, argv)
        text = "\n".join(said)
        fine = code in ((2,) if sure else (0, 2)) and "Traceback" not in text and 'File "' not in text
        if code == 2 and command not in ("doctor", "report"):
            fine = fine and len(said) == 1
        if not fine:
            failures.append(f"{command} {argv[len(BASE[command]) :]} -> {code}: {text[-300:]}")
    assert not failures, f"{len(failures)} of {COUNT}\n" + "\n".join(failures)
