"""scripts/system.sh: what it installs, and what it does while another process holds the package lock."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "system.sh"
LOCKED = "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 7 (apt-get)"


def system(folder, *arguments, apt, user=0, **settings):
    """The script's result on a machine whose apt-get is the shell text `apt`; each of its calls is a line of `log`."""
    commands = {
        "apt-get": f'echo "$@" >> {folder}/log\n{apt}',
        "sleep": "exit 0",
        "id": f"echo {user}",
        "ldconfig": "exit 0",
    }
    for name, text in commands.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"} | settings
    said = subprocess.run(["bash", SCRIPT, *arguments], env=env, capture_output=True, text=True, check=False)
    log = folder / "log"
    return said, log.read_text().splitlines() if log.exists() else []


def test_a_held_package_lock_is_waited_for_and_the_install_then_succeeds(tmp_path):
    locked_twice = f'[ $(wc -l < {tmp_path}/log) -gt 2 ] || {{ echo "{LOCKED}" >&2; exit 100; }}'
    said, calls = system(tmp_path, apt=locked_twice)
    assert said.returncode == 0
    assert said.stderr.count("\n") == 1 and "waiting" in said.stderr
    assert [c.split()[-1] for c in calls[:3]] == ["update"] * 3 and "libosmesa6" in calls[3] and len(calls) == 4


def test_a_lock_that_is_never_released_ends_with_apts_own_words(tmp_path):
    said, _ = system(tmp_path, apt=f'echo "{LOCKED}" >&2; exit 100', LOCK_SECONDS="0")
    assert said.returncode == 2 and LOCKED in said.stderr


def test_another_error_of_apt_is_not_retried(tmp_path):
    said, calls = system(tmp_path, apt='echo "E: Unable to locate package" >&2; exit 100')
    assert said.returncode == 2 and "Unable to locate package" in said.stderr and len(calls) == 1


def test_without_root_it_names_the_packages(tmp_path):
    said, calls = system(tmp_path, apt="exit 0", user=1000)
    assert said.returncode == 2 and "sudo apt-get install libegl1" in said.stderr and not calls


@pytest.mark.parametrize("name", ["sh", "bash"])
def test_a_browser_that_is_there_is_enough(tmp_path, name):
    said, calls = system(tmp_path, "browser", apt="exit 1", CHROMIUM=name)
    assert said.returncode == 0 and not calls
