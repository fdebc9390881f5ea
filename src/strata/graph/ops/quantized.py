"""Quantised weights: codes with a scale per group of the contracted dim.

A weight ``[N, K]`` is kept as unsigned codes ``[N, K]`` (u4 or u8) and scales ``[N, G]``; row n's elements
``g * K/G .. (g + 1) * K/G - 1`` share ``scales[n, g]``. An element is ``(code - zero) * scale``, where
``zero`` is one number for the whole weight (8 or 128: symmetric) or, as a third operand ``zeros [N, G]``
(u8), one per group. ``G = 1`` is one scale per output channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from strata.core.dims import Dim
from strata.core.dtypes import DType, bf16, f16, f32, i8, u4, u8
from strata.core.errors import ShapeError
from strata.graph.types import TensorType, Type

from .common import (
    Attr,
    Attrs,
    OpDef,
    Pattern,
    Sample,
    Types,
    as_tensor,
    define_op,
    elements,
    is_float,
    np_dtype,
    round_to,
    t,
    want_dtype,
    widen,
)

CODE_MAX = 127  # largest magnitude of a quantised activation: symmetric int8
# Elements of a row of activations that share a scale. With powers, sums of that many products fit 23 bits.
MAX_ACTIVATION_GROUP = 128
SMALLEST = 2.0**-100  # activations of a group that are all smaller than this are 0: 127 / x stays finite
LEAST_POWER = 2.0**-20  # of a row's step; what is less than half of that is below f32's precision of the row


def _weight(op: str, types: Types) -> TensorType:
    """The codes, checked against scales and zeros.

    Raises:
        ShapeError: they do not belong together.
    """
    if len(types) not in (2, 3):
        raise ShapeError(f"{op}: got {len(types)} operands of the weight; expected codes, scales[, zeros]")
    codes, scales = as_tensor(op, types[0], "codes"), as_tensor(op, types[1], "scales")
    want_dtype(op, "codes", codes, lambda d: d in (u4, u8), "u4 or u8")
    want_dtype(op, "scales", scales, is_float, "a float dtype")
    if codes.rank != 2 or scales.rank != 2 or codes.shape[0] != scales.shape[0]:
        raise ShapeError(f"{op}: got codes {codes}, scales {scales}; expected [N, K] and [N, groups]")
    k, groups = codes.shape[1], scales.shape[1]
    if not isinstance(k, int) or not isinstance(groups, int) or groups < 1 or k % groups:
        raise ShapeError(
            f"{op}: got codes {codes}, scales {scales}; expected K to be a multiple of the groups"
        )
    if len(types) == 3:
        zeros = as_tensor(op, types[2], "zeros")
        if zeros.dtype is not u8 or zeros.shape != scales.shape:
            raise ShapeError(f"{op}: got zeros {zeros}; expected u8 in the shape of scales {scales}")
    return codes


def group_size(codes: TensorType, scales: TensorType) -> int:
    """Elements of a row of the weight that share a scale."""
    k, groups = codes.shape[1], scales.shape[1]
    assert isinstance(k, int)
    assert isinstance(groups, int)
    return k // groups


def _per_element(array: np.ndarray, k: int) -> np.ndarray:
    """``[N, G]`` spread to ``[N, K]``."""
    return np.repeat(array, k // array.shape[1], axis=1)


def _centred(weight: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    """``code - zero`` as i32 ``[N, K]``."""
    codes = weight[0].astype(np.int32)
    zero = _per_element(weight[2].astype(np.int32), codes.shape[1]) if len(weight) == 3 else attrs["zero"]
    return codes - zero


# --- dequantize -----------------------------------------------------------------------------------


def _infer_dequantize(types: Types, attrs: Attrs) -> Type:
    codes = _weight("dequantize", types)
    dtype: DType = attrs["dtype"]
    if not dtype.is_float:
        raise ShapeError(f"dequantize: dtype is {dtype}; expected a float dtype")
    return TensorType(codes.shape, dtype)


def _dequantize(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    scales = _per_element(widen(operands[1]), operands[0].shape[1])
    with np.errstate(all="ignore"):
        value = _centred(operands, attrs).astype(np.float32) * scales
        return round_to(value, np_dtype(attrs["dtype"]))


def _weight_types(n: int, k: int, group: int, dtype: DType, has_zeros: bool) -> Types:
    scales = t(f16, n, k // group)
    return (t(dtype, n, k), scales, t(u8, n, k // group)) if has_zeros else (t(dtype, n, k), scales)


def _weight_values(first: int, types: Types, spread: float = 1.0) -> dict[int, np.ndarray]:
    """Codes over their whole range, positive scales, zeros around the middle."""
    rng = np.random.default_rng(7)
    (n, k), (_, groups) = ((int(d) for d in x.shape) for x in types[:2])  # type: ignore[union-attr, arg-type]
    codes = types[0]
    assert isinstance(codes, TensorType)
    top = 1 << codes.dtype.bits
    values = {
        first: rng.integers(0, top, (n, k)).astype(np_dtype(codes.dtype)),
        first + 1: (spread * rng.uniform(0.5, 2.0, (n, groups)) / top).astype(np.float16),
    }
    if len(types) == 3:
        values[first + 2] = rng.integers(0, top, (n, groups)).astype(np.uint8)
    return values


_SHAPES = ((1, 32, 32), (5, 64, 32), (33, 96, 32), (70, 64, 64))


def _dequantize_samples() -> Iterator[Sample]:
    for n, k, group in _SHAPES:
        for dtype, zero in ((u4, 8), (u8, 128)):
            for has_zeros in (False, True):
                types = _weight_types(n, k, group, dtype, has_zeros)
                yield Sample(types, {"zero": zero}, _weight_values(0, types))
    types = _weight_types(4, 64, 32, u4, False)
    yield Sample(types, {"zero": 8, "dtype": bf16}, _weight_values(0, types))


_ZERO = Attr((int,), 8, "code that means 0, where there is no operand zeros")

define_op(
    OpDef(
        "dequantize",
        _infer_dequantize,
        _dequantize,
        Pattern.INJECTIVE,
        {"zero": _ZERO, "dtype": Attr((DType,), f32, "result dtype")},
        _dequantize_samples,
        None,
        "(codes - zero) * scales, one scale (and zero) per group of a row; computed in f32, rounded once.",
    )
)


# --- quantized_matmul -----------------------------------------------------------------------------


def _infer_matmul(types: Types, attrs: Attrs) -> Type:
    if not types:
        raise ShapeError("quantized_matmul: got no operands; expected a, codes, scales[, zeros]")
    a = as_tensor("quantized_matmul", types[0], "a")
    want_dtype("quantized_matmul", "a", a, lambda d: d in (f32, bf16, f16), "f32, bf16 or f16")
    codes = _weight("quantized_matmul", types[1:])
    if a.rank != 2 or a.shape[1] != codes.shape[1]:
        raise ShapeError(f"quantized_matmul: got a {a}, codes {codes}; expected [M, K] and [N, K]")
    scales = as_tensor("quantized_matmul", types[2], "scales")
    group, of_weight = attrs["group"], group_size(codes, scales)
    if group < 1 or of_weight % group:
        raise ShapeError(
            f"quantized_matmul: got group {group}; expected a divisor of the weight's groups of {of_weight}"
        )
    if attrs["powers"] and group > MAX_ACTIVATION_GROUP:
        raise ShapeError(
            f"quantized_matmul: got group {group} with powers; expected at most {MAX_ACTIVATION_GROUP}"
        )
    if attrs["activations"] not in (i8, bf16):
        raise ShapeError(f"quantized_matmul: got activations {attrs['activations']}; expected i8 or bf16")
    return TensorType((a.shape[0], codes.shape[0]), attrs["out_dtype"] or a.dtype)


def quantize_rows(a: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 codes of ``a [M, K]`` and one scale per group of a row.

    Returns:
        i32 codes ``[M, K]`` in -127..127 and f32 scales ``[M, K/group]``: largest magnitude / 127.
    """
    x, largest = _largest(a, group)
    with np.errstate(all="ignore"):
        codes = _codes(x, _inverse(largest))
        return codes.reshape(a.shape), (largest * np.float32(1 / CODE_MAX)).astype(np.float32)


def quantize_rows_by_powers(a: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Symmetric int8 codes of ``a [M, K]``; scales of a row are one number times powers of two.

    Returns:
        i32 codes ``[M, K]`` in -127..127; f32 powers ``[M, K/group]``, 2**-20 to 1: the least for which the
        group's codes are in that range; f32 scales ``[M, 1]``: largest magnitude of the row / 127.
    """
    x, largest = _largest(a, group)
    top = largest.max(axis=1, initial=0.0, keepdims=True)
    with np.errstate(all="ignore"):
        mantissa, exponent = np.frexp(largest / top)
        exponent = np.where(mantissa == 0.5, exponent - 1, exponent)  # powers of two are their own ceiling
        powers = np.where(largest > 0, np.ldexp(np.float32(1), exponent), np.float32(0))
        powers = np.fmax(powers, np.float32(LEAST_POWER)).astype(np.float32)
        codes = _codes(x, _inverse(top) / powers)
        return codes.reshape(a.shape), powers, (top * np.float32(1 / CODE_MAX)).astype(np.float32)


def _largest(a: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """``a [M, K]`` as f32 ``[M, groups, group]``, and the largest magnitudes ``[M, groups]``."""
    x = widen(a).reshape(a.shape[0], -1, group)
    return x, np.abs(x).max(axis=2, initial=0.0)


def _inverse(largest: np.ndarray) -> np.ndarray:
    return np.where(largest >= SMALLEST, np.float32(CODE_MAX) / largest, np.float32(0))


def _codes(x: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    return np.rint(x * inverse[:, :, None]).astype(np.int32)


def _matmul(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    a, *weight = operands
    if attrs["activations"] is bf16:
        rounded = round_to(a, np_dtype(bf16))
        product = _rounded_product(rounded, _dequantize(weight, {**attrs, "dtype": bf16}))
        return round_to(product, np_dtype(attrs["out_dtype"] or f32))
    (m, k), n, group = a.shape, weight[0].shape[0], attrs["group"]
    groups = k // group
    if attrs["powers"]:
        x, x_scales, of_rows = quantize_rows_by_powers(a, group)
    else:
        (x, x_scales), of_rows = quantize_rows(a, group), np.float32(1)
    w = _centred(weight, attrs)
    w_scales = _per_element(widen(weight[1]), groups)
    # Exact: sums of at most 65536 products of 7 and 8 bits are far below 2**53.
    left = x.reshape(m, groups, group).transpose(1, 0, 2).astype(np.float64)
    right = w.reshape(n, groups, group).transpose(1, 2, 0).astype(np.float64)
    with np.errstate(all="ignore"):
        dots = (left @ right).astype(np.float32)
        scaled = dots * (x_scales.T[:, :, None] * w_scales.T[:, None, :])
        total = scaled.sum(axis=0, dtype=np.float32) * of_rows
        return round_to(total, np_dtype(attrs["out_dtype"] or f32))


def _rounded_product(a: np.ndarray, weight: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return widen(a) @ widen(weight).T


def _reference_matmul(operands: Sequence[np.ndarray], attrs: Attrs) -> np.ndarray:
    out = _matmul(operands, attrs)
    return out if attrs["out_dtype"] is not None else round_to(out, operands[0].dtype)


def _flop(types: Types, attrs: Attrs) -> Dim:
    a, out = as_tensor("quantized_matmul", types[0], "a"), _infer_matmul(types, attrs)
    assert isinstance(out, TensorType)
    return 2 * a.shape[-1] * elements(out)


def _matmul_samples() -> Iterator[Sample]:
    for m, (n, k, group) in zip((2, 1, 7, 3), _SHAPES, strict=True):
        for dtype, zero in ((u4, 8), (u8, 128)):
            types = _weight_types(n, k, group, dtype, False)
            yield Sample((t(f32, m, k), *types), {"zero": zero}, _weight_values(1, types))
    for dtype, zero in ((u4, 8), (u8, 128)):
        types = _weight_types(20, 128, 64, dtype, True)
        yield Sample((t(f32, 5, 128), *types), {"zero": zero, "group": 64}, _weight_values(1, types))
        types = _weight_types(20, 96, 96, dtype, False)
        yield Sample((t(bf16, 3, 96), *types), {"zero": zero, "out_dtype": f32}, _weight_values(1, types))
        for n, k, group in _SHAPES:
            types = _weight_types(n, k, group, dtype, zero == 8)
            attrs = {"zero": zero, "activations": bf16}
            yield Sample((t(f32, 33, k), *types), attrs, _weight_values(1, types))
        types = _weight_types(20, 256, 128, dtype, True)
        attrs = {"zero": zero, "group": 128, "powers": True}
        yield Sample((t(f32, 5, 256), *types), attrs, _weight_values(1, types))
        types = _weight_types(24, 64, 32, dtype, False)
        attrs = {"zero": 0, "powers": dtype is u4}
        yield Sample((t(f32, 3, 64), *types), attrs, _weight_values(1, types))
    yield from _hard_samples()


def _hard_samples() -> Iterator[Sample]:
    """Rows of zeros, of -0.0, of denormals, and with one outlier."""
    rows = np.random.default_rng(3).standard_normal((6, 64)).astype(np.float32)
    rows[0], rows[1, ::2], rows[2], rows[3, 5], rows[5, :32] = 0.0, -0.0, 1e-41, 3e4, 1e-9
    for dtype, zero in ((u8, 128), (u4, 8)):
        types = _weight_types(40, 64, 32, dtype, False)
        attrs = {"zero": zero, "powers": dtype is u4}
        yield Sample((t(f32, 6, 64), *types), attrs, {0: rows, **_weight_values(1, types)})
    types = _weight_types(24, 128, 128, u4, True)  # sums as large as they get
    ends = {1: np.zeros((24, 128), np_dtype(u4)), 3: np.full((24, 1), 255, np.uint8)}
    values = {**_weight_values(1, types), 0: np.full((3, 128), 5.0, np.float32), **ends}
    yield Sample((t(f32, 3, 128), *types), {"group": 128, "powers": True}, values)


define_op(
    OpDef(
        "quantized_matmul",
        _infer_matmul,
        _reference_matmul,
        Pattern.MATMUL,
        {
            "zero": _ZERO,
            "group": Attr((int,), 32, "elements of a row of a that share a scale"),
            "powers": Attr((bool,), False, "whether scales of a row of a are one number times powers of two"),
            "activations": Attr((DType,), i8, "what a is rounded to: i8, or bf16 together with the weight"),
            "out_dtype": Attr((DType, type(None)), None, "result dtype; None = dtype of a"),
        },
        _matmul_samples,
        _flop,
        "a[M, K] times the transpose of a quantised weight [N, K]: a is rounded to int8 codes with a scale "
        "per group, products of codes are added up exactly in each group, groups in f32. With powers, scales "
        "of a row are one number times powers of two from 2**-20 to 1, of groups of at most 128. With "
        "activations bf16, a and the dequantised weight are rounded to bf16 and multiplied.",
    )
)
