"""Steps on memory: cache_read, cache_write, set_scope, widen."""

from __future__ import annotations

from dataclasses import dataclass, replace

from strata.core.dtypes import bf16, f16, f32
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.nodes import (
    Alloc,
    AxisKind,
    Block,
    Buffer,
    Call,
    Cast,
    Expr,
    For,
    Func,
    Let,
    Load,
    MemSpace,
    Seq,
    Stmt,
    Store,
    seq,
)
from strata.loop.rewrite import (
    buffers_read,
    buffers_written,
    map_stmt,
    path_to,
    replace_buffers,
    walk_stmts,
)
from strata.schedule.step import Step, check_new_names, find_block, register, replace_stmt

from .stages import (
    SPACES,
    check_size,
    copy_stage,
    find_stage,
    names_in,
    new_space,
    outermost,
    shape_exprs,
    touches,
)


@register
@dataclass(frozen=True, slots=True)
class CacheRead(Step):
    """Copy a buffer before a block reads it; the block reads the copy.

    Rewrite::

        for i, j: block "p" ... X[j, i] ...   ->   alloc p_X: f32[8, 8]
                                                   for ..: block "p_X" p_X[i0, i1] = X[i0, i1]
                                                   for i, j: block "p" ... p_X[j, i] ...

    Copy and block of it are called ``<block>_<buffer>``, its loops ``<block>_<buffer>_i<dim>``. As a stage it
    may be moved into a loop of the block by ``compute_at``: only the part that is read there is copied.

    Legal when: the block reads exactly one buffer of that name; nothing in the outermost loop around the
    block writes it; in private memory the copy has a constant shape and fits the stack.
    """

    block: str
    buffer: str
    space: str = "global"

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "cache_read"

    def apply(self, func: Func) -> Func:
        """Insert the copy."""
        space = new_space("cache_read", self.space, SPACES)
        block = find_block(func, self.block)
        source = self._source(block)
        start = outermost(func, block)
        if source in buffers_written(start):
            raise LegalityError(
                f"cache_read: {source.name} is written in the loops around block {self.block}"
            )
        if space is not MemSpace.GLOBAL:
            check_size("cache_read", source, source.shape)
        name = f"{self.block}_{self.buffer}"
        cache = Buffer(name, source.shape, source.dtype, space)
        copy = copy_stage(name, source, cache, shape_exprs(source))
        check_new_names(func, "cache_read", tuple(names_in(copy)))

        def load(e: Expr) -> Expr:
            return replace(e, buffer=cache) if isinstance(e, Load) and e.buffer is source else e

        body = map_stmt(block.body, expr_fn=load)
        init = map_stmt(block.init, expr_fn=load) if block.init is not None else None
        func = replace_stmt(func, block, replace(block, body=body, init=init))
        start = next(
            s for s in path_to(func.body, find_block(func, self.block)) if not isinstance(s, Alloc | Seq)
        )
        return replace_stmt(func, start, Alloc(cache, seq(copy, start)))

    def _source(self, block: Block) -> Buffer:
        """The buffer called that in the block."""
        parts = [p for p in (block.init, block.body) if p is not None]
        read = dict.fromkeys(x for part in parts for x in buffers_read(part))
        found = [x for x in read if x.name == self.buffer]
        if len(found) != 1:
            known = ", ".join(x.name for x in read) or "nothing"
            raise LegalityError(
                f"cache_read: block {block.name} reads {len(found)} buffers called {self.buffer!r}; expected "
                f"exactly one; it reads {known}"
            )
        return found[0]


@register
@dataclass(frozen=True, slots=True)
class CacheWrite(Step):
    """Let a stage fill another buffer, and copy that to where its result belongs.

    Rewrite::

        for i, k: block "p" Y[i] += f(i, k)   ->   alloc p_Y: f32[n]
                                                   for i, k: block "p" p_Y[i] += f(i, k)
                                                   for ..: block "p_Y" Y[i0] = p_Y[i0]

    Buffer and new block are called ``<block>_<buffer>``. The copy is a stage: once ``p`` is tiled,
    ``reverse_compute_at`` moves the copy into a loop of it, and the buffer into private memory.

    Legal when: the block is as lowering made it and certainly fills every element; if it reads what it fills,
    it has an init; in private memory the buffer has a constant shape and fits the stack.
    """

    block: str
    space: str = "global"

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "cache_write"

    def apply(self, func: Func) -> Func:
        """Insert buffer and copy."""
        space = new_space("cache_write", self.space, SPACES)
        stage = find_stage("cache_write", func, self.block)
        target = stage.target
        if stage.block.init is None and target in buffers_read(stage.block.body):
            raise LegalityError(f"cache_write: block {self.block} adds to what {target.name} has before")
        if not any(_always_stores(part) for part in stage.parts):
            raise LegalityError(
                f"cache_write: block {self.block} may leave elements of {target.name} as they are"
            )
        reduced = [a.extent for a in stage.block.axes if a.kind is AxisKind.REDUCTION]
        if not all(Analysis().prove(b.ge(extent, 1)) for extent in reduced):
            raise LegalityError(f"cache_write: block {self.block} may reduce over nothing")
        if space is not MemSpace.GLOBAL:
            check_size("cache_write", target, target.shape)
        name = f"{self.block}_{target.name}"
        cache = Buffer(name, target.shape, target.dtype, space)
        copy = copy_stage(name, cache, target, stage.extents)
        check_new_names(func, "cache_write", tuple(names_in(copy)))
        filled = replace_buffers(stage.start, {target: cache})
        return replace_stmt(func, stage.start, Alloc(cache, seq(filled, copy)))


def _always_stores(stmt: Stmt) -> bool:
    """Whether the store in ``stmt`` happens whatever the conditions in it are."""
    match stmt:
        case Store():
            return True
        case Let() | Alloc():
            return _always_stores(stmt.body)
        case Seq():
            return any(_always_stores(s) for s in stmt.stmts)
        case _:
            return False


@register
@dataclass(frozen=True, slots=True)
class SetScope(Step):
    """Put an intermediate buffer into another memory space.

    Rewrite::

        alloc s: f32[8, 16]: S   ->   alloc s: f32[8, 16] local: S                              (space=local)

    ``global`` is workspace that all threads share, ``local`` is on the stack, ``register`` in registers.

    Legal when: exactly one allocated buffer has the name; private ones have a constant shape and fit the
    stack; global ones are not allocated in a loop.
    """

    buffer: str
    space: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "set_scope"

    def apply(self, func: Func) -> Func:
        """Exchange the buffer."""
        space = new_space("set_scope", self.space, SPACES)
        alloc = _allocation("set_scope", func, self.buffer)
        old = alloc.buffer
        if space is not MemSpace.GLOBAL:
            check_size("set_scope", old, old.shape)
        if space is MemSpace.REGISTER and any(
            isinstance(s, Call) and touches(s, old) for s in walk_stmts(alloc)
        ):
            raise LegalityError(f"set_scope: {old.name} is passed to a call; registers have no address")
        if space is MemSpace.GLOBAL and any(isinstance(s, For) for s in path_to(func.body, alloc)):
            raise LegalityError(f"set_scope: {old.name} is allocated in a loop; expected local or register")
        new: Stmt = replace_buffers(alloc, {old: Buffer(old.name, old.shape, old.dtype, space)})
        return replace_stmt(func, alloc, new)


@register
@dataclass(frozen=True, slots=True)
class Widen(Step):
    """Keep rounded numbers in f32, where each is read several times and always made f32 first.

    Rewrite::

        alloc p: bf16[32] local:                alloc p: f32[32] local:
          p[i] = bf16(x)                 ->       p[i] = f32(bf16(x))
          y = y + f32(p[j]) * z                   y = y + p[j] * z

    Legal when: exactly one allocated buffer has the name, a private one of bf16 or f16, which fits the stack
    as f32; all that reads it makes f32 of it.
    """

    buffer: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "widen"

    def apply(self, func: Func) -> Func:
        """Exchange the buffer, its stores and its loads."""
        alloc = _allocation("widen", func, self.buffer)
        old = alloc.buffer
        if old.dtype not in (bf16, f16) or old.space is MemSpace.GLOBAL:
            raise LegalityError(
                f"widen: {old.name} is a {old.space.value} buffer of {old.dtype}; "
                "expected a private one of bf16 or f16"
            )
        new = Buffer(old.name, old.shape, f32, old.space)
        check_size("widen", new, new.shape)

        def load(e: Expr) -> Expr:
            match e:
                case Cast(dtype, Load(buffer, indices, mask)) if buffer is old and dtype is f32:
                    return Load(new, indices, mask)
                case _:
                    return e

        def store(s: Stmt) -> Stmt:
            if isinstance(s, Store) and s.buffer is old:
                return Store(new, s.indices, b.cast(f32, s.value), s.mask)
            return s

        body = map_stmt(alloc.body, load, store)
        if touches(body, old):
            raise LegalityError(f"widen: {old.name} is read by what makes no f32 of it")
        return replace_stmt(func, alloc, Alloc(new, body))


def _allocation(step: str, func: Func, buffer: str) -> Alloc:
    """Where the one buffer of that name is allocated.

    Raises:
        LegalityError: there is none, or several.
    """
    allocs = [s for s in walk_stmts(func) if isinstance(s, Alloc)]
    found = [s for s in allocs if s.buffer.name == buffer]
    if len(found) != 1:
        known = ", ".join(s.buffer.name for s in allocs) or "none"
        raise LegalityError(
            f"{step}: {len(found)} buffers called {buffer!r} are allocated; expected one; known: {known}"
        )
    return found[0]
