"""The stacked graph as a bare problem of selection, for any weights of time and energy.

A variable per work. A move that is charged per consumer, or whose value at most one work can read at that
place, is a cost of the pair (producer, consumer). One that is shared gets a variable of its own, "the value
is present at this place": a consumer there forbids that it is not. A work that reads there whatever is
chosen makes it present for sure. So a choice of the variables of the works costs exactly what
:func:`~strata.planner.devices.result.totals` says.

Equal costs are the same array, found by the identity of the estimates that they come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from strata.planner.select.problem import Problem

from .types import Estimates, StackedGraph, Transfer

Cell = tuple[Estimates, ...]  # what an entry of a table is the sum of


@dataclass(frozen=True, slots=True)
class Table:
    """Costs before they are weighted.

    Attributes:
        shape: Candidates of its variables.
        cells: One per entry, in C order; or none, then ``forbidden`` says what is ``inf`` and what 0.
        forbidden: One per entry.
    """

    shape: tuple[int, ...]
    cells: tuple[Cell, ...] = ()
    forbidden: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoding:
    """A stacked graph as tables over variables; the first W variables are its works.

    Attributes:
        num_points: P of the graph.
        nodes: Number of a table per variable.
        edges: ``(u, v, number of a table)``, u < v.
        tables: The distinct tables.
    """

    num_points: int
    nodes: tuple[int, ...]
    edges: tuple[tuple[int, int, int], ...]
    tables: tuple[Table, ...]

    def problem(
        self, per_second: np.ndarray | float, per_joule: np.ndarray | float, at: np.ndarray | None = None
    ) -> Problem:
        """The selection that minimises a weighted sum.

        Args:
            per_second: Weight of time: one, or one for each of the points. With a negative one, the least sum
                may be of moves that nobody needs: it is a lower bound.
            per_joule: Weight of energy, likewise.
            at: Numbers of the points to solve, possibly repeated; ``None`` = all, in their order.

        Returns:
            Points in the order of ``at``. What takes or draws ``inf`` is forbidden, whatever the weights.
        """
        num_points = self.num_points if at is None else len(at)
        arrays = [_weighted(t, per_second, per_joule, at, num_points) for t in self.tables]
        nodes = tuple(arrays[t] for t in self.nodes)
        return Problem(nodes, tuple((u, v, arrays[t]) for u, v, t in self.edges), num_points)


def encode(graph: StackedGraph) -> Encoding:
    """The tables of a stacked graph."""
    encoder = _Encoder(graph)
    for transfer in graph.transfers:
        (encoder.shared if transfer.shared else encoder.apart)(transfer)
    return encoder.finish()


class _Encoder:
    def __init__(self, graph: StackedGraph) -> None:
        self.graph = graph
        self.nodes: list[list[Cell]] = [[(c.estimates,) for c in stack] for stack in graph.stacks]
        self.pairs: dict[tuple[int, int], list[Cell]] = {}
        self.hard: list[tuple[int, int, Table]] = []
        self.known_places: dict[tuple[int, bool], tuple[str, ...]] = {}

    def finish(self) -> Encoding:
        numbers: dict[object, int] = {}
        tables: list[Table] = []

        def number(table: Table) -> int:
            key = (
                table.shape,
                tuple([tuple([id(e) for e in cell]) for cell in table.cells]),
                table.forbidden,
            )
            if numbers.setdefault(key, len(tables)) == len(tables):
                tables.append(table)
            return numbers[key]

        nodes = tuple([number(Table((len(cells),), tuple(cells))) for cells in self.nodes])
        edges = [
            (u, v, number(Table((len(self.nodes[u]), len(self.nodes[v])), tuple(cells))))
            for (u, v), cells in self.pairs.items()
        ]
        edges += [(u, v, number(table)) for u, v, table in self.hard]
        return Encoding(self.graph.num_points, nodes, tuple(edges), tuple(tables))

    def places(self, work: int, transfer: Transfer) -> tuple[str, ...]:
        """Place of each candidate of a work."""
        stack = self.graph.stacks[work]
        key = (id(stack), transfer.by_device)
        if key not in self.known_places:
            names = tuple([c.device if transfer.by_device else c.memory for c in stack])
            self.known_places[key] = names
        return self.known_places[key]

    def origins(self, transfer: Transfer) -> tuple[str, ...]:
        """Place of each candidate of the producer."""
        if transfer.producer is None:
            return (self.graph.machine.home,)
        return self.places(transfer.producer, transfer)

    def apart(self, transfer: Transfer) -> None:
        """Charge a value once per consumer."""
        origins = enumerate(self.origins(transfer))
        costs = {
            (i, to): e for i, at in origins for (origin, to), e in transfer.costs.items() if origin == at
        }
        for consumer in transfer.consumers:
            self.pair(transfer, consumer, costs)

    def shared(self, transfer: Transfer) -> None:
        """Charge a value once per place where somebody reads it."""
        origins = self.origins(transfer)
        for to in dict.fromkeys(to for _, to in transfer.costs):
            row = [transfer.costs.get((origin, to)) for origin in origins]
            readers = [k for k in transfer.consumers if to in self.places(k, transfer)]
            if not readers or not any(row):
                continue
            always = [k for k in readers if set(self.places(k, transfer)) == {to}]
            if always or len(readers) == 1:
                costs = {(i, to): estimates for i, estimates in enumerate(row)}
                self.pair(transfer, (always or readers)[0], costs)
            else:
                self.presence(transfer, to, row, readers)

    def pair(
        self, transfer: Transfer, consumer: int, costs: Mapping[tuple[int, str], Estimates | None]
    ) -> None:
        """Charge what one candidate of the producer and the place of one consumer decide together."""
        places = self.places(consumer, transfer)
        if transfer.producer is None:
            cells, num_origins = self.nodes[consumer], 1
        else:
            num_origins = len(self.graph.stacks[transfer.producer])
            cells = self.pairs.setdefault((transfer.producer, consumer), [()] * (num_origins * len(places)))
        for i in range(num_origins):
            for j, place in enumerate(places):
                if (estimates := costs.get((i, place))) is not None:
                    cells[i * len(places) + j] += (estimates,)

    def presence(self, transfer: Transfer, to: str, row: list[Estimates | None], readers: list[int]) -> None:
        """A variable: 1 if the value is brought to a place, which costs ``row`` by its producer's choice."""
        present = len(self.nodes)
        costs = [() if estimates is None else (estimates,) for estimates in row]
        if transfer.producer is None:
            self.nodes.append([(), *costs])
        else:
            self.nodes.append([(), ()])
            self.pairs[transfer.producer, present] = [cell for cost in costs for cell in ((), cost)]
        for k in readers:
            places = self.places(k, transfer)
            forbidden = tuple([f for place in places for f in (place == to, False)])
            self.hard.append((k, present, Table((len(places), 2), (), forbidden)))


def _weighted(
    table: Table,
    per_second: np.ndarray | float,
    per_joule: np.ndarray | float,
    at: np.ndarray | None,
    num_points: int,
) -> np.ndarray:
    """Costs ``[..., P]``, or ``[..., 1]`` if they are the same at all points."""
    if table.forbidden:
        return np.where(table.forbidden, np.inf, 0.0).reshape(*table.shape, 1)
    parts = [e for cell in table.cells for e in cell]
    if np.ndim(per_second) == np.ndim(per_joule) == 0 and all(_is_constant(e) for e in parts):
        num_points, at = 1, np.zeros(1, np.int64)
    out = np.zeros((math.prod(table.shape), num_points))
    with np.errstate(invalid="ignore"):
        for row, cell in zip(out, table.cells, strict=True):
            for e in cell:
                time_s, energy_j = (e.time_s, e.energy_j) if at is None else (e.time_s[at], e.energy_j[at])
                row += per_second * time_s
                row += per_joule * energy_j
    out[~np.isfinite(out)] = np.inf  # 0 * inf, -1 * inf
    return out.reshape(*table.shape, num_points)


def _is_constant(estimates: Estimates) -> bool:
    """Whether all points share one number in memory, as arrays made by ``np.broadcast_to`` do."""
    return estimates.time_s.strides == estimates.energy_j.strides == (0,)
