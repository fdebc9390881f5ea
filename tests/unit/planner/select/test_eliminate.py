"""Variable elimination: against all choices, and how much work it does."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from strata.core.errors import UnsupportedError, VerifyError
from strata.planner.select.eliminate import blocks, minimise, structure_of
from strata.planner.select.problem import Problem
from strata.planner.select.sequence import MAX_CELLS, sequence


def random_problem(seed, max_variables=7, max_candidates=3):
    rng = np.random.default_rng(seed)
    num_points = int(rng.choice([1, 2, 5]))
    sizes = rng.integers(1, max_candidates + 1, int(rng.integers(1, max_variables + 1))).tolist()
    draws = (
        lambda shape: rng.integers(0, 3, shape).astype(float),  # many choices cost the same
        lambda shape: rng.random(shape) * 10.0 ** float(rng.integers(-12, 12)),
        lambda shape: np.where(rng.random(shape) < 0.3, np.inf, rng.random(shape)),
    )
    draw = draws[seed % len(draws)]
    kept = {}

    def costs(*shape):
        shape = (*shape, num_points if rng.random() < 0.7 else 1)
        array = draw(shape)
        return kept.setdefault(shape, array) if rng.random() < 0.3 else array

    nodes = tuple(costs(size) for size in sizes)
    pairs = [p for p in itertools.combinations(range(len(sizes)), 2) if rng.random() < 0.5]
    pairs += [p for p in pairs if rng.random() < 0.2]
    return Problem(nodes, tuple((u, v, costs(sizes[u], sizes[v])) for u, v in pairs), num_points)


def cost_of(problem, choices):
    """Cost of one choice per variable, f64 ``[P]``."""
    total = np.zeros(problem.num_points)
    for costs, x in zip(problem.node_costs, choices, strict=True):
        total += costs[x]
    for u, v, costs in problem.edge_costs:
        total += costs[choices[u], choices[v]]
    return total


def least_cost(problem):
    sizes = [range(len(c)) for c in problem.node_costs]
    return np.min([cost_of(problem, choices) for choices in itertools.product(*sizes)], axis=0)


@pytest.mark.parametrize("seed", range(0, 2400, 100))
def test_nothing_costs_less(seed):
    for k in range(seed, seed + 100):
        problem = random_problem(k)
        selection = minimise(problem)
        np.testing.assert_allclose(selection.cost, least_cost(problem), rtol=1e-12, atol=0)
        assert np.array_equal(selection.bound, selection.cost)
        for point in range(problem.num_points):
            of_choices = cost_of(problem, selection.choices[:, point])[point]
            np.testing.assert_allclose(of_choices, selection.cost[point], rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(30))
def test_blocks_and_neighbouring_points_change_nothing(seed):
    problem = random_problem(seed)
    whole = minimise(problem)
    for block in blocks(problem, block_bytes=1):
        assert block.end == block.begin + 1
        assert whole.choices[:, block.begin].tolist() == list(block.rows)
    for point in range(problem.num_points):

        def at(costs, point=point):
            return costs[..., point : point + 1] if costs.shape[-1] > 1 else costs

        alone = minimise(
            Problem(
                tuple(at(c) for c in problem.node_costs),
                tuple((u, v, at(c)) for u, v, c in problem.edge_costs),
                1,
            )
        )
        assert np.array_equal(alone.choices[:, 0], whole.choices[:, point])
        assert alone.cost[0] == whole.cost[point]


def test_lowest_candidate_of_equal_ones():
    same = np.zeros((3, 1))
    problem = Problem((same, same, same), ((0, 1, np.zeros((3, 3, 1))), (1, 2, np.zeros((3, 3, 1)))), 2)
    assert not minimise(problem).choices.any()


def chain(length, num_candidates=3, num_points=1):
    rng = np.random.default_rng(0)
    node, edge = (
        rng.random((num_candidates, num_points)),
        rng.random((num_candidates, num_candidates, num_points)),
    )
    return Problem((node,) * length, tuple((k, k + 1, edge) for k in range(length - 1)), num_points)


def test_a_chain_of_equal_links_is_folded_in_halves():
    order = sequence(structure_of(chain(1025))[0])
    assert order.num_reductions <= 3 * np.log2(1025)
    assert order.max_cells == 9


def test_a_chain_of_different_links_takes_small_tables():
    rng = np.random.default_rng(1)
    edges = tuple((k, k + 1, rng.random((3, 3, 1))) for k in range(199))
    problem = Problem(tuple(rng.random((3, 1)) for _ in range(200)), edges, 1)
    order = sequence(structure_of(problem)[0])
    assert order.num_reductions == 200
    assert order.max_cells <= 9
    # the same by plain dynamic programming from the left
    cost = problem.node_costs[0][:, 0]
    for (_, _, edge), node in zip(edges, problem.node_costs[1:], strict=True):
        cost = (cost[:, None] + edge[:, :, 0]).min(0) + node[:, 0]
    assert minimise(problem).cost[0] == pytest.approx(cost.min(), rel=1e-12)


def test_tables_of_all_points_stay_within_the_block():
    problem = chain(50, num_points=4096)
    found = list(blocks(problem, block_bytes=1 << 18))
    assert len(found) > 4
    assert [b.begin for b in found[1:]] == [b.end for b in found[:-1]]
    assert np.array_equal(np.concatenate([b.cost for b in found]), minimise(problem).cost)


def test_a_sequence_serves_problems_of_the_same_structure():
    problem = chain(20)
    order = sequence(structure_of(problem)[0])
    doubled = chain(20)
    assert order.structure == structure_of(doubled)[0]
    assert np.array_equal(minimise(doubled, order).choices, minimise(problem).choices)


def test_refuses_what_is_too_strongly_coupled():
    rng = np.random.default_rng(0)
    edges = tuple((u, v, rng.random((3, 3, 1))) for u, v in itertools.combinations(range(30), 2))
    with pytest.raises(
        UnsupportedError, match=rf"the 30 variables left .* width 29 .* at most {MAX_CELLS}; pin"
    ):
        minimise(Problem((np.zeros((3, 1)),) * 30, edges, 1))


def test_refuses_shapes_that_do_not_fit():
    problem = chain(3)
    with pytest.raises(VerifyError, match=r"costs of \(0, 1\): got shape \(3, 2, 1\); expected \(3, 3, 1\)"):
        minimise(replace(problem, edge_costs=((0, 1, np.zeros((3, 2, 1))),)))
    with pytest.raises(VerifyError, match=r"got an edge of \(1, 0\); expected the lower variable first"):
        minimise(replace(problem, edge_costs=((1, 0, np.zeros((3, 3, 1))),)))
