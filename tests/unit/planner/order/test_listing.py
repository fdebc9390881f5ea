"""Execution orders of given choices: by hand, and legal for random graphs."""

from dataclasses import replace

import numpy as np
import pytest
from order_graphs import graph_of, machine, random_graph, sequential_optimum

from strata.core.errors import VerifyError
from strata.planner.devices.result import Slot, charges, totals
from strata.planner.order import list_schedule, sequential_order, validate_order
from strata.planner.order.tasks import instance_of, moves_of

TWO = [((), {0: 3.0}), ((0,), {1: 2.0}), ((0,), {0: 4.0}), ((1, 2), {0: 1.0})]
MOVES = {0: {(0, 1): 2.0}, 1: {(1, 0): 1.0}}


def two_devices(link=""):
    """0 on d0; then 1 on d1, its weight and its input moved there, beside 2 on d0; then 3 on d0."""
    return graph_of(machine(2), TWO, MOVES, link=link, weights={1: {1: 1.0}})


def makespan(slots):
    return max(s.end_s for s in slots)


def by_work(slots):
    return {s.work: (s.place, s.begin_s, s.end_s) for s in slots if s.work is not None}


def moves(slots):
    return {(s.value, s.place): (s.begin_s, s.end_s) for s in slots if s.work is None}


def test_two_devices_by_hand():
    slots = list_schedule(two_devices(), [0, 0, 0, 0], 0)
    assert by_work(slots) == {0: ("d0", 0, 3), 1: ("d1", 5, 7), 2: ("d0", 3, 7), 3: ("d0", 8, 9)}
    # The weight (value 4) could be moved from the beginning on: it is moved just before it is read.
    assert moves(slots) == {(0, "m0->m1"): (3, 5), (1, "m1->m0"): (7, 8), (4, "m0->m1"): (4, 5)}


def test_moves_over_one_link_wait_for_each_other():
    slots = list_schedule(two_devices(link="bus"), [0, 0, 0, 0], 0)
    assert moves(slots) == {(0, "m0->m1"): (3, 5), (1, "m1->m0"): (7, 8), (4, "m0->m1"): (2, 3)}


def test_a_weight_is_moved_in_the_latest_gap_of_its_link():
    works = [((), {0: 1.0}), ((0,), {1: 1.0}), ((1,), {1: 1.0})]
    graph = graph_of(machine(2), works, {0: {(0, 1): 1.0}}, link="bus", weights={2: {1: 1.0}})
    slots = list_schedule(graph, [0, 0, 0], 0)
    assert by_work(slots)[2] == ("d1", 3, 4)
    assert moves(slots) == {(0, "m0->m1"): (1, 2), (3, "m0->m1"): (2, 3)}


def test_sequential_order_takes_what_totals_say():
    graph = two_devices()
    slots = sequential_order(graph, [0, 0, 0, 0], 0)
    assert [s.work if s.work is not None else f"v{s.value}" for s in slots] == [0, "v0", "v4", 1, 2, "v1", 3]
    assert makespan(slots) == totals(graph, np.zeros((4, 1), np.int16))[0][0] == 14


@pytest.mark.parametrize(("per_core", "expected"), [(False, 6.0), (True, 3.0)])
def test_whole_device_or_one_core(per_core, expected):
    on = machine(1, cores=2)
    slots = list_schedule(graph_of(on, [((), {0: 3.0})] * 2, per_core=per_core), [0, 0], 0)
    assert makespan(slots) == expected
    assert sorted(s.core for s in slots) == ([0, 1] if per_core else [0, 0])


def test_whole_device_waits_for_all_cores():
    graph = graph_of(machine(1, cores=2), [((), {0: 3.0}), ((), {0: 2.0}), ((0,), {0: 4.0})], per_core=True)
    stacks = (*graph.stacks[:2], (replace(graph.stacks[2][0], per_core=False),))
    slots = list_schedule(replace(graph, stacks=stacks), [0, 0, 0], 0)
    validate_order(replace(graph, stacks=stacks), [0, 0, 0], slots, 0)
    assert makespan(slots) == 7


def test_longest_chain_first():
    works = [((), {0: 1.0}), ((), {0: 1.0}), ((1,), {1: 5.0})]
    assert by_work(list_schedule(graph_of(machine(2), works), [0, 0, 0], 0))[1] == ("d0", 0, 1)


@pytest.mark.parametrize("shared", [True, False])
def test_a_value_is_moved_once_per_place_if_shared(shared):
    works = [((), {0: 1.0}), ((0,), {1: 1.0}), ((0,), {1: 1.0})]
    graph = graph_of(machine(2), works, {0: {(0, 1): 2.0}}, shared=shared)
    slots = list_schedule(graph, [0, 0, 0], 0)
    assert sum(s.work is None for s in slots) == (1 if shared else 2)


def test_random_orders_are_legal_and_never_longer_than_sequential():
    for seed in range(200):
        graph = random_graph(seed, 3 + seed % 20, 2 + seed % 3)
        rng = np.random.default_rng(seed)
        choices = np.array([rng.integers(len(s)) for s in graph.stacks], np.int16)
        slots, sequential = list_schedule(graph, choices, 0), sequential_order(graph, choices, 0)
        validate_order(graph, choices, slots, 0)
        validate_order(graph, choices, sequential, 0)
        time_s = totals(graph, choices[:, None])[0][0]
        assert makespan(sequential) == pytest.approx(time_s, rel=1e-12)
        assert makespan(slots) <= time_s * (1 + 1e-12)
        assert slots == list_schedule(graph, choices, 0)


def test_moves_are_the_charges_of_the_plan():
    for seed in range(100):
        graph = random_graph(seed, 6, 3)
        choices = sequential_optimum(graph)
        expected = [(c.transfer.value, c.origin, c.to) for c in charges(graph, choices[:, None]) if c.mask[0]]
        found = [(m.value, m.origin, m.to) for m in moves_of(instance_of(graph, 0), choices)]
        assert sorted(found) == sorted(expected)


def changed(slots, work=None, value=None, **changes):
    return [replace(s, **changes) if (s.work, s.value) == (work, value) else s for s in slots]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s[1:], "expected each of 4 works once"),
        (lambda s: changed(s, 1, place="d0"), r"op1 \(d0 5..7 s\): the plan runs it on d1"),
        (lambda s: changed(s, 1, core=1), "there is no core 1"),
        (lambda s: changed(s, 1, end_s=6.0), "expected 2.0 s, from 0 on"),
        (lambda s: changed(s, 0, begin_s=-1.0, end_s=2.0), "expected 3.0 s, from 0 on"),
        (lambda s: changed(s, 2, begin_s=2.0, end_s=6.0), "op2 .* begins before op0 .*, which it needs"),
        (lambda s: changed(s, value=0, begin_s=2.0, end_s=4.0), "v0 .* begins before op0"),
        (lambda s: changed(s, value=4, begin_s=5.0, end_s=6.0), "op1 .* begins before w1"),
        (lambda s: [k for k in s if k.value != 0], "v0 m0->m1: got 0 moves; expected 1"),
        (lambda s: [*s, Slot(None, 2, "m0->m1", 0, 7.0, 8.0)], "v2 .*: the plan makes no such move"),
    ],
)
def test_illegal_orders(change, message):
    graph = two_devices()
    slots = list_schedule(graph, [0, 0, 0, 0], 0)
    with pytest.raises(VerifyError, match=message):
        validate_order(graph, [0, 0, 0, 0], change(slots), 0)


def test_overlaps_are_illegal():
    graph = graph_of(machine(1), [((), {0: 3.0})] * 2)
    with pytest.raises(VerifyError, match=r"op0 .* and op1 .* overlap on .*device d0"):
        validate_order(graph, [0, 0], [Slot(k, None, "d0", 0, k * 2.0, k * 2.0 + 3) for k in range(2)], 0)
    graph = two_devices(link="bus")
    slots = list_schedule(graph, [0, 0, 0, 0], 0)
    with pytest.raises(VerifyError, match=r"overlap on .*link.*bus"):
        validate_order(graph, [0, 0, 0, 0], changed(slots, value=4, begin_s=4.0, end_s=5.0), 0)
