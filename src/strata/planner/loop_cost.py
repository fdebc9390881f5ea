"""A static cost model of finalised loop functions: issue slots of one core, counted from the loop IR.

Time is counted in *slots*, the time in which a core issues one full-width multiply-add. Walking the loops
with their trip counts, every statement costs the most that one of these needs::

    arithmetic   one slot per vector operation (a multiply that feeds an add is free), more for exp, div, ...
    loads        one slot per contiguous vector or scalar, one per lane of a gather; none from registers, and
                 none where an unrolled loop loads the same again
    stores       one slot per vector or scalar, one per lane of a scatter; none to registers
    matrix unit  MATRIX_SLOTS per product of tiles
    latency      LATENCY_SLOTS per iteration of a loop that adds to the same element as the one before it

Loops on all threads divide by the number of cores. The figures say which of two schedules is better, not how
many nanoseconds it takes: caches are not modelled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

from strata.core.dims import evaluate
from strata.core.dtypes import DType
from strata.loop.matrix import nests_of
from strata.loop.nodes import (
    COMPARISONS,
    MATRIX,
    Alloc,
    Binary,
    BinaryOp,
    Block,
    Call,
    Cast,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    If,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Ramp,
    Reduce,
    Select,
    Seq,
    Size,
    Splat,
    Stmt,
    Store,
    Unary,
    UnaryOp,
    Var,
)
from strata.loop.rewrite import expr_children, free_vars
from strata.target import Target

LATENCY_SLOTS = 4.0  # of a floating-point add or multiply-add on x86-64 of the 2020s
LOOP_SLOTS = 1.0  # compare, increment and branch of one iteration
FORK_S = 1.5e-6  # wake the threads and wait for the last one
MATRIX_SLOTS = 32.0  # of a product of tiles: 16 cycles (Intel, "Optimization Reference Manual", 20.5)
UNKNOWN_TRIPS = 64  # of a loop whose extent is read from memory
_UNARY_SLOTS = {
    UnaryOp.NEG: 1.0,
    UnaryOp.NOT: 1.0,
    UnaryOp.ABS: 1.0,
    UnaryOp.FLOOR: 1.0,
    UnaryOp.ROUND: 1.0,
    UnaryOp.SQRT: 8.0,
    UnaryOp.RSQRT: 8.0,
    UnaryOp.EXP: 12.0,
    UnaryOp.LOG: 14.0,
    UnaryOp.TANH: 16.0,
    UnaryOp.ERF: 18.0,
    UnaryOp.SIN: 20.0,
    UnaryOp.COS: 20.0,
    UnaryOp.SIGMOID: 16.0,
}
_DIVISION_SLOTS = 6.0


@dataclass(frozen=True, slots=True)
class _Slots:
    """What one run of some code needs."""

    arithmetic: float = 0.0
    loads: float = 0.0
    stores: float = 0.0

    @property
    def total(self) -> float:
        return max(self.arithmetic, self.loads, self.stores)


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where in the function the walk is.

    Attributes:
        env: Values of symbolic dims.
        values: Values of variables that have one here (loop variables stand at their first iteration).
        unrolled: Extents of unrolled loops around, out to the nearest loop that is not.
        target: The machine.
    """

    env: Mapping[str, int]
    values: Mapping[Var, float]
    unrolled: Mapping[Var, float]
    target: Target


def issue_time_s(func: Func, env: Mapping[str, int], target: Target) -> float:
    """Seconds that the cores need to issue the instructions of ``func``, memory aside.

    Args:
        func: Finalised (stage LOOP_LOWERED).
        env: Value of every symbolic dim.
        target: The machine.
    """
    slots = _stmt(func.body, _Scope(env, {}, {}, target))
    per_s = target.peak_f32_flop_per_s / target.num_cores / (2 * target.lanes_f32)
    forks = sum(1.0 for s in _top_level(func.body) if isinstance(s, For) and s.kind is ForKind.PARALLEL)
    return slots / per_s + forks * (FORK_S if target.num_cores > 1 else 0.0)


def _top_level(stmt: Stmt) -> tuple[Stmt, ...]:
    match stmt:
        case Seq():
            return tuple(x for s in stmt.stmts for x in _top_level(s))
        case Alloc() | Let():
            return _top_level(stmt.body)
        case _:
            return (stmt,)


def _stmt(stmt: Stmt, scope: _Scope) -> float:
    match stmt:
        case For():
            return _loop(stmt, scope)
        case Seq():
            return sum(_stmt(s, scope) for s in stmt.stmts)
        case Alloc():
            return _stmt(stmt.body, scope)
        case Let():
            value = _value(stmt.value, scope)
            values = scope.values if value is None else {**scope.values, stmt.var: value}
            inner = _Scope(scope.env, values, scope.unrolled, scope.target)
            return _slots(stmt.value, scope).total + _stmt(stmt.body, inner)
        case If():
            taken = _value(stmt.cond, scope)
            if taken == 0 and stmt.orelse is not None:
                return _stmt(stmt.orelse, scope)
            return _stmt(stmt.then, scope)
        case Store():
            return _store(stmt, scope)
        case Block():
            return _stmt(stmt.body, scope)
        case Call():
            return 0.0  # whoever offers the call knows its cost
        case _:
            assert_never(stmt)


def _loop(loop: For, scope: _Scope) -> float:
    extent = _value(loop.extent, scope)
    trips = float(UNKNOWN_TRIPS if extent is None else extent)
    if dict(loop.notes).get(MATRIX) and scope.target.has_matrix_bf16:
        return trips * len(nests_of(loop)) * MATRIX_SLOTS
    values = {**scope.values, loop.var: 0.0}
    unrolled = {**scope.unrolled, loop.var: trips} if loop.kind is ForKind.UNROLL else {}
    body = _stmt(loop.body, _Scope(scope.env, values, unrolled, scope.target))
    match loop.kind:
        case ForKind.UNROLL | ForKind.VECTORIZE:
            return trips * body
        case ForKind.PARALLEL | ForKind.BLOCK_X | ForKind.BLOCK_Y | ForKind.BLOCK_Z:
            return math.ceil(trips / scope.target.num_cores) * body
        case _:
            chain = LATENCY_SLOTS if _accumulates(loop.body, loop.var) else 0.0
            return trips * (max(body, chain) + LOOP_SLOTS)


def _accumulates(stmt: Stmt, var: Var) -> bool:
    """Whether each iteration adds to elements that the one before it wrote, right in the loop's body."""
    match stmt:
        case Store():
            loads = [e for e in _nodes(stmt.value) if isinstance(e, Load) and e.buffer is stmt.buffer]
            return any(e.indices == stmt.indices for e in loads) and all(
                var not in free_vars(i) for i in stmt.indices
            )
        case Seq():
            return any(_accumulates(s, var) for s in stmt.stmts)
        case For() if stmt.kind is ForKind.UNROLL:
            return _accumulates(stmt.body, var)
        case Let() | Alloc():
            return _accumulates(stmt.body, var)
        case If():
            return _accumulates(stmt.then, var)
        case _:
            return False


def _store(stmt: Store, scope: _Scope) -> float:
    slots = _slots(stmt.value, scope)
    stores = slots.stores + _access_slots(stmt.buffer.space, stmt.buffer.dtype, stmt.indices, scope)
    return _Slots(slots.arithmetic, slots.loads, stores).total


def _nodes(expr: Expr) -> list[Expr]:
    """Distinct nodes of an expression; indices of accesses are left out: addresses are nearly free."""
    found: dict[int, Expr] = {}
    stack = [expr]
    while stack:
        node = stack.pop()
        if id(node) not in found:
            found[id(node)] = node
            stack.extend(() if isinstance(node, Load) else expr_children(node))
    return list(found.values())


def _slots(expr: Expr, scope: _Scope) -> _Slots:
    """Slots of evaluating an expression once."""
    nodes = _nodes(expr)
    fused = {id(m) for n in nodes if isinstance(n, Binary) and n.op in (BinaryOp.ADD, BinaryOp.SUB)
             for m in (n.a, n.b) if isinstance(m, Binary) and m.op is BinaryOp.MUL}  # fmt: skip
    arithmetic = loads = 0.0
    for node in nodes:
        if isinstance(node, Load):
            repeats = math.prod(
                trips
                for var, trips in scope.unrolled.items()
                if all(var not in free_vars(i) for i in node.indices)
            )
            loads += _access_slots(node.buffer.space, node.dtype, node.indices, scope) / max(repeats, 1.0)
        elif id(node) not in fused:
            arithmetic += _operation_slots(node) * _vectors(node.dtype, node.lanes, scope.target)
    return _Slots(arithmetic, loads)


def _operation_slots(node: Expr) -> float:
    match node:
        case Const() | Var() | Size() | Ramp() | Splat() | Load():
            return 0.0
        case Binary():
            if node.lanes == 1 and not node.a.dtype.is_float and node.op not in COMPARISONS:
                return 0.5  # scalar integer units are idle otherwise
            return _DIVISION_SLOTS if node.op is BinaryOp.DIV else 1.0
        case Unary():
            return _UNARY_SLOTS[node.op]
        case Cast() | Select() | Intrinsic():
            return 1.0
        case Reduce():
            return 2.0 * math.log2(max(node.a.lanes, 2))
        case _:
            assert_never(node)


def _vectors(dtype: DType, lanes: int, target: Target) -> float:
    """Full-width registers that ``lanes`` elements take."""
    return max(1.0, lanes * max(dtype.bits, 8) / 8 / target.vector_bytes) if lanes > 1 else 1.0


def _access_slots(space: MemSpace, dtype: DType, indices: tuple[Expr, ...], scope: _Scope) -> float:
    if space is MemSpace.REGISTER:
        return 0.0
    last = indices[-1] if indices else None
    if last is None or last.lanes == 1:
        return 1.0
    return _vectors(dtype, last.lanes, scope.target) if isinstance(last, Ramp) else float(last.lanes)


def _value(expr: Expr, scope: _Scope) -> float | None:
    """Value of a scalar integer expression at the first iteration of the loops around, if it is known."""
    match expr:
        case Const():
            return float(expr.value)
        case Var():
            return scope.values.get(expr)
        case Size():
            return float(evaluate(expr.dim, scope.env))
        case Binary() if expr.lanes == 1:
            a, b = _value(expr.a, scope), _value(expr.b, scope)
            return None if a is None or b is None else _binary_value(expr.op, a, b)
        case _:
            return None


def _binary_value(op: BinaryOp, a: float, b: float) -> float | None:
    match op:
        case BinaryOp.ADD:
            return a + b
        case BinaryOp.SUB:
            return a - b
        case BinaryOp.MUL:
            return a * b
        case BinaryOp.FLOORDIV:
            return a // b if b else None
        case BinaryOp.FLOORMOD:
            return a % b if b else None
        case BinaryOp.MIN:
            return min(a, b)
        case BinaryOp.MAX:
            return max(a, b)
        case BinaryOp.LT:
            return float(a < b)
        case BinaryOp.LE:
            return float(a <= b)
        case BinaryOp.GT:
            return float(a > b)
        case BinaryOp.GE:
            return float(a >= b)
        case BinaryOp.EQ:
            return float(a == b)
        case BinaryOp.NE:
            return float(a != b)
        case BinaryOp.AND:
            return float(bool(a) and bool(b))
        case BinaryOp.OR:
            return float(bool(a) or bool(b))
        case BinaryOp.DIV:
            return None
        case _:
            assert_never(op)
