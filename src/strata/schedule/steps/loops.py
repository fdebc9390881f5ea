"""Steps on loops: split, reorder, and how a loop is executed."""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.nodes import AxisKind, Block, Const, Expr, For, ForKind, Func, Stmt, Var, index
from strata.loop.rewrite import free_vars, map_stmt, substitute, walk_stmts
from strata.loop.simplify import prove
from strata.schedule.step import Step, find_loop, register, replace_stmt


def _guarded(stmt: Stmt, condition: Expr) -> Stmt:
    """``condition`` added to the predicate of every block in ``stmt``."""

    def change(s: Stmt) -> Stmt:
        if not isinstance(s, Block):
            return s
        predicate = condition if s.predicate is None else b.and_(s.predicate, condition)
        return Block(s.name, s.axes, s.body, s.init, predicate)

    return map_stmt(stmt, stmt_fn=change)


@register
@dataclass(frozen=True, slots=True)
class Split(Step):
    """Split a loop in two.

    Rewrite::

        for i in N: S(i)   ->   for io in ceil(N/f): for ii in f: S(io*f + ii)  where io*f + ii < N

    The guard is left out where f provably divides N. New loops are called ``<loop>o`` and ``<loop>i``.

    Legal when: the loop is serial and factor >= 1; without a block inside, the factor must divide the extent.
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
        if self.factor < 1:
            raise LegalityError(f"split: got factor {self.factor}; expected at least 1")
        outer, inner = Var(self.loop + "o"), Var(self.loop + "i")
        position = b.add(b.mul(outer, index(self.factor)), inner)
        body = substitute(loop.body, {loop.var: position})
        if not prove(b.eq(b.floormod(loop.extent, index(self.factor)), index(0)), {}):
            if not any(isinstance(s, Block) for s in walk_stmts(body)):
                raise LegalityError(
                    f"split: factor {self.factor} may not divide loop {self.loop}, which has no block to guard"
                )
            body = _guarded(body, b.lt(position, loop.extent))
        inner_loop = For(inner, index(self.factor), loop.kind, body)
        outer_loop = For(outer, b.ceildiv(loop.extent, self.factor), loop.kind, inner_loop)
        return replace_stmt(func, loop, outer_loop)


@register
@dataclass(frozen=True, slots=True)
class Fuse(Step):
    """Fuse two perfectly nested loops into one called ``name``.

    Rewrite::

        for i in N: for j in M: S(i, j)   ->   for f in N*M: S(f // M, f % M)

    Legal when: ``inner`` is the whole body of ``outer`` and M does not depend on i.
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
        if outer.body is not inner:
            raise LegalityError(f"fuse: loop {self.inner} is not the whole body of loop {self.outer}")
        if outer.var in free_vars(inner.extent):
            raise LegalityError(f"fuse: extent of {self.inner} depends on {self.outer}")
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

    Legal when: the loops are perfectly nested around one block (other loops in between keep their place) and
    no extent depends on a permuted loop.
    """

    loops: tuple[str, ...]

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "reorder"

    def apply(self, func: Func) -> Func:
        """Permute the loops."""
        named = [find_loop(func, name) for name in self.loops]
        outermost = next(s for s in walk_stmts(func.body) if any(s is x for x in named))
        chain: list[For] = []
        stmt: Stmt = outermost
        while isinstance(stmt, For):
            chain.append(stmt)
            if sum(1 for x in chain if x in named) == len(named):
                break
            stmt = stmt.body
        if sum(1 for x in chain if any(x is y for y in named)) != len(named):
            raise LegalityError(f"reorder: loops {', '.join(self.loops)} are not perfectly nested")
        innermost_body = chain[-1].body
        variables = {x.var for x in chain}
        for loop in chain:
            if variables & set(free_vars(loop.extent)):
                raise LegalityError(f"reorder: extent of {loop.var.name} depends on a permuted loop")
        order = iter(named)
        result: Stmt = innermost_body
        placed = [next(order) if any(x is y for y in named) else x for x in chain]
        for loop in reversed(placed):
            result = For(loop.var, loop.extent, loop.kind, result)
        return replace_stmt(func, outermost, result)


def _set_kind(func: Func, name: str, kind: ForKind) -> Func:
    loop = find_loop(func, name)
    return replace_stmt(func, loop, For(loop.var, loop.extent, kind, loop.body))


def _constant_extent(func: Func, name: str, what: str, limit: int) -> int:
    extent = find_loop(func, name).extent
    if not isinstance(extent, Const) or not 1 <= int(extent.value) <= limit:
        raise LegalityError(f"{what}: loop {name} needs a constant extent of 1..{limit}")
    return int(extent.value)


@register
@dataclass(frozen=True, slots=True)
class Unroll(Step):
    """Expand the loop's iterations in place (done by the code generator).

    Legal when: the extent is a constant of at most 64.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "unroll"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        _constant_extent(func, self.loop, "unroll", 64)
        return _set_kind(func, self.loop, ForKind.UNROLL)


@register
@dataclass(frozen=True, slots=True)
class Vectorize(Step):
    """Turn the loop's iterations into the lanes of vectors (done by ``finalize``).

    Legal when: the extent is a constant of at most 64; a store that does not depend on the loop must be a
    reduction (``x = x + f``); the loop does not occur in the extent of an inner loop. The latter two are
    checked when the function is finalised.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "vectorize"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        _constant_extent(func, self.loop, "vectorize", 64)
        return _set_kind(func, self.loop, ForKind.VECTORIZE)


@register
@dataclass(frozen=True, slots=True)
class Parallel(Step):
    """Run the loop's iterations on several threads.

    Legal when: no reduction axis of a block inside is bound to an expression of the loop.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "parallel"

    def apply(self, func: Func) -> Func:
        """Mark the loop."""
        loop = find_loop(func, self.loop)
        for stmt in walk_stmts(loop.body):
            if isinstance(stmt, Block):
                for axis in stmt.axes:
                    if axis.kind is AxisKind.REDUCTION and loop.var in free_vars(axis.value):
                        raise LegalityError(
                            f"parallel: loop {self.loop} carries reduction axis {axis.var.name} of block {stmt.name}"
                        )
        return _set_kind(func, self.loop, ForKind.PARALLEL)
