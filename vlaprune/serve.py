"""Serves a pruned policy over a websocket, in the messages of openpi's client, so that other harnesses can evaluate it.

The messages are those of openpi@15a9616 (src/openpi/serving/websocket_policy_server.py, packages/openpi-client):
msgpack, arrays as their bytes. The server greets with what it serves; then every observation is answered by actions, or
by one line of text that says what is wrong, after which the connection is closed. /healthz answers over plain HTTP.

What comes from outside is bounded and checked: bytes and containers of a message, pictures, words (bench/gate.py), the
number of connections. One client's mistake is its own: what fails in a packed call is computed again alone. Nobody is
dropped for being busy; but a connection that was quiet for `idle` seconds gives up its slot where another one waits.

A connection takes a slot with its first observation and keeps it. What a method remembers lasts for an episode, and
openpi's client never says that one begins: the first observation of a connection begins one, and so does one with
`reset` true or another `episode` number. Observations that arrive while the model computes share its next call.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import numpy as np

from vlaprune.bench.gate import Gate
from vlaprune.benchmark import Interface, Observation
from vlaprune.errors import UserError, install_command
from vlaprune.policy import Policy, episode_seed
from vlaprune.records import StepRecord

Message = dict[str, Any]
LIMIT = 20 * 2**20  # bytes of a message: the pictures that the gate allows, and some more
ENTRIES = 10_000  # of all maps and lists of a message together
SPARE = 8  # connections beside two for each slot
SLOW = 30.0  # seconds that a client may take to read an answer


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as bytes."""
    import msgpack

    return msgpack.packb(dict(message), default=_plain)


def unpack(data: bytes | str) -> Message:
    """A message from bytes. UserError for anything that is none; nothing is ever unpickled."""
    import msgpack

    if isinstance(data, str):
        raise UserError("a message of text came; send msgpack, as openpi's client does")
    entries = 0

    def bounded(value: Any) -> Any:
        nonlocal entries
        entries += 1 + len(value)
        if entries > ENTRIES:
            raise UserError(f"it has more than {ENTRIES} entries")
        return _array(value) if isinstance(value, dict) else value

    try:
        message = msgpack.unpackb(
            data, object_hook=bounded, list_hook=bounded, max_map_len=ENTRIES, max_array_len=ENTRIES
        )
    except (ValueError, TypeError, KeyError, OverflowError, msgpack.UnpackException) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else error
        raise UserError(f"a message cannot be read ({why}); send msgpack, as openpi's client does") from None
    if not isinstance(message, dict):
        raise UserError(f"a message holds a {type(message).__name__}; send a dictionary of named observations")
    return message


def _plain(value: object) -> Message | object:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise UserError(f"{type(value).__name__} cannot be sent")


def _array(value: dict[Any, Any]) -> object:
    if b"__ndarray__" not in value and b"__npgeneric__" not in value:
        return value
    kind = np.dtype(value[b"dtype"])
    if kind.kind not in "biuf":
        raise UserError(f"arrays of {kind} are not accepted; send numbers")
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
        """Raises UserError where there are not as many image names as cameras."""
        if len(self.cameras) != len(self.images):
            raise UserError(f"cameras {list(self.cameras)} are called {list(self.images)}; give each one a name")

    @property
    def interface(self) -> Interface:
        """The conventions of the client's world, against which a model is checked."""
        layout = None if self.state is None else self.layout
        return Interface(self.rotation, self.gripper, self.frame, tuple(self.cameras), layout)

    def gate(self) -> Gate:
        """What checks one connection's observations, under the names that they have in its messages."""
        return Gate(replace(self.interface, cameras=tuple(self.images)))

    def read(self, message: Message, gate: Gate) -> Observation:
        """The observation in a message. UserError names what is missing or malformed."""
        wanted = [*self.images, *([] if self.state is None else [self.state]), self.prompt]
        missing = [name for name in wanted if name not in message]
        if missing:
            raise UserError(f"the observation lacks {missing}; it has {sorted(map(str, message))[:20]}")
        state = None if self.state is None else np.asarray(message[self.state])
        seen = gate.check(Observation({name: message[name] for name in self.images}, state, message[self.prompt]))
        return replace(seen, images={c: seen.images[n] for c, n in zip(self.cameras, self.images, strict=True)})


Answer = tuple[np.ndarray, StepRecord]


@dataclass(frozen=True, eq=False)
class PendingRequest:
    """An observation that waits for its actions; `seed` where an episode begins with it."""

    slot: int
    observation: Observation
    seed: int | None
    answer: asyncio.Future[Answer]


class ClientSlot:
    """A connection's place: its slot, once it has one, and when it was last heard of."""

    def __init__(self, websocket: Any) -> None:
        self.websocket = websocket
        self.slot = -1
        self.heard = time.monotonic()


def check_installed() -> None:
    """Raises UserError where the packages of the extra `serve` are missing."""
    for package in ("websockets", "msgpack"):
        if find_spec(package) is None:
            raise UserError(f"{package} is not installed; {install_command('serve')}")


class Server:
    """A websocket server: many connections, one thread that runs the policy.

    about     the first message to a client
    seed      of the policy's noise
    patience  seconds that a new connection waits for a free slot
    idle      seconds without a message after which a connection loses its slot, if another one waits
    token     that clients must send as `Authorization: Api-Key TOKEN`, as openpi's do, or `Bearer TOKEN`; None for none
    origins   of web pages that may connect; programs, which send no origin, always may
    """

    def __init__(
        self,
        policy: Policy,
        client: Client,
        about: Mapping[str, Any],
        seed: int = 7,
        patience: float = 5.0,
        idle: float = 300.0,
        token: str | None = None,
        origins: Sequence[str] = (),
    ) -> None:
        self.policy = policy
        self.client = client
        self.seed = seed
        self.patience = patience
        self.idle = idle
        self.about = {**about, "slots": policy.slots, "episodes": "send `reset` or `episode` where one begins"}
        self._token = token
        self._origins = [None, *origins]
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(policy.slots):
            self._free.put_nowait(slot)
        self._asked: asyncio.Queue[PendingRequest] = asyncio.Queue()
        self._places: set[ClientSlot] = set()

    async def run(self, host: str, port: int, ready: Callable[[int], None] = lambda port: None) -> None:
        """Serves until cancelled; `ready` is told the port once it is open. UserError where it cannot be had."""
        from websockets.asyncio.server import serve

        quiet = logging.getLogger("vlaprune.serve.websockets")
        quiet.setLevel(logging.CRITICAL)  # what clients do wrong is told to them, not printed here
        options: Message = {
            "compression": None,
            "max_size": LIMIT,
            "max_queue": 1,
            "process_request": self._admit,
            "origins": self._origins,
            "ping_interval": None,
            "close_timeout": 2,
            "logger": quiet,
        }
        with ThreadPoolExecutor(1) as thread:
            computing = asyncio.create_task(self._compute(thread))
            try:
                async with await _listening(serve(self._talk, host, port, **options), host, port) as server:
                    ready(next(iter(server.sockets)).getsockname()[1])
                    await server.serve_forever()
            finally:
                computing.cancel()

    def _admit(self, connection: Any, request: Any) -> Any:
        """Answers /healthz, and those who may not connect, without a websocket."""
        if request.path == "/healthz":
            return connection.respond(200, "OK\n")
        if self._token is not None:
            token = request.headers.get("Authorization", "").partition(" ")[2].strip()
            if not hmac.compare_digest(token.encode(), self._token.encode()):
                return connection.respond(401, "send the server's token: Authorization: Api-Key TOKEN\n")
        if len(self._places) >= 2 * self.policy.slots + SPARE:
            return connection.respond(503, f"{len(self._places)} clients are connected; serve with more slots\n")
        return None

    async def _compute(self, thread: ThreadPoolExecutor) -> None:
        """Answers all waiting requests in one packed call, over and over."""
        loop = asyncio.get_running_loop()
        while True:
            asks = [await self._asked.get()]
            while not self._asked.empty():
                asks.append(self._asked.get_nowait())
            answers = await loop.run_in_executor(thread, self._act, asks)
            for ask, answer in zip(asks, answers, strict=True):
                if ask.answer.done():  # its connection has gone
                    continue
                if isinstance(answer, Exception):
                    ask.answer.set_exception(answer)
                else:
                    ask.answer.set_result(answer)

    def _act(self, asks: Sequence[PendingRequest]) -> list[Answer | Exception]:
        """The answers of one packed call. If it fails, each request is computed alone and gets its own error."""
        restore = [self.policy.sessions[ask.slot].remember() for ask in asks]
        try:
            for ask in asks:
                if ask.seed is not None:
                    self.policy.reset(ask.slot, ask.seed)
            actions = self.policy.act({ask.slot: ask.observation for ask in asks})
            return [(actions[ask.slot], self.policy.drain(ask.slot)[-1]) for ask in asks]
        except Exception as error:  # whatever it is, clients wait to hear of it
            for back in restore:
                back()  # some methods have looked at the pictures already
            return [error] if len(asks) == 1 else [answer for ask in asks for answer in self._act([ask])]

    async def _talk(self, websocket: Any) -> None:
        """Serves one connection, from its greeting to its end, whoever ends it."""
        from websockets.exceptions import ConnectionClosed

        place = ClientSlot(websocket)
        self._places.add(place)
        _watch(websocket)
        try:
            await self._greet(websocket)
            await self._episodes(websocket, place)
        except (ConnectionClosed, TimeoutError):
            websocket.transport.abort()  # gone, or does not read; there is nobody to tell
        finally:
            self._places.discard(place)
            if place.slot >= 0:
                self._free.put_nowait(place.slot)

    async def _greet(self, websocket: Any) -> None:
        """Sends a client what is served, as openpi's server does."""
        await send_within(websocket, pack(self.about))

    async def _slot(self) -> int:
        """A free slot, or that of the connection that was quiet longest. UserError where all are at work."""
        if self._free.empty():
            taken = min((p for p in self._places if p.slot >= 0), key=lambda p: p.heard, default=None)
            if taken is not None and time.monotonic() - taken.heard > self.idle:
                taken.websocket.transport.abort()
        try:
            return await asyncio.wait_for(self._free.get(), self.patience)
        except TimeoutError:
            raise UserError(f"all {self.policy.slots} slots are taken; serve with more slots") from None

    async def _episodes(self, websocket: Any, place: ClientSlot) -> None:
        """Answers the observations of a connection; the slot that it takes is noted in `place`."""
        episode: int | None = None
        gate = self.client.gate()
        async for data in websocket:
            began = time.perf_counter()
            try:
                message = unpack(data)
                del data  # as large as the observation
                observation = self.client.read(message, gate)
                seed = None
                if place.slot < 0:
                    place.slot = await self._slot()
                place.heard = time.monotonic()
                if episode is None or message.get("reset") or message.get("episode", episode) != episode:
                    episode = int(message.get("episode", 0 if episode is None else episode + 1))
                    if episode < 0:
                        raise UserError(f"episode {episode}; number episodes from 0 on, or leave the number out")
                    seed = episode_seed(self.seed, observation.instruction, episode)
                ask = PendingRequest(place.slot, observation, seed, asyncio.get_running_loop().create_future())
                await self._asked.put(ask)
                actions, record = await ask.answer
            except Exception as error:
                # as openpi's server says it: a message of text, which its client raises; then the end
                await send_within(websocket, f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
                await websocket.close(1011, "see the message before")
                return
            place.heard = time.monotonic()
            spent = {"infer_ms": (time.perf_counter() - began) * 1e3}
            counted = {"total": record.total, "visual": list(record.visual), "flops": dict(record.flops)}
            await send_within(websocket, pack({"actions": actions, "server_timing": spent, "pruning": counted}))


async def _listening(opening: Any, host: str, port: int) -> Any:
    """The server, once its port is open. UserError for a port that is taken, or an address that is not here."""
    try:
        return await opening
    except OSError as error:
        raise UserError(
            f"cannot listen at host={host} port={port} ({error.strerror or error}); choose another port, or a host "
            "name of this machine"
        ) from None


async def send_within(websocket: Any, data: bytes | str) -> None:
    """Sends data to a client. Raises TimeoutError for one that does not read."""
    await asyncio.wait_for(websocket.send(data), SLOW)


def _watch(websocket: Any) -> None:
    """Lets the system find out that the other machine is gone; a client that is merely busy is not asked."""
    connection = websocket.transport.get_extra_info("socket")
    with suppress(OSError, AttributeError):  # of what a platform does not have
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
