"""Hardware operations that loop functions may name: their types and what they compute.

============== ============================================ =============================================
name           arguments                                    result, lane ``l``
============== ============================================ =============================================
``fma``        ``a, b, c``: f32 or f64, L lanes each        ``a[l]*b[l] + c[l]``, rounded once
``dot2_bf16``  ``acc``: f32 L; ``a, b``: bf16, 2L lanes     ``(acc[l] + a[2l+1]*b[2l+1]) + a[2l]*b[2l]``
============== ============================================ =============================================

``a`` of ``dot2_bf16`` may have 2 lanes: one pair for all lanes of the result.

The semantics here are what the interpreter runs and what a code generator has to emit, up to subnormals
(which the instruction behind ``dot2_bf16`` takes for 0). :data:`INTRINSICS` is open: register more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from strata.core.dtypes import DType, bf16, f32, f64
from strata.core.errors import VerifyError
from strata.core.registry import Registry

VectorType = tuple[DType, int]
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class IntrinsicDef:
    """One hardware operation.

    Attributes:
        name: Name in ``Intrinsic.name``.
        signature: For people: ``"(acc: f32[L], a: bf16[2L] or bf16[2], b: bf16[2L]) -> f32[L]"``.
        result: Dtype and lanes of the result from those of the arguments; ``None`` if the arguments do
            not fit.
        evaluate: The value, from one 1-d array per argument (also for one lane) to a 1-d array.
    """

    name: str
    signature: str
    result: Callable[[Sequence[VectorType]], VectorType | None]
    evaluate: Callable[..., Array]


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


INTRINSICS.add("fma", IntrinsicDef("fma", "(a, b, c: f32[L] or f64[L]) -> the same", _fma_result, _fma))
INTRINSICS.add(
    "dot2_bf16",
    IntrinsicDef(
        "dot2_bf16", "(acc: f32[L], a: bf16[2L] or bf16[2], b: bf16[2L]) -> f32[L]", _dot2_result, _dot2
    ),
)
