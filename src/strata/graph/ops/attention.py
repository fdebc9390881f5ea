"""Ops on the paged KV cache: rotary embedding, append, attention, last tokens.

A cache operand is a ``CacheType`` value (``graph.cache_value.CacheValue`` here). Appending gives a new
cache value; later nodes that need the appended tokens take that one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from strata.core.dims import Dim
from strata.core.dtypes import DType, bf16, f16, f32, i8, i32
from strata.core.errors import ShapeError
from strata.graph.cache_value import CacheValue
from strata.graph.types import MAX_CONTEXT, NUM_SEQUENCES, CacheType, RopeMode, TensorType, Type

from .common import (
    DIM_TYPES,
    Attr,
    Attrs,
    OpDef,
    Pattern,
    Sample,
    Types,
    as_cache,
    as_tensor,
    check_shape,
    count,
    define_op,
    elements,
    is_float,
    np_dtype,
    round_to,
    t,
    want_dtype,
    widen,
)
from .reduce import softmax

# ---- rope ----


def _heads(op: str, name: str, type_: Type, cache: CacheType) -> TensorType:
    """``[n, heads, head_dim]`` of a float dtype."""
    x = as_tensor(op, type_, name)
    want_dtype(op, name, x, is_float, "a float dtype")
    if x.rank != 3 or x.shape[2] != cache.head_dim:
        raise ShapeError(f"{op}: {name} is {x}; expected [n, heads, {cache.head_dim}] (head_dim of {cache})")
    return x


def _rope_infer(types: Types, attrs: Attrs) -> Type:
    count("rope", types, ("x", "cache"))
    cache = as_cache("rope", types[1], "cache")
    if cache.rope is not RopeMode.NORMAL:
        raise ShapeError(
            f"rope: the cache has rope={cache.rope.value}; expected rope=normal (inline: attention rotates)"
        )
    return _heads("rope", "x", types[0], cache)


def _tokens(op: str, x: np.ndarray, cache: CacheValue) -> None:
    if len(x) != cache.num_tokens:
        raise ShapeError(f"{op}: got {len(x)} tokens; the cache's batch view has {cache.num_tokens}")


def _rope_reference(operands: Sequence[Any], attrs: Attrs) -> np.ndarray:
    x, cache = operands
    _tokens("rope", x, cache)
    return round_to(cache.rotate(widen(x).astype(np.float32), cache.positions), x.dtype)


def sample_cache(
    dtype: DType, past: Sequence[int], new: Sequence[int], *, seed: int = 5, **options: Any
) -> tuple[CacheType, CacheValue]:
    """A cache of 2 kv heads of 8 elements whose pages hold random numbers, with a ragged batch view."""
    defaults: dict[str, Any] = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 8, "page_size": 4}
    type_ = CacheType(**{**defaults, **options}, dtype=dtype)
    rng = np.random.default_rng(seed)
    longest = max(p + a for p, a in zip(past, new, strict=True))
    value = CacheValue.empty(type_, len(new) * -(-longest // type_.page_size) + 1, longest + 3)
    value.fill(rng)
    return type_, value.view(past, new)


_ROPE_NORMAL = {"rope": RopeMode.NORMAL, "rotary_dim": 8}
_BATCHES: list[tuple[list[int], list[int]]] = [
    ([0], [1]),
    ([0], [5]),
    ([3, 0, 9], [1, 1, 1]),
    ([7, 0], [2, 6]),
]


def _rope_samples() -> Iterator[Sample]:
    for past, new in _BATCHES:
        type_, cache = sample_cache(f32, past, new, **_ROPE_NORMAL)
        yield Sample((t(f32, sum(new), 3, 8), type_), {}, {1: cache})
    for dtype in (bf16, f16):
        type_, cache = sample_cache(dtype, [2], [3], **_ROPE_NORMAL)
        yield Sample((t(dtype, 3, 4, 8), type_), {}, {1: cache})
    type_, cache = sample_cache(f32, [2], [3], rope=RopeMode.NORMAL, rotary_dim=4)
    yield Sample((t(f32, 3, 2, 8), type_), {}, {1: cache})
    type_, cache = sample_cache(f32, [1], [2], rope=RopeMode.NORMAL, rotary_dim=6, head_dim=33)
    yield Sample((t(f32, 2, 1, 33), type_), {}, {1: cache})


define_op(
    OpDef(
        "rope",
        _rope_infer,
        _rope_reference,
        Pattern.INJECTIVE,
        samples=_rope_samples,
        flop=lambda types, attrs: 3 * elements(as_tensor("rope", types[0], "x")),
        doc="Heads x[n, H, D] rotated by their tokens' positions; element i pairs with i + rotary_dim/2.",
    )
)


# ---- kv_append ----


def _layer(op: str, attrs: Attrs, cache: CacheType) -> None:
    if not 0 <= attrs["layer"] < cache.num_layers:
        raise ShapeError(
            f"{op}: layer {attrs['layer']} is out of range; expected 0..{cache.num_layers - 1} of {cache}"
        )


def _append_infer(types: Types, attrs: Attrs) -> Type:
    count("kv_append", types, ("cache", "k", "v"))
    cache = as_cache("kv_append", types[0], "cache")
    _layer("kv_append", attrs, cache)
    k, v = (_heads("kv_append", name, x, cache) for name, x in zip("kv", types[1:], strict=True))
    if k.shape[1] != cache.num_kv_heads or v.shape != k.shape or v.dtype != k.dtype:
        raise ShapeError(
            f"kv_append: k is {k}, v is {v}; "
            f"expected both [n, {cache.num_kv_heads}, {cache.head_dim}] of one dtype"
        )
    return cache


def _append_reference(operands: Sequence[Any], attrs: Attrs) -> CacheValue:
    cache, k, v = operands
    _tokens("kv_append", k, cache)
    return cache.append(attrs["layer"], k, v)


def _append_samples() -> Iterator[Sample]:
    for past, new in _BATCHES:
        type_, cache = sample_cache(f32, past, new)
        yield Sample((type_, *[t(f32, sum(new), 2, 8)] * 2), {"layer": 1}, {0: cache})
    for cache_dtype, dtype in ((bf16, f32), (f16, f32), (bf16, bf16), (f16, f16), (i8, f32), (i8, bf16)):
        type_, cache = sample_cache(cache_dtype, [2], [3], page_size=1 + (dtype is bf16), num_layers=1)
        yield Sample((type_, *[t(dtype, 3, 2, 8)] * 2), {"layer": 0}, {0: cache})


define_op(
    OpDef(
        "kv_append",
        _append_infer,
        _append_reference,
        Pattern.OPAQUE,
        {"layer": Attr((int,), doc="attention layer")},
        _append_samples,
        lambda types, attrs: 0,
        "The cache with k, v [n, K, D] stored at this pass' slots of a layer, rounded to the cache's dtype; "
        "i8: each head of a token as codes -127 .. 127 and a scale, its largest element / 127.",
    )
)


# ---- paged_attention ----


def _attention_infer(types: Types, attrs: Attrs) -> Type:
    count("paged_attention", types, ("q", "cache"))
    cache = as_cache("paged_attention", types[1], "cache")
    _layer("paged_attention", attrs, cache)
    q = _heads("paged_attention", "q", types[0], cache)
    heads = q.shape[1]
    if not isinstance(heads, int) or heads < 1 or heads % cache.num_kv_heads:
        raise ShapeError(
            f"paged_attention: q {q} has {heads} heads; expected a multiple of the cache's kv heads "
            f"({cache.num_kv_heads})"
        )
    return q


def _attention_reference(operands: Sequence[Any], attrs: Attrs) -> np.ndarray:
    q, cache = operands
    _tokens("paged_attention", q, cache)
    inline = cache.type.rope is RopeMode.INLINE
    queries = widen(q).astype(np.float32)
    if inline:
        queries = cache.rotate(queries, cache.positions)
    queries = product_factors(queries, cache.type)
    group = q.shape[1] // cache.type.num_kv_heads
    out = np.empty(q.shape, np.float32)
    for token, (sequence, position) in enumerate(zip(cache.seq_ids, cache.positions, strict=True)):
        keys, values = cache.history(attrs["layer"], sequence, position + 1)
        if inline:
            keys = product_factors(cache.rotate(keys, np.arange(position + 1)), cache.type)
        keys, values = np.repeat(keys, group, axis=1), np.repeat(values, group, axis=1)  # [S, H, D]
        scores = np.float32(attrs["scale"]) * np.einsum("hd,shd->hs", queries[token], keys)
        out[token] = np.einsum("hs,shd->hd", softmax(scores), values)
    return round_to(out, q.dtype)


def product_factors(x: np.ndarray, cache: CacheType) -> np.ndarray:
    """f32 ``x`` as it is multiplied."""
    return widen(round_to(x, np_dtype(cache.product_dtype)))


def _attention_flop(types: Types, attrs: Attrs) -> Dim:
    """Upper bound: every token attends to the whole context (4 flop per element of q and position)."""
    return 4 * elements(as_tensor("paged_attention", types[0], "q")) * MAX_CONTEXT


def _attention_samples() -> Iterator[Sample]:
    for past, new in _BATCHES:
        type_, cache = sample_cache(f32, past, new)
        yield Sample((t(f32, sum(new), 4, 8), type_), {"layer": 1, "scale": 8**-0.5}, {1: cache})
    for cache_dtype, dtype in ((bf16, f32), (f16, f32), (bf16, bf16), (f16, f16), (i8, f32), (i8, bf16)):
        type_, cache = sample_cache(cache_dtype, [6, 1], [1, 3])
        yield Sample((t(dtype, 4, 6, 8), type_), {"layer": 0, "scale": 0.25}, {1: cache})
    type_, cache = sample_cache(f32, [5, 0], [1, 4], rope=RopeMode.INLINE, rotary_dim=8)
    yield Sample((t(f32, 5, 2, 8), type_), {"layer": 0, "scale": 8**-0.5}, {1: cache})
    type_, cache = sample_cache(f32, [5], [2], rope=RopeMode.INLINE, rotary_dim=4, page_size=3)
    yield Sample((t(f32, 2, 4, 8), type_), {"layer": 0, "scale": 8**-0.5}, {1: cache})
    type_, cache = sample_cache(f32, [40], [1], num_kv_heads=1, head_dim=33, page_size=16)
    yield Sample((t(f32, 1, 3, 33), type_), {"layer": 0, "scale": 33**-0.5}, {1: cache})
    loud = (50 * np.random.default_rng(6).standard_normal((3, 2, 8))).astype(np_dtype(f32))
    type_, cache = sample_cache(f32, [9], [3], page_size=1)
    yield Sample((t(f32, 3, 2, 8), type_), {"layer": 0, "scale": 1.0}, {0: loud, 1: cache})


define_op(
    OpDef(
        "paged_attention",
        _attention_infer,
        _attention_reference,
        Pattern.OPAQUE,
        {
            "layer": Attr((int,), doc="attention layer"),
            "scale": Attr((float,), doc="factor on the scores, usually head_dim ** -0.5"),
        },
        _attention_samples,
        _attention_flop,
        "Causal attention of q[n, H, D] over each token's cached sequence; head h uses kv head h // (H/K). "
        "Factors of products (q, k, weights, v) are rounded to bf16 if the cache is bf16 or i8.",
    )
)


# ---- last_tokens ----


def _last_infer(types: Types, attrs: Attrs) -> Type:
    count("last_tokens", types, ("x", "cache"))
    x = as_tensor("last_tokens", types[0], "x")
    as_cache("last_tokens", types[1], "cache")
    if x.rank == 0:
        raise ShapeError(f"last_tokens: x is {x}; expected [n, ...]")
    return TensorType((NUM_SEQUENCES, *x.shape[1:]), x.dtype)


def _last_reference(operands: Sequence[Any], attrs: Attrs) -> np.ndarray:
    x, cache = operands
    _tokens("last_tokens", x, cache)
    return x[cache.last_rows]


def _last_samples() -> Iterator[Sample]:
    for past, new in _BATCHES:
        for dtype in (f32, bf16):
            type_, cache = sample_cache(f32, past, new)
            yield Sample((t(dtype, sum(new), 17), type_), {}, {1: cache})
    type_, cache = sample_cache(f32, [0, 0], [2, 1])
    yield Sample((t(f32, 3, 2, 5), type_), {}, {1: cache})


define_op(
    OpDef(
        "last_tokens",
        _last_infer,
        _last_reference,
        Pattern.INJECTIVE,
        samples=_last_samples,
        flop=lambda types, attrs: 0,
        doc="Rows x[last_rows] of x[n, ...]: the last token of each sequence.",
    )
)


# ---- cache_positions ----


def _positions_infer(types: Types, attrs: Attrs) -> Type:
    count("cache_positions", types, ("cache",))
    as_cache("cache_positions", types[0], "cache")
    return TensorType(check_shape("cache_positions", (attrs["tokens"],)), i32)


def _positions_reference(operands: Sequence[Any], attrs: Attrs) -> np.ndarray:
    (cache,) = operands
    if attrs["tokens"] != cache.num_tokens:
        raise ShapeError(
            f"cache_positions: tokens is {attrs['tokens']}; the cache's batch view has {cache.num_tokens}"
        )
    return cache.positions


def _positions_samples() -> Iterator[Sample]:
    for past, new in _BATCHES:
        type_, cache = sample_cache(f32, past, new)
        yield Sample((type_,), {"tokens": sum(new)}, {0: cache})


define_op(
    OpDef(
        "cache_positions",
        _positions_infer,
        _positions_reference,
        Pattern.OPAQUE,
        {"tokens": Attr(DIM_TYPES, doc="tokens n of this pass")},
        _positions_samples,
        lambda types, attrs: 0,
        "Position of each token of this pass in its sequence: i32 [n], for learned position embeddings.",
    )
)


# ---- create_kv_cache ----


def _create_infer(types: Types, attrs: Attrs) -> Type:
    count("create_kv_cache", types, ())
    if attrs["num_pages"] < 1 or attrs["max_context"] < 1:
        raise ShapeError(
            f"create_kv_cache: num_pages is {attrs['num_pages']}, max_context is {attrs['max_context']}; "
            "expected at least 1"
        )
    return attrs["type"]


def _create_reference(operands: Sequence[Any], attrs: Attrs) -> CacheValue:
    type_: CacheType = attrs["type"]
    half = type_.rotary_dim // 2
    inv_freq = attrs["rope_theta"] ** (-np.arange(half) / max(half, 1))
    return CacheValue.empty(type_, attrs["num_pages"], attrs["max_context"], inv_freq=inv_freq)


def _create_samples() -> Iterator[Sample]:
    type_ = CacheType(2, 1, 4, f16, 8, RopeMode.NORMAL, 4)
    yield Sample((), {"type": type_, "num_pages": 3, "max_context": 24})


define_op(
    OpDef(
        "create_kv_cache",
        _create_infer,
        _create_reference,
        Pattern.OPAQUE,
        {
            "type": Attr((CacheType,), doc="type of the cache"),
            "num_pages": Attr((int,), 1, "pages in the pool"),
            "max_context": Attr((int,), 1, "rows of the rotary tables"),
            "rope_theta": Attr(
                (float,), 10000.0, "rotary base: inverse frequency i is theta ** (-2i/rotary_dim)"
            ),
        },
        _create_samples,
        lambda types, attrs: 0,
        "A new, empty KV cache.",
    )
)
