"""Lowering of paged attention: flash attention over pages, for prompts and single tokens in one loop nest.

It is written as a finished nest rather than a naive one: it walks the page table with data-dependent extents,
which no schedule step would invent. Milakov & Gimelshein 2018 (running softmax), Dao et al. 2022 (tiles)::

    parallel task:                 tile of tokens, query heads that share a KV head, part of the context
      for the tokens of one sequence in the tile:
        rows = their q, o = 0, top = lowest, total = 0
        for each page of the part:                     read once for all rows
          for each block of rows, span of the page:    see .blocks
        out[rows] = o / total      or, if the context has several parts, o, top and total of the part
    parallel (token, head):        if the context has several parts
      out = sum over parts: 2**(top - max top) * o / sum over parts: 2**(top - max top) * total

A tile of tokens usually belongs to one sequence; where several meet in it, they are taken one after the
other. Passes of few tokens split the context of each sequence (flash decoding): into parts of at least
``SPLIT_TOKENS`` tokens, at most ``MAX_SPLITS`` of them. That depends on the pass alone, not on the number of
threads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from strata.core.dims import Dim
from strata.core.dims import bounds as dim_bounds
from strata.core.dtypes import f32, i64
from strata.graph.nodes import Node
from strata.graph.types import TABLE_WIDTH, CacheType, RopeMode
from strata.loop import build as b
from strata.loop.matrix import ROWS
from strata.loop.nodes import (
    Alloc,
    Buffer,
    Expr,
    For,
    ForKind,
    If,
    Let,
    Load,
    MemSpace,
    Stmt,
    Store,
    Var,
    seq,
    size,
)
from strata.lower.context import LOWERINGS, Access, Context

from .blocks import LOWEST, ZERO, BlockKernel, Rows, Span, exp2
from .cache_ops import packed
from .matrix import SIDE, MatrixKernel, fits_matrix_unit, matrix_tiles
from .tiles import Tiles, lanes, operand_dtype, serial, vectors

SPLIT_TOKENS = 256  # of a part: 64 KiB of bf16 keys and values of 64 elements, a few microseconds of work
MAX_SPLITS = 16
TILES_TOGETHER = 16  # tiles of tokens that have the same heads one after the other
PART_ROWS = 64  # tokens times parts, at most: memory for results of parts; passes of 33 tokens have one part


@dataclass(frozen=True, slots=True)
class _Parts:
    """Results of parts of the context: f32 ``[PART_ROWS, H, ...]``, row ``token * splits + part``."""

    o: Buffer
    top: Buffer
    total: Buffer


@dataclass(frozen=True, slots=True)
class _Attention:
    """What the parts of one attention kernel share."""

    ctx: Context
    cache_node: Node
    cache: CacheType
    layer: int
    n: Dim
    heads: int
    kernel: BlockKernel
    large: BlockKernel | None  # for tasks of more rows than a block of ``kernel`` has
    query: Access
    result: Buffer
    parts: _Parts

    @property
    def tiles(self) -> Tiles:
        return self.kernel.tiles

    def field(self, name: str, *index: Expr) -> Expr:
        """An i32 field of the cache as i64."""
        return b.cast(i64, Load(self.ctx.cache_field(self.cache_node, name), index))

    def pages(self, name: str) -> Buffer:
        """The layer's keys or values."""
        return self.ctx.cache_field(self.cache_node, name, self.layer)

    @property
    def splits(self) -> Expr:
        """Parts of the longest context of this pass."""
        longest = b.ceildiv(b.mul(size(TABLE_WIDTH), self.cache.page_size), SPLIT_TOKENS)
        return b.minimum(longest, self.most_splits)

    @property
    def most_splits(self) -> Expr:
        """Parts that a context may have in a pass of so many tokens."""
        rows = b.floordiv(b.const(PART_ROWS, i64), size(self.n))
        return b.maximum(b.minimum(rows, b.const(MAX_SPLITS, i64)), b.const(1, i64))


@dataclass(frozen=True, slots=True)
class _Segment:
    """Tokens of one sequence in one task: ``token ... token + count - 1``, and their part of the context."""

    token: Expr
    count: Expr
    sequence: Expr
    head: Expr  # first query head
    kv_head: Expr
    part: Expr
    splits: Expr


# -------------------------------------------------------------------------------------------------- rotation


def _rotated(a: _Attention, element: Callable[[Expr], Expr], d: Expr, position: Expr) -> Expr:
    """Element ``d`` of a head, f32, turned by its position (Su et al. 2021)."""
    rotary = a.cache.rotary_dim
    half = rotary // 2
    inside = b.minimum(d, b.const(rotary - 1, i64))
    own, partner = element(d), element(b.floormod(b.add(inside, half), rotary))
    angle = (position, b.floormod(inside, half))
    signed = b.select(b.lt(inside, half), b.neg(partner), partner)
    cos, sin = (Load(a.ctx.cache_field(a.cache_node, name), angle) for name in ("rope_cos", "rope_sin"))
    turned = b.add(b.mul(own, cos), b.mul(signed, sin))
    return turned if rotary == a.cache.head_dim else b.select(b.lt(d, rotary), turned, own)


# ------------------------------------------------------------------------------------------------------ rows


def _load_rows(a: _Attention, g: _Segment, count: Expr) -> Stmt:
    """Rows of the segment, in whole blocks: rows behind the last one repeat it, and are not written."""
    rows, tiles = a.kernel.rows, a.tiles
    head_dim, zero = a.cache.head_dim, b.const(0.0, f32)
    inline = a.cache.rope is RopeMode.INLINE and a.cache.rotary_dim > 0

    def one(r: Expr) -> Stmt:
        token, head, position = Var("row_token"), Var("row_head"), Var("position")
        row = b.minimum(r, b.sub(count, 1))

        def element(d: Expr) -> Expr:
            return b.cast(f32, a.query((token, head, d)))

        def fill(d: Expr) -> Stmt:
            value = _rotated(a, element, d, position) if inline else element(d)
            rounded = b.cast(a.cache.product_dtype, value)
            return Store(rows.q, (r, d), b.cast(rows.q.dtype, rounded))

        loop = serial if inline else vectors
        body = seq(
            loop("d", head_dim, fill),
            vectors("d", head_dim, lambda d: Store(rows.o, (r, d), zero)),
            lanes("t", tiles.token_lanes, lambda x: Store(rows.total, (r, x), zero)),
            Store(rows.top, (r,), b.const(LOWEST, f32)),
            Store(rows.length, (r,), b.add(position, 1)),
        )
        body = Let(position, a.field("positions", token), body)
        body = Let(head, b.add(g.head, b.floormod(row, tiles.heads)), body)
        return Let(token, b.add(g.token, b.floordiv(row, tiles.heads)), body)

    return serial("r", b.mul(b.ceildiv(count, tiles.rows), tiles.rows), one)


def _write_rows(a: _Attention, g: _Segment, count: Expr) -> Stmt:
    """Results of the rows, or of their part of the context."""
    rows, tiles, head_dim = a.kernel.rows, a.tiles, a.cache.head_dim

    def one(r: Expr) -> Stmt:
        token, head, sum_, share = Var("row_token"), Var("row_head"), Var("sum", f32), Var("share", f32)
        weight = Buffer("weight", (1,), f32, MemSpace.REGISTER)

        def add_up(lane: Expr) -> Stmt:
            return Store(weight, (ZERO,), b.add(Load(weight, (ZERO,)), Load(rows.total, (r, lane))))

        def finish(d: Expr) -> Stmt:
            value = b.mul(Load(rows.o, (r, d)), share)
            return Store(a.result, (token, head, d), b.cast(a.result.dtype, value))

        def keep(d: Expr) -> Stmt:
            return Store(a.parts.o, (*at, d), Load(rows.o, (r, d)))

        at = (b.add(b.mul(token, g.splits), g.part), head)
        whole = Let(share, b.div(b.const(1.0, f32), sum_), vectors("d", head_dim, finish))
        part = seq(
            Store(a.parts.total, at, sum_),
            Store(a.parts.top, at, Load(rows.top, (r,))),
            vectors("d", head_dim, keep),
        )
        body = Let(sum_, Load(weight, (ZERO,)), If(b.eq(g.splits, 1), whole, part))
        body = seq(Store(weight, (ZERO,), b.const(0.0, f32)), lanes("t", tiles.token_lanes, add_up), body)
        body = Alloc(weight, body)
        body = Let(head, b.add(g.head, b.floormod(r, tiles.heads)), body)
        return Let(token, b.add(g.token, b.floordiv(r, tiles.heads)), body)

    return serial("r", count, one)


# ----------------------------------------------------------------------------------------------------- pages


def _page(a: _Attention, g: _Segment, number: Expr, count: Expr, limit: Expr) -> Stmt:
    """All rows against page ``number`` of the sequence; ``limit``: tokens that the last row sees."""
    cache, tiles = a.cache, a.tiles
    page_id, next_id, base = Var("page"), Var("next_page"), Var("base")
    page = _PageAccess(a, g, page_id, next_id, base)

    def block(kernel: BlockKernel, first: Expr) -> Stmt:
        span = kernel.tiles.span
        spans = cache.page_size // span
        return serial("span", spans, lambda j: kernel.step(first, page.span(b.mul(j, span))))

    blocks = b.ceildiv(count, tiles.rows)
    products = serial("block", blocks, lambda number: block(a.kernel, b.mul(number, tiles.rows)))
    if a.large is not None:
        products = If(b.gt(count, tiles.rows), block(a.large, ZERO), products)
    valid = b.minimum(b.sub(limit, base), b.const(cache.page_size, i64))
    body = seq(page.prepare(valid), products)
    for buffer in (page.keys, page.values):
        body = body if buffer is None else Alloc(buffer, body)
    body = Let(base, b.mul(number, cache.page_size), body)
    last = b.floordiv(b.sub(limit, 1), cache.page_size)
    following = b.minimum(b.add(number, 1), last)
    body = Let(next_id, a.field("page_table", g.sequence, following), body)
    return Let(page_id, a.field("page_table", g.sequence, number), body)


class _PageAccess:
    """How the keys and values of one page are read: in place, or as private copies.

    Copies are made once for all rows: of keys that are turned (INLINE), and of codes, which become bf16.

    Args:
        a: The kernel.
        g: The segment.
        page_id: The page.
        next_id: The page of the following positions.
        base: Position of the page's first token.

    Attributes:
        keys, values: The copies.
    """

    def __init__(self, a: _Attention, g: _Segment, page_id: Expr, next_id: Expr, base: Expr) -> None:
        self.a, self.g, self.page_id, self.next_id, self.base = a, g, page_id, next_id, base
        self.cache, self.pack, operand = a.cache, a.cache.pack, a.kernel.operand
        self.k_pages, self.v_pages = a.pages("k_pages"), a.pages("v_pages")
        self.is_inline = a.cache.rope is RopeMode.INLINE and a.cache.rotary_dim > 0
        widens = a.cache.is_scaled and self.pack > 1
        copies = (
            Buffer(name, pages.shape[2:], operand, MemSpace.LOCAL) if wanted else None
            for name, pages, wanted in (
                ("keys", self.k_pages, widens or self.is_inline),
                ("values", self.v_pages, widens),
            )
        )
        self.keys, self.values = copies

    def prepare(self, valid: Expr) -> Stmt:
        """Fill the copies; ``valid``: tokens of the page that are visible to some row."""
        parts: list[Stmt] = []
        if self.is_inline:
            parts.append(serial("t", valid, self._turn))
        elif self.keys is not None:
            parts.append(self._widen(self.k_pages, self.keys))
        if self.values is not None:
            parts.append(self._widen(self.v_pages, self.values))
        return seq(*parts)

    def _widen(self, pages: Buffer, copy: Buffer) -> Stmt:
        rows, width = copy.shape
        assert isinstance(rows, int)
        assert isinstance(width, int)

        def element(r: Expr, i: Expr) -> Stmt:
            code = Load(pages, (self.page_id, self.g.kv_head, r, i))
            return Store(copy, (r, i), b.cast(copy.dtype, b.cast(f32, code)))

        return serial("r", rows, lambda r: vectors("i", width, lambda i: element(r, i)))

    def _turn(self, t: Expr) -> Stmt:
        """Rotate the key of one token."""
        assert self.keys is not None
        keys, position = self.keys, b.add(self.base, t)

        def stored(d: Expr) -> Expr:
            value = b.cast(f32, Load(self.k_pages, (self.page_id, self.g.kv_head, *packed(d, t, self.pack))))
            return b.mul(value, self._scale("k_scales", t)) if self.cache.is_scaled else value

        def element(d: Expr) -> Stmt:
            rounded = b.cast(self.cache.product_dtype, _rotated(self.a, stored, d, position))
            return Store(keys, packed(d, t, self.pack), b.cast(keys.dtype, rounded))

        return serial("d", self.cache.head_dim, element)

    def _scale(self, field: str, t: Expr) -> Load:
        return Load(self.a.pages(field), (self.page_id, self.g.kv_head, t))

    def span(self, first: Expr) -> Span:
        """Tokens of the page from ``first`` on."""
        pack, head, is_scaled = self.pack, self.g.kv_head, self.cache.is_scaled

        def keys(d: Expr, t: Expr, k: Expr | int) -> Load:
            at = (d, b.add(b.mul(b.add(first, t), pack), k))
            return Load(self.k_pages, (self.page_id, head, *at)) if self.keys is None else Load(self.keys, at)

        def values(t: Expr, d: Expr, k: Expr | int) -> Load:
            at = (b.add(b.floordiv(first, pack), t), b.add(b.mul(d, pack), k))
            return (
                Load(self.v_pages, (self.page_id, head, *at))
                if self.values is None
                else Load(self.values, at)
            )

        def next_keys(d: Expr, t: Expr) -> Load:
            return Load(self.k_pages, (self.next_id, head, d, b.mul(b.add(first, t), pack)))

        def next_values(t: Expr, d: Expr) -> Load:
            return Load(self.v_pages, (self.next_id, head, b.add(b.floordiv(first, pack), t), b.mul(d, pack)))

        return Span(
            b.add(self.base, first),
            keys,
            values,
            next_keys,
            next_values,
            (lambda t: self._scale("k_scales", b.add(first, t)))
            if is_scaled and not self.is_inline
            else None,
            (lambda t: self._scale("v_scales", b.add(first, t))) if is_scaled else None,
        )


def _part_pages(a: _Attention, sequence: Expr) -> Expr:
    """Pages of a part of a sequence's context."""
    length = b.add(a.field("positions", a.field("last_rows", sequence)), 1)
    pages = b.ceildiv(length, a.cache.page_size)
    least = -(-SPLIT_TOKENS // a.cache.page_size)
    most = a.most_splits
    share = b.floordiv(b.sub(b.add(pages, most), 1), most)
    return b.maximum(share, b.const(least, i64))


def _segment(a: _Attention, g: _Segment) -> Stmt:
    """All of a segment's work."""
    count, limit, pages, first = Var("rows"), Var("limit"), Var("part_pages"), Var("first_page")
    last = b.minimum(b.add(first, pages), b.ceildiv(limit, a.cache.page_size))
    walk = serial("j", b.sub(last, first), lambda j: _page(a, g, b.add(first, j), count, limit))
    body = seq(_load_rows(a, g, count), walk, _write_rows(a, g, count))
    body = Let(first, b.mul(g.part, pages), body)
    body = Let(pages, _part_pages(a, g.sequence), body)
    body = Let(limit, b.add(a.field("positions", b.sub(b.add(g.token, g.count), 1)), 1), body)
    return Let(count, b.mul(g.count, a.tiles.heads), body)


# ----------------------------------------------------------------------------------------------------- tasks


def _tasks(a: _Attention, splits: Expr) -> Stmt:
    """The parallel loop over tiles of tokens, tiles of heads and parts; long contexts first.

    ``TILES_TOGETHER`` tiles of tokens have the same heads one after the other: keys and values come from the
    level-2 cache then.
    """
    tiles, shared = a.tiles, a.heads // a.cache.num_kv_heads
    head_tiles = a.heads // tiles.heads
    task, tile, first, end = Var("task"), Var("tile"), Var("first"), Var("end")
    before, within, together, head_tile = Var("before"), Var("within"), Var("together"), Var("head_tile")
    part, rest = b.floormod(task, splits), b.floordiv(task, splits)
    num_tiles = b.ceildiv(size(a.n), tiles.tokens)

    def segment(s: Expr) -> Stmt:
        token, sequence, count = Var("token"), Var("sequence"), Var("count")
        part_, head = Var("part"), Var("head")
        g = _Segment(token, count, sequence, head, b.floordiv(head, shared), part_, splits)
        body = Let(part_, part, _segment(a, g))
        body = Let(head, b.mul(head_tile, tiles.heads), body)
        after = b.minimum(end, b.add(a.field("last_rows", sequence), 1))
        body = Let(count, b.sub(after, token), body)
        last = a.field("seq_ids", b.maximum(b.sub(token, 1), ZERO))
        starts = b.or_(b.eq(s, 0), b.ne(last, sequence))
        return Let(token, b.add(first, s), Let(sequence, a.field("seq_ids", token), If(starts, body)))

    body = serial("s", b.sub(end, first), segment)
    for buffer in a.kernel.rows.all:
        body = Alloc(buffer, body)
    body = Let(end, b.minimum(b.add(first, tiles.tokens), size(a.n)), body)
    body = Let(first, b.mul(tile, tiles.tokens), body)
    body = Let(tile, b.sub(b.sub(num_tiles, 1), b.add(before, b.floormod(within, together))), body)
    body = Let(head_tile, b.floordiv(within, together), body)
    body = Let(together, b.minimum(b.sub(num_tiles, before), b.const(TILES_TOGETHER, i64)), body)
    body = Let(within, b.floormod(rest, TILES_TOGETHER * head_tiles), body)
    body = Let(before, b.mul(b.floordiv(rest, TILES_TOGETHER * head_tiles), TILES_TOGETHER), body)
    return For(task, b.mul(b.mul(num_tiles, head_tiles), splits), ForKind.PARALLEL, body)


def _combine(a: _Attention, splits: Expr) -> Stmt:
    """The parallel loop that adds up parts; without iterations where there is one part."""
    p, head_dim = a.parts, a.cache.head_dim
    pair, token, head, sequence = Var("pair"), Var("token"), Var("head"), Var("sequence")
    parts, top, total = Var("parts"), Var("top", f32), Var("total", f32)
    best = Buffer("best", (1,), f32, MemSpace.LOCAL)
    weight = Buffer("part_weight", (1,), f32, MemSpace.LOCAL)
    out = Buffer("o_sum", (head_dim,), f32, MemSpace.LOCAL)
    zero = b.const(0.0, f32)

    def update(buffer: Buffer, value: Callable[[Expr], Expr]) -> Stmt:
        return Store(buffer, (ZERO,), value(Load(buffer, (ZERO,))))

    def part(j: Expr) -> tuple[Expr, Expr]:
        return b.add(b.mul(token, splits), j), head

    def add(j: Expr) -> Stmt:
        share, at = Var("share", f32), part(j)

        def term(d: Expr) -> Stmt:
            return Store(out, (d,), b.add(Load(out, (d,)), b.mul(Load(p.o, (*at, d)), share)))

        body = seq(
            update(weight, lambda x: b.add(x, b.mul(Load(p.total, at), share))), vectors("d", head_dim, term)
        )
        return Let(share, exp2(b.sub(Load(p.top, at), top)), body)

    def finish(d: Expr) -> Stmt:
        return Store(a.result, (token, head, d), b.cast(a.result.dtype, b.div(Load(out, (d,)), total)))

    sums = seq(Store(weight, (ZERO,), zero), vectors("d", head_dim, lambda d: Store(out, (d,), zero)))
    tail = Let(total, Load(weight, (ZERO,)), vectors("d", head_dim, finish))
    body = Let(top, Load(best, (ZERO,)), seq(sums, serial("j", parts, add), tail))
    peak = serial("j", parts, lambda j: update(best, lambda x: b.maximum(x, Load(p.top, part(j)))))
    body = seq(Store(best, (ZERO,), b.const(LOWEST, f32)), peak, body)
    for buffer in (best, weight, out):
        body = Alloc(buffer, body)
    length = b.add(a.field("positions", a.field("last_rows", sequence)), 1)
    pages = b.ceildiv(length, a.cache.page_size)
    share = _part_pages(a, sequence)
    body = Let(parts, b.floordiv(b.sub(b.add(pages, share), 1), share), body)
    body = Let(sequence, a.field("seq_ids", token), body)
    body = Let(head, b.floormod(pair, a.heads), Let(token, b.floordiv(pair, a.heads), body))
    extent = b.select(b.eq(splits, 1), b.const(0, i64), b.mul(size(a.n), a.heads))
    return For(pair, extent, ForKind.PARALLEL, body)


def is_for_matrix_unit(node: Node) -> bool:
    """Whether a matrix unit can compute an op of attention."""
    cache = node.inputs[1].type
    assert isinstance(cache, CacheType)
    return fits_matrix_unit(cache)


@LOWERINGS.register("paged_attention")
def lower_paged_attention(ctx: Context, node: Node) -> Access:
    """Causal attention of each token over its sequence's pages; see the module docstring."""
    q, cache_node = node.inputs
    cache = cache_node.type
    assert isinstance(cache, CacheType)
    n, heads, head_dim = node.tensor.shape
    assert isinstance(heads, int)
    assert isinstance(head_dim, int)
    tiles, operand = Tiles.of(cache, heads), operand_dtype(cache)
    by_tiles = ctx.has_matrix_unit and fits_matrix_unit(cache)
    rows = Rows.of(SIDE if by_tiles else tiles.task_rows, tiles, head_dim, operand)

    def kernel_of(kind: type[BlockKernel], tiles: Tiles, *names: str) -> BlockKernel:
        unique = tuple(map(ctx.unique, names))
        return kind(tiles, rows, head_dim, cache.pack, operand, node.attrs["scale"], unique)

    if by_tiles:
        kernel, large = (
            kernel_of(MatrixKernel, matrix_tiles(tiles, r), "scores", "values", "seen_values")
            for r in (ROWS, SIDE)
        )
    else:
        kernel, large = kernel_of(BlockKernel, tiles, "scores", "values"), None
    lead = (min(MAX_SPLITS * dim_bounds(n)[1], PART_ROWS), heads)
    parts = _Parts(
        ctx.buffer("part_o", (*lead, head_dim), f32),
        ctx.buffer("part_top", lead, f32),
        ctx.buffer("part_total", lead, f32),
    )
    result = ctx.buffer("attention_buf", node.tensor.shape, ctx.stored.get(id(node), node.tensor.dtype))
    layer = node.attrs["layer"]
    a = _Attention(ctx, cache_node, cache, layer, n, heads, kernel, large, ctx.access(q), result, parts)
    splits = Var("splits")
    ctx.stages.append(Let(splits, a.splits, seq(_tasks(a, splits), _combine(a, splits))))
    return lambda i: Load(result, i)
