"""Functions written by people in the forms that lowering gives, which schedule rules know.

Loops that fill a buffer element by element get a block (:func:`with_blocks`), a product that is summed up in
its result gets a stage of its own (:func:`as_matmul`)::

    for i in n: for j in 8: y[i, j] = f(i, j)
      ->  for i in n: for j in 8: block "y" (vi: spatial n = i, vj: spatial 8 = j): y[vi, vj] = f(vi, vj)

    for i, j, k: block "b" init: y[i, j] = 0.0; y[i, j] += a * b
      ->  for i, j, k: block "matmul" init: t[i, j] = 0.0; t[i, j] += a * b
          for i, j: block "out" y[i, j] = t[i, j]
"""

from __future__ import annotations

from dataclasses import replace

from .nodes import (
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    BlockAxis,
    Buffer,
    Const,
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
    size,
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


def as_matmul(func: Func) -> Func | None:
    """A function that is one sum of products, in the two stages of lowering; ``None`` for any other."""
    loops: list[For] = []
    inner = func.body
    while isinstance(inner, For) and inner.kind is ForKind.SERIAL:
        loops.append(inner)
        inner = inner.body
    if not isinstance(inner, Block) or not isinstance(inner.body, Store) or inner.predicate is not None:
        return None
    store, product = inner.body, _product(inner)
    spatial = [a for a in inner.axes if a.kind is AxisKind.SPATIAL]
    sums = [a for a in inner.axes if a.kind is AxisKind.REDUCTION]
    spatial.sort(key=lambda a: store.indices.index(a.var) if a.var in store.indices else -1)
    if product is None or len(sums) != 1 or store.indices != tuple(a.var for a in spatial):
        return None
    plain = [a.value for a in inner.axes], [x.var for x in loops]
    if len(spatial) < 2 or len(plain[0]) != len(plain[1]) or set(plain[0]) != set(plain[1]):
        return None
    if any(a.extent != size(d) for a, d in zip(spatial, store.buffer.shape, strict=True)):
        return None
    return replace(func, body=_two_stages(inner, store.buffer, product, [*spatial, *sums]))


def _product(block: Block) -> Expr | None:
    """``a * b`` of a block that does ``init: y[i] = 0; y[i] = y[i] + a * b``."""
    init, body = block.init, block.body
    if not isinstance(init, Store) or not isinstance(body, Store) or init.indices != body.indices:
        return None
    value = body.value
    if init.buffer is not body.buffer or not isinstance(init.value, Const) or not isinstance(value, Binary):
        return None
    summed = value.op is BinaryOp.ADD and value.a == Load(body.buffer, body.indices)
    if not summed or not isinstance(value.b, Binary) or value.b.op is not BinaryOp.MUL:
        return None
    reads = any(isinstance(e, Load) and e.buffer is body.buffer for e in walk(value.b))
    return None if reads else value.b


def _two_stages(block: Block, output: Buffer, product: Expr, axes: list[BlockAxis]) -> Stmt:
    """The sum in a buffer of its own, and the copy of that buffer."""
    assert isinstance(block.init, Store)
    total = Buffer("matmul_buf", output.shape, output.dtype)
    names = [f"i{k}" for k in range(len(axes) - 1)]

    def stage(name: str, count: list[str], body: Stmt, init: Stmt | None, old: list[BlockAxis]) -> Stmt:
        made = [
            BlockAxis(Var(n), a.kind, a.extent, Var(f"{name}_{n}")) for n, a in zip(count, old, strict=True)
        ]
        renamed: dict[Var, Expr] = {a.var: m.var for a, m in zip(old, made, strict=True)}
        first = None if init is None else substitute(init, renamed)
        nest: Stmt = Block(name, tuple(made), substitute(body, renamed), first)
        for axis in reversed(made):
            assert isinstance(axis.value, Var)
            nest = For(axis.value, axis.extent, ForKind.SERIAL, nest)
        return nest

    where = tuple(a.var for a in axes[:-1])
    value = Binary(BinaryOp.ADD, Load(total, where), product)
    init = Store(total, where, block.init.value)
    sums = stage("matmul", [*names, "k0"], Store(total, where, value), init, axes)
    copy = stage("out", names, Store(output, where, Load(total, where)), None, axes[:-1])
    return Alloc(total, seq(sums, copy))
