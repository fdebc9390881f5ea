"""Plans of stacked graphs, against all plans; ``totals`` is the judge."""

import numpy as np
import pytest
from device_graphs import all_totals, layered_graph, random_graph

from strata.core.errors import UserError
from strata.planner.devices.encode import encode
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.solve import pareto, solve
from strata.planner.select.eliminate import minimise, structure_of
from strata.planner.select.sequence import sequence

EDP = parse_objective("edp")
SUMS = [parse_objective(text) for text in ("time", "energy", "0.5*time+2*energy")]


def least(times_s, energies_j, objective):
    """The least objective of finite plans ``[N, P]`` at each point: ``[P]``."""
    endless = np.isinf(times_s) | np.isinf(energies_j)
    times_s, energies_j = np.where(endless, 0, times_s), np.where(endless, 0, energies_j)
    return np.where(endless, np.inf, objective.value(times_s, energies_j)).min(0)


@pytest.mark.parametrize("seed", range(0, 1000, 50))
def test_no_plan_costs_less(seed):
    for k in range(seed, seed + 50):
        graph = random_graph(k, num_works=2 + k % 5, integer=k % 4 != 0)
        _, times_s, energies_j = all_totals(graph)
        for objective in SUMS:
            best = least(times_s, energies_j, objective)
            if np.isinf(best).any():
                with pytest.raises(UserError, match="every choice takes or draws inf"):
                    solve(graph, objective)
                continue
            plan = solve(graph, objective)
            np.testing.assert_allclose(plan.values, best, rtol=1e-12, atol=0)
            assert np.array_equal(plan.bounds, plan.values)


def test_the_encoding_costs_what_totals_says():
    for seed in range(200):
        graph = random_graph(seed, num_works=12, integer=False)
        problem = encode(graph).problem(0.7, 0.3)
        selection = minimise(problem)
        if np.isinf(selection.cost).any():
            continue
        plan = solve(graph, parse_objective("0.7*time+0.3*energy"))
        np.testing.assert_allclose(plan.values, selection.cost, rtol=1e-12, atol=0)


def test_weights_of_each_point():
    graph = layered_graph(2, num_points=40)
    at = np.array([3, 3, 30])
    weights = np.array([1.0, 0.25, 0.5])
    together = minimise(encode(graph).problem(weights, 1 - weights, at)).cost
    for k, (point, weight) in enumerate(zip(at, weights, strict=True)):
        alone = minimise(encode(graph).problem(weight, 1 - weight)).cost[point]
        assert together[k] == pytest.approx(alone, rel=1e-12)


def test_equal_layers_are_solved_once():
    """The size of a model does not change how many eliminations differ, but by the folding of its layers."""
    orders = {}
    for layers in (8, 32, 128):
        structure, _ = structure_of(encode(layered_graph(layers)).problem(1.0, 0.0))
        orders[layers] = sequence(structure)
        assert len(orders[layers].steps) > 40 * layers
    assert orders[128].num_reductions <= orders[8].num_reductions + 20
    assert orders[32].num_reductions <= 80
    assert orders[32].max_cells <= 256


def test_twice_the_same():
    graph = layered_graph(3, num_points=50)
    first, second = (solve(graph, SUMS[0]) for _ in range(2))
    assert np.array_equal(first.choices, second.choices)
    assert np.array_equal(first.values, second.values)


def test_a_plan_changes_with_the_length():
    plan = solve(layered_graph(2, num_points=2000), SUMS[0])
    assert len({tuple(column) for column in plan.choices.T.tolist()}) > 3
    assert plan.choices.dtype == np.int16
    assert plan.gap(7) == 0


@pytest.mark.parametrize("seed", range(0, 500, 50))
def test_no_plan_has_a_lower_product(seed):
    for k in range(seed, seed + 50):
        graph = random_graph(k, num_works=2 + k % 5, integer=k % 4 != 0)
        _, times_s, energies_j = all_totals(graph)
        best = least(times_s, energies_j, EDP)
        if np.isfinite(best).all():
            np.testing.assert_allclose(solve(graph, EDP).values, best, rtol=1e-12, atol=0)


def lower_left(times_s, energies_j):
    """Vertices of the lower left hull of plans ``[N]`` (Andrew's monotone chain), ascending in time."""
    points = sorted({(t, e) for t, e in zip(times_s, energies_j, strict=True) if np.isfinite(t + e)})
    hull = []
    for t, e in points:
        if hull and e >= hull[-1][1]:
            continue
        while len(hull) > 1:
            (t1, e1), (t2, e2) = hull[-2:]
            if (t2 - t1) * (e - e1) - (e2 - e1) * (t - t1) > 1e-9:
                break
            hull.pop()
        hull.append((t, e))
    return hull


@pytest.mark.parametrize("seed", range(0, 300, 50))
def test_all_vertices_of_the_front(seed):
    several = 0
    for k in range(seed, seed + 50):
        graph = random_graph(k, num_works=5, integer=k % 4 != 0)
        _, times_s, energies_j = all_totals(graph)
        expected = lower_left(times_s[:, 1], energies_j[:, 1])
        if expected:
            front = pareto(graph, 1)
            found = [(plan.time_s, plan.energy_j) for plan in front]
            np.testing.assert_allclose(found, expected, rtol=1e-12)
            several += len(found) > 2
            for plan in front:  # its objective prefers it to all others
                value = least(times_s[:, 1:2], energies_j[:, 1:2], plan.objective)
                assert plan.lower_bound == pytest.approx(value[0], rel=1e-12)
    assert several > 3


def test_points_keep_what_is_shared():
    graph = layered_graph(4, num_points=30)
    part = graph.at(np.array([7, 7, 2]))
    assert part.points["L"].tolist() == [8, 8, 3]
    assert len({id(s) for s in part.stacks}) == len({id(s) for s in graph.stacks})
    assert np.array_equal(solve(part, SUMS[0]).values, solve(graph, SUMS[0]).values[[7, 7, 2]])
