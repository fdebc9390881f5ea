"""The least makespan: against brute force on small graphs, and on layers."""

import random
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from order_graphs import best_makespan_s, graph_of, machine, random_graph, sequential_optimum

from strata.planner.devices.result import totals
from strata.planner.order import cpsat as cpsat_module
from strata.planner.order import list_schedule, minimise_makespan, missing_solver
from strata.planner.order.bounds import critical_path_s, load_bound_s, lower_bound_s
from strata.planner.order.cuts import segments_of
from strata.planner.order.tasks import instance_of

ROUNDING = 1e-7  # relative: durations are whole billionths of the makespan in CP-SAT


def end(slots):
    return max(s.end_s for s in slots)


@pytest.fixture
def without_solver(monkeypatch):
    monkeypatch.setattr(
        cpsat_module, "importlib", SimpleNamespace(util=SimpleNamespace(find_spec=lambda name: None))
    )
    monkeypatch.setitem(sys.modules, "ortools", None)  # an import of it would fail


def layers(count, seed=0, late_source=False):
    """Layers as in a transformer: three products side by side, a chain, a residual; on 3 devices."""
    rng = random.Random(seed)
    costs = [{d: rng.choice([1.0, 2.0, 3.0]) + rng.random() for d in range(3)} for _ in range(8)]
    works = [((), {0: 1.0})]
    for _ in range(count):
        x = len(works) - 1
        if late_source:
            works.append(((), costs[7]))
        q = len(works)
        works += [((x,), costs[0]), ((x,), costs[1]), ((x,), costs[2])]
        works += [((q, q + 1, *((q - 1,) if late_source else ())), costs[3]), ((q + 2, q + 3), costs[4])]
        works += [((q + 4,), costs[5]), ((x, q + 5), costs[6])]
    moves = {k: {(a, b): 0.3 for a in range(3) for b in range(3) if a != b} for k in range(len(works))}
    return graph_of(machine(3), works, moves)


@pytest.mark.parametrize("part", range(6))
def test_brute_force(part):
    pytest.importorskip("ortools")
    for seed in range(part * 50, part * 50 + 50):
        graph = random_graph(seed, 2 + seed % 4, 2 + seed % 2)
        best = best_makespan_s(graph)
        start = sequential_optimum(graph)
        choices, slots, bound_s = minimise_makespan(graph, 0, start)
        assert end(slots) == pytest.approx(best, rel=ROUNDING)
        assert best * (1 - ROUNDING) <= bound_s <= best * (1 + 1e-12)
        assert end(slots) <= totals(graph, start[:, None])[0][0] * (1 + 1e-12)
        assert choices.dtype == np.int16


def test_own_bounds_and_local_search_against_brute_force(without_solver):
    found = 0
    for seed in range(150):
        graph = random_graph(seed, 2 + seed % 4, 2 + seed % 2)
        best = best_makespan_s(graph)
        instance = instance_of(graph, 0)
        assert lower_bound_s(instance) <= best * (1 + 1e-12)
        _, slots, bound_s = minimise_makespan(graph, 0, sequential_optimum(graph))
        assert bound_s <= best * (1 + 1e-12)
        assert best <= end(slots) * (1 + 1e-12)
        found += end(slots) <= best * (1 + ROUNDING)
    assert found >= 130  # local search alone finds most


def test_without_ortools_it_says_what_is_missing(without_solver):
    assert "strata-llm[planner]" in (missing_solver() or "")
    graph = layers(3)
    start = np.array([0] * len(graph.stacks), np.int16)
    _, slots, bound_s = minimise_makespan(graph, 0, start)
    assert bound_s <= end(slots) <= end(list_schedule(graph, start, 0))


def test_with_ortools_nothing_is_missing():
    pytest.importorskip("ortools")
    assert missing_solver() is None


def test_two_devices_by_hand():
    """All on d0 is best one after the other (10 s); d1 beside it, moves included, ends after 9 s."""
    works = [((), {0: 3.0}), ((0,), {0: 2.0, 1: 2.0}), ((0,), {0: 4.0}), ((1, 2), {0: 1.0})]
    graph = graph_of(machine(2), works, {0: {(0, 1): 2.0}, 1: {(1, 0): 1.0}})
    assert list(sequential_optimum(graph)) == [0, 0, 0, 0]
    choices, slots, bound_s = minimise_makespan(graph, 0, np.zeros(4, np.int16))
    assert list(choices) == [0, 1, 0, 0]
    assert end(slots) == pytest.approx(9)
    assert bound_s == pytest.approx(9)


def test_bounds_by_hand():
    # A chain over two devices: 1 on d0, then 5 on d1 after a move of 2, or 6 on d0.
    chain = graph_of(machine(2), [((), {0: 1.0}), ((0,), {0: 6.0, 1: 5.0})], {0: {(0, 1): 2.0}})
    assert critical_path_s(instance_of(chain, 0)) == pytest.approx(7)
    # Four works side by side, 3 s on d0 or 1 s on d1: split at will, both are busy for 3 s.
    loads = graph_of(machine(2), [((), {0: 3.0, 1: 1.0})] * 4)
    assert load_bound_s(instance_of(loads, 0)) == pytest.approx(3, rel=0.01)
    assert load_bound_s(instance_of(loads, 0)) <= 3


def test_layers_are_cut_and_equal_ones_are_the_same_problem():
    segments = segments_of(instance_of(layers(6), 0))
    assert [len(s.works) for s in segments] == [1] + [5, 1, 1] * 6
    assert len({s.instance for s in segments[4:]}) == 3  # the first layer begins at another work


def test_works_that_float_are_left_out_of_the_cuts():
    graph = layers(40, late_source=True)
    segments = segments_of(instance_of(graph, 0))
    assert max(len(s.works) for s in segments) < 64
    assert len(segments) > 40
    _, slots, bound_s = minimise_makespan(graph, 0, np.zeros(len(graph.stacks), np.int16), effort=1.0)
    assert bound_s <= end(slots) <= 1.1 * bound_s


def test_layers_are_solved_to_the_end_and_the_same_on_repeat():
    pytest.importorskip("ortools")
    graph = layers(12)
    start = np.zeros(len(graph.stacks), np.int16)
    seen = []
    choices, slots, bound_s = minimise_makespan(graph, 0, start, progress=lambda *a: seen.append(a))
    assert end(slots) == pytest.approx(bound_s, rel=ROUNDING)
    assert end(slots) < end(list_schedule(graph, start, 0))
    assert seen
    assert all(0 < done <= total and "works between two cuts" in what for done, total, what in seen)
    again = minimise_makespan(graph, 0, start)
    assert (list(choices), slots, bound_s) == (list(again[0]), again[1], again[2])


def test_repeat_gives_the_same_where_the_limit_ends_the_search():
    pytest.importorskip("ortools")
    graph = random_graph(5, 40, 3)
    start = np.zeros(40, np.int16)
    first, second = (minimise_makespan(graph, 0, start, effort=0.1) for _ in range(2))
    assert list(first[0]) == list(second[0])
    assert first[1:] == second[1:]
    assert first[2] < end(first[1]) <= end(list_schedule(graph, start, 0))


def test_a_candidate_that_takes_for_ever_is_never_taken():
    pytest.importorskip("ortools")
    never = float("inf")
    works = [((), {0: 1.0, 1: never}), ((), {0: never, 1: 1.0}), ((0, 1), {0: 1.0, 1: 2.0})]
    moves = {0: {(0, 1): never}, 1: {(1, 0): 0.5}}
    choices, slots, bound_s = minimise_makespan(
        graph_of(machine(2), works, moves), 0, np.array([0, 1, 1], np.int16)
    )
    assert list(choices) == [0, 1, 0]
    assert end(slots) == pytest.approx(2.5)
    assert bound_s == pytest.approx(2.5)


def test_moves_over_a_link_bound_a_plan_of_weights():
    """Four weights of 2 s each over one bus: whatever runs where, the bus is busy for 8 s."""
    works = [((), {1: 0.5}), *(((k,), {1: 0.5}) for k in range(3))]
    graph = graph_of(machine(2), works, link="bus", weights={k: {1: 2.0} for k in range(4)})
    assert load_bound_s(instance_of(graph, 0)) == pytest.approx(8, rel=0.05)
    _, slots, bound_s = minimise_makespan(graph, 0, np.zeros(4, np.int16))
    assert end(slots) == pytest.approx(8.5)
    assert bound_s <= 8.5
