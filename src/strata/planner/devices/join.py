"""Plans for many machines at once: graphs of the same structure as one graph with the points of all.

Machines that differ in numbers only give the same candidates, places and transfers, with other costs. Costs
are arrays over points, so that the points of all these machines can be one array: whatever a solver does once
per graph is then done once for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence

import numpy as np

from .types import Estimates, StackedGraph


def structure_of(graph: StackedGraph) -> Hashable:
    """All of a graph but its costs and points: graphs with equal structures can be joined."""
    numbers: dict[int, int] = {}  # of distinct objects, as they occur
    stacks: dict[int, Hashable] = {}
    for stack in graph.stacks:
        if id(stack) not in stacks:
            known = [numbers.setdefault(id(c.estimates), len(numbers)) for c in stack]
            names = [(c.name, c.device, c.memory, c.per_core) for c in stack]
            stacks[id(stack)] = (len(stacks), tuple(names), tuple(known))
    moves: dict[int, Hashable] = {}
    for t in graph.transfers:
        if id(t.costs) not in moves:
            known = [numbers.setdefault(id(e), len(numbers)) for e in t.costs.values()]
            moves[id(t.costs)] = (len(moves), tuple(t.costs), tuple(known))
    return (
        graph.machine.home,
        tuple(graph.points),
        tuple([stacks[id(stack)] for stack in graph.stacks]),
        tuple([(t.value, t.producer, t.consumers, t.shared, t.by_device) for t in graph.transfers]),
        tuple([moves[id(t.costs)] for t in graph.transfers]),
    )


def join(graphs: Sequence[StackedGraph]) -> StackedGraph:
    """One graph whose points are those of all graphs, one graph after the other.

    Its points are named by one more entry, ``"graph"``: the number of the graph that they are from. Its
    estimates have no terms, its machine is the first one's. What was one object in every graph stays one.

    Args:
        graphs: At least one; of equal structure (:func:`structure_of`).
    """
    first = graphs[0]
    sizes = np.array([graph.num_points for graph in graphs])
    known: dict[int, Estimates] = {}  # by the object of the first graph
    for parts in zip(*map(_estimates, graphs), strict=True):
        if id(parts[0]) not in known:
            time_s = _joined([e.time_s for e in parts], sizes)
            energy_j = _joined([e.energy_j for e in parts], sizes)
            known[id(parts[0])] = Estimates(time_s, energy_j, (), parts[0].source)
    points = {name: np.concatenate([g.points[name] for g in graphs]) for name in first.points}
    points["graph"] = np.repeat(np.arange(len(graphs)), sizes)
    return first.with_estimates(lambda estimates: known[id(estimates)], points)


def _estimates(graph: StackedGraph) -> Iterator[Estimates]:
    """The estimates of a graph; those of equal stacks and transfers once."""
    seen: set[int] = set()
    for stack in graph.stacks:
        if id(stack) not in seen:
            seen.add(id(stack))
            yield from (c.estimates for c in stack)
    for t in graph.transfers:
        if id(t.costs) not in seen:
            seen.add(id(t.costs))
            yield from t.costs.values()


def _joined(arrays: Sequence[np.ndarray], sizes: np.ndarray) -> np.ndarray:
    """Arrays one after the other; what is the same at all points stays one number in memory."""
    if all(a.strides == (0,) for a in arrays) and len({float(a[0]) for a in arrays}) == 1:
        return np.broadcast_to(arrays[0][:1], (int(sizes.sum()),))
    return np.concatenate(arrays)
