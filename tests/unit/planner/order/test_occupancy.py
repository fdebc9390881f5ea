"""Bytes and energy over time, by hand; and the totals they end at."""

from dataclasses import replace

import numpy as np
import pytest
from order_graphs import graph_of, machine, random_graph

from strata.planner.devices.result import totals
from strata.planner.order import energy_spent, list_schedule, occupancy, sequential_order
from strata.target.hardware import Machine

ZEROS = [0, 0, 0, 0]


def two_devices(static_w=0.0):
    """As in test_listing: 0 on d0 0..3, 2 on d0 3..7, 1 on d1 5..7, 3 on d0 8..9; values 8 bytes, w1 16."""
    works = [((), {0: 3.0}), ((0,), {1: 2.0}), ((0,), {0: 4.0}), ((1, 2), {0: 1.0})]
    on = machine(2, static_w=static_w / 2)
    moves = {0: {(0, 1): 2.0}, 1: {(1, 0): 1.0}}
    return graph_of(on, works, moves, weights={1: {1: 1.0}}, static_w=static_w)


def test_bytes_by_hand():
    graph = two_devices()
    times_s, alive = occupancy(graph, ZEROS, list_schedule(graph, ZEROS, 0), 0)
    assert list(times_s) == [0, 3, 4, 5, 7, 8, 9]
    # m0: w1 always; v0 0..7; v2 3..9; copy of v1 7..9; v3 from 8 on.
    assert list(alive["m0"]) == [24, 32, 32, 32, 32, 40, 24]
    # m1: copy of v0 3..7; copy of w1 4..7; v1 5..8.
    assert list(alive["m1"]) == [0, 8, 24, 32, 8, 0, 0]


def test_outputs_live_to_the_end():
    graph = two_devices()
    graph = replace(graph, workload=replace(graph.workload, outputs=(1, 3)))
    _, alive = occupancy(graph, ZEROS, list_schedule(graph, ZEROS, 0), 0)
    assert list(alive["m1"]) == [0, 8, 24, 32, 8, 8, 8]


def test_a_place_of_the_profile_counts_apart():
    graph = graph_of(machine(1), [((), {0: 1.0})])
    graph = replace(graph, stacks=((replace(graph.stacks[0][0], memory="d0.local"),),))
    _, alive = occupancy(graph, [0], list_schedule(graph, [0], 0), 0)
    assert {name: list(values) for name, values in alive.items()} == {"m0": [0, 0], "d0.local": [8, 8]}


def test_devices_that_share_a_memory_hold_one_copy():
    graph = graph_of(machine(2), [((), {0: 1.0}), ((0,), {1: 1.0})], {0: {(0, 1): 1.0}})
    devices = [replace(d, memory="m0") for d in graph.machine.devices]
    moved = graph.transfers[0]
    graph = replace(
        graph,
        machine=Machine(devices, memories=graph.machine.memories),
        stacks=(graph.stacks[0], (replace(graph.stacks[1][0], memory="m0"),)),
        transfers=(replace(moved, by_device=True, costs={("d0", "d1"): moved.costs["m0", "m1"]}),),
    )
    times_s, alive = occupancy(graph, [0, 0], list_schedule(graph, [0, 0], 0), 0)
    assert list(times_s) == [0, 2, 3]
    assert list(alive["m0"]) == [8, 16, 8]


def test_energy_by_hand():
    """1 J per work, 0.5 J per move, spent evenly; 2 W flow for the 9 s that it takes, not for 14."""
    graph = two_devices(static_w=2.0)
    times_s, spent_j = energy_spent(graph, ZEROS, list_schedule(graph, ZEROS, 0), 0)
    at = dict(zip(times_s, spent_j, strict=True))
    assert at[3.0] == pytest.approx(1 + 2 * 3)
    assert at[5.0] == pytest.approx(1 + 0.5 + 0.5 + 0.5 + 2 * 5)
    assert spent_j[-1] == pytest.approx(4 * 1 + 3 * 0.5 + 2 * 9)
    _, sequential_j = energy_spent(graph, ZEROS, sequential_order(graph, ZEROS, 0), 0)
    assert sequential_j[-1] == pytest.approx(totals(graph, np.zeros((4, 1), np.int16))[1][0])
    assert sequential_j[-1] == pytest.approx(5.5 + 2 * 14)


def test_work_without_time_spends_at_once():
    graph = graph_of(machine(1), [((), {0: 2.0}), ((0,), {0: 0.0})])
    times_s, spent_j = energy_spent(graph, [0, 0], list_schedule(graph, [0, 0], 0), 0)
    assert list(zip(times_s, spent_j, strict=True)) == [(0, 0), (2, 1), (2, 2)]


def test_sequential_energy_is_the_total_for_random_graphs():
    for seed in range(50):
        graph = random_graph(seed, 12, 3)
        choices = np.zeros(12, np.int16)
        times_s, spent_j = energy_spent(graph, choices, sequential_order(graph, choices, 0), 0)
        assert spent_j[-1] == pytest.approx(totals(graph, choices[:, None])[1][0])
        assert (np.diff(spent_j) >= -1e-12).all()
        assert (np.diff(times_s) >= 0).all()
        times_s, alive = occupancy(graph, choices, list_schedule(graph, choices, 0), 0)
        assert all((values >= 0).all() for values in alive.values())
