"""Steps on loops: split, fuse, reorder, and how a loop is executed."""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis, has_load
from strata.loop.nodes import AxisKind, Block, Call, Const, Expr, For, ForKind, Func, Stmt, Store, Var, index
from strata.loop.rewrite import free_vars, map_stmt, stmt_children, stmt_exprs, substitute, walk_stmts
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

MAX_LANES = 64  # also of an unrolled loop: beyond it the code only grows


def _guarded(stmt: Stmt, condition: Expr) -> Stmt:
    """``condition`` added to the predicate of every block in ``stmt``."""

    def change(s: Stmt) -> Stmt:
        if not isinstance(s, Block):
            return s
        predicate = condition if s.predicate is None else b.and_(s.predicate, condition)
        return Block(s.name, s.axes, s.body, s.init, predicate)

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

    The guard is left out where f provably divides N. New loops are called ``<loop>o`` and ``<loop>i``.

    Legal when: the loop is serial and factor >= 1; if the factor may not divide the extent, everything inside
    that touches memory must be in a block, which takes the guard.
    """

    loop: str
    factor: int

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
        outer, inner = Var(self.loop + "o"), Var(self.loop + "i")
        check_new_names(func, "split", (outer.name, inner.name))
        position = b.add(b.mul(outer, index(self.factor)), inner)
        body = substitute(loop.body, {loop.var: position})
        if not Analysis().prove(b.eq(b.floormod(loop.extent, index(self.factor)), index(0))):
            why = _unguardable(body)
            if why is not None:
                what = f"factor {self.factor} may not divide loop {self.loop}, which cannot be guarded"
                raise LegalityError(f"split: {what}: {why}")
            body = _guarded(body, b.lt(position, loop.extent))
        inner_loop = For(inner, index(self.factor), loop.kind, body)
        outer_loop = For(outer, b.ceildiv(loop.extent, self.factor), loop.kind, inner_loop)
        return replace_stmt(func, loop, outer_loop)


def _check_serial(step: str, *loops: For) -> None:
    for loop in loops:
        if loop.kind is not ForKind.SERIAL:
            raise LegalityError(
                f"{step}: loop {loop.var.name} is {loop.kind.value}; expected a serial loop; {step} first"
            )


@register
@dataclass(frozen=True, slots=True)
class Fuse(Step):
    """Fuse two perfectly nested loops into one called ``name``.

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
        return replace_stmt(func, outer, For(fused, b.mul(outer.extent, inner.extent), outer.kind, body))


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
            result = For(loop.var, loop.extent, loop.kind, result)
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


def _set_kind(func: Func, name: str, kind: ForKind) -> Func:
    loop = find_loop(func, name)
    return replace_stmt(func, loop, For(loop.var, loop.extent, kind, loop.body))


def _check_extent(func: Func, name: str, what: str) -> None:
    extent = find_loop(func, name).extent
    if not isinstance(extent, Const) or not 1 <= int(extent.value) <= MAX_LANES:
        raise LegalityError(f"{what}: loop {name} needs a constant extent of 1..{MAX_LANES}")


@register
@dataclass(frozen=True, slots=True)
class Unroll(Step):
    """Expand the loop's iterations in place (done by the code generator).

    Rewrite::

        for i in 4: S(i)   ->   unroll i in 4: S(i)        which runs as S(0); S(1); S(2); S(3)

    Legal when: the extent is a constant of at most 64.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "unroll"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        _check_extent(func, self.loop, "unroll")
        return _set_kind(func, self.loop, ForKind.UNROLL)


@register
@dataclass(frozen=True, slots=True)
class Vectorize(Step):
    """Turn the loop's iterations into the lanes of vectors (done by ``finalize``).

    Rewrite::

        for i in 16: y[j, i] = x[i]   ->   vectorize i in 16: ...   which becomes   y[j, ramp(0, 16)] =
            x[ramp(0, 16)]

    Legal when: the extent is a constant of at most 64, and no iteration touches what another one writes,
    apart from horizontal reductions ``x[j] = x[j] op f(i)``. What the body may contain is checked when the
    function is finalised.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "vectorize"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        _check_extent(func, self.loop, "vectorize")
        loop = find_loop(func, self.loop)
        why = carried(loop, scope_of(func, loop), reductions=True)
        if why is not None:
            raise LegalityError(f"vectorize: {why}")
        return _set_kind(func, self.loop, ForKind.VECTORIZE)


@register
@dataclass(frozen=True, slots=True)
class Parallel(Step):
    """Run the loop's iterations on several threads.

    Rewrite::

        for i in N: S(i)   ->   parallel i in N: S(i)

    Legal when: no iteration touches what another one writes.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "parallel"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        loop = find_loop(func, self.loop)
        why = carried(loop, scope_of(func, loop))
        if why is not None:
            raise LegalityError(f"parallel: {why}")
        return _set_kind(func, self.loop, ForKind.PARALLEL)
