"""Simplification of index arithmetic, conditions and control flow, by what :mod:`.analysis` can prove.

* i64 expressions become sums of products: variables first, sizes, the constant last; ``(io*64 + ii) // 64 ->
  io`` and ``% 64 -> ii`` for ``0 <= ii < 64``;
* comparisons, ``min``, ``max``, ``select``, masks, predicates and branches are resolved where they are
  decided;
* loops that run once lose their loop, those that never run disappear, constants bound by ``let`` are inlined.

The result computes the same values and makes the same memory accesses, less those that are masked off or
unused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from strata.core.dtypes import i64

from . import build
from .analysis import Analysis, Interval, scope
from .nodes import (
    MATRIX,
    Alloc,
    Block,
    BlockAxis,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    Func,
    If,
    Let,
    Load,
    Seq,
    Stmt,
    Store,
    Var,
    seq,
)
from .rewrite import has_load, substitute, walk

Ranges = Mapping[Var, tuple[Expr | int, Expr | int]]
_NOTHING = Seq(())


def simplify(expr: Expr, ranges: Ranges | None = None) -> Expr:
    """``expr`` in normal form.

    Args:
        expr: Any expression.
        ranges: Inclusive bounds of variables; outer ones first where bounds mention other variables.

    Returns:
        An expression equal to ``expr`` for all values inside the ranges; ``expr`` itself if nothing changed.
    """
    return scope(ranges).simplify(expr)


def bounds(expr: Expr, ranges: Ranges | None = None) -> Interval:
    """Smallest and largest value that the integer ``expr`` may have, ``None`` where nothing is known.

    The interval contains every value; it may be wider than needed.
    """
    return scope(ranges).int_interval(expr)


def prove(expr: Expr, ranges: Ranges | None = None) -> bool:
    """Whether the bool ``expr`` is certainly true (in every lane). False means "not proved"."""
    return scope(ranges).prove(expr)


def simplify_func(func: Func) -> Func:
    """``func`` with a simplified body."""
    return Func(func.name, func.params, simplify_stmt(func.body), func.num_outputs)


def simplify_stmt(stmt: Stmt, ranges: Ranges | None = None) -> Stmt:
    """``stmt`` with everything in it simplified under the ranges of its loops; see the module docstring."""
    return _stmt(stmt, scope(ranges))


def simplify_alloc(buffer: Buffer, body: Stmt) -> Stmt:
    """``body`` with ``buffer``, if it is used."""
    return Alloc(buffer, body) if any(_touches(n, buffer) for n in walk(body)) else body


def _stmt(stmt: Stmt, known: Analysis) -> Stmt:
    match stmt:
        case For():
            return _for(stmt, known)
        case Block():
            return _block(stmt, known)
        case Store():
            return _store(stmt, known)
        case Let():
            return _let(stmt, known)
        case If():
            return _if(stmt, known)
        case Alloc():
            return simplify_alloc(stmt.buffer, _stmt(stmt.body, known))
        case Seq():
            return seq(*(_stmt(s, known) for s in stmt.stmts))
        case Call():
            args = (a if isinstance(a, Buffer) else known.simplify(a) for a in stmt.args)
            return Call(stmt.extern, tuple(args))
        case _:
            assert_never(stmt)


def _touches(node: Expr | Stmt, buffer: Buffer) -> bool:
    if isinstance(node, Call):
        return any(a is buffer for a in node.args)
    return isinstance(node, Load | Store) and node.buffer is buffer


def _is_nothing(stmt: Stmt | None) -> bool:
    return stmt is None or stmt == _NOTHING


def _for(loop: For, known: Analysis) -> Stmt:
    extent = known.simplify(loop.extent)
    if known.prove(build.le(extent, 0)):
        return _NOTHING
    # What a matrix unit runs, it also runs once.
    if isinstance(extent, Const) and extent.value == 1 and not dict(loop.notes).get(MATRIX):
        return _stmt(substitute(loop.body, {loop.var: build.const(0, i64)}), known)
    # Memory that the bound is loaded from may change while the loop runs.
    last: Expr | int | None = build.sub(extent, 1) if not has_load(extent) else known.int_interval(extent)[1]
    inner = known.with_range(loop.var, 0, last - 1 if isinstance(last, int) else last)
    if not has_load(extent):
        inner = inner.with_fact(build.gt(extent, 0))  # inside the loop it runs at least once
    body = _stmt(loop.body, inner)
    return _NOTHING if _is_nothing(body) else For(loop.var, extent, loop.kind, body, loop.notes)


def _block(block: Block, known: Analysis) -> Stmt:
    predicate = None if block.predicate is None else known.simplify(block.predicate)
    if predicate is not None and known.prove(predicate, holds=False):
        return _NOTHING
    if isinstance(predicate, Const):
        predicate = None
    axes: list[BlockAxis] = []
    inner = known
    for axis in block.axes:
        extent = known.simplify(axis.extent)
        axes.append(BlockAxis(axis.var, axis.kind, extent, known.simplify(axis.value)))
        last = None if has_load(extent) else build.sub(extent, 1)
        inner = inner.with_range(axis.var, 0, last)
    init = None if block.init is None else _stmt(block.init, inner)
    body = _stmt(block.body, inner)
    if _is_nothing(body) and _is_nothing(init):
        return _NOTHING
    return Block(block.name, tuple(axes), body, None if _is_nothing(init) else init, predicate, block.notes)


def _store(store: Store, known: Analysis) -> Stmt:
    mask = None if store.mask is None else known.simplify(store.mask)
    if mask is not None and known.prove(mask, holds=False):
        return _NOTHING
    indices = [known.simplify(i) for i in store.indices]
    return build.store(store.buffer, indices, known.simplify(store.value), mask)


def _let(let: Let, known: Analysis) -> Stmt:
    value = known.simplify(let.value)
    if isinstance(value, Const | Var):
        return _stmt(substitute(let.body, {let.var: value}), known)
    inner = known
    if let.var.dtype == i64 and let.var.lanes == 1:
        lo, hi = known.int_interval(value)
        exact = not has_load(value)
        inner = known.with_range(let.var, value if exact else lo, value if exact else hi)
    body = _stmt(let.body, inner)
    used = any(node is let.var for node in walk(body))
    return Let(let.var, value, body) if used else body


def _if(branch: If, known: Analysis) -> Stmt:
    cond = known.simplify(branch.cond)
    if known.prove(cond):
        return _stmt(branch.then, known)
    if known.prove(cond, holds=False):
        return _NOTHING if branch.orelse is None else _stmt(branch.orelse, known)
    stays = cond.lanes == 1 and not has_load(cond)
    then = _stmt(branch.then, known.with_fact(cond) if stays else known)
    orelse = None
    if branch.orelse is not None:
        orelse = _stmt(branch.orelse, known.with_fact(cond, holds=False) if stays else known)
    if _is_nothing(orelse):
        return _NOTHING if _is_nothing(then) else If(cond, then)
    return If(build.not_(cond), orelse) if _is_nothing(then) and orelse else If(cond, then, orelse)
