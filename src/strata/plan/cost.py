"""Modelled cost of candidates: a roofline per kernel family, from the target's numbers.

A register tile of ``R`` rows reads the whole weight once per ``ceil(M / R)`` passes. Per step of k and per
core it issues ``R * V`` multiply-adds, ``V`` weight loads and ``R`` broadcasts (V = vectors per tile); the
first pass comes from memory, the others from the level-2 or level-3 cache. Time is the largest of what each
of these resources needs.
"""

from __future__ import annotations

from strata.core.dims import evaluate
from strata.graph.nodes import Function
from strata.graph.stats import function_stats
from strata.graph.types import TensorType
from strata.target import Target

from .types import Estimate

# Sustained level-2/level-3 reads of one core; conservative for x86-64 of the 2020s.
CACHE_BYTES_PER_CYCLE = 16.0
VECTORS_PER_TILE = 4


def matmul_estimate(
    m: int, n: int, k: int, weight_bytes: float, rows: int, target: Target, dot: bool = False
) -> Estimate:
    """Cost of ``[m, k] x [k, n]`` with register tiles of ``rows`` rows.

    Args:
        m: Rows of the activations.
        n: Outputs.
        k: Contracted extent.
        weight_bytes: Bytes of the stored weight.
        rows: Rows per register tile.
        target: The machine.
        dot: By bf16 dot products, which do two multiply-adds per lane.
    """
    passes = -(-m // rows)
    flop = 2.0 * m * n * k
    issued = 2.0 * passes * rows * n * k
    # Each multiply-add slot beyond the loads is useful; loads and multiply-adds go to different pipes.
    slots = max(rows * VECTORS_PER_TILE, VECTORS_PER_TILE + rows)
    peak = target.peak_bf16_flop_per_s if dot else target.peak_f32_flop_per_s
    compute_s = issued / peak * slots / (rows * VECTORS_PER_TILE)
    clock_hz = target.peak_f32_flop_per_s / target.num_cores / (target.lanes_f32 * 2)
    cache_s = passes * weight_bytes / (CACHE_BYTES_PER_CYCLE * clock_hz * target.num_cores)
    memory_s = weight_bytes / target.bandwidth_bytes_per_s
    activations = 4.0 * m * (n + k)
    time_s = max(compute_s, cache_s, memory_s)
    return Estimate(time_s, flop, weight_bytes + 4.0 * m * k, activations - 4.0 * m * k, "roofline")


def generic_estimate(body: Function, env: dict[str, int], target: Target) -> Estimate:
    """Cost of any group: flop at the f32 peak, or every operand touched once at memory bandwidth.

    Args:
        body: The group.
        env: Value of every symbolic dim.
        target: The machine.
    """
    flop = float(evaluate(function_stats(body).flop, env))
    read = sum(_bytes(n.type, env) for n in body.inputs if isinstance(n.type, TensorType))
    written = sum(_bytes(n.type, env) for n in body.outputs if isinstance(n.type, TensorType))
    time_s = max(flop / target.peak_f32_flop_per_s, (read + written) / target.bandwidth_bytes_per_s)
    return Estimate(time_s, flop, read, written, "roofline")


def _bytes(tensor: TensorType, env: dict[str, int]) -> float:
    total = float(tensor.dtype.itemsize_bytes)
    for dim in tensor.shape:
        total *= evaluate(dim, env)
    return total


def sample_sizes(lo: int, hi: int) -> list[int]:
    """Sizes at which candidates are compared: each up to 16, then by quarter octaves, and ``hi``."""
    sizes = list(range(lo, min(hi, 16) + 1))
    size = 16.0
    while size < hi:
        size *= 2**0.25
        sizes.append(min(int(size), hi))
    return sorted({s for s in sizes if lo <= s <= hi} | {hi})
