"""Functions written by people in the form that lowering gives, which schedule rules know.

Loops that fill a buffer element by element get a block::

    for i in n: for j in 8: y[i, j] = f(i, j)
      ->  for i in n: for j in 8: block "y" (vi: spatial n = i, vj: spatial 8 = j): y[vi, vj] = f(vi, vj)
"""

from __future__ import annotations

from dataclasses import replace

from .nodes import (
    Alloc,
    AxisKind,
    Block,
    BlockAxis,
    Expr,
    For,
    ForKind,
    Func,
    Let,
    Load,
    Seq,
    Stmt,
    Store,
    Var,
    seq,
)
from .rewrite import free_vars, substitute, walk, walk_stmts


def with_blocks(func: Func) -> Func:
    """``func`` with a block in each outermost nest of serial loops that is one store per element.

    What has blocks already, branches, vectors, or iterations that read what others write stays as it is.
    """
    stmts = list(walk_stmts(func))
    if any(isinstance(s, Block) for s in stmts):
        return func
    taken = {s.var.name for s in stmts if isinstance(s, For)}
    return replace(func, body=_statement(func.body, taken))


def _statement(stmt: Stmt, taken: set[str]) -> Stmt:
    match stmt:
        case Seq():
            return seq(*(_statement(s, taken) for s in stmt.stmts))
        case Alloc() | Let():
            return replace(stmt, body=_statement(stmt.body, taken))
        case For():
            return _nest(stmt, taken)
        case _:
            return stmt


def _nest(outer: For, taken: set[str]) -> Stmt:
    loops: list[For] = []
    inner: Stmt = outer
    while isinstance(inner, For) and inner.kind is ForKind.SERIAL:
        loops.append(inner)
        inner = inner.body
    if not isinstance(inner, Store) or not _is_elementwise(inner, loops):
        return outer
    axes = tuple(
        BlockAxis(Var("v" + x.var.name.lstrip("_")), AxisKind.SPATIAL, x.extent, x.var) for x in loops
    )
    mapping: dict[Var, Expr] = {x.var: a.var for x, a in zip(loops, axes, strict=True)}
    name, k = inner.buffer.name, 1
    while name in taken:
        name, k = f"{inner.buffer.name}_{k}", k + 1
    taken.add(name)
    stmt: Stmt = Block(name, axes, substitute(inner, mapping))
    for loop in reversed(loops):
        stmt = replace(loop, body=stmt)
    return stmt


def _is_elementwise(store: Store, loops: list[For]) -> bool:
    """Whether the nest writes each element once and reads no other element of what it writes."""
    variables = [x.var for x in loops]
    plain = len(store.indices) == len(variables) and set(store.indices) == set(variables)
    rectangular = not any(set(variables) & set(free_vars(x.extent)) for x in loops)
    loads = [e for e in walk(store) if isinstance(e, Load) and e.buffer is store.buffer]
    alone = all(e.indices == store.indices for e in loads) and store.mask is None
    # The body of a block sees its axes only.
    return plain and rectangular and alone and set(free_vars(store)) <= set(variables)
