"""One vector loop as vector expressions: every statement of its body for all lanes at once.

The loop's variable becomes a ramp; expressions that do not vary stay scalar; a condition that varies becomes
the mask of the loads and stores under it::

    vectorize i in 8: if j*8 + i < n: y[j*8 + i] = x[j*8 + i] * c[j]
      ->   y[ramp(j*8, 8)] = (x[ramp(j*8, 8)] if m) * splat(c[j], 8) if m       m = ramp(j*8, 8) < splat(n, 8)

Iterations must be independent (:func:`.dependence.carried`): statements run one after the other, each for all
lanes. Under a mask whose lanes may all be off nothing may be read, or divided by, unconditionally: such
scalars become masked vectors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from strata.core.dtypes import i64
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.intrinsics import INTRINSICS
from strata.loop.nodes import (
    Alloc,
    Binary,
    BinaryOp,
    Block,
    Buffer,
    Call,
    Cast,
    Const,
    Expr,
    For,
    If,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Ramp,
    Reduce,
    ReduceOp,
    Select,
    Seq,
    Size,
    Splat,
    Stmt,
    Store,
    Unary,
    Var,
    index,
    seq,
    size,
)
from strata.loop.rewrite import free_vars, has_load, substitute, walk
from strata.loop.values import int_range

from .dependence import enter, reduction_op

_REDUCTIONS = {BinaryOp.ADD: ReduceOp.ADD, BinaryOp.MAX: ReduceOp.MAX, BinaryOp.MIN: ReduceOp.MIN}
_DIVISIONS = (BinaryOp.FLOORDIV, BinaryOp.FLOORMOD)


@dataclass(frozen=True, slots=True)
class Guard:
    """What holds where a statement runs.

    Attributes:
        mask: bool per lane.
        certain: At least lane 0 is on, so what is the same in all lanes may be computed unconditionally.
    """

    mask: Expr
    certain: bool


class Vectorizer:
    """Rewrites the body of one vector loop.

    Args:
        var: The loop's variable.
        lanes: Its extent, at least 2.
        known: Scope of the body.
    """

    def __init__(self, var: Var, lanes: int, known: Analysis) -> None:
        self.var, self.lanes, self.known = var, lanes, known
        # Vector expression of the loop variable and of every let that varies with it.
        self.vectors: dict[Var, Expr] = {var: Ramp(index(0), lanes)}

    def varies(self, expr: Expr) -> bool:
        """Whether lanes of ``expr`` differ."""
        return any(v in self.vectors for v in free_vars(expr))

    # ---------------------------------------------------------------------------------------- statements

    def statement(self, stmt: Stmt, guard: Guard | None) -> Stmt:
        """``stmt`` for all lanes at once.

        Raises:
            LegalityError: it has no vector form.
        """
        match stmt:
            case Store():
                return self.store(stmt, guard)
            case Seq():
                return seq(*(self.statement(s, guard) for s in stmt.stmts))
            case For():
                if not self.is_scalar(stmt.extent, guard):
                    raise LegalityError(
                        f"vectorize: extent of loop {stmt.var.name} depends on {self.var.name}"
                    )
                return replace(stmt, body=self.inside(stmt, stmt.body, guard))
            case Let():
                return self.let(stmt, guard)
            case If():
                return self.branch(stmt, guard)
            case Alloc() | Block() | Call():
                raise LegalityError(f"vectorize: {type(stmt).__name__.lower()} inside loop {self.var.name}")
            case _:
                assert_never(stmt)

    def inside(self, outer: Stmt, body: Stmt, guard: Guard | None) -> Stmt:
        """``body`` in the scope of ``outer``."""
        before, self.known = self.known, enter(self.known, outer)
        out = self.statement(body, guard)
        self.known = before
        return out

    def let(self, stmt: Let, guard: Guard | None) -> Stmt:
        """A let whose value varies becomes a vector variable."""
        value = self.expr(stmt.value, guard)
        if value.lanes == 1:
            return Let(stmt.var, value, self.inside(stmt, stmt.body, guard))
        wide = Var(stmt.var.name, stmt.var.dtype, self.lanes)
        self.vectors[stmt.var] = wide
        return Let(wide, value, self.statement(stmt.body, guard))

    def branch(self, stmt: If, guard: Guard | None) -> Stmt:
        """A condition that varies becomes a mask."""
        if self.is_scalar(stmt.cond, guard):
            orelse = self.statement(stmt.orelse, guard) if stmt.orelse is not None else None
            before = self.known
            if not has_load(stmt.cond):
                self.known = before.with_fact(stmt.cond)
            then, self.known = self.statement(stmt.then, guard), before
            return If(stmt.cond, then, orelse)
        cond = self.wide(self.expr(stmt.cond, guard))
        if not has_load(stmt.cond):
            return self.both(stmt, cond, guard)
        # What the condition reads may change in the branches: it is evaluated once.
        once = Var("cond", cond.dtype, self.lanes)
        return Let(once, cond, self.both(stmt, once, guard))

    def both(self, stmt: If, cond: Expr, guard: Guard | None) -> Stmt:
        """The branches under their masks."""
        parts: list[Stmt] = []
        for body, holds in ((stmt.then, True), (stmt.orelse, False)):
            if body is None:
                continue
            mask = cond if holds else b.not_(cond)
            first = self.known.prove(substitute(stmt.cond, {self.var: index(0)}), holds)
            if guard is not None:
                mask, first = b.and_(guard.mask, mask), first and guard.certain
            parts.append(self.statement(body, Guard(mask, first)))
        return seq(*parts)

    def store(self, stmt: Store, guard: Guard | None) -> Stmt:
        """Vector store, or a horizontal reduction into a scalar."""
        if stmt.mask is not None:
            raise LegalityError(f"vectorize: masked store inside loop {self.var.name}")
        mask = None if guard is None else guard.mask
        indices = self.indices(stmt.buffer, stmt.indices, guard)
        if indices and indices[-1].lanes > 1:
            value = self.wide(self.expr(stmt.value, guard))
            if mask is not None and _private(stmt.buffer) and self.is_inside(stmt.buffer, indices):
                # A masked store would keep the buffer in memory.
                value, mask = Select(mask, value, Load(stmt.buffer, indices)), None
            return Store(stmt.buffer, indices, value, mask)
        op = reduction_op(stmt)
        if op in _REDUCTIONS and isinstance(stmt.value, Binary) and self.varies(stmt.value.b):
            return self.horizontal(stmt, op, stmt.value.b, guard)
        raise LegalityError(f"vectorize: store to {stmt.buffer.name} does not depend on loop {self.var.name}")

    def horizontal(self, stmt: Store, op: BinaryOp, operand: Expr, guard: Guard | None) -> Stmt:
        """``x[j] = x[j] op operand`` for all lanes; lanes that are off contribute nothing."""
        load = Load(stmt.buffer, stmt.indices)
        if not self.is_scalar(load, guard):
            raise LegalityError(f"vectorize: {stmt.buffer.name} may be outside where no lane is on")
        vector = self.wide(self.expr(operand, guard))
        if guard is not None:
            vector = b.select(guard.mask, vector, b.splat(_neutral(op, vector), self.lanes))
        return Store(stmt.buffer, stmt.indices, Binary(op, load, Reduce(_REDUCTIONS[op], vector)))

    # --------------------------------------------------------------------------------------- expressions

    def is_scalar(self, expr: Expr, guard: Guard | None) -> bool:
        """Whether ``expr`` is the same in all lanes and may be computed even where no lane is on."""
        if self.varies(expr):
            return False
        return guard is None or guard.certain or all(self.is_safe(e) for e in walk(expr) if not _is_leaf(e))

    def is_safe(self, e: Expr | Stmt) -> bool:
        """Whether evaluating this node cannot fail, whatever guards it."""
        match e:
            case Load():
                return _private(e.buffer) or self.is_inside(e.buffer, e.indices)
            case Binary() if e.op in _DIVISIONS:
                return self.known.prove(b.gt(e.b, b.const(0, e.b.dtype)))
            case _:
                return True

    def is_inside(self, buffer: Buffer, indices: tuple[Expr, ...]) -> bool:
        """Whether an access is certainly inside of the buffer, in every lane."""
        return all(
            self.known.prove(b.ge(i, 0)) and self.known.prove(b.lt(i, size(d)))
            for i, d in zip(indices, buffer.shape, strict=True)
        )

    def indices(self, buffer: Buffer, indices: tuple[Expr, ...], guard: Guard | None) -> tuple[Expr, ...]:
        """Vector indices; only the last dim may vary."""
        out = tuple(self.expr(i, guard) for i in indices)
        if any(i.lanes > 1 for i in out[:-1]):
            raise LegalityError(
                f"vectorize: {buffer.name} is indexed by loop {self.var.name} in a dim that is not its last"
            )
        return out

    def wide(self, expr: Expr) -> Expr:
        """``expr`` with all lanes."""
        return expr if expr.lanes > 1 else b.splat(expr, self.lanes)

    def expr(self, e: Expr, guard: Guard | None) -> Expr:
        """``e`` for all lanes; stays scalar where lanes do not differ."""
        if self.is_scalar(e, guard):
            return e
        match e:
            case Var():
                return self.vectors[e]
            case Binary():
                return self.binary(e, guard)
            case Unary():
                return Unary(e.op, self.expr(e.a, guard))
            case Cast():
                return Cast(e.dtype, self.expr(e.a, guard))
            case Select():
                return Select(*(self.wide(self.expr(x, guard)) for x in (e.cond, e.a, e.b)))
            case Load():
                return self.load(e, guard)
            case Intrinsic() if INTRINSICS[e.name].is_elementwise:
                args = tuple(self.wide(self.expr(x, guard)) for x in e.args)
                return Intrinsic(e.name, args, e.dtype, self.lanes)
            case Const() | Size() | Ramp() | Splat() | Reduce() | Intrinsic():
                raise LegalityError(f"vectorize: {type(e).__name__.lower()} inside loop {self.var.name}")
            case _:
                assert_never(e)

    def load(self, e: Load, guard: Guard | None) -> Expr:
        """Contiguous, a gather, or one element that is read only if some lane is on."""
        if e.mask is not None:
            raise LegalityError(f"vectorize: masked load inside loop {self.var.name}")
        *outer, last = self.indices(e.buffer, e.indices, guard)
        if guard is None or (_private(e.buffer) and last.lanes > 1):
            return Load(e.buffer, (*outer, last))
        return Load(e.buffer, (*outer, self.wide(last)), guard.mask)

    def binary(self, e: Binary, guard: Guard | None) -> Expr:
        """Keeps ``ramp + scalar`` a ramp; anything else is lane by lane."""
        x, y = self.expr(e.a, guard), self.expr(e.b, guard)
        if e.dtype is i64:
            if isinstance(x, Ramp) and y.lanes == 1 and e.op in (BinaryOp.ADD, BinaryOp.SUB):
                return Ramp(b.binary(e.op, x.base, y), x.lanes)
            if isinstance(y, Ramp) and x.lanes == 1 and e.op is BinaryOp.ADD:
                return Ramp(b.add(x, y.base), y.lanes)
        x, y = self.wide(x), self.wide(y)
        if guard is not None and not self.is_safe(e):
            y = b.select(guard.mask, y, b.splat(b.const(1, y.dtype), self.lanes))
        return Binary(e.op, x, y)


def _is_leaf(e: Expr | Stmt) -> bool:
    return isinstance(e, Const | Var | Size)


def _private(buffer: Buffer) -> bool:
    return buffer.space is MemSpace.REGISTER


def _neutral(op: BinaryOp, like: Expr) -> Expr:
    if op is BinaryOp.ADD:
        return b.const(0.0 if like.dtype.is_float else 0, like.dtype)
    if like.dtype.is_float:
        return b.const(float("-inf") if op is BinaryOp.MAX else float("inf"), like.dtype)
    lo, hi = int_range(like.dtype)
    return b.const(lo if op is BinaryOp.MAX else hi, like.dtype)
