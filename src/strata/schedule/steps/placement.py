"""compute_at: a stage moves to where its result is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from strata.core.dims import Dim
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.externs import buffers_of, call_writes
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
    ForKind,
    Func,
    Let,
    Load,
    Seq,
    Stmt,
    Store,
    Var,
    index,
    seq,
    size,
)
from strata.loop.rewrite import (
    buffers_read,
    buffers_written,
    free_vars,
    map_expr,
    map_stmt,
    path_to,
    substitute,
    walk,
    walk_stmts,
)
from strata.schedule.dependence import enter, with_loop
from strata.schedule.step import Step, check_new_names, find_loop, register, replace_stmt, with_body

from .stages import (
    PRIVATE,
    Region,
    Stage,
    allocated_around,
    bound,
    check_size,
    drop_alloc,
    execution_order,
    find_stage,
    new_space,
    only_var,
    redirect,
)


@register
@dataclass(frozen=True, slots=True)
class ComputeAt(Step):
    """Compute a stage inside a loop of its consumer, into a private buffer of just the size read there.

    Rewrite::

        for i, j: block "p" B[i, j] = f(i, j)         for io: for jo:
        for io, jo, ii, ji: block "c" ... B[..]  ->     alloc B': f32[6, 64]
                                                        for i, j: block "p" B'[i, j] = f(io*6 + i, jo*64 + j)
                                                        for ii, ji: block "c" ... B'[ii, ji]

    Elements past the end of the domain are computed from clamped indices and never used. Loops of the
    producer keep the names of the stage: ``<block>_i<dim>`` and ``<block>_k<dim>``.

    Legal when: the producer is as lowering made it (its own nest of one loop per axis, no predicate) and
    alone fills one intermediate buffer with its spatial axes as indices; nothing that runs later writes what
    it reads; all readers are blocks inside ``loop``, which comes later; the region read per iteration has
    constant extents: several reads start at constant distances, and what lies between is computed, too.
    """

    block: str
    loop: str
    space: str = "local"

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "compute_at"

    def apply(self, func: Func) -> Func:
        """Move the producer."""
        space = new_space("compute_at", self.space, PRIVATE)
        stage, loop = find_stage("compute_at", func, self.block), find_loop(func, self.loop)
        producer, nest, target = stage.block, stage.nest, stage.target
        _check_order(func, producer, nest, loop, target)
        known = Analysis()
        for stmt in path_to(func.body, loop):
            known = enter(known, stmt)
        func, loop = _without_needless_clamps(func, loop, target)
        regions = _regions(func, loop, target, known)
        check_size("compute_at", target, tuple(r.extent for r in regions))
        private = Buffer(target.name, tuple(r.extent for r in regions), target.dtype, space)
        moved_nest = _Producer(stage, private, regions, known).nest()
        names = tuple(s.var.name for s in walk_stmts(moved_nest) if isinstance(s, For))
        check_new_names(func, "compute_at", names, leaving=tuple(x.var.name for x in nest))
        body = redirect(loop.body, target, private, regions, known)
        moved = replace(loop, body=Alloc(private, seq(moved_nest, body)))
        func = replace_stmt(func, loop, moved)
        func = replace_stmt(func, nest[0] if nest else producer, Seq(()))
        return with_body(func, drop_alloc(func.body, target))


# ------------------------------------------------------------------------------------------- legality


def _check_order(func: Func, producer: Block, nest: list[For], loop: For, target: Buffer) -> None:
    """Everything that the producer reads is final when it runs; all readers of its result are in the loop."""
    if not any(isinstance(s, Alloc) and s.buffer is target for s in walk_stmts(func)):
        raise LegalityError(f"compute_at: {target.name} is a parameter; only intermediates move")
    start = nest[0] if nest else producer
    order = execution_order(func)
    if any(s is producer for s in walk_stmts(loop)):
        raise LegalityError(f"compute_at: block {producer.name} is inside loop {loop.var.name} already")
    if order[id(loop)] < order[id(start)]:
        raise LegalityError(f"compute_at: loop {loop.var.name} runs before block {producer.name}")
    if loop.kind is ForKind.VECTORIZE:
        raise LegalityError(f"compute_at: loop {loop.var.name} is a vector loop")
    own = {id(s) for s in walk_stmts(start)}
    needed = {e for part in (producer.body, producer.init) if part is not None for e in buffers_read(part)}
    for stmt in walk_stmts(func):
        if isinstance(stmt, Call) and target in buffers_of(stmt):
            raise LegalityError(f"compute_at: {target.name} is passed as a whole to @{stmt.extern}")
        if isinstance(stmt, Call) and needed & set(call_writes(stmt)) and order[id(stmt)] > order[id(start)]:
            raise LegalityError(
                f"compute_at: @{stmt.extern} writes what block {producer.name} reads, after it"
            )
        if not isinstance(stmt, Store) or id(stmt) in own:
            continue
        if stmt.buffer is target:
            raise LegalityError(f"compute_at: {target.name} is also written outside of block {producer.name}")
        if stmt.buffer in needed and order[id(stmt)] > order[id(start)]:
            raise LegalityError(
                f"compute_at: {stmt.buffer.name}, which block {producer.name} reads, is written after it"
            )
    if needed & allocated_around(func, start) - allocated_around(func, loop):
        raise LegalityError(
            f"compute_at: a buffer that block {producer.name} reads is not allocated at {loop.var.name}"
        )
    inside = sum(1 for _, load in _reads(loop, target))
    everywhere = sum(1 for e in walk(func) if isinstance(e, Load) and e.buffer is target)
    in_producer = sum(1 for e in walk(start) if isinstance(e, Load) and e.buffer is target)
    if inside != everywhere - in_producer:
        raise LegalityError(f"compute_at: {target.name} is read outside of loop {loop.var.name} or of blocks")


# ---------------------------------------------------------------------------------------------- clamps


def _without_needless_clamps(func: Func, loop: For, target: Buffer) -> tuple[Func, For]:
    """Reads of ``target[min(e, last)]`` become ``target[e]`` where a clamped element is never used.

    A stage that was moved before reads its operands at clamped indices, for elements past the end. Once its
    operand is computed beside it, the region may run past the end just as well.
    """
    changed: dict[int, Stmt] = {}
    for block, load in _reads(loop, target):
        if id(block) not in changed and any(map(_is_clamped, load.indices)):
            changed[id(block)] = _block_unclamped(func, block, target)
    if not changed:
        return func, loop
    new = replace(loop, body=map_stmt(loop.body, stmt_fn=lambda s: changed.get(id(s), s)))
    return replace_stmt(func, loop, new), new


def _block_unclamped(func: Func, block: Block, target: Buffer) -> Stmt:
    def change(e: Expr) -> Expr:
        return _unclamped(func, block, e) if isinstance(e, Load) and e.buffer is target else e

    return map_stmt(block, expr_fn=change)


def _is_clamped(i: Expr) -> bool:
    return isinstance(i, Binary) and i.op is BinaryOp.MIN


def _unclamped(func: Func, block: Block, load: Load) -> Expr:
    indices = [
        i.a
        if isinstance(i, Binary) and _is_clamped(i) and i.b == b.sub(size(dim), index(1))
        and _is_unused_beyond(func, block, i.a, dim)
        else i
        for i, dim in zip(load.indices, load.buffer.shape, strict=True)
    ]  # fmt: skip
    return replace(load, indices=tuple(indices))


def _is_unused_beyond(func: Func, block: Block, position: Expr, end: Dim) -> bool:
    """Whether all that ``block`` computes where ``position >= end`` is read by nobody.

    So it is if it stores to one private buffer, and every other block that reads an element of it runs under
    a predicate by which the position of that element lies before the end.
    """
    stores = {(s.buffer, s.indices) for s in walk_stmts(block) if isinstance(s, Store)}
    if len(stores) != 1:
        return False
    ((private, places),) = stores
    own = {a.var: a.value for a in block.axes}
    if private in func.params or not all(isinstance(p, Var) and p in own for p in places):
        return False
    at = bound(block, position)
    for reader in (s for s in walk_stmts(func) if isinstance(s, Block) and s is not block):
        for load in (e for e in walk(reader.body) if isinstance(e, Load) and e.buffer is private):
            there = [(own[p], bound(reader, i)) for p, i in zip(places, load.indices, strict=True)]  # type: ignore[index]
            found = _at_place(at, [(e, value) for e, value in there if not isinstance(e, Const)])
            if found is None or not _runs_only_where(func, reader, b.lt(found, size(end))):
                return False
    return True


def _at_place(position: Expr, there: Sequence[tuple[Expr, Expr]]) -> Expr | None:
    """``position`` of the instance that stores where expressions of its loops have other values.

    Args:
        position: An expression of the same loops.
        there: Expressions, and their values.

    Returns:
        ``None`` if the position depends on more than these expressions.
    """

    def change(e: Expr) -> Expr:
        return next((value for own, value in there if e == own), e)

    loops = {v for own, _ in there for v in free_vars(own)}
    hidden = map_expr(position, lambda e: b.const(0, e.dtype) if any(e == own for own, _ in there) else e)
    return None if loops & free_vars(hidden) else map_expr(position, change)


def _runs_only_where(func: Func, block: Block, condition: Expr) -> bool:
    """Whether the predicate of a block, in its loops, implies a condition."""
    known = Analysis()
    for stmt in path_to(func.body, block):
        known = enter(known, stmt)
    if block.predicate is not None:
        known = known.with_fact(block.predicate)
    return known.prove(condition)


# --------------------------------------------------------------------------------------------- regions


def _reads(loop: For, buffer: Buffer) -> list[tuple[Block, Load]]:
    """Every load of ``buffer`` in the bodies of blocks inside the loop."""
    blocks = [s for s in walk_stmts(loop.body) if isinstance(s, Block)]
    parts = [(x, part) for x in blocks for part in (x.init, x.body) if part is not None]
    return [(x, e) for x, part in parts for e in walk(part) if isinstance(e, Load) and e.buffer is buffer]


def _inner_loops(loop: For) -> list[For]:
    return [s for s in walk_stmts(loop.body) if isinstance(s, For)]


def _regions(func: Func, loop: For, buffer: Buffer, known: Analysis) -> list[Region]:
    """The region of ``buffer`` that the body of ``loop`` reads, per dim.

    Raises:
        LegalityError: nothing is read, or the region has no constant extents or no single start.
    """
    reads = _reads(loop, buffer)
    if not reads:
        raise LegalityError(f"compute_at: nothing inside loop {loop.var.name} reads {buffer.name}")
    inner = _inner_loops(loop)
    at_start: dict[Var, Expr] = {x.var: index(0) for x in inner}
    defined = {s.var for s in path_to(func.body, loop) if isinstance(s, For | Let)}
    outside = known
    for x in inner:
        known = with_loop(known, x)
    regions: list[Region] = []
    for dim in range(len(buffer.shape)):
        what = f"{buffer.name} dim {dim}"
        places: list[tuple[Expr, int]] = []  # where each read starts, and how far it gets from there
        for block, load in reads:
            position = bound(block, load.indices[dim])
            base = known.simplify(substitute(position, at_start))
            lo, hi = known.int_interval(known.simplify(b.sub(position, base)))
            if lo is None or hi is None or lo < 0:
                raise LegalityError(f"compute_at: extent of {what} inside {loop.var.name} is not constant")
            _check_base(base, what, loop, defined, outside)
            places.append((base, hi))
        region = _union(places, outside)
        if region is None:
            raise LegalityError(f"compute_at: {what} is read at several places inside {loop.var.name}")
        regions.append(region)
    return regions


def _union(places: list[tuple[Expr, int]], known: Analysis) -> Region | None:
    """The region around reads of ``base .. base + top``, if all start at constant distances."""
    first, _ = places[0]
    begins: list[int] = []
    for base, _ in places:
        distance = known.simplify(b.sub(base, first))
        if not isinstance(distance, Const):
            return None
        begins.append(int(distance.value))
    begin = min(begins)
    end = max(x + top + 1 for x, (_, top) in zip(begins, places, strict=True))
    return Region(places[begins.index(begin)][0], end - begin)


def _check_base(base: Expr, what: str, loop: For, defined: set[Var], known: Analysis) -> None:
    """The start of a region can be computed at the head of the loop, where nothing guards it."""
    loads = [e for e in walk(base) if isinstance(e, Load)]
    inside = all(_in_bounds(e, known) for e in loads)
    written = buffers_written(loop)
    if set(free_vars(base)) - defined or not inside or any(e.buffer in written for e in loads):
        raise LegalityError(f"compute_at: start of {what} is not known at the head of {loop.var.name}")
    if not loads and not known.prove(b.ge(base, 0)):
        raise LegalityError(f"compute_at: start of {what} may be negative")


def _in_bounds(access: Load, known: Analysis) -> bool:
    return all(_inside(i, d, known) for i, d in zip(access.indices, access.buffer.shape, strict=True))


def _inside(i: Expr, dim: Dim, known: Analysis) -> bool:
    return known.prove(b.ge(i, 0)) and known.prove(b.lt(i, size(dim)))


# --------------------------------------------------------------------------------------------- rewriting


@dataclass(frozen=True, slots=True)
class _Producer:
    """The stage at its new place."""

    stage: Stage
    private: Buffer
    regions: list[Region]
    known: Analysis  # at the head of the loop

    def nest(self) -> Stmt:
        """Loops over the region around the block."""
        known, loops, axes = self.known, [], []
        loose: set[Var] = set()
        block, notes = self.stage.block, {x.var: x.notes for x in self.stage.nest}
        spatial = [a for a in block.axes if a.kind is AxisKind.SPATIAL]
        local = [Var(f"l{k}") for k in range(len(spatial))]
        for k, (axis, region) in enumerate(zip(spatial, self.regions, strict=True)):
            var = Var(f"{block.name}_i{k}")
            loop = For(var, index(region.extent), ForKind.SERIAL, Seq(()), notes[only_var(axis.value)])
            loops.append(loop)
            known = with_loop(known, loop)
            value = b.add(region.base, loop.var)
            extent = axis.extent
            if not known.prove(b.lt(value, extent)):
                loose.add(axis.var)
                extent = b.add(region.base, region.extent)
            axes.append(BlockAxis(axis.var, AxisKind.SPATIAL, extent, value))
            axes.append(BlockAxis(local[k], AxisKind.SPATIAL, index(region.extent), loop.var))
        for k, axis in enumerate(a for a in block.axes if a.kind is AxisKind.REDUCTION):
            var = Var(f"{block.name}_k{k}")
            loop = For(var, axis.extent, ForKind.SERIAL, Seq(()), notes[only_var(axis.value)])
            loops.append(loop)
            known = with_loop(known, loop)
            axes.append(BlockAxis(axis.var, AxisKind.REDUCTION, axis.extent, loop.var))
        values = {a.var: a.value for a in axes}
        move = _Moved(self.private, self.stage.target, tuple(local), values, loose, known)
        init = move.statement(block.init) if block.init is not None else None
        result: Stmt = replace(block, axes=tuple(axes), body=move.statement(block.body), init=init)
        for loop in reversed(loops):
            result = replace(loop, body=result)
        return result


@dataclass(frozen=True, slots=True)
class _Moved:
    """Rewrites the producer's body to the private buffer; loads that may run past the end are clamped."""

    private: Buffer
    target: Buffer
    places: tuple[Expr, ...]
    values: dict[Var, Expr]  # of the axes
    loose: set[Var]  # axes that may run past the end
    known: Analysis

    def statement(self, stmt: Stmt) -> Stmt:
        """``stmt`` at its new place."""
        return map_stmt(stmt, expr_fn=self.load, stmt_fn=self.store)

    def store(self, stmt: Stmt) -> Stmt:
        """The store goes to the private buffer."""
        return Store(self.private, self.places, stmt.value) if isinstance(stmt, Store) else stmt

    def load(self, e: Expr) -> Expr:
        """Loads of the result, and of operands."""
        if not isinstance(e, Load):
            return e
        if e.buffer is self.target:
            return Load(self.private, self.places)
        fixed = [
            self.clamped(i, dim) if self.loose & set(free_vars(i)) else i
            for i, dim in zip(e.indices, e.buffer.shape, strict=True)
        ]
        return Load(e.buffer, tuple(fixed), e.mask)

    def clamped(self, i: Expr, dim: Dim) -> Expr:
        """``i`` or, where it may be outside, the nearest index inside."""
        at = self.known.simplify(substitute(i, self.values))
        if not self.known.prove(b.lt(at, size(dim))):
            i = b.minimum(i, b.sub(size(dim), index(1)))
        return i if self.known.prove(b.ge(at, 0)) else b.maximum(i, index(0))
