"""Functions that build nodes: what front ends and passes call.

One function per op, named like the op (so ``sum``, ``max``, ``abs``, ``slice``, ``input`` hide builtins:
import the module, not names). Operands are nodes; where an elementwise op takes two, one of them may be a
Python number, a NumPy scalar or an array, which becomes a ``const`` of the other operand's dtype. Negative
axes are counted from the right and stored normalised. Every function takes ``name=`` for the node's origin
and raises ``ShapeError`` as the op's type rule says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from strata.core.dims import Dim, exact_div, product
from strata.core.dtypes import DType, dtype
from strata.core.errors import ShapeError, UserError

from .nodes import Function, Node, make_node
from .ops.common import normal_axes, normal_axis
from .ops.leaf import make_array
from .types import CacheType, TensorType, Type

Operand = Node | bool | int | float | np.ndarray | np.generic


# ---- leaves ----


def input(name: str, type_: Type) -> Node:
    """An argument of the function."""
    return make_node("input", (), name, type=type_)


def param(name: str, type_: TensorType) -> Node:
    """A weight of the module."""
    return make_node("param", (), name, type=type_)


def tensor_type(shape: Sequence[Dim], dtype_: DType | str) -> TensorType:
    """A tensor type from a shape and a dtype or its name."""
    return TensorType(tuple(shape), dtype(dtype_))


def const(value: Any, dtype_: DType | str | None = None, *, name: str = "") -> Node:
    """A stored array. Lone Python floats become f32, ints i64, unless ``dtype_`` says otherwise."""
    return make_node("const", (), name, value=make_array(value, dtype_))


def as_node(value: Operand, like: Node | None = None) -> Node:
    """``value`` as a node; a number or array becomes a ``const`` of the dtype of ``like``.

    Raises:
        UserError: ``value`` is neither a node nor a number or array.
    """
    if isinstance(value, Node):
        return value
    if not isinstance(value, bool | int | float | np.ndarray | np.generic):
        raise UserError(
            f"operand: got {value!r} ({type(value).__name__}); expected a node, a number or an array"
        )
    return const(value, like.tensor.dtype if like is not None else None)


# ---- elementwise ----


def _binary(op: str, a: Operand, b: Operand, name: str) -> Node:
    left = as_node(a, b if isinstance(b, Node) else None)
    return make_node(op, (left, as_node(b, left)), name)


def add(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a + b``."""
    return _binary("add", a, b, name)


def sub(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a - b``."""
    return _binary("sub", a, b, name)


def mul(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a * b``."""
    return _binary("mul", a, b, name)


def div(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a / b`` of floats."""
    return _binary("div", a, b, name)


def maximum(a: Operand, b: Operand, *, name: str = "") -> Node:
    """The larger of ``a`` and ``b``, elementwise."""
    return _binary("maximum", a, b, name)


def minimum(a: Operand, b: Operand, *, name: str = "") -> Node:
    """The smaller of ``a`` and ``b``, elementwise."""
    return _binary("minimum", a, b, name)


def power(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a ** b`` of floats."""
    return _binary("power", a, b, name)


def equal(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a == b`` as bool."""
    return _binary("equal", a, b, name)


def not_equal(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a != b`` as bool."""
    return _binary("not_equal", a, b, name)


def less(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a < b`` as bool."""
    return _binary("less", a, b, name)


def less_equal(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a <= b`` as bool."""
    return _binary("less_equal", a, b, name)


def greater(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a > b`` as bool."""
    return _binary("greater", a, b, name)


def greater_equal(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a >= b`` as bool."""
    return _binary("greater_equal", a, b, name)


def logical_and(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a and b`` of bools."""
    return _binary("logical_and", a, b, name)


def logical_or(a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a or b`` of bools."""
    return _binary("logical_or", a, b, name)


def where(cond: Node, a: Operand, b: Operand, *, name: str = "") -> Node:
    """``a`` where ``cond`` else ``b``."""
    left = as_node(a, b if isinstance(b, Node) else None)
    return make_node("where", (cond, left, as_node(b, left)), name)


def neg(x: Node, *, name: str = "") -> Node:
    """``-x``."""
    return make_node("neg", (x,), name)


def exp(x: Node, *, name: str = "") -> Node:
    """``e ** x``."""
    return make_node("exp", (x,), name)


def log(x: Node, *, name: str = "") -> Node:
    """Natural logarithm."""
    return make_node("log", (x,), name)


def sqrt(x: Node, *, name: str = "") -> Node:
    """Square root."""
    return make_node("sqrt", (x,), name)


def rsqrt(x: Node, *, name: str = "") -> Node:
    """``1 / sqrt(x)``."""
    return make_node("rsqrt", (x,), name)


def tanh(x: Node, *, name: str = "") -> Node:
    """Hyperbolic tangent."""
    return make_node("tanh", (x,), name)


def erf(x: Node, *, name: str = "") -> Node:
    """Error function."""
    return make_node("erf", (x,), name)


def sigmoid(x: Node, *, name: str = "") -> Node:
    """``1 / (1 + exp(-x))``."""
    return make_node("sigmoid", (x,), name)


def silu(x: Node, *, name: str = "") -> Node:
    """``x * sigmoid(x)``."""
    return make_node("silu", (x,), name)


def gelu(x: Node, *, approximate: str = "none", name: str = "") -> Node:
    """Gaussian error linear unit; ``approximate`` is ``"none"`` (erf) or ``"tanh"``."""
    return make_node("gelu", (x,), name, approximate=approximate)


def relu(x: Node, *, name: str = "") -> Node:
    """``max(x, 0)``."""
    return make_node("relu", (x,), name)


def abs(x: Node, *, name: str = "") -> Node:
    """Absolute value."""
    return make_node("abs", (x,), name)


def sin(x: Node, *, name: str = "") -> Node:
    """Sine of radians."""
    return make_node("sin", (x,), name)


def cos(x: Node, *, name: str = "") -> Node:
    """Cosine of radians."""
    return make_node("cos", (x,), name)


def floor(x: Node, *, name: str = "") -> Node:
    """Largest integer not above ``x``, as a float."""
    return make_node("floor", (x,), name)


def logical_not(x: Node, *, name: str = "") -> Node:
    """``not x`` of bools."""
    return make_node("logical_not", (x,), name)


def cast(x: Node, dtype_: DType | str, *, name: str = "") -> Node:
    """``x`` as ``dtype_``; ``x`` itself if it has that dtype."""
    target = dtype(dtype_)
    return x if x.tensor.dtype == target else make_node("cast", (x,), name, dtype=target)


# ---- shape ----


def reshape(x: Node, shape: Sequence[Dim], *, name: str = "") -> Node:
    """The same elements under another shape; one entry may be -1 (what remains).

    Raises:
        ShapeError: two entries are -1, or the other dims do not divide the number of elements.
    """
    dims = tuple(shape)
    holes = [i for i, d in enumerate(dims) if isinstance(d, int) and d == -1]
    if holes:
        others = product(d for i, d in enumerate(dims) if i != holes[0])
        rest = exact_div(product(x.tensor.shape), others) if len(holes) == 1 and others != 0 else None
        if rest is None:
            raise ShapeError(
                f"reshape: shape {dims} for x {x.type}: -1 must occur once and have one exact value"
            )
        dims = (*dims[: holes[0]], rest, *dims[holes[0] + 1 :])
    return x if dims == x.tensor.shape else make_node("reshape", (x,), name, shape=dims)


def view(x: Node, shape: Sequence[Dim], *, name: str = "") -> Node:
    """The memory of ``x`` under another shape; see the op."""
    return make_node("view", (x,), name, shape=tuple(shape))


def permute_dims(x: Node, axes: Sequence[int] | None = None, *, name: str = "") -> Node:
    """Axes reordered: result axis i is axis ``axes[i]`` of ``x``; default: reversed."""
    rank = x.tensor.rank
    order = range(rank - 1, -1, -1) if axes is None else normal_axes("permute_dims", axes, rank)
    return make_node("permute_dims", (x,), name, axes=tuple(order))


def slice(x: Node, axis: int, begin: Dim, end: Dim, *, name: str = "") -> Node:
    """Indices ``begin .. end-1`` of one axis."""
    return make_node(
        "slice", (x,), name, axis=normal_axis("slice", axis, x.tensor.rank), begin=begin, end=end
    )


def split(x: Node, sections: int | Sequence[Dim], axis: int = -1, *, name: str = "") -> list[Node]:
    """``x`` cut along ``axis``: into ``sections`` equal parts, or parts of the sizes in ``sections``.

    Raises:
        ShapeError: the parts do not add up to the axis.
    """
    at = normal_axis("split", axis, x.tensor.rank)
    extent = x.tensor.shape[at]
    if isinstance(sections, int):
        part = exact_div(extent, sections) if sections > 0 else None
        sizes: Sequence[Dim] = [] if part is None else [part] * sections
    else:
        sizes = sections
    total: Dim = 0
    parts: list[Node] = []
    bounds: list[tuple[Dim, Dim]] = []
    for size in sizes:
        bounds.append((total, total + size))
        total = total + size
    if not sizes or total != extent:
        raise ShapeError(f"split: x {x.type} axis {at} (extent {extent}) does not split into {sections}")
    for begin, end in bounds:
        parts.append(slice(x, at, begin, end, name=name))
    return parts


def concat(xs: Sequence[Node], axis: int = -1, *, name: str = "") -> Node:
    """``xs`` one after another along ``axis``."""
    if xs:
        axis = normal_axis("concat", axis, xs[0].tensor.rank)
    return make_node("concat", xs, name, axis=axis)


def broadcast_to(x: Node, shape: Sequence[Dim], *, name: str = "") -> Node:
    """``x`` repeated along dims of extent 1 and new leading dims."""
    return make_node("broadcast_to", (x,), name, shape=tuple(shape))


def take(table: Node, indices: Node, axis: int = 0, *, name: str = "") -> Node:
    """Rows of ``table`` by index (i32 or i64)."""
    return make_node("take", (table, indices), name, axis=normal_axis("take", axis, table.tensor.rank))


# ---- reduce ----


def _reduce(op: str, x: Node, axes: int | Sequence[int] | None, keepdims: bool, name: str) -> Node:
    rank = x.tensor.rank
    chosen = range(rank) if axes is None else (axes,) if isinstance(axes, int) else axes
    return make_node(op, (x,), name, axes=normal_axes(op, tuple(chosen), rank), keepdims=keepdims)


def sum(x: Node, axes: int | Sequence[int] | None = None, *, keepdims: bool = False, name: str = "") -> Node:
    """Sum over ``axes`` (default: all)."""
    return _reduce("sum", x, axes, keepdims, name)


def mean(x: Node, axes: int | Sequence[int] | None = None, *, keepdims: bool = False, name: str = "") -> Node:
    """Mean over ``axes`` (default: all)."""
    return _reduce("mean", x, axes, keepdims, name)


def max(x: Node, axes: int | Sequence[int] | None = None, *, keepdims: bool = False, name: str = "") -> Node:
    """Largest element over ``axes`` (default: all)."""
    return _reduce("max", x, axes, keepdims, name)


def argmax(x: Node, axis: int = -1, *, name: str = "") -> Node:
    """Position of the largest element along ``axis``, i32: the first of equal ones; the first NaN wins."""
    return make_node("argmax", (x,), name, axis=normal_axis("argmax", axis, x.tensor.rank))


def softmax(x: Node, axis: int = -1, *, name: str = "") -> Node:
    """Softmax along ``axis``."""
    return make_node("softmax", (x,), name, axis=normal_axis("softmax", axis, x.tensor.rank))


def rms_norm(x: Node, weight: Node, *, eps: float = 1e-5, name: str = "") -> Node:
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis."""
    return make_node("rms_norm", (x, weight), name, eps=eps)


def layer_norm(x: Node, weight: Node, bias: Node, *, eps: float = 1e-5, name: str = "") -> Node:
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis."""
    return make_node("layer_norm", (x, weight, bias), name, eps=eps)


# ---- matmul, quantised weights, tensor_expr, fused ----


def matmul(
    a: Node, b: Node, *, transpose_b: bool = False, out_dtype: DType | str | None = None, name: str = ""
) -> Node:
    """``a[..., M, K] @ b[..., K, N]`` (``b[..., N, K]`` with ``transpose_b``), rounded to ``out_dtype``."""
    out = None if out_dtype is None else dtype(out_dtype)
    return make_node("matmul", (a, b), name, transpose_b=transpose_b, out_dtype=out)


def dequantize(
    codes: Node,
    scales: Node,
    zeros: Node | None = None,
    *,
    zero: int = 8,
    dtype_: DType | str = "f32",
    name: str = "",
) -> Node:
    """``(codes - zero) * scales`` of a weight ``[N, K]`` with scales (and zeros) ``[N, groups]``."""
    weight = (codes, scales) if zeros is None else (codes, scales, zeros)
    return make_node("dequantize", weight, name, zero=zero, dtype=dtype(dtype_))


def quantized_matmul(
    a: Node,
    codes: Node,
    scales: Node,
    zeros: Node | None = None,
    *,
    zero: int = 8,
    group: int = 32,
    powers: bool = False,
    activations: DType | str = "i8",
    out_dtype: DType | str | None = None,
    name: str = "",
) -> Node:
    """``a[M, K]``, rounded to int8 in groups or to bf16, times the transpose of a quantised weight."""
    weight = (codes, scales) if zeros is None else (codes, scales, zeros)
    out = None if out_dtype is None else dtype(out_dtype)
    attrs: dict[str, Any] = {"zero": zero, "group": group, "powers": powers}
    attrs |= {"activations": dtype(activations), "out_dtype": out}
    return make_node("quantized_matmul", (a, *weight), name, **attrs)


def tensor_expr(
    inputs: Sequence[Node], formula: str, shape: Sequence[Dim], dtype_: DType | str, *, name: str = ""
) -> Node:
    """An op given by an index formula; grammar in ``graph.ops.formula``."""
    return make_node("tensor_expr", inputs, name, formula=formula, shape=tuple(shape), dtype=dtype(dtype_))


def fused(inputs: Sequence[Node], body: Function, layer: int = 0, *, name: str = "") -> Node:
    """A call of ``body`` as one launch; ``layer`` is added to the layer of the cache ops in it."""
    return make_node("fused", inputs, name, body=body, layer=layer)


# ---- KV cache ----


def rope(x: Node, cache: Node, *, name: str = "") -> Node:
    """Heads ``x[n, H, D]`` rotated by their tokens' positions (cache with rope=normal)."""
    return make_node("rope", (x, cache), name)


def kv_append(cache: Node, k: Node, v: Node, layer: int, *, name: str = "") -> Node:
    """The cache with ``k``, ``v`` ``[n, K, D]`` stored in ``layer``."""
    return make_node("kv_append", (cache, k, v), name, layer=layer)


def paged_attention(q: Node, cache: Node, layer: int, scale: float, *, name: str = "") -> Node:
    """Causal attention of ``q[n, H, D]`` over the cached tokens of ``layer``."""
    return make_node("paged_attention", (q, cache), name, layer=layer, scale=scale)


def last_tokens(x: Node, cache: Node, *, name: str = "") -> Node:
    """Rows of ``x[n, ...]`` that are the last token of each sequence: ``[num_seqs, ...]``."""
    return make_node("last_tokens", (x, cache), name)


def cache_positions(cache: Node, tokens: Dim, *, name: str = "") -> Node:
    """Positions i32 ``[tokens]`` of this pass' tokens in their sequences."""
    return make_node("cache_positions", (cache,), name, tokens=tokens)


def create_kv_cache(
    type_: CacheType,
    *,
    num_pages: int = 1,
    max_context: int = 1,
    rope_theta: float = 10000.0,
    name: str = "",
) -> Node:
    """A new, empty KV cache of ``num_pages`` pages and rotary tables of ``max_context`` rows."""
    return make_node(
        "create_kv_cache",
        (),
        name,
        type=type_,
        num_pages=num_pages,
        max_context=max_context,
        rope_theta=rope_theta,
    )
