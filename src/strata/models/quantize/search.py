"""The search for codes as machine code: one kernel per kind of codes and dtype of the weights.

A kernel reads a matrix as it is stored and works on one group after the other: extent and energy of its
values, some scales that are tried, the codes for the one that won. What makes a scale good is told in
:mod:`.codes`. Sums are in f32, in 16 lanes side by side along the group. Scales that f16 cannot hold come out
as infinite, and those of groups with values that are no numbers as NaN: that is for the caller to explain.
"""

# pyright: reportGeneralTypeIssues=false, reportInvalidTypeForm=false
# (Kernels are no Python: their annotations are values.)

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from strata.core.weight_format import WeightFormat
from strata.loop.nodes import Func
from strata.loop.script import script
from strata.runtime.tensors import as_tensor, dtype_name
from strata.script import (
    Out,
    bf16,
    dim,
    f16,
    f32,
    grid,
    i32,
    intrinsic,
    parallel,
    ramp,
    reduce_max,
    reduce_min,
    reduce_sum,
    register,
    rint,
    splat,
    static_range,
    u8,
)
from strata.target import detect_host

if TYPE_CHECKING:
    import tvm_ffi

LANES = 16
ELEMENTS = {"f32": f32, "bf16": bf16, "f16": f16}  # dtypes of weights that kernels read

# Steps that the largest magnitude is given. A positive number puts it on the longer, negative side. Finer
# grids lower the error by less than 0.2 %, and take as much longer as they have points.
GRIDS = {
    4: (7.2, 7.6, 8.0, 8.4, 8.8, -6.7, -7.1, -7.5),
    8: (127.4, 126.6, 125.8),
}
# Asymmetric: range of the group in steps, and zero points around the rounded one.
RANGES = {
    4: (13.8, 14.2, 14.6, 15.0, 15.4, 15.8, 16.2),
    8: (254.0, 255.0, 255.4),
}
OFFSETS = (-1.0, 0.0, 1.0)

Point = tuple[float, float]  # steps, offset of the zero point


@dataclass(frozen=True, slots=True)
class Kind:
    """What decides the code of a kernel.

    Attributes:
        dtype: Of the weights: a key of ``ELEMENTS``.
        format: Of the codes, whatever their groups.
        is_search: Scales are searched, not taken from the largest magnitude.
        is_weighted: Columns have importances.
        is_ragged: Groups are no multiple of 16 elements.
    """

    dtype: str
    format: WeightFormat
    is_search: bool
    is_weighted: bool
    is_ragged: bool

    @property
    def passes(self) -> tuple[tuple[Point, ...], ...]:
        """What is tried in each pass over a group."""
        bits = self.format.bits
        if not self.is_search:
            return ()
        if not self.format.is_asymmetric:
            return (tuple((steps, 0.0) for steps in GRIDS[bits]),)
        return tuple(tuple((steps, offset) for offset in OFFSETS) for steps in RANGES[bits])


def choose_codes(
    weight: np.ndarray,
    importance: np.ndarray | None,
    format: WeightFormat,
    is_search: bool,
    codes: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
) -> None:
    """Fill codes, scales and zero points of a matrix, on all threads.

    Args:
        weight: ``[N, K]`` of a dtype in ``ELEMENTS``, dense.
        importance: f32 ``[groups, K / groups]``, > 0; ``None`` = all the same.
        format: Of the codes.
        is_search: Whether scales are searched.
        codes: u8 ``[N, K]``, written.
        scales: f16 ``[N, groups]``, written.
        zeros: u8 ``[N, groups]``, written: constant in symmetric formats.
    """
    n, groups = scales.shape
    shape = (n, groups, weight.shape[1] // groups)
    kind = Kind(
        dtype_name(weight.dtype) or "",
        replace(format, group=None),
        is_search,
        importance is not None and is_search,
        shape[2] % LANES != 0,
    )
    weights = np.empty(shape[1:], np.float32) if importance is None else importance
    arrays = (weight.reshape(shape), weights, codes.reshape(shape), scales, zeros)
    _compiled(kind)(*map(as_tensor, arrays))


@cache
def _compiled(kind: Kind) -> tvm_ffi.Function:
    # Heavy, and many who read a checkpoint quantise nothing.
    from strata.codegen.build import build_image
    from strata.runtime.image import load_image
    from strata.schedule.finalize import finalize

    func = finalize(search_func(kind))
    return load_image(build_image([func], [], detect_host())).function(func.name)


# --- the kernel -----------------------------------------------------------------------------------


def search_func(kind: Kind) -> Func:
    """The kernel as a loop function ``(w, a) -> (codes, scales, zeros)``."""
    element = ELEMENTS[kind.dtype]
    rows, groups = dim("rows"), dim("groups")
    size = dim("size", multiple_of=1 if kind.is_ragged else LANES)

    def quantize_groups(
        w: element[rows, groups, size],
        a: f32[groups, size],
        codes: Out[u8[rows, groups, size]],
        scales: Out[f16[rows, groups]],
        zeros: Out[u8[rows, groups]],
    ):
        for i in parallel(rows):
            for g in grid(groups):
                group = (w, a, i, g)
                low, high, energy = _extent(kind, group)
                scale, zero, inverse = _start(kind, low, high)
                best = f32(-1.0)
                for points in kind.passes:
                    found = (best, scale, zero)
                    best, scale, zero = _better(kind, points, group, low, energy, inverse, found)
                scales[i, g] = f16(scale + (energy - energy))  # NaN where a value is no number
                zeros[i, g] = u8(i32(zero))
                _encode(kind, group, f32(f16(scale)), zero, codes)

    return script(quantize_groups, locals())


def _extent(kind, group):
    """Smallest and largest value, 0 among them, and the sum of their squares."""
    lows, highs, squares = splat(f32(0.0), LANES), splat(f32(0.0), LANES), splat(f32(0.0), LANES)
    for j in range(0, group[0].shape[2], LANES):
        v, weight = _values(kind, group, j)
        lows = min(lows, v)
        highs = max(highs, v)
        squares += v * v * weight
    return reduce_min(lows), reduce_max(highs), reduce_sum(squares)


def _start(kind, low, high):
    """Scale and zero point without a search, and the inverse of what the search divides into steps."""
    if kind.format.is_asymmetric:
        span = high - low
        scale = span / kind.format.max_code
        zero = _clip(rint(-low / scale), 0.0, kind.format.max_code) if scale > 0.0 else f32(0.0)
        inverse = 1.0 / span if span > 0.0 else f32(0.0)
    else:
        extreme = high if high > -low else low
        scale = extreme / -8.0 if kind.format.bits == 4 else abs(extreme) / 127.0
        zero = f32(kind.format.zero)
        inverse = -1.0 / extreme if extreme != 0.0 else f32(0.0)
    return scale, zero, inverse


def _better(kind, points, group, low, energy, inverse, found):
    """Gain, scale and zero point of the best of ``points``, or what was ``found`` before and is better."""
    best, scale, zero = found
    products = register(f32[len(points), LANES])
    norms = register(f32[len(points), LANES])
    for p in static_range(len(points)):
        products[p, :] = splat(f32(0.0), LANES)
        norms[p, :] = splat(f32(0.0), LANES)
    for j in range(0, group[0].shape[2], LANES):
        v, weight = _values(kind, group, j)
        for k, (steps, offset) in enumerate(points):
            z = _zero(kind, low, inverse, steps, offset)
            q = _clip(rint(v * (inverse * steps)), kind.format.min_code - z, kind.format.max_code - z)
            products[k, :] = intrinsic.fma(q * weight, v, products[k, :])
            norms[k, :] = intrinsic.fma(q * weight, q, norms[k, :])
    for r in static_range(len(points)):
        product = reduce_sum(products[r, :])
        gain = product / reduce_sum(norms[r, :]) * product
        is_better = gain > best  # never for NaN: all codes zero
        scale = energy / product if is_better else scale
        zero = _zero(kind, low, inverse, points[r][0], points[r][1]) if is_better else zero
        best = gain if is_better else best
    return best, scale, zero


def _zero(kind, low, inverse, steps, offset):
    """Zero point that belongs to a point of the search."""
    rounded = _clip(rint(-low * (inverse * steps)) + offset, 0.0, kind.format.max_code)
    return rounded if kind.format.is_asymmetric else f32(kind.format.zero)


def _encode(kind, group, scale, zero, codes):
    """Write the codes of a group."""
    for j in range(0, codes.shape[2], LANES):
        v, _ = _values(kind, group, j)
        # A division: the inverse of a subnormal scale is infinite.
        q = rint(v / scale) if scale != 0.0 else splat(f32(0.0), LANES)
        code = u8(i32(_clip(q + zero, kind.format.min_code, kind.format.max_code)))
        at = ramp(j, LANES)
        if not kind.is_ragged or at < codes.shape[2]:
            codes[group[2], group[3], at] = code


def _values(kind, group, j):
    """16 values and the importances of their columns; zeros beyond the end, which change nothing."""
    w, a, i, g = group
    at = ramp(j, LANES)
    v = f32(w[i, g, at]) if not kind.is_ragged or at < w.shape[2] else 0.0
    if kind.is_weighted:
        weight = a[g, at] if not kind.is_ragged or at < a.shape[1] else 0.0
    else:
        weight = splat(f32(1.0), LANES)
    return v, weight


def _clip(x, low, high):
    return min(max(x, f32(low)), f32(high))
