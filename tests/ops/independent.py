"""Every graph op once more, written independently of the references: torch in float64, or plain Python loops.

``RESULTS[op](operands, attrs)`` takes float64, int64 or bool tensors (caches stay ``CacheValue``) and gives
a tensor or array before rounding to the result dtype.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from strata.graph.types import RopeMode


def _unary(function: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return lambda x, attrs: function(x[0])


def _binary(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Any:
    return lambda x, attrs: function(x[0], x[1])


def _matmul(x: list[torch.Tensor], attrs: Any) -> torch.Tensor:
    return x[0] @ (x[1].transpose(-1, -2) if attrs["transpose_b"] else x[1])


def _slice(x: list[torch.Tensor], attrs: Any) -> torch.Tensor:
    return x[0].narrow(attrs["axis"], attrs["begin"], attrs["end"] - attrs["begin"])


def _take(x: list[torch.Tensor], attrs: Any) -> torch.Tensor:
    axis, (table, indices) = attrs["axis"], x
    picked = torch.index_select(table, axis, indices.reshape(-1))
    return picked.reshape((*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :]))


def _reduce(function: Callable[..., torch.Tensor]) -> Any:
    def run(x: list[torch.Tensor], attrs: Any) -> torch.Tensor:
        axes = attrs["axes"]
        return function(x[0], axes, attrs["keepdims"]) if axes else x[0]

    return run


def _rms_norm(x: list[torch.Tensor], attrs: Any) -> torch.Tensor:
    return torch.nn.functional.rms_norm(x[0], x[1].shape, x[1], attrs["eps"])


def _layer_norm(x: list[torch.Tensor], attrs: Any) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x[0], x[1].shape, x[1], x[2], attrs["eps"])


def turn(head: list[float], position: int, cache: Any) -> list[float]:
    """One head rotated by the angle table of its position, element by element."""
    half = cache.type.rotary_dim // 2
    out = list(head)
    for i in range(half):
        c, s = float(cache.rope_cos[position, i]), float(cache.rope_sin[position, i])
        out[i] = head[i] * c - head[i + half] * s
        out[i + half] = head[i + half] * c + head[i] * s
    return out


def _rope(x: list[Any], attrs: Any) -> Any:
    heads, cache = x
    rows = zip(heads.tolist(), cache.positions.tolist(), strict=True)
    return np.array([[turn(head, position, cache) for head in row] for row, position in rows])


def _kv_append(x: list[Any], attrs: Any) -> Any:
    cache, k, v = x
    layer, size = attrs["layer"], cache.type.page_size
    fields = (cache.k_pages, cache.v_pages, cache.k_scales, cache.v_scales)
    new = [x[layer].copy() for x in fields if x]
    for token, slot in enumerate(cache.slots.tolist()):
        page, t = divmod(slot, size)
        for head in range(cache.type.num_kv_heads):
            for which, values in enumerate((k[token, head].tolist(), v[token, head].tolist())):
                stored: list[Any] = values
                if cache.type.dtype.name == "i8":
                    stored, new[2 + which][page, head, t] = coded(values)
                for i, value in enumerate(stored):
                    at = packed(t, i, cache.type) if which else packed(i, t, cache.type)
                    new[which][page, head, *at] = value
    return new


def coded(values: list[float]) -> tuple[list[int], np.float32]:
    """Codes of one head, and their scale, in f32 arithmetic."""
    x = np.array(values, np.float32)
    largest = max(abs(e) for e in x)
    factor = np.float32(127) / largest if largest > 0 else np.float32(0)
    return [round(float(e * factor)) for e in x], largest * np.float32(1 / 127)


def packed(outer: int, inner: int, type_: Any) -> tuple[int, int]:
    """Where element ``[outer, inner]`` of a page is stored: in bf16 the outer dim comes in pairs."""
    pairs = type_.dtype.name in ("bf16", "i8") and type_.head_dim % 2 == 0 and type_.page_size % 2 == 0
    return (outer // 2, 2 * inner + outer % 2) if pairs else (outer, inner)


def _attend(
    query: list[float], position: int, token: int, kv_head: int, cache: Any, attrs: Any
) -> list[float]:
    size, layer = cache.type.page_size, attrs["layer"]
    scores: list[float] = []
    values: list[list[float]] = []
    for p in range(position + 1):
        page = cache.page_table[cache.seq_ids[token], p // size]
        k, v = (pages[layer][page, kv_head].astype(np.float64) for pages in (cache.k_pages, cache.v_pages))
        if cache.type.dtype.name == "i8":
            at = (page, kv_head, p % size)
            k, v = k * float(cache.k_scales[layer][at]), v * float(cache.v_scales[layer][at])
        key = [k[packed(i, p % size, cache.type)] for i in range(cache.type.head_dim)]
        if cache.type.rope is RopeMode.INLINE:
            key = turn(key, p, cache)
        scores.append(attrs["scale"] * sum(a * b for a, b in zip(query, key, strict=True)))
        values.append([v[packed(p % size, i, cache.type)] for i in range(cache.type.head_dim)])
    weights = [math.exp(s - max(scores)) for s in scores]
    columns = zip(*values, strict=True)
    return [sum(w * v for w, v in zip(weights, column, strict=True)) / sum(weights) for column in columns]


def _dequantize(x: list[Any], attrs: Any) -> Any:
    codes, scales, *zeros = (a.tolist() for a in x)
    group = len(codes[0]) // len(scales[0])

    def value(n: int, k: int) -> float:
        g = k // group
        return (codes[n][k] - (zeros[0][n][g] if zeros else attrs["zero"])) * scales[n][g]

    return np.array([[value(n, k) for k in range(len(codes[0]))] for n in range(len(codes))])


def _quantized_matmul(x: list[Any], attrs: Any) -> Any:
    """Activations as the nearest of 255 multiples of a group's largest magnitude / 127, one by one.

    With ``powers``, of the row's largest magnitude / 127, halved as often as the group's codes allow, at most
    20 times; with ``activations=bf16``, both operands as the nearest bf16.
    """
    a, *weight = x
    w, group = _dequantize(weight, attrs), attrs["group"]
    if attrs["activations"].name == "bf16":
        left, right = (torch.as_tensor(v).to(torch.float32).to(torch.bfloat16) for v in (a, w))
        return left.double() @ right.double().T
    rounded = np.zeros(a.shape)
    for m, row in enumerate(a.numpy().astype(np.float32)):
        of_row = np.abs(row).max()
        for first in range(0, len(row), group):
            part = row[first : first + group]
            top = np.abs(part).max()
            if attrs["powers"]:
                fits = [k for k in range(21) if float(top) <= float(of_row) / 2**k]
                top = of_row / np.float32(2 ** fits[-1])
            if (of_row if attrs["powers"] else top) >= 2.0**-100:
                inverse = np.float32(127) / top
                codes = [round(float(np.float32(v * inverse))) for v in part]  # ties to even
                rounded[m, first : first + group] = np.array(codes) * (float(top) / 127)
    return rounded @ w.T


def _attention(x: list[Any], attrs: Any) -> Any:
    queries, cache = x
    group = queries.shape[1] // cache.type.num_kv_heads
    out = []
    for token, (row, position) in enumerate(zip(queries.tolist(), cache.positions.tolist(), strict=True)):
        turned = [turn(q, position, cache) if cache.type.rope is RopeMode.INLINE else q for q in row]
        out.append([_attend(q, position, token, h // group, cache, attrs) for h, q in enumerate(turned)])
    return np.array(out)


RESULTS: dict[str, Callable[[list[Any], Any], Any]] = {
    "add": _binary(torch.add),
    "sub": _binary(torch.sub),
    "mul": _binary(torch.mul),
    "div": _binary(torch.div),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "power": _binary(torch.pow),
    "equal": _binary(torch.eq),
    "not_equal": _binary(torch.ne),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "where": lambda x, attrs: torch.where(x[0], x[1], x[2]),
    "neg": _unary(torch.neg),
    "exp": _unary(torch.exp),
    "log": _unary(torch.log),
    "sqrt": _unary(torch.sqrt),
    "rsqrt": _unary(torch.rsqrt),
    "tanh": _unary(torch.tanh),
    "erf": _unary(torch.erf),
    "sigmoid": _unary(torch.sigmoid),
    "silu": _unary(torch.nn.functional.silu),
    "gelu": lambda x, attrs: torch.nn.functional.gelu(x[0], approximate=attrs["approximate"]),
    "relu": _unary(torch.relu),
    "abs": _unary(torch.abs),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "floor": _unary(torch.floor),
    "logical_not": _unary(torch.logical_not),
    "reshape": lambda x, attrs: x[0].reshape(attrs["shape"]),
    "view": lambda x, attrs: x[0].view(attrs["shape"]),
    "permute_dims": lambda x, attrs: x[0].permute(attrs["axes"]),
    "slice": _slice,
    "concat": lambda x, attrs: torch.cat(x, dim=attrs["axis"]),
    "broadcast_to": lambda x, attrs: x[0].expand(attrs["shape"]),
    "take": _take,
    "sum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "mean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "max": _reduce(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "argmax": lambda x, attrs: x[0].argmax(attrs["axis"]).to(torch.int32),
    "softmax": lambda x, attrs: torch.softmax(x[0], attrs["axis"]),
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "matmul": _matmul,
    "dequantize": _dequantize,
    "quantized_matmul": _quantized_matmul,
    "rope": _rope,
    "kv_append": _kv_append,
    "paged_attention": _attention,
    "last_tokens": lambda x, attrs: torch.stack([x[0][row] for row in x[1].last_rows.tolist()]),
    "cache_positions": lambda x, attrs: x[0].positions,
}
