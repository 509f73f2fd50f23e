"""What a record says of the time of its call: how many sequences shared it, and whether it was a steady one."""

from dataclasses import replace

import pytest

from vlaprune.methods.dense import Dense
from vlaprune.methods.random import Random
from vlaprune.models.backends import with_backend
from vlaprune.models.toy import Toy
from vlaprune.nn.backend import Backend
from vlaprune.policy import Policy
from vlaprune.records import EpisodeRecord, episode_row
from vlaprune.testing import SimulatedGraphs, scenes, with_segments


def told(model, make=Dense, calls=3, words=""):
    policy, frame = Policy(model, make), scenes(0, 1, 1)[0]
    for n in range(calls):
        if words and n == calls - 1:
            frame = replace(frame, instruction=f"{frame.instruction} {words}")
        policy.act({0: frame})
    return [r.cold for r in policy.drain(0)]


def test_only_the_first_of_equal_calls_is_cold():
    assert told(Toy()) == ["allocate", "", ""]
    assert told(with_segments(Toy(), SimulatedGraphs())) == ["capture", "", ""]
    assert told(with_backend(Toy(), "compile", "eager"))[0] == "compile"


def test_a_call_of_more_rows_than_any_before_is_cold_again():
    assert told(Toy(), words="slowly and gently") == ["allocate", "", "allocate"]


def test_a_new_graph_in_a_later_call_makes_it_cold():
    class Late(Backend):
        def run(self, key, segment, *inputs):
            self.captured += self.entered == 5
            return super().run(key, segment, *inputs)

    marks = told(with_segments(Toy(), Late()), lambda: Random(keep=0.5), 6)
    assert marks.count("capture") == 1 and marks[0] == "allocate"


def test_packed_calls_are_timed_and_say_so():
    policy = Policy(Toy(), Dense, slots=2)
    frame = scenes(0, 1, 1)[0]
    for group in ((0, 1), (0, 1), (0,), (0,)):
        policy.act(dict.fromkeys(group, frame))
    first, second = policy.drain(0), policy.drain(1)
    assert [r.packed for r in first] == [2, 2, 1, 1] and [r.packed for r in second] == [2, 2]
    assert [r.cold for r in first] == ["allocate", "", "allocate", ""]
    assert all(sum(r.ms.values()) > 0 for r in first) and first[1].ms == second[1].ms
    alone = episode_row(EpisodeRecord("reach", 0, True, 4, first))
    assert alone["ms"] == pytest.approx(sum(first[3].ms.values()))
    assert episode_row(EpisodeRecord("reach", 0, True, 2, second))["ms"] == ""
