"""Kernels written in Python, one per feature of the language, with what they compute in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from strata.loop.nodes import Func
from strata.loop.script import script
from strata.script import (
    Out,
    alloc,
    bf16,
    block,
    bool_,
    dim,
    erf,
    exp,
    f16,
    f32,
    f64,
    floor,
    grid,
    i32,
    i64,
    init,
    intrinsic,
    local,
    parallel,
    ramp,
    reduce,
    reduce_max,
    reduce_min,
    reduce_sum,
    register,
    rint,
    spatial,
    splat,
    sqrt,
    static_range,
    unroll,
    vectorize,
)

n = dim("n", 1, 64)
m = dim("m", 4, 64, multiple_of=4)
TAPS = (0.25, 0.5, 0.25)
WIDE = True
SIZES = {"rows": 3}


@dataclass(frozen=True)
class Case:
    """A kernel, its inputs for a size, and its outputs."""

    func: Func
    inputs: Callable[[np.random.Generator], list[np.ndarray]]
    expected: Callable[..., Any]


CASES: dict[str, Case] = {}


def case(expected: Callable[..., Any], *inputs: Any) -> Callable[[Any], Any]:
    """Add a kernel; inputs are shapes of f32 arrays, or functions of a random generator."""

    def arrays(rng: np.random.Generator) -> list[np.ndarray]:
        return [x(rng) if callable(x) else rng.standard_normal(x).astype(np.float32) for x in inputs]

    def add(function: Any) -> Any:
        CASES[function.__name__] = Case(script(function), arrays, expected)
        return function

    return add


def integers(shape: Any, high: int = 7, low: int = 0, dtype: Any = np.int32) -> Any:
    return lambda rng: rng.integers(low, high, shape).astype(dtype)


@case(lambda a: a + np.float32(1), (8,))
def add_one(a: f32[8], b: Out[f32[8]]):
    for i in grid(8):
        b[i] = a[i] + 1.0


@case(lambda x, w: x @ w.T, (3, 16), (5, 16))
def dense(x: f32[n, 16], w: f32[5, 16], y: Out[f32[n, 5]]):
    for i, j, k in block("dense", n, 5, reduce(16)):
        with init():
            y[i, j] = 0.0
        y[i, j] += x[i, k] * w[j, k]


@case(lambda x, w: x @ w.T, (3, 16), (5, 16))
def dense_in_loops(x: f32[n, 16], w: f32[5, 16], y: Out[f32[n, 5]]):
    for i, j, k in grid(n, 5, 16):
        with block("dense", reduce(k)):
            with init():
                y[i, j] = 0.0
            y[i, j] += x[i, k] * w[j, k]


@case(lambda x: x.sum(axis=1, dtype=np.float32), (5, 12))
def tiled_sum(x: f32[n, 12], y: Out[f32[n]]):
    for io, ii, ko, ki in grid((n + 3) * 1, 1, 3, 4):
        with block("sum", spatial(io + ii, n), reduce(ko * 4 + ki, 12), where=io < n) as (vi, vk):
            with init():
                y[vi] = 0.0
            y[vi] += x[vi, vk]


@case(lambda x: 2 * x, (6, 4))
def captured(x: f32[n, 4], y: Out[f32[n, 4]]):
    for i in parallel(n):
        row = i * 1
        for j in block("twice", 4):
            y[row, j] = x[i, j] * 2.0


@case(lambda x: x.reshape(-1, 4).sum(axis=1), (12,))
def nested_blocks(x: f32[m], y: Out[f32[m]]):
    for i in block("outer", m):
        y[i] = x[i]
    for i in block("zero", m):
        y[i] = 0.0 if i >= 0 else y[i]
    for io in grid(3):
        with block("group", io):
            for k in block("add", reduce(4)):
                y[io] += x[io * 4 + k]


CASES["nested_blocks"] = Case(
    CASES["nested_blocks"].func,
    CASES["nested_blocks"].inputs,
    lambda x: np.concatenate([x.reshape(-1, 4).sum(axis=1), np.zeros(9, np.float32)]),
)


@case(
    lambda x: np.exp(x - x.max(1, keepdims=True)) / np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True),
    (4, 32),
)
def softmax(x: f32[n, 32], y: Out[f32[n, 32]]):
    """Names that inner suites change."""
    for i in parallel(n):
        top = x[i, 0]
        for j in range(1, 32):
            top = max(top, x[i, j])
        total = 0.0
        for j in range(0, 32, 8):
            part = exp(x[i, j : j + 8] - top)
            y[i, j : j + 8] = part
            total += reduce_sum(part)
        for j in grid(32):
            y[i, j] /= total


@case(lambda x: x.cumsum(dtype=np.float32)[-1:], (9,))
def vector_accumulator(x: f32[9], y: Out[f32[1]]):
    partial = splat(f32(0.0), 4)
    for k in grid(2):
        partial += x[k * 4 : k * 4 + 4]
    y[0] = reduce_sum(partial) + x[8]


def gelu(x, scale=0.5):
    """A function that kernels call."""
    inner = x * math.sqrt(0.5)
    return scale * x * (1.0 + erf(inner))


def write_twice(y, i, value):
    y[i, 0] = value
    y[i, 1] = -value


@case(
    lambda x: np.stack(
        [
            0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
            -0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))),
        ],
        1,
    ),
    (7,),
)
def inlined(x: f32[n], y: Out[f32[n, 2]]):
    for i in grid(n):
        write_twice(y, i, gelu(x[i], scale=0.5))


@case(lambda x: np.convolve(x, TAPS, "valid"), (10,))
def static_loops(x: f32[10], y: Out[f32[8]]):
    assert len(TAPS) == 3, "three taps"
    for i in grid(8):
        y[i] = sum(t * x[i + k] for k, t in enumerate(TAPS))
    if not WIDE:
        y[0] = 0.0


@case(lambda x: np.convolve(x, TAPS, "valid"), (10,))
def static_sums(x: f32[10], y: Out[f32[8]]):
    for i in grid(8):
        total = 0.0
        for k in static_range(len(TAPS)):
            total = total + TAPS[k] * x[i + k]
        y[i] = total


@case(lambda x: np.array([x.min(), x.max(), abs(x).sum(dtype=np.float32)]), (16,))
def lanes(x: f32[16], y: Out[f32[3]]):
    v = x[:]
    y[0] = reduce_min(v)
    y[1] = reduce_max(x[ramp(0, 16)])
    y[2] = reduce_sum(abs(v))


@case(
    lambda x: np.where(np.arange(len(x)) < 13, x * 2, -1),
    lambda rng: rng.standard_normal(16).astype(np.float32),
)
def masks(x: f32[16], y: Out[f32[16]]):
    for i in grid(2):
        inside = ramp(i * 8, 8) < 13
        if inside:
            y[i * 8 : i * 8 + 8] = 2.0 * x[i * 8 : i * 8 + 8]
        else:
            y[i * 8 : i * 8 + 8] = -1.0


@case(lambda x: np.concatenate([x, np.zeros(3, np.float32)])[2:], (6,))
def guarded_loads(x: f32[n], y: Out[f32[n + 1]]):
    for i in grid(n + 1):
        y[i] = x[i + 2] if i + 2 < n else 0.0


@case(
    lambda x: (
        np.where(x > 0, x, 0).cumsum()[-1:] * 0 + sum(v for k, v in enumerate(x) if k > 0 and x[k - 1] > 0)
    ),
    (9,),
)
def guarded_and(x: f32[n], y: Out[f32[1]]):
    total = 0.0
    for i in grid(n):
        if i > 0 and x[i - 1] > 0.0:
            total += x[i]
    y[0] = total


@case(lambda x: np.where(x > 0, np.where(x > 1, 2, 1), np.where(x < -1, -2, -1)).astype(np.int32), (33,))
def branches(x: f32[n], y: Out[i32[n]]):
    for i in grid(n):
        if x[i] > 0.0:
            if x[i] > 1.0:
                y[i] = 2
            else:
                y[i] = 1
        elif x[i] < -1.0:
            y[i] = -2
        else:
            y[i] = -1


@case(lambda x: x[:, ::-1], (3, 8))
def buffers(x: f32[n, 8], y: Out[f32[n, 8]]):
    whole = alloc(f32[n, 8])
    for i in grid(n):
        row = local(f32[8])
        few = register(f32[4])
        for j in grid(8):
            row[j] = x[i, 7 - j]
        for h in grid(2):
            for j in unroll(4):
                few[j] = row[h * 4 + j]
            for j in unroll(4):
                whole[i, h * 4 + j] = few[j]
    for i, j in grid(n, 8):
        y[i, j] = whole[i, j]


@case(lambda x, i: x[i], (7, 3), integers(5))
def gather(x: f32[7, 3], rows: i32[n], y: Out[f32[n, 3]]):
    for i, j in grid(n, 3):
        y[i, j] = x[rows[i], j]


@case(
    lambda x: (x.astype(np.float32) * np.float32(1.5)).astype(ml_dtypes.bfloat16),
    lambda rng: rng.standard_normal(9).astype(ml_dtypes.bfloat16),
)
def casts(x: bf16[n], y: Out[bf16[n]]):
    for i in grid(n):
        y[i] = bf16(f32(x[i]) * f32(1.5))


@case(
    lambda a, b: (a * 2 + b // 3 + b % 4 - 1 + (a > b)).astype(np.int64),
    integers(11, 9, -9),
    integers(11, 9, -9),
)
def integer_math(a: i32[n], b: i32[n], y: Out[i64[n]]):
    for i in grid(n):
        more = 1 if a[i] > b[i] else 0
        y[i] = i64(a[i] * 2 + b[i] // 3 + b[i] % 4 - 1) + i64(more)


@case(
    lambda a: np.logical_not(a) | (np.arange(len(a)) % 2 == 0), lambda rng: rng.integers(0, 2, 9).astype(bool)
)
def truth(a: bool_[n], y: Out[bool_[n]]):
    for i in grid(n):
        y[i] = not a[i] or i % 2 == 0


@case(lambda x: np.sqrt(np.floor(x * x) + 1) ** 3, lambda rng: rng.standard_normal(8))
def functions(x: f64[8], y: Out[f64[8]]):
    for i in grid(8):
        y[i] = sqrt(floor(x[i] ** 2) + 1) ** 3


@case(lambda x: np.rint(x), lambda rng: np.array([-2.5, -0.4, 0.5, 1.5, 2.6, 7.5, -3.5, 0.0]))
def halves_to_even(x: f64[8], y: Out[f64[8]]):
    for i in grid(8):
        y[i] = rint(x[i])


@case(lambda a, b, c: a * b + c, (16,), (16,), (16,))
def by_name(a: f32[16], b: f32[16], c: f32[16], y: Out[f32[16]]):
    y[0:8] = intrinsic.fma(a[0:8], b[0:8], c[0:8])
    for i in grid(8):
        y[i + 8] = intrinsic.fma(a[i + 8], b[i + 8], c[i + 8])


@case(lambda x: x * 3, (4, 16))
def loop_kinds(x: f32[4, 16], y: Out[f32[4, 16]]):
    for i in unroll(4):
        for j in vectorize(16):
            y[i, j] = x[i, j] * 3.0


@case(lambda x: np.array([len(x) / 2, len(x) + 4], np.float32), (12,))
def sizes(x: f32[m], y: Out[f32[2]]):
    half = m // 2
    y[0] = f32(half) if x.shape[0] == m else 0.0
    y[1] = f32(m + 4)


@case(lambda x: x[:1] * 3, (3,))
def python_values(x: f32[3], y: Out[f32[1]]):
    rows = SIZES["rows"]
    a, b = rows, f"{rows}"
    count = 0
    for _ in static_range(int(b)):
        count += 1
    y[0] = x[0] * count if a == 3 else x[1]


@case(lambda x: np.maximum(np.minimum(x, 1), -1), (9,))
def clipped(x: f32[n], y: Out[f32[n]]):
    for i in grid(n):
        y[i] = max(min(x[i], 1.0), -1.0)


@case(lambda x: x * 2, (3,))
def one_element(x: f32[3], y: Out[f32[3]]):
    scale = local(f32[()])
    scale[()] = 2.0
    for i in grid(3):
        y[i] = x[i] * scale[()]


@case(lambda x: x.astype(np.float16), (5,))
def half_floats(x: f32[n], y: Out[f16[n]]):
    for i in grid(n):
        y[i] = f16(x[i])


@case(lambda x: np.array([x[0] if len(x) > 4 else x[1], 1 if 2 < len(x) <= 8 else 0], np.float32), (6,))
def chained(x: f32[n], y: Out[f32[2]]):
    y[0] = x[0] if n > 4 else x[1]
    y[1] = 1.0 if 2 < n <= 8 else 0.0


def row_sum(x, i):
    """A function with a name that an inner suite changes."""
    total = 0.0
    for j in grid(x.shape[1]):
        total += x[i, j]
    return total


@case(lambda x: x.sum(1), (4, 8))
def inlined_loops(x: f32[n, 8], y: Out[f32[n]]):
    for i in grid(n):
        y[i] = row_sum(x, i) * 0.5 + 0.5 * row_sum(x, i)


@case(lambda x: 1 + x, (3, 5))
def shapes(x: f32[n, 5], y: Out[f32[n, 5]]):
    for i, j in grid(*x.shape):
        y[i, j] = x[i, j]
    for i, j in block("more", *y.shape):
        y[i, j] += np.float32(1)


@case(lambda x: np.array([(x > 0).sum(), (x > 0).any()], np.float32), (17,))
def counters(x: f32[n], y: Out[f32[2]]):
    count, some = 0, False
    for i in grid(n):
        if x[i] > 0.0:
            count += 1
            some = True
    y[0], y[1] = f32(count), 1.0 if some else 0.0


@case(lambda x: x[x > 0].sum(dtype=np.float32)[None], (16,))
def masked_accumulator(x: f32[16], y: Out[f32[1]]):
    total = splat(0.0, 4)
    for i in range(0, 16, 4):
        if x[i : i + 4] > 0.0:
            total += x[i : i + 4]
    y[0] = reduce_sum(total)


@case(lambda x: np.concatenate([x[::-1], x[-1:]]), (7,))
def parallel_places(x: f32[n], y: Out[f32[n + 1]]):
    for i in parallel(n):
        t = local(f32[1])
        t[0] = x[i]
        place = n - 1 - i
        y[place] = t[0]
        if i == n - 1:
            y[n] = t[0]


@case(lambda x: np.where(x > 0, 1, -1).astype(np.float32), (9,))
def parallel_index_in_memory(x: f32[n], y: Out[f32[n]]):
    for i in parallel(n):
        place = 0
        for j in grid(n):
            if j < i:
                place += 1
        y[place] = 1.0 if x[i] > 0.0 else -1.0
