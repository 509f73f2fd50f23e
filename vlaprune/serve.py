"""Serves a pruned policy over a websocket, in the messages of openpi's client, so that other harnesses can evaluate it.

The messages are those of openpi@15a9616 (src/openpi/serving/websocket_policy_server.py, packages/openpi-client):
msgpack, arrays as their bytes. The server greets with what it serves; then every observation is answered by actions, or
by one line of text that says what is wrong, after which the connection is closed. /healthz answers over plain HTTP.

A connection takes a slot with its first observation and keeps it. What a method remembers lasts for an episode, and
openpi's client never says that one begins: the first observation of a connection begins one, and so does one with
`reset` true or another `episode` number. Observations that arrive while the model computes share its next call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlaprune.benchmark import Interface, Observation
from vlaprune.policy import Policy, episode_seed
from vlaprune.records import StepRecord

Message = dict[str, Any]
LIMIT = 64 * 2**20  # bytes of a message


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    import msgpack

    return msgpack.packb(dict(message), default=_plain)


def unpack(data: bytes | str) -> Message:
    """A message from bytes. ValueError for anything that is none; nothing is ever unpickled."""
    import msgpack

    if isinstance(data, str):
        raise ValueError("a message of text came; send msgpack, as openpi's client does")
    try:
        said = msgpack.unpackb(data, object_hook=_array)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"a message cannot be read ({error}); send msgpack, as openpi's client does") from None
    if not isinstance(said, dict):
        raise ValueError(f"a message holds a {type(said).__name__}; send a dictionary of named observations")
    return said


def _plain(value: object) -> Message | object:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise ValueError(f"{type(value).__name__} cannot be sent")


def _array(value: dict[Any, Any]) -> object:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    kind = np.dtype(value[b"dtype"])
    if kind.kind not in "biuf":
        raise ValueError(f"arrays of {kind} are not accepted; send numbers")
    if b"__npgeneric__" in value:
        return kind.type(value[b"data"])
    return np.frombuffer(value[b"data"], kind).reshape(value[b"shape"]).copy()  # the message's own bytes are read-only


@dataclass(frozen=True)
class Client:
    """What clients send, and what their robot expects; by default that of openpi's LIBERO client.

    cameras   of the model
    images    their names in the message, in the same order; [h, w, 3] uint8 each
    state     name in the message, [s]; null for none
    prompt    name in the message of the instruction
    layout    what the numbers of the state are, as Interface.state
    robot     whose controls actions go through, null where they leave as the model emits them
    rotation, gripper, frame   as Interface: what the robot takes
    """

    cameras: Sequence[str]
    images: Sequence[str] = ("observation/image", "observation/wrist_image")
    state: str | None = "observation/state"
    prompt: str = "prompt"
    layout: str | None = "eef_pos3_axisangle3_gripper2"
    robot: str | None = "libero"
    rotation: Any = "axis_angle"
    gripper: Any = "close_positive"
    frame: Any = "delta"

    name = "client"

    def __post_init__(self) -> None:
        """ValueError where cameras and their names in the message are not as many."""
        if len(self.cameras) != len(self.images):
            raise ValueError(f"cameras {list(self.cameras)} are called {list(self.images)}; give each one a name")

    @property
    def interface(self) -> Interface:
        """The world as a model is checked against it."""
        layout = None if self.state is None else self.layout
        return Interface(self.rotation, self.gripper, self.frame, tuple(self.cameras), layout)

    def read(self, message: Message) -> Observation:
        """An observation. ValueError names what is missing or malformed."""
        wanted = [*self.images, *([] if self.state is None else [self.state]), self.prompt]
        missing = [name for name in wanted if name not in message]
        if missing:
            raise ValueError(f"the observation lacks {missing}; it has {sorted(map(str, message))}")
        for name in self.images:
            image = message[name]
            fits = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3
            if not fits or image.shape[2] != 3:
                said = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
                raise ValueError(f"{name} is {said}; send [h, w, 3] uint8")
        if not isinstance(message[self.prompt], str):
            raise ValueError(f"{self.prompt} is {type(message[self.prompt]).__name__}; send the instruction as text")
        state = None if self.state is None else np.asarray(message[self.state])
        if state is not None and (state.ndim != 1 or state.dtype.kind not in "iuf" or not np.isfinite(state).all()):
            raise ValueError(f"{self.state} is {state.dtype} {state.shape}; send finite numbers in one row")
        images = dict(zip(self.cameras, (message[name] for name in self.images), strict=True))
        return Observation(images, None if state is None else state.astype(np.float64), message[self.prompt])


@dataclass(frozen=True, eq=False)
class Ask:
    """An observation that waits for its actions; `seed` where an episode begins with it."""

    slot: int
    observation: Observation
    seed: int | None
    answer: asyncio.Future[tuple[np.ndarray, StepRecord]]


class Server:
    """Connections, and the one thread that computes.

    about     what a client is greeted with
    seed      of the policy
    patience  seconds that a connection waits for a slot, such as that of a client which has just gone
    """

    def __init__(
        self, policy: Policy, client: Client, about: Mapping[str, Any], seed: int = 7, patience: float = 5.0
    ) -> None:
        self.policy, self.client, self.seed, self.patience = policy, client, seed, patience
        self.about = {**about, "slots": policy.slots, "episodes": "send `reset` or `episode` where one begins"}
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(policy.slots):
            self._free.put_nowait(slot)
        self._asked: asyncio.Queue[Ask] = asyncio.Queue()

    async def run(self, host: str, port: int, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serves until cancelled; `ready` is told the port once it is open. OSError where it cannot be had."""
        from websockets.asyncio.server import serve

        with ThreadPoolExecutor(1) as thread:
            computing = asyncio.create_task(self._compute(thread))
            try:
                options: Message = {"compression": None, "max_size": LIMIT, "process_request": _health}
                async with serve(self._talk, host, port, **options) as server:
                    ready(next(iter(server.sockets)).getsockname()[1])
                    await server.serve_forever()
            finally:
                computing.cancel()

    async def _compute(self, thread: ThreadPoolExecutor) -> None:
        """Answers everything that has been asked, in one packed call, over and over."""
        loop = asyncio.get_running_loop()
        while True:
            asks = [await self._asked.get()]
            while not self._asked.empty():
                asks.append(self._asked.get_nowait())
            try:
                answers = await loop.run_in_executor(thread, self._act, asks)
            except Exception as error:  # whatever it is, clients wait to hear of it
                for ask in asks:
                    if not ask.answer.done():
                        ask.answer.set_exception(error)
                continue
            for ask, answer in zip(asks, answers, strict=True):
                if not ask.answer.done():
                    ask.answer.set_result(answer)

    def _act(self, asks: list[Ask]) -> list[tuple[np.ndarray, StepRecord]]:
        for ask in asks:
            if ask.seed is not None:
                self.policy.reset(ask.slot, ask.seed)
        actions = self.policy.act({ask.slot: ask.observation for ask in asks})
        return [(actions[ask.slot], self.policy.drain(ask.slot)[-1]) for ask in asks]

    async def _talk(self, websocket: Any) -> None:
        """One connection, from its greeting to its end."""
        slots: list[int] = []
        try:
            await websocket.send(pack(self.about))
            await self._episodes(websocket, slots)
        finally:
            for slot in slots:
                self._free.put_nowait(slot)

    async def _slot(self) -> int:
        try:
            return await asyncio.wait_for(self._free.get(), self.patience)
        except TimeoutError:
            raise RuntimeError(f"all {self.policy.slots} slots are taken; serve with more slots") from None

    async def _episodes(self, websocket: Any, slots: list[int]) -> None:
        """Observations and their answers; the slot that is taken goes into `slots`."""
        episode = -1
        async for data in websocket:
            began = time.perf_counter()
            try:
                message = unpack(data)
                observation, seed = self.client.read(message), None
                if not slots:
                    slots.append(await self._slot())
                if episode < 0 or message.get("reset") or message.get("episode", episode) != episode:
                    episode = int(message.get("episode", episode + 1))
                    seed = episode_seed(self.seed, observation.instruction, episode)
                ask = Ask(slots[0], observation, seed, asyncio.get_running_loop().create_future())
                await self._asked.put(ask)
                actions, record = await ask.answer
            except Exception as error:
                # as openpi's server says it: a message of text, which its client raises; then the end
                await websocket.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
                await websocket.close(1011, "see the message before")
                return
            spent = {"infer_ms": (time.perf_counter() - began) * 1e3}
            counted = {"total": record.total, "visual": list(record.visual), "flops": dict(record.flops)}
            await websocket.send(pack({"actions": actions, "server_timing": spent, "pruning": counted}))


def _health(connection: Any, request: Any) -> Any:
    """Answers /healthz without a websocket."""
    return connection.respond(200, "OK\n") if request.path == "/healthz" else None
