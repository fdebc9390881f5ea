"""Exact selection by variable elimination, at all points at once.

Eliminating the variables one by one (dynamic programming over the graph; Bertelè and Brioschi, *Nonserial
Dynamic Programming*, 1972) finds the least cost exactly, in time exponential only in the width of the order
(:mod:`.sequence`). Going back through the eliminations then reads off the choices.

Of several best choices the one with the lowest candidates is taken, variable by variable in the reverse order
of elimination: the same one whatever the points beside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from strata.core.errors import VerifyError

from .problem import Problem, Selection
from .sequence import Input, Reduce, Sequence, Squeeze, Structure, sequence

BLOCK_BYTES = 64 << 20  # what the tables of one block of points may take
Row = int | np.ndarray  # a variable's choices at the points of a block: one for all, or [block]


def structure_of(problem: Problem) -> tuple[Structure, tuple[np.ndarray, ...]]:
    """The structure of a problem and its distinct arrays, numbered as they occur.

    Raises:
        VerifyError: an array whose shape does not fit.
    """
    numbers: dict[int, int] = {}
    arrays: list[np.ndarray] = []
    sizes = tuple(len(costs) for costs in problem.node_costs)
    factors: list[tuple[int, tuple[int, ...]]] = []
    entries = [((v,), costs) for v, costs in enumerate(problem.node_costs)]
    entries += [((u, v), costs) for u, v, costs in problem.edge_costs]
    for scope, costs in entries:
        expected = tuple(sizes[v] for v in scope)
        if costs.shape[:-1] != expected or costs.shape[-1] not in (1, problem.num_points) or 0 in expected:
            raise VerifyError(
                f"selection: costs of {scope}: got shape {costs.shape}; "
                f"expected {(*expected, problem.num_points)}"
            )
        if list(scope) != sorted(set(scope)):
            raise VerifyError(f"selection: got an edge of {scope}; expected the lower variable first")
        number = numbers.setdefault(id(costs), len(arrays))
        if number == len(arrays):
            arrays.append(costs)
        factors.append((number, scope))
    return Structure(sizes, tuple(factors)), tuple(arrays)


def minimise(problem: Problem, order: Sequence | None = None) -> Selection:
    """The choice with the least cost at each point: exact.

    Args:
        problem: What to choose from. Where every choice is forbidden, the cost is ``inf``.
        order: Sequence of a problem of the same structure, if one is known.

    Raises:
        UnsupportedError: the problem is so strongly coupled that no order has small tables.
        VerifyError: shapes that do not fit.
    """
    choices = np.empty((len(problem.node_costs), problem.num_points), np.int16)
    cost = np.empty(problem.num_points)
    for block in blocks(problem, order):
        for v, row in enumerate(block.rows):
            choices[v, block.begin : block.end] = row
        cost[block.begin : block.end] = block.cost
    return Selection(choices, cost, cost)


@dataclass(frozen=True, slots=True)
class Block:
    """The solution for the points ``begin..end``: cost, a row per variable (equal rows are one object)."""

    begin: int
    end: int
    rows: tuple[Row, ...]
    cost: np.ndarray


def blocks(
    problem: Problem, order: Sequence | None = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[Block]:
    """Solve block by block, so that the tables never take much more than ``block_bytes``.

    Raises:
        UnsupportedError, VerifyError: as :func:`minimise`.
    """
    structure, arrays = structure_of(problem)
    if order is None or order.structure != structure:
        order = sequence(structure)
    per_point = _bytes_per_point(order)
    length = max(1, min(problem.num_points, block_bytes // per_point))
    for begin in range(0, problem.num_points, length):
        end = min(problem.num_points, begin + length)
        costs = [a[..., begin:end] if a.shape[-1] > 1 else a for a in arrays]
        least, picks = _reduce_all(order, costs, end - begin)
        yield Block(begin, end, _go_back(order, picks, end - begin), least)


def _last_uses(order: Sequence) -> list[int]:
    """Number of the last table that is made of each table; constants are needed to the end."""
    last = [-1] * len(order.tables)
    for number, table in enumerate(order.tables):
        match table:
            case Squeeze(source, _, _):
                last[source] = number
            case Reduce(_, parts, _):
                for source, _ in parts:
                    last[source] = number
    for number, _ in order.constants:
        last[number] = len(order.tables)
    return last


def _bytes_per_point(order: Sequence) -> int:
    """Most that tables take at the same time: sums of 8 bytes until they are used, picks to the end."""
    last = _last_uses(order)
    ends: dict[int, int] = {}
    now = most = 0
    for number, table in enumerate(order.tables):
        if isinstance(table, Reduce):
            cells = math.prod(table.shape)
            now += 9 * cells
            most = max(most, now + 17 * cells)  # while it is made: a second sum, a mask, a part
            ends[last[number]] = ends.get(last[number], 0) + 8 * cells
        now -= ends.pop(number, 0)
    return max(1, most)


def _reduce_all(
    order: Sequence, inputs: list[np.ndarray], num_points: int
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """Least cost ``[P]``, and by table the candidates that reach it ``[..., P or 1]``."""
    last = _last_uses(order)
    done: dict[int, np.ndarray] = {}
    frees: dict[int, list[int]] = {}
    picks: dict[int, np.ndarray] = {}
    for number, table in enumerate(order.tables):
        match table:
            case Input(given, _):
                done[number] = inputs[given]
            case Squeeze(source, axis, _):
                done[number] = done[source].squeeze(axis)
            case Reduce():
                done[number], picks[number] = _reduce(table, done)
        frees.setdefault(last[number], []).append(number)
        for old in frees.pop(number, ()):
            del done[old]
    cost = np.zeros(num_points)
    for number, times in order.constants:
        cost += done[number] * times
    return cost, picks


def _reduce(table: Reduce, done: dict[int, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Least sum of the parts over the variable, and the lowest candidate that reaches it."""
    parts = sorted(((done[source], axes) for source, axes in table.parts), key=lambda p: len(p[1]))
    num_points = max((costs.shape[-1] for costs, _ in parts), default=1)
    shape = (*table.shape, num_points)
    best = _sum(parts, 0, shape)
    pick = np.zeros(shape, np.int8 if table.size < 128 else np.int16)
    for k in range(1, table.size):
        other = _sum(parts, k, shape)
        less = other < best
        np.copyto(best, other, where=less)
        np.copyto(pick, k, where=less, casting="unsafe")
    return best, pick


def _sum(parts: list[tuple[np.ndarray, tuple[int, ...]]], k: int, shape: tuple[int, ...]) -> np.ndarray:
    """Sum of the parts at candidate ``k`` of the variable, over the whole separator."""
    total: np.ndarray | None = None
    for costs, axes in parts:
        at = axes.index(-1)
        part = costs[(slice(None),) * at + (k,)]
        others = [a for a in axes if a >= 0]
        index = tuple([slice(None) if a in others else None for a in range(len(shape) - 1)])
        part = part[index]
        if total is None:
            total = np.array(np.broadcast_to(part, shape)) if len(parts) == 1 else part
        elif total.shape == shape and total.flags.owndata:
            total += part
        else:
            total = total + part
    if total is None:
        return np.zeros(shape)
    return total if total.shape == shape and total.flags.owndata else np.array(np.broadcast_to(total, shape))


def _go_back(order: Sequence, picks: dict[int, np.ndarray], num_points: int) -> tuple[Row, ...]:
    """Choices of all variables; what depends in the same way on the same rows is looked up once."""
    rows: list[Row] = [0] * len(order.structure.sizes)
    known: dict[tuple[int, ...], Row] = {}
    equal: dict[bytes, Row] = {}
    for v, table, separator in reversed(order.steps):
        given = [rows[u] for u in separator]
        key = (table, *[g if isinstance(g, int) else -1 - id(g) for g in given])
        if key not in known:
            known[key] = _unify(_look_up(picks[table], given, num_points), equal)
        rows[v] = known[key]
    return tuple(rows)


def _look_up(pick: np.ndarray, given: list[Row], num_points: int) -> np.ndarray:
    """Entries of ``pick [..., P or 1]`` at the given choices: ``[P or 1]``."""
    if all(isinstance(g, int) for g in given):
        return pick[tuple(given)]
    return pick[(*given, np.arange(num_points) if pick.shape[-1] > 1 else 0)]


def _unify(row: np.ndarray, equal: dict[bytes, Row]) -> Row:
    """One object for all equal rows; a number if it is the same at all points."""
    if row.size == 1 or (row == row[0]).all():
        return int(row[0])
    return equal.setdefault(row.tobytes(), np.ascontiguousarray(row))
