"""One block of rows against one span of a page, with products for a matrix unit.

As in :mod:`.blocks`, for blocks of 16 or 32 rows and spans of 32 tokens, which are one or two by two tiles of
sums (:mod:`strata.loop.matrix`). Scores lie in memory, and outputs are added to where they are. Values behind
the last visible token may be anything, and a tile has no mask: a span that is not seen to its end is copied,
with zeros in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from strata.core.dtypes import i64
from strata.graph.types import CacheType
from strata.loop import build as b
from strata.loop.matrix import ROWS
from strata.loop.nodes import (
    MATRIX,
    Alloc,
    Buffer,
    Expr,
    For,
    ForKind,
    If,
    Load,
    MemSpace,
    Stmt,
    Store,
    Var,
    seq,
)
from strata.loop.nodes import size as extent

from .blocks import ZERO, BlockKernel, Span
from .tiles import Tiles, lanes_for, multiply_add, serial, unroll, vectors

SIDE = 2 * ROWS  # tokens and elements of a product, and rows of a task: two tiles
PAIR = 2  # elements of a group of a tile


def fits_matrix_unit(cache: CacheType) -> bool:
    """Whether heads and pages are whole tiles of a matrix unit."""
    lanes = lanes_for(cache.page_size)
    return cache.head_dim % SIDE == 0 and cache.page_size % SIDE == 0 and (cache.pack, lanes) == (PAIR, ROWS)


def matrix_tiles(tiles: Tiles, rows: int) -> Tiles:
    """Tiles of the same tasks in blocks of 16 or 32 rows."""
    return replace(tiles, rows=rows, token_vectors=SIDE // ROWS)


@dataclass(frozen=True, slots=True)
class MatrixKernel(BlockKernel):
    """Writes the loops of one block of 16 or 32 rows; ``names`` are those of three products.

    What few rows wait for is memory, so they ask for the next page. Many rows find theirs in the level-2
    cache, where asking takes time.
    """

    @property
    def sums(self) -> MemSpace:
        """Where the scores of a block are."""
        return MemSpace.LOCAL

    def _loop(self, count: int, body: Callable[[Expr], Stmt]) -> Stmt:
        return serial("g", count, body)

    def _add_scores(self, first: Expr, span: Span, s: Buffer) -> Stmt:
        def product(row: Expr, token: Expr, pair: Expr, k: Expr | int) -> tuple[Load, Load, Load]:
            q = Load(self.rows.q, (b.add(first, row), b.add(b.mul(pair, PAIR), k)))
            return Load(s, (row, token)), q, span.keys(pair, token, k)

        products = _products(self.names[0], self.tiles.rows, self.head_dim, product)
        return seq(products, self._next(span))  # right behind the zeros

    def _values(self, first: Expr, span: Span, seen: Expr, p: Buffer) -> Stmt:
        """``o = o + p @ V``, 32 elements of the head at a time."""
        copy = Buffer("seen_values", (self.tiles.span // PAIR, self.head_dim * PAIR), p.dtype, MemSpace.LOCAL)

        def copied(t: Expr, d: Expr, k: Expr | int) -> Load:
            return Load(copy, (t, b.add(b.mul(d, PAIR), k)))

        whole = self._add_values(self.names[1], first, span.values, p)
        part = seq(self._copy_seen(span, seen, copied), self._add_values(self.names[2], first, copied, p))
        return If(b.eq(seen, self.tiles.span), whole, Alloc(copy, part))

    def _add_values(
        self, name: str, first: Expr, values: Callable[[Expr, Expr, Expr | int], Load], p: Buffer
    ) -> Stmt:
        def slice_of(number: Expr) -> Stmt:
            start = b.mul(number, SIDE)

            def product(row: Expr, column: Expr, pair: Expr, k: Expr | int) -> tuple[Load, Load, Load]:
                d = b.add(start, column)
                weight = Load(p, (row, b.add(b.mul(pair, PAIR), k)))
                return Load(self.rows.o, (b.add(first, row), d)), weight, values(pair, d, k)

            return _products(name, self.tiles.rows, self.tiles.span, product)

        return serial("slice", self.head_dim // SIDE, slice_of)

    def _copy_seen(self, span: Span, seen: Expr, copy: Callable[[Expr, Expr, Expr | int], Load]) -> Stmt:
        """The first ``seen`` tokens' values, and zeros."""
        pairs, width = b.floordiv(seen, PAIR), self.head_dim * PAIR
        zero = b.const(0.0, copy(ZERO, ZERO, 0).dtype)

        def put(t: Expr, d: Expr, k: Expr | int, value: Expr) -> Stmt:
            place = copy(t, d, k)
            return Store(place.buffer, place.indices, value)

        def pair(t: Expr) -> Stmt:
            return vectors("e", width, lambda e: put(t, *_halves(e), span.values(t, *_halves(e))))

        def nothing(t: Expr) -> Stmt:
            return vectors("e", width, lambda e: put(b.add(pairs, t), *_halves(e), zero))

        last = serial("d", self.head_dim, lambda d: put(pairs, d, 0, span.values(pairs, d, 0)))
        return seq(
            serial("t", pairs, pair),
            serial("t", b.sub(b.const(self.tiles.span // PAIR, i64), pairs), nothing),
            If(b.eq(b.floormod(seen, PAIR), 1), last),
        )

    def _next(self, span: Span) -> Stmt:
        """Ask for the same tokens of the next page."""
        tokens, width = self.tiles.span, self.head_dim
        if self.tiles.rows > ROWS:
            return seq()
        return seq(
            serial("d", width // PAIR, lambda d: self._fetch(lambda t: span.next_keys(d, t), tokens)),
            serial("t", tokens // PAIR, lambda t: self._fetch(lambda d: span.next_values(t, d), width)),
        )


def _halves(element: Expr) -> tuple[Expr, Expr]:
    """Number of a pair, and which one of it."""
    return b.floordiv(element, PAIR), b.floormod(element, PAIR)


def _products(
    name: str,
    rows: int,
    contracted: int,
    product: Callable[[Expr, Expr, Expr, Expr | int], tuple[Load, Load, Load]],
) -> Stmt:
    """``rows x 32`` sums of ``contracted`` products, as a matrix loop.

    Args:
        name: Of the block, unique in the function.
        rows: 16 or 32.
        contracted: Products of a sum.
        product: Row, column, number of a pair, which one of it -> ``acc``, ``x``, ``w``.
    """

    def tile(step: Expr, i: Expr, j: Expr) -> Stmt:
        def dots(r: Expr, g: Expr) -> Stmt:
            row, pair = b.add(b.mul(i, ROWS), r), b.add(b.mul(step, ROWS), g)
            return multiply_add(
                name, ROWS, PAIR, lambda n, k: product(row, b.add(b.mul(j, ROWS), n), pair, k)
            )

        return serial(name + "_r", ROWS, lambda r: serial(name + "_g", ROWS, lambda g: dots(r, g)))

    step = Var(name + "_step")
    tiles = unroll(name + "_i", rows // ROWS, lambda i: unroll(name + "_j", 2, lambda j: tile(step, i, j)))
    return For(step, extent(contracted // (ROWS * PAIR)), ForKind.SERIAL, tiles, ((MATRIX, 1),))
