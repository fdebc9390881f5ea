"""Numbers that describe a scheduled function: what a learned model predicts its time from.

Counts are per launch at given sizes, from one walk over the loops with their trip counts; all are on a
logarithmic scale, so that a model sees ratios. The static model of :mod:`strata.planner.loop_cost` is one of
them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from strata.core.dims import evaluate
from strata.loop.nodes import (
    Alloc,
    Binary,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    Load,
    MemSpace,
    Ramp,
    Size,
    Stmt,
    Store,
    Unary,
    Var,
)
from strata.loop.rewrite import free_vars, stmt_children, stmt_exprs, walk
from strata.planner.loop_cost import UNKNOWN_TRIPS, issue_time_s
from strata.target import Target

LEVELS = 5  # loops from the inside, for which the bytes that they touch are a feature
NAMES = (
    "issue_time",
    "operations",
    "lanes",
    "vector_loads",
    "scalar_loads",
    "gathers",
    "stores",
    "masked",
    "loaded_bytes",
    "register_vectors",
    "local_bytes",
    "code",
    "parallel_trips",
    "parallel_forks",
    "parallel_balance",
    "hot_trips",
    "hot_operations",
    "hot_loads",
    "hot_unrolled",
    "depth",
    *(f"footprint_{k}" for k in range(LEVELS)),
)


@dataclass(frozen=True, slots=True)
class _Loop:
    var: Var
    trips: float
    kind: ForKind


@dataclass
class _Counts:
    """What the walk adds up."""

    operations: float = 0.0
    lane_operations: float = 0.0
    vector_loads: float = 0.0
    scalar_loads: float = 0.0
    gathers: float = 0.0
    stores: float = 0.0
    masked: float = 0.0
    loaded_bytes: float = 0.0
    register_bytes: float = 0.0
    local_bytes: float = 0.0
    code: float = 0.0
    parallel_trips: float = 1.0
    forks: float = 0.0
    hot: tuple[float, ...] = (
        0.0,
        0.0,
        0.0,
        0.0,
        0.0,
    )  # operations per launch, trips, operations, loads, unrolled
    depth: int = 0
    footprints: list[float] = field(default_factory=lambda: [0.0] * LEVELS)


def features(func: Func, sizes: Mapping[str, int], target: Target) -> list[float]:
    """One number per entry of :data:`NAMES`.

    Args:
        func: Finalised (stage LOOP_LOWERED).
        sizes: Value of every symbolic dim.
        target: The machine.
    """
    counts = _Counts()
    _walk(func.body, (), counts, sizes)
    cores, trips = target.num_cores, counts.parallel_trips
    _, hot_trips, hot_operations, hot_loads, hot_unrolled = counts.hot
    values = (
        issue_time_s(func, sizes, target) * 1e9,
        counts.operations,
        counts.lane_operations / max(counts.operations, 1.0),
        counts.vector_loads,
        counts.scalar_loads,
        counts.gathers,
        counts.stores,
        counts.masked,
        counts.loaded_bytes,
        counts.register_bytes / target.vector_bytes,
        counts.local_bytes,
        counts.code,
        trips,
        counts.forks,
        math.ceil(trips / cores) * cores / max(trips, 1.0),
        hot_trips,
        hot_operations,
        hot_loads,
        hot_unrolled,
        float(counts.depth),
        *counts.footprints,
    )
    return [math.log2(1.0 + v) for v in values]


def _walk(stmt: Stmt, loops: tuple[_Loop, ...], counts: _Counts, sizes: Mapping[str, int]) -> None:
    """Add up ``stmt`` inside of ``loops``."""
    match stmt:
        case For():
            _enter_loop(stmt, loops, counts, sizes)
            return
        case Alloc():
            num_bytes = stmt.buffer.dtype.itemsize_bytes * math.prod(
                evaluate(d, dict(sizes)) for d in stmt.buffer.shape
            )
            if stmt.buffer.space is MemSpace.REGISTER:
                counts.register_bytes += num_bytes
            elif stmt.buffer.space is MemSpace.LOCAL:
                counts.local_bytes += num_bytes
        case Store():
            _count_store(stmt, loops, counts)
    for child in stmt_children(stmt):
        _walk(child, loops, counts, sizes)


def _enter_loop(loop: For, loops: tuple[_Loop, ...], counts: _Counts, sizes: Mapping[str, int]) -> None:
    trips = _trips(loop.extent, sizes)
    inner = (*loops, _Loop(loop.var, trips, loop.kind))
    if loop.kind is ForKind.PARALLEL:
        counts.parallel_trips = max(counts.parallel_trips, trips)
        counts.forks += math.prod(x.trips for x in loops)
    before = counts.operations, counts.vector_loads + counts.scalar_loads + counts.gathers, counts.code
    _walk(loop.body, inner, counts, sizes)
    if loop.kind is not ForKind.SERIAL or any(s is not loop and _is_serial(s) for s in _loops(loop)):
        return
    total = counts.operations - before[0]
    runs = max(math.prod(x.trips for x in inner), 1.0)
    loads = counts.vector_loads + counts.scalar_loads + counts.gathers - before[1]
    counts.hot = max(counts.hot, (total, trips, total / runs, loads / runs, counts.code - before[2]))


def _loops(stmt: Stmt) -> list[For]:
    found = [stmt] if isinstance(stmt, For) else []
    for child in stmt_children(stmt):
        found += _loops(child)
    return found


def _is_serial(loop: For) -> bool:
    return loop.kind is ForKind.SERIAL


def _count_store(stmt: Store, loops: tuple[_Loop, ...], counts: _Counts) -> None:
    runs = math.prod(x.trips for x in loops)
    counts.depth = max(counts.depth, len(loops))
    counts.code += math.prod(x.trips for x in loops if x.kind is ForKind.UNROLL)
    if stmt.buffer.space is not MemSpace.REGISTER:
        counts.stores += runs
    counts.masked += runs if stmt.mask is not None else 0.0
    seen: set[int] = set()
    for root in stmt_exprs(stmt):
        for node in walk(root):
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, Load):
                _count_load(node, loops, runs, counts)
            elif isinstance(node, Binary | Unary) and node.dtype.is_float:
                counts.operations += runs
                counts.lane_operations += runs * node.lanes


def _count_load(load: Load, loops: tuple[_Loop, ...], runs: float, counts: _Counts) -> None:
    if load.buffer.space is MemSpace.REGISTER:
        return
    last = load.indices[-1] if load.indices else None
    if last is None or last.lanes == 1:
        counts.scalar_loads += runs
    elif isinstance(last, Ramp):
        counts.vector_loads += runs
    else:
        counts.gathers += runs * last.lanes
    num_bytes = load.lanes * load.dtype.itemsize_bytes
    counts.loaded_bytes += runs * num_bytes
    used = {v for i in load.indices for v in free_vars(i)}
    serial = [x for x in loops if x.kind in (ForKind.SERIAL, ForKind.PARALLEL)]
    touched = float(num_bytes) * math.prod(
        x.trips for x in loops if x.kind is ForKind.UNROLL and x.var in used
    )
    for level in range(LEVELS):
        counts.footprints[level] += touched
        if level < len(serial) and serial[-1 - level].var in used:
            touched *= serial[-1 - level].trips


def _trips(extent: Expr, sizes: Mapping[str, int]) -> float:
    """Iterations of a loop; a guess where they depend on other loops or memory."""
    value = _value(extent, sizes)
    return float(UNKNOWN_TRIPS) if value is None else max(value, 0.0)


def _value(expr: Expr, sizes: Mapping[str, int]) -> float | None:
    match expr:
        case Const():
            return float(expr.value)
        case Size():
            return float(evaluate(expr.dim, dict(sizes)))
        case Binary():
            a, b = _value(expr.a, sizes), _value(expr.b, sizes)
            if a is None or b is None:
                return None
            return _ARITHMETIC[expr.op.value](a, b) if expr.op.value in _ARITHMETIC else None
        case _:
            return None


_ARITHMETIC = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b if b else 0.0,
    "%": lambda a, b: a % b if b else 0.0,
    "min": min,
    "max": max,
}
