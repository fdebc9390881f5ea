"""Prefetches: what ``finalize`` makes of loops with a note ``prefetch_x = distance``.

At the beginning of each iteration, the loop asks for the cache lines of ``x`` that the iteration ``distance``
later reads::

    for k in K with prefetch_w=8:         for k in K:
      acc[ramp(0, 16)] = ...        ->      nothing[0] = @prefetch<i32>(w[j, k + 8, 0])
        w[j, k, ramp(0, 16)] ...            acc[ramp(0, 16)] = ... w[j, k, ramp(0, 16)] ...

Loops for a matrix unit keep their notes: the code generator asks for tiles.

Indices may leave the buffer: a prefetch is an address, not an access. Past the end of a tile it is that of
the next tile in memory, which is most often the one that is read next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from strata.core.dtypes import i32
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.affine import Monomial
from strata.loop.analysis import Analysis
from strata.loop.matrix import operands_of
from strata.loop.nodes import (
    MATRIX,
    PREFETCH,
    Alloc,
    Buffer,
    Const,
    Expr,
    For,
    ForKind,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Ramp,
    Splat,
    Stmt,
    Store,
    index,
    seq,
)
from strata.loop.rewrite import (
    free_vars,
    has_load,
    map_stmt,
    stmt_children,
    stmt_exprs,
    substitute,
    walk,
    walk_stmts,
)
from strata.target import CACHE_LINE_BYTES

_INTRINSICS = {1: "prefetch1", 2: "prefetch"}


def insert_prefetches(stmt: Stmt) -> Stmt:
    """``stmt`` (vectors made) with prefetches in place of the notes that ask for them.

    Raises:
        LegalityError: a loop reads nothing of a buffer that it is to prefetch, or not at fixed distances.
    """
    return map_stmt(stmt, stmt_fn=_with_prefetches)


def _with_prefetches(stmt: Stmt) -> Stmt:
    if not isinstance(stmt, For):
        return stmt
    wanted = [
        (key.removeprefix(prefix), value, level)
        for key, value in stmt.notes
        for level, prefix in PREFETCH.items()
        if key.startswith(prefix)
    ]
    if not wanted:
        return stmt
    nothing, body = Buffer("nothing", (1,), i32, MemSpace.REGISTER), stmt.body
    for name, distance, level in wanted:
        where = f"prefetch: loop {stmt.var.name}"
        if not isinstance(distance, int) or distance < 1:
            raise LegalityError(f"{where}: got a distance of {distance!r}; expected a positive integer")
        if dict(stmt.notes).get(MATRIX):
            if name not in operands_of(stmt):
                raise LegalityError(f"{where} multiplies no tiles of {name}")
            continue
        fetches = list(_fetches(stmt, name, distance, level, nothing))
        if not fetches:
            raise LegalityError(f"{where} reads nothing of {name} outside of inner loops, where it can tell")
        body = seq(*fetches, body)
    if body is stmt.body:
        return stmt
    notes = tuple(note for note in stmt.notes if not note[0].startswith(tuple(PREFETCH.values())))
    return replace(stmt, body=Alloc(nothing, body), notes=notes)


def _fetches(loop: For, name: str, distance: int, level: int, nothing: Buffer) -> Iterator[Stmt]:
    """One prefetch per cache line of ``name`` that an iteration reads."""
    known, groups = Analysis(), dict[frozenset[tuple[Monomial, int]], tuple[Load, int, set[int]]]()
    bound = {s.var for s in walk_stmts(loop.body) if isinstance(s, For | Let)}
    for load in _loads(loop.body, name):
        if any(has_load(i) or free_vars(i) & bound for i in load.indices):
            continue  # where it will be cannot be told beforehand
        address = known.poly(_offset(load))
        start = address.terms.get((), 0)
        group = frozenset(address.without(()).terms.items())
        _, first, elements = groups.setdefault(group, (load, start, set()))
        elements.update(range(start - first, start - first + load.lanes))
    for load, _, elements in groups.values():
        per_line = CACHE_LINE_BYTES // load.dtype.itemsize_bytes
        for line in sorted({e // per_line for e in elements}):
            *outer, last = (substitute(_base(i), {loop.var: b.add(loop.var, distance)}) for i in load.indices)
            place = Load(load.buffer, (*outer, b.add(last, line * per_line)))
            yield Store(nothing, (index(0),), Intrinsic(_INTRINSICS[level], (place,), i32, 1))


def _loads(stmt: Stmt, name: str) -> Iterator[Load]:
    """Loads of a buffer in memory, those of unrolled loops once per iteration."""
    for root in stmt_exprs(stmt):
        for expr in walk(root):
            if isinstance(expr, Load) and expr.indices and _is_in_memory(expr.buffer, name):
                yield expr
    match stmt:
        case For(kind=ForKind.UNROLL, extent=Const(value=count)):
            for k in range(int(count)):
                yield from _loads(substitute(stmt.body, {stmt.var: index(k)}), name)
        case For():
            return
        case _:
            for child in stmt_children(stmt):
                yield from _loads(child, name)


def _is_in_memory(buffer: Buffer, name: str) -> bool:
    return buffer.name == name and buffer.space is not MemSpace.REGISTER


def _base(position: Expr) -> Expr:
    """Index of the first lane."""
    match position:
        case Ramp():
            return position.base
        case Splat():
            return position.a
        case _:
            return position


def _offset(load: Load) -> Expr:
    """Element at which the first lane lies."""
    found: Expr = index(0)
    for position, extent in zip(load.indices, load.buffer.shape, strict=True):
        found = b.add(b.mul(found, b.size(extent)), _base(position))
    return found
