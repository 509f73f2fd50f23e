"""Who runs what, and how long a packed call waits: pure, with a clock of its own."""

import itertools

import pytest

from vlaprune.evaluation.schedule import Pace, Queue

TASKS = ("a", "b", "c")


def keys(count, tasks=TASKS):
    return [(t, e) for t in tasks for e in range(count)]


def test_every_episode_is_handed_out_once():
    queue, slots, out = Queue(keys(5)), {0: None, 1: None}, []
    for slot in itertools.cycle(slots):
        key = queue.take(slots[slot], [t for t in slots.values() if t])
        if key is None:
            break
        slots[slot] = key[0]
        out.append(key)
    assert sorted(out) == keys(5) and not queue


def test_a_slot_stays_with_the_simulator_it_has_open():
    queue = Queue(keys(3))
    assert queue.take("b") == ("b", 0) and queue.take("b", ["a", "b"]) == ("b", 1)


def test_free_slots_spread_over_the_tasks_then_help_where_most_is_left():
    queue = Queue([*keys(2), *[("a", 2), ("a", 3)]])
    at = []
    for _ in range(4):
        at.append(queue.take(None, at)[0])
    assert at == ["a", "b", "c", "a"]


def test_one_slot_goes_task_by_task_in_order():
    queue, task, out = Queue(keys(2)), None, []
    while (key := queue.take(task, [task] if task else [])) is not None:
        task = key[0]
        out.append(key)
    assert out == keys(2)


def test_in_order_means_in_order():
    queue = Queue(keys(2), ordered=True)
    assert [queue.take("c", ["a", "b"]) for _ in range(6)] == keys(2)


@pytest.mark.parametrize("ordered", [False, True])
def test_what_raised_comes_once_more_last_or_where_order_counts_next(ordered):
    """A rule that stops a run looks at episodes in their order: one that waits to the end would switch it off."""
    queue = Queue(keys(2, ("a",)), ordered)
    first = queue.take("a")
    assert queue.raised(first)
    assert [queue.take("a"), queue.take("a")] == ([first, ("a", 1)] if ordered else [("a", 1), first])
    assert not queue.raised(first) and queue.take("a") is None


def measured(fixed, each, chunk, sizes=(1, 2, 4, 8) * 10):
    pace = Pace()
    for n in sizes:
        pace.called(n, fixed + each * n)
        pace.simulated(chunk)
    return pace


def test_the_part_of_a_call_that_does_not_grow_is_found():
    assert measured(0.03, 0.002, 0.1).fixed == pytest.approx(0.03)
    assert measured(0.0, 0.02, 0.1).fixed == pytest.approx(0.0, abs=1e-9)
    assert measured(0.03, 0.0, 0.1, sizes=(4,) * 20).fixed == 0.0  # one size tells nothing


def test_a_call_waits_only_for_one_who_comes_soon_and_where_that_saves_something():
    saves, linear = measured(0.03, 0.0, 0.1), measured(0.0, 0.03, 0.1)
    assert 0.005 <= saves.wait(1, [0.095]) <= 0.03
    assert saves.wait(1, [0.02]) == 0.0  # too far away
    assert saves.wait(8, [0.095]) == 0.0  # too many would be held up
    assert linear.wait(1, [0.099]) == 0.0  # a call of two costs as much as two
    assert saves.wait(1, []) == 0.0 and saves.wait(0, [0.095]) == 0.0 and Pace().wait(1, [0.0]) == 0.0


def simulate(slots, chunk, call, patient):
    """Seconds a chunk takes on average in a run of `slots` worlds, and how busy the device is; an exact clock."""
    pace, now, busy, done = Pace(), 0.0, 0.0, 0
    until = {slot: chunk * (1 + 0.3 * slot / slots) for slot in range(slots)}
    ready = []
    while done < 60 * slots:
        for slot in [s for s, t in until.items() if t <= now]:
            del until[slot]
            ready.append(slot)
            pace.simulated(chunk)
        wait = pace.wait(len(ready), [now - (t - chunk) for t in until.values()]) if patient else 0.0
        if not ready or (until and wait and min(until.values()) <= now + wait):
            now = min(until.values())
            continue
        now, busy = now + wait + call, busy + call
        pace.called(len(ready), call)
        done += len(ready)
        until |= {slot: now + chunk * (0.9 + 0.2 * ((7 * slot + done) % 11) / 11) for slot in ready}
        ready = []
    return now / done, busy / now


@pytest.mark.parametrize(("slots", "faster", "busy"), [(8, 7, 0.0), (14, 11, 0.0), (28, 20, 0.9)])
def test_waiting_costs_no_speed(slots, faster, busy):
    """LIBERO's times: 8 steps of 12 ms and a look of 60 ms, a call of 30 ms whatever its size."""
    alone, _ = simulate(1, 0.156, 0.03, patient=True)
    took, share = simulate(slots, 0.156, 0.03, patient=True)
    greedy, _ = simulate(slots, 0.156, 0.03, patient=False)
    assert alone / took >= faster and share >= busy
    assert took <= 1.02 * greedy
