"""Lowering of the small KV-cache ops: rotary embedding, positions, last tokens, append."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from strata.core.dtypes import f32, i64
from strata.graph.nodes import Node
from strata.graph.types import CacheType
from strata.loop import build as b
from strata.loop.nodes import Buffer, Expr, Load
from strata.lower.context import LOWERINGS, Access, Context, Index, widened


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
    """Store every token's K and V at its slot, in the order of a page; the result is the cache."""
    cache, k, v = node.inputs
    assert isinstance(cache.type, CacheType)
    slots = ctx.cache_field(cache, "slots")
    page, pack = cache.type.page_size, cache.type.pack

    def place(field: str) -> Callable[[Index], tuple[Buffer, Index]]:
        pages = ctx.cache_field(cache, field, node.attrs["layer"])

        def into(i: Index) -> tuple[Buffer, Index]:
            t, h, d = i
            slot = b.cast(i64, Load(slots, (t,)))
            offset = b.floormod(slot, page)
            outer, inner = (d, offset) if field == "k_pages" else (offset, d)
            return pages, (b.floordiv(slot, page), h, *packed(outer, inner, pack))

        return into

    for field, operand in (("k_pages", k), ("v_pages", v)):
        source = ctx.access(operand)
        if cache.type.is_scaled:
            source = _coded(ctx, node, field[0], widened(source))

        def value(i: Index, source: Access = source) -> Expr:
            return b.cast(cache.type.dtype, source(i))  # type: ignore[union-attr]

        ctx.stage("append_" + field[0], operand.tensor.shape, cache.type.dtype, value, place(field))


def _coded(ctx: Context, node: Node, letter: str, source: Access) -> Access:
    """Stages that store the scales of the heads of k or v; codes, as f32, of their elements.

    See ``graph.cache_value.codes``.
    """
    cache, operand = node.inputs[0], node.inputs[1]
    assert isinstance(cache.type, CacheType)
    n, heads, head_dim = operand.tensor.shape
    slots = ctx.cache_field(cache, "slots")
    scales = ctx.cache_field(cache, letter + "_scales", node.attrs["layer"])
    page, zero = cache.type.page_size, b.const(0.0, f32)
    largest = ctx.reduce(
        "largest_" + letter, (n, heads), f32, (head_dim,), zero, b.maximum,
        lambda i, k: b.abs_(source((*i, *k))),
    )  # fmt: skip

    def into(i: Index) -> tuple[Buffer, Index]:
        slot = b.cast(i64, Load(slots, (i[0],)))
        return scales, (b.floordiv(slot, page), i[1], b.floormod(slot, page))

    inverse = b.const(float(np.float32(1 / 127)), f32)
    ctx.stage("scale_" + letter, (n, heads), f32, lambda i: b.mul(largest(i), inverse), into)

    def code(i: Index) -> Expr:
        most = largest(i[:2])
        factor = b.select(b.gt(most, zero), b.div(b.const(127.0, f32), most), zero)
        limit = b.const(127.0, f32)
        return b.maximum(b.minimum(b.round_(b.mul(source(i), factor)), limit), b.neg(limit))

    return code


def packed(outer: Expr, inner: Expr, pack: int) -> tuple[Expr, Expr]:
    """Where element ``[outer, inner]`` of a page is: ``pack`` of the outer dim lie side by side."""
    if pack == 1:
        return outer, inner
    return b.floordiv(outer, pack), b.add(b.mul(inner, pack), b.floormod(outer, pack))
