"""Graphs of several machines as one graph: the same plans, bit for bit, as of each machine apart."""

from dataclasses import replace

import numpy as np
import pytest

from strata.compiler.workloads import read_workload
from strata.planner.devices.build import Outline, Rules, stacked_graph
from strata.planner.devices.join import join, structure_of
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.solve import solve
from strata.target.hardware import PHU, Machine, read_machine

LENGTHS = (np.array([1, 77, 512]), np.array([500]), np.array([512, 3]))


def machines(name: str) -> list[Machine]:
    base = read_machine(name)
    found = []
    for multiplex in (1, 20, 400):
        devices = [replace(d, multiplex=multiplex) if isinstance(d, PHU) else d for d in base.devices]
        found.append(Machine(devices, base.name, base.profile, base.memories, base.links, base.home))
    return found


@pytest.mark.parametrize("objective", ["energy", "time", "edp", "time+10*energy"])
@pytest.mark.parametrize("name", ["lightcode", "lightcode-honest"])
def test_joined_graphs_have_the_plans_of_each(name, objective):
    workload, goal = read_workload("tiny"), parse_objective(objective)
    outline = Outline(workload)
    graphs = [
        stacked_graph(workload, machine, {"L": lengths}, None, outline)
        for machine, lengths in zip(machines(name), LENGTHS, strict=True)
    ]
    together, at = solve(join(graphs), goal), 0
    chosen = set()
    for machine, lengths in zip(machines(name), LENGTHS, strict=True):
        alone = solve(stacked_graph(workload, machine, {"L": lengths}), goal)
        here = slice(at, at + len(lengths))
        np.testing.assert_array_equal(together.choices[:, here], alone.choices)
        for joined, single in (
            (together.times_s, alone.times_s),
            (together.energies_j, alone.energies_j),
            (together.values, alone.values),
        ):
            np.testing.assert_array_equal(joined[here], single)
        chosen.update(alone.choices.ravel().tolist())
        at += len(lengths)
    assert at == together.graph.num_points
    assert len(chosen) > 1


def test_equal_works_stay_equal():
    workload = read_workload("tiny")
    graphs = [stacked_graph(workload, machine, {"L": np.array([8])}) for machine in machines("lightcode")]
    for graph in (graphs[0], join(graphs)):
        assert len({id(stack) for stack in graph.stacks}) == len(set(Outline(workload).kinds))


def test_structures_differ_where_graphs_do():
    workload, points = read_workload("tiny"), {"L": np.array([8])}
    one, other, _ = machines("lightcode")
    same = structure_of(stacked_graph(workload, one, points))
    assert structure_of(stacked_graph(workload, other, points)) == same
    assert structure_of(stacked_graph(workload, read_machine("h100"), points)) != same
    for rules in (Rules(only=("cpu", "gpu")), Rules(pinned={"softmax": "gpu", "lm_head": "cpu"})):
        assert structure_of(stacked_graph(workload, one, points, rules)) != same
