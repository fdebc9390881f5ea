"""Measures this machine's ceilings with kernels of our own: memory bandwidth and instruction peaks.

The same code generator, thread pool and number of threads as the model: what is measured is what a step
could reach.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import cache

import numpy as np

from strata.codegen.build import build_image
from strata.core.dims import SymDim
from strata.core.dtypes import bf16, f32
from strata.loop import build as b
from strata.loop.nodes import (
    Alloc,
    Buffer,
    Expr,
    For,
    ForKind,
    Func,
    Intrinsic,
    Let,
    Load,
    MemSpace,
    Stmt,
    Store,
    Var,
    index,
    seq,
    size,
)
from strata.runtime.image import LoadedImage, load_image
from strata.runtime.tensors import as_tensor
from strata.schedule import finalize
from strata.target import Target, detect_host

CHUNK_ELEMS = 1 << 16  # f32 elements per task of the bandwidth kernel: 256 KiB
READ_BYTES = 1 << 30
ROUNDS = 100_000  # of the peak kernels: some milliseconds per task
TASKS_PER_THREAD = 4
CHAINS = 24  # independent accumulators: latency 4 x 2 pipes needs 8; 24 is a register tile


def _loop(name: str, extent: Expr, kind: ForKind, body: Callable[[Expr], Stmt]) -> Stmt:
    var = Var(name)
    return For(var, extent, kind, body(var))


def bandwidth_func(lanes: int) -> Func:
    """Sum every element of ``x [chunks, CHUNK_ELEMS]``: four vectors of partial sums per task."""
    chunks = SymDim("chunks", 1, 1 << 20)
    x, y = Buffer("x", (chunks, CHUNK_ELEMS), f32), Buffer("y", (chunks, 4 * lanes), f32)
    acc = Buffer("acc", (4, lanes), f32, MemSpace.REGISTER)

    def each(body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        return _loop(
            "v",
            index(4),
            ForKind.UNROLL,
            lambda v: _loop("l", index(lanes), ForKind.VECTORIZE, lambda lane: body(v, lane)),
        )

    def task(t: Expr) -> Stmt:
        def add(i: Expr, v: Expr, lane: Expr) -> Stmt:
            place = b.add(b.mul(b.add(b.mul(i, 4), v), lanes), lane)
            return Store(acc, (v, lane), b.add(Load(acc, (v, lane)), Load(x, (t, place))))

        read = _loop(
            "i",
            index(CHUNK_ELEMS // (4 * lanes)),
            ForKind.SERIAL,
            lambda i: each(lambda v, lane: add(i, v, lane)),
        )
        clear = each(lambda v, lane: Store(acc, (v, lane), b.const(0.0, f32)))
        write = each(lambda v, lane: Store(y, (t, b.add(b.mul(v, lanes), lane)), Load(acc, (v, lane))))
        return Alloc(acc, seq(clear, read, write))

    return finalize(Func("bandwidth", (x, y), _loop("t", size(chunks), ForKind.PARALLEL, task)))


def peak_func(lanes: int, with_bf16: bool) -> Func:
    """Per task ``rounds`` times ``CHAINS`` independent multiply-adds (or bf16 dot products) in registers.

    ``acc[c] += x[0] * x[1]`` for each chain ``c``; ``y [tasks, CHAINS * lanes]`` gets the sums.
    """
    tasks, rounds = SymDim("tasks", 1, 1 << 10), SymDim("rounds", 1, 1 << 30)
    wide = 2 * lanes if with_bf16 else lanes
    x = Buffer("x", (2, wide), bf16 if with_bf16 else f32)
    r, y = Buffer("r", (rounds,), f32), Buffer("y", (tasks, CHAINS * lanes), f32)
    acc = Buffer("acc", (CHAINS, lanes), f32, MemSpace.REGISTER)

    def chains(body: Callable[[Expr], Stmt]) -> Stmt:
        return _loop("c", index(CHAINS), ForKind.UNROLL, body)

    def vector(c: Expr) -> Load:
        return Load(acc, (c, b.ramp(index(0), lanes)))

    def step(c: Expr, one: Expr, other: Expr) -> Stmt:
        if with_bf16:
            value: Expr = Intrinsic("dot2_bf16", (vector(c), one, other), f32, lanes)
        else:
            value = b.add(vector(c), b.mul(one, other))
        return Store(acc, (c, b.ramp(index(0), lanes)), value)

    def task(t: Expr) -> Stmt:
        operands = [Load(x, (index(k), b.ramp(index(0), wide))) for k in range(2)]
        names = [Var(f"x{k}", o.dtype, wide) for k, o in enumerate(operands)]
        work = _loop(
            "i", size(rounds), ForKind.SERIAL, lambda i: chains(lambda c: step(c, names[0], names[1]))
        )
        for name, operand in zip(names, operands, strict=True):
            work = Let(name, operand, work)
        clear = chains(lambda c: Store(acc, (c, b.ramp(index(0), lanes)), b.splat(b.const(0.0, f32), lanes)))
        write = chains(lambda c: Store(y, (t, b.ramp(b.mul(c, lanes), lanes)), vector(c)))
        return Alloc(acc, seq(clear, work, write))

    name = "peak_bf16" if with_bf16 else "peak_f32"
    return Func(name, (x, r, y), _loop("t", size(tasks), ForKind.PARALLEL, task))


@cache
def _image(target: Target, num_threads: int) -> LoadedImage:
    funcs = [bandwidth_func(target.lanes_f32), peak_func(target.lanes_f32, False)]
    if target.has_bf16_dot:
        funcs.append(peak_func(target.lanes_f32, True))
    return load_image(build_image(funcs, [], target).blob, num_threads)


def _median_rate(amount: float, run: Callable[[], object], repeats: int) -> float:
    run()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        rates.append(amount / (time.perf_counter() - start))
    return statistics.median(rates)


@cache
def _read_buffer(num_bytes: int) -> np.ndarray:
    data = np.empty((num_bytes // 4 // CHUNK_ELEMS, CHUNK_ELEMS), np.float32)
    data.fill(1.0)  # touch every page
    return data


def measure_bandwidth(num_threads: int, num_bytes: int = READ_BYTES, repeats: int = 5) -> float:
    """Bytes per second read from memory by ``num_threads`` threads.

    The median of ``repeats`` passes over ``num_bytes``.
    """
    target = detect_host()
    image, x = _image(target, num_threads), _read_buffer(num_bytes)
    y = np.empty((x.shape[0], 4 * target.lanes_f32), np.float32)
    kernel, args = image.function("bandwidth"), [as_tensor(a) for a in (x, y)]
    return _median_rate(x.nbytes, lambda: kernel(*args), repeats)


def measure_peak(num_threads: int, dtype: str = "f32", repeats: int = 5) -> float | None:
    """Flop per second of register-resident multiply-adds; ``None`` if the instruction does not exist here."""
    target = detect_host()
    if dtype == "bf16" and not target.has_bf16_dot:
        return None
    lanes, is_bf16 = target.lanes_f32, dtype == "bf16"
    image, tasks = _image(target, num_threads), TASKS_PER_THREAD * num_threads
    wide = 2 * lanes if is_bf16 else lanes
    x = np.full((2, wide), 1e-3, np.float32)
    if is_bf16:
        import ml_dtypes

        x = x.astype(ml_dtypes.bfloat16)
    r, y = np.zeros(ROUNDS, np.float32), np.empty((tasks, CHAINS * lanes), np.float32)
    flop = 2.0 * wide * CHAINS * ROUNDS * tasks
    kernel, args = image.function(f"peak_{dtype}"), [as_tensor(a) for a in (x, r, y)]
    return _median_rate(flop, lambda: kernel(*args), repeats)
