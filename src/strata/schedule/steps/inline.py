"""Steps that dissolve a stage: compute_inline, reverse_compute_inline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from strata.core.errors import LegalityError
from strata.loop.externs import buffers_of
from strata.loop.nodes import Alloc, AxisKind, Buffer, Call, Expr, Func, Load, Seq, Stmt, Store, Var, size
from strata.loop.rewrite import (
    buffers_read,
    buffers_written,
    map_stmt,
    stmt_exprs,
    substitute,
    walk,
    walk_stmts,
)
from strata.schedule.step import Step, register, replace_stmt, with_body

from .stages import Stage, allocated_around, drop_alloc, execution_order, find_stage, outermost, touches


@register
@dataclass(frozen=True, slots=True)
class ComputeInline(Step):
    """Compute the elements of a stage where they are read, again for every read.

    Rewrite::

        for i: block "p" B[i] = f(i)          ->   for j: block "c" y[j] = g(f(j + 1))
        for j: block "c" y[j] = g(B[j + 1])

    Legal when: the block is as lowering made it, without reduction, and alone writes one intermediate buffer;
    nothing that runs later writes what it reads; all reads of the buffer come later, are scalar, and happen
    where what the block reads is allocated.
    """

    block: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "compute_inline"

    def apply(self, func: Func) -> Func:
        """Dissolve the producer."""
        stage = find_stage("compute_inline", func, self.block)
        value = _elementwise("compute_inline", stage)
        self._check_order(func, stage)
        axes = [a.var for a in stage.block.axes]

        def load(e: Expr) -> Expr:
            if not isinstance(e, Load) or e.buffer is not stage.target:
                return e
            return substitute(value, dict(zip(axes, e.indices, strict=True)))

        func = replace_stmt(func, stage.start, Seq(()))
        return with_body(func, drop_alloc(map_stmt(func.body, expr_fn=load), stage.target))

    def _check_order(self, func: Func, stage: Stage) -> None:
        """Reads come later, and find what the block reads as it was."""
        target, order = stage.target, execution_order(func)
        _check_intermediate("compute_inline", func, stage)
        first = order[id(stage.start)]
        needed = buffers_read(stage.block.body)
        local = needed & allocated_around(func, stage.start)
        own = {id(s) for s in walk_stmts(stage.start)}
        for stmt in walk_stmts(func):
            if id(stmt) in own:
                continue
            loads = [e for root in stmt_exprs(stmt) for e in walk(root) if isinstance(e, Load)]
            reads = [e for e in loads if e.buffer is target]
            if reads and order[id(stmt)] < first:
                raise LegalityError(f"compute_inline: {target.name} is read before block {self.block}")
            if any(e.mask is not None or e.lanes > 1 for e in reads):
                raise LegalityError(f"compute_inline: {target.name} is read in vectors or under a mask")
            if reads and local - allocated_around(func, stmt):
                raise LegalityError(
                    f"compute_inline: a buffer that block {self.block} reads is not allocated where "
                    f"{target.name} is read"
                )
            if isinstance(stmt, Store | Call) and order[id(stmt)] > first and needed & buffers_written(stmt):
                raise LegalityError(f"compute_inline: what block {self.block} reads is written after it")


@register
@dataclass(frozen=True, slots=True)
class ReverseComputeInline(Step):
    """Apply an elementwise stage to the elements of its producer as they are made.

    Rewrite::

        for i: block "p" B[i] = f(i)     ->   for i: block "p" y[i] = g(f(i))
        for j: block "c" y[j] = g(B[j])

    Legal when: the block is as lowering made it, without reduction; it reads one intermediate buffer at a
    permutation of its axes, which cover it, and is the only reader; one store without a mask, in a statement
    that does not read the buffer, fills it earlier; what else the block reads is not written, and what it
    writes not touched, from there on up to the block; both are allocated there.
    """

    block: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "reverse_compute_inline"

    def apply(self, func: Func) -> Func:
        """Dissolve the consumer."""
        stage = find_stage("reverse_compute_inline", func, self.block)
        value = _elementwise("reverse_compute_inline", stage)
        source, indices = self._source(func, stage, value)
        store = self._producer(func, stage, source)
        where: dict[Var, Expr] = {}
        for i, place in zip(indices, store.indices, strict=True):
            assert isinstance(i, Var)
            where[i] = place
        func = replace_stmt(func, stage.start, Seq(()))
        func = replace_stmt(func, store, _applied(stage, value, source, store, where))
        return with_body(func, drop_alloc(func.body, source))

    def _source(self, func: Func, stage: Stage, value: Expr) -> tuple[Buffer, tuple[Expr, ...]]:
        """The intermediate buffer that the stage reads at its axes, and the indices."""
        axes = {a.var: a.extent for a in stage.block.axes}
        allocated = {s.buffer for s in walk_stmts(func) if isinstance(s, Alloc)} - {stage.target}
        for candidate in dict.fromkeys(e.buffer for e in walk(value) if isinstance(e, Load)):
            places = {e.indices for e in walk(value) if isinstance(e, Load) and e.buffer is candidate}
            (indices, *others) = places
            permuted = len(indices) == len(axes) and set(indices) == set(axes)
            masked = any(isinstance(e, Load) and e.buffer is candidate and e.mask for e in walk(value))
            if candidate not in allocated or others or not permuted or masked:
                continue
            if all(axes[i] == size(d) for i, d in zip(indices, candidate.shape, strict=True)):  # type: ignore[index]
                return candidate, indices
        raise LegalityError(
            f"reverse_compute_inline: block {self.block} reads no whole intermediate buffer at its axes"
        )

    def _producer(self, func: Func, stage: Stage, source: Buffer) -> Store:
        """The one store that fills ``source``, where the stage may be applied."""
        step, target = "reverse_compute_inline", stage.target
        stores = [s for s in walk_stmts(func) if isinstance(s, Store) and s.buffer is source]
        calls = [s for s in walk_stmts(func) if isinstance(s, Call) and source in buffers_of(s)]
        if len(stores) != 1 or calls or stores[0].mask is not None:
            raise LegalityError(f"{step}: {source.name} is not filled by one store without a mask")
        (store,) = stores
        reads = sum(isinstance(e, Load) and e.buffer is source for e in walk(func))
        if reads != sum(isinstance(e, Load) and e.buffer is source for e in walk(stage.block.body)):
            raise LegalityError(f"{step}: {source.name} is read outside of block {self.block}")
        order = execution_order(func)
        first, last = order[id(outermost(func, store))], order[id(stage.start)]
        if first > last:
            raise LegalityError(f"{step}: {source.name} is filled after block {self.block}")
        others = buffers_read(stage.block.body) - {source}
        if (others | {target}) & allocated_around(func, stage.start) - allocated_around(func, store):
            raise LegalityError(
                f"{step}: a buffer of block {self.block} is not allocated where {source.name} is filled"
            )
        for stmt in walk_stmts(func):
            if not first <= order[id(stmt)] < last or isinstance(stmt, Alloc):
                continue
            if isinstance(stmt, Store | Call) and others & buffers_written(stmt):
                raise LegalityError(f"{step}: what block {self.block} reads is written before it")
            if _mentions(stmt, target):
                raise LegalityError(f"{step}: {target.name} is touched before block {self.block}")
        return store


def _applied(stage: Stage, value: Expr, source: Buffer, store: Store, where: Mapping[Var, Expr]) -> Store:
    """The stage's store in place of the one that fills ``source``."""

    def element(e: Expr) -> Expr:
        if isinstance(e, Load) and e.buffer is source:
            return store.value
        return where.get(e, e) if isinstance(e, Var) else e

    (own,) = (s for s in walk_stmts(stage.block.body) if isinstance(s, Store))
    done = map_stmt(replace(own, value=value), expr_fn=element)
    assert isinstance(done, Store)
    return done


def _elementwise(step: str, stage: Stage) -> Expr:
    """What a stage stores, if it is a plain formula of its axes."""
    block = stage.block
    reduces = block.init is not None or any(a.kind is AxisKind.REDUCTION for a in block.axes)
    if reduces or not isinstance(block.body, Store) or stage.target in buffers_read(block.body):
        raise LegalityError(f"{step}: block {block.name} is no single store of a formula of its axes")
    return block.body.value


def _check_intermediate(step: str, func: Func, stage: Stage) -> None:
    """The target of a stage is allocated in the function, and nothing else writes it or hands it out."""
    target = stage.target
    if not any(isinstance(s, Alloc) and s.buffer is target for s in walk_stmts(func)):
        raise LegalityError(f"{step}: {target.name} is a parameter; only intermediates can be left out")
    own = {id(s) for s in walk_stmts(stage.start)}
    for stmt in walk_stmts(func):
        if isinstance(stmt, Store) and stmt.buffer is target and id(stmt) not in own:
            raise LegalityError(f"{step}: {target.name} is also written outside of block {stage.block.name}")
        if isinstance(stmt, Call) and target in buffers_of(stmt):
            raise LegalityError(f"{step}: {target.name} is passed as a whole to @{stmt.extern}")


def _mentions(stmt: Stmt, buffer: Buffer) -> bool:
    """Whether ``stmt`` itself, not what is nested in it, touches ``buffer``."""
    loads = (e for root in stmt_exprs(stmt) for e in walk(root))
    if any(isinstance(e, Load) and e.buffer is buffer for e in loads):
        return True
    return isinstance(stmt, Store | Call) and touches(stmt, buffer)
