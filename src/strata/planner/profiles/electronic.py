"""CPUs and GPUs: arithmetic at the peak of its unit, traffic at the memories' bandwidth, both at once.

Peaks: a CPU does ``cores * macs_per_cycle`` multiply-adds and ``cores * elems_per_cycle`` elementwise
operations per cycle, whole cycles only. A GPU does elementwise operations on ``sms * lanes_per_sm`` lanes,
and products on its tensor cores, in tiles: operands are padded to whole tiles of the result and of the
contracted dim, and the steps of all tiles are dealt out evenly to the SMs (Stream-K: Osama et al., PPoPP
2023). Of the tile shapes that CUTLASS has for Hopper, and their transposes, the fastest one is taken at each
point. A tile of R x C reads ``1/R + 1/C`` operands per multiply-add from the device's memory, where two SMs
may share what they read (a cluster of two, with multicast).

Elementwise operations: one per flop, and more for elementary functions (:data:`FUNCTIONS`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from strata.planner.devices.types import Cause, Estimates, Term
from strata.target.hardware import CPU, GPU, Machine

from .traffic import Amounts, Product, buffered, constant, launched, operand_traffic, reads_again

DIVISION = 10  # VDIVPS of 16 lanes every 10 cycles on Zen 4 (uops.info), a sum every cycle
# Elementary functions in elementwise operations, on a CPU and on a GPU.
#
# CPU: instructions that our code generator emits for AVX-512 (``codegen.math_functions``; a test counts
# them), divisions and square roots as DIVISION each.
# GPU: 128 sums and products of f32 per SM and cycle, 16 results of the special-function unit: reciprocal,
# rsqrt, ex2, lg2, sin, cos, tanh (CUDA C++ programming guide, arithmetic throughput, compute capability
# 9.0): 8 operations each, plus the sums and products around them. erf: the polynomial of the CPU with its
# exponential on that unit.
FUNCTIONS: Mapping[str, tuple[float, float]] = {
    "exp": (18, 9),
    "log": (32, 9),
    "sqrt": (DIVISION, 9),
    "rsqrt": (2 * DIVISION, 8),
    "div": (DIVISION, 9),
    "tanh": (22 + DIVISION, 8),
    "sigmoid": (23 + DIVISION, 18),
    "erf": (39, 30),
    "sin": (28, 10),
    "cos": (29, 10),
    "power": (51, 18),
}
# Ops that are functions of another name, or contain one for each element of their result.
_INSIDE = {"silu": "sigmoid", "gelu": "erf", "softmax": "exp", "divide": "div"}
# Ops whose flop are those of products though they are more than one.
_PRODUCTS_INSIDE = ("paged_attention",)

# Rows x columns of the result that an SM makes, and SMs one above the other that share what they read:
# threadblocks and clusters of CUTLASS 3 for sm_90; a warpgroup instruction makes 64 x 8 to 64 x 256, 16 deep
# in 16-bit formats (PTX ISA, wgmma).
_TILES = ((128, 256, 2), (128, 128, 2), (128, 128, 1), (64, 128, 1), (64, 64, 1), (64, 32, 1), (64, 8, 1))
TILE_DEPTH = 16
_SUM_BYTES = 4  # f32


def elementwise_ops(op: str, sizes: Amounts, column: int) -> np.ndarray:
    """Elementwise operations of a work; those of products are not among them.

    Args:
        op: Kind of the work.
        sizes: Of the work.
        column: 0 = on a CPU, 1 = on a GPU.
    """
    if op in _PRODUCTS_INSIDE:
        return np.zeros_like(sizes.flop)
    ops = sizes.flop if sizes.product is None else np.maximum(sizes.flop - 2 * sizes.product.macs, 0.0)
    cost = FUNCTIONS.get(_INSIDE.get(op, op))
    return ops if cost is None else ops + (cost[column] - 1) * sizes.out_elems


def electronic(machine: Machine, device: CPU | GPU, op: str, sizes: Amounts) -> Estimates:
    """What a work costs on a CPU or GPU."""
    if isinstance(device, GPU):
        column, lanes = 1, device.sms * device.lanes_per_sm
        units = device.tensor_cores * device.macs_per_cycle
    else:
        column, lanes = 0, device.cores * device.elems_per_cycle
        units = device.cores * device.macs_per_cycle
    ops = elementwise_ops(op, sizes, column)
    macs = np.zeros_like(sizes.flop)
    if sizes.product is not None or op in _PRODUCTS_INSIDE:
        macs = sizes.flop / 2 if sizes.product is None else sizes.product.macs
    cycles = np.ceil(macs / units)
    again = reads_again(sizes, device.buffer_bytes)
    traffic = operand_traffic(machine, device, sizes, constant(0.0, macs))
    if isinstance(device, GPU) and sizes.product is not None:
        once = traffic.reads[device.memory] + traffic.writes[device.memory]
        rate = machine.memory(device.memory).bandwidth_bytes_per_s / device.clock_hz
        cycles, again = _tiled(device, sizes, sizes.product, once, rate)
    traffic.read(device.memory, again)
    terms: list[Term] = []
    if macs.any():
        energy_j = macs * device.j_per_mac
        terms.append(Term(Cause.COMPUTE, device.name, cycles / device.clock_hz, energy_j, macs, "MAC"))
    if ops.any():
        time_s = np.ceil(ops / lanes) / device.clock_hz
        terms.append(Term(Cause.COMPUTE, f"{device.name}.lanes", time_s, ops * device.j_per_op, ops, "op"))
    terms += traffic.terms()
    terms += buffered(device, sizes.in_bytes + again + sizes.out_bytes)
    terms += launched(device, sizes.flop)
    return Estimates.of(terms, overlapped=True)


def _tiled(
    device: GPU, sizes: Amounts, product: Product, once: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cycles on the tensor cores and bytes read again by the fastest tiles, f64 ``[P]`` each.

    Args:
        device: Whose tensor cores.
        sizes: Of the work.
        product: Of the work.
        once: Bytes that its memory moves whatever the tiles.
        rate: Bytes per cycle of that memory.
    """
    macs_per_cycle = device.tensor_cores_per_sm * device.macs_per_cycle
    steps_of_depth = np.ceil(product.depth / TILE_DEPTH) * product.batch * product.share
    bytes_per_row = product.depth * product.batch * product.share * sizes.bytes_per_elem
    best = np.full_like(product.macs, math.inf)
    cycles = again = best
    for rows, cols, shared in _TILES:
        if rows * cols * _SUM_BYTES > device.buffer_bytes:
            continue
        for m, n in ((product.rows, product.cols), (product.cols, product.rows)):
            down, across = np.ceil(m / rows), np.ceil(n / cols)
            steps = np.ceil(down * across * steps_of_depth / device.sms)
            here = steps * (rows * cols * TILE_DEPTH / macs_per_cycle)
            more = np.zeros_like(here)
            if not math.isinf(device.buffer_bytes):
                more = (m * (across - 1) + n * (np.ceil(m / (rows * shared)) - 1)) * bytes_per_row
            slowest = np.maximum(here, (once + more) / rate)
            better = slowest < best
            best, cycles = np.where(better, slowest, best), np.where(better, here, cycles)
            again = np.where(better, more, again)
    return cycles, again
