"""Operations on traced tensors, under the names that PyTorch, NumPy or the array API give them.

Each function adds one node (or a few) to the graph and returns its result. Python numbers are accepted
beside a tensor and take its dtype. Errors begin with the path of the module being called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import EllipsisType

import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16)
import numpy as np

from strata.core.dims import Dim, exact_div, product
from strata.core.dtypes import DType, f32
from strata.core.dtypes import dtype as _dtype
from strata.core.errors import ShapeError
from strata.graph.nodes import AttrValue

from . import trace
from .formula import formula_of
from .tensor import Index, Operand, Scalar, Tensor

_slice = slice  # the type, where the op of that name hides it


def _emit(name: str, *inputs: Tensor, **attrs: AttrValue) -> Tensor:
    return Tensor(trace.emit(name, tuple(x.node for x in inputs), **attrs))


def _tensor(value: Operand, like: Tensor) -> Tensor:
    """``value`` as a tensor; a number becomes a 0-d constant of the dtype of ``like``."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, int | float) or (isinstance(value, float) and not like.dtype.is_float):
        raise trace.fail(
            ShapeError, f"got {value!r} beside {like}; expected a tensor or a number that {like.dtype} holds"
        )
    return full((), value, like.dtype)


def _binary(name: str, a: Operand, b: Operand) -> Tensor:
    like = a if isinstance(a, Tensor) else b
    if not isinstance(like, Tensor):
        raise trace.fail(ShapeError, f"{name}: got {a!r} and {b!r}; expected at least one tensor")
    return _emit(name, _tensor(a, like), _tensor(b, like))


def _axis(name: str, x: Tensor, axis: int) -> int:
    if not -x.ndim <= axis < x.ndim:
        raise trace.fail(ShapeError, f"{name}: got axis {axis}; expected {-x.ndim}..{x.ndim - 1} for {x}")
    return axis % x.ndim


# --- constants ------------------------------------------------------------------------------------


def full(shape: Sequence[int], value: Scalar, dtype: DType | str = f32) -> Tensor:
    """A constant tensor, stored in the graph; for large ones broadcast a 0-d constant."""
    array = np.full(tuple(shape), value, np.dtype(_dtype(dtype).numpy_name))
    array.setflags(write=False)
    return Tensor(trace.emit("const", (), value=array))


def zeros(shape: Sequence[int], dtype: DType | str = f32) -> Tensor:
    """A constant tensor of zeros."""
    return full(shape, 0, dtype)


def ones(shape: Sequence[int], dtype: DType | str = f32) -> Tensor:
    """A constant tensor of ones."""
    return full(shape, 1, dtype)


# --- elementwise ----------------------------------------------------------------------------------


def add(a: Operand, b: Operand) -> Tensor:
    """``a + b`` with broadcasting."""
    return _binary("add", a, b)


def subtract(a: Operand, b: Operand) -> Tensor:
    """``a - b`` with broadcasting."""
    return _binary("sub", a, b)


def multiply(a: Operand, b: Operand) -> Tensor:
    """``a * b`` with broadcasting."""
    return _binary("mul", a, b)


def divide(a: Operand, b: Operand) -> Tensor:
    """``a / b`` with broadcasting (floats)."""
    return _binary("div", a, b)


def power(a: Operand, b: Operand) -> Tensor:
    """``a ** b`` with broadcasting (floats)."""
    return _binary("power", a, b)


def maximum(a: Operand, b: Operand) -> Tensor:
    """The larger of ``a`` and ``b`` with broadcasting."""
    return _binary("maximum", a, b)


def minimum(a: Operand, b: Operand) -> Tensor:
    """The smaller of ``a`` and ``b`` with broadcasting."""
    return _binary("minimum", a, b)


def equal(a: Operand, b: Operand) -> Tensor:
    """``a == b`` as bool, with broadcasting."""
    return _binary("equal", a, b)


def not_equal(a: Operand, b: Operand) -> Tensor:
    """``a != b`` as bool, with broadcasting."""
    return _binary("not_equal", a, b)


def less(a: Operand, b: Operand) -> Tensor:
    """``a < b`` as bool, with broadcasting."""
    return _binary("less", a, b)


def less_equal(a: Operand, b: Operand) -> Tensor:
    """``a <= b`` as bool, with broadcasting."""
    return _binary("less_equal", a, b)


def greater(a: Operand, b: Operand) -> Tensor:
    """``a > b`` as bool, with broadcasting."""
    return _binary("greater", a, b)


def greater_equal(a: Operand, b: Operand) -> Tensor:
    """``a >= b`` as bool, with broadcasting."""
    return _binary("greater_equal", a, b)


def logical_and(a: Tensor, b: Tensor) -> Tensor:
    """``a and b`` of bools, with broadcasting."""
    return _emit("logical_and", a, b)


def logical_or(a: Tensor, b: Tensor) -> Tensor:
    """``a or b`` of bools, with broadcasting."""
    return _emit("logical_or", a, b)


def logical_not(a: Tensor) -> Tensor:
    """``not a`` of bools."""
    return _emit("logical_not", a)


def where(condition: Tensor, a: Operand, b: Operand) -> Tensor:
    """``a`` where the condition holds, else ``b``, with broadcasting."""
    like = a if isinstance(a, Tensor) else b
    if not isinstance(like, Tensor):
        raise trace.fail(ShapeError, f"where: got {a!r} and {b!r}; expected at least one tensor")
    return _emit("where", condition, _tensor(a, like), _tensor(b, like))


def negative(x: Tensor) -> Tensor:
    """``-x``."""
    return _emit("neg", x)


def absolute(x: Tensor) -> Tensor:
    """``|x|``."""
    return _emit("abs", x)


def square(x: Tensor) -> Tensor:
    """``x * x``."""
    return _emit("mul", x, x)


def exp(x: Tensor) -> Tensor:
    """The exponential."""
    return _emit("exp", x)


def log(x: Tensor) -> Tensor:
    """The natural logarithm."""
    return _emit("log", x)


def sqrt(x: Tensor) -> Tensor:
    """The square root."""
    return _emit("sqrt", x)


def rsqrt(x: Tensor) -> Tensor:
    """One over the square root."""
    return _emit("rsqrt", x)


def tanh(x: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    return _emit("tanh", x)


def erf(x: Tensor) -> Tensor:
    """The error function."""
    return _emit("erf", x)


def sin(x: Tensor) -> Tensor:
    """The sine of radians."""
    return _emit("sin", x)


def cos(x: Tensor) -> Tensor:
    """The cosine of radians."""
    return _emit("cos", x)


def floor(x: Tensor) -> Tensor:
    """The largest integer not above ``x``."""
    return _emit("floor", x)


def sigmoid(x: Tensor) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return _emit("sigmoid", x)


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``."""
    return _emit("silu", x)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """``x`` times the normal distribution function, exact (``"none"``) or by tanh (``"tanh"``)."""
    return _emit("gelu", x, approximate=approximate)


def relu(x: Tensor) -> Tensor:
    """``max(x, 0)``."""
    return _emit("relu", x)


def astype(x: Tensor, dtype: DType | str) -> Tensor:
    """The values of ``x`` rounded to ``dtype``; ``x`` itself if it has that dtype."""
    to = _dtype(dtype)
    return x if x.dtype == to else _emit("cast", x, dtype=to)


# --- shapes ---------------------------------------------------------------------------------------


def reshape(x: Tensor, shape: Sequence[Dim]) -> Tensor:
    """The same elements in row-major order under another shape; one dim may be -1 (found by division).

    Raises:
        ShapeError: the numbers of elements differ, or -1 stands for no whole number.
    """
    dims = list(shape)
    free = [i for i, d in enumerate(dims) if isinstance(d, int) and d == -1]
    if len(free) > 1:
        raise trace.fail(ShapeError, f"reshape: got {dims} with {len(free)} dims of -1; expected at most one")
    if free:
        known = product(d for i, d in enumerate(dims) if i != free[0])
        rest = exact_div(product(x.shape), known)
        if rest is None:
            raise trace.fail(
                ShapeError, f"reshape: {x} to {dims}: {product(x.shape)} elements are no multiple of {known}"
            )
        dims[free[0]] = rest
    return x if tuple(dims) == x.shape else _emit("reshape", x, shape=tuple(dims))


def permute_dims(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Axes in the order ``axes``; reversed when ``None``."""
    order = range(x.ndim)[::-1] if axes is None else [_axis("permute_dims", x, a) for a in axes]
    return _emit("permute_dims", x, axes=tuple(order))


def expand_dims(x: Tensor, axis: int) -> Tensor:
    """A new axis of extent 1 before position ``axis``."""
    if not -x.ndim - 1 <= axis <= x.ndim:
        raise trace.fail(
            ShapeError, f"expand_dims: got axis {axis}; expected {-x.ndim - 1}..{x.ndim} for {x}"
        )
    at = axis % (x.ndim + 1)
    return reshape(x, (*x.shape[:at], 1, *x.shape[at:]))


def squeeze(x: Tensor, axis: int) -> Tensor:
    """Without the axis ``axis``, whose extent must be 1."""
    at = _axis("squeeze", x, axis)
    if x.shape[at] != 1:
        raise trace.fail(ShapeError, f"squeeze: axis {axis} of {x} has extent {x.shape[at]}; expected 1")
    return reshape(x, (*x.shape[:at], *x.shape[at + 1 :]))


def slice(x: Tensor, axis: int, begin: Dim, end: Dim) -> Tensor:
    """Elements ``begin .. end-1`` of one axis."""
    return _emit("slice", x, axis=_axis("slice", x, axis), begin=begin, end=end)


def split(x: Tensor, parts: int | Sequence[Dim], axis: int = -1) -> tuple[Tensor, ...]:
    """Cut an axis: into ``parts`` equal pieces, or into pieces of the given sizes.

    Raises:
        ShapeError: the axis does not divide, or the sizes do not add up to it.
    """
    at = _axis("split", x, axis)
    extent = x.shape[at]
    if isinstance(parts, int):
        size = exact_div(extent, parts) if parts > 0 else None
        if size is None:
            raise trace.fail(
                ShapeError, f"split: axis {axis} of {x} has extent {extent}; it is no multiple of {parts}"
            )
        sizes: list[Dim] = [size] * parts
    else:
        sizes = list(parts)
        total: Dim = 0
        for size in sizes:
            total = total + size
        if total != extent:
            raise trace.fail(
                ShapeError, f"split: sizes {sizes} add up to {total}; axis {axis} of {x} has {extent}"
            )
    pieces, begin = [], 0
    for size in sizes:
        pieces.append(slice(x, at, begin, begin + size))
        begin = begin + size
    return tuple(pieces)


def concat(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Tensors one after the other along an axis."""
    if not tensors:
        raise trace.fail(ShapeError, "concat: got no tensors; expected at least one")
    return _emit("concat", *tensors, axis=_axis("concat", tensors[0], axis))


def broadcast_to(x: Tensor, shape: Sequence[Dim]) -> Tensor:
    """Repeat axes of extent 1, and add leading axes, to reach ``shape``."""
    return _emit("broadcast_to", x, shape=tuple(shape))


def take(table: Tensor, indices: Tensor, axis: int = 0) -> Tensor:
    """Entries of ``table`` along ``axis``, by integer indices."""
    return _emit("take", table, indices, axis=_axis("take", table, axis))


def getitem(x: Tensor, index: tuple[Index, ...]) -> Tensor:
    """``x[index]`` for slices of step 1, integers and ``...``; negative positions count from the end.

    Raises:
        ShapeError: another kind of index, or too many.
    """
    given = [i for i in index if not isinstance(i, EllipsisType)]
    if len(index) - len(given) > 1 or len(given) > x.ndim:
        raise trace.fail(
            ShapeError, f"got {len(given)} indices; expected at most {x.ndim} and one ... for {x}"
        )
    at = index.index(Ellipsis) if len(given) < len(index) else len(given)
    items = [*given[:at], *[_slice(None)] * (x.ndim - len(given)), *given[at:]]
    shape: list[Dim] = []
    for axis, item in enumerate(items):
        extent = x.shape[axis]
        begin, end, keep = _range(item, extent)
        if (begin, end) != (0, extent):
            x = slice(x, axis, begin, end)
        if keep:
            shape.append(x.shape[axis])
    return reshape(x, shape)


def _range(item: int | _slice, extent: Dim) -> tuple[Dim, Dim, bool]:
    """``(begin, end, whether the axis stays)`` of one index."""

    def from_start(position: Dim) -> Dim:
        return extent + position if isinstance(position, int) and position < 0 else position

    match item:
        case _slice(start=start, stop=stop, step=None | 1):
            begin = 0 if start is None else from_start(start)
            end = extent if stop is None else from_start(stop)
            if isinstance(end, int) and isinstance(extent, int):
                end = min(end, extent)
            return begin, end, True
        case _slice():
            raise trace.fail(ShapeError, f"got a slice of step {item.step}; expected step 1")
        case bool():
            raise trace.fail(ShapeError, f"got index {item}; expected an integer, a slice or ...")
    begin = from_start(item)
    return begin, begin + 1, False


# --- reductions and norms -------------------------------------------------------------------------


def _axes(name: str, x: Tensor, axis: int | Sequence[int] | None) -> tuple[int, ...]:
    if axis is None:
        return tuple(range(x.ndim))
    return tuple(_axis(name, x, a) for a in ([axis] if isinstance(axis, int) else axis))


def sum(x: Tensor, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Sum over axes (all when ``None``)."""
    return _emit("sum", x, axes=_axes("sum", x, axis), keepdims=keepdims)


def mean(x: Tensor, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Arithmetic mean over axes (all when ``None``)."""
    return _emit("mean", x, axes=_axes("mean", x, axis), keepdims=keepdims)


def max(x: Tensor, axis: int | Sequence[int] | None = None, keepdims: bool = False) -> Tensor:
    """Largest element over axes (all when ``None``)."""
    return _emit("max", x, axes=_axes("max", x, axis), keepdims=keepdims)


def argmax(x: Tensor, axis: int = -1) -> Tensor:
    """Position of the largest element along ``axis``, i32: the first of equal ones; the first NaN wins."""
    return _emit("argmax", x, axis=_axis("argmax", x, axis))


def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """``exp(x)`` divided by its sum along ``axis``, in f32."""
    return _emit("softmax", x, axis=_axis("softmax", x, axis))


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """Rows (last axis) of root mean square 1, times ``weight``; statistics in f32."""
    return _emit("rms_norm", x, weight, eps=float(eps))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """Rows (last axis) of mean 0 and variance 1, times ``weight`` plus ``bias``; statistics in f32."""
    return _emit("layer_norm", x, weight, bias, eps=float(eps))


# --- products -------------------------------------------------------------------------------------


def matmul(a: Tensor, b: Tensor, out_dtype: DType | str | None = None) -> Tensor:
    """``a[..., M, K] @ b[..., K, N]``: sums in f32, rounded once to ``out_dtype`` (that of ``a`` by "
    "default).
    """
    return _emit("matmul", a, b, out_dtype=None if out_dtype is None else _dtype(out_dtype))


# --- anything else --------------------------------------------------------------------------------


def tensor_expr(
    formula: str | Callable[..., object],
    inputs: Sequence[Tensor],
    shape: Sequence[Dim],
    dtype: DType | str | None = None,
) -> Tensor:
    """An op given by a formula for one element of its result, computed in f32.

    Args:
        formula: Text such as ``"a0[i0, i1] * 2.0 + exp(a1[i1])"`` (axes ``i0``.., inputs ``a0``..), or a
            Python function that takes the inputs and then one index per axis of the result:
            ``lambda x, w, i, j: x[i, j] * 2.0 + nn.expr.exp(w[j])``.
        inputs: Operands.
        shape: Dims of the result.
        dtype: Dtype of the result; that of the first input by default.

    Raises:
        ShapeError: the formula does not fit the operands.
        UserError: it is no formula.
    """
    if dtype is None:
        if not inputs:
            raise trace.fail(ShapeError, "tensor_expr: got neither inputs nor dtype; expected a dtype")
        dtype = inputs[0].dtype
    text = formula if isinstance(formula, str) else formula_of(formula, [x.ndim for x in inputs], len(shape))
    return _emit("tensor_expr", *inputs, formula=text, shape=tuple(shape), dtype=_dtype(dtype))
