"""Matrix multiplication."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from strata.core.dims import Dim
from strata.core.dtypes import DType, bf16, f16, f32, f64
from strata.core.errors import ShapeError
from strata.graph.types import TensorType, Type

from .common import (
    Attr,
    Attrs,
    OpDef,
    Pattern,
    Sample,
    Types,
    broadcast,
    define_op,
    elements,
    is_float,
    np_dtype,
    round_to,
    same_dtype,
    t,
    tensors,
    want_dtype,
    widen,
)


def _infer(types: Types, attrs: Attrs) -> Type:
    a, b = tensors("matmul", types, ("a", "b"))
    dtype = same_dtype("matmul", (("a", a), ("b", b)))
    want_dtype("matmul", "a", a, is_float, "a float dtype")
    if a.rank < 2 or b.rank < 2:
        raise ShapeError(f"matmul: got a {a}, b {b}; expected both of rank 2 or more")
    k_axis, n_axis = (b.rank - 1, b.rank - 2) if attrs["transpose_b"] else (b.rank - 2, b.rank - 1)
    if a.shape[-1] != b.shape[k_axis]:
        hint = "" if a.shape[-1] != b.shape[n_axis] else "; b is the other way round: change transpose_b"
        raise ShapeError(
            f"matmul: contracting dims differ: a {a} dim {a.rank - 1} = {a.shape[-1]}, "
            f"b {b} dim {k_axis} = {b.shape[k_axis]}{hint}"
        )
    out_dtype: DType = attrs["out_dtype"] or dtype
    if not out_dtype.is_float:
        raise ShapeError(f"matmul: out_dtype is {out_dtype}; expected a float dtype")
    batch = broadcast(
        "matmul batch dims", (("a", TensorType(a.shape[:-2], dtype)), ("b", TensorType(b.shape[:-2], dtype)))
    )
    return TensorType((*batch, a.shape[-2], b.shape[n_axis]), out_dtype)


def _reference(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    a, b = operands
    out = np_dtype(attrs["out_dtype"]) if attrs["out_dtype"] is not None else a.dtype
    right = widen(b)
    with np.errstate(all="ignore"):
        return round_to(
            np.matmul(widen(a), np.swapaxes(right, -1, -2) if attrs["transpose_b"] else right), out
        )


def _flop(types: Types, attrs: Attrs) -> Dim:
    (a,) = tensors("matmul", types[:1], ("a",))
    out = _infer(types, attrs)
    assert isinstance(out, TensorType)
    return 2 * a.shape[-1] * elements(out)


def _samples() -> Iterator[Sample]:
    shapes = [(1, 1, 1), (5, 7, 3), (1, 64, 33), (17, 33, 65), (8, 130, 16)]
    for m, k, n in shapes:
        for dtype in (f32, bf16, f16, f64):
            yield Sample((t(dtype, m, k), t(dtype, k, n)))
            yield Sample((t(dtype, m, k), t(dtype, n, k)), {"transpose_b": True})
    for dtype in (bf16, f16):
        yield Sample((t(dtype, 3, 33), t(dtype, 17, 33)), {"transpose_b": True, "out_dtype": f32})
        yield Sample((t(dtype, 1, 256), t(dtype, 48, 256)), {"transpose_b": True, "out_dtype": f32})
    yield Sample((t(f32, 2, 3, 5), t(f32, 5, 4)))
    yield Sample((t(f32, 2, 1, 3, 5), t(f32, 4, 5, 6)))
    yield Sample((t(f32, 2, 3, 5), t(f32, 2, 7, 5)), {"transpose_b": True})
    cancelling = np.array([[1e4, 1.0, -1e4, 1e-4]], np.float32)
    yield Sample((t(f32, 1, 4), t(f32, 4, 2)), {}, {0: cancelling, 1: np.ones((4, 2), np.float32)})


define_op(
    OpDef(
        "matmul",
        _infer,
        _reference,
        Pattern.MATMUL,
        {
            "transpose_b": Attr((bool,), False, "b is [..., N, K]"),
            "out_dtype": Attr((DType, type(None)), None, "result dtype; None = dtype of a"),
        },
        _samples,
        _flop,
        "a[..., M, K] times b[..., K, N]; batch dims broadcast; computed in f32 (f64), rounded once.",
    )
)
