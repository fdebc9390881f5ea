"""From a scheduled function to what the code generator takes: no blocks, vector loops turned into lanes.

Stage: LOOP_SCHEDULED -> LOOP_LOWERED. In order: short unrolled loops are expanded (so that indices like
``(p*half + i + half) % R`` fold for each ``p``), blocks are replaced by their bodies (axes by their values,
``init`` by an ``if``, predicates by an ``if``), everything is simplified, vector loops become vectors, and it
is simplified again.
"""

from __future__ import annotations

from typing import assert_never

from strata.core.dtypes import i64
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    Buffer,
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
)
from strata.loop.rewrite import free_vars, map_stmt, refresh, substitute
from strata.loop.simplify import simplify_stmt

EXPAND_UP_TO = 2  # unrolled loops of at most this many iterations are expanded here

_REDUCTIONS = {BinaryOp.ADD: ReduceOp.ADD, BinaryOp.MAX: ReduceOp.MAX, BinaryOp.MIN: ReduceOp.MIN}


def finalize(func: Func) -> Func:
    """Lower blocks and vector loops.

    Raises:
        LegalityError: a loop marked for vectorisation cannot be vectorised.
    """
    body = map_stmt(func.body, stmt_fn=_expand)
    body = map_stmt(body, stmt_fn=_lower_block)
    body = simplify_stmt(body)
    body = map_stmt(body, stmt_fn=_vectorize)
    return Func(func.name, func.params, simplify_stmt(body), func.num_outputs)


def _expand(stmt: Stmt) -> Stmt:
    if not isinstance(stmt, For) or stmt.kind is not ForKind.UNROLL or not isinstance(stmt.extent, Const):
        return stmt
    count = int(stmt.extent.value)
    if count > EXPAND_UP_TO:
        return stmt
    return seq(*(refresh(substitute(stmt.body, {stmt.var: index(k)})) for k in range(count)))


def _lower_block(stmt: Stmt) -> Stmt:
    if not isinstance(stmt, Block):
        return stmt
    where = {a.var: a.value for a in stmt.axes}
    body = substitute(stmt.body, where)
    if stmt.init is not None:
        first = b.and_(*(b.eq(a.value, index(0)) for a in stmt.axes if a.kind is AxisKind.REDUCTION))
        body = seq(If(first, substitute(stmt.init, where)), body)
    return body if stmt.predicate is None else If(stmt.predicate, body)


def _vectorize(stmt: Stmt) -> Stmt:
    if not isinstance(stmt, For) or stmt.kind is not ForKind.VECTORIZE:
        return stmt
    if not isinstance(stmt.extent, Const):
        raise LegalityError(f"vectorize: loop {stmt.var.name} has no constant extent")
    lanes = int(stmt.extent.value)
    if lanes == 1:
        return substitute(stmt.body, {stmt.var: index(0)})
    return _Vectorizer(stmt.var, lanes).statement(stmt.body, None)


class _Vectorizer:
    """Rewrites the body of one vector loop.

    Attributes:
        vectors: Vector expression of the loop variable and of every let that varies with it.
    """

    def __init__(self, var: Var, lanes: int) -> None:
        self.var, self.lanes = var, lanes
        self.vectors: dict[Var, Expr] = {var: Ramp(index(0), lanes)}

    def varies(self, expr: Expr) -> bool:
        """Whether lanes of ``expr`` differ."""
        return any(v in self.vectors for v in free_vars(expr))

    def statement(self, stmt: Stmt, mask: Expr | None) -> Stmt:
        """``stmt`` for all lanes at once, under ``mask`` (a vector of bool)."""
        match stmt:
            case Store():
                return self.store(stmt, mask)
            case Seq():
                return seq(*(self.statement(s, mask) for s in stmt.stmts))
            case For():
                if self.varies(stmt.extent):
                    raise LegalityError(
                        f"vectorize: extent of loop {stmt.var.name} depends on {self.var.name}"
                    )
                return For(stmt.var, stmt.extent, stmt.kind, self.statement(stmt.body, mask))
            case Let():
                return self.let(stmt, mask)
            case If():
                return self.branch(stmt, mask)
            case Alloc() | Block():
                raise LegalityError(f"vectorize: {type(stmt).__name__.lower()} inside loop {self.var.name}")
            case _:
                assert_never(stmt)

    def let(self, stmt: Let, mask: Expr | None) -> Stmt:
        """A let whose value varies becomes a vector variable."""
        value = self.expr(stmt.value, mask)
        if value.lanes == 1:
            return Let(stmt.var, value, self.statement(stmt.body, mask))
        wide = Var(stmt.var.name, stmt.var.dtype, self.lanes)
        self.vectors[stmt.var] = wide
        return Let(wide, value, self.statement(stmt.body, mask))

    def branch(self, stmt: If, mask: Expr | None) -> Stmt:
        """A condition that varies becomes a mask."""
        if not self.varies(stmt.cond):
            orelse = self.statement(stmt.orelse, mask) if stmt.orelse is not None else None
            return If(stmt.cond, self.statement(stmt.then, mask), orelse)
        cond = self.wide(self.expr(stmt.cond, None))
        parts = [self.statement(stmt.then, cond if mask is None else b.and_(mask, cond))]
        if stmt.orelse is not None:
            other = b.not_(cond)
            parts.append(self.statement(stmt.orelse, other if mask is None else b.and_(mask, other)))
        return seq(*parts)

    def store(self, stmt: Store, mask: Expr | None) -> Stmt:
        """Vector store, or a horizontal reduction into a scalar."""
        if stmt.mask is not None:
            raise LegalityError(f"vectorize: masked store inside loop {self.var.name}")
        indices = self.indices(stmt.buffer, stmt.indices)
        if indices and indices[-1].lanes > 1:
            return Store(stmt.buffer, indices, self.wide(self.expr(stmt.value, mask)), mask)
        match stmt.value:
            case Binary(op, Load(buffer, same), operand) if (
                op in _REDUCTIONS and buffer is stmt.buffer and same == stmt.indices and self.varies(operand)
            ):
                vector = self.wide(self.expr(operand, mask))
                if mask is not None:
                    vector = b.select(mask, vector, b.splat(_neutral(op, vector), self.lanes))
                value = Binary(op, Load(buffer, indices), Reduce(_REDUCTIONS[op], vector))
                return Store(stmt.buffer, indices, value)
            case _:
                pass
        raise LegalityError(f"vectorize: store to {stmt.buffer.name} does not depend on loop {self.var.name}")

    def indices(self, buffer: Buffer, indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """Vector indices; only the last dim may vary."""
        out = tuple(self.expr(i, None) for i in indices)
        if any(i.lanes > 1 for i in out[:-1]):
            raise LegalityError(
                f"vectorize: {buffer.name} is indexed by loop {self.var.name} in a dim that is not its last"
            )
        return out

    def wide(self, expr: Expr) -> Expr:
        """``expr`` with all lanes."""
        return expr if expr.lanes > 1 else b.splat(expr, self.lanes)

    def expr(self, e: Expr, mask: Expr | None) -> Expr:
        """``e`` for all lanes; stays scalar where lanes do not differ."""
        if not self.varies(e):
            return e
        match e:
            case Var():
                return self.vectors[e]
            case Binary():
                return self.binary(e, mask)
            case Unary():
                return Unary(e.op, self.expr(e.a, mask))
            case Cast():
                return Cast(e.dtype, self.expr(e.a, mask))
            case Select():
                return Select(*(self.wide(self.expr(x, mask)) for x in (e.cond, e.a, e.b)))
            case Load():
                indices = self.indices(e.buffer, e.indices)
                return Load(
                    e.buffer, indices, mask if indices[-1].lanes > 1 and not _private(e.buffer) else None
                )
            case Const() | Size() | Ramp() | Splat() | Reduce() | Intrinsic():
                raise LegalityError(
                    f"vectorize: {type(e).__name__} inside loop {self.var.name} is a vector already"
                )
            case _:
                assert_never(e)

    def binary(self, e: Binary, mask: Expr | None) -> Expr:
        """Keeps ``ramp + scalar`` a ramp; anything else is lane by lane."""
        x, y = self.expr(e.a, mask), self.expr(e.b, mask)
        if e.dtype is i64:
            if isinstance(x, Ramp) and y.lanes == 1 and e.op in (BinaryOp.ADD, BinaryOp.SUB):
                return Ramp(b.binary(e.op, x.base, y), x.lanes)
            if isinstance(y, Ramp) and x.lanes == 1 and e.op is BinaryOp.ADD:
                return Ramp(b.add(x, y.base), y.lanes)
        return Binary(e.op, self.wide(x), self.wide(y))


def _private(buffer: Buffer) -> bool:
    return buffer.space is MemSpace.REGISTER


def _neutral(op: BinaryOp, like: Expr) -> Expr:
    if op is BinaryOp.ADD:
        return b.const(0.0 if like.dtype.is_float else 0, like.dtype)
    worst = float("-inf") if op is BinaryOp.MAX else float("inf")
    return b.const(
        worst if like.dtype.is_float else (-(2**31) if op is BinaryOp.MAX else 2**31 - 1), like.dtype
    )
