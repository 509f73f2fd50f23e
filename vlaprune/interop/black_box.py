"""Any model server of vla-eval as a policy: `vlaprune eval model=vla_eval model.url=ws://HOST:PORT method=dense`.

It is a black box: whether an episode succeeds and how long an answer takes is known; what the server computes is not.
Its records hold no tokens and no FLOPs, and every table marks it as without proof of pruning.

The messages are those of vla-eval 0.8.0 (vla_eval/connection.py, runners/sync_runner.py): a greeting, the beginning of
each episode, then an observation for every control step, which an action [A] or a chunk [n, A] answers. A slot is a
connection of its own. What the server declares of its conventions (specs.py) is held against the benchmark's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vlaprune.benchmark import Benchmark, Interface, Observation
from vlaprune.control import Control, Controller
from vlaprune.delay import Delay
from vlaprune.errors import UserError
from vlaprune.interop.results import server_name
from vlaprune.interop.vla_eval import FRAMES, GRIPPERS, PICTURE, PROTOCOL, ROTATIONS, VERSION, decoded, packed
from vlaprune.records import StepRecord
from vlaprune.serve import LIMIT, Message, check_installed, unpack


@dataclass
class BlackBox:
    """The address of a model server, and what it is sent.

    url          URL of its websocket
    called       its name in tables; None for the name in its greeting
    images       camera -> its name in a message; None for all cameras of the benchmark under their own names
    state_names  names under which the state is sent; empty for none
    check        compare the conventions that the server declares with the messages and the robot
    patience     most seconds that an answer may take
    """

    url: str = "ws://127.0.0.1:8000"
    called: str | None = None
    images: Mapping[str, str] | None = None
    state_names: Sequence[str] = ("state", "states")
    check: bool = True
    patience: float = 120.0

    @contextmanager
    def connect(self, bench: Benchmark, control: Control, slots: int) -> Iterator[BlackBoxPolicy]:
        """The server as a policy, a connection for each slot. UserError if it cannot be reached or does not fit."""
        check_installed()
        images = dict(self.images or {camera: camera for camera in bench.interface.cameras})
        if unknown := sorted(images.keys() - {*bench.interface.cameras}):
            raise UserError(f"model.images names {unknown}; {bench.name} has {list(bench.interface.cameras)}")
        with ExitStack() as stack:
            lines = [stack.enter_context(Line.opened(self.url, self.patience)) for _ in range(slots)]
            policy = BlackBoxPolicy(self, bench.name, images, lines, control)
            if self.check:
                sent = self._sent(bench.interface, tuple(images))
                check_declared(policy.said, sent, lambda own: control.output_interface(own).check(bench.interface))
            yield policy

    def _sent(self, world: Interface, cameras: tuple[str, ...]) -> Interface:
        """The conventions of what the server is sent."""
        return replace(world, cameras=cameras, state=world.state if self.state_names else None)


class Line:
    """One connection to a model server, which has been greeted.

    said  payload of the server's greeting
    """

    def __init__(self, socket: Any, url: str, patience: float) -> None:
        self._socket, self.url, self._patience, self._seq = socket, url, patience, 0
        self.playing, self.asked = False, 0
        self.say("hello", {"harness_version": VERSION, "protocol_version": PROTOCOL})
        kind, self.said = self.hear()
        if kind != "hello":
            raise UserError(f"{url} answers a greeting by {kind!r}; it is no model server of vla-eval")

    @classmethod
    @contextmanager
    def opened(cls, url: str, patience: float) -> Iterator[Line]:
        """Opens a connection. UserError if nothing answers."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        options: Message = {"compression": None, "max_size": LIMIT, "ping_interval": None, "close_timeout": 2}
        with ExitStack() as stack:
            try:
                socket = stack.enter_context(connect(url, open_timeout=patience, **options))
            except (OSError, WebSocketException) as error:
                why = " ".join(str(error).split()) or type(error).__name__
                raise UserError(
                    f"no model server answers at {url} ({why}); start it, or say where it is: model.url=ws://HOST:PORT"
                ) from None
            line = cls(socket, url, patience)
            yield line
            with suppress(UserError):  # the server is gone already
                line.over()

    def say(self, kind: str, payload: Mapping[str, Any]) -> None:
        """Sends one message. UserError if the server is gone."""
        from websockets.exceptions import ConnectionClosed

        self._seq += 1
        try:
            self._socket.send(packed(kind, payload, self._seq))
        except (ConnectionClosed, OSError) as error:
            raise self._gone(error) from None

    def hear(self) -> tuple[str, Message]:
        """The kind and payload of the answer to the last message. UserError for an error, or if none comes in time."""
        from websockets.exceptions import ConnectionClosed

        try:
            message = unpack(self._socket.recv(timeout=self._patience))
            kind, seq, payload = message["type"], message["seq"], decoded(message["payload"])
        except (ConnectionClosed, OSError) as error:  # includes TimeoutError
            raise self._gone(error) from None
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{self.url} sends what is no message of vla-eval ({error})") from None
        if kind == "error":
            raise UserError(f"the model server at {self.url} says: {' '.join(str(payload).split())[:500]}")
        if seq != self._seq:
            raise UserError(f"{self.url} answers message {seq} where {self._seq} was sent; serve one answer for each")
        return str(kind), payload

    def _gone(self, error: Exception) -> UserError:
        late = isinstance(error, TimeoutError)
        why = f"gave no answer in {self._patience:g} s" if late else f"has gone ({' '.join(str(error).split())})"
        return UserError(
            f"the model server at {self.url} {why}; mend it and run the same command again, finished episodes are kept"
        )

    def begin(self, task: Message) -> None:
        """Ends the episode under way and begins another."""
        self.over()
        self.say("episode_start", {"task": task})
        self.playing = True

    def over(self) -> None:
        """Ends the episode under way, if there is one."""
        if self.playing:
            self.playing = False
            self.say("episode_end", {})


class BlackBoxPolicy:
    """A connected model server as the policy of a rollout, see evaluation/rollout.py.

    called  its name in tables
    said    payload of its greeting
    """

    def __init__(
        self, box: BlackBox, bench: str, images: Mapping[str, str], lines: Sequence[Line], control: Control
    ) -> None:
        self._box, self._bench, self._images, self._lines = box, bench, images, lines
        self.said = lines[0].said
        self.delay: Delay | None = None
        self.called = box.called or server_name(self.said)
        self._controllers = [Controller(control) for _ in lines]
        self._calls: list[list[StepRecord]] = [[] for _ in lines]

    @property
    def slots(self) -> int:
        """The number of episodes that run side by side."""
        return len(self._lines)

    @property
    def server(self) -> str:
        """The server's address and its description of itself."""
        told = "" if self.said.get("action_spec") else ", which declares no conventions"
        return (
            f"{self._box.url} ({server_name(self.said)}, vla-eval {self.said.get('harness_version', 'unknown')}{told})"
        )

    def begin(self, slot: int, task: str, episode: int, seed: int) -> None:
        """Begins an episode in a slot. The server gets task and number but no seed: its noise is its own."""
        self._calls[slot].clear()
        self._controllers[slot].reset()
        self._lines[slot].begin({"name": task, "suite": self._bench, "episode_idx": episode})

    def act(self, observations: Mapping[int, Observation]) -> dict[int, np.ndarray]:
        """The [n, action_dim] actions until the next look, for each slot that has an observation."""
        began = {}
        for slot, seen in observations.items():
            began[slot] = time.perf_counter()
            self._lines[slot].say("observation", self._message(seen))
        out = {}
        for slot in observations:
            line = self._lines[slot]
            kind, payload = line.hear()
            ms = 1e3 * (time.perf_counter() - began[slot])
            out[slot] = self._controllers[slot].actions(_chunk(kind, payload, line.url))
            cold = "" if line.asked else "first"
            line.asked += 1
            self._calls[slot].append(StepRecord((), (), 0, (), 0, {}, {"other": ms}, len(observations), cold))
        return out

    def _message(self, seen: Observation) -> Message:
        images = {name: np.ascontiguousarray(seen.images[camera]) for camera, name in self._images.items()}
        state = {} if seen.state is None else dict.fromkeys(self._box.state_names, np.asarray(seen.state))
        return {"images": images, **state, "task_description": seen.instruction}

    def trace(self, slot: int) -> None:
        """None: the computation of a call is not visible."""

    def drain(self, slot: int, steps: int | None = None) -> tuple[StepRecord, ...]:
        """The records of all answers since the episode began: only their times."""
        return tuple(self._calls[slot])

    def executed(self, slot: int, steps: int) -> np.ndarray:
        """The first `steps` actions [steps, action_dim] of the episode."""
        return np.stack(self._controllers[slot].executed[:steps])


def _chunk(kind: str, payload: Message, url: str) -> np.ndarray:
    """The actions [n, A] of an answer. UserError for anything else."""
    said = payload.get("actions", payload.get("action")) if kind == "action" else None
    try:
        actions = np.atleast_2d(np.asarray(said, np.float64))
    except (ValueError, TypeError):
        actions = np.empty((0, 0))
    if actions.ndim != 2 or not actions.size or not np.isfinite(actions).all():
        what = f"numbers of shape {np.shape(said)}" if isinstance(said, np.ndarray) else str(said)[:80]
        raise UserError(f"{url} answers an observation by {kind} {what}; finite numbers [A] or [n, A] must come")
    return actions


def check_declared(said: Message, sent: Interface, fits: Callable[[Interface], None]) -> None:
    """Raises UserError if a server declares other conventions than those used here.

    said  payload of its greeting
    sent  conventions of what it is sent: cameras and state
    fits  raises UserError if the robot does not take an interface's actions

    What a server does not declare cannot be checked.
    """
    acts, sees = said.get("action_spec") or {}, said.get("observation_spec") or {}
    wrong = [*_unseen(sees, sent)] if sees else []
    if acts:
        known = [str((acts.get(part) or {}).get("format", "")) for part in ("position", "rotation", "gripper")]
        frame, rotation, gripper = (
            table.get(one, one) for table, one in zip((FRAMES, ROTATIONS, GRIPPERS), known, strict=True)
        )
        own: Any = {"frame": frame, "rotation": rotation, "gripper": gripper}
        try:
            fits(replace(sent, **{key: value for key, value in own.items() if value}))
        except UserError as error:
            wrong.append(str(error))
    if wrong:
        raise UserError(
            f"the model server declares other conventions ({'; '.join(wrong)}); set model.images, model.state_names or "
            "robots.ROBOT.control, or model.check=false to look anyway"
        )


def _unseen(sees: Mapping[str, Any], sent: Interface) -> Iterator[str]:
    """Yields the inputs that a server declares but is not sent."""
    formats = [str((spec or {}).get("format")) for spec in sees.values()]
    if (pictures := formats.count(PICTURE)) != len(sent.cameras):
        yield f"it sees {pictures} pictures, {len(sent.cameras)} are sent"
    state = str((sees.get("state") or {}).get("format", ""))
    if state and state != str(sent.state):
        yield f"state {state} vs {sent.state}"
