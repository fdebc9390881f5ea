"""Modelled cost of candidates: a roofline per kernel family, from the target's numbers.

A register tile of ``R`` rows reads the whole weight once per ``ceil(M / R)`` passes. Per step of k and per
core it issues ``R * V`` multiply-adds, ``V`` weight loads and ``R`` broadcasts (V = vectors per tile); the
first pass comes from memory, the others from the level-2 or level-3 cache. Time is the largest of what each
of these resources needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from strata.core.dims import SymDim, evaluate
from strata.core.dims import bounds as dim_bounds
from strata.core.dtypes import bf16, f32
from strata.core.kv_layout import DEFAULT_PAGE_SIZE
from strata.graph.nodes import Node
from strata.graph.opdef import Pattern
from strata.graph.stats import group_stats, size_bytes
from strata.graph.types import MAX_CONTEXT, NUM_PAGES, NUM_SEQUENCES, TABLE_WIDTH, TensorType
from strata.loop.matrix import matrix_sums
from strata.loop.nodes import Func
from strata.target import Target

from .loop_cost import FORK_S, issue_time_s
from .types import Estimate

if TYPE_CHECKING:
    from .candidates.base import Task

SAMPLE_SIZE = 512  # value of symbolic dims that no choice depends on
# A cache with one sequence of SAMPLE_SIZE tokens.
SAMPLE_CACHE = {
    NUM_SEQUENCES.name: 1,
    MAX_CONTEXT.name: SAMPLE_SIZE,
    TABLE_WIDTH.name: SAMPLE_SIZE // DEFAULT_PAGE_SIZE,
    NUM_PAGES.name: SAMPLE_SIZE // DEFAULT_PAGE_SIZE,
}
PAIR, FOUR = 2, 4  # products that a lane of a dot product adds, in the time of one multiply-add
LIBRARY_EFFICIENCY = 0.85  # of the machine's peak: what OpenBLAS and oneDNN reach on large matmuls
# Sustained level-2/level-3 reads of one core; conservative for x86-64 of the 2020s.
CACHE_BYTES_PER_CYCLE = 16.0
VECTORS_PER_TILE = 4
UNPACKING = 6.5  # vector instructions per vector of codes: shift, mask, subtract, convert, scale, round, zip


def matmul_estimate(
    m: int, n: int, k: int, weight_bytes: float, rows: int, target: Target, peak: float | None = None
) -> Estimate:
    """Cost of ``[m, k] x [k, n]`` with register tiles of ``rows`` rows.

    Args:
        m: Rows of the activations.
        n: Outputs.
        k: Contracted extent.
        weight_bytes: Bytes of the stored weight.
        rows: Rows per register tile.
        target: The machine.
        peak: Operations per second of the instruction that multiplies; ``None`` = f32 multiply-adds.
    """
    passes = -(-m // rows)
    flop = 2.0 * m * n * k
    issued = 2.0 * passes * rows * n * k
    # Each multiply-add slot beyond the loads is useful; loads and multiply-adds go to different pipes.
    slots = max(rows * VECTORS_PER_TILE, VECTORS_PER_TILE + rows)
    peak = peak or target.peak_f32_flop_per_s
    compute_s = issued / peak * slots / (rows * VECTORS_PER_TILE)
    clock_hz = target.peak_f32_flop_per_s / target.num_cores / (target.lanes_f32 * 2)
    cache_s = passes * weight_bytes / (CACHE_BYTES_PER_CYCLE * clock_hz * target.num_cores)
    memory_s = weight_bytes / target.bandwidth_bytes_per_s
    activations = 4.0 * m * (n + k)
    time_s = max(compute_s, cache_s, memory_s)
    return Estimate(time_s, flop, weight_bytes + 4.0 * m * k, activations - 4.0 * m * k, "roofline")


def loop_estimate(task: Task, func: Func, size: int) -> Estimate:
    """Cost of any finalised loop function of a task: instructions issued, or operands touched once.

    Args:
        task: What is computed.
        func: How.
        size: Value of the task's rows.
    """
    env = task_env(task, size)
    traffic = traffic_of(task, env)
    issue_s = issue_time_s(func, env, task.target)
    return replace(traffic, time_s=max(issue_s, traffic.time_s))


def task_model(task: Task, func: Func, rows: int, dot: bool) -> Callable[[int], Estimate]:
    """Cost of what a schedule rule proposed, by the value of the task's rows.

    A register tile of a matmul has that of its roofline, anything else that of its loops.

    Args:
        task: What is computed.
        func: How.
        rows: Rows of the register tile; 0 for anything else.
        dot: By dot products of bf16 or 8-bit operands.
    """
    if not rows or not is_flat_matmul(task.anchor):
        return partial(loop_estimate, task, func)
    peak, sums = task.target.peak_f32_flop_per_s, matrix_sums(func) if dot else None
    if sums is not None:
        peak = task.target.peak_bf16_flop_per_s if sums is f32 else task.target.peak_int8_op_per_s
    elif dot:
        pair = PAIR if task.target.prefers_bf16_dot else 1
        products = FOUR if task.anchor.op == "quantized_matmul" else pair
        peak = min(_peak(task), products * peak)
    n, k = (dim_bounds(d)[1] for d in (task.anchor.tensor.shape[-1], task.anchor.inputs[0].tensor.shape[-1]))
    unpacks = sums is f32 and task.anchor.op == "quantized_matmul"
    return partial(
        _tile_estimate, task, n, k, rows, peak, _unpacking_s(n * k, task.target) if unpacks else 0.0
    )


def _tile_estimate(
    task: Task, n: int, k: int, rows: int, peak: float, before_s: float, size: int
) -> Estimate:
    weight_bytes = float(sum(bounds_bytes(x.tensor) for x in task.anchor.inputs[1:]))
    estimate = matmul_estimate(size, n, k, weight_bytes, rows, task.target, peak)
    return replace(estimate, time_s=estimate.time_s + before_s)


def _unpacking_s(elements: int, target: Target) -> float:
    """Time to make bf16 numbers of codes, once for all rows: instructions as fast as f32 multiply-adds."""
    return 2 * elements * UNPACKING / target.peak_f32_flop_per_s


def bounds_bytes(tensor: TensorType) -> int:
    """Bytes of a tensor with every dim at its upper bound."""
    return dim_bounds(size_bytes(tensor))[1]


def is_flat_matmul(node: Node) -> bool:
    """A product of two matrices."""
    return node.opdef.pattern is Pattern.MATMUL and node.tensor.rank == 2


def task_env(task: Task, size: int) -> dict[str, int]:
    """A value for every symbolic dim of a task, where its rows are ``size``."""
    env = {d.name: min(d.hi, SAMPLE_SIZE) for d in (*task.body.dims, *task.dims)}
    env |= SAMPLE_CACHE
    if isinstance(task.rows, SymDim):
        env[task.rows.name] = size
    return env


def traffic_of(task: Task, env: Mapping[str, int]) -> Estimate:
    """Flop, and every operand touched once at memory bandwidth."""
    work = group_stats(task.body)
    flop, read, written = (float(evaluate(x, env)) for x in (work.flop, work.read_bytes, work.write_bytes))
    time_s = max(flop / _peak(task), (read + written) / task.target.bandwidth_bytes_per_s)
    return Estimate(time_s, flop, read, written, "roofline")


def _peak(task: Task) -> float:
    """The machine's fastest multiply-adds for the operands of the heavy op, flop/s."""
    if task.anchor.op == "quantized_matmul":
        return task.target.peak_int8_op_per_s
    operands = [i.type for i in task.anchor.inputs if isinstance(i.type, TensorType)]
    dot = task.target.multiplies_bf16_pairs and bool(operands) and operands[0].dtype is bf16
    return task.target.peak_bf16_flop_per_s if dot else task.target.peak_f32_flop_per_s


def library_estimate(task: Task, size: int) -> Estimate:
    """Cost of a matmul by a good library: its roofline, at the efficiency that such libraries reach."""
    traffic = traffic_of(task, task_env(task, size))
    return replace(traffic, time_s=traffic.time_s / LIBRARY_EFFICIENCY + FORK_S)


def with_call(around: Estimate, call: Estimate) -> Estimate:
    """Cost of loops that contain a call."""
    return replace(around, time_s=around.time_s + call.time_s)


def sample_sizes(lo: int, hi: int) -> list[int]:
    """Sizes at which candidates are compared: each up to 16, then by quarter octaves, and ``hi``."""
    sizes = list(range(lo, min(hi, 16) + 1))
    size = 16.0
    while size < hi:
        size *= 2**0.25
        sizes.append(min(int(size), hi))
    return sorted({s for s in sizes if lo <= s <= hi} | {hi})
