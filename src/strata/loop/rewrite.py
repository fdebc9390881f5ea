"""Walking and rebuilding of loop expressions and statements.

Nodes are immutable: every function returns a new tree, or the very same object where nothing changed. Shared
sub-expressions are visited once per rewrite and stay shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import replace
from typing import TypeVar, assert_never, overload

from strata.core.errors import LegalityError

from .externs import call_reads, call_writes
from .nodes import (
    Alloc,
    Binary,
    Block,
    BlockAxis,
    Buffer,
    Call,
    Cast,
    Const,
    Expr,
    For,
    Func,
    If,
    Intrinsic,
    Let,
    Load,
    Ramp,
    Reduce,
    Select,
    Seq,
    Size,
    Splat,
    Stmt,
    Store,
    Unary,
    Var,
    seq,
)

ExprFn = Callable[[Expr], Expr]
StmtFn = Callable[[Stmt], Stmt]
T = TypeVar("T")

_STMT = (For, Block, Store, Let, If, Alloc, Seq, Call)


# --------------------------------------------------------------------------------------------- children


def expr_children(expr: Expr) -> tuple[Expr, ...]:
    """Direct operands, in the order in which they are evaluated."""
    match expr:
        case Const() | Var() | Size():
            return ()
        case Binary():
            return (expr.a, expr.b)
        case Unary() | Cast() | Splat() | Reduce():
            return (expr.a,)
        case Select():
            return (expr.cond, expr.a, expr.b)
        case Load():
            return expr.indices if expr.mask is None else (*expr.indices, expr.mask)
        case Ramp():
            return (expr.base,)
        case Intrinsic():
            return expr.args
        case _:
            assert_never(expr)


def stmt_exprs(stmt: Stmt) -> tuple[Expr, ...]:
    """Expressions directly in ``stmt``, not those of nested statements."""
    match stmt:
        case For():
            return (stmt.extent,)
        case Block():
            axes = tuple(e for axis in stmt.axes for e in (axis.extent, axis.value))
            return axes if stmt.predicate is None else (*axes, stmt.predicate)
        case Store():
            tail = () if stmt.mask is None else (stmt.mask,)
            return (*stmt.indices, stmt.value, *tail)
        case Let():
            return (stmt.value,)
        case If():
            return (stmt.cond,)
        case Call():
            return tuple(a for a in stmt.args if not isinstance(a, Buffer))
        case Alloc() | Seq():
            return ()
        case _:
            assert_never(stmt)


def stmt_children(stmt: Stmt) -> tuple[Stmt, ...]:
    """Statements directly nested in ``stmt``, in textual order."""
    match stmt:
        case For() | Let() | Alloc():
            return (stmt.body,)
        case Block():
            return (stmt.body,) if stmt.init is None else (stmt.init, stmt.body)
        case If():
            return (stmt.then,) if stmt.orelse is None else (stmt.then, stmt.orelse)
        case Seq():
            return stmt.stmts
        case Store() | Call():
            return ()
        case _:
            assert_never(stmt)


def walk(node: Expr | Stmt | Func) -> Iterator[Expr | Stmt]:
    """``node`` and everything below it, parents first, in textual order."""
    stack: list[Expr | Stmt] = [node.body if isinstance(node, Func) else node]
    while stack:
        item = stack.pop()
        yield item
        if isinstance(item, _STMT):
            stack.extend(reversed(stmt_children(item)))
            stack.extend(reversed(stmt_exprs(item)))
        else:
            stack.extend(reversed(expr_children(item)))


def walk_stmts(node: Stmt | Func) -> Iterator[Stmt]:
    """Only the statements of :func:`walk`."""
    stack: list[Stmt] = [node.body if isinstance(node, Func) else node]
    while stack:
        item = stack.pop()
        yield item
        stack.extend(reversed(stmt_children(item)))


def has_load(expr: Expr) -> bool:
    """Whether the value depends on memory."""
    return any(isinstance(e, Load) for e in walk(expr))


# ------------------------------------------------------------------------------------------ map


def rebuild_expr(expr: Expr, operands: tuple[Expr, ...]) -> Expr:
    """``expr`` with other operands (as many as :func:`expr_children` gives)."""
    match expr:
        case Const() | Var() | Size():
            return expr
        case Binary():
            return Binary(expr.op, *operands)
        case Unary():
            return Unary(expr.op, *operands)
        case Cast():
            return Cast(expr.dtype, *operands)
        case Select():
            return Select(*operands)
        case Load():
            if expr.mask is None:
                return Load(expr.buffer, operands)
            return Load(expr.buffer, operands[:-1], operands[-1])
        case Ramp():
            return Ramp(operands[0], expr.lanes)
        case Splat():
            return Splat(operands[0], expr.lanes)
        case Reduce():
            return Reduce(expr.op, *operands)
        case Intrinsic():
            return Intrinsic(expr.name, operands, expr.dtype, expr.lanes)
        case _:
            assert_never(expr)


def _same(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    return all(x is y for x, y in zip(a, b, strict=True))


def map_expr(expr: Expr, fn: ExprFn) -> Expr:
    """Rebuild ``expr`` bottom-up, replacing every node by ``fn(node with mapped operands)``."""
    return _map_expr(expr, fn, {})


def _map_expr(expr: Expr, fn: ExprFn, done: dict[int, tuple[Expr, Expr]]) -> Expr:
    # The memo keeps its key alive: an id is only unique among living objects.
    found = done.get(id(expr))
    if found is not None:
        return found[1]
    children = expr_children(expr)
    mapped = tuple(_map_expr(c, fn, done) for c in children)
    out = fn(expr if _same(children, mapped) else rebuild_expr(expr, mapped))
    done[id(expr)] = (expr, out)
    return out


def map_stmt(stmt: Stmt, expr_fn: ExprFn | None = None, stmt_fn: StmtFn | None = None) -> Stmt:
    """Rebuild ``stmt`` bottom-up.

    Args:
        stmt: The statement.
        expr_fn: Called for every expression node, as in :func:`map_expr`.
        stmt_fn: Called for every statement after its parts are mapped; returns its replacement (``Seq(())``
            removes it; nested sequences are flattened).
    """
    done: dict[int, tuple[Expr, Expr]] = {}

    def on_expr(expr: Expr) -> Expr:
        return expr if expr_fn is None else _map_expr(expr, expr_fn, done)

    def go(node: Stmt) -> Stmt:
        out = rebuild_stmt(node, on_expr, go)
        # A sequence of one collapses into its statement, which has been through stmt_fn already.
        collapsed = isinstance(node, Seq) and not isinstance(out, Seq)
        return out if stmt_fn is None or collapsed else stmt_fn(out)

    return go(stmt)


def rebuild_stmt(stmt: Stmt, on_expr: ExprFn, on_stmt: StmtFn) -> Stmt:
    """``stmt`` with ``on_expr`` applied to its direct expressions, ``on_stmt`` to its sub-statements."""
    match stmt:
        case For():
            extent, body = on_expr(stmt.extent), on_stmt(stmt.body)
            same = extent is stmt.extent and body is stmt.body
            return stmt if same else For(stmt.var, extent, stmt.kind, body, stmt.notes)
        case Block():
            return _rebuild_block(stmt, on_expr, on_stmt)
        case Store():
            return _rebuild_store(stmt, on_expr)
        case Let():
            value, body = on_expr(stmt.value), on_stmt(stmt.body)
            return stmt if value is stmt.value and body is stmt.body else Let(stmt.var, value, body)
        case If():
            cond, then = on_expr(stmt.cond), on_stmt(stmt.then)
            orelse = None if stmt.orelse is None else on_stmt(stmt.orelse)
            same = cond is stmt.cond and then is stmt.then and orelse is stmt.orelse
            return stmt if same else If(cond, then, orelse)
        case Alloc():
            body = on_stmt(stmt.body)
            return stmt if body is stmt.body else Alloc(stmt.buffer, body)
        case Seq():
            stmts = tuple(on_stmt(s) for s in stmt.stmts)
            return stmt if _same(stmt.stmts, stmts) else seq(*stmts)
        case Call():
            args = tuple(a if isinstance(a, Buffer) else on_expr(a) for a in stmt.args)
            return stmt if _same(stmt.args, args) else Call(stmt.extern, args)
        case _:
            assert_never(stmt)


def _rebuild_block(block: Block, on_expr: ExprFn, on_stmt: StmtFn) -> Block:
    axes = []
    for axis in block.axes:
        extent, value = on_expr(axis.extent), on_expr(axis.value)
        same = extent is axis.extent and value is axis.value
        axes.append(axis if same else BlockAxis(axis.var, axis.kind, extent, value))
    predicate = None if block.predicate is None else on_expr(block.predicate)
    init = None if block.init is None else on_stmt(block.init)
    body = on_stmt(block.body)
    old = (*block.axes, block.predicate, block.init, block.body)
    if _same(old, (*axes, predicate, init, body)):
        return block
    return Block(block.name, tuple(axes), body, init, predicate, block.notes)


def _rebuild_store(store: Store, on_expr: ExprFn) -> Store:
    indices = tuple(on_expr(i) for i in store.indices)
    value = on_expr(store.value)
    mask = None if store.mask is None else on_expr(store.mask)
    same = _same(store.indices, indices) and value is store.value and mask is store.mask
    return store if same else Store(store.buffer, indices, value, mask)


# ----------------------------------------------------------------------------------- substitution


@overload
def substitute(node: Expr, mapping: Mapping[Var, Expr]) -> Expr: ...
@overload
def substitute(node: Stmt, mapping: Mapping[Var, Expr]) -> Stmt: ...
def substitute(node: Expr | Stmt, mapping: Mapping[Var, Expr]) -> Expr | Stmt:
    """``node`` with the uses of the variables replaced; binders (loops, lets, axes) keep their variable."""

    def on_expr(expr: Expr) -> Expr:
        return mapping.get(expr, expr) if isinstance(expr, Var) else expr

    return map_stmt(node, on_expr) if isinstance(node, _STMT) else map_expr(node, on_expr)


@overload
def replace_buffers(node: Expr, mapping: Mapping[Buffer, Buffer]) -> Expr: ...
@overload
def replace_buffers(node: Stmt, mapping: Mapping[Buffer, Buffer]) -> Stmt: ...
def replace_buffers(node: Expr | Stmt, mapping: Mapping[Buffer, Buffer]) -> Expr | Stmt:
    """``node`` with its loads, stores, allocations and calls on other buffers."""

    def on_expr(expr: Expr) -> Expr:
        if isinstance(expr, Load) and expr.buffer in mapping:
            return Load(mapping[expr.buffer], expr.indices, expr.mask)
        return expr

    def on_stmt(stmt: Stmt) -> Stmt:
        if isinstance(stmt, Store | Alloc) and stmt.buffer in mapping:
            return replace(stmt, buffer=mapping[stmt.buffer])
        if isinstance(stmt, Call) and any(isinstance(a, Buffer) and a in mapping for a in stmt.args):
            args = (mapping.get(a, a) if isinstance(a, Buffer) else a for a in stmt.args)
            return Call(stmt.extern, tuple(args))
        return stmt

    return map_stmt(node, on_expr, on_stmt) if isinstance(node, _STMT) else map_expr(node, on_expr)


def refresh(stmt: Stmt) -> Stmt:
    """A copy with new identities for all variables bound and buffers allocated in ``stmt``."""
    variables: dict[Var, Expr] = {}
    buffers: dict[Buffer, Buffer] = {}

    def new_var(var: Var) -> Var:
        fresh = Var(var.name, var.dtype, var.lanes)
        variables[var] = fresh
        return fresh

    def binders(node: Stmt) -> Stmt:
        match node:
            case For():
                return replace(node, var=new_var(node.var))
            case Let():
                return Let(new_var(node.var), node.value, node.body)
            case Block():
                return replace(node, axes=tuple(replace(a, var=new_var(a.var)) for a in node.axes))
            case Alloc():
                b = node.buffer
                buffers[b] = Buffer(b.name, b.shape, b.dtype, b.space)
                return node
            case _:
                return node

    renamed = map_stmt(stmt, stmt_fn=binders)
    return replace_buffers(substitute(renamed, variables), buffers)


# ------------------------------------------------------------------------------------------ queries


def bound_vars(stmt: Stmt) -> Set[Var]:
    """Variables bound by loops, lets and block axes within ``stmt``, in textual order."""
    out: dict[Var, None] = {}
    for node in walk_stmts(stmt):
        if isinstance(node, For | Let):
            out[node.var] = None
        elif isinstance(node, Block):
            out.update((axis.var, None) for axis in node.axes)
    return out.keys()


def free_vars(node: Expr | Stmt) -> Set[Var]:
    """Variables used but not bound in ``node``, in order of first use."""
    used = {item: None for item in walk(node) if isinstance(item, Var)}
    if isinstance(node, _STMT):
        for var in bound_vars(node):
            used.pop(var, None)
    return used.keys()


def buffers_read(node: Expr | Stmt | Func) -> Set[Buffer]:
    """Buffers that are loaded from, or read by a call, in textual order."""
    found: dict[Buffer, None] = {}
    for item in walk(node):
        if isinstance(item, Load):
            found[item.buffer] = None
        elif isinstance(item, Call):
            found.update(dict.fromkeys(call_reads(item)))
    return found.keys()


def buffers_written(node: Stmt | Func) -> Set[Buffer]:
    """Buffers that are stored to, or written by a call, in textual order."""
    found: dict[Buffer, None] = {}
    for item in walk_stmts(node):
        if isinstance(item, Store):
            found[item.buffer] = None
        elif isinstance(item, Call):
            found.update(dict.fromkeys(call_writes(item)))
    return found.keys()


def buffers_allocated(node: Stmt | Func) -> Set[Buffer]:
    """Buffers allocated within ``node``, in textual order."""
    return {item.buffer: None for item in walk_stmts(node) if isinstance(item, Alloc)}.keys()


def find_block(func: Func | Stmt, name: str) -> Block:
    """The block called ``name``.

    Raises:
        LegalityError: there is none, or more than one.
    """
    blocks = [s for s in walk_stmts(func) if isinstance(s, Block)]
    return _the_one("block", name, [(b.name, b) for b in blocks])


def find_loop(func: Func | Stmt, name: str) -> For:
    """The loop whose variable is called ``name``.

    Raises:
        LegalityError: there is none, or more than one.
    """
    loops = [s for s in walk_stmts(func) if isinstance(s, For)]
    return _the_one("loop", name, [(f.var.name, f) for f in loops])


def _the_one(what: str, name: str, named: list[tuple[str, T]]) -> T:
    found = [item for item_name, item in named if item_name == name]
    if len(found) != 1:
        known = ", ".join(dict.fromkeys(n for n, _ in named)) or "none"
        raise LegalityError(f"{what} {name!r}: found {len(found)}; expected exactly one; known: {known}")
    return found[0]


def path_to(root: Stmt, target: Stmt) -> tuple[Stmt, ...]:
    """Statements from ``root`` down to ``target`` (the object itself), both included.

    Raises:
        LegalityError: ``target`` is not in ``root``.
    """
    stack: list[tuple[Stmt, ...]] = [(root,)]
    while stack:
        path = stack.pop()
        if path[-1] is target:
            return path
        stack.extend((*path, child) for child in reversed(stmt_children(path[-1])))
    raise LegalityError(f"{type(target).__name__}: is not part of this function any more")


def replace_stmt(root: Stmt, old: Stmt, new: Stmt) -> Stmt:
    """``root`` with the statement ``old`` (the object itself, wherever it occurs) replaced by ``new``."""

    def go(node: Stmt) -> Stmt:
        return new if node is old else rebuild_stmt(node, lambda e: e, go)

    return go(root)
