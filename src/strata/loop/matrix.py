"""Loops for a matrix unit: the note ``matrix`` and what it promises.

A **matrix loop** adds products of tiles to tiles of sums. Its body is nothing but nests of this form, side by
side or under unrolled loops (bf16 with ``G = 2`` elements to a group; i8 times u8 with ``G = 4``)::

    for k in K with matrix=1:
      for r in 16:                      rows of the tile
        for g in 16:                   groups of elements that are added up
          acc[r', ramp(c, 16)] = @dot(acc[r', ramp(c, 16)], x[r'', ramp(g*G + d, G)], w[g'', ramp(e, 16*G)])

where the sums' row ``r'`` is ``r`` and a constant, ``r''`` grows by one with ``r`` up to some last row (which
may be the first: the same row 16 times), ``g''`` grows by one with ``g`` (or, instead, ``e`` by a constant),
and sums are at the same places for every ``k``. So the nest is a product of a ``16 x 16*G`` tile of rows of
``x`` and a tile of ``w``, whose rows have one group for each of 16 columns.

Meaning is that of the loops: an interpreter, and machines without such a unit, run them. With a note
``prefetch_x``, the unit's loop asks for tiles of ``x`` so many iterations ahead.
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.dims import product
from strata.core.dtypes import DType
from strata.core.errors import VerifyError

from .build import mul, sub
from .nodes import (
    MATRIX,
    Alloc,
    Binary,
    BinaryOp,
    Buffer,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    Intrinsic,
    Load,
    Ramp,
    Seq,
    Splat,
    Stmt,
    Store,
    Var,
    index,
)
from .rewrite import free_vars, substitute, walk_stmts
from .simplify import simplify

ROWS = 16
ROW_BYTES = 64
DOTS = {"dot2_bf16": 2, "dot4_u8i8": 4}  # elements of a group
MAX_SUMS = 4  # tiles of sums in registers, beside two of each operand


@dataclass(frozen=True, slots=True)
class Nest:
    """One product of tiles.

    Attributes:
        row, group: Variables of the two loops.
        acc: Where the sums of row ``row`` are.
        x: One group of row ``row``, for all columns.
        w: The groups number ``group`` of all columns.
    """

    row: Var
    group: Var
    acc: Load
    x: Load
    w: Load


def has_matrix_loop(func: Func) -> bool:
    """Whether a part of the function is for a matrix unit."""
    return matrix_sums(func) is not None


def matrix_sums(func: Func) -> DType | None:
    """Dtype of what the function's matrix loops add up (f32: products of bf16); ``None`` if it has none."""
    loops = (s for s in walk_stmts(func) if isinstance(s, For) and dict(s.notes).get(MATRIX))
    return next((nests_of(loop)[0].acc.dtype for loop in loops), None)


def operands_of(loop: For) -> set[str]:
    """Names of the buffers whose tiles a matrix loop multiplies.

    Raises:
        VerifyError: the loop is none.
    """
    return {load.buffer.name for nest in nests_of(loop) for load in (nest.x, nest.w)}


def nests_of(loop: For) -> list[Nest]:
    """The nests of a matrix loop, unrolled loops expanded.

    Raises:
        VerifyError: the loop is none.
    """
    nests = _nests(loop.body)
    if not nests or len(nests) > MAX_SUMS**2:
        raise VerifyError(f"matrix loop {loop.var.name}: got {len(nests)} nests of dot products")
    for nest in nests:
        _check(loop, nest)
    if len({_first(n.acc, n) for n in nests}) > MAX_SUMS:
        raise VerifyError(f"matrix loop {loop.var.name}: got more than {MAX_SUMS} tiles of sums")
    return nests


def begins_at_zero(alloc: Alloc) -> tuple[For, list[Stmt]] | None:
    """The matrix loop whose sums are a buffer that holds nothing but zeros when it begins, all of the buffer.

    Returns:
        The loop, and the statements before it that store the zeros, which it need not load; ``None`` if the
        buffer is not of that kind.
    """
    stmts = alloc.body.stmts if isinstance(alloc.body, Seq) else (alloc.body,)
    loops = [k for k, s in enumerate(stmts) if isinstance(s, For) and dict(s.notes).get(MATRIX)]
    if not loops:
        return None
    loop, before = stmts[loops[0]], stmts[: loops[0]]
    assert isinstance(loop, For)
    nests = nests_of(loop)
    sums = {_first(n.acc, n) for n in nests}
    if any(n.acc.buffer is not alloc.buffer for n in nests):
        return None
    if len(sums) * ROWS * ROWS != product(alloc.buffer.shape) or not all(
        _zeroes(s, alloc.buffer) for s in before
    ):
        return None
    return loop, list(before)


def _zeroes(stmt: Stmt, buffer: Buffer) -> bool:
    """Whether a statement does nothing but store zeros in a buffer."""
    match stmt:
        case Seq():
            return all(_zeroes(s, buffer) for s in stmt.stmts)
        case For():
            return _zeroes(stmt.body, buffer)
        case Store():
            value = stmt.value.a if isinstance(stmt.value, Splat) else stmt.value
            return stmt.buffer is buffer and isinstance(value, Const) and str(value.value) in ("0", "0.0")
        case _:
            return False


def _nests(stmt: Stmt) -> list[Nest]:
    match stmt:
        case Seq():
            return [nest for s in stmt.stmts for nest in _nests(s)]
        case For(kind=ForKind.UNROLL, extent=Const() as count):
            copies = (substitute(stmt.body, {stmt.var: index(k)}) for k in range(int(count.value)))
            return [nest for copy in copies for nest in _nests(copy)]
        case For(body=For(body=Store(mask=None) as store) as inner):
            return [_nest(stmt, inner, store)]
        case _:
            raise VerifyError(
                f"matrix loop: got {type(stmt).__name__.lower()}; expected loops around a store"
            )


def _nest(rows: For, groups: For, store: Store) -> Nest:
    match store.value:
        case Intrinsic(name, (Load() as acc, Load() as a, Load() as c), lanes=16) if name in DOTS:
            x, w = (a, c) if name == "dot2_bf16" else (c, a)
            shape = [int(s.extent.value) if isinstance(s.extent, Const) else 0 for s in (rows, groups)]
            is_tile = shape == [ROWS, ROWS] and x.lanes == DOTS[name]
            if is_tile and acc == Load(store.buffer, store.indices):
                return Nest(rows.var, groups.var, acc, x, w)
        case _:
            pass
    raise VerifyError(
        f"matrix loop: loops {rows.var.name}, {groups.var.name} are not 16 rows and 16 groups of dot products"
    )


def _check(loop: For, nest: Nest) -> None:
    """Sums stay where they are, and rows of all three tiles are one dim of their buffers apart."""
    moves = any(loop.var in free_vars(i) for i in nest.acc.indices)
    wide = nest.x.lanes
    elements = nest.x.indices[-1]
    assert isinstance(elements, Ramp)
    in_line = (
        _steps(nest.acc, nest.row, nest.group)
        and _steps(nest.w, nest.group, nest.row)
        and _steps(nest.x, nest.row, nest.group, shared=True)
        and _is_zero(sub(sub(elements.base, _at_zero(elements.base, nest.group)), mul(nest.group, wide)))
    )
    if moves or not in_line:
        raise VerifyError(f"matrix loop {loop.var.name}: operands are not tiles of rows in line")


def _steps(load: Load, rows: Var, other: Var, *, shared: bool = False) -> bool:
    """Whether one index is an outer value plus ``rows`` (the last one: times a constant), and no other is.

    Of the operand that all columns share, ``other`` moves the last index, and rows may end or stay.
    """
    *outer, last = load.indices
    if (not shared and other in free_vars(last)) or not isinstance(last, Ramp):
        return False
    moving = [i for i in outer if rows in free_vars(i)]
    if len(moving) > 1 or any(other in free_vars(i) for i in outer):
        return False
    if rows in free_vars(last):
        return not moving and not shared and row_distance(load, rows) >= last.lanes
    if not moving:
        return shared
    (row,) = moving
    if isinstance(row, Binary) and row.op is BinaryOp.MIN and rows not in free_vars(row.b):
        row = row.a
    return _is_zero(sub(sub(row, _at_zero(row, rows)), rows))


def row_distance(load: Load, rows: Var) -> int:
    """Elements from row to row where the last index moves, as in stripes (``loop.layout``); else 0."""
    last = load.indices[-1]
    assert isinstance(last, Ramp)
    first = _at_zero(last.base, rows)
    step = simplify(sub(substitute(last.base, {rows: index(1)}), first))
    is_even = _is_zero(sub(sub(last.base, first), mul(rows, step)))
    return int(step.value) if isinstance(step, Const) and is_even else 0


def _at_zero(e: Expr, var: Var) -> Expr:
    return substitute(e, {var: index(0)})


def _is_zero(e: Expr) -> bool:
    return simplify(e) == index(0)


def _first(load: Load, nest: Nest) -> tuple[Expr, ...]:
    return tuple(simplify(_at_zero(i, nest.row)) for i in load.indices)
