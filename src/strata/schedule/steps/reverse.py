"""reverse_compute_at: a stage moves to where its operand is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    ForKind,
    Func,
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
    has_load,
    path_to,
    substitute,
    walk,
    walk_stmts,
)
from strata.schedule.dependence import scope_of, with_loop
from strata.schedule.step import Step, find_loop, register, replace_stmt, with_body

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
    outermost,
    redirect,
    touches,
)

KEEP = "keep"


@register
@dataclass(frozen=True, slots=True)
class ReverseComputeAt(Step):
    """Compute a stage inside a loop of its producer, for the elements that one iteration makes.

    Rewrite::

        for io: for ii in 4: block "p" B[io*4 + ii] = f   ->   for io:
        for i: block "c" y[i] = g(B[i])                          for ii in 4: block "p" B[io*4 + ii] = f
                                                                 for i in 4:
                                                                   block "c" y[io*4 + i] = g(B[io*4 + i])

    Loops of the stage keep their names; those over the elements made have other extents. With ``space=local``
    or ``register`` what is in between moves into a private buffer of just the size that one iteration makes;
    ``space=keep`` leaves it where it is.

    Legal when: the block is as lowering made it and reads one intermediate buffer that the loop fills, at
    axes of its own; iterations of the loop, and of those around it, make tiles of constant extents that
    cover the buffer without overlap; the block's reductions run within a tile; nothing from the outermost
    loop around there up to the block touches what it writes or writes what else it reads.
    """

    block: str
    loop: str
    space: str = KEEP

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "reverse_compute_at"

    def apply(self, func: Func) -> Func:
        """Move the consumer."""
        stage, loop = find_stage("reverse_compute_at", func, self.block), find_loop(func, self.loop)
        space = None
        if self.space != KEEP:
            space = new_space("reverse_compute_at", self.space, PRIVATE)
        around = _loops_to(func, loop)
        made = _made(func, stage, loop)
        _check_order(func, stage, loop, made)
        known = scope_of(func, loop)
        known = with_loop(known, loop)
        regions = _regions(loop, made, known)
        indices = _places(stage, made)
        _check_tiles(made, regions, around, known)
        moved = _moved_nest(stage, indices, regions, known)
        body = seq(loop.body, moved)
        if space is not None:
            self._check_private(func, stage, loop, made)
            check_size("reverse_compute_at", made, tuple(r.extent for r in regions))
            private = Buffer(made.name, tuple(r.extent for r in regions), made.dtype, space)
            body = Alloc(private, redirect(body, made, private, regions, known))
        func = replace_stmt(func, loop, replace(loop, body=body))
        func = replace_stmt(func, stage.start, Seq(()))
        return func if space is None else with_body(func, drop_alloc(func.body, made))

    def _check_private(self, func: Func, stage: Stage, loop: For, made: Buffer) -> None:
        """Nobody else looks at what is made."""
        everywhere = sum(isinstance(x, Load | Store) and x.buffer is made for x in walk(func))
        in_blocks = [s for s in walk_stmts(loop) if isinstance(s, Block)]
        parts = [p for s in (*in_blocks, stage.block) for p in (s.init, s.body) if p is not None]
        inside = sum(isinstance(x, Load | Store) and x.buffer is made for p in parts for x in walk(p))
        if inside != everywhere:
            raise LegalityError(
                f"reverse_compute_at: {made.name} is also used elsewhere than in blocks of loop {self.loop} "
                f"and in block {self.block}; use space=keep"
            )


def _loops_to(func: Func, loop: For) -> list[For]:
    """Loops around ``loop`` and itself; nothing else than them may decide how often it runs."""
    path = path_to(func.body, loop)
    loops = [s for s in path if isinstance(s, For)]
    plain = all(isinstance(s, For | Alloc | Seq) for s in path)
    if not plain or any(x.kind is ForKind.VECTORIZE for x in loops):
        raise LegalityError(
            f"reverse_compute_at: loop {loop.var.name} is in a vector loop, or in something else than loops"
        )
    return loops


def _made(func: Func, stage: Stage, loop: For) -> Buffer:
    """The intermediate buffer that ``loop`` fills and the stage reads."""
    name = stage.block.name
    if any(s is stage.block for s in walk_stmts(loop)):
        raise LegalityError(f"reverse_compute_at: block {name} is inside loop {loop.var.name} already")
    found = [x for x in buffers_read(stage.block.body) if x in buffers_written(loop.body)]
    if len(found) != 1:
        raise LegalityError(
            f"reverse_compute_at: block {name} reads {len(found)} buffers that loop {loop.var.name} fills; "
            "expected exactly one"
        )
    (made,) = found
    if not any(isinstance(s, Alloc) and s.buffer is made for s in walk_stmts(func)):
        raise LegalityError(f"reverse_compute_at: {made.name} is a parameter; only intermediates are tiled")
    blocks = [s for s in walk_stmts(loop.body) if isinstance(s, Block)]
    parts = [p for s in blocks for p in (s.init, s.body) if p is not None]
    here = sum(isinstance(s, Store) and s.buffer is made for p in parts for s in walk_stmts(p))
    stores = sum(isinstance(s, Store) and s.buffer is made for s in walk_stmts(func))
    if here != stores or any(isinstance(s, Call) and made in buffers_of(s) for s in walk_stmts(func)):
        raise LegalityError(
            f"reverse_compute_at: {made.name} is also written outside of blocks in loop {loop.var.name}"
        )
    return made


def _check_order(func: Func, stage: Stage, loop: For, made: Buffer) -> None:
    """What the stage reads is final where it moves to, and nobody looks at what it writes before."""
    name, order = stage.block.name, execution_order(func)
    first, last = order[id(outermost(func, loop))], order[id(stage.start)]
    if first > last:
        raise LegalityError(f"reverse_compute_at: loop {loop.var.name} runs after block {name}")
    reads = {x for part in stage.parts for x in buffers_read(part)} - {stage.target}
    if (reads | {stage.target}) & allocated_around(func, stage.start) - allocated_around(func, loop):
        raise LegalityError(
            f"reverse_compute_at: a buffer of block {name} is not allocated at {loop.var.name}"
        )
    between = [s for s in _top_level(func) if first <= order[id(s)] < last]
    for stmt in between:
        if (reads - {made}) & buffers_written(stmt):
            raise LegalityError(f"reverse_compute_at: what block {name} reads is written before it")
        if touches(stmt, stage.target):
            raise LegalityError(f"reverse_compute_at: {stage.target.name} is touched before block {name}")


def _top_level(func: Func) -> list[Stmt]:
    """Statements of the function, through allocations and sequences."""
    pending, out = [func.body], []
    while pending:
        stmt = pending.pop()
        match stmt:
            case Alloc():
                pending.append(stmt.body)
            case Seq():
                pending.extend(stmt.stmts)
            case _:
                out.append(stmt)
    return out


def _regions(loop: For, made: Buffer, known: Analysis) -> list[Region]:
    """The tile of ``made`` that one iteration of ``loop`` fills, per dim."""
    inner = [s for s in walk_stmts(loop.body) if isinstance(s, For)]
    at_start: dict[Var, Expr] = {x.var: index(0) for x in inner}
    for x in inner:
        known = with_loop(known, x)
    blocks = [s for s in walk_stmts(loop.body) if isinstance(s, Block)]
    places = [
        [bound(s, i) for i in store.indices]
        for s in blocks
        for part in (s.init, s.body)
        if part is not None
        for store in walk_stmts(part)
        if isinstance(store, Store) and store.buffer is made
    ]
    regions: list[Region] = []
    for dim in range(len(made.shape)):
        what, bases, top = f"{made.name} dim {dim}", [], 0
        for place in places:
            base = known.simplify(substitute(place[dim], at_start))
            lo, hi = known.int_interval(known.simplify(b.sub(place[dim], base)))
            if has_load(base) or lo is None or hi is None or lo < 0:
                raise LegalityError(
                    f"reverse_compute_at: extent of {what} made in {loop.var.name} is not constant"
                )
            bases.append(base)
            top = max(top, hi)
        if any(x != bases[0] for x in bases):
            raise LegalityError(f"reverse_compute_at: {what} is made at several places in {loop.var.name}")
        regions.append(Region(bases[0], top + 1))
    return regions


def _places(stage: Stage, made: Buffer) -> tuple[Expr, ...]:
    """The axes (or zeros) at which the stage reads ``made``."""
    name = stage.block.name
    loads = [e for part in stage.parts for e in walk(part) if isinstance(e, Load) and e.buffer is made]
    axes = {a.var for a in stage.block.axes}
    found = {e.indices for e in loads}
    indices = loads[0].indices
    used = [i for i in indices if not isinstance(i, Const)]
    plain = set(used) <= axes and len(set(used)) == len(used) and all(e.mask is None for e in loads)
    zeros = all(
        not isinstance(i, Const) or (i.value == 0 and d == 1)
        for i, d in zip(indices, made.shape, strict=True)
    )
    if len(found) != 1 or not plain or not zeros:
        raise LegalityError(
            f"reverse_compute_at: block {name} reads {made.name} at other places than its axes"
        )
    extents = {a.var: a.extent for a in stage.block.axes}
    for i, dim in zip(indices, made.shape, strict=True):
        if isinstance(i, Var) and extents[i] != size(dim):
            raise LegalityError(f"reverse_compute_at: block {name} reads only a part of {made.name}")
    return indices


# ------------------------------------------------------------------------------------------------ tiles


def _check_tiles(made: Buffer, regions: list[Region], around: list[For], known: Analysis) -> None:
    """Tiles cover ``made`` and do not overlap.

    Every dim is either whole in each tile, or its tiles start at ``extent * c`` for a counter c of its own: a
    loop, or quotient and remainder of one by the same number, so that all combinations of counters occur.
    """
    name = around[-1].var.name
    open_loops = {x.var: x for x in around if not (isinstance(x.extent, Const) and x.extent.value == 1)}
    parts: dict[Var, list[Expr]] = {}
    for region, dim in zip(regions, made.shape, strict=True):
        if known.prove(b.ge(region.extent, size(dim))) and region.base == index(0):
            continue
        counter = known.simplify(b.floordiv(region.base, index(region.extent)))
        if not known.prove(b.eq(b.mul(counter, index(region.extent)), region.base)):
            raise LegalityError(
                f"reverse_compute_at: tiles of {made.name} at {name} may overlap or leave gaps"
            )
        var, count = _count(counter, open_loops)
        if var is None or count is None or not known.prove(b.ge(b.mul(count, region.extent), size(dim))):
            raise LegalityError(f"reverse_compute_at: tiles of {made.name} at {name} may not cover it")
        parts.setdefault(var, []).append(counter)
    complete = all(_is_complete(parts[v], open_loops[v].extent, known) for v in parts)
    if set(parts) != set(open_loops) or not complete:
        raise LegalityError(
            f"reverse_compute_at: elements of {made.name} are made in several iterations of {name} or of "
            "loops around it"
        )


def _count(counter: Expr, loops: dict[Var, For]) -> tuple[Var | None, Expr | None]:
    """The loop that a counter counts, and how many values it has."""
    match counter:
        case Var() if counter in loops:
            return counter, loops[counter].extent
        case Binary(op=BinaryOp.FLOORDIV, a=Var() as v, b=by) if v in loops and not free_vars(by):
            return v, b.floordiv(loops[v].extent, by)
        case Binary(op=BinaryOp.FLOORMOD, a=Var() as v, b=by) if v in loops and not free_vars(by):
            return v, by
        case _:
            return None, None


def _is_complete(counters: Sequence[Expr], extent: Expr, known: Analysis) -> bool:
    """Whether the counters tell iterations of their loop apart and take all combinations of their values."""
    if free_vars(extent) or has_load(extent):
        return False
    if len(counters) == 1:
        return isinstance(counters[0], Var)
    if len(counters) != 2 or not all(isinstance(c, Binary) for c in counters):
        return False
    first, second = (c for c in counters if isinstance(c, Binary))
    ops = {first.op, second.op}
    return (
        ops == {BinaryOp.FLOORDIV, BinaryOp.FLOORMOD}
        and first.b == second.b
        and not has_load(first.b)
        and known.prove(b.eq(b.mul(b.floordiv(extent, first.b), first.b), extent))
    )


def _moved_nest(stage: Stage, indices: tuple[Expr, ...], regions: list[Region], known: Analysis) -> Stmt:
    """The stage over one tile: its loops in their order, those over the tile with other extents."""
    block = stage.block
    where = {i: region for i, region in zip(indices, regions, strict=True) if isinstance(i, Var)}
    by_loop = {only_var(a.value): a for a in block.axes}
    loops: list[For] = []
    axes: dict[Var, BlockAxis] = {a.var: a for a in block.axes}
    guards: list[Expr] = []
    for x in stage.nest:
        axis = by_loop[x.var]
        if axis.var not in where:
            loops.append(replace(x, kind=ForKind.SERIAL))
            known = with_loop(known, x)
            continue
        region = where[axis.var]
        whole = region.base == index(0) and known.prove(b.ge(region.extent, axis.extent))
        if axis.kind is AxisKind.REDUCTION and not whole:
            raise LegalityError(f"reverse_compute_at: block {block.name} reduces over several tiles")
        extent = axis.extent if whole else index(region.extent)
        loop = replace(x, var=Var(x.var.name), extent=extent, kind=ForKind.SERIAL)
        loops.append(loop)
        known = with_loop(known, loop)
        value = b.add(region.base, loop.var)
        axes[axis.var] = replace(axis, value=value)
        if not known.prove(b.lt(value, axis.extent)):
            guards.append(b.lt(value, axis.extent))
    result: Stmt = replace(block, axes=tuple(axes.values()), predicate=b.and_(*guards) if guards else None)
    for x in reversed(loops):
        result = replace(x, body=result)
    return result
