"""vlaprune-serve against the published client of openpi: real sockets, several clients, errors in one line."""

import asyncio
import queue
import re
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager, suppress

import msgpack
import numpy as np
import pytest
from doubles import Reuser
from hydra import compose, initialize_config_dir
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy

from vlaprune import config
from vlaprune.methods.dense import Dense
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy, episode_seed
from vlaprune.serve import Client, Server, pack, unpack
from vlaprune.testing import scenes

CLIENT = Client(["main"], ["observation/image"], robot=None)


@contextmanager
def served(policy, client=CLIENT, about=None):
    """The port of a server at work in another thread."""
    ports: queue.Queue = queue.Queue()

    async def work():
        task = asyncio.create_task(Server(policy, client, about or {"model": "toy"}, 3, 0.5).run("127.0.0.1", 0, ready))
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
        with pytest.raises(RuntimeError, match="RuntimeError: all 2 slots are taken; serve with more slots"):
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
        ({"observation/image": None}, r"observation/image is NoneType; send \[h, w, 3\] uint8"),
        ({"observation/image": np.zeros((3, 8, 8), np.uint8)}, r"observation/image is \(3, 8, 8\) uint8; send"),
        ({"observation/state": np.array([np.nan] * 8)}, "observation/state is float64 .* send finite numbers"),
        ({"observation/state": np.zeros((2, 8))}, "send finite numbers in one row"),
        ({"prompt": 3}, "prompt is int; send the instruction as text"),
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


def test_the_command_serves_and_says_where():
    code = "import sys; from vlaprune import cli; cli.serve()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *TOY, "port=0", "execute=2"], stdout=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("toy with FastV at ws://127.0.0.1:") and line.endswith(", 1 slots\n")
        client = connect(int(re.search(r":(\d+),", line)[1]))
        assert client.infer(message(scenes(0, 0, 1)[0]))["actions"].shape == (2, 7)
    finally:
        process.terminate()
        process.wait(10)


def test_a_model_that_wants_other_cameras_is_refused():
    config.prepare()
    with initialize_config_dir(config.config_path(), version_base="1.3"):
        cfg = compose("serve", [*TOY, "bench.cameras=[primary]"])
        with pytest.raises(TypeError, match=r"toy and bench client do not fit: cameras \('main',\) vs \('primary',\)"):
            config.build(cfg, "client")
        cfg = compose("serve")
        assert (
            cfg.bench.cameras == ["primary", "wrist"]
            and config.control(cfg, config.make("client", cfg.bench)).execute == 10
        )
    with pytest.raises(ValueError, match=r"cameras \['a', 'b'\] are called \['x'\]; give each one a name"):
        Client(["a", "b"], ["x"])
