"""Measures this machine's ceilings with kernels of our own: memory bandwidth and instruction peaks.

The same code generator, thread pool and number of threads as the model: what is measured is what a step
could reach.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from strata.codegen.build import build_image
from strata.core.dims import SymDim
from strata.core.dtypes import DType, bf16, f32, i8, i32, u8
from strata.loop import build as b
from strata.loop.nodes import (
    PREFETCH,
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
from strata.runtime.profile import Ceilings
from strata.runtime.tensors import as_tensor, numpy_dtype
from strata.schedule import finalize
from strata.schedule.rules.matmul import PREFETCH_BYTES
from strata.target import Target, detect_host

CHUNK_ELEMS = 1 << 16  # f32 elements per task of the bandwidth kernel: 256 KiB
READ_BYTES = 1 << 30
WARM_UP_S = 0.05  # two threads that wake up may share a core for some milliseconds
ROUNDS = 100_000  # of the peak kernels: some milliseconds per task
TASKS_PER_THREAD = 4
CHAINS = 24  # independent accumulators: latency 4 x 2 pipes needs 8; 24 is a register tile


def _loop(name: str, extent: Expr, kind: ForKind, body: Callable[[Expr], Stmt]) -> Stmt:
    var = Var(name)
    return For(var, extent, kind, body(var))


def bandwidth_func(lanes: int) -> Func:
    """Sum every element of ``x [chunks, CHUNK_ELEMS]``: four vectors of partial sums per task.

    It prefetches as products of one row do, for which it is the ceiling.
    """
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

        i = Var("i")
        ahead = ((PREFETCH + x.name, max(1, PREFETCH_BYTES // (4 * 4 * lanes))),)
        sums = each(lambda v, lane: add(i, v, lane))
        read = For(i, index(CHUNK_ELEMS // (4 * lanes)), ForKind.SERIAL, sums, ahead)
        clear = each(lambda v, lane: Store(acc, (v, lane), b.const(0.0, f32)))
        write = each(lambda v, lane: Store(y, (t, b.add(b.mul(v, lanes), lane)), Load(acc, (v, lane))))
        return Alloc(acc, seq(clear, read, write))

    return finalize(Func("bandwidth", (x, y), _loop("t", size(chunks), ForKind.PARALLEL, task)))


@dataclass(frozen=True, slots=True)
class Peak:
    """An instruction whose peak bounds products.

    Attributes:
        title: For people.
        products: Multiply-adds per lane of the sums.
        sums: Dtype of the sums.
        operands: Dtypes of the factors.
        intrinsic: Its name; "" = multiply and add.
        exists: Whether a target has it.
    """

    title: str
    products: int
    sums: DType
    operands: tuple[DType, DType]
    intrinsic: str
    exists: Callable[[Target], bool]


PEAKS: dict[str, Peak] = {
    "f32": Peak("f32 multiply-add", 1, f32, (f32, f32), "", lambda target: True),
    "bf16": Peak("bf16 dot product", 2, f32, (bf16, bf16), "dot2_bf16", lambda target: target.has_bf16_dot),
    "int8": Peak("int8 dot product", 4, i32, (u8, i8), "dot4_u8i8", lambda target: target.has_int8_dot),
}


def peak_func(lanes: int, name: str) -> Func:
    """Per task ``rounds`` times ``CHAINS`` independent instructions of ``PEAKS[name]`` in registers.

    ``acc[c] += x[0] * y[0]`` for each chain ``c``; ``z [tasks, CHAINS * lanes]`` gets the sums.
    """
    tasks, rounds = SymDim("tasks", 1, 1 << 10), SymDim("rounds", 1, 1 << 30)
    peak = PEAKS[name]
    wide = peak.products * lanes
    factors = [Buffer(n, (1, wide), dtype) for n, dtype in zip("xy", peak.operands, strict=True)]
    r, z = Buffer("r", (rounds,), f32), Buffer("z", (tasks, CHAINS * lanes), peak.sums)
    acc = Buffer("acc", (CHAINS, lanes), peak.sums, MemSpace.REGISTER)

    def chains(body: Callable[[Expr], Stmt]) -> Stmt:
        return _loop("c", index(CHAINS), ForKind.UNROLL, body)

    def vector(c: Expr) -> Load:
        return Load(acc, (c, b.ramp(index(0), lanes)))

    def step(c: Expr, one: Expr, other: Expr) -> Stmt:
        if peak.intrinsic:
            value: Expr = Intrinsic(peak.intrinsic, (vector(c), one, other), peak.sums, lanes)
        else:
            value = b.add(vector(c), b.mul(one, other))
        return Store(acc, (c, b.ramp(index(0), lanes)), value)

    def task(t: Expr) -> Stmt:
        operands = [Load(f, (index(0), b.ramp(index(0), wide))) for f in factors]
        names = [Var(f"v{k}", o.dtype, wide) for k, o in enumerate(operands)]
        work = _loop(
            "i", size(rounds), ForKind.SERIAL, lambda i: chains(lambda c: step(c, names[0], names[1]))
        )
        for var, operand in zip(names, operands, strict=True):
            work = Let(var, operand, work)
        zero = b.splat(b.const(0, peak.sums), lanes)
        clear = chains(lambda c: Store(acc, (c, b.ramp(index(0), lanes)), zero))
        write = chains(lambda c: Store(z, (t, b.ramp(b.mul(c, lanes), lanes)), vector(c)))
        return Alloc(acc, seq(clear, work, write))

    return Func(f"peak_{name}", (*factors, r, z), _loop("t", size(tasks), ForKind.PARALLEL, task))


@cache
def _image(target: Target, num_threads: int) -> LoadedImage:
    names = [name for name, peak in PEAKS.items() if peak.exists(target)]
    funcs = [bandwidth_func(target.lanes_f32), *(peak_func(target.lanes_f32, name) for name in names)]
    return load_image(build_image(funcs, [], target).blob, num_threads)


def _rates(amount: float, run: Callable[[], object], repeats: int) -> list[float]:
    """``amount`` per second of several runs, once the threads are awake and spread over the cores."""
    end = time.perf_counter() + WARM_UP_S
    run()
    while time.perf_counter() < end:
        run()
    rates = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        rates.append(amount / (time.perf_counter() - start))
    return rates


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
    return statistics.median(_rates(x.nbytes, lambda: kernel(*args), repeats))


def measure_peak(num_threads: int, name: str = "f32", repeats: int = 5) -> float | None:
    """Flop per second of a register-resident loop; ``None`` if the instruction does not exist here.

    Args:
        num_threads: Threads.
        name: In :data:`PEAKS`. A product and its addition count as two, integers too.
        repeats: The best of so many: a peak is what nothing exceeds.
    """
    target, peak = detect_host(), PEAKS[name]
    if not peak.exists(target):
        return None
    lanes, image, tasks = target.lanes_f32, _image(target, num_threads), TASKS_PER_THREAD * num_threads
    wide = peak.products * lanes
    value = 1e-3 if peak.sums.is_float else 1
    factors = [np.full((1, wide), value).astype(numpy_dtype(d.name)) for d in peak.operands]
    r, z = np.zeros(ROUNDS, np.float32), np.empty((tasks, CHAINS * lanes), numpy_dtype(peak.sums.name))
    flop = 2.0 * wide * CHAINS * ROUNDS * tasks
    kernel, args = image.function(f"peak_{name}"), [as_tensor(a) for a in (*factors, r, z)]
    return max(_rates(flop, lambda: kernel(*args), repeats))


def measure_ceilings(num_threads: int, num_bytes: int = READ_BYTES, repeats: int = 3) -> Ceilings:
    """All peaks that exist here, and the bandwidth."""
    peaks = {name: measure_peak(num_threads, name, repeats) for name in PEAKS}
    bandwidth = measure_bandwidth(num_threads, num_bytes, repeats)
    return Ceilings({k: v for k, v in peaks.items() if v is not None}, bandwidth, "measured")
