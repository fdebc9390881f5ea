"""Reductions over whole axes, argmax, softmax, norms.

Sums and statistics of floats are in f32 (f64 for f64).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from strata.core.dims import Dim, bounds
from strata.core.dtypes import bf16, f16, f32, f64, i32, i64
from strata.core.errors import ShapeError
from strata.graph.types import TensorType, Type

from .common import (
    Attr,
    Attrs,
    OpDef,
    Pattern,
    Sample,
    Types,
    define_op,
    elements,
    is_float,
    is_number,
    normal_axes,
    normal_axis,
    np_dtype,
    round_to,
    t,
    tensors,
    want_dtype,
    widen,
)

_FLOATS = (f32, f16, bf16, f64)
MAX_INDEX = 2**31 - 1  # i32


def _per_element(op_count: int) -> Callable[[Types, Attrs], Dim]:
    def flop(types: Types, attrs: Attrs) -> Dim:
        (x,) = tensors("flop", types[:1], ("x",))
        return op_count * elements(x)

    return flop


# ---- sum, mean, max ----


def _reduce_infer(op: str) -> Any:
    def infer(types: Types, attrs: Attrs) -> Type:
        (x,) = tensors(op, types, ("x",))
        if op == "mean":
            want_dtype(op, "x", x, is_float, "a float dtype")
        want_dtype(op, "x", x, is_number, "a float or integer dtype")
        axes = normal_axes(op, attrs["axes"], x.rank)
        if op != "sum" and any(x.shape[a] == 0 for a in axes):
            raise ShapeError(f"{op}: x {x} has extent 0 along axes {axes}; expected at least 1")
        if attrs["keepdims"]:
            return TensorType(tuple(1 if i in axes else d for i, d in enumerate(x.shape)), x.dtype)
        return TensorType(tuple(d for i, d in enumerate(x.shape) if i not in axes), x.dtype)

    return infer


def _reduce_reference(function: Callable[..., Any]) -> Any:
    def reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
        (x,) = operands
        with np.errstate(all="ignore"):
            out = function(widen(x), axis=attrs["axes"], keepdims=attrs["keepdims"])
        return round_to(out, x.dtype)

    return reference


def _sum(x: np.ndarray, axis: tuple[int, ...], keepdims: bool) -> np.ndarray:
    return np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype)


def _reduce_samples(op: str) -> Callable[[], Iterator[Sample]]:
    def samples() -> Iterator[Sample]:
        for dtype in (*_FLOATS, *((i32, i64) if op != "mean" else ())):
            yield Sample((t(dtype, 3, 17),), {"axes": (1,)})
            yield Sample((t(dtype, 3, 17),), {"axes": (0,), "keepdims": True})
        yield Sample((t(f32, 2, 3, 5),), {"axes": (0, 2)})
        yield Sample((t(f32, 2, 3, 5),), {"axes": (-1, -2), "keepdims": True})
        yield Sample((t(f32, 7),), {"axes": (0,)})
        yield Sample((t(f32, 4, 1),), {"axes": (1,)})
        yield Sample((t(f32, 4, 3),), {"axes": ()})
        large = np.array([[1e8, 1.0, -1e8, 1.0], [3e38, -3e38, 1e-44, 0.0]], np.float32)
        yield Sample((t(f32, 2, 4),), {"axes": (1,)}, {0: large} if op == "max" else {0: large / 2**24})
        nan = np.arange(120, dtype=np.float32).reshape(3, 40)
        nan[0, 5], nan[1, 39], nan[2, 0] = np.nan, np.nan, np.nan
        yield Sample((t(f32, 3, 40),), {"axes": (1,)}, {0: nan})
        yield Sample((t(f32, 3, 40),), {"axes": (0,)}, {0: nan})

    return samples


_REDUCE_ATTRS = {
    "axes": Attr((tuple,), doc="axes to reduce"),
    "keepdims": Attr((bool,), False, "keep reduced axes with extent 1"),
}
_REDUCTIONS: list[tuple[str, Callable[..., Any], str]] = [
    ("sum", _sum, "Sum over axes."),
    ("mean", np.mean, "Arithmetic mean over axes (floats)."),
    ("max", np.max, "Largest element over axes."),
]
for _name, _function, _doc in _REDUCTIONS:
    define_op(
        OpDef(
            _name,
            _reduce_infer(_name),
            _reduce_reference(_function),
            Pattern.REDUCTION,
            _REDUCE_ATTRS,
            _reduce_samples(_name),
            _per_element(1),
            _doc,
        )
    )


# ---- argmax ----


def _argmax_infer(types: Types, attrs: Attrs) -> Type:
    (x,) = tensors("argmax", types, ("x",))
    want_dtype("argmax", "x", x, is_number, "a float or integer dtype")
    axis = normal_axis("argmax", attrs["axis"], x.rank)
    lo, hi = bounds(x.shape[axis])
    if lo < 1 or hi > MAX_INDEX + 1:
        raise ShapeError(
            f"argmax: x {x} has extent {x.shape[axis]} along axis {axis}; expected 1 .. {MAX_INDEX + 1}"
        )
    return TensorType((*x.shape[:axis], *x.shape[axis + 1 :]), i32)


def _argmax_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    (x,) = operands
    return np.asarray(np.argmax(widen(x), axis=attrs["axis"]), np.int32)


def _argmax_samples() -> Iterator[Sample]:
    for dtype in (*_FLOATS, i32, i64):
        yield Sample((t(dtype, 3, 17),))
        yield Sample((t(dtype, 5, 4),), {"axis": 0})
    yield Sample((t(f32, 2, 3, 5),), {"axis": 1})
    yield Sample((t(f32, 33),), {"axis": 0})
    yield Sample((t(f32, 4, 1),))
    nan, inf = np.nan, np.inf
    ties = [[1.0, 7.0, 7.0, 2.0], [0.0, -0.0, -0.0, 0.0], [-0.0, 0.0, -1.0, 0.0], [5.0, nan, 9.0, nan]]
    ends = [[-inf, -inf, -inf, -inf], [-inf, -inf, -inf, -3e38], [inf, 3e38, inf, nan], [nan, inf, 1.0, 2.0]]
    yield Sample((t(f32, 8, 4),), {}, {0: np.array(ties + ends, np.float32)})
    for extent in (4096, 5003):  # long enough to be searched in parts
        far = np.random.default_rng(extent).standard_normal((7, extent)).astype(np.float32)
        for row, columns in enumerate([(0,), (extent - 1,), (2047, 2048), (3000, 4095), (), (900, 4000)]):
            far[row, list(columns)] = 9.0
        far[4], far[5, 3600], far[6, [2060, 4090]] = 1.0, nan, -nan
        yield Sample((t(f32, 7, extent),), {}, {0: far})
    yield Sample((t(bf16, 2, 4500),))
    yield Sample((t(i64, 4100, 3),), {"axis": 0})


define_op(
    OpDef(
        "argmax",
        _argmax_infer,
        _argmax_reference,
        Pattern.REDUCTION,
        {"axis": Attr((int,), -1, "axis to search")},
        _argmax_samples,
        _per_element(1),
        "Position of the largest element along an axis, i32: the first of equal ones; the first NaN wins.",
    )
)


# ---- softmax ----


def _softmax_infer(types: Types, attrs: Attrs) -> Type:
    (x,) = tensors("softmax", types, ("x",))
    want_dtype("softmax", "x", x, is_float, "a float dtype")
    normal_axis("softmax", attrs["axis"], x.rank)
    return x


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Softmax of f32/f64 ``x`` along ``axis``, with the row maximum subtracted first."""
    if x.size == 0:
        return x
    e = np.exp(x - np.max(x, axis=axis, keepdims=True))
    return e / np.sum(e, axis=axis, keepdims=True)


def _softmax_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    (x,) = operands
    with np.errstate(all="ignore"):
        return round_to(softmax(widen(x), attrs["axis"]), x.dtype)


def _softmax_samples() -> Iterator[Sample]:
    for dtype in _FLOATS:
        yield Sample((t(dtype, 3, 17),))
    yield Sample((t(f32, 2, 3, 5),), {"axis": 1})
    yield Sample((t(f32, 5, 1),), {"axis": -1})
    yield Sample((t(f32, 33),), {"axis": 0})
    masked = np.array([[0.0, -np.inf, 1.0], [1e4, 1e4, -1e4], [-np.inf, -np.inf, -200.0]], np.float32)
    yield Sample((t(f32, 3, 3),), {}, {0: masked})


define_op(
    OpDef(
        "softmax",
        _softmax_infer,
        _softmax_reference,
        Pattern.REDUCTION,
        {"axis": Attr((int,), -1, "axis that sums to 1")},
        _softmax_samples,
        _per_element(5),
        "exp(x - max) / sum along an axis; a row of -inf only has no defined result.",
    )
)


# ---- norms ----


def _norm_infer(op: str, names: tuple[str, ...]) -> Any:
    def infer(types: Types, attrs: Attrs) -> Type:
        x, *vectors = tensors(op, types, names)
        want_dtype(op, "x", x, is_float, "a float dtype")
        if x.rank == 0 or not attrs["eps"] >= 0:
            raise ShapeError(f"{op}: got x {x}, eps {attrs['eps']}; expected rank >= 1 and eps >= 0")
        for name, type_ in zip(names[1:], vectors, strict=True):
            want_dtype(op, name, type_, is_float, "a float dtype")
            if type_.shape != x.shape[-1:]:
                raise ShapeError(f"{op}: {name} {type_} does not fit x {x}; expected shape ({x.shape[-1]},)")
        return x

    return infer


def _rms_norm_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    x, weight = (widen(a) for a in operands)
    with np.errstate(all="ignore"):
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        y = x / np.sqrt(mean_square + x.dtype.type(attrs["eps"])) * weight
    return round_to(y, operands[0].dtype)


def _layer_norm_reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    x, weight, bias = (widen(a) for a in operands)
    with np.errstate(all="ignore"):
        centred = x - np.mean(x, axis=-1, keepdims=True)
        variance = np.mean(centred * centred, axis=-1, keepdims=True)
        y = centred / np.sqrt(variance + x.dtype.type(attrs["eps"])) * weight + bias
    return round_to(y, operands[0].dtype)


def _norm_samples(num_vectors: int) -> Callable[[], Iterator[Sample]]:
    def samples() -> Iterator[Sample]:
        rng = np.random.default_rng(4)
        for dtype in _FLOATS:
            yield Sample((t(dtype, 3, 17), *[t(dtype, 17)] * num_vectors))
        yield Sample((t(f32, 2, 3, 33), *[t(f32, 33)] * num_vectors), {"eps": 1e-6})
        yield Sample((t(f32, 5, 1), *[t(f32, 1)] * num_vectors))
        yield Sample((t(f32, 64), *[t(f32, 64)] * num_vectors))
        yield Sample((t(f32, 2, 8), *[t(bf16, 8)] * num_vectors))  # f32 activations, bf16 weights
        offset = (1000 + rng.standard_normal((2, 16))).astype(np_dtype(f32))
        tiny = np.full((2, 16), 1e-6, np.float32) * offset
        yield Sample((t(f32, 2, 16), *[t(f32, 16)] * num_vectors), {}, {0: offset})
        yield Sample((t(f32, 2, 16), *[t(f32, 16)] * num_vectors), {"eps": 1e-12}, {0: tiny})

    return samples


_EPS = {"eps": Attr((float,), 1e-5, "added to the mean square, under the root")}
define_op(
    OpDef(
        "rms_norm",
        _norm_infer("rms_norm", ("x", "weight")),
        _rms_norm_reference,
        Pattern.REDUCTION,
        _EPS,
        _norm_samples(1),
        _per_element(4),
        "x / sqrt(mean(x^2) + eps) * weight over the last axis; weight may have another float dtype.",
    )
)
define_op(
    OpDef(
        "layer_norm",
        _norm_infer("layer_norm", ("x", "weight", "bias")),
        _layer_norm_reference,
        Pattern.REDUCTION,
        _EPS,
        _norm_samples(2),
        _per_element(8),
        "(x - mean) / sqrt(variance + eps) * weight + bias over the last axis; population variance.",
    )
)
