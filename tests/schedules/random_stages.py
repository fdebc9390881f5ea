"""Random naive loop functions in stages, and random schedule steps for them.

Everything is in i32, whose arithmetic wraps: sums are exact in any order, so a scheduled function must give
the very same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from strata.core.dims import Dim, Shape, SymDim, evaluate
from strata.core.dtypes import i32, i64
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.check import LOOP_SCHEDULED, check
from strata.loop.nodes import Alloc, Block, Buffer, Expr, For, Func, Load, Stmt, seq, size
from strata.loop.rewrite import walk_stmts
from strata.lower.context import Access, Context, Index, Place
from strata.schedule import finalize
from strata.schedule.step import Step, Trace, loops_around
from strata.schedule.steps import (
    ComputeAt,
    DecomposeReduction,
    Fuse,
    Parallel,
    Reorder,
    Split,
    Unroll,
    Vectorize,
)

N = SymDim("n", 1, 9)
M = SymDim("m", 4, 12, multiple_of=4)
DIMS: tuple[Dim, ...] = (N, N, M, 1, 2, 3, 5, 8, 16)
Source = tuple[Access, Shape]
COMBINE = (b.add, b.maximum, b.minimum)


def _position(draw: st.DrawFn, axes: list[tuple[Expr, Dim]], dim: Dim, last: bool) -> Expr:
    """An index inside ``dim``: an axis of that extent (the last of them in the last dim), or a rotation."""
    if dim == 1:
        return b.const(0, i64)
    same = [a for a, extent in axes if extent == dim]
    if same and draw(st.integers(0, 7)):
        return same[-1 if last else 0] if draw(st.integers(0, 3)) else draw(st.sampled_from(same))
    multiples = [(a, e) for a, e in axes if isinstance(e, int) and isinstance(dim, int) and e % dim == 0]
    if multiples and draw(st.booleans()):
        axis, extent = draw(st.sampled_from(multiples))
        return b.floordiv(axis, extent // dim)
    base = draw(st.sampled_from([a for a, _ in axes] or [b.const(0, i64)]))
    return b.floormod(b.add(base, draw(st.integers(0, 2))), size(dim))


def _value(draw: st.DrawFn, axes: list[tuple[Expr, Dim]], sources: Sequence[Source]) -> Expr:
    """Arithmetic on one to three elements of the sources."""
    total: Expr | None = None
    for _ in range(draw(st.integers(1, 3))):
        access, shape = draw(st.sampled_from(sources))
        last = len(shape) - 1
        element = access(tuple(_position(draw, axes, d, k == last) for k, d in enumerate(shape)))
        if draw(st.booleans()):
            element = b.add(b.mul(element, 3), 1)
        if draw(st.integers(0, 4)) == 0:
            where = draw(st.sampled_from([a for a, _ in axes] or [b.const(0, i64)]))
            element = b.select(b.lt(where, draw(st.integers(0, 4))), element, b.neg(element))
        total = element if total is None else draw(st.sampled_from([b.add, b.mul, b.maximum]))(total, element)
    assert total is not None
    return total


@st.composite
def functions(draw: st.DrawFn) -> Func:
    """One to four stages over two inputs; reductions, elementwise stages, broadcasts, rotations."""
    ctx = Context(1, {})
    dims = st.sampled_from(DIMS)
    x = Buffer("x", (N, M, draw(dims)), i32)
    w = Buffer("w", tuple(draw(st.lists(dims, min_size=1, max_size=3))), i32)
    y: Buffer | None = None
    sources: list[Source] = [(_loaded(p), p.shape) for p in (x, w)]
    base = tuple(draw(st.lists(dims, min_size=1, max_size=3)))
    count = draw(st.integers(1, 4))
    for number in range(count):
        last = number == count - 1
        # Mostly parts of one shape, as the statistics of rows are.
        part = base[: 1 if last else draw(st.integers(0, len(base)))]
        free = tuple(draw(st.lists(dims, min_size=int(last), max_size=3)))
        shape = draw(st.sampled_from([base, base, part, free]))
        extents = draw(st.sampled_from([(), (), base[-1:], tuple(draw(st.lists(dims, max_size=2)))]))
        if last:
            y = Buffer("y", shape, i32)
        known = tuple(sources)

        def element(
            i: Index, k: Index, of: Shape = (*shape, *extents), known: tuple[Source, ...] = known
        ) -> Expr:
            return _value(draw, list(zip((*i, *k), of, strict=True)), known)

        combine = draw(st.sampled_from(COMBINE)) if extents else None
        init = b.const(draw(st.sampled_from([0, -5])), i32) if extents else None
        into = None if y is None else _into(y)
        access = ctx.reduce(f"s{number}", shape, i32, extents, init, combine, element, into)
        sources += [(access, shape), (access, shape)]
    body: Stmt = seq(*ctx.stages)
    for buffer in reversed(ctx.allocs):
        body = Alloc(buffer, body)
    assert y is not None
    return Func("f", (x, w, y), body)


def _loaded(buffer: Buffer) -> Access:
    return lambda i: Load(buffer, i)


def _into(buffer: Buffer) -> Place:
    return lambda i: (buffer, i)


def arrays(func: Func, seed: int) -> list[np.ndarray]:
    """Arguments: random inputs, an output of zeros."""
    rng = np.random.default_rng(seed)
    env = {"n": int(rng.integers(N.lo, N.hi + 1)), "m": 4 * int(rng.integers(1, 4))}
    shapes = [tuple(evaluate(d, env) for d in p.shape) for p in func.params]
    return [rng.integers(-9, 9, s).astype(np.int32) for s in shapes]


def random_step(draw: st.DrawFn, func: Func, early: bool, last: Step | None) -> Step:
    """A step whose names exist; it may be illegal. Early ones rather move stages, a split is rather used."""
    loops = [s for s in walk_stmts(func) if isinstance(s, For)]
    blocks = [s.name for s in walk_stmts(func) if isinstance(s, Block)] or ["none"]
    names = [x.var.name for x in loops] or ["none"]
    innermost = [x.var.name for x in loops if not any(isinstance(s, For) for s in walk_stmts(x.body))]
    if isinstance(last, Split) and draw(st.booleans()):
        inner, outer = f"{last.loop}i", f"{last.loop}o"
        return draw(st.sampled_from([Vectorize(inner), Vectorize(inner), Reorder((inner, outer))]))
    kinds = ["split", "split", "fuse", "reorder", "reorder", "mark", "mark", "compute_at", "decompose"]
    match draw(st.sampled_from(["compute_at"] if early and len(blocks) > 1 else kinds)):
        case "split":
            loop = draw(st.sampled_from(names if draw(st.integers(0, 3)) == 0 else innermost or names))
            return Split(loop, draw(st.sampled_from([4, 8, 4, 2, 3, 1])))
        case "fuse":
            nested = [(x.var.name, x.body.var.name) for x in loops if isinstance(x.body, For)]
            outer, inner = draw(st.sampled_from(nested or [("none", "none")]))
            return Fuse(outer, inner, f"f{draw(st.integers(0, 99))}")
        case "reorder":
            chain = _chain(draw(st.sampled_from(loops))) if loops else ["none"]
            some = draw(st.lists(st.sampled_from(chain), min_size=1, max_size=len(chain), unique=True))
            return Reorder(tuple(some))
        case "mark":
            mark = draw(st.sampled_from([Unroll, Vectorize, Vectorize, Parallel]))
            return mark(draw(st.sampled_from(innermost if mark is Vectorize and innermost else names)))
        case "compute_at":
            space = draw(st.sampled_from(["local", "local", "register"]))
            number = draw(st.integers(0, max(0, len(blocks) - 2)))
            later = [x.var.name for other in blocks[number + 1 :] for x in loops_around(func, other)]
            return ComputeAt(blocks[number], draw(st.sampled_from(later or names)), space)
        case _:
            block = draw(st.sampled_from(blocks))
            around = [x.var.name for x in loops_around(func, block)] if block != "none" else names
            return DecomposeReduction(block, draw(st.sampled_from(around or names)))


def _chain(loop: For) -> list[str]:
    names = [loop.var.name]
    while isinstance(loop.body, For):
        loop = loop.body
        names.append(loop.var.name)
    return names


def random_trace(draw: st.DrawFn, func: Func, attempts: int) -> tuple[Func, Trace]:
    """Apply random steps, those that are legal; every result is well formed."""
    steps: list[Step] = []
    eager = draw(st.integers(0, 4))
    for number in range(attempts):
        step = random_step(draw, func, number < eager, steps[-1] if steps else None)
        try:
            after = step.apply(func)
            if isinstance(step, Vectorize) and draw(st.integers(0, 3)):
                finalize(after)  # mostly vectors that can be made
        except LegalityError:
            continue
        func = after
        check(func, LOOP_SCHEDULED)
        steps.append(step)
    return func, tuple(steps)
