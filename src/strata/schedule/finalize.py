"""From a scheduled function to what the code generator takes: no blocks, vector loops turned into lanes.

Stage: LOOP_SCHEDULED -> LOOP_LOWERED. In order: short unrolled loops are expanded (so that indices like
``(p*half + i + half) % R`` fold for each ``p``), blocks are replaced by their bodies (axes by their values,
``init`` by an ``if``, predicates by an ``if``), everything is simplified, vector loops become vectors
(:mod:`.vectorize`), prefetches come in (:mod:`.prefetch`), and it is simplified again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import assert_never

from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    Block,
    Call,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    If,
    Let,
    Load,
    MemSpace,
    Ramp,
    Reduce,
    Seq,
    Size,
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
    refresh,
    stmt_children,
    stmt_exprs,
    substitute,
    walk,
)
from strata.loop.simplify import simplify_alloc, simplify_stmt
from strata.loop.text import print_expr

from .dependence import carried, enter
from .prefetch import insert_prefetches
from .vectorize import Vectorizer

EXPAND_UP_TO = 2  # unrolled loops of at most this many iterations are expanded here


def finalize(func: Func) -> Func:
    """Lower blocks and vector loops.

    Raises:
        LegalityError: a loop marked for vectorisation cannot be vectorised, or an index of a register buffer
            is no constant when the code is generated.
    """
    return Finalizer().finalize(func)


class Finalizer:
    """Finalises versions of a function: statements at its top level that did not change are not redone."""

    def __init__(self) -> None:
        self._done: dict[int, tuple[Stmt, Stmt]] = {}  # by identity of the statement, which is kept alive

    def finalize(self, func: Func) -> Func:
        """See :func:`finalize`."""
        return Func(func.name, func.params, self._top(func.body), func.num_outputs)

    def _top(self, stmt: Stmt) -> Stmt:
        match stmt:
            case Seq():
                return seq(*(self._top(s) for s in stmt.stmts))
            case Alloc():
                return simplify_alloc(stmt.buffer, self._top(stmt.body))
            case _:
                if id(stmt) not in self._done:
                    self._done[id(stmt)] = (stmt, _lowered(stmt))
                return self._done[id(stmt)][1]


def _lowered(stmt: Stmt) -> Stmt:
    body = map_stmt(stmt, stmt_fn=_expand)
    body = map_stmt(body, stmt_fn=_lower_block)
    body = simplify_stmt(body)
    body = simplify_stmt(insert_prefetches(_vector_loops(body, Analysis())))
    _check_registers(body, frozenset())
    return body


def _expand(stmt: Stmt) -> Stmt:
    if not isinstance(stmt, For) or stmt.kind is not ForKind.UNROLL or not isinstance(stmt.extent, Const):
        return stmt
    count = int(stmt.extent.value)
    if count > EXPAND_UP_TO or stmt.notes:
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


def _vector_loops(stmt: Stmt, known: Analysis) -> Stmt:
    """``stmt`` with its vector loops replaced, inner ones first; ``known`` is the scope of ``stmt``."""
    match stmt:
        case For():
            loop = replace(stmt, body=_vector_loops(stmt.body, enter(known, stmt)))
            return _vectorized(loop, known) if loop.kind is ForKind.VECTORIZE else loop
        case Let():
            return Let(stmt.var, stmt.value, _vector_loops(stmt.body, enter(known, stmt)))
        case If():
            stays = not has_load(stmt.cond)
            then = _vector_loops(stmt.then, known.with_fact(stmt.cond) if stays else known)
            if stmt.orelse is None:
                return If(stmt.cond, then)
            orelse = _vector_loops(stmt.orelse, known.with_fact(stmt.cond, holds=False) if stays else known)
            return If(stmt.cond, then, orelse)
        case Alloc():
            return Alloc(stmt.buffer, _vector_loops(stmt.body, known))
        case Seq():
            return seq(*(_vector_loops(s, known) for s in stmt.stmts))
        case Store() | Block() | Call():
            return stmt
        case _:
            assert_never(stmt)


def _vectorized(loop: For, known: Analysis) -> Stmt:
    if not isinstance(loop.extent, Const):
        raise LegalityError(f"vectorize: loop {loop.var.name} has no constant extent")
    lanes = int(loop.extent.value)
    if lanes == 1:
        return substitute(loop.body, {loop.var: index(0)})
    if any(isinstance(e, Ramp | Splat | Reduce) for e in walk(loop.body)):
        raise LegalityError(f"vectorize: loop {loop.var.name} has vectors inside already")
    why = carried(loop, known, reductions=True)
    if why is not None:
        raise LegalityError(f"vectorize: {why}")
    return Vectorizer(loop.var, lanes, enter(known, loop)).statement(loop.body, None)


def _check_registers(stmt: Stmt, constants: frozenset[Var]) -> None:
    """Indices of register buffers become constants when unrolled loops are expanded."""
    loads = [e for root in stmt_exprs(stmt) for e in walk(root) if isinstance(e, Load)]
    for access in [*loads, stmt] if isinstance(stmt, Store) else loads:
        varying = [i for i in access.indices if not _is_constant(i, constants)]
        if access.buffer.space is MemSpace.REGISTER and varying:
            what = f"index {print_expr(varying[0])} of register buffer {access.buffer.name}"
            raise LegalityError(f"finalize: {what} varies at run time; unroll the loops that it depends on")
    match stmt:
        case For() if stmt.kind is ForKind.UNROLL:
            constants |= {stmt.var}
        case Let() if _is_constant(stmt.value, constants):
            constants |= {stmt.var}
    for child in stmt_children(stmt):
        _check_registers(child, constants)


def _is_constant(expr: Expr, constants: frozenset[Var]) -> bool:
    return set(free_vars(expr)) <= constants and not any(isinstance(e, Load | Size) for e in walk(expr))
