"""Steps on where things are computed and stored: compute_at, decompose_reduction."""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    Block,
    BlockAxis,
    Buffer,
    Const,
    Expr,
    For,
    ForKind,
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
from strata.loop.rewrite import free_vars, map_stmt, substitute, walk, walk_stmts
from strata.loop.simplify import bounds, prove, simplify
from strata.schedule.step import Step, find_block, find_loop, loops_around, register, replace_stmt, with_body

Ranges = dict[Var, tuple[Expr | int, Expr | int]]


def loop_ranges(loops: list[For]) -> Ranges:
    """Inclusive value ranges of loop variables."""
    return {x.var: (0, b.sub(x.extent, index(1))) for x in loops}


@dataclass(frozen=True, slots=True)
class _Region:
    """What the consumer reads of one buffer dim inside the loop: ``base .. base + extent - 1``."""

    base: Expr
    extent: int


def _inner_loops(loop: For) -> list[For]:
    return [s for s in walk_stmts(loop.body) if isinstance(s, For)]


def _reads(loop: For, buffer: Buffer) -> list[tuple[Block, Load]]:
    """Every load of ``buffer`` in blocks inside the loop."""
    found: list[tuple[Block, Load]] = []
    for stmt in walk_stmts(loop.body):
        if not isinstance(stmt, Block):
            continue

        found.extend((stmt, e) for e in walk(stmt.body) if isinstance(e, Load) and e.buffer is buffer)
    return found


def _bound(block: Block, expr: Expr) -> Expr:
    """``expr`` over block axes as an expression of the surrounding loops."""
    return substitute(expr, {a.var: a.value for a in block.axes})


def _regions(func: Func, loop: For, buffer: Buffer) -> list[_Region]:
    """The region of ``buffer`` that the body of ``loop`` reads, per dim."""
    reads = _reads(loop, buffer)
    if not reads:
        raise LegalityError(f"compute_at: nothing inside loop {loop.var.name} reads {buffer.name}")
    inner = _inner_loops(loop)
    ranges = loop_ranges([s for s in walk_stmts(func.body) if isinstance(s, For)])
    regions: list[_Region] = []
    for dim in range(len(buffer.shape)):
        bases, top = [], 0
        for block, load in reads:
            position = _bound(block, load.indices[dim])
            base = simplify(substitute(position, {x.var: index(0) for x in inner}), ranges)
            lo, hi = bounds(simplify(b.sub(position, base), ranges), ranges)
            if lo is None or hi is None or lo < 0:
                raise LegalityError(
                    f"compute_at: extent of {buffer.name} dim {dim} inside {loop.var.name} is not constant"
                )
            bases.append(base)
            top = max(top, hi)
        if any(x != bases[0] for x in bases):
            raise LegalityError(
                f"compute_at: {buffer.name} dim {dim} is read at several places inside {loop.var.name}"
            )
        regions.append(_Region(bases[0], top + 1))
    return regions


def _clamped(body: Stmt, axes: dict[Var, Expr], ranges: Ranges, own: Buffer) -> Stmt:
    """Loads of other buffers whose index may run past the end read the last element instead."""

    def change(e: Expr) -> Expr:
        if not isinstance(e, Load) or e.buffer is own:
            return e
        fixed = []
        for i, dim in zip(e.indices, e.buffer.shape, strict=True):
            inside = prove(b.lt(simplify(substitute(i, axes), ranges), size(dim)), ranges)
            fixed.append(i if inside or not free_vars(i) else b.minimum(i, b.sub(size(dim), index(1))))
        return Load(e.buffer, tuple(fixed), e.mask)

    return map_stmt(body, expr_fn=change)


@register
@dataclass(frozen=True, slots=True)
class ComputeAt(Step):
    """Compute a stage inside a loop of its consumer, into a private buffer of just the size read there.

    Rewrite::

        for i, j: block "p" B[i, j] = f(i, j)              for io: for jo:
        for io, jo, ii, ji: block "c" ... B[..] ...   ->     alloc B': f32[6, 64]
                                                            for i, j: block "p" B'[i, j] = f(io*6 + i, ..)
                                                            for ii, ji: block "c" ... B'[ii, ji] ...

    Elements past the end of the domain are computed from clamped indices and never used. Loops of the
    producer keep the names of the stage: ``<block>_i<dim>`` and ``<block>_k<dim>``.

    Legal when: the producer fills one intermediate buffer with its axes in order, all readers are inside
    ``loop``, and the region read per iteration has constant extents.
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
        producer, loop = find_block(func, self.block), find_loop(func, self.loop)
        nest = loops_around(func, self.block)
        target = _stored_buffer(producer)
        self._check_consumers(func, producer, loop, target)
        regions = _regions(func, loop, target)
        outer = _path_to(func, loop)
        private = Buffer(target.name, tuple(r.extent for r in regions), target.dtype, MemSpace(self.space))
        new_nest = self._producer_nest(producer, nest, regions, private, target, loop_ranges(outer))
        body = _redirect_reads(
            loop.body, target, private, regions, loop_ranges([*outer, *_inner_loops(loop)])
        )
        moved = For(loop.var, loop.extent, loop.kind, Alloc(private, seq(new_nest, body)))
        func = replace_stmt(func, loop, moved)
        func = replace_stmt(func, nest[0] if nest else producer, Seq(()))
        return with_body(func, _drop_alloc(func.body, target))

    def _check_consumers(self, func: Func, producer: Block, loop: For, target: Buffer) -> None:
        if any(p is target for p in func.params):
            raise LegalityError(
                f"compute_at: block {self.block} writes parameter {target.name}; only intermediates move"
            )
        if any(s is producer for s in walk_stmts(loop)):
            raise LegalityError(f"compute_at: block {self.block} is inside loop {self.loop} already")
        inside = {id(s) for s in walk_stmts(loop)}
        for stmt in walk_stmts(func.body):
            if isinstance(stmt, Block) and stmt is not producer and id(stmt) not in inside:
                if any(isinstance(e, Load) and e.buffer is target for e in walk(stmt.body)):
                    raise LegalityError(
                        f"compute_at: block {stmt.name} outside loop {self.loop} reads {target.name}"
                    )

    def _producer_nest(
        self,
        producer: Block,
        nest: list[For],
        regions: list[_Region],
        private: Buffer,
        target: Buffer,
        ranges: Ranges,
    ) -> Stmt:
        spatial = [a for a in producer.axes if a.kind is AxisKind.SPATIAL]
        reduction = [a for a in producer.axes if a.kind is AxisKind.REDUCTION]
        if len(spatial) != len(regions):
            raise LegalityError(
                f"compute_at: block {self.block} has {len(spatial)} spatial axes for {len(regions)} dims"
            )
        loops: list[tuple[Var, Expr]] = []
        axes: list[BlockAxis] = []
        places: list[Expr] = []
        for k, (axis, region) in enumerate(zip(spatial, regions, strict=True)):
            var = Var(f"{self.block}_i{k}")
            loops.append((var, index(region.extent)))
            ranges = {**ranges, var: (0, region.extent - 1)}
            axes.append(BlockAxis(axis.var, AxisKind.SPATIAL, axis.extent, b.add(region.base, var)))
            local = Var(f"l{k}")
            axes.append(BlockAxis(local, AxisKind.SPATIAL, index(region.extent), var))
            places.append(local)
        for k, axis in enumerate(reduction):
            var = Var(f"{self.block}_k{k}")
            loops.append((var, axis.extent))
            ranges = {**ranges, var: (0, b.sub(axis.extent, index(1)))}
            axes.append(BlockAxis(axis.var, AxisKind.REDUCTION, axis.extent, var))
        bound = {a.var: a.value for a in axes}

        def local_store(stmt: Stmt) -> Stmt:
            return Store(private, tuple(places), stmt.value) if isinstance(stmt, Store) else stmt

        def local_load(e: Expr) -> Expr:
            return Load(private, tuple(places)) if isinstance(e, Load) and e.buffer is target else e

        def rewritten(stmt: Stmt | None) -> Stmt | None:
            if stmt is None:
                return None
            return _clamped(map_stmt(stmt, expr_fn=local_load, stmt_fn=local_store), bound, ranges, private)

        body = rewritten(producer.body)
        assert body is not None
        result: Stmt = Block(producer.name, tuple(axes), body, rewritten(producer.init))
        for var, extent in reversed(loops):
            result = For(var, extent, ForKind.SERIAL, result)
        return result


def _stored_buffer(block: Block) -> Buffer:
    stores = [s for s in walk_stmts(block.body) if isinstance(s, Store)]
    spatial = tuple(a.var for a in block.axes if a.kind is AxisKind.SPATIAL)
    if len(stores) != 1 or stores[0].indices != spatial:
        raise LegalityError(
            f"compute_at: block {block.name} does not store one buffer at exactly its spatial axes"
        )
    return stores[0].buffer


def _path_to(func: Func, loop: For) -> list[For]:
    """Loops around and including ``loop``."""
    path: list[For] = []
    for stmt in walk_stmts(func.body):
        if isinstance(stmt, For) and any(s is loop for s in walk_stmts(stmt)):
            path.append(stmt)
    return path


def _redirect_reads(body: Stmt, old: Buffer, new: Buffer, regions: list[_Region], ranges: Ranges) -> Stmt:
    """Loads of ``old`` become loads of ``new`` at region-relative indices, through extra axes of the
    consuming blocks.
    """

    def change(stmt: Stmt) -> Stmt:
        if not isinstance(stmt, Block):
            return stmt
        extra: dict[Expr, BlockAxis] = {}

        def local(e: Expr) -> Expr:
            if not isinstance(e, Load) or e.buffer is not old:
                return e
            indices: list[Expr] = []
            for i, region in zip(e.indices, regions, strict=True):
                relative = simplify(b.sub(_bound(stmt, i), region.base), ranges)
                if isinstance(relative, Const):
                    indices.append(relative)
                    continue
                if relative not in extra:
                    names = {a.var.name for a in stmt.axes}
                    var = Var(
                        next(
                            f"r{k}"
                            for k in range(len(names) + len(extra) + 1)
                            if f"r{k}" not in names and k >= len(extra)
                        )
                    )
                    extra[relative] = BlockAxis(var, AxisKind.SPATIAL, index(region.extent), relative)
                indices.append(extra[relative].var)
            return Load(new, tuple(indices))

        new_body = map_stmt(stmt.body, expr_fn=local)
        new_init = map_stmt(stmt.init, expr_fn=local) if stmt.init is not None else None
        return Block(stmt.name, (*stmt.axes, *extra.values()), new_body, new_init, stmt.predicate)

    return map_stmt(body, stmt_fn=change)


def _drop_alloc(stmt: Stmt, buffer: Buffer) -> Stmt:
    def change(s: Stmt) -> Stmt:
        if isinstance(s, Alloc) and s.buffer is buffer:
            return s.body
        return seq(*s.stmts) if isinstance(s, Seq) else s

    return map_stmt(stmt, stmt_fn=change)


@register
@dataclass(frozen=True, slots=True)
class DecomposeReduction(Step):
    """Give the initialisation of a reduction its own nest, just before ``loop``.

    Rewrite::

        for k: for i: block "p" init: B[i] = 0; B[i] += f   ->   for i: block "p_init" B[i] = 0
                                                                 for k: for i: block "p" B[i] += f

    The new loops are called like the old ones with ``_init`` appended.

    Legal when: the block has an init, and every reduction loop of it is ``loop`` or inside ``loop``.
    """

    block: str
    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "decompose_reduction"

    def apply(self, func: Func) -> Func:
        """Split off the init."""
        block, loop = find_block(func, self.block), find_loop(func, self.loop)
        if block.init is None:
            raise LegalityError(f"decompose_reduction: block {self.block} has no init")
        nest = loops_around(func, self.block)
        if not any(x is loop for x in nest):
            raise LegalityError(f"decompose_reduction: block {self.block} is not inside loop {self.loop}")
        at = next(k for k, x in enumerate(nest) if x is loop)
        reduction_vars = {v for a in block.axes if a.kind is AxisKind.REDUCTION for v in free_vars(a.value)}
        if any(x.var in reduction_vars for x in nest[:at]):
            raise LegalityError(
                f"decompose_reduction: a reduction loop of {self.block} is outside loop {self.loop}"
            )
        kept = [x for x in nest[at:] if x.var not in reduction_vars]
        renamed = {x.var: Var(x.var.name + "_init") for x in kept}
        spatial = tuple(
            BlockAxis(Var(a.var.name), a.kind, a.extent, substitute(a.value, dict(renamed)))
            for a in block.axes
            if a.kind is AxisKind.SPATIAL
        )
        old = [a for a in block.axes if a.kind is AxisKind.SPATIAL]
        init = substitute(block.init, {a.var: c.var for a, c in zip(old, spatial, strict=True)})
        predicate = None
        if block.predicate is not None and not reduction_vars & set(free_vars(block.predicate)):
            predicate = substitute(block.predicate, dict(renamed))
        start: Stmt = Block(block.name + "_init", spatial, init, None, predicate)
        for x in reversed(kept):
            start = For(renamed[x.var], x.extent, x.kind, start)
        func = replace_stmt(func, block, Block(block.name, block.axes, block.body, None, block.predicate))
        loop = find_loop(func, self.loop)
        return replace_stmt(func, loop, seq(start, loop))
