"""vla-eval's messages: a client that speaks them gets the actions that the policy gives here."""

import time

import msgpack
import numpy as np
import pytest
from test_serve import served
from websockets.sync.client import connect

from vlaprune.bench.toy import Toy as Lights
from vlaprune.interop.vla_eval import VlaEvalServer, decoded
from vlaprune.methods.fastv import FastV
from vlaprune.models.toy import Toy
from vlaprune.policy import Policy, episode_seed
from vlaprune.serve import Client

CLIENT = Client(["main"], ["images/main"], state="state", prompt="task_description", robot=None)


def array(value):
    return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}


class Speaker:
    """What vla-eval's Connection sends and expects."""

    def __init__(self, port):
        self.socket, self.seq = connect(f"ws://127.0.0.1:{port}"), 0

    def say(self, kind, payload, answer=True):
        self.seq += 1
        self.socket.send(msgpack.packb({"type": kind, "payload": payload, "seq": self.seq, "timestamp": time.time()}))
        if not answer:
            return None
        said = msgpack.unpackb(self.socket.recv())
        assert said["seq"] == self.seq
        return said["type"], decoded(said["payload"])

    def act(self, seen, **more):
        images = {name: array(image) for name, image in seen.images.items()}
        payload = {"images": images, "state": array(seen.state), "task_description": seen.instruction} | more
        return self.say("observation", payload)


def test_episodes_end_as_they_do_without_the_wire():
    bench = Lights()
    with served(Policy(Toy(), FastV), CLIENT, kind=VlaEvalServer) as port:
        speaker = Speaker(port)
        kind, said = speaker.say("hello", {"harness_version": "0.8.0", "protocol_version": 1})
        assert kind == "hello" and said["protocol_version"] == 1 and said["model"] == "toy"
        for task in bench.tasks():
            policy = Policy(Toy(), FastV)
            with bench.open(task) as far, bench.open(task) as near:
                for episode in range(2):
                    policy.reset(0, episode_seed(3, task.name, episode))
                    speaker.say("episode_start", {"task": {"name": task.name}}, answer=False)
                    far.reset(episode)
                    near.reset(episode)
                    actions = []
                    for step in range(6):
                        actions = actions or list(policy.act({0: near.observe()})[0])
                        own = actions.pop(0)
                        kind, said = speaker.act(far.observe())
                        assert kind == "action"
                        np.testing.assert_array_equal(said["actions"], own)
                        assert far.step(said["actions"]) == near.step(own), (task.name, episode, step)
                    speaker.say("episode_end", {"metrics": {"success": True}}, answer=False)


def test_what_is_wrong_is_said_and_the_connection_stays():
    bench = Lights()
    (task, _) = bench.tasks()
    with served(Policy(Toy(), FastV), CLIENT, kind=VlaEvalServer) as port, bench.open(task) as env:
        env.reset(0)
        speaker = Speaker(port)
        kind, said = speaker.say("observation", {"images": {}, "state": array(np.zeros(8))})
        assert kind == "error" and "images/main" in said["error"]
        kind, _ = speaker.act(env.observe())
        assert kind == "action"


def test_pictures_come_as_png_and_other_bytes_are_refused():
    import io

    from PIL import Image

    picture, data = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8), io.BytesIO()
    Image.fromarray(picture).save(data, format="PNG")
    coded = {"__image__": True, "format": "png", "data": data.getvalue(), "shape": [8, 8, 3]}
    np.testing.assert_array_equal(decoded({"images": {"a": coded}})["images"]["a"], picture)
    with pytest.raises(ValueError, match="cannot be read"):
        decoded(coded | {"data": b"no picture"})
    with pytest.raises(ValueError, match="not accepted"):
        decoded({"__ndarray__": True, "dtype": "O", "data": b"", "shape": [0]})


def test_the_number_of_an_episode_fixes_its_noise_where_it_is_told(monkeypatch):
    seeds, policy = [], Policy(Toy(), FastV)
    begin = policy.reset
    monkeypatch.setattr(policy, "reset", lambda slot, seed: (seeds.append(seed), begin(slot, seed)))
    (task, _) = Lights().tasks()
    with served(policy, CLIENT, kind=VlaEvalServer) as port, Lights().open(task) as env:
        env.reset(0)
        speaker = Speaker(port)
        for told in ({"episode_idx": 7}, {}, {"episode_idx": 3}):
            speaker.say("episode_start", {"task": {"name": task.name, **told}}, answer=False)
            assert speaker.act(env.observe())[0] == "action"
    assert seeds == [episode_seed(3, task.name, n) for n in (7, 1, 3)]
