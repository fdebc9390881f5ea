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
from strata.loop.matrix import ROWS
from strata.loop.nodes import (
    MATRIX,
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


def bandwidth_func(lanes: int, ahead_bytes: int) -> Func:
    """Sum every element of ``x [chunks, CHUNK_ELEMS]``: four vectors of partial sums per task.

    It asks for data so many bytes ahead as products of one row do, for which it is the ceiling.
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
        ahead = ((PREFETCH[2] + x.name, max(1, ahead_bytes // (4 * 4 * lanes))),)
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
        by_tiles: Whether a target has a matrix unit for it.
    """

    title: str
    products: int
    sums: DType
    operands: tuple[DType, DType]
    intrinsic: str
    exists: Callable[[Target], bool]
    by_tiles: Callable[[Target], bool] = lambda target: False


PEAKS: dict[str, Peak] = {
    "f32": Peak("f32 multiply-add", 1, f32, (f32, f32), "", lambda target: True),
    "bf16": Peak(
        "bf16 multiply-add", 2, f32, (bf16, bf16), "dot2_bf16",
        lambda target: target.multiplies_bf16_pairs, lambda target: target.has_matrix_bf16,
    ),
    "int8": Peak(
        "int8 multiply-add", 4, i32, (u8, i8), "dot4_u8i8",
        lambda target: target.has_int8_dot, lambda target: target.has_matrix_int8,
    ),
}  # fmt: skip


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


def tile_peak_func(name: str, pairs: int = 1) -> Func:
    """Per task ``rounds`` times the four products of two by two tiles by a matrix unit (``loop.matrix``).

    ``z [tasks, 32, 32] += x [i % pairs, 32, 16 groups] * w [i % pairs, 16 groups, 32 columns]`` in round i:
    one pair of tiles of each operand stays in tile registers, several are loaded again and again.
    """
    tasks, rounds, side = SymDim("tasks", 1, 1 << 10), SymDim("rounds", 1, 1 << 30), 2 * ROWS
    peak = PEAKS[name]
    group, (own, shared) = peak.products, peak.operands
    x = Buffer("x", (pairs, side, ROWS * group), shared)
    w = Buffer("w", (pairs, ROWS, side * group), own)
    r, z = Buffer("r", (rounds,), f32), Buffer("z", (tasks, side, side), peak.sums)
    acc = Buffer("acc", (side, side), peak.sums, MemSpace.LOCAL)

    def nest(i: Expr, m: int, n: int) -> Stmt:
        def product(row: Expr, g: Expr) -> Stmt:
            place = (b.add(row, m * ROWS), b.ramp(index(n * ROWS), ROWS))
            pair = b.floormod(i, pairs)
            one = Load(x, (pair, b.add(row, m * ROWS), b.ramp(b.mul(g, group), group)))
            columns = Load(w, (pair, g, b.ramp(index(n * ROWS * group), ROWS * group)))
            factors = (one, columns) if own == shared else (columns, one)
            return Store(acc, place, Intrinsic(peak.intrinsic, (Load(acc, place), *factors), peak.sums, ROWS))

        rows = ForKind.SERIAL
        return _loop(
            "row", index(ROWS), rows, lambda row: _loop("g", index(ROWS), rows, lambda g: product(row, g))
        )

    def each(body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        return _loop(
            "m", index(side), ForKind.SERIAL,
            lambda m: seq(*(body(m, b.ramp(index(k), ROWS)) for k in range(0, side, ROWS))),
        )  # fmt: skip

    def task(t: Expr) -> Stmt:
        zero = b.splat(b.const(0, peak.sums), ROWS)
        clear = each(lambda m, n: Store(acc, (m, n), zero))
        i = Var("i")
        nests = seq(*(nest(i, m, n) for m in range(2) for n in range(2)))
        work = For(i, size(rounds), ForKind.SERIAL, nests, ((MATRIX, 1),))
        return Alloc(acc, seq(clear, work, each(lambda m, n: Store(z, (t, m, n), Load(acc, (m, n))))))

    return Func(f"peak_{name}", (x, w, r, z), _loop("t", size(tasks), ForKind.PARALLEL, task))


def _peak_func(target: Target, name: str) -> Func:
    return tile_peak_func(name) if PEAKS[name].by_tiles(target) else peak_func(target.lanes_f32, name)


@cache
def _image(target: Target, num_threads: int) -> LoadedImage:
    names = [name for name, peak in PEAKS.items() if peak.exists(target)]
    funcs = [
        bandwidth_func(target.lanes_f32, target.fetch_ahead_bytes),
        *(_peak_func(target, name) for name in names),
    ]
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
        repeats: The best of so many runs of some milliseconds: a peak is what nothing exceeds.
    """
    found = _peak_loop(num_threads, name)
    return None if found is None else max(_rates(*found, repeats))


def measure_sustained_peak(num_threads: int, name: str = "f32", duration_s: float = 0.25) -> float | None:
    """The same loop again and again for ``duration_s``: all of its flop over all of that time.

    Less than the peak where a core is taken away or clocked down now and then: what a long product could
    reach at most.
    """
    found = _peak_loop(num_threads, name)
    if found is None:
        return None
    flop, run = found
    run()
    start, runs = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - start) < duration_s:
        run()
        runs += 1
    return flop * runs / passed_s


def _peak_loop(num_threads: int, name: str) -> tuple[float, Callable[[], object]] | None:
    """Flop of a run of the loop, and the run; ``None`` if the instruction does not exist here."""
    target, peak = detect_host(), PEAKS[name]
    if not peak.exists(target):
        return None
    image, func, tasks = _image(target, num_threads), _peak_func(target, name), TASKS_PER_THREAD * num_threads
    value = 1e-3 if peak.sums.is_float else 1
    factors = [np.full(_constant(p), value).astype(numpy_dtype(p.dtype.name)) for p in func.params[:2]]
    r = np.zeros(ROUNDS, np.float32)
    z = np.empty((tasks, *_constant(func.params[-1])), numpy_dtype(peak.sums.name))
    # Each sum gets the products of a lane in every round, 16 times as many by tiles.
    flop = 2.0 * peak.products * (ROWS if peak.by_tiles(target) else 1) * z.size * ROUNDS
    kernel, args = image.function(f"peak_{name}"), [as_tensor(a) for a in (*factors, r, z)]
    return flop, lambda: kernel(*args)


def _constant(buffer: Buffer) -> tuple[int, ...]:
    """The dims of a buffer that are no symbols."""
    return tuple(d for d in buffer.shape if isinstance(d, int))


def measure_ceilings(num_threads: int, num_bytes: int = READ_BYTES, repeats: int = 3) -> Ceilings:
    """All peaks that exist here, and the bandwidth."""
    peaks = {name: measure_peak(num_threads, name, repeats) for name in PEAKS}
    bandwidth = measure_bandwidth(num_threads, num_bytes, repeats)
    return Ceilings({k: v for k, v in peaks.items() if v is not None}, bandwidth, "measured")
