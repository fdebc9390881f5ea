"""trim: iterations whose results nobody reads are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.analysis import Analysis
from strata.loop.externs import buffers_of
from strata.loop.nodes import (
    Alloc,
    Binary,
    BinaryOp,
    Block,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    Let,
    Load,
    Store,
    index,
)
from strata.loop.rewrite import free_vars, path_to, substitute, walk, walk_stmts
from strata.schedule.dependence import enter, scope_of
from strata.schedule.step import Step, find_loop, register, replace_stmt

from .stages import bound


@register
@dataclass(frozen=True, slots=True)
class Trim(Step):
    """Leave out the last iterations of a loop, those that make nothing that is read later.

    Rewrite::

        for t in 16: for r in 6:                      for t in min(16, ceil(n/6)): for r in 6:
          block "p" B[t*6 + r] += f             ->      block "p" B[t*6 + r] += f
        for i in 96: block "c" y[i] = B[i]            for i in 96: block "c" y[i] = B[i]
          where i < n                                   where i < n

    Tiles in private memory are whole ones, also where fewer rows are left.

    Legal when: the loop is serial and has a constant extent; one block inside of it alone touches a buffer
    that is not allocated there, a private one, and each iteration so many elements of one of its dims; all
    other blocks that read the buffer run under a predicate by which the position in that dim lies before an
    end that is known outside of the loop, the same for all of them.
    """

    loop: str

    @classmethod
    def step_name(cls) -> str:
        """Name in the text form."""
        return "trim"

    def apply(self, func: Func) -> Func:
        """Let the loop end earlier."""
        loop = find_loop(func, self.loop)
        if loop.kind is not ForKind.SERIAL or not isinstance(loop.extent, Const):
            raise LegalityError(f"trim: loop {self.loop} is not serial, or its extent is not constant")
        made = _made(func, loop)
        end = _end(func, loop, made)
        count = b.floordiv(b.add(end, made.step - 1), made.step)
        extent = b.maximum(b.minimum(loop.extent, count), index(0))
        known = Analysis()
        for stmt in path_to(func.body, loop)[:-1]:
            known = enter(known, stmt)
        return replace_stmt(func, loop, replace(loop, extent=known.simplify(extent)))


@dataclass(frozen=True, slots=True)
class _Made:
    """Iteration ``t`` of a loop touches ``buffer`` from ``step * t`` on in ``dim``, by ``block``."""

    block: Block
    buffer: Buffer
    dim: int
    step: int


def _made(func: Func, loop: For) -> _Made:
    """What the iterations of ``loop`` make.

    Raises:
        LegalityError: that is not elements of one private buffer.
    """
    own = {s.buffer for s in walk_stmts(loop.body) if isinstance(s, Alloc)}
    blocks = [s for s in walk_stmts(loop.body) if isinstance(s, Block)]
    stores = [(x, s) for x in blocks for s in walk_stmts(x) if isinstance(s, Store) and s.buffer not in own]
    in_blocks = {id(s) for x in blocks for s in walk_stmts(x)}
    others = [s for s in walk_stmts(loop.body) if isinstance(s, Call | Store) and id(s) not in in_blocks]
    targets = {(id(x), s.buffer) for x, s in stores}
    if len(targets) != 1 or others:
        raise LegalityError(f"trim: loop {loop.var.name} fills other than one buffer, by one block")
    block, store = stores[0]
    buffer = store.buffer
    touching = [x for x in blocks if any(isinstance(e, Load) and e.buffer is buffer for e in walk(x))]
    if buffer in func.params or any(x is not block for x in touching):
        raise LegalityError(f"trim: {buffer.name} is a parameter, or read by another block of the loop")
    places = {s.indices for _, s in stores} | {
        e.indices for e in walk(block) if isinstance(e, Load) and e.buffer is buffer
    }
    bounds = [bound(block, i) for i in store.indices]
    dims = [k for k, i in enumerate(bounds) if loop.var in free_vars(i)]
    if len(places) != 1 or len(dims) != 1:
        raise LegalityError(f"trim: block {block.name} touches {buffer.name} at several places")
    return _Made(block, buffer, dims[0], _step(func, loop, block, bounds[dims[0]]))


def _step(func: Func, loop: For, block: Block, place: Expr) -> int:
    """Distance between the first elements of two iterations; from there on they are not negative."""
    first, second = (substitute(place, {loop.var: index(k)}) for k in (0, 1))
    known = scope_of(func, block)
    distance = known.simplify(b.sub(second, first))
    is_linear = known.prove(b.eq(place, b.add(b.mul(distance, loop.var), first)))
    if not isinstance(distance, Const) or distance.value <= 0 or not is_linear:
        raise LegalityError(f"trim: iterations of {loop.var.name} are not a constant distance apart")
    if not known.prove(b.ge(first, index(0))):
        raise LegalityError(f"trim: iteration 0 of {loop.var.name} may begin before the first element")
    return int(distance.value)


def _end(func: Func, loop: For, made: _Made) -> Expr:
    """Where in its dim nobody reads the buffer any more: an expression that holds at the loop.

    Raises:
        LegalityError: there is none.
    """
    if any(isinstance(s, Call) and made.buffer in buffers_of(s) for s in walk_stmts(func)):
        raise LegalityError(f"trim: {made.buffer.name} is passed as a whole to foreign code")
    inside = {id(s) for s in walk_stmts(loop)}
    outer = {s.var for s in path_to(func.body, loop)[:-1] if isinstance(s, For | Let)}
    ends: set[Expr] = set()
    for reader in (s for s in walk_stmts(func) if isinstance(s, Block) and id(s) not in inside):
        for load in (e for e in walk(reader) if isinstance(e, Load) and e.buffer is made.buffer):
            at, known = bound(reader, load.indices[made.dim]), scope_of(func, reader)
            found = [known.simplify(b.sub(end, b.sub(x, at))) for x, end in _upper_bounds(reader)]
            ends |= set([e for e in found if free_vars(e) <= outer][:1]) or {index(-1)}
    if len(ends) != 1 or ends == {index(-1)}:
        raise LegalityError(f"trim: nothing says up to where {made.buffer.name} is read")
    return ends.pop()


def _upper_bounds(block: Block) -> Iterator[tuple[Expr, Expr]]:
    """``(x, end)`` for everything of the form ``x < end`` that the predicate of a block demands."""
    todo = [] if block.predicate is None else [block.predicate]
    while todo:
        match todo.pop(0):
            case Binary(op=BinaryOp.AND, a=a, b=other):
                todo += [a, other]
            case Binary(op=BinaryOp.LT, a=x, b=end):
                yield bound(block, x), bound(block, end)
            case _:
                pass
