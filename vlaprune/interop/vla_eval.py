"""The messages of vla-eval, and a pruned policy as its model server: `vlaprune serve protocol=vla_eval`.

The messages are those of vla-eval 0.8.0 (vla_eval/protocol): msgpack dictionaries with `type`, `payload`, `seq` and
`timestamp`; arrays and pictures (raw, PNG, JPEG) as dictionaries of their bytes. An observation is answered by one
action: the actions of a call are sent one by one, and the model is asked again when they are used up, as vla-eval's own
servers do with a chunk. `episode_start` begins an episode; the number that it gives (`episode_idx`), or else its number
among those of the same task, fixes the noise. The greeting declares conventions in vla-eval's words.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlaprune.benchmark import Interface
from vlaprune.errors import UserError
from vlaprune.policy import episode_seed
from vlaprune.serve import Client, ClientSlot, Message, PendingRequest, Server, send_within, unpack

VERSION, PROTOCOL = "0.8.0", 1  # version of vla-eval whose messages these are
SIDE = 4096  # largest side of a picture in pixels
# names of conventions in vla-eval (specs.py) -> in benchmark.Interface; others have no counterpart
FRAMES = {"delta_xyz": "delta", "absolute_xyz": "absolute"}
ROTATIONS = {"axis_angle": "axis_angle", "euler_xyz": "euler_xyz", "quaternion_xyzw": "quat_xyzw"}
GRIPPERS = {"binary_close_positive": "close_positive", "binary_close_negative": "open_positive"}
PICTURE, LANGUAGE = "rgb_hwc_uint8", "language"


def decoded(value: Any) -> Any:
    """A payload with arrays in place of their encodings. UserError for a damaged or too large picture."""
    if isinstance(value, list):
        return [decoded(v) for v in value]
    if not isinstance(value, Mapping):
        return value
    if value.get("__image__") and value.get("format") != "raw":
        return _picture(value["data"])
    if value.get("__ndarray__") or value.get("__image__"):
        kind = np.dtype(value["dtype"])
        if kind.kind not in "biuf":
            raise UserError(f"arrays of {kind} are not accepted; send numbers")
        return np.frombuffer(value["data"], kind).reshape(value["shape"]).copy()
    return {key: decoded(v) for key, v in value.items()}


def _picture(data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
        if max(image.size) > SIDE:
            raise UserError(f"a picture has {image.size} pixels; send at most {SIDE} a side")
        return np.array(image.convert("RGB"))
    except OSError as error:
        raise UserError(f"a picture cannot be read ({error}); send PNG, JPEG or raw") from None


def flat(payload: Mapping[str, Any], prefix: str = "") -> Message:
    """The payload without nesting, names joined by slashes: images/agentview."""
    out: Message = {}
    for key, value in payload.items():
        out |= flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def packed(kind: str, payload: Mapping[str, Any], seq: int) -> bytes:
    """One message as bytes."""
    import msgpack

    return msgpack.packb({"type": kind, "payload": dict(payload), "seq": seq, "timestamp": time.time()}, default=_array)


def _array(value: object) -> object:
    if isinstance(value, np.ndarray):
        return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
    raise UserError(f"{type(value).__name__} cannot be sent")


def declared(robot: Interface, client: Client) -> Message:
    """The conventions in a server's greeting: actions as `robot` takes them, observations as `client` sends them."""

    def spec(kind: str, dims: int, called: str) -> Message:
        return {"name": kind, "dims": dims, "format": called}

    sizes = {"axis_angle": 3, "euler_xyz": 3, "quat_xyzw": 4}
    parts = (
        ("position", 3, {v: k for k, v in FRAMES.items()}.get(robot.frame)),
        ("rotation", sizes.get(robot.rotation, 0), {v: k for k, v in ROTATIONS.items()}.get(robot.rotation)),
        ("gripper", 1, {v: k for k, v in GRIPPERS.items()}.get(robot.gripper)),
    )
    seen = {name.rpartition("/")[2]: spec("image", 0, PICTURE) for name in client.images}
    seen["language"] = spec("language", 0, LANGUAGE)
    if client.state is not None and client.layout is not None:
        seen["state"] = spec("state", client.interface.state_size, client.layout)
    acts = {name: spec(name, dims, called) for name, dims, called in parts if called is not None}
    return {"action_spec": acts, "observation_spec": seen}


class VlaEvalServer(Server):
    """`vlaprune.serve.Server` with the messages of vla-eval; slots and checks are the same."""

    async def _greet(self, websocket: Any) -> None:
        """Sends nothing: vla-eval's client speaks first."""

    async def _episodes(self, websocket: Any, place: ClientSlot) -> None:
        """Answers the messages of one connection. Errors are sent as `error` messages; the connection stays open."""
        gate, left, seen, task = self.client.gate(), deque[np.ndarray](), Counter[str](), ""
        begins, number = False, None
        async for data in websocket:
            seq = -1
            try:
                message = unpack(data)
                seq, kind, payload = int(message["seq"]), message["type"], message.get("payload") or {}
                place.heard = time.monotonic()
                if kind == "hello":
                    said = {"harness_version": VERSION, "protocol_version": PROTOCOL, "capabilities": {}}
                    said |= {"model_server": "vlaprune", **declared(self.client.interface, self.client), **self.about}
                    await send_within(websocket, packed("hello", said, seq))
                elif kind == "episode_start":
                    told, begins = payload.get("task") or {}, True
                    task, number = str(told.get("name", "")), told.get("episode_idx")
                    left.clear()
                elif kind == "observation":
                    observation = self.client.read(flat(decoded(payload)), gate)
                    if begins or not left:
                        if place.slot < 0:
                            place.slot, begins = await self._slot(), True
                        seed = None
                        if begins:
                            which = seen[task] if number is None else int(number)
                            seed = episode_seed(self.seed, task or observation.instruction, which)
                            seen[task] += 1
                        ask = PendingRequest(place.slot, observation, seed, asyncio.get_running_loop().create_future())
                        await self._asked.put(ask)
                        actions, _ = await ask.answer
                        begins = False
                        left.extend(actions)
                    await send_within(websocket, packed("action", {"actions": left.popleft()}, seq))
            except Exception as error:
                text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
                await send_within(websocket, packed("error", {"error": text}, seq))
