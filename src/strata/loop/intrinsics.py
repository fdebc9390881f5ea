"""Hardware operations that loop functions may name: their types and what they compute.

============== ================================================= ==========================================
name           arguments                                         result, lane ``l``
============== ================================================= ==========================================
``fma``        ``a, b, c``: f32 or f64, L lanes each             ``a[l]*b[l] + c[l]``, rounded once
``dot2_bf16``  ``acc``: f32 L; ``a, b``: bf16, 2L lanes          ``(acc[l] + a[2l+1]*b[2l+1]) + a[2l]*b[2l]``
``dot4_u8i8``  ``acc``: i32 L; ``a``: u8, ``b``: i8, 4L lanes    ``acc[l] + sum(a[4l+j]*b[4l+j], j < 4)``
``dot4_u4i8``  the same, with ``a[i] <= 15``                     the same
``low4``       ``a``: u8 L                                       ``a[l] & 15``
``high4``      ``a``: u8 L                                       ``a[l] >> 4``
``every4``     ``a``: u8, 4L lanes; ``j``: i64 below 4           ``a[4l+j]``
``every2``     ``a``: bf16, 2L lanes; ``j``: i64 below 2         ``a[2l+j]``, f32
``bits``       ``a``: f32 L                                      the same 32 bits, i32
``from_bits``  ``a``: i32 L                                      the same 32 bits, f32
``nearest8``   ``a``: f32 L                                      ``a[l]`` rounded to i8, halves to even
``zip_bf16``   ``a, b``: f32, L lanes each                       ``a[0], b[0], a[1], ...``, rounded to bf16
``exp2``       ``a``: f32 L, none above 127                      ``2**a[l]``
``exp2_bf16``  the same                                          the same, to be rounded to bf16
``prefetch``   one element of a buffer in memory, or outside     i32 0; its cache line comes to level 2
``prefetch1``  the same                                          i32 0; its cache line comes to level 1
``evict``      one element of a buffer in memory                 i32 0; the element's line leaves all caches
============== ================================================= ==========================================

``a`` of ``dot2_bf16`` may have 2 lanes, ``b`` of ``dot4_*`` 4: one group for all lanes of the result. Sums of
integers are exact, modulo 2**32.

The semantics here are what the interpreter runs and what a code generator has to emit, up to subnormals
(which the instruction behind ``dot2_bf16`` takes for 0) and the order of its two additions.
``nearest8`` of NaN may be any number; others have to be in the range of i8 once they are rounded.
``exp2`` may be off by 3 units of roundoff, ``exp2_bf16`` by ``2**-13`` of the value, and both by ``2**-126``:
weights of a softmax need no correct subnormals. :data:`INTRINSICS` is open: register more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np

from strata.core.dtypes import DType, bf16, f32, f64, i8, i32, i64, u8
from strata.core.errors import VerifyError
from strata.core.registry import Registry

VectorType = tuple[DType, int]
Array = np.ndarray[Any, Any]
MAX_EXP2 = 127.0


@dataclass(frozen=True, slots=True)
class IntrinsicDef:
    """One hardware operation.

    Attributes:
        name: Name in ``Intrinsic.name``.
        signature: For people: ``"(acc: f32[L], a: bf16[2L] or bf16[2], b: bf16[2L]) -> f32[L]"``.
        result: Dtype and lanes of the result from those of the arguments; ``None`` if the arguments do
            not fit.
        evaluate: The value, from one 1-d array per argument (also for one lane) to a 1-d array.
        is_elementwise: Whether lane ``l`` of the result comes from lane ``l`` of each argument, for any
            number of lanes: such an intrinsic may stand in scalar code and can be vectorised.
    """

    name: str
    signature: str
    result: Callable[[Sequence[VectorType]], VectorType | None]
    evaluate: Callable[..., Array]
    is_elementwise: bool = False


INTRINSICS: Registry[IntrinsicDef] = Registry("intrinsic")


def result_type(name: str, args: Sequence[VectorType]) -> VectorType:
    """Dtype and lanes of an intrinsic's result.

    Raises:
        UserError: no such intrinsic.
        VerifyError: it does not take arguments of these types.
    """
    known = INTRINSICS[name]
    found = known.result(args)
    if found is None:
        got = ", ".join(f"{dtype}[{lanes}]" for dtype, lanes in args)
        raise VerifyError(f"@{name}: got ({got}); expected {known.signature}")
    return found


def _fma_result(args: Sequence[VectorType]) -> VectorType | None:
    same = len(args) == 3 and args[0] == args[1] == args[2]
    return args[0] if same and args[0][0] in (f32, f64) else None


def _fma(a: Array, b: Array, c: Array) -> Array:
    if a.dtype == np.float64:
        return np.array([_fma_f64(*(float(x) for x in lane)) for lane in zip(a, b, c, strict=True)])
    # The product of two f32 is exact in f64. Rounding the sum to odd there makes the rounding to f32 the
    # only one.
    product, addend = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    even = np.isfinite(total) & (error != 0) & (total.view(np.int64) % 2 == 0)
    odd = np.where(even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return odd.astype(np.float32)


def _fma_f64(a: float, b: float, c: float) -> float:
    if not np.isfinite([a, b, c]).all():
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    try:
        return float(exact) if exact else a * b + c  # the sign of a zero follows the usual rules
    except OverflowError:
        return float("inf") if exact > 0 else float("-inf")


def _dot2_result(args: Sequence[VectorType]) -> VectorType | None:
    match list(args):
        case [(acc, lanes), (a, a_lanes), (b, b_lanes)] if (acc, a, b) == (f32, bf16, bf16):
            return (f32, lanes) if b_lanes == 2 * lanes and a_lanes in (2, b_lanes) else None
    return None


def _dot2(acc: Array, a: Array, b: Array) -> Array:
    if len(a) < len(b):
        a = np.tile(a, len(b) // len(a))
    products = a.astype(np.float32) * b.astype(np.float32)  # exact
    return (acc + products[1::2]) + products[0::2]


def _dot4_result(args: Sequence[VectorType]) -> VectorType | None:
    match list(args):
        case [(acc, lanes), (a, a_lanes), (b, b_lanes)] if (acc, a, b) == (i32, u8, i8):
            return (i32, lanes) if a_lanes == 4 * lanes and b_lanes in (4, a_lanes) else None
    return None


def _dot4(acc: Array, a: Array, b: Array) -> Array:
    products = a.reshape(-1, 4).astype(np.int32) * b.reshape(-1, 4).astype(np.int32)
    return acc + products.sum(axis=1, dtype=np.int32)


def _dot4_u4(acc: Array, a: Array, b: Array) -> Array:
    if a.max(initial=0) > 15:
        raise VerifyError(f"@dot4_u4i8: a holds {a.max()}; expected values up to 15; use dot4_u8i8")
    return _dot4(acc, a, b)


def _nibble_result(args: Sequence[VectorType]) -> VectorType | None:
    return args[0] if len(args) == 1 and args[0][0] == u8 else None


def _every4_result(args: Sequence[VectorType]) -> VectorType | None:
    match list(args):
        case [(a, lanes), (j, 1)] if (a, j) == (u8, i64) and lanes % 4 == 0:
            return (u8, lanes // 4)
    return None


def _every4(a: Array, j: Array) -> Array:
    if not 0 <= j[0] < 4:
        raise VerifyError(f"@every4: j is {j[0]}; expected 0, 1, 2 or 3")
    return a[int(j[0]) :: 4]


def _every2_result(args: Sequence[VectorType]) -> VectorType | None:
    match list(args):
        case [(a, lanes), (j, 1)] if (a, j) == (bf16, i64) and lanes % 2 == 0:
            return (f32, lanes // 2)
    return None


def _every2(a: Array, j: Array) -> Array:
    if not 0 <= j[0] < 2:
        raise VerifyError(f"@every2: j is {j[0]}; expected 0 or 1")
    return a[int(j[0]) :: 2].astype(np.float32)


def _bits_result(args: Sequence[VectorType]) -> VectorType | None:
    return (i32, args[0][1]) if len(args) == 1 and args[0][0] == f32 else None


def _bits(a: Array) -> Array:
    return a.view(np.int32)


def _from_bits_result(args: Sequence[VectorType]) -> VectorType | None:
    return (f32, args[0][1]) if len(args) == 1 and args[0][0] == i32 else None


def _from_bits(a: Array) -> Array:
    return a.view(np.float32)


def _nearest8_result(args: Sequence[VectorType]) -> VectorType | None:
    return (i8, args[0][1]) if len(args) == 1 and args[0][0] == f32 else None


def _nearest8(a: Array) -> Array:
    whole = np.where(np.isnan(a), 0, np.rint(a))
    if whole.min(initial=0) < -128 or whole.max(initial=0) > 127:
        raise VerifyError(f"@nearest8: a holds {a.min()} to {a.max()}; expected values from -128 to 127")
    return whole.astype(np.int8)


def _zip_result(args: Sequence[VectorType]) -> VectorType | None:
    same = len(args) == 2 and args[0] == args[1] and args[0][0] == f32
    return (bf16, 2 * args[0][1]) if same else None


def _zip(a: Array, b: Array) -> Array:
    return np.stack([a, b], axis=1).reshape(-1).astype(ml_dtypes.bfloat16)


def _exp2(a: Array) -> Array:
    if a.max(initial=-np.inf) > MAX_EXP2:
        raise VerifyError(f"@exp2: a holds {a.max()}; expected values up to {MAX_EXP2}")
    return np.where(a <= -MAX_EXP2, np.float32(0), np.exp2(a))


def _exp2_result(args: Sequence[VectorType]) -> VectorType | None:
    return args[0] if len(args) == 1 and args[0][0] == f32 else None


def _line_result(args: Sequence[VectorType]) -> VectorType | None:
    return (i32, 1) if len(args) == 1 and args[0][1] == 1 else None


for _definition in (
    IntrinsicDef("fma", "(a, b, c: f32[L] or f64[L]) -> the same", _fma_result, _fma, is_elementwise=True),
    IntrinsicDef(
        "dot2_bf16", "(acc: f32[L], a: bf16[2L] or bf16[2], b: bf16[2L]) -> f32[L]", _dot2_result, _dot2
    ),
    IntrinsicDef("dot4_u8i8", "(acc: i32[L], a: u8[4L], b: i8[4L] or i8[4]) -> i32[L]", _dot4_result, _dot4),
    IntrinsicDef(
        "dot4_u4i8", "(acc: i32[L], a: u8[4L], b: i8[4L] or i8[4]) -> i32[L]", _dot4_result, _dot4_u4
    ),
    IntrinsicDef("low4", "(a: u8[L]) -> u8[L]", _nibble_result, lambda a: a & 15, is_elementwise=True),
    IntrinsicDef("high4", "(a: u8[L]) -> u8[L]", _nibble_result, lambda a: a >> 4, is_elementwise=True),
    IntrinsicDef("every4", "(a: u8[4L], j: i64[1]) -> u8[L]", _every4_result, _every4),
    IntrinsicDef("every2", "(a: bf16[2L], j: i64[1]) -> f32[L]", _every2_result, _every2),
    IntrinsicDef("bits", "(a: f32[L]) -> i32[L]", _bits_result, _bits, is_elementwise=True),
    IntrinsicDef("from_bits", "(a: i32[L]) -> f32[L]", _from_bits_result, _from_bits, is_elementwise=True),
    IntrinsicDef("nearest8", "(a: f32[L]) -> i8[L]", _nearest8_result, _nearest8, is_elementwise=True),
    IntrinsicDef("zip_bf16", "(a, b: f32[L]) -> bf16[2L]", _zip_result, _zip),
    IntrinsicDef("exp2", "(a: f32[L]) -> f32[L]", _exp2_result, _exp2, is_elementwise=True),
    IntrinsicDef("exp2_bf16", "(a: f32[L]) -> f32[L]", _exp2_result, _exp2, is_elementwise=True),
    IntrinsicDef("prefetch", "(a: any[1]) -> i32", _line_result, lambda a: np.zeros(1, np.int32)),
    IntrinsicDef("prefetch1", "(a: any[1]) -> i32", _line_result, lambda a: np.zeros(1, np.int32)),
    IntrinsicDef("evict", "(a: any[1]) -> i32", _line_result, lambda a: np.zeros(1, np.int32)),
):
    INTRINSICS.add(_definition.name, _definition)
