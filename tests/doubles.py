"""Stand-ins that tests share: pruners that do what they are told, worlds and sinks that misbehave."""

import json
import tempfile
import time
import zlib
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vlaprune.bench.toy import Toy as ToyBench
from vlaprune.control import Control
from vlaprune.evaluation.recorder import Recorder
from vlaprune.evaluation.rollout import RolloutConfig, Shard, rollout
from vlaprune.methods.dense import Dense
from vlaprune.methods.ties.calibration import fingerprint
from vlaprune.models.suffix import gather_reads, left_by_prompt, record_action, record_passes, recorded_layers
from vlaprune.models.toy import Toy
from vlaprune.nn.extend import Suffix
from vlaprune.nn.weights import StateDict, llama_weight_map, load_weights
from vlaprune.policy import Policy
from vlaprune.pruner import Calibrated, Plan, Pruner, Selection
from vlaprune.records import Header, read

SIGMA = np.linspace(-0.2, 0.4, 25).tolist()  # values of tau
CALIBRATIONS = Path(tempfile.mkdtemp())


def filled(decoder, theirs, prefix="", unused=("embed_tokens.",)):
    """A decoder with the weights of a transformers model, of which nothing is left out but `unused`."""
    where = llama_weight_map(decoder.config, prefix, "")
    load_weights(decoder, StateDict(theirs.state_dict()), where, unused, dtype=torch.float32)
    return decoder


def calibration(estimator, info, total, taus=SIGMA):
    """A calibration file for TIES of these values of tau, for a model with `total` visual tokens."""
    said = json.dumps(fingerprint(estimator, info) | {"visual_tokens": total, "tau": list(taus)})
    path = CALIBRATIONS / f"{zlib.crc32(said.encode())}.json"
    path.write_text(said)
    return str(path)


def calibrated(make, info, total):
    """`make`; a method that waits for a calibration gets one of SIGMA."""

    def ready():
        method = make()
        if isinstance(method, Calibrated):
            method.calibration = calibration(method.estimator, info, total)
        return method

    return ready


def signed(line):
    """A journal's line under a right checksum, whatever numbers it holds; `encode` writes none that is no number."""
    body = json.dumps(line)[:-1].encode()
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body + b"}")


class Scripted(Pruner):
    """Answers `choose(context)`, remembers the traces of the calls it saw."""

    def __init__(self, plan, choose=lambda context: None):
        self._plan, self.choose, self.traces = plan, choose, []

    def plan(self, info):
        return self._plan

    def select(self, context):
        return self.choose(context)

    def observe(self, trace):
        self.traces.append(trace)


class Blind(Pruner):
    """Keeps one patch, the first, which hardly ever shows a light."""

    def plan(self, info):
        return Plan((0,))

    def select(self, context):
        return Selection(torch.zeros(1, dtype=torch.long))


class Reuser(Pruner):
    """Reuses every second token as soon as it can, from `layer` on; keeps no state of its own."""

    def __init__(self, layer=0):
        self.layer = layer

    def plan(self, info):
        return Plan((self.layer,), reuses=True)

    def select(self, context):
        old = context.reusable & (context.alive % 2 == 0)
        return Selection((~old).nonzero().flatten(), old.nonzero().flatten())


class Bench(ToyBench):
    """The toy world with `trouble(task, episode, steps)` called before every step."""

    def __init__(self, trouble=lambda task, episode, steps: None, limit=12, stop=True, **world):
        super().__init__(**world)
        self.trouble, self.opened, self._limit, self._stop = trouble, 0, limit, stop

    def tasks(self):
        return [replace(t, max_steps=self._limit, terminate_on_success=self._stop) for t in super().tasks()]

    @contextmanager
    def open(self, task):
        self.opened += 1
        with super().open(task) as world:
            yield _Troubled(world, lambda *where: self.trouble(task.name, *where))


class Slow(Bench):
    """A world in which a step takes `seconds`."""

    def __init__(self, seconds=0.05, **world):
        super().__init__(lambda *_: time.sleep(seconds), **world)


class Flawed(Bench):
    """A world that raises, or is stopped by Ctrl-C, in the second episode of a task."""

    def __init__(self, stopped=False, **world):
        def trouble(task, episode, steps):
            if episode == 1:
                raise KeyboardInterrupt if stopped else RuntimeError("the simulator is gone")

        super().__init__(trouble, **world)


class _Troubled:
    def __init__(self, world, trouble):
        self._world, self._trouble = world, trouble

    def reset(self, episode):
        self._episode, self._steps = episode, 0
        self._world.reset(episode)

    def observe(self):
        return self._world.observe()

    def step(self, action):
        self._trouble(self._episode, self._steps)
        self._steps += 1
        return self._world.step(action)


def play(
    folder,
    bench=None,
    make=Dense,
    episodes=3,
    slots=1,
    execute=4,
    sinks=(),
    shard=None,
    time_limit=0.0,
    model=None,
    say=print,
    seed=7,
    watchers=(),
    recorder=Recorder,
    deterministic=False,
    max_batch=None,
):
    """Runs the toy on two tasks as vlaprune-eval does; gives the run as it then stands in the folder."""
    bench, shard = bench or Bench(), shard or Shard()
    tasks = {t.name: episodes for t in bench.tasks()}
    identity = {
        "model": {"name": "toy"},
        "seed": seed,
        "execute": execute,
        "method": {"name": make.__name__.lower()},
        "bench": {"name": "toy", "margin": 0.05, "protocol": "vlaprune"},
    }
    recorder = recorder(folder, Header(identity, {"shard": shard.suffix}, tasks), sinks, shard.suffix, say)
    try:
        policy = Policy(model or Toy(), make, slots, Control(execute=execute))
        rules = RolloutConfig(seed, time_limit, deterministic=deterministic, max_batch=max_batch)
        rollout(policy, bench, recorder, shard, rules, watchers)
    finally:
        recorder.close()
    return read(folder)


def outcomes(run):
    """What a resumed, sharded or packed run must have in common with an uninterrupted one."""
    return {
        key: (r.success, r.steps, [(c.rows, c.columns, c.visual, c.flops) for c in r.calls])
        for key, r in run.episodes.items()
    }


def same(a, b, atol=1e-5):
    """Whether two tensors are close, with the largest difference in the message."""
    assert a.shape == b.shape, (a.shape, b.shape)
    assert torch.allclose(a, b, atol=atol), (a - b).abs().max()


def decoded(decoder, call, rows):
    """Final rows [n, d] of rows [n, d] behind the prompt of a call, one pass each."""
    prompt, lengths = left_by_prompt([call])
    suffix = Suffix(decoder.blocks, prompt, lengths, len(rows))
    out, queries = [], []
    for i, row in enumerate(rows):
        x, each = suffix.extend(row[None], i)
        out.append(decoder.norm(x))
        queries.append(each)
    layers = recorded_layers([call], decoder.config)
    record_passes([call], len(rows))
    record_action([call], layers, gather_reads(queries, layers, suffix))
    return torch.cat(out)
