"""One block of rows against one span of a page: scores, softmax, weighted values.

::

    s[g, t]  = sum_d q[g, d] * K[d, t]               where position base + t is visible to row g, else -inf
    if some s[g, t] * factor > top[g] + SLACK:       factor = scale * log2(e): weights are powers of 2
      new    = max(top, max_t s[g, t] * factor)
      total, o = (total, o) * 2**(top - new)
      top    = new
    p[g, t]  = 2**(s[g, t] * factor - top)
    total   += p                                     one partial sum per lane
    o[g, :] += sum_t p[g, t] * V[t, :]

A maximum need not be exact: any number will do that keeps powers of 2 in range. After the first spans the
branch is hardly ever taken. The first maximum is the smallest finite number, so that a row that sees nothing
of a span gets weights of 0, and no difference of infinities occurs. Values behind the last visible token are
not read: they may be anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import e as euler
from math import inf, log2

from strata.core.dtypes import DType, bf16, f32, i32, i64
from strata.loop import build as b
from strata.loop.nodes import (
    Alloc,
    BinaryOp,
    Buffer,
    Expr,
    If,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Stmt,
    Store,
    Var,
    seq,
)
from strata.target import CACHE_LINE_BYTES

from .tiles import Tiles, lanes, multiply_add, serial, unroll, vectors

LOWEST = -3.4028234663852886e38  # the smallest finite f32
LOG2_E = log2(euler)
SLACK = 10.0  # powers of 2 by which a weight may exceed 1 before the maximum is computed anew
CHAINS = 4  # maxima that are found side by side: each comparison waits for the last one of its chain
ZERO = b.const(0, i64)


@dataclass(frozen=True, slots=True)
class Rows:
    """State of a task's rows.

    Attributes:
        q: ``[rows, D]``, rotated (INLINE), in the dtype of products.
        o: f32 ``[rows, D]``: sums of weighted values.
        top: f32 ``[rows]``: running maximum.
        total: f32 ``[rows, token_lanes]``: partial sums of weights.
        length: i64 ``[rows]``: tokens that the row sees.
    """

    q: Buffer
    o: Buffer
    top: Buffer
    total: Buffer
    length: Buffer

    @classmethod
    def of(cls, count: int, tiles: Tiles, head_dim: int, operand: DType) -> Rows:
        """Buffers of a task of ``count`` rows."""
        return cls(
            Buffer("q_rows", (count, head_dim), operand, MemSpace.LOCAL),
            Buffer("o_rows", (count, head_dim), f32, MemSpace.LOCAL),
            Buffer("top", (count,), f32, MemSpace.LOCAL),
            Buffer("total", (count, tiles.token_lanes), f32, MemSpace.LOCAL),
            Buffer("length", (count,), i64, MemSpace.LOCAL),
        )

    @property
    def all(self) -> tuple[Buffer, ...]:
        """Every buffer."""
        return (self.q, self.o, self.top, self.total, self.length)


@dataclass(frozen=True, slots=True)
class Span:
    """Keys and values of consecutive positions, some of them inside one page.

    Attributes:
        base: Position of the first token.
        keys: ``(d, t, k)`` -> load of element ``d`` (in units of ``pack``, plus ``k``) of token ``t``.
        values: ``(t, d, k)`` -> load of element ``d`` of token ``t`` (in units of ``pack``, plus ``k``).
        next_keys, next_values: The same in the next page, as it is stored, without ``k``.
        key_scale, value_scale: Load of what all elements of token ``t`` are multiplied by; ``None`` = 1.
    """

    base: Expr
    keys: Callable[[Expr, Expr, Expr | int], Load]
    values: Callable[[Expr, Expr, Expr | int], Load]
    next_keys: Callable[[Expr, Expr], Load]
    next_values: Callable[[Expr, Expr], Load]
    key_scale: Callable[[Expr], Load] | None = None
    value_scale: Callable[[Expr], Load] | None = None


@dataclass(frozen=True, slots=True)
class BlockKernel:
    """Writes the loops of one block of rows.

    Attributes:
        tiles: Sizes.
        rows: State of the task.
        head_dim: Elements per head.
        pack: Products per lane of one multiply-add.
        operand: Dtype of factors.
        scale: Factor on the scores.
        names: Of the two products, unique in the function.
    """

    tiles: Tiles
    rows: Rows
    head_dim: int
    pack: int
    operand: DType
    scale: float
    names: tuple[str, ...]

    @property
    def sums(self) -> MemSpace:
        """Where the scores of a block are."""
        return MemSpace.REGISTER

    @property
    def factor(self) -> Expr:
        """Factor on the scores, positive: one that is not is multiplied in at once."""
        return b.const(LOG2_E * (self.scale if self.scale > 0 else 1.0), f32)

    def step(self, first: Expr, span: Span) -> Stmt:
        """Rows ``first ...`` against a span, unless they see nothing of it."""
        t = self.tiles
        s = Buffer("s", (t.rows, t.span), f32, self.sums)
        p = Buffer("p", (t.rows, t.span), self.operand, MemSpace.LOCAL)
        seen = Var("seen")  # tokens of the span that the last row of the block sees: no other row sees more
        body = seq(
            self._scores(first, span, s),
            self._hide(first, span, s),
            self._raise_tops(first, s),
            self._weights(first, span, s, p),
        )
        body = Alloc(p, seq(Alloc(s, body), self._values(first, span, seen, p)))
        last = Load(self.rows.length, (b.add(first, t.rows - 1),))
        return Let(seen, b.minimum(b.sub(last, span.base), b.const(t.span, i64)), If(b.gt(seen, 0), body))

    def _loop(self, count: int, body: Callable[[Expr], Stmt]) -> Stmt:
        """A loop over rows, or some rows at a time."""
        return unroll("g", count, body)

    def _over_rows(self, body: Callable[[Expr], Stmt]) -> Stmt:
        """A loop over the rows of the block."""
        return self._loop(self.tiles.rows, body)

    def _each(self, body: Callable[[Expr, Expr], Stmt], vectors_: int) -> Stmt:
        """A loop over rows and vectors."""
        return self._over_rows(lambda g: unroll("v", vectors_, lambda v: body(g, v)))

    def _scores(self, first: Expr, span: Span, s: Buffer) -> Stmt:
        t = self.tiles

        def clear(g: Expr, v: Expr) -> Stmt:
            zero = b.const(0.0, f32)
            return lanes("t", t.token_lanes, lambda x: Store(s, self._score(s, g, v, x).indices, zero))

        def scaled(g: Expr, v: Expr) -> Stmt:
            def one(lane: Expr) -> Stmt:
                score = self._score(s, g, v, lane)
                value: Expr = (
                    score if span.key_scale is None else b.mul(score, span.key_scale(score.indices[1]))
                )
                if self.scale <= 0:
                    value = b.mul(value, b.const(self.scale, f32))
                return Store(s, score.indices, value)

            return lanes("t", t.token_lanes, one)

        parts = [self._each(clear, t.token_vectors), self._add_scores(first, span, s)]
        if self.scale <= 0 or span.key_scale is not None:
            parts.append(self._each(scaled, t.token_vectors))
        return seq(*parts)

    def _add_scores(self, first: Expr, span: Span, s: Buffer) -> Stmt:
        """``s += q @ K``."""
        t, pack = self.tiles, self.pack

        def term(d: Expr, g: Expr, v: Expr) -> Stmt:
            def product(lane: Expr, k: Expr | int) -> tuple[Load, Load, Load]:
                q = Load(self.rows.q, (b.add(first, g), b.add(b.mul(d, pack), k)))
                score = self._score(s, g, v, lane)
                return score, q, span.keys(d, score.indices[1], k)

            return multiply_add(self.names[0], t.token_lanes, pack, product)

        def row(d: Expr) -> Stmt:
            early = self._fetch(lambda i: span.next_keys(d, i), t.span)
            return seq(early, self._each(lambda g, v: term(d, g, v), t.token_vectors))

        return serial("d", self.head_dim // pack, row)

    def _score(self, s: Buffer, g: Expr, v: Expr, lane: Expr) -> Load:
        return Load(s, (g, b.add(b.mul(v, self.tiles.token_lanes), lane)))

    def _over(self, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """A row's scores: vectors, lanes."""
        t = self.tiles
        return unroll("v", t.token_vectors, lambda v: lanes("t", t.token_lanes, lambda x: body(v, x)))

    def _hide(self, first: Expr, span: Span, s: Buffer) -> Stmt:
        """-inf for tokens behind a row's last one, where the block has such rows."""
        t = self.tiles

        def row(g: Expr) -> Stmt:
            seen = Var("row_seen", i32)

            def hide(v: Expr, lane: Expr) -> Stmt:
                score = self._score(s, g, v, lane)
                token = b.cast(i32, score.indices[1])
                return Store(s, score.indices, b.select(b.lt(token, seen), score, b.const(-inf, f32)))

            return Let(
                seen,
                b.cast(i32, b.sub(Load(self.rows.length, (b.add(first, g),)), span.base)),
                self._over(hide),
            )

        least = b.sub(Load(self.rows.length, (first,)), span.base)
        return If(b.lt(least, t.span), self._over_rows(row))

    def _raise_tops(self, first: Expr, s: Buffer) -> Stmt:
        """Make the maxima new where a score is above one by more than ``SLACK``."""
        t, tops = self.tiles, self.rows.top
        above = self._register("above", CHAINS * t.token_lanes)
        many = Buffer("many", (1,), i32, MemSpace.REGISTER)

        def highest(chain: int, lane: Expr) -> Load:
            return Load(above, (b.add(chain * t.token_lanes, lane),))

        def row(g: Expr, chain: int) -> Stmt:
            best, top = self._register("best", t.token_lanes), Var("top", f32)

            def excess(lane: Expr) -> Stmt:
                value, place = b.sub(b.mul(Load(best, (lane,)), self.factor), top), highest(chain, lane)
                return Store(above, place.indices, larger(value, place))

            body = seq(self._best(g, s, best), lanes("t", t.token_lanes, excess))
            return Let(top, Load(tops, (b.add(first, g),)), Alloc(best, body))

        def rows(n: Expr) -> Stmt:
            return seq(*(row(b.add(b.mul(n, CHAINS), chain), chain) for chain in range(CHAINS)))

        def count(lane: Expr) -> Stmt:
            value: Expr = highest(0, lane)
            for chain in range(1, CHAINS):
                value = larger(highest(chain, lane), value)
            one = b.select(b.gt(value, b.const(SLACK, f32)), b.const(1, i32), b.const(0, i32))
            return Store(many, (ZERO,), b.maximum(Load(many, (ZERO,)), one))

        def lowest(x: Expr) -> Stmt:
            return Store(above, (x,), b.const(-inf, f32))

        raise_ = self._over_rows(lambda g: self._new_top(first, g, s))
        body = seq(
            vectors("t", CHAINS * t.token_lanes, lowest),
            self._loop(t.rows // CHAINS, rows),
            Store(many, (ZERO,), b.const(0, i32)),
            lanes("t", t.token_lanes, count),
            If(b.gt(Load(many, (ZERO,)), b.const(0, i32)), raise_),
        )
        return Alloc(above, Alloc(many, body))

    def _best(self, g: Expr, s: Buffer, best: Buffer) -> Stmt:
        """Maxima of a row's vectors."""
        t = self.tiles

        def fold(lane: Expr) -> Stmt:
            value: Expr = self._score(s, g, b.const(0, i64), lane)
            for v in range(1, t.token_vectors):
                value = larger(self._score(s, g, b.const(v, i64), lane), value)
            return Store(best, (lane,), value)

        return lanes("t", t.token_lanes, fold)

    def _new_top(self, first: Expr, g: Expr, s: Buffer) -> Stmt:
        """The exact maximum of a row so far; what has been added up fades accordingly."""
        t, rows, row = self.tiles, self.rows, b.add(first, g)
        best, highest = self._register("best", t.token_lanes), self._register("highest", 1)
        new, fade = Var("new_top", f32), Var("fade", f32)
        old = Load(rows.top, (row,))

        def gather(lane: Expr) -> Stmt:
            value = b.mul(Load(best, (lane,)), self.factor)
            return Store(highest, (ZERO,), b.maximum(Load(highest, (ZERO,)), value))

        def shrink(buffer: Buffer) -> Callable[[Expr], Stmt]:
            return lambda x: Store(buffer, (row, x), b.mul(Load(buffer, (row, x)), fade))

        body = seq(
            Store(rows.top, (row,), new),
            lanes("t", t.token_lanes, shrink(rows.total)),
            vectors("d", self.head_dim, shrink(rows.o)),
        )
        body = Let(new, Load(highest, (ZERO,)), Let(fade, exp2(b.sub(old, new)), body))
        body = seq(
            self._best(g, s, best), Store(highest, (ZERO,), old), lanes("t", t.token_lanes, gather), body
        )
        return Alloc(best, Alloc(highest, body))

    def _weights(self, first: Expr, span: Span, s: Buffer, p: Buffer) -> Stmt:
        """``p = 2**(s * factor - top)`` (times the scales of values), and their sums."""
        total = self.rows.total

        def row(g: Expr) -> Stmt:
            at, top = b.add(first, g), Var("top", f32)

            def weigh(v: Expr, lane: Expr) -> Stmt:
                score, weight = self._score(s, g, v, lane), Var("weight", f32)
                value: Expr = weight
                if span.value_scale is not None:  # that of a hidden token may be anything
                    scaled = b.mul(weight, span.value_scale(score.indices[1]))
                    value = b.select(b.gt(weight, 0.0), scaled, b.const(0.0, f32))
                sum_ = Load(total, (at, lane))
                body = seq(
                    Store(p, score.indices, b.cast(self.operand, value)),
                    Store(total, sum_.indices, b.add(sum_, weight)),
                )
                return Let(weight, exp2(b.sub(b.mul(score, self.factor), top), self.operand), body)

            return Let(top, Load(self.rows.top, (at,)), self._over(weigh))

        return self._over_rows(row)

    def _fetch(self, element: Callable[[Expr], Load], extent: int) -> Stmt:
        """Ask for the cache lines of ``extent`` elements (in units of ``pack``) of a row."""
        step = CACHE_LINE_BYTES // (self.pack * element(ZERO).dtype.itemsize_bytes)
        nothing = Buffer("nothing", (1,), i32, MemSpace.REGISTER)

        def line(j: Expr) -> Stmt:
            return Store(nothing, (ZERO,), Intrinsic("prefetch", (element(b.mul(j, step)),), i32, 1))

        return Alloc(nothing, unroll("line", -(-extent // step), line))

    @staticmethod
    def _register(name: str, extent: int) -> Buffer:
        return Buffer(name, (extent,), f32, MemSpace.REGISTER)

    def _values(self, first: Expr, span: Span, seen: Expr, p: Buffer) -> Stmt:
        """``o = o + p @ V``, a slice of the head at a time."""
        t, pack, o = self.tiles, self.pack, self.rows.o

        def slice_of(number: Expr) -> Stmt:
            acc = Buffer("acc", (t.rows, t.slice), f32, MemSpace.REGISTER)
            start = b.mul(number, t.slice)

            def column(v: Expr, lane: Expr) -> Expr:
                return b.add(b.mul(v, t.dim_lanes), lane)

            def term(token: Expr, g: Expr, v: Expr) -> Stmt:
                def product(lane: Expr, k: Expr | int) -> tuple[Load, Load, Load]:
                    weight = Load(p, (g, b.add(b.mul(token, pack), k)))
                    d = b.add(start, column(v, lane))
                    return Load(acc, (g, column(v, lane))), weight, span.values(token, d, k)

                return multiply_add(self.names[1], t.dim_lanes, pack, product)

            def each(body: Callable[[Expr, Expr, Expr], Stmt]) -> Stmt:
                return self._each(
                    lambda g, v: lanes("d", t.dim_lanes, lambda x: body(g, v, x)), t.dim_vectors
                )

            def add(g: Expr, v: Expr, x: Expr) -> Stmt:
                at = (b.add(first, g), b.add(start, column(v, x)))
                return Store(o, at, b.add(Load(o, at), Load(acc, (g, column(v, x)))))

            clear = each(lambda g, v, x: Store(acc, (g, column(v, x)), b.const(0.0, f32)))
            groups = b.floordiv(seen, pack)

            def row(j: Expr) -> Stmt:
                early = self._fetch(lambda i: span.next_values(j, b.add(start, i)), t.slice)
                return seq(early, self._each(lambda g, v: term(j, g, v), t.dim_vectors))

            sums = serial("t", groups, row)
            parts = [clear, sums]
            if pack > 1:
                parts.append(self._last_value(span, seen, start, p, acc))
            return Alloc(acc, seq(*parts, each(add)))

        return serial("slice", self.head_dim // t.slice, slice_of)

    def _last_value(self, span: Span, seen: Expr, start: Expr, p: Buffer, acc: Buffer) -> Stmt:
        """The last token alone where it is the first of a pair, whose other half belongs to nobody."""
        t, last = self.tiles, b.sub(seen, 1)
        values = Buffer("last_values", (t.slice,), f32, MemSpace.LOCAL)

        def load(d: Expr) -> Stmt:
            value = span.values(b.floordiv(last, 2), b.add(start, d), 0)
            return Store(values, (d,), b.cast(f32, value))

        def add(g: Expr, v: Expr, lane: Expr) -> Stmt:
            d = b.add(b.mul(v, t.dim_lanes), lane)
            term = b.mul(b.cast(f32, Load(p, (g, last))), Load(values, (d,)))
            return Store(acc, (g, d), b.add(Load(acc, (g, d)), term))

        sums = self._each(lambda g, v: lanes("d", t.dim_lanes, lambda x: add(g, v, x)), t.dim_vectors)
        body = Alloc(values, seq(serial("d", t.slice, load), sums))
        return If(b.eq(b.floormod(seen, 2), 1), body)


def larger(a: Expr, c: Expr) -> Expr:
    """The larger one, ``c`` where ``a`` is NaN: one instruction. A NaN score still makes its weight NaN."""
    return b.select(b.binary(BinaryOp.GT, a, c), a, c)


def exp2(a: Expr, rounded: DType = f32) -> Expr:
    """``2**a``, as precise as weights have to be that are ``rounded``."""
    return Intrinsic("exp2_bf16" if rounded == bf16 else "exp2", (a,), f32, 1)
