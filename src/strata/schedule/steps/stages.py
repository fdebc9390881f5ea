"""What steps that move or rewrite whole stages have in common.

A **stage** is a block as lowering makes it: alone in a nest of its own with one loop per axis, filling one
buffer with its spatial axes as indices. Steps that look at what a block computes as a whole (``compute_at``,
``cache_write``, ``compute_inline``, ...) take stages only: place first, then tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from strata.core.dims import Dim, product
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.externs import buffers_of
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    Binary,
    BinaryOp,
    Block,
    BlockAxis,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    Func,
    Load,
    MemSpace,
    Seq,
    Stmt,
    Store,
    Var,
    index,
    seq,
    size,
)
from strata.loop.rewrite import map_stmt, path_to, substitute, walk, walk_stmts
from strata.schedule.dependence import with_loop
from strata.schedule.step import find_block

Ranges = dict[Var, tuple[Expr | int, Expr | int]]
SPACES = {space.value: space for space in MemSpace}
PRIVATE = {space.value: space for space in (MemSpace.LOCAL, MemSpace.REGISTER)}
MAX_LOCAL_BYTES = 1 << 20  # of one buffer: it lives on the stack of a thread


def loop_ranges(loops: list[For]) -> Ranges:
    """Inclusive value ranges of loop variables."""
    return {x.var: (0, b.sub(x.extent, index(1))) for x in loops}


# -------------------------------------------------------------------------------------------- stages


@dataclass(frozen=True, slots=True)
class Stage:
    """A block as lowering makes it.

    Attributes:
        block: The block.
        nest: The loops around it, outermost first: one per axis.
        target: The buffer that it fills, at its spatial axes.
    """

    block: Block
    nest: list[For]
    target: Buffer

    @property
    def start(self) -> Stmt:
        """The statement that is the whole stage."""
        return self.nest[0] if self.nest else self.block

    @property
    def extents(self) -> list[Expr]:
        """Extents of the elements that it fills."""
        return [a.extent for a in self.block.axes if a.kind is AxisKind.SPATIAL]

    @property
    def parts(self) -> list[Stmt]:
        """Init and body."""
        return [self.block.body] if self.block.init is None else [self.block.init, self.block.body]


def find_stage(step: str, func: Func, name: str) -> Stage:
    """The block called ``name``, which must be as lowering made it.

    Args:
        step: Name of the step, for messages.
        func: The function.
        name: Of the block.

    Raises:
        LegalityError: it is not.
    """
    block = find_block(func, name)
    path = path_to(func.body, block)
    nest = [s for s in path if isinstance(s, For)]
    target = _stored_buffer(step, block)
    first = path.index(nest[0]) if nest else len(path) - 1
    perfect = all(isinstance(s, For) for s in path[first:-1])
    if not perfect or not all(isinstance(s, Alloc | Seq) for s in path[:first]):
        raise LegalityError(f"{step}: block {name} is not alone in loops of its own")
    bound_to = {a.value: a.extent for a in block.axes}
    one_to_one = len(bound_to) == len(block.axes) == len(nest)
    if not one_to_one or any(bound_to.get(x.var) != x.extent for x in nest) or block.predicate is not None:
        raise LegalityError(f"{step}: loops of block {name} are not one per axis any more; move it first")
    return Stage(block, nest, target)


def _stored_buffer(step: str, block: Block) -> Buffer:
    """The buffer that a stage fills; all its accesses to it are at its spatial axes."""
    spatial = tuple(a.var for a in block.axes if a.kind is AxisKind.SPATIAL)
    bodies = [block.body] if block.init is None else [block.init, block.body]
    stores = [[s for s in walk_stmts(body) if isinstance(s, Store)] for body in bodies]
    if any(len(part) != 1 for part in stores):
        raise LegalityError(f"{step}: block {block.name} has other than one store")
    target = stores[0][0].buffer
    own = [e for body in bodies for e in walk(body) if isinstance(e, Load | Store) and e.buffer is target]
    stray = any(part[0].buffer is not target or part[0].mask is not None for part in stores)
    if stray or any(e.indices != spatial for e in own):
        raise LegalityError(
            f"{step}: block {block.name} touches {target.name} at other places than its spatial axes"
        )
    return target


def only_var(value: Expr) -> Var:
    """An expression that is a variable: what an axis of a stage is bound to."""
    assert isinstance(value, Var)
    return value


def copy_stage(name: str, source: Buffer, target: Buffer, extents: list[Expr]) -> Stmt:
    """A stage that copies ``source`` to ``target``, with loops ``<name>_i<dim>``."""
    axes = [b.spatial_axis(f"i{k}", extent, Var(f"{name}_i{k}")) for k, extent in enumerate(extents)]
    places = tuple(a.var for a in axes)
    nest: Stmt = Block(name, tuple(axes), Store(target, places, Load(source, places)))
    for axis in reversed(axes):
        nest = b.for_(only_var(axis.value), axis.extent, nest)
    return nest


# ------------------------------------------------------------------------------- memory, scopes, order


def new_space(step: str, name: str, allowed: dict[str, MemSpace]) -> MemSpace:
    """The memory space called ``name``.

    Raises:
        LegalityError: it is none of those allowed.
    """
    if name not in allowed:
        raise LegalityError(f"{step}: got space {name!r}; expected one of {', '.join(allowed)}")
    return allowed[name]


def check_size(step: str, buffer: Buffer, shape: tuple[Dim, ...]) -> None:
    """A private buffer has a constant shape and fits the stack.

    Raises:
        LegalityError: it does not.
    """
    num_bytes = product(shape) * buffer.dtype.itemsize_bytes
    if not isinstance(num_bytes, int) or num_bytes > MAX_LOCAL_BYTES:
        raise LegalityError(
            f"{step}: {buffer.name} takes {num_bytes} bytes of stack; expected at most {MAX_LOCAL_BYTES}"
        )


def allocated_around(func: Func, stmt: Stmt) -> set[Buffer]:
    """Buffers that are allocated around ``stmt``."""
    return {s.buffer for s in path_to(func.body, stmt) if isinstance(s, Alloc)}


def outermost(func: Func, stmt: Stmt) -> Stmt:
    """The statement of the function's own sequence that ``stmt`` is in."""
    return next(s for s in path_to(func.body, stmt) if not isinstance(s, Alloc | Seq))


def execution_order(func: Func) -> dict[int, int]:
    """Position in the text, by id of the statement: what has a smaller one starts earlier."""
    return {id(s): k for k, s in enumerate(walk_stmts(func))}


def touches(stmt: Stmt, buffer: Buffer) -> bool:
    """Whether ``stmt`` loads from, stores to or hands out ``buffer``."""
    return any(
        (isinstance(x, Load | Store) and x.buffer is buffer)
        or (isinstance(x, Call) and buffer in buffers_of(x))
        for x in walk(stmt)
    )


def drop_alloc(stmt: Stmt, buffer: Buffer) -> Stmt:
    """``stmt`` without the allocation of a buffer that is not used any more."""

    def change(s: Stmt) -> Stmt:
        if isinstance(s, Alloc) and s.buffer is buffer:
            return s.body
        return seq(*s.stmts) if isinstance(s, Seq) else s

    return map_stmt(stmt, stmt_fn=change)


# --------------------------------------------------------------------------------------------- regions


@dataclass(frozen=True, slots=True)
class Region:
    """What is accessed of one buffer dim inside a loop: ``base .. base + extent - 1``."""

    base: Expr
    extent: int


def bound(block: Block, expr: Expr) -> Expr:
    """``expr`` over block axes as an expression of the surrounding loops."""
    return substitute(expr, {a.var: a.value for a in block.axes})


def redirect(body: Stmt, old: Buffer, new: Buffer, regions: list[Region], known: Analysis) -> Stmt:
    """Accesses of ``old`` become accesses of ``new`` at relative indices, through extra axes of the blocks.

    Args:
        body: Body of the loop whose iterations access ``regions`` of ``old``, in blocks only.
        old: The buffer.
        new: What takes its place: of the extents of the regions.
        regions: One per dim.
        known: Scope of ``body``.
    """
    for stmt in walk_stmts(body):
        if isinstance(stmt, For):
            known = with_loop(known, stmt)

    def change(stmt: Stmt) -> Stmt:
        return _redirect_block(stmt, old, new, regions, known) if isinstance(stmt, Block) else stmt

    return map_stmt(body, stmt_fn=change)


def _redirect_block(block: Block, old: Buffer, new: Buffer, regions: list[Region], known: Analysis) -> Block:
    extra: dict[Expr, BlockAxis] = {}
    names = _free_names({a.var.name for a in block.axes})

    def local(indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        out: list[Expr] = []
        for i, region in zip(indices, regions, strict=True):
            relative = known.simplify(b.sub(bound(block, i), region.base))
            if not isinstance(relative, Const) and relative not in extra:
                axis = BlockAxis(Var(next(names)), AxisKind.SPATIAL, index(region.extent), relative)
                extra[relative] = axis
            out.append(relative if isinstance(relative, Const) else extra[relative].var)
        return tuple(out)

    def load(e: Expr) -> Expr:
        if not isinstance(e, Load) or e.buffer is not old:
            return e
        return Load(new, local(e.indices), e.mask)

    def store(s: Stmt) -> Stmt:
        if not isinstance(s, Store) or s.buffer is not old:
            return s
        return replace(s, buffer=new, indices=local(s.indices))

    body = map_stmt(block.body, expr_fn=load, stmt_fn=store)
    init = map_stmt(block.init, expr_fn=load, stmt_fn=store) if block.init is not None else None
    return replace(block, axes=(*block.axes, *extra.values()), body=body, init=init)


def _free_names(taken: set[str]) -> Iterator[str]:
    """``r0``, ``r1``, ... less those that are taken."""
    number = 0
    while True:
        if f"r{number}" not in taken:
            yield f"r{number}"
        number += 1


def shape_exprs(buffer: Buffer) -> list[Expr]:
    """The extents of a buffer."""
    return [size(d) for d in buffer.shape]


# ------------------------------------------------------------------------------------------- small things


def names_in(stmt: Stmt) -> list[str]:
    """Names of all loops and blocks in ``stmt``."""
    loops = [s.var.name for s in walk_stmts(stmt) if isinstance(s, For)]
    return loops + [s.name for s in walk_stmts(stmt) if isinstance(s, Block)]


def conjuncts(condition: Expr | None) -> list[Expr]:
    """Conditions that ``condition`` is the conjunction of."""
    match condition:
        case None:
            return []
        case Binary(op=BinaryOp.AND, a=x, b=y):
            return [*conjuncts(x), *conjuncts(y)]
        case _:
            return [condition]
