"""vlaprune-serve against the published client of openpi: real sockets, several clients, errors in one line."""

import asyncio
import os
import queue
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from doubles import Reuser
from hydra import compose, initialize_config_dir
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as sync_connect

from vlaprune import cli, config
from vlaprune.errors import UserError
from vlaprune.methods.dense import Dense
from vlaprune.methods.fastv import FastV
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy, episode_seed
from vlaprune.pruner import Budget, Selection
from vlaprune.serve import Client, PendingRequest, Server, pack, unpack
from vlaprune.testing import scenes

CLIENT = Client(["main"], ["observation/image"], robot=None)


class Remembering(FastV):
    """Keeps fewer tokens with every picture that it has looked at."""

    def __init__(self):
        super().__init__(layer=2, keep=40)
        self.budget, self.past = Budget(40), []

    @property
    def looked(self):
        return len(self.past)

    def plan(self, info):
        return replace(super().plan(info), budget={})

    def reset(self):
        self.past = []

    def select(self, context):
        self.past.append(context.layer)
        return Selection.top(self.score(context), Budget(40 - len(self.past)), of=context.total)


class Counting(Remembering):
    """The same with a number."""

    def reset(self):
        self.past, self.count = [], 0

    @property
    def looked(self):
        return self.count

    def select(self, context):
        self.count += 1
        return Selection.top(self.score(context), Budget(40 - self.count), of=context.total)


def test_a_port_that_is_taken_is_named_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(Policy(Toy(), Dense), CLIENT, {"model": "toy"}, 3, 0.5)
        with pytest.raises(UserError, match=rf"cannot listen at host=127.0.0.1 port={port} .*choose another port"):
            asyncio.run(server.run("127.0.0.1", port))


@contextmanager
def served(policy, client=CLIENT, about=None, kind=Server, **options):
    """The port of a server at work in another thread."""
    ports: queue.Queue = queue.Queue()

    async def work():
        task = asyncio.create_task(
            kind(policy, client, about or {"model": "toy"}, 3, 0.5, **options).run("127.0.0.1", 0, ready)
        )
        await task

    def ready(port):
        ports.put((port, asyncio.get_running_loop(), asyncio.current_task()))

    def run():
        with suppress(asyncio.CancelledError):
            asyncio.run(work())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    port, loop, task = ports.get(timeout=10)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
        assert not thread.is_alive()


def message(frame, **more):
    state = frame.state
    return {"observation/image": frame.images["main"], "observation/state": state, "prompt": frame.instruction, **more}


def connect(port):
    return WebsocketClientPolicy("127.0.0.1", port)


def test_the_published_client_gets_what_the_policy_says():
    frames, policy = scenes(0, 0, 3), Policy(Toy(), Reuser)
    alone = Policy(Toy(), Reuser)
    alone.reset(0, episode_seed(3, frames[0].instruction, 0))
    with served(policy, about={"model": "toy", "method": "Reuser"}) as port:
        client = connect(port)
        assert client.get_server_metadata()["method"] == "Reuser" and client.get_server_metadata()["slots"] == 1
        for frame in frames:
            answer = client.infer(message(frame))
            assert np.array_equal(answer["actions"], alone.act({0: frame})[0]) and answer["actions"].shape == (4, 7)
            assert answer["server_timing"]["infer_ms"] > 0
            record = alone.drain(0)[-1]
            assert answer["pruning"] == {"total": 64, "visual": list(record.visual), "flops": dict(record.flops)}
    assert [r.visual[0] for r in alone.drain(0)] == [64, 32, 32]


def test_an_episode_begins_with_a_connection_a_reset_or_another_number():
    frame = scenes(0, 0, 1)[0]
    seeds, policy = [], Policy(Toy(), Reuser)
    begin = policy.reset
    policy.reset = lambda slot, seed: (seeds.append(seed), begin(slot, seed))
    with served(policy) as port:
        client, kept = connect(port), []
        for more in ({}, {}, {"reset": True}, {}, {"episode": 7}, {"episode": 7}):
            kept.append(client.infer(message(frame, **more))["pruning"]["visual"][0])
        assert kept == [64, 32, 64, 32, 64, 32]
        client._ws.close()
        assert connect(port).infer(message(frame))["pruning"]["visual"][0] == 64
    assert seeds == [episode_seed(3, frame.instruction, n) for n in (0, 1, 7, 0)]


def test_clients_side_by_side_have_slots_of_their_own_and_one_too_many_is_told():
    frames = [scenes(task, 1, 4) for task in (0, 1)]
    policy = Policy(Toy(), Reuser, slots=2)
    with served(policy) as port:
        clients = [connect(port), connect(port)]
        found = [[], []]

        def play(i):
            for frame in frames[i]:
                found[i].append(clients[i].infer(message(frame))["actions"])

        threads = [threading.Thread(target=play, args=(i,)) for i in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        with pytest.raises(RuntimeError, match="UserError: all 2 slots are taken; serve with more slots"):
            connect(port).infer(message(frames[0][0]))
        clients[0]._ws.close()
        assert connect(port).infer(message(frames[0][0]))["actions"].shape == (4, 7)
    for i in (0, 1):
        alone = Policy(Toy(), Reuser)
        alone.reset(0, 0)
        for frame, actions in zip(frames[i], found[i], strict=True):
            assert np.allclose(alone.act({0: frame})[0], actions, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"observation/image": None}, r"camera observation/image is None; a \[height, width, 3\] uint8 array is"),
        ({"observation/image": np.zeros((3, 8, 8), np.uint8)}, r"camera observation/image is \[3, 8, 8\] uint8; a"),
        ({"observation/image": np.zeros((2500, 2400, 3), np.uint8)}, "pictures of 18000000 bytes; at most"),
        ({"observation/state": np.array([np.nan] * 8)}, "state is not finite, number 0 is nan"),
        ({"observation/state": np.zeros((2, 8))}, "an array of numbers for eef_pos3_axisangle3_gripper2 is needed"),
        ({"observation/state": np.zeros(7)}, "state has 7 numbers; eef_pos3_axisangle3_gripper2 has 8"),
        ({"prompt": 3}, "instruction is int 3; a text is needed"),
        ({"prompt": "go " * 5000}, "instruction has 15000 characters; at most 2000 are allowed"),
        ({"episode": [1]}, "TypeError: int"),
    ],
)
def test_a_malformed_observation_is_answered_by_one_line(change, said):
    frame = scenes(0, 0, 1)[0]
    with served(Policy(Toy(), Dense)) as port, pytest.raises(RuntimeError, match=said) as caught:
        connect(port).infer(message(frame) | change)
    assert str(caught.value).count("\n") == 1  # openpi's client puts its own line in front


def test_missing_names_and_what_the_policy_raises_are_told_and_the_server_goes_on():
    frame = scenes(0, 0, 1)[0]
    with served(Policy(Toy(), Dense)) as port:
        with pytest.raises(RuntimeError, match=r"lacks \['observation/image'\]; it has"):
            connect(port).infer({k: v for k, v in message(frame).items() if "image" not in k})
        model = Toy()
        model.predict = lambda *_: 1 / 0
    with served(Policy(model, Dense)) as port:
        with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
            connect(port).infer(message(frame))
        del model.predict
        assert connect(port).infer(message(frame))["actions"].shape == (4, 7)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\xc1", "cannot be read"),
        (b"\x93\x01\x02\x03", "holds a list"),
        ("hello", "a message of text came"),
        (msgpack.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": (0,)}}), "object"),
        (msgpack.packb({"x": {b"__ndarray__": True, b"data": b"123", b"dtype": "<f8", b"shape": (1,)}}), "cannot be"),
    ],
)
def test_bytes_that_are_no_message_are_refused(data, said):
    with pytest.raises(ValueError, match=said):
        unpack(data)


def test_messages_are_those_of_openpi_both_ways():
    sent = {
        "a": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "b": np.float32(0.5),
        "c": [1, "x"],
        "d": {"e": np.zeros(0)},
    }
    for ours, theirs in ((pack(sent), msgpack_numpy.unpackb), (msgpack_numpy.packb(sent), unpack)):
        got = theirs(ours)
        assert np.array_equal(got["a"], sent["a"]) and got["a"].dtype == np.uint8 and got["b"] == np.float32(0.5)
        assert got["c"] == [1, "x"] and got["d"]["e"].shape == (0,)
    assert pack(sent) == msgpack_numpy.packb(sent)


def test_health_is_answered_over_plain_http():
    with served(Policy(Toy(), Dense)) as port:
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).read() == b"OK\n"


TOY = ["model=toy", "method=fastv", "bench.cameras=[main]", "bench.images=[observation/image]", "bench.robot=null"]


@contextmanager
def command(*options, **environment):
    """A running vlaprune-serve: its process, the line it printed, its port."""
    code = "import sys; from vlaprune import cli; cli.serve()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *TOY, "port=0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    try:
        line = process.stdout.readline()
        yield process, line, int(re.search(r":(\d+),", line)[1])
    finally:
        process.terminate()
        process.wait(10)


def test_the_command_serves_and_says_where():
    with command("execute=2") as (_, line, port):
        assert line.startswith("toy with FastV at ws://127.0.0.1:") and line.endswith(", 1 slots\n")
        assert connect(port).infer(message(scenes(0, 0, 1)[0]))["actions"].shape == (2, 7)


def test_attention_is_served_as_it_is_evaluated(monkeypatch):
    """Without cuDNN's kernel, which plans anew for every count of tokens."""
    seen = []

    async def run(self, host, port, ready):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())

    monkeypatch.setattr(Server, "run", run)
    monkeypatch.setattr(sys, "argv", ["vlaprune-serve", *TOY, "port=0"])
    cli.serve()
    assert seen == [False]


def test_who_has_no_token_or_comes_from_a_web_page_is_turned_away():
    frame = message(scenes(0, 0, 1)[0])
    with served(Policy(Toy(), Dense), token="secret", origins=["http://lab"]) as port:
        assert WebsocketClientPolicy("127.0.0.1", port, api_key="secret").infer(frame)["actions"].shape == (4, 7)
        for headers, origin, said in (
            ({}, None, 401),
            ({"Authorization": "Api-Key wrong"}, None, 401),
            ({"Authorization": "Bearer secret"}, "http://evil", 403),
        ):
            with pytest.raises(InvalidStatus) as caught:
                sync_connect(f"ws://127.0.0.1:{port}", additional_headers=headers, origin=origin).__enter__()
            assert caught.value.response.status_code == said
        with sync_connect(
            f"ws://127.0.0.1:{port}", additional_headers={"Authorization": "Bearer secret"}, origin="http://lab"
        ) as page:
            assert unpack(page.recv())["model"] == "toy"


def test_a_mistake_in_a_packed_call_is_its_own_clients():
    """One client's picture cut off the three others that shared its call."""
    frames = [scenes(task % 2, task, 1)[0] for task in range(4)]
    model = Toy()
    predict, packed, started = model.predict, [], threading.Event()

    def picky(observations, sessions):
        packed.append(len(observations))
        if not started.is_set():  # the others gather behind the first call
            started.set()
            time.sleep(0.3)
        if any(o.instruction == "fall" for o in observations):
            raise RuntimeError("cannot fall")
        return predict(observations, sessions)

    model.predict = picky
    found, errors = {}, []

    def ask(port, i, more):
        try:
            found[i] = connect(port).infer(message(frames[i]) | more)["actions"]
        except RuntimeError as error:
            errors.append(str(error))

    with served(Policy(model, Dense, slots=4)) as port:
        threads = [threading.Thread(target=ask, args=(port, i, {"prompt": "fall"} if i == 2 else {})) for i in range(4)]
        threads[0].start()
        started.wait(5)
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert len(errors) == 1 and "RuntimeError: cannot fall" in errors[0] and max(packed) > 1
    assert sorted(found) == [0, 1, 3]
    for i, actions in found.items():
        alone = Policy(Toy(), Dense)
        alone.reset(0, episode_seed(3, frames[i].instruction, 0))
        assert np.allclose(alone.act({0: frames[i]})[0], actions, atol=1e-6)


def test_a_quiet_client_keeps_its_slot_until_another_one_waits():
    frame = message(scenes(0, 0, 1)[0])
    with served(Policy(Toy(), Dense), idle=0.2) as port:
        quiet = connect(port)
        quiet.infer(frame)
        time.sleep(0.4)
        quiet.infer(frame)  # nobody waited
        with pytest.raises(RuntimeError, match="all 1 slots are taken"):
            connect(port).infer(frame)
        time.sleep(0.4)
        assert connect(port).infer(frame)["actions"].shape == (4, 7)
        with pytest.raises(ConnectionClosed):
            quiet.infer(frame)


def test_more_connections_than_two_a_slot_are_turned_away():
    with served(Policy(Toy(), Dense)) as port:
        held = [connect(port) for _ in range(10)]
        with pytest.raises(InvalidStatus, match="503"):
            sync_connect(f"ws://127.0.0.1:{port}").__enter__()
        for client in held:
            client._ws.close()


EMPTY = b"\xdd" + (2**23).to_bytes(4, "big") + b"\x80" * 2**23  # 8 MiB of empty maps
NESTED = b"\x91" * 5000 + b"\x80"


def misbehave(port, kind, frame):
    """One bad client; whatever happens to it is right, as long as it is not served nonsense."""
    fine = msgpack_numpy.packb(frame)
    sent = {
        "picture": msgpack_numpy.packb(frame | {"observation/image": np.zeros((8, 8, 4), np.uint8)}),
        "prompt": msgpack_numpy.packb(frame | {"prompt": "word " * 200_000}),
        "maps": EMPTY,
        "nested": NESTED,
        "large": bytes(24 * 2**20),
        "text": "hello",
        "objects": msgpack.packb({"x": {b"__ndarray__": True, b"data": b"", b"dtype": "|O", b"shape": (0,)}}),
        "state": msgpack_numpy.packb(frame | {"observation/state": np.full(8, np.inf)}),
    }
    if kind == "garbage":
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(os.urandom(4096))
        return
    with suppress(Exception), sync_connect(f"ws://127.0.0.1:{port}", max_size=None) as client:
        if kind == "leaver":  # asks, and is gone before the answer
            client.send(fine)
            client.socket.close()
        elif kind == "flood":  # asks and asks, and reads nothing
            for _ in range(50):
                client.send(fine)
        elif kind != "silent":
            client.send(sent[kind])
            client.recv()
            assert isinstance(client.recv(), str)
        else:
            time.sleep(0.5)


BAD = (
    "picture",
    "prompt",
    "maps",
    "nested",
    "large",
    "text",
    "objects",
    "state",
    "garbage",
    "leaver",
    "flood",
    "silent",
)


def memory(pid, name):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_hundred_clients_of_which_twenty_misbehave():
    """The good ones get what a quiet server answers. Short in CI; `make torture` sends 200 frames each."""
    good, count = 80, 200 if os.environ.get("TORTURE") == "long" else 2
    looks = [scenes(i % 2, i, count) for i in range(good)]
    found = [[] for _ in range(good)]

    def play(port, i):
        with sync_connect(f"ws://127.0.0.1:{port}", compression=None) as client:
            client.recv()
            for frame in looks[i]:
                client.send(msgpack_numpy.packb(message(frame)))
                found[i].append(msgpack_numpy.unpackb(client.recv())["actions"])

    with command("slots=110") as (process, _, port):
        idle = memory(process.pid, "VmRSS")
        kinds = [BAD[i % len(BAD)] for i in range(20)]
        threads = [threading.Thread(target=misbehave, args=(port, k, message(looks[0][0]))) for k in kinds]
        workers = [threading.Thread(target=play, args=(port, i)) for i in range(good)]
        for thread in [t for pair in zip_longest(workers, threads) for t in pair if t]:
            thread.start()
        for thread in workers + threads:
            thread.join(300)
        used = memory(process.pid, "VmHWM") - idle
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5).read() == b"OK\n"
        process.terminate()
        said = process.stdout.read()
    print(f"{used:.0f} MB above idle")
    assert used < 500, used
    assert "Traceback" not in said and len(said.splitlines()) < 3, said
    policy = Policy(Toy(), FastV)
    for frames, answers in zip(looks, found, strict=True):
        policy.reset(0, episode_seed(7, frames[0].instruction, 0))
        assert len(answers) == count
        for frame, actions in zip(frames, answers, strict=True):
            assert np.allclose(policy.act({0: frame})[0], actions, atol=1e-5)


def test_a_model_that_wants_other_cameras_is_refused():
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):
        cfg = compose("serve", [*TOY, "bench.cameras=[primary]"])
        with pytest.raises(UserError, match=r"toy and bench client do not fit: cameras \('main',\) vs \('primary',\)"):
            config.build(cfg, "client")
        cfg = compose("serve")
        assert (
            cfg.bench.cameras == ["primary", "wrist"]
            and config.control(cfg, config.make("client", cfg.bench)).execute == 10
        )
    with pytest.raises(ValueError, match=r"cameras \['a', 'b'\] are called \['x'\]; give each one a name"):
        Client(["a", "b"], ["x"])


def test_a_bench_by_name_is_answered_in_one_line():
    code = "from vlaprune import cli; cli.serve()"
    done = subprocess.run([sys.executable, "-c", code, "model=toy", "bench=toy"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: bench=toy: this command chooses no bench; it takes bench.SETTING=VALUE, see --help"
    ]


@pytest.mark.parametrize("make", [Remembering, Counting])
def test_a_packed_call_that_fails_leaves_the_methods_where_they_were(make):
    """A neighbour's fault makes the call anew; a method must not see the same picture twice."""
    clean, spoiled = (Server(Policy(Toy(), make, 2), CLIENT, {"model": "toy"}, 3, 0.5) for _ in range(2))
    seen = scenes(0, 1, 5)
    for number, observation in enumerate(seen):
        alone = clean._act([PendingRequest(0, observation, 1 if number == 0 else None, None)])
        bad = replace(observation, state=None)
        asks = [PendingRequest(s, o, 1 if number == 0 else None, None) for s, o in ((0, observation), (1, bad))]
        together = spoiled._act(asks)
        assert isinstance(together[1], Exception) and together[0][1].visual == alone[0][1].visual
    assert clean.policy.sessions[0].pruner.looked == spoiled.policy.sessions[0].pruner.looked == len(seen)
