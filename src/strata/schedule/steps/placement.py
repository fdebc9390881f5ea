"""Steps on where things are computed and stored: compute_at, decompose_reduction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from strata.core.dims import Dim, product
from strata.core.dtypes import bool_
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.externs import buffers_of, call_writes
from strata.loop.nodes import (
    Alloc,
    AxisKind,
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
    MemSpace,
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
    map_stmt,
    path_to,
    substitute,
    walk,
    walk_stmts,
)
from strata.schedule.dependence import enter, init_comes_first, one_element, scope_of, with_loop
from strata.schedule.step import (
    Step,
    check_new_names,
    find_block,
    find_loop,
    loops_around,
    register,
    replace_stmt,
    with_body,
)

Ranges = dict[Var, tuple[Expr | int, Expr | int]]
SPACES = {space.value: space for space in (MemSpace.LOCAL, MemSpace.REGISTER)}
MAX_LOCAL_BYTES = 1 << 20  # of one buffer: it lives on the stack of a thread


def loop_ranges(loops: list[For]) -> Ranges:
    """Inclusive value ranges of loop variables."""
    return {x.var: (0, b.sub(x.extent, index(1))) for x in loops}


@register
@dataclass(frozen=True, slots=True)
class ComputeAt(Step):
    """Compute a stage inside a loop of its consumer, into a private buffer of just the size read there.

    Rewrite::

        for i, j: block "p" B[i, j] = f(i, j)            for io: for jo:
        for io, jo, ii, ji: block "c" ... B[..] ...  ->    alloc B': f32[6, 64]
                                                           for i, j: block "p" B'[i, j] = f(io*6 + i, jo*64 +
                                                               j) for ii, ji: block "c" ... B'[ii, ji] ...

    Elements past the end of the domain are computed from clamped indices and never used. Loops of the
    producer keep the names of the stage: ``<block>_i<dim>`` and ``<block>_k<dim>``.

    Legal when: the producer is as lowering made it (its own nest of one loop per axis, no predicate) and
    alone fills one intermediate buffer with its spatial axes as indices; nothing that runs later writes what
    it reads; all readers are blocks inside ``loop``, which comes later; the region read per iteration starts
    at one place and has constant extents.
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
        if self.space not in SPACES:
            raise LegalityError(f"compute_at: got space {self.space!r}; expected one of {', '.join(SPACES)}")
        producer, loop = find_block(func, self.block), find_loop(func, self.loop)
        path = path_to(func.body, producer)
        nest = [s for s in path if isinstance(s, For)]
        target = _stored_buffer(producer)
        _check_producer(func, producer, path)
        _check_order(func, producer, nest, loop, target)
        known = Analysis()
        for stmt in path_to(func.body, loop):
            known = enter(known, stmt)
        regions = _regions(func, loop, target, known)
        _check_size(target, regions)
        private = Buffer(target.name, tuple(r.extent for r in regions), target.dtype, SPACES[self.space])
        moved_nest = _Producer(producer, private, target, regions, known).nest()
        names = tuple(s.var.name for s in walk_stmts(moved_nest) if isinstance(s, For))
        check_new_names(func, "compute_at", names, leaving=tuple(x.var.name for x in nest))
        body = _redirect_reads(loop.body, target, private, regions, known)
        moved = For(loop.var, loop.extent, loop.kind, Alloc(private, seq(moved_nest, body)))
        func = replace_stmt(func, loop, moved)
        func = replace_stmt(func, nest[0] if nest else producer, Seq(()))
        return with_body(func, _drop_alloc(func.body, target))


# ------------------------------------------------------------------------------------------- legality


def _stored_buffer(block: Block) -> Buffer:
    """The buffer that the producer fills; all its accesses to it are at its spatial axes."""
    spatial = tuple(a.var for a in block.axes if a.kind is AxisKind.SPATIAL)
    bodies = [block.body] if block.init is None else [block.init, block.body]
    stores = [[s for s in walk_stmts(body) if isinstance(s, Store)] for body in bodies]
    if any(len(part) != 1 for part in stores):
        raise LegalityError(f"compute_at: block {block.name} has other than one store")
    target = stores[0][0].buffer
    own = [e for body in bodies for e in walk(body) if isinstance(e, Load | Store) and e.buffer is target]
    stray = any(part[0].buffer is not target or part[0].mask is not None for part in stores)
    if stray or any(e.indices != spatial for e in own):
        raise LegalityError(
            f"compute_at: block {block.name} touches {target.name} at other places than its spatial axes"
        )
    return target


def _check_producer(func: Func, producer: Block, path: tuple[Stmt, ...]) -> None:
    """The producer is a naive stage: loops one to one with its axes, nothing else around or beside it."""
    nest = [s for s in path if isinstance(s, For)]
    first = path.index(nest[0]) if nest else len(path) - 1
    perfect = all(isinstance(s, For) for s in path[first:-1])
    if not perfect or not all(isinstance(s, Alloc | Seq) for s in path[:first]):
        raise LegalityError(f"compute_at: block {producer.name} is not alone in loops of its own")
    bound = {a.value: a.extent for a in producer.axes}
    one_to_one = len(bound) == len(producer.axes) == len(nest)
    if not one_to_one or any(bound.get(x.var) != x.extent for x in nest) or producer.predicate is not None:
        raise LegalityError(
            f"compute_at: loops of block {producer.name} are not one per axis any more; move it first"
        )


def _check_order(func: Func, producer: Block, nest: list[For], loop: For, target: Buffer) -> None:
    """Everything that the producer reads is final when it runs; all readers of its result are in the loop."""
    if not any(isinstance(s, Alloc) and s.buffer is target for s in walk_stmts(func)):
        raise LegalityError(f"compute_at: {target.name} is a parameter; only intermediates move")
    start = nest[0] if nest else producer
    order = {id(s): k for k, s in enumerate(walk_stmts(func))}
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
    scopes = [{s.buffer for s in path_to(func.body, x) if isinstance(s, Alloc)} for x in (start, loop)]
    if (needed & scopes[0]) - scopes[1]:
        raise LegalityError(
            f"compute_at: a buffer that block {producer.name} reads is not allocated at {loop.var.name}"
        )
    inside = sum(1 for _, load in _reads(loop, target))
    everywhere = sum(1 for e in walk(func) if isinstance(e, Load) and e.buffer is target)
    in_producer = sum(1 for e in walk(start) if isinstance(e, Load) and e.buffer is target)
    if inside != everywhere - in_producer:
        raise LegalityError(f"compute_at: {target.name} is read outside of loop {loop.var.name} or of blocks")


# --------------------------------------------------------------------------------------------- regions


@dataclass(frozen=True, slots=True)
class _Region:
    """What the consumer reads of one buffer dim inside the loop: ``base .. base + extent - 1``."""

    base: Expr
    extent: int


def _reads(loop: For, buffer: Buffer) -> list[tuple[Block, Load]]:
    """Every load of ``buffer`` in the bodies of blocks inside the loop."""
    blocks = [s for s in walk_stmts(loop.body) if isinstance(s, Block)]
    parts = [(x, part) for x in blocks for part in (x.init, x.body) if part is not None]
    return [(x, e) for x, part in parts for e in walk(part) if isinstance(e, Load) and e.buffer is buffer]


def _bound(block: Block, expr: Expr) -> Expr:
    """``expr`` over block axes as an expression of the surrounding loops."""
    return substitute(expr, {a.var: a.value for a in block.axes})


def _inner_loops(loop: For) -> list[For]:
    return [s for s in walk_stmts(loop.body) if isinstance(s, For)]


def _regions(func: Func, loop: For, buffer: Buffer, known: Analysis) -> list[_Region]:
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
    regions: list[_Region] = []
    for dim in range(len(buffer.shape)):
        what = f"{buffer.name} dim {dim}"
        bases, top = [], 0
        for block, load in reads:
            position = _bound(block, load.indices[dim])
            base = known.simplify(substitute(position, at_start))
            lo, hi = known.int_interval(known.simplify(b.sub(position, base)))
            if lo is None or hi is None or lo < 0:
                raise LegalityError(f"compute_at: extent of {what} inside {loop.var.name} is not constant")
            _check_base(base, what, loop, defined, outside)
            bases.append(base)
            top = max(top, hi)
        if any(x != bases[0] for x in bases):
            raise LegalityError(f"compute_at: {what} is read at several places inside {loop.var.name}")
        regions.append(_Region(bases[0], top + 1))
    return regions


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


def _check_size(buffer: Buffer, regions: list[_Region]) -> None:
    num_bytes = product(r.extent for r in regions) * buffer.dtype.itemsize_bytes
    if not isinstance(num_bytes, int) or num_bytes > MAX_LOCAL_BYTES:
        raise LegalityError(
            f"compute_at: {buffer.name} takes {num_bytes} bytes of stack; expected at most {MAX_LOCAL_BYTES}"
        )


# --------------------------------------------------------------------------------------------- rewriting


@dataclass(frozen=True, slots=True)
class _Producer:
    """The stage at its new place."""

    block: Block
    private: Buffer
    target: Buffer
    regions: list[_Region]
    known: Analysis  # at the head of the loop

    def nest(self) -> Stmt:
        """Loops over the region around the block."""
        known, loops, axes = self.known, [], []
        loose: set[Var] = set()
        spatial = [a for a in self.block.axes if a.kind is AxisKind.SPATIAL]
        local = [Var(f"l{k}") for k in range(len(spatial))]
        for k, (axis, region) in enumerate(zip(spatial, self.regions, strict=True)):
            loop = For(Var(f"{self.block.name}_i{k}"), index(region.extent), ForKind.SERIAL, Seq(()))
            loops.append(loop)
            known = with_loop(known, loop)
            value = b.add(region.base, loop.var)
            extent = axis.extent
            if not known.prove(b.lt(value, extent)):
                loose.add(axis.var)
                extent = b.add(region.base, region.extent)
            axes.append(BlockAxis(axis.var, AxisKind.SPATIAL, extent, value))
            axes.append(BlockAxis(local[k], AxisKind.SPATIAL, index(region.extent), loop.var))
        for k, axis in enumerate(a for a in self.block.axes if a.kind is AxisKind.REDUCTION):
            loop = For(Var(f"{self.block.name}_k{k}"), axis.extent, ForKind.SERIAL, Seq(()))
            loops.append(loop)
            known = with_loop(known, loop)
            axes.append(BlockAxis(axis.var, AxisKind.REDUCTION, axis.extent, loop.var))
        move = _Moved(self.private, self.target, tuple(local), {a.var: a.value for a in axes}, loose, known)
        init = move.statement(self.block.init) if self.block.init is not None else None
        body = move.statement(self.block.body)
        result: Stmt = Block(self.block.name, tuple(axes), body, init)
        for loop in reversed(loops):
            result = For(loop.var, loop.extent, loop.kind, result)
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


def _redirect_reads(body: Stmt, old: Buffer, new: Buffer, regions: list[_Region], known: Analysis) -> Stmt:
    """Loads of ``old`` become loads of ``new`` at relative indices, through extra axes of the blocks."""
    for stmt in walk_stmts(body):
        if isinstance(stmt, For):
            known = with_loop(known, stmt)

    def change(stmt: Stmt) -> Stmt:
        if not isinstance(stmt, Block):
            return stmt
        extra: dict[Expr, BlockAxis] = {}
        names = _free_names({a.var.name for a in stmt.axes})

        def local(e: Expr) -> Expr:
            if not isinstance(e, Load) or e.buffer is not old:
                return e
            indices: list[Expr] = []
            for i, region in zip(e.indices, regions, strict=True):
                relative = known.simplify(b.sub(_bound(stmt, i), region.base))
                if not isinstance(relative, Const) and relative not in extra:
                    axis = BlockAxis(Var(next(names)), AxisKind.SPATIAL, index(region.extent), relative)
                    extra[relative] = axis
                indices.append(relative if isinstance(relative, Const) else extra[relative].var)
            return Load(new, tuple(indices), e.mask)

        new_body = map_stmt(stmt.body, expr_fn=local)
        new_init = map_stmt(stmt.init, expr_fn=local) if stmt.init is not None else None
        return Block(stmt.name, (*stmt.axes, *extra.values()), new_body, new_init, stmt.predicate)

    return map_stmt(body, stmt_fn=change)


def _free_names(taken: set[str]) -> Iterator[str]:
    """``r0``, ``r1``, ... less those that are taken."""
    number = 0
    while True:
        if f"r{number}" not in taken:
            yield f"r{number}"
        number += 1


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

    The new loops are called like the old ones with ``_init`` appended. A predicate is kept as it is at the
    start of the reduction.

    Legal when: the block has an init and is alone inside ``loop``; every reduction loop of it is ``loop`` or
    inside; no other loop there repeats an element; init and extents do not depend on a reduction loop.
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
        over = self._check(func, block, loop)
        inner = _perfect_nest(loop)
        kept = [x for x in inner if x.var not in over]
        names = (block.name + "_init", *(x.var.name + "_init" for x in kept))
        check_new_names(func, "decompose_reduction", names)
        start = _init_nest(block, kept, over)
        func = replace_stmt(func, block, Block(block.name, block.axes, block.body, None, block.predicate))
        loop = find_loop(func, self.loop)
        return replace_stmt(func, loop, seq(start, loop))

    def _check(self, func: Func, block: Block, loop: For) -> set[Var]:
        """The reduction loops.

        Raises:
            LegalityError: the init may not move.
        """
        nest = loops_around(func, self.block)
        inner = _perfect_nest(loop)
        if not any(x is loop for x in nest):
            raise LegalityError(f"decompose_reduction: block {self.block} is not inside loop {self.loop}")
        if inner[-1].body is not block:
            raise LegalityError(
                f"decompose_reduction: block {self.block} is not alone inside loop {self.loop}"
            )
        variables = {x.var for x in nest}
        reduced = [a for a in block.axes if a.kind is AxisKind.REDUCTION]
        over = {v for a in reduced for v in free_vars(a.value) if v in variables}
        if over - {x.var for x in inner}:
            raise LegalityError(
                f"decompose_reduction: a reduction loop of {self.block} is outside {self.loop}"
            )
        for x in inner:
            if x.var not in over and over & set(free_vars(x.extent)):
                raise LegalityError(
                    f"decompose_reduction: extent of {x.var.name} depends on a reduction loop"
                )
        known = scope_of(func, loop)
        for x in inner:
            known = with_loop(known, x)
        why = one_element(block) or init_comes_first(block, over, [x.var for x in inner], known)
        if why is not None:
            raise LegalityError(f"decompose_reduction: {why}")
        return over


def _perfect_nest(loop: For) -> list[For]:
    """``loop`` and the loops directly nested in it."""
    nest = [loop]
    while isinstance(nest[-1].body, For):
        nest.append(nest[-1].body)
    return nest


def _init_nest(block: Block, kept: list[For], over: set[Var]) -> Stmt:
    """The init inside copies of the loops that do not reduce."""
    assert block.init is not None
    where: dict[Var, Expr] = {x.var: Var(x.var.name + "_init") for x in kept}
    where.update((v, index(0)) for v in over)
    used = [a for a in block.axes if a.var in free_vars(block.init)]
    fresh: dict[Var, Expr] = {a.var: Var(a.var.name) for a in used}
    axes = tuple(
        BlockAxis(_var(fresh[a.var]), a.kind, substitute(a.extent, where), substitute(a.value, where))
        for a in used
    )
    predicate = None
    if block.predicate is not None:
        start = Analysis().simplify(substitute(block.predicate, where))
        predicate = start if start != b.const(True, bool_) else None
    result: Stmt = Block(block.name + "_init", axes, substitute(block.init, fresh), None, predicate)
    for x in reversed(kept):
        result = For(_var(where[x.var]), substitute(x.extent, where), x.kind, result)
    return result


def _var(expr: Expr) -> Var:
    assert isinstance(expr, Var)
    return expr
