"""Lowering of the KV-cache ops: rotary embedding, append, paged attention, last tokens.

Paged attention is written as a finished loop nest rather than a naive one: it walks the page table with
data-dependent extents, which no schedule step would invent. One task is one token and one tile of the query
heads that share a KV head; it reads each KV page once for the whole tile and keeps a running softmax (Milakov
& Gimelshein 2018; Dao 2022)::

    parallel task:                                     token t, KV head h, heads g of the tile
      for page j of the sequence of t, up to positions[t]:
        s[g, :]  = sum_d q[g, d] * K[page, h, d, :]    one vector of page_size scores per head
        m', p, l = running max, exp(s - m'), sum
        o[g, :]  = o[g, :] * exp(m - m') + p[g, :] @ V[page, h, :, :]
      out[t, head, :] = o / l
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from strata.core.dtypes import f32, i64
from strata.graph.nodes import Node
from strata.graph.types import CacheType, RopeMode
from strata.loop import build as b
from strata.loop.nodes import (
    Alloc,
    Buffer,
    Expr,
    For,
    ForKind,
    Let,
    Load,
    MemSpace,
    Stmt,
    Store,
    Var,
    seq,
    size,
)

from .context import LOWERINGS, Access, Context, Index

MAX_HEAD_TILE = 8  # query heads per task: 8 score vectors and 8 output vectors stay in registers
MAX_LANES = 16
MAX_PAGE_VECTORS = 8  # vectors of one page's scores that stay in registers


def lanes_for(extent: int) -> int:
    """The largest power of two up to ``MAX_LANES`` that divides ``extent``."""
    return min(extent & -extent, MAX_LANES)


def head_tile(group: int) -> int:
    """The largest divisor of the query heads per KV head up to ``MAX_HEAD_TILE``."""
    return max(k for k in range(1, MAX_HEAD_TILE + 1) if group % k == 0)


@LOWERINGS.register("rope")
def lower_rope(ctx: Context, node: Node) -> Access:
    """Rotate pairs ``(d, d + R/2)`` of each head by ``position * inv_freq[d]`` (Su et al. 2021)."""
    x, cache = node.inputs
    assert isinstance(cache.type, CacheType)
    source, rotary, head = ctx.access(x), cache.type.rotary_dim, x.tensor.shape[2]
    if rotary == 0:
        return source
    half = rotary // 2
    positions = ctx.cache_field(cache, "positions")
    cos, sin = ctx.cache_field(cache, "rope_cos"), ctx.cache_field(cache, "rope_sin")

    def element(i: Index) -> Expr:
        t, h, d = i
        rotated = d if rotary == head else b.minimum(d, b.const(rotary - 1, i64))
        position = b.cast(i64, Load(positions, (t,)))
        angle = (position, b.floormod(rotated, half))
        partner = b.cast(f32, source((t, h, b.floormod(b.add(rotated, half), rotary))))
        signed = b.select(b.lt(rotated, half), b.neg(partner), partner)
        own = b.cast(f32, source((t, h, d)))
        value = b.add(b.mul(own, Load(cos, angle)), b.mul(signed, Load(sin, angle)))
        if rotary != head:
            value = b.select(b.lt(d, rotary), value, own)
        return b.cast(node.tensor.dtype, value)

    return element


@LOWERINGS.register("cache_positions")
def lower_cache_positions(ctx: Context, node: Node) -> Access:
    """Position of every token in its sequence."""
    positions = ctx.cache_field(node.inputs[0], "positions")
    return lambda i: Load(positions, i)


@LOWERINGS.register("last_tokens")
def lower_last_tokens(ctx: Context, node: Node) -> Access:
    """The row of the last token of each sequence."""
    x, cache = node.inputs
    source, rows = ctx.access(x), ctx.cache_field(cache, "last_rows")
    return lambda i: source((b.cast(i64, Load(rows, (i[0],))), *i[1:]))


@LOWERINGS.register("kv_append")
def lower_kv_append(ctx: Context, node: Node) -> None:
    """Store every token's K (transposed inside its page) and V at its slot; the result is the cache."""
    cache, k, v = node.inputs
    assert isinstance(cache.type, CacheType)
    slots = ctx.cache_field(cache, "slots")
    page = cache.type.page_size

    def place(field: str, transpose: bool) -> Callable[[Index], tuple[Buffer, Index]]:
        pages = ctx.cache_field(cache, field, node.attrs["layer"])

        def into(i: Index) -> tuple[Buffer, Index]:
            t, h, d = i
            slot = b.cast(i64, Load(slots, (t,)))
            offset = b.floormod(slot, page)
            return pages, (b.floordiv(slot, page), h, *((d, offset) if transpose else (offset, d)))

        return into

    for name, operand, transpose in (("k_pages", k, True), ("v_pages", v, False)):
        source = ctx.access(operand)

        def value(i: Index, source: Access = source) -> Expr:
            return b.cast(cache.type.dtype, source(i))  # type: ignore[union-attr]

        ctx.stage("append_" + name[0], operand.tensor.shape, cache.type.dtype, value, place(name, transpose))


@dataclass(frozen=True, slots=True)
class _Attention:
    """Buffers, sizes and loop-invariant expressions of one attention kernel."""

    cache: CacheType
    layer: int
    group: int  # query heads of the tile
    token: Expr
    kv_head: Expr
    first_head: Expr
    q: Buffer  # f32 [group, D], scaled and (INLINE) rotated
    o: Buffer  # f32 [group, D]
    top: Buffer  # f32 [group]: running maximum
    total: Buffer  # f32 [group]: running sum

    @property
    def head_dim(self) -> int:
        return self.cache.head_dim


def _vector(name: str, extent: int, body: Callable[[Expr], Stmt], unroll_to: int = 4) -> Stmt:
    """A loop over ``extent`` elements in vectors, unrolled if it is at most ``unroll_to`` vectors."""
    lanes = lanes_for(extent)
    outer, lane = Var(name + "o"), Var(name)
    inner = For(lane, size(lanes), ForKind.VECTORIZE, body(b.add(b.mul(outer, lanes), lane)))
    kind = ForKind.UNROLL if extent // lanes <= unroll_to else ForKind.SERIAL
    return For(outer, size(extent // lanes), kind, inner)


def _page(extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """A loop over the tokens of a page; unrolled where scores of a page live in registers."""
    return _vector("t", extent, body, MAX_PAGE_VECTORS)


def _score_space(page_size: int) -> MemSpace:
    """Scores of a page: registers, unless it is many vectors (an odd page size is all scalars)."""
    return MemSpace.REGISTER if page_size // lanes_for(page_size) <= MAX_PAGE_VECTORS else MemSpace.LOCAL


def _heads(name: str, extent: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """An unrolled loop over the heads of a tile."""
    var = Var(name)
    return For(var, size(extent), ForKind.UNROLL, body(var))


def _serial(name: str, extent: Expr, body: Callable[[Expr], Stmt]) -> Stmt:
    var = Var(name)
    return For(var, extent, ForKind.SERIAL, body(var))


def _update(buffer: Buffer, i: Index, value: Callable[[Expr], Expr]) -> Stmt:
    return Store(buffer, i, value(Load(buffer, i)))


def _scores(a: _Attention, keys: Callable[[Expr, Expr], Expr], valid: Expr, s: Buffer) -> Stmt:
    """``s[g, t] = sum_d q[g, d] * keys(d, t)``, -inf from ``valid`` on."""
    page = a.cache.page_size
    zero, low = b.const(0.0, f32), b.const(-inf, f32)
    clear = _heads("g", a.group, lambda g: _page(page, lambda t: Store(s, (g, t), zero)))

    def accumulate(d: Expr) -> Stmt:
        def term(g: Expr, t: Expr) -> Stmt:
            return _update(s, (g, t), lambda x: b.add(x, b.mul(Load(a.q, (g, d)), keys(d, t))))

        return _heads("g", a.group, lambda g: _page(page, lambda t: term(g, t)))

    def hide(g: Expr, t: Expr) -> Stmt:
        return _update(s, (g, t), lambda x: b.select(b.lt(t, valid), x, low))

    mask = _heads("g", a.group, lambda g: _page(page, lambda t: hide(g, t)))
    return seq(clear, _serial("d", size(a.head_dim), accumulate), mask)


def _softmax_step(a: _Attention, s: Buffer, p: Buffer) -> Stmt:
    """Fold one page of scores into the running maximum and sum; ``p = exp(s - maximum)``; rescale ``o``."""
    page = a.cache.page_size

    def head(g: Expr) -> Stmt:
        new = Buffer("new_top", (1,), f32, MemSpace.REGISTER)
        zero = b.const(0, i64)
        top, scale = Var("top", f32), Var("scale", f32)
        maximum = _page(page, lambda t: _update(new, (zero,), lambda x: b.maximum(x, Load(s, (g, t)))))
        weights = _page(page, lambda t: _update(s, (g, t), lambda x: b.exp(b.sub(x, top))))
        copy = _page(page, lambda t: Store(p, (g, t), Load(s, (g, t))))
        add_up = _page(page, lambda t: _update(a.total, (g,), lambda x: b.add(x, Load(s, (g, t)))))
        rescale = _vector("d", a.head_dim, lambda d: _update(a.o, (g, d), lambda x: b.mul(x, scale)))
        shrink = _update(a.total, (g,), lambda x: b.mul(x, scale))
        keep = Store(a.top, (g,), top)
        inner = seq(keep, weights, copy, shrink, add_up, rescale)
        inner = Let(scale, b.exp(b.sub(Load(a.top, (g,)), top)), inner)
        inner = Let(top, Load(new, (zero,)), inner)
        return Alloc(new, seq(Store(new, (zero,), Load(a.top, (g,))), maximum, inner))

    return _heads("g", a.group, head)


def _weigh_values(a: _Attention, values: Buffer, page_id: Expr, valid: Expr, p: Buffer) -> Stmt:
    """``o[g, :] += sum_t p[g, t] * V[page, h, t, :]``, a vector of the head dim at a time."""
    lanes = lanes_for(a.head_dim)

    def slice_of(start: Expr) -> Stmt:
        acc = Buffer("acc", (a.group, lanes), f32, MemSpace.REGISTER)

        def lane_loop(body: Callable[[Expr], Stmt]) -> Stmt:
            lane = Var("lane")
            return For(lane, size(lanes), ForKind.VECTORIZE, body(lane))

        def both(body: Callable[[Expr, Expr], Stmt]) -> Stmt:
            return _heads("g", a.group, lambda g: lane_loop(lambda x: body(g, x)))

        first = b.mul(start, lanes)

        def term(t: Expr, g: Expr, x: Expr) -> Stmt:
            value = b.cast(f32, Load(values, (page_id, a.kv_head, t, b.add(first, x))))
            return _update(acc, (g, x), lambda old: b.add(old, b.mul(Load(p, (g, t)), value)))

        load = both(lambda g, x: Store(acc, (g, x), Load(a.o, (g, b.add(first, x)))))
        sums = _serial("t", valid, lambda t: both(lambda g, x: term(t, g, x)))
        back = both(lambda g, x: Store(a.o, (g, b.add(first, x)), Load(acc, (g, x))))
        return Alloc(acc, seq(load, sums, back))

    return _serial("dv", size(a.head_dim // lanes), slice_of)


def _rotated_keys(
    a: _Attention,
    pages: Buffer,
    page_id: Expr,
    base: Expr,
    valid: Expr,
    tables: tuple[Buffer, Buffer],
    out: Buffer,
) -> Stmt:
    """INLINE mode: ``out[d, t]`` = the page's keys rotated by their positions ``base + t``."""
    rotary = a.cache.rotary_dim
    half = rotary // 2

    def element(d: Expr, t: Expr) -> Stmt:
        own = b.cast(f32, Load(pages, (page_id, a.kv_head, d, t)))
        inside = b.minimum(d, b.const(rotary - 1, i64))
        partner = b.cast(f32, Load(pages, (page_id, a.kv_head, b.floormod(b.add(inside, half), rotary), t)))
        angle = (b.add(base, t), b.floormod(inside, half))
        signed = b.select(b.lt(inside, half), b.neg(partner), partner)
        turned = b.add(b.mul(own, Load(tables[0], angle)), b.mul(signed, Load(tables[1], angle)))
        return Store(out, (d, t), b.select(b.lt(d, rotary), turned, own))

    clear = _serial(
        "d",
        size(a.head_dim),
        lambda d: _page(a.cache.page_size, lambda t: Store(out, (d, t), b.const(0.0, f32))),
    )
    turn = _serial("t", valid, lambda t: _serial("d", size(a.head_dim), lambda d: element(d, t)))
    return seq(clear, turn)


def _page_step(ctx: Context, cache_node: Node, a: _Attention, j: Expr, length: Expr, sequence: Expr) -> Stmt:
    """Everything for page number ``j`` of the token's sequence."""
    page, f = a.cache.page_size, ctx.cache_field
    k_pages, v_pages = f(cache_node, "k_pages", a.layer), f(cache_node, "v_pages", a.layer)
    page_id, valid = Var("page"), Var("valid")
    s = Buffer("s", (a.group, page), f32, _score_space(page))
    p = Buffer("p", (a.group, page), f32, MemSpace.LOCAL)
    base = b.mul(j, page)
    prepare: list[Stmt] = []

    def keys(d: Expr, t: Expr) -> Expr:
        return b.cast(f32, Load(k_pages, (page_id, a.kv_head, d, t)))

    rotated = Buffer("k_rotated", (a.head_dim, page), f32, MemSpace.LOCAL)
    if a.cache.rope is RopeMode.INLINE:
        tables = (f(cache_node, "rope_cos"), f(cache_node, "rope_sin"))
        prepare.append(_rotated_keys(a, k_pages, page_id, base, valid, tables, rotated))

        def keys(d: Expr, t: Expr) -> Expr:
            return Load(rotated, (d, t))

    steps = seq(
        *prepare,
        _scores(a, keys, valid, s),
        _softmax_step(a, s, p),
        _weigh_values(a, v_pages, page_id, valid, p),
    )
    steps = Alloc(s, Alloc(p, steps))
    if prepare:
        steps = Alloc(rotated, steps)
    steps = Let(valid, b.minimum(b.const(page, i64), b.sub(length, base)), steps)
    return Let(page_id, b.cast(i64, Load(f(cache_node, "page_table"), (sequence, j))), steps)


def _load_queries(ctx: Context, cache_node: Node, a: _Attention, source: Access, scale: float) -> Stmt:
    """``q[g, d]`` in f32, scaled; rotated by the token's position in INLINE mode."""
    rotary = a.cache.rotary_dim if a.cache.rope is RopeMode.INLINE else 0

    def element(g: Expr, d: Expr) -> Expr:
        head = b.add(a.first_head, g)
        value = b.cast(f32, source((a.token, head, d)))
        if rotary:
            half = rotary // 2
            inside = b.minimum(d, b.const(rotary - 1, i64))
            position = b.cast(i64, Load(ctx.cache_field(cache_node, "positions"), (a.token,)))
            angle = (position, b.floormod(inside, half))
            partner = b.cast(f32, source((a.token, head, b.floormod(b.add(inside, half), rotary))))
            signed = b.select(b.lt(inside, half), b.neg(partner), partner)
            cos, sin = ctx.cache_field(cache_node, "rope_cos"), ctx.cache_field(cache_node, "rope_sin")
            turned = b.add(b.mul(value, Load(cos, angle)), b.mul(signed, Load(sin, angle)))
            value = b.select(b.lt(d, rotary), turned, value)
        return b.mul(value, b.const(scale, f32))

    def row(g: Expr) -> Stmt:
        if rotary:
            return _serial("d", size(a.head_dim), lambda d: Store(a.q, (g, d), element(g, d)))
        return _vector("d", a.head_dim, lambda d: Store(a.q, (g, d), element(g, d)))

    return _heads("g", a.group, row)


def _start(a: _Attention) -> Stmt:
    """The running softmax over no tokens."""
    zero = b.const(0.0, f32)

    def head(g: Expr) -> Stmt:
        clear = _vector("d", a.head_dim, lambda d: Store(a.o, (g, d), zero))
        return seq(Store(a.top, (g,), b.const(-inf, f32)), Store(a.total, (g,), zero), clear)

    return _heads("g", a.group, head)


@LOWERINGS.register("paged_attention")
def lower_paged_attention(ctx: Context, node: Node) -> Access:
    """Causal attention of each token over its sequence's pages; see the module docstring."""
    q, cache_node = node.inputs
    cache = cache_node.type
    assert isinstance(cache, CacheType)
    n, heads, head_dim = node.tensor.shape
    assert isinstance(heads, int)
    assert isinstance(head_dim, int)
    shared = heads // cache.num_kv_heads
    group = head_tile(shared)
    tiles = heads // group
    task = Var("task")
    tile = b.floormod(task, tiles)
    local = [
        Buffer("q_rows", (group, head_dim), f32, MemSpace.LOCAL),
        Buffer("o_rows", (group, head_dim), f32, MemSpace.LOCAL),
        Buffer("top", (group,), f32, MemSpace.REGISTER),
        Buffer("total", (group,), f32, MemSpace.REGISTER),
    ]
    token, kv_head = Var("token"), Var("kv_head")
    a = _Attention(cache, node.attrs["layer"], group, token, kv_head, b.mul(tile, group), *local)
    result = Buffer(ctx.unique("attention_buf"), node.tensor.shape, node.tensor.dtype)
    ctx.allocs.append(result)
    length, sequence = Var("length"), Var("sequence")
    num_pages = b.floordiv(b.add(length, cache.page_size - 1), cache.page_size)
    walk = _serial("j", num_pages, lambda j: _page_step(ctx, cache_node, a, j, length, sequence))

    def finish(g: Expr, d: Expr) -> Stmt:
        value = b.div(Load(a.o, (g, d)), Load(a.total, (g,)))
        return Store(result, (token, b.add(a.first_head, g), d), b.cast(node.tensor.dtype, value))

    write = _heads("g", group, lambda g: _vector("d", head_dim, lambda d: finish(g, d)))
    body = seq(_start(a), _load_queries(ctx, cache_node, a, ctx.access(q), node.attrs["scale"]), walk, write)
    for buffer in local:
        body = Alloc(buffer, body)
    positions, seq_ids = ctx.cache_field(cache_node, "positions"), ctx.cache_field(cache_node, "seq_ids")
    body = Let(sequence, b.cast(i64, Load(seq_ids, (token,))), body)
    body = Let(length, b.add(b.cast(i64, Load(positions, (token,))), 1), body)
    body = Let(kv_head, b.floordiv(b.mul(tile, group), shared), body)
    body = Let(token, b.floordiv(task, tiles), body)
    ctx.stages.append(For(task, b.mul(size(n), tiles), ForKind.PARALLEL, body))
    return lambda i: Load(result, i)
