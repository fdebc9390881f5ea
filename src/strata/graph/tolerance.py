"""The one table of tolerances: how far two correct computations of the same thing may differ.

Tests and ``strata debug compare`` go by it.

Two programs that follow the numeric rule (``graph.ops.common``: widen, compute in ``accumulate``, round
once) differ by

* **result rounding**: unit roundoff ``u(dtype)``. Two values that differ a little before rounding can round
  to neighbours, which are ``2 u`` apart relative to the value;
* **functions** (exp, tanh, erf, division, ...): each implementation is within ``FUNCTION_ULPS`` units of
  roundoff of ``accumulate``, so two are within twice that;
* **order of summation**: a sum of K terms with rms ``scale`` and random signs has partial sums of size
  ``scale * sqrt(i)``; each of the K additions rounds with an error of rms ``u(accumulate)/sqrt(3)`` times
  that, and the errors are independent (Higham & Mary 2019, "A new approach to probabilistic rounding error
  analysis"), so the sum's error has rms ``scale * u * K / sqrt(6)``. Six standard deviations (one element in
  5e8 lies outside), for each of two programs: ``2 * 6 / sqrt(6) < 5``; terms whose mean is not 0 behave
  worse, which ``SUM_FACTOR = 8`` allows for.

The first two are relative (``rtol``), the third is absolute (``atol``): the sum itself may cancel to 0.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np

from strata.core.dtypes import DType, f32, f64
from strata.graph.types import RopeMode

# Unit roundoff 2**-p: p = bits of the significand, the hidden one included (IEEE 754; bf16: 8).
UNIT_ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
# Smallest subnormal: below it a result is 0 in one program and the smallest number in the other.
SMALLEST = {"f64": 5e-324, "f32": 1.5e-45, "f16": 6.0e-8, "bf16": 9.2e-41}
FUNCTION_ULPS = 8  # our vector exp and tanh stay within 4 (tests/ops); compositions such as silu double it
SUM_FACTOR = 8
ACTIVATION_ERROR = 4 / (127 * 12**0.5)  # of int8 activations, relative to their rms
SAMPLE_RMS = 4.0  # rms of a product of two sample operands (each has spread 2, graph.samples)


class Tolerance(TypedDict):
    """Keyword arguments of ``numpy.testing.assert_allclose``."""

    rtol: float
    atol: float


def for_(
    dtype: DType, k: int = 0, *, accumulate: DType | None = None, scale: float = SAMPLE_RMS
) -> Tolerance:
    """Tolerance for results of ``dtype``.

    Args:
        dtype: Result dtype; integers and bools must be equal.
        k: Terms that are summed per element; 0 for elementwise ops.
        accumulate: Dtype of the arithmetic; default f64 for f64, else f32.
        scale: Root mean square of the summed terms.

    >>> for_(f32)["atol"] < 1e-40
    True
    """
    if not dtype.is_float:
        return {"rtol": 0.0, "atol": 0.0}
    inner = accumulate or (f64 if dtype is f64 else f32)
    u, u_inner = UNIT_ROUNDOFF[dtype.name], UNIT_ROUNDOFF[inner.name]
    return {
        "rtol": 2 * u + 2 * FUNCTION_ULPS * u_inner,
        "atol": 2 * SMALLEST[dtype.name] + SUM_FACTOR * u_inner * k * scale,
    }


def _size(values: Any) -> float:
    """Root mean square of the finite elements."""
    x = np.asarray(values).astype(np.float64)
    x = x[np.isfinite(x)]
    return float(np.sqrt(np.mean(x * x))) if x.size else 0.0


def _largest(values: Any) -> float:
    x = np.abs(np.asarray(values).astype(np.float64))
    x = x[np.isfinite(x)]
    return float(x.max()) if x.size else 0.0


def for_op(op: str, operands: Sequence[Any], attrs: Mapping[str, Any], dtype: DType) -> Tolerance:
    """Tolerance for one graph op on given operands, off which the number and size of summed terms are read.

    Beyond the module's rule: ``gelu`` adds 1 to an erf or tanh that is close to -1, an absolute error of
    some units of roundoff times x; ``softmax`` and attention exponentiate differences that carry their own
    rounding; a norm divides by a spread that may be small beside the values.
    """
    if not dtype.is_float:
        return for_(dtype)
    u = UNIT_ROUNDOFF["f64" if dtype is f64 else "f32"]
    base = for_(dtype)
    match op:
        case "matmul":
            return for_(dtype, operands[0].shape[-1], scale=_size(operands[0]) * _size(operands[1]))
        case "dequantize":
            return base
        case "quantized_matmul" if attrs["activations"].name == "bf16":
            a, codes, scales = operands[:3]
            spread = float(np.abs(codes.astype(np.float64)).max(initial=0.0))
            return for_(dtype, a.shape[-1], scale=_size(a) * _size(scales) * spread)
        case "quantized_matmul":  # codes are exact: only the sums over groups round
            a, codes, scales = operands[:3]
            spread = float(np.abs(codes.astype(np.float64)).max(initial=0.0))
            terms = a.shape[-1] // attrs["group"]
            size = _largest(a) * _largest(scales) * spread * attrs["group"]
            return for_(dtype, terms, scale=size)
        case "sum" | "mean":
            k = int(np.prod([operands[0].shape[a] for a in attrs["axes"]]))
            return for_(dtype, k, scale=_size(operands[0]) / (k if op == "mean" else 1))
        case "gelu":
            return {**base, "atol": base["atol"] + FUNCTION_ULPS * u * _largest(operands[0])}
        case "softmax":
            terms, spread = operands[0].shape[attrs["axis"]], min(2 * _largest(operands[0]), 104.0)
            return {**base, "rtol": base["rtol"] + 2 * u * (terms + spread)}
        case "rms_norm":
            return {**base, "rtol": base["rtol"] + 2 * u * operands[0].shape[-1]}
        case "layer_norm":
            x = operands[0].astype(np.float64)
            spread = float(np.sqrt(x.var(axis=-1).min() + attrs["eps"]))
            shift = 2 * u * x.shape[-1] * _largest(x) / spread * _largest(operands[1])
            return {"rtol": base["rtol"] + 2 * u * x.shape[-1], "atol": base["atol"] + shift}
        case "rope":
            return for_(dtype, 2, scale=_size(operands[0]))
        case "paged_attention":
            return _attention(operands, attrs, base)
        case "tensor_expr" | "fused":
            return for_(dtype, 32)
    return base


def _attention(operands: Sequence[Any], attrs: Mapping[str, Any], base: Tolerance) -> Tolerance:
    """Scores, weights, and the rounding of weights to the dtype of products.

    A weight is rounded relative to a maximum that programs may choose: an error of ``u`` of each, so of ``u``
    times the largest value at most. Factors that are rotated and then rounded can round to neighbours.
    """
    q, cache = operands
    layer, u = attrs["layer"], UNIT_ROUNDOFF["f32"]
    product = UNIT_ROUNDOFF[cache.type.product_dtype.name]
    terms = int(cache.positions.max()) + 1
    keys, largest = _size(cache.k_pages[layer]), _largest(cache.v_pages[layer])
    if cache.type.is_scaled:
        keys, largest = keys * _largest(cache.k_scales[layer]), largest * _largest(cache.v_scales[layer])
    score = SUM_FACTOR * u * q.shape[-1] * _size(q) * keys * attrs["scale"]
    if cache.type.rope is RopeMode.INLINE and product > u:
        score *= product / u
    weight = score + 2 * u * (terms + FUNCTION_ULPS)  # relative error of a softmax weight
    rounding = product if product > u else 0.0
    return {**base, "atol": base["atol"] + (2 * weight + rounding) * largest}


def for_quantized_model(num_layers: int, logit_rms: float = 1.0) -> Tolerance:
    """Tolerance for logits of a model with quantised weights against the same weights in f32.

    The difference is the rounding of activations to int8: steps of ``top / 127`` for a group whose largest
    magnitude is ``top``, an error of rms ``top / (127 sqrt(12))``. The largest of 128 normal values is below
    4 rms with few exceptions, so the relative error of what a matmul reads is at most ``ACTIVATION_ERROR``.
    It adds up as in :func:`for_model`: scores and weighted values carry the errors of q, k and v on.
    """
    return {"rtol": 0.0, "atol": 6 * ACTIVATION_ERROR * (6 * num_layers + 1) ** 0.5 * logit_rms}


def for_model(dtype: DType, num_layers: int, logit_rms: float = 1.0) -> Tolerance:
    """Tolerance for logits of a language model whose matmul operands are rounded to ``dtype``.

    Each layer rounds the operands of four matmuls, the stored K and V, and (bf16) q and the weights of V:
    eight roundings of relative size ``u``, independent in sign. A random walk of ``8 * num_layers + 1`` of
    them has rms ``u * sqrt(8 * num_layers + 1)`` relative to the logits' rms; six standard deviations are
    allowed. Programs that round the same values at the same places differ far less; this bounds
    programs that round at different places. For f32 it is the project's bound on logits of rms 1: 2e-4
    (3000 units of roundoff).
    """
    if UNIT_ROUNDOFF[dtype.name] <= UNIT_ROUNDOFF["f32"]:
        return {"rtol": 0.0, "atol": 2e-4 * max(1.0, logit_rms)}
    return {"rtol": 0.0, "atol": 6 * UNIT_ROUNDOFF[dtype.name] * (8 * num_layers + 1) ** 0.5 * logit_rms}
