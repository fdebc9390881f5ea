"""Steps on the structure of loops: split, tile, fuse, merge, reorder, pad."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.nodes import (
    AxisKind,
    Block,
    Call,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    Seq,
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
    refresh,
    stmt_children,
    stmt_exprs,
    substitute,
    walk_stmts,
)
from strata.schedule.dependence import (
    carried,
    determines,
    init_comes_first,
    is_reduction,
    one_element,
    scope_of,
    stores_of,
    with_loop,
)
from strata.schedule.step import Step, check_new_names, find_loop, register, replace_stmt

from .stages import names_in

TAILS = ("guard", "peel", "exact")


def _guarded(stmt: Stmt, condition: Expr) -> Stmt:
    """``condition`` added to the predicate of every block in ``stmt``."""

    def change(s: Stmt) -> Stmt:
        if not isinstance(s, Block):
            return s
        predicate = condition if s.predicate is None else b.and_(s.predicate, condition)
        return replace(s, predicate=predicate)

    return map_stmt(stmt, stmt_fn=change)


def _unguardable(stmt: Stmt) -> str | None:
    """What in ``stmt`` no predicate of a block would keep from running, or ``None``."""
    if any(has_load(e) for e in stmt_exprs(stmt)):
        return "it reads memory outside of blocks"
    if isinstance(stmt, Store):
        return "it stores outside of blocks"
    if isinstance(stmt, Call):
        return f"it calls @{stmt.extern}"
    if isinstance(stmt, Block):
        return None
    return next((why for s in stmt_children(stmt) if (why := _unguardable(s)) is not None), None)


@register
@dataclass(frozen=True, slots=True)
class Split(Step):
    """Split a loop in two.

    Rewrite::

        for i in N: S(i)   ->   for io in ceil(N/f): for ii in f: S(io*f + ii)  where io*f + ii < N

        for i in N: S(i)   ->   for io in N // f: for ii in f: S(io*f + ii)                    (tail=peel)
                                for it in N % f: S(N // f * f + it)

    The guard is left out where f provably divides N. New loops are called ``<loop>o`` and ``<loop>i``. With
    ``tail=peel`` the iterations that are left over have a loop ``<loop>t`` of their own, so that the others
    need no guard; loops and blocks in it have ``_tail`` appended. ``tail=exact`` refuses to guard.

    Legal when: the loop is serial and factor >= 1; if the factor may not divide the extent, everything inside
    that touches memory must be in a block, which takes the guard (guard), or the extent must not come from
    memory nor be negative (peel).
    """

    loop: str
    factor: int
    tail: str = "guard"

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "split"

    def apply(self, func: Func) -> Func:
        """Split the loop."""
        loop = find_loop(func, self.loop)
        _check_serial("split", loop)
        if self.factor < 1:
            raise LegalityError(f"split: got factor {self.factor}; expected at least 1")
        if self.tail not in TAILS:
            raise LegalityError(f"split: got tail {self.tail!r}; expected one of {', '.join(TAILS)}")
        outer, inner = Var(self.loop + "o"), Var(self.loop + "i")
        position = b.add(b.mul(outer, index(self.factor)), inner)
        body = substitute(loop.body, {loop.var: position})
        divides = Analysis().prove(b.eq(b.floormod(loop.extent, index(self.factor)), index(0)))
        names, rest = (outer.name, inner.name), Seq(())
        count = b.ceildiv(loop.extent, self.factor)
        if not divides and self.tail == "exact":
            raise LegalityError(f"split: {_not_a_divisor(loop, self.factor)}")
        if not divides and self.tail == "peel":
            count, rest = b.floordiv(loop.extent, index(self.factor)), self._rest(func, loop)
            names = (*names, *names_in(rest))
        elif not divides:
            why = _unguardable(body)
            if why is not None:
                what = f"factor {self.factor} may not divide loop {self.loop}, which cannot be guarded"
                raise LegalityError(f"split: {what}: {why}")
            body = _guarded(body, b.lt(position, loop.extent))
        check_new_names(func, "split", names)
        nest = replace(loop, var=outer, extent=count, body=For(inner, index(self.factor), loop.kind, body))
        return replace_stmt(func, loop, seq(nest, rest))

    def _rest(self, func: Func, loop: For) -> Stmt:
        """A loop over the iterations that are left over."""
        if has_load(loop.extent):
            raise LegalityError(f"split: extent of {self.loop} comes from memory; use tail=guard")
        if not scope_of(func, loop).prove(b.ge(loop.extent, 0)):
            raise LegalityError(f"split: extent of {self.loop} may be negative; use tail=guard")
        start = b.mul(b.floordiv(loop.extent, index(self.factor)), index(self.factor))
        var = Var(self.loop + "t")
        body = _renamed(refresh(loop.body), "_tail")
        body = substitute(body, {loop.var: b.add(start, var)})
        return For(var, b.floormod(loop.extent, index(self.factor)), loop.kind, body)


def _not_a_divisor(loop: For, factor: int) -> str:
    """What to write instead of a factor that does not divide the extent."""
    name, hint = loop.var.name, "use tail=guard or tail=peel"
    if not isinstance(loop.extent, Const):
        return f"factor {factor} may not divide the extent of loop {name}; {hint}"
    extent = int(loop.extent.value)
    near = [k for k in range(2, extent) if extent % k == 0 and factor <= 2 * k and k <= 2 * factor]
    others = f", or a factor of {', '.join(map(str, near))}" if near else ""
    return f"factor {factor} does not divide loop {name} of {extent} iterations; {hint}{others}"


def _renamed(stmt: Stmt, suffix: str) -> Stmt:
    """``stmt`` with a suffix on the names of its loops and blocks."""

    def change(s: Stmt) -> Stmt:
        match s:
            case For():
                var = Var(s.var.name + suffix)
                return replace(s, var=var, body=substitute(s.body, {s.var: var}))
            case Block():
                return replace(s, name=s.name + suffix)
            case _:
                return s

    return map_stmt(stmt, stmt_fn=change)


def _check_serial(step: str, *loops: For) -> None:
    for loop in loops:
        if loop.kind is not ForKind.SERIAL:
            raise LegalityError(
                f"{step}: loop {loop.var.name} is {loop.kind.value}; expected a serial loop; {step} first"
            )


@register
@dataclass(frozen=True, slots=True)
class Fuse(Step):
    """Fuse two perfectly nested loops into one called ``name``, which has the notes of both.

    Rewrite::

        for i in N: for j in M: S(i, j)   ->   for f in N*M: S(f // M, f % M)

    Legal when: both are serial, ``inner`` is the whole body of ``outer``, M depends neither on i nor on
    memory, and N or M is certainly not negative.
    """

    outer: str
    inner: str
    name: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "fuse"

    def apply(self, func: Func) -> Func:
        """Fuse the loops."""
        outer, inner = find_loop(func, self.outer), find_loop(func, self.inner)
        _check_serial("fuse", outer, inner)
        if outer.body is not inner:
            raise LegalityError(f"fuse: loop {self.inner} is not the whole body of loop {self.outer}")
        if outer.var in free_vars(inner.extent):
            raise LegalityError(f"fuse: extent of {self.inner} depends on {self.outer}")
        if has_load(inner.extent):
            raise LegalityError(f"fuse: extent of {self.inner} comes from memory")
        known = scope_of(func, outer)
        if not known.prove(b.ge(outer.extent, 0)) and not known.prove(b.ge(inner.extent, 0)):
            raise LegalityError(f"fuse: extents of {self.outer} and {self.inner} may both be negative")
        check_new_names(func, "fuse", (self.name,), leaving=(self.outer, self.inner))
        fused = Var(self.name)
        where: dict[Var, Expr] = {
            outer.var: b.floordiv(fused, inner.extent),
            inner.var: b.floormod(fused, inner.extent),
        }
        if isinstance(inner.extent, Const) and inner.extent.value == 1:
            where = {outer.var: fused, inner.var: index(0)}
        body = substitute(inner.body, where)
        extent, notes = b.mul(outer.extent, inner.extent), tuple(dict((*inner.notes, *outer.notes)).items())
        return replace_stmt(func, outer, For(fused, extent, outer.kind, body, notes))


@register
@dataclass(frozen=True, slots=True)
class Merge(Step):
    """Let one loop do the work of two that follow each other; it is named ``second`` and has all notes.

    Rewrite::

        for i in N: S(i)   ->   for j in N: S(j); T(j)
        for j in N: T(j)

    Legal when: both are serial, the second follows the first directly, extents are the same, and iterations
    of the one loop are independent: T(j) reads nothing that another iteration writes.
    """

    first: str
    second: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "merge"

    def apply(self, func: Func) -> Func:
        """Merge the loops."""
        first, second = find_loop(func, self.first), find_loop(func, self.second)
        _check_serial("merge", first, second)
        around = next(
            (s for s in walk_stmts(func) if isinstance(s, Seq) and _follows(s, first, second)), None
        )
        if around is None:
            raise LegalityError(f"merge: loop {self.second} does not follow loop {self.first} directly")
        known = scope_of(func, first)
        if not known.prove(b.eq(first.extent, second.extent)):
            raise LegalityError(f"merge: extents of {self.first} and {self.second} may differ")
        body = seq(substitute(first.body, {first.var: second.var}), second.body)
        notes = tuple(dict((*first.notes, *second.notes)).items())
        merged = replace(second, body=body, notes=notes)
        why = carried(merged, known)
        if why is not None:
            raise LegalityError(f"merge: {why}")
        rest = [merged if s is second else s for s in around.stmts if s is not first]
        return replace_stmt(func, around, seq(*rest))


def _follows(stmts: Seq, first: Stmt, second: Stmt) -> bool:
    return any(x is first and y is second for x, y in itertools.pairwise(stmts.stmts))


@register
@dataclass(frozen=True, slots=True)
class Reorder(Step):
    """Permute loops of one perfect nest into the given order (outermost first).

    Rewrite::

        for i: for j: for k: S   ->   for k: for i: for j: S        (loops=k|i|j)

    Legal when: the loops are serial or unrolled and perfectly nested around one block (other loops in between
    keep their place); no extent depends on a loop of the nest; the element that an instance of the block
    writes is its own, or one that it and others add to (``x = x op f``), with an ``init`` that still comes
    first.
    """

    loops: tuple[str, ...]

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "reorder"

    def apply(self, func: Func) -> Func:
        """Permute the loops."""
        if len(set(self.loops)) != len(self.loops) or not self.loops:
            raise LegalityError(f"reorder: got loops {'|'.join(self.loops)!r}; expected distinct loops")
        named = [find_loop(func, name) for name in self.loops]
        chain, block = self._chain(func, {id(x) for x in named})
        for loop in chain:
            if loop.kind not in (ForKind.SERIAL, ForKind.UNROLL):
                raise LegalityError(
                    f"reorder: loop {loop.var.name} is {loop.kind.value} already; reorder first"
                )
            if {x.var for x in chain} & set(free_vars(loop.extent)) or has_load(loop.extent):
                raise LegalityError(
                    f"reorder: extent of {loop.var.name} depends on a loop of the nest or memory"
                )
        why = _order_matters(block, chain, scope_of(func, chain[0]))
        if why is not None:
            raise LegalityError(f"reorder: {why}")
        order = iter(named)
        moving = {id(x) for x in named}
        placed = [next(order) if id(x) in moving else x for x in chain]
        result: Stmt = chain[-1].body
        for loop in reversed(placed):
            result = replace(loop, body=result)
        return replace_stmt(func, chain[0], result)

    def _chain(self, func: Func, moving: set[int]) -> tuple[list[For], Block]:
        """Loops from the outermost to the innermost one that moves, and the one block inside."""
        stmt: Stmt = next(s for s in walk_stmts(func) if id(s) in moving)
        nest: list[For] = []
        while isinstance(stmt, For):
            nest.append(stmt)
            stmt = stmt.body
        places = [k for k, x in enumerate(nest) if id(x) in moving]
        if len(places) != len(moving) or not isinstance(stmt, Block):
            raise LegalityError(
                f"reorder: loops {', '.join(self.loops)} are not perfectly nested around one block"
            )
        return nest[: places[-1] + 1], stmt


def _order_matters(block: Block, chain: list[For], known: Analysis) -> str | None:
    """Why the loops ``chain`` around ``block`` may not be permuted, or ``None``."""
    why = one_element(block)
    if why is not None:
        return why
    for loop in chain:
        known = with_loop(known, loop)
    variables = [x.var for x in chain]
    over = {
        v for a in block.axes if a.kind is AxisKind.REDUCTION for v in free_vars(a.value) if v in variables
    }
    own = [v for v in variables if v not in over]
    for store in stores_of(block):
        if not determines([*store.indices, *store.promised], own, variables, known):
            return f"several iterations write one element of {store.buffer.name}"
    if not over:
        return None
    if not is_reduction(block):
        return f"block {block.name} has reduction axes but is no reduction x = x op f"
    return None if block.init is None else init_comes_first(block, over, variables, known)


@register
@dataclass(frozen=True, slots=True)
class Tile(Step):
    """Split several loops of a nest and put the outer parts outside of the inner ones: blocks of the domain.

    Rewrite::

        for i: for j: S(i, j)   ->   for io: for jo: for ii in 4: for ji in 64: S(io*4 + ii, jo*64 + ji)

        (loops=i|j, factors=4|64; guards as for ``split``)

    Legal when: every loop may be split, and the parts reordered.
    """

    loops: tuple[str, ...]
    factors: tuple[int, ...]

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "tile"

    def apply(self, func: Func) -> Func:
        """Split, then reorder."""
        if len(self.loops) != len(self.factors):
            raise LegalityError(
                f"tile: got {len(self.loops)} loops and {len(self.factors)} factors; expected one per loop"
            )
        try:
            for loop, factor in zip(self.loops, self.factors, strict=True):
                func = Split(loop, factor).apply(func)
            return Reorder((*(x + "o" for x in self.loops), *(x + "i" for x in self.loops))).apply(func)
        except LegalityError as error:
            raise LegalityError(f"tile: {error}") from None


@register
@dataclass(frozen=True, slots=True)
class Pad(Step):
    """Let a loop run up to a multiple, with guards: splits by divisors of it need no guards of their own.

    Rewrite::

        for i in N: S(i)   ->   for i in ceil(N/m)*m: S(i)  where i < N                        (multiple=m)

    Nothing changes where m provably divides N.

    Legal when: the loop is serial, multiple >= 1, and everything inside that touches memory is in a block,
    which takes the guard.
    """

    loop: str
    multiple: int

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "pad"

    def apply(self, func: Func) -> Func:
        """Extend the loop."""
        loop = find_loop(func, self.loop)
        _check_serial("pad", loop)
        if self.multiple < 1:
            raise LegalityError(f"pad: got multiple {self.multiple}; expected at least 1")
        extent = loop.extent
        if Analysis().prove(b.eq(b.floormod(extent, index(self.multiple)), index(0))):
            return func
        why = _unguardable(loop.body)
        if why is not None:
            raise LegalityError(f"pad: loop {self.loop} cannot be guarded: {why}")
        more = b.mul(b.ceildiv(extent, self.multiple), index(self.multiple))
        body = _guarded(loop.body, b.lt(loop.var, extent))
        return replace_stmt(func, loop, replace(loop, extent=more, body=body))
