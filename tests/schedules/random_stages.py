"""Random naive loop functions in stages.

Everything is in i32, whose arithmetic wraps: sums are exact in any order, so a scheduled function must give
the very same bits.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from strata.core.dims import Dim, Shape, SymDim, evaluate
from strata.core.dtypes import i32, i64
from strata.loop import build as b
from strata.loop.nodes import Alloc, Buffer, Expr, Func, Load, Stmt, seq, size
from strata.lower.context import Access, Context, Index, Place

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
def functions(draw: st.DrawFn, stages: int = 1, reduces: bool | None = None) -> Func:
    """Stages over two inputs; reductions, elementwise stages, broadcasts, rotations.

    Args:
        draw: From hypothesis.
        stages: The least number of them, of at most four.
        reduces: All of them reduce, or none does; default: some.
    """
    ctx = Context(1, {})
    dims = st.sampled_from(DIMS)
    x = Buffer("x", (N, M, draw(dims)), i32)
    w = Buffer("w", tuple(draw(st.lists(dims, min_size=1, max_size=3))), i32)
    y: Buffer | None = None
    sources: list[Source] = [(_loaded(p), p.shape) for p in (x, w)]
    base = tuple(draw(st.lists(dims, min_size=1, max_size=3)))
    count = draw(st.integers(stages, 4))
    for number in range(count):
        last = number == count - 1
        # Mostly parts of one shape, as the statistics of rows are.
        part = base[: 1 if last else draw(st.integers(0, len(base)))]
        free = tuple(draw(st.lists(dims, min_size=int(last), max_size=3)))
        shape = draw(st.sampled_from([base, base, part, free]))
        extents = draw(st.sampled_from([(), (), base[-1:], tuple(draw(st.lists(dims, max_size=2)))]))
        if reduces is not None:
            extents = (extents or (draw(dims),)) if reduces else ()
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
