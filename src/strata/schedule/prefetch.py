"""Prefetches: what ``finalize`` makes of loops with a note ``prefetch_x = distance``.

At the beginning of each iteration, the loop asks for the cache lines of ``x`` that the iteration ``distance``
later reads::

    for k in K with prefetch_w=8:         for k in K:
      acc[ramp(0, 16)] = ...        ->      nothing[0] = @prefetch<i32>(w[j, k + 8, 0])
        w[j, k, ramp(0, 16)] ...            acc[ramp(0, 16)] = ... w[j, k, ramp(0, 16)] ...

Where only loops inside of it read ``x``, these ask for what they will read ``distance`` iterations of the
outer one later. If one of them does not change what is read (a loop over rows), its first two iterations
ask for half each, so that memory is busy in both, or the first one for an odd number of lines. Nobody asks if
it has but one::

    parallel n in N with prefetch_w=1:        parallel n in N:
      for m in M:                               for m in M:
        for k in K:                               for k in K:
          ... w[n, k, ramp(0, 32)] ...      ->      if M > 1 and m < 2:
                                                      nothing[0] = @prefetch<i32>(w[n + 1, k, m * 16])
                                                    ... w[n, k, ramp(0, 32)] ...

Loops for a matrix unit keep their notes: the code generator asks for tiles.

Indices may leave the buffer: a prefetch is an address, not an access. Past the end of a tile it is that of
the next tile in memory, which is most often the one that is read next.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

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
    If,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Ramp,
    Splat,
    Stmt,
    Store,
    Var,
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
NOTHING = Buffer("nothing", (1,), i32, MemSpace.REGISTER)


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
    asks: dict[Var, list[Stmt]] = {}
    for name, distance, level in wanted:
        where = f"prefetch: loop {stmt.var.name}"
        if not isinstance(distance, int) or distance < 1:
            raise LegalityError(f"{where}: got a distance of {distance!r}; expected a positive integer")
        if dict(stmt.notes).get(MATRIX):
            if name not in operands_of(stmt):
                raise LegalityError(f"{where} multiplies no tiles of {name}")
            continue
        found = _asks(stmt, _Wanted(stmt.var, name, distance, level))
        if not found:
            raise LegalityError(f"{where} reads nothing of {name} where it can tell")
        for var, more in found.items():
            asks.setdefault(var, []).extend(more)
    if not asks:
        return stmt
    notes = tuple(note for note in stmt.notes if not note[0].startswith(tuple(PREFETCH.values())))
    return map_stmt(replace(stmt, notes=notes), stmt_fn=lambda s: _asking(s, asks))


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a loop is to ask for.

    Attributes:
        var: Of the loop.
        name: The buffer.
        distance: Iterations ahead.
        level: Of the cache.
    """

    var: Var
    name: str
    distance: int
    level: int

    def ask(self, load: Load, line: Expr | int) -> Stmt:
        """A prefetch of the cache line that lies ``line`` lines behind that of a load."""
        ahead = {self.var: b.add(self.var, self.distance)}
        *outer, last = (substitute(_base(i), ahead) for i in load.indices)
        place = Load(load.buffer, (*outer, b.add(last, b.mul(line, _per_line(load)))))
        return Store(NOTHING, (index(0),), Intrinsic(_INTRINSICS[self.level], (place,), i32, 1))


def _asks(loop: For, wanted: _Wanted) -> dict[Var, list[Stmt]]:
    """Prefetches by the loop that they belong to: this one, or loops inside of it."""
    own = [wanted.ask(load, line) for load, lines in _lines(loop.body, wanted.name) for line in lines]
    if own:
        return {loop.var: own}
    found: dict[Var, list[Stmt]] = {}
    unknown = {s.var for s in walk_stmts(loop.body) if isinstance(s, Let)}
    for inner, around in _inner_loops(loop.body):
        for load, lines in _lines(inner.body, wanted.name):
            read = {v for i in load.indices for v in free_vars(i)}
            if read & unknown:
                continue
            again = [x for x in (*around, inner) if x.var not in read]
            if not again:
                found.setdefault(inner.var, []).extend(wanted.ask(load, line) for line in lines)
            elif len(again) == 1:
                found.setdefault(inner.var, []).append(_shared(again[0], wanted, load, lines))
    return found


def _shared(rows: For, wanted: _Wanted, load: Load, lines: list[int]) -> Stmt:
    """Half of the cache lines in each of the first two iterations of ``rows``, if it has two.

    All of them in the first one where no halves can be made.
    """
    shares = 2 if len(lines) % 2 == 0 and lines == list(range(len(lines))) else 1
    count = len(lines) // shares
    asks = (wanted.ask(load, b.add(b.mul(rows.var, count * (shares - 1)), k)) for k in lines[:count])
    return If(b.and_(b.gt(rows.extent, 1), b.lt(rows.var, shares)), seq(*asks))


def _asking(stmt: Stmt, asks: Mapping[Var, list[Stmt]]) -> Stmt:
    """A loop with the prefetches that belong at the beginning of its body."""
    if not isinstance(stmt, For) or stmt.var not in asks:
        return stmt
    return replace(stmt, body=seq(Alloc(NOTHING, seq(*asks[stmt.var])), stmt.body))


def _inner_loops(stmt: Stmt, around: tuple[For, ...] = ()) -> Iterator[tuple[For, tuple[For, ...]]]:
    """Loops that are not unrolled, each with those around it."""
    if isinstance(stmt, For):
        if stmt.kind is ForKind.UNROLL:
            return
        yield stmt, around
        around = (*around, stmt)
    for child in stmt_children(stmt):
        yield from _inner_loops(child, around)


def _lines(body: Stmt, name: str) -> Iterator[tuple[Load, list[int]]]:
    """Cache lines of ``name`` that an iteration reads, counted from that of a load, which comes with them."""
    known, groups = Analysis(), dict[frozenset[tuple[Monomial, int]], tuple[Load, int, set[int]]]()
    bound = {s.var for s in walk_stmts(body) if isinstance(s, For | Let)}
    for load in _loads(body, name):
        if any(has_load(i) or free_vars(i) & bound for i in load.indices):
            continue  # where it will be cannot be told beforehand
        address = known.poly(_offset(load))
        start = address.terms.get((), 0)
        group = frozenset(address.without(()).terms.items())
        _, first, elements = groups.setdefault(group, (load, start, set()))
        elements.update(range(start - first, start - first + load.lanes))
    for load, _, elements in groups.values():
        yield load, sorted({e // _per_line(load) for e in elements})


def _per_line(load: Load) -> int:
    return CACHE_LINE_BYTES // load.dtype.itemsize_bytes


def _loads(stmt: Stmt, name: str, unrolled: Mapping[Var, int] | None = None) -> Iterator[Load]:
    """Loads of a buffer in memory, those of unrolled loops once per iteration."""
    for root in stmt_exprs(stmt):
        for expr in walk(root):
            if isinstance(expr, Load) and expr.indices and _is_in_memory(expr.buffer, name):
                yield from _iterations(expr, unrolled or {})
    match stmt:
        case For(kind=ForKind.UNROLL, extent=Const(value=count)):
            yield from _loads(stmt.body, name, {**(unrolled or {}), stmt.var: int(count)})
        case For():
            return
        case _:
            for child in stmt_children(stmt):
                yield from _loads(child, name, unrolled)


def _iterations(load: Load, unrolled: Mapping[Var, int]) -> Iterator[Load]:
    """``load`` for all values of those of the loop variables that it depends on."""
    free = {v for i in load.indices for v in free_vars(i)}
    moving = [var for var in unrolled if var in free]
    for values in itertools.product(*(range(unrolled[var]) for var in moving)):
        at = {var: index(k) for var, k in zip(moving, values, strict=True)}
        yield Load(load.buffer, tuple(substitute(i, at) for i in load.indices))


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
