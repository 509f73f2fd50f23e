"""Worlds that show and say what they must not, and that hang and die. No model code: workers import this."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from troubled import ToyLike

from vlaprune.bench.toy import Toy
from vlaprune.benchmark import Observation

BAD = ("reach-blue", 1)  # the episode in which something is wrong


def seen(camera=None, **changes):
    """A function from an observation to one that is different; `camera` is what its picture becomes."""

    def change(now):
        picture = now.images["main"]
        images = {"main": camera(picture)} if camera else now.images
        return replace(now, images=images, **{k: v(getattr(now, k)) for k, v in changes.items()})

    return change


class Odd:
    """Not an observation, though it looks like one."""

    def __init__(self, now):
        self.images, self.state, self.instruction = now.images, now.state, now.instruction


def at(index, value):
    def put(state):
        state = state.copy()
        state[index] = value
        return state

    return put


OBSERVATIONS = {  # kind -> (what is done to a sound observation, a part of what must be said)
    "none": (lambda now: None, "observation is None; an Observation is needed"),
    "tuple": (lambda now: (now.images, now.state), "observation is tuple; an Observation"),
    "dict": (lambda now: vars(now), "observation is dict; an Observation"),
    "look-alike": (Odd, "observation is Odd; an Observation"),
    "a picture alone": (lambda now: now.images["main"], "observation is [64, 64, 3] uint8; an Observation"),
    "no pictures": (lambda now: replace(now, images={}), "no picture of main; there are none"),
    "images none": (lambda now: replace(now, images=None), "images is None; a mapping"),
    "images a list": (lambda now: replace(now, images=[1]), "images is list [1]; a mapping"),
    "another camera": (
        lambda now: replace(now, images={"side": now.images["main"]}),
        "no picture of main; there are side",
    ),
    "camera none": (seen(lambda p: None), "camera main is None; a [height, width, 3] uint8 array"),
    "camera a text": (seen(lambda p: "left.png"), "camera main is str 'left.png'"),
    "camera a list": (seen(lambda p: p.tolist()), "camera main is list"),
    "rgba": (seen(lambda p: np.dstack([p, p[..., :1]])), "camera main is [64, 64, 4] uint8"),
    "grey": (seen(lambda p: p[..., 0]), "camera main is [64, 64] uint8"),
    "one channel": (seen(lambda p: p[..., :1]), "camera main is [64, 64, 1] uint8"),
    "channels first": (seen(lambda p: p.transpose(2, 0, 1)), "camera main is [3, 64, 64] uint8"),
    "a batch": (seen(lambda p: p[None]), "camera main is [1, 64, 64, 3] uint8"),
    "float": (seen(lambda p: p / 255.0), "camera main is [64, 64, 3] float64"),
    "float32": (seen(lambda p: p.astype(np.float32)), "camera main is [64, 64, 3] float32"),
    "nan": (seen(lambda p: np.full(p.shape, np.nan)), "camera main is [64, 64, 3] float64"),
    "int64": (seen(lambda p: p.astype(np.int64)), "camera main is [64, 64, 3] int64"),
    "int8": (seen(lambda p: p.astype(np.int8)), "camera main is [64, 64, 3] int8"),
    "bool": (seen(lambda p: p > 0), "camera main is [64, 64, 3] bool"),
    "objects": (seen(lambda p: p.astype(object)), "camera main is [64, 64, 3] object"),
    "half size": (seen(lambda p: p[::2, ::2]), "camera main is [32, 32, 3] uint8; it was [64, 64, 3] before"),
    "cropped": (seen(lambda p: p[:, :-1]), "camera main is [64, 63, 3] uint8; it was [64, 64, 3] before"),
    "empty": (seen(lambda p: p[:0]), "camera main is [0, 64, 3] uint8; it shows nothing"),
    "huge": (
        lambda now: replace(now, images={**now.images, "map": np.zeros((3000, 3000, 3), np.uint8)}),
        "pictures of 27012288 bytes; at most 16777216",
    ),
    "another picture bad": (
        lambda now: replace(now, images={**now.images, "depth": np.zeros((64, 64), np.float32)}),
        "camera depth is [64, 64] float32",
    ),
    "state none": (seen(state=lambda s: None), "state is None; an array of numbers"),
    "state a list": (seen(state=lambda s: s.tolist()), "state is list [0.0, "),
    "state nan": (seen(state=at(3, np.nan)), "state is not finite, number 3 is nan"),
    "state inf": (seen(state=at(0, np.inf)), "state is not finite, number 0 is inf"),
    "state -inf": (seen(state=at(7, -np.inf)), "state is not finite, number 7 is -inf"),
    "state short": (seen(state=lambda s: s[:1]), "state has 1 numbers; eef_pos3_axisangle3_gripper2 has 8"),
    "state long": (seen(state=lambda s: np.append(s, 0.0)), "state has 9 numbers; eef_pos3"),
    "state a row": (seen(state=lambda s: s[None]), "state is [1, 8] float64; an array of numbers"),
    "state objects": (seen(state=lambda s: s.astype(object)), "state is [8] object; an array of numbers"),
    "state complex": (seen(state=lambda s: s + 0j), "state is [8] complex128; an array of numbers"),
    "state texts": (seen(state=lambda s: s.astype(str)), "state is [8] <U32; an array of numbers"),
    "instruction none": (seen(instruction=lambda i: None), "instruction is None; a text is needed"),
    "instruction bytes": (seen(instruction=str.encode), "instruction is bytes b'reach the blue light'; a text"),
    "instruction empty": (seen(instruction=lambda i: " "), "instruction is empty; say what to do"),
    "instruction long": (seen(instruction=lambda i: i * 200), "instruction has 4000 characters; at most 2000"),
}
STEPS = {  # kind -> (what a step returns in place of its answer, a part of what must be said)
    "none": (None, "step returned None; True or False is needed"),
    "one": (1, "step returned int 1; True or False"),
    "zero": (0, "step returned int 0; True or False"),
    "float": (1.0, "step returned float 1.0; True or False"),
    "nan": (float("nan"), "step returned float nan; True or False"),
    "text": ("success", "step returned str 'success'; True or False"),
    "empty": ((), "step returned tuple (); True or False"),
    "gym": ((None, 0.0, True, False, {}), "step returned tuple (None, 0.0, True, False, {}); True or False"),
    "info": ({"success": True}, "step returned dict {'success': True}; True or False"),
    "number": (np.float64(0.5), "step returned float64 np.float64(0.5); True or False"),
    "array": (np.array([True]), "step returned [1] bool; True or False"),
    "int array": (np.array(1), "step returned [] int64; True or False"),
    "object": (object, "step returned type <class 'object'>; True or False"),
}
HANDS = {  # kind -> (where the hand is said to be, a part of what must be said)
    "nan": (np.array([0.1, np.nan, 0.3]), "hand is [0.1 nan 0.3]; a position of 3 finite numbers"),
    "inf": (np.array([np.inf, 0.0, 0.0]), "hand is [inf 0. 0.]; a position of 3"),
    "a pose": (np.zeros(7), "hand is [0. 0. 0. 0. 0. 0. 0.]; a position of 3"),
    "a row": (np.zeros((1, 3)), "hand is [[0. 0. 0.]]; a position of 3"),
    "none": (None, "hand is nan; a position of 3"),
}
TRUTHS = {"bool": bool, "np.bool_": np.bool_, "array of none": lambda said: np.array(bool(said))}


@dataclass(frozen=True)
class Bad(ToyLike):
    """The toy world; in each attempt at episode 1 of reach-blue, its second look, steps or hands are of a bad kind."""

    look: str | None = None
    step: str | None = None
    hand: str | None = None
    truth: str = "bool"
    worker: bool = False
    name: str = "bad"
    robot: None = None
    control_hz: float = 5.0

    @contextmanager
    def here(self, task):
        with Toy().open(task) as world:
            yield _Bad(world, task.name, self)


class _Bad:
    def __init__(self, world, task, bench):
        self._world, self._task, self._bench = world, task, bench

    def reset(self, episode):
        self._wrong, self._looks = (self._task, episode) == BAD, 0
        self._world.reset(episode)

    def observe(self):
        self._looks += 1
        now = self._world.observe()
        assert isinstance(now, Observation)
        if self._wrong and self._bench.look and self._looks == 2:
            return OBSERVATIONS[self._bench.look][0](now)
        return now

    def step(self, action):
        said = self._world.step(action)
        if self._wrong and self._bench.step:
            return STEPS[self._bench.step][0]
        return TRUTHS[self._bench.truth](said)

    def hand(self):
        return HANDS[self._bench.hand][0] if self._wrong and self._bench.hand else np.zeros(3)


def _hang():
    while True:
        time.sleep(3600)


def _swallow():
    while True:
        try:
            time.sleep(3600)
        except BaseException:
            continue


def _busy():
    x = 0
    while True:
        x += 1


def _deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    ctypes.CDLL(None).sleep(3600)


def _with_lock():
    lock = threading.Lock()
    with lock:
        lock.acquire()


def _children():
    for _ in range(3):
        subprocess.Popen(["sleep", "3600"])
    _hang()


def _threads():
    for _ in range(20):
        threading.Thread(target=_hang).start()
    _hang()


def _atexit():
    import atexit

    atexit.register(_hang)
    sys.exit(1)


def _memory():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
    held = []
    while True:
        held.append(bytearray(1 << 26))


def _recurse(n=0):
    return _recurse(n + 1)


def _pipe():
    for number in range(3, 64):
        try:
            os.close(number)
        except OSError:
            continue
    _hang()


def _flood():
    line = "x" * 65536
    for _ in range(200):
        print(line, flush=True)
    os._exit(9)


def _raise(error):
    def act():
        raise error

    return act


def _kill(number):
    return lambda: os.kill(os.getpid(), number)


class Unspeakable(Exception):
    """Its own text raises."""

    def __str__(self):
        raise RuntimeError("no text")


ENDS = {  # kind -> (what happens in a step, a part of what must be said)
    "hang": (_hang, "no answer within"),
    "hang that swallows everything": (_swallow, "no answer within"),
    "endless loop": (_busy, "no answer within"),
    "native call with all signals blocked": (_deaf, "no answer within"),
    "deadlock": (_with_lock, "no answer within"),
    "stopped": (_kill(signal.SIGSTOP), "no answer within"),
    "hang with children": (_children, "no answer within"),
    "hang with threads": (_threads, "no answer within"),
    "closes its pipe and hangs": (_pipe, "closed its pipe"),
    "segfault": (_kill(signal.SIGSEGV), "died with signal 11"),
    "real segfault": (lambda: ctypes.string_at(0), "died with signal 11"),
    "abort": (os.abort, "died with signal 6"),
    "bus error": (_kill(signal.SIGBUS), "died with signal 7"),
    "illegal instruction": (_kill(signal.SIGILL), "died with signal 4"),
    "division": (_kill(signal.SIGFPE), "died with signal 8"),
    "terminated": (_kill(signal.SIGTERM), "died with signal 15"),
    "killed": (_kill(signal.SIGKILL), "died with signal 9"),
    "interrupted": (_kill(signal.SIGINT), "KeyboardInterrupt"),
    "hang-up": (_kill(signal.SIGHUP), "died with signal 1"),
    "alarm": (_kill(signal.SIGALRM), "died with signal 14"),
    "exit 0": (lambda: os._exit(0), "died with exit code 0"),
    "exit 3": (lambda: os._exit(3), "died with exit code 3"),
    "sys.exit": (lambda: sys.exit(0), "SystemExit: 0"),
    "sys.exit that hangs on its way": (_atexit, "SystemExit: 1"),
    "a flood of words, then gone": (_flood, "died with exit code 9"),
    "out of memory": (_memory, "MemoryError"),
    "recursion": (_recurse, "RecursionError"),
    "generator exit": (_raise(GeneratorExit()), "GeneratorExit"),
    "stop iteration": (_raise(StopIteration(3)), "StopIteration: 3"),
    "unspeakable error": (_raise(Unspeakable()), "Unspeakable"),
    "system error": (_raise(OSError(28, "No space left on device")), "No space left on device"),
    "unicode error": (lambda: b"\xff".decode(), "UnicodeDecodeError"),
    "two lines": (_raise(ValueError("one\ntwo")), "ValueError: one\ntwo"),
    "warnings as errors": (_raise(UserWarning("odd")), "UserWarning: odd"),
}
WHERE = ("open", "reset", "observe", "step", "close")


@dataclass(frozen=True)
class Ending(ToyLike):
    """The toy world in workers, which comes to a bad end.

    kind   one of ENDS
    where  open, reset, observe, step or close
    mark   a file; with `once`, only the first worker to come there makes it and ends badly. Beside it, the PIDs of all
           workers and the tasks that they opened
    """

    kind: str
    where: str = "step"
    mark: str = ""
    once: bool = True
    worker: bool = True
    name: str = "ending"
    robot: None = None
    control_hz: float = 5.0

    @contextmanager
    def here(self, task):
        with open(f"{self.mark}.pids", "a") as file:
            file.write(f"{os.getpid()}\n")
        with open(f"{self.mark}.opened", "a") as file:
            file.write(f"{task.name}\n")
        self.maybe("open", task.name, None)
        try:
            with Toy().open(task) as world:
                yield _Ending(world, task.name, self)
        finally:
            self.maybe("close", task.name, None)

    def maybe(self, where, task, episode):
        if where != self.where or episode not in (None, BAD[1]) or task != BAD[0]:
            return
        if self.once:
            try:
                os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return
        warnings.simplefilter("ignore")
        ENDS[self.kind][0]()


class _Ending:
    def __init__(self, world, task, bench):
        self._world, self._task, self._bench = world, task, bench

    def reset(self, episode):
        self._episode = episode
        self._bench.maybe("reset", self._task, episode)
        self._world.reset(episode)

    def observe(self):
        self._bench.maybe("observe", self._task, self._episode)
        return self._world.observe()

    def step(self, action):
        self._bench.maybe("step", self._task, self._episode)
        return self._world.step(action)
