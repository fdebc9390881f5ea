"""In which order variables are eliminated, and which eliminations are the same one.

Eliminating a variable adds up the tables that mention it and keeps, for every setting of their other
variables (its *separator*), the least sum over its candidates: a new table. Tables are numbered by what they
are made of, so that equal parts of a problem give equal numbers and are computed once::

    Table ::= Input k | Squeeze table axis | Reduce (table, axes)+      axes: places among the separator

Nothing here looks at a cost: the sequence depends on the structure of the problem alone, hence neither on the
points nor on how they are divided into blocks.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from dataclasses import dataclass

from strata.core.errors import UnsupportedError

SMALL_CELLS = 256  # tables up to this size are all taken as cheap: what counts is how often they are used
MAX_CELLS = 1 << 20  # per point, 8 MiB: beyond, refuse


@dataclass(frozen=True, slots=True)
class Input:
    """A table of costs that was given: its number."""

    number: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Squeeze:
    """A table without one of its axes, which has a single entry."""

    table: int
    axis: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reduce:
    """The least sum of tables over the candidates of one variable.

    Attributes:
        size: Number of candidates.
        parts: Tables, each with where its axes are in the separator, ascending; -1 = the variable itself.
        shape: Sizes of the separator's variables, ascending by their number.
    """

    size: int
    parts: tuple[tuple[int, tuple[int, ...]], ...]
    shape: tuple[int, ...]


Table = Input | Squeeze | Reduce


@dataclass(frozen=True, slots=True)
class Structure:
    """A problem without its costs: sizes of the variables, and tables ``(input, ascending variables)``."""

    sizes: tuple[int, ...]
    factors: tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Sequence:
    """A program that eliminates all variables of a structure.

    Attributes:
        structure: Of which problems.
        tables: What to compute, in this order.
        steps: ``(variable, table, separator)`` in the order of elimination; equal tables occur repeatedly.
        constants: Tables without variables, with how often each counts: their sum is the least cost.
        width: Most variables in a separator.
    """

    structure: Structure
    tables: tuple[Table, ...]
    steps: tuple[tuple[int, int, tuple[int, ...]], ...]
    constants: tuple[tuple[int, int], ...]
    width: int

    @property
    def num_reductions(self) -> int:
        """How many different eliminations there are: what the work depends on."""
        return sum(isinstance(t, Reduce) for t in self.tables)

    @property
    def max_cells(self) -> int:
        """Entries per point of the largest table."""
        return max((math.prod(t.shape) for t in self.tables), default=1)


def sequence(structure: Structure) -> Sequence:
    """An order with small tables and few different ones.

    Greedy: of all eliminations that make a table of up to ``SMALL_CELLS`` entries, the one with the least
    work per variable that it removes; equal ones are made together. So equal layers shrink at the same pace,
    from the inside, and a chain of them is folded in halves. Larger tables only when no small one is left,
    the smallest first. Equal work: what came first.

    Raises:
        UnsupportedError: a table would have more than ``MAX_CELLS`` entries per point.
    """
    return _Eliminator(structure).run()


class _Eliminator:
    """State of one elimination: tables that still have variables, and groups of equal next steps."""

    def __init__(self, structure: Structure) -> None:
        self.structure, self.sizes = structure, structure.sizes
        self.numbers: dict[Table, int] = {}
        self.tables: list[Table] = []
        self.constants: Counter[int] = Counter()
        self.factors: list[tuple[int, tuple[int, ...]]] = []
        self.of: list[dict[int, None]] = [{} for _ in self.sizes]  # factors of each variable
        self.neighbours: list[set[int]] = [set() for _ in self.sizes]
        self.steps: list[tuple[int, int, tuple[int, ...]]] = []
        self.group_of: dict[int, int] = {}
        self.groups: list[dict[int, None]] = []
        self.group_numbers: dict[object, int] = {}
        self.costs: list[tuple[int, int]] = []  # of each group: entries of its table, work
        self.heap: list[tuple[int, float, int]] = []
        for number, scope in structure.factors:
            self._add(*self._without_single(number, scope))

    def run(self) -> Sequence:
        self._regroup([v for v, size in enumerate(self.sizes) if size > 1])
        while self.heap:
            entry = heapq.heappop(self.heap)
            group = entry[2]
            if not self.groups[group] or entry != self._key(group):
                continue
            if entry[0] > MAX_CELLS:
                self._refuse(group)
            for v in sorted(self.groups[group]):
                if self.group_of.get(v) == group:  # not if a neighbour went a moment ago
                    self._eliminate(v)
        width = max((len(scope) for _, _, scope in self.steps), default=0)
        constants = tuple(sorted(self.constants.items()))
        return Sequence(self.structure, tuple(self.tables), tuple(self.steps), constants, width)

    def _refuse(self, group: int) -> None:
        v = next(iter(self.groups[group]))
        left = len(self.group_of)
        raise UnsupportedError(
            f"selection: the {left} variables left are too strongly coupled: the next elimination has width "
            f"{len(self.neighbours[v])} and a table of {self.costs[group][0]:.3g} entries per point; "
            f"expected at most {MAX_CELLS}; pin ops or allow fewer devices"
        )

    def _number(self, table: Table) -> int:
        if table not in self.numbers:
            self.numbers[table] = len(self.tables)
            self.tables.append(table)
        return self.numbers[table]

    def _without_single(self, number: int, scope: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The table of an input without the variables that have one candidate."""
        shape = tuple(self.sizes[v] for v in scope)
        table = self._number(Input(number, shape))
        for axis in reversed(range(len(scope))):
            if shape[axis] == 1:
                shape = shape[:axis] + shape[axis + 1 :]
                scope = scope[:axis] + scope[axis + 1 :]
                table = self._number(Squeeze(table, axis, shape))
        return table, scope

    def _add(self, table: int, scope: tuple[int, ...]) -> None:
        if not scope:
            self.constants[table] += 1
            return
        self.factors.append((table, scope))
        for v in scope:
            self.of[v][len(self.factors) - 1] = None
            self.neighbours[v].update(scope)
            self.neighbours[v].discard(v)

    def _eliminate(self, v: int) -> None:
        separator = tuple(sorted(self.neighbours[v]))
        table = self._number(self._reduction(v, separator))
        for f in self.of[v]:
            for u in self.factors[f][1]:
                if u != v:
                    del self.of[u][f]
        for u in separator:
            self.neighbours[u].discard(v)
        self._leave(v)
        self._add(table, separator)
        self.steps.append((v, table, separator))
        self._regroup(separator)

    def _reduction(self, v: int, separator: tuple[int, ...]) -> Reduce:
        places = {u: k for k, u in enumerate(separator)}
        places[v] = -1
        parts = []
        for f in self.of[v]:
            table, scope = self.factors[f]
            parts.append((table, tuple([places[u] for u in scope])))
        parts.sort()
        return Reduce(self.sizes[v], tuple(parts), tuple([self.sizes[u] for u in separator]))

    # --- groups of variables whose eliminations are the same ---------------------------------------

    def _regroup(self, variables: list[int] | tuple[int, ...]) -> None:
        for v in variables:
            self._leave(v)
            cells = self._cells(v)
            small = cells <= SMALL_CELLS
            key: object = self._reduction(v, tuple(sorted(self.neighbours[v]))) if small else (v, cells)
            group = self.group_numbers.setdefault(key, len(self.groups))
            if group == len(self.groups):
                self.groups.append({})
                self.costs.append((cells, cells * self.sizes[v] * max(1, len(self.of[v]))))
            self.groups[group][v] = None
            self.group_of[v] = group
            heapq.heappush(self.heap, self._key(group))

    def _leave(self, v: int) -> None:
        group = self.group_of.pop(v, None)
        if group is not None:
            del self.groups[group][v]
            if self.groups[group]:
                heapq.heappush(self.heap, self._key(group))

    def _key(self, group: int) -> tuple[int, float, int]:
        cells, work = self.costs[group]
        return (cells if cells > SMALL_CELLS else 0, work / len(self.groups[group]), group)

    def _cells(self, v: int) -> int:
        """Entries of the table that eliminating ``v`` would make; no more than needed of a large number."""
        cells = 1
        for u in self.neighbours[v]:
            cells *= self.sizes[u]
            if cells > 1 << 62:
                break
        return cells
