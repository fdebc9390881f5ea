"""The cost profile of a computer that was measured, and the fit behind it.

Works are whole kernels here (a product with the norm before it and the activation after it is one), since
kernels are what was measured. Their time is a function of three amounts that a plan knows of each: rows,
bytes and flop. For each family of kernels and each number of rows that was measured,

    time = a + b * bytes + c * flop        a, b, c >= 0

fitted to kernels of several widths by least squares of the relative error; between two numbers of rows the
times are interpolated on logarithmic scales. That is a table of measured rates rather than a model of a
processor: caches, instructions and threads are in the measurements.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from strata.core.dims import Dim
from strata.graph.workload import Value, ValueKind, Work, Workload
from strata.planner.devices.types import Cause, DeviceCandidate, Estimates, Points, Term, evaluate
from strata.target.hardware import Device, Machine
from strata.target.hardware.fitted import Family, FittedCPU, Knot

from .base import user_cost

WIDTHS = (32, 16, 8, 4)  # bits of weights that kernels are told apart by


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured kernel.

    Attributes:
        op: Heaviest op.
        weight_bits: Width of its weight, 0 = none.
        rows: Rows of the activations.
        bytes: Operands and results, each touched once.
        flop: Arithmetic operations.
        time_s: Measured.
    """

    op: str
    weight_bits: int
    rows: int
    bytes: float
    flop: float
    time_s: float


def fit(samples: Iterable[Sample], source: str = "measured") -> tuple[Family, ...]:
    """One family per op and width of weights, with a knot per number of rows."""
    groups: dict[tuple[str, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.op, sample.weight_bits), []).append(sample)
    return tuple(_family(op, bits, members, source) for (op, bits), members in sorted(groups.items()))


def _family(op: str, bits: int, samples: Sequence[Sample], source: str) -> Family:
    at: dict[int, list[Sample]] = {}
    for sample in samples:
        at.setdefault(sample.rows, []).append(sample)
    knots = tuple(_knot(rows, at[rows]) for rows in sorted(at))
    family = Family(op=op, weight_bits=bits, knots=knots)
    fitted = np.array([float(predict(family, *_amounts(s))[0]) for s in samples])
    errors = fitted / np.array([s.time_s for s in samples]) - 1
    return Family(
        op=op,
        weight_bits=bits,
        knots=knots,
        samples=len(samples),
        error=float(np.sqrt(np.mean(errors**2))),
        sources=(("", source),),
    )


def _amounts(sample: Sample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return np.array([float(sample.rows)]), np.array([sample.bytes]), np.array([sample.flop])


def _knot(rows: int, samples: Sequence[Sample]) -> Knot:
    """Least squares of the relative error with coefficients >= 0.

    With three of them, all sets of those that are not 0 can be tried: the best feasible one is the solution
    (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23).
    """
    times = np.array([s.time_s for s in samples])
    columns = np.array([[1.0, s.bytes, s.flop] for s in samples]) / times[:, None]
    best, least = np.zeros(3), np.inf
    for count in (1, 2, 3):
        for kept in itertools.combinations(range(3), min(count, 3)):
            if count > len(samples):
                continue
            part = columns[:, kept]
            scale = np.maximum(np.abs(part).max(axis=0), 1e-300)
            found = np.linalg.lstsq(part / scale, np.ones(len(samples)), rcond=None)[0] / scale
            error = float(np.sum((part @ found - 1) ** 2))
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(3), error
                best[list(kept)] = found
    return Knot(rows=rows, launch_s=float(best[0]), s_per_byte=float(best[1]), s_per_flop=float(best[2]))


def predict(family: Family, rows: np.ndarray, bytes: np.ndarray, flop: np.ndarray) -> np.ndarray:
    """Time of a kernel of ``family``, s ``[P]``, from its amounts ``[P]``."""
    times = np.stack([k.launch_s + bytes * k.s_per_byte + flop * k.s_per_flop for k in family.knots])
    if len(times) == 1:
        return times[0]
    at = np.log([k.rows for k in family.knots])
    x = np.clip(np.log(np.maximum(rows, 1.0)), at[0], at[-1])
    after = np.clip(np.searchsorted(at, x, side="left"), 1, len(at) - 1)
    share = (x - at[after - 1]) / (at[after] - at[after - 1])
    points = np.arange(len(x))
    low, high = (np.log(np.maximum(times[k, points], 1e-12)) for k in (after - 1, after))
    return np.exp(low + share * (high - low))


def family_of(device: FittedCPU, op: str, weight_bits: int) -> Family | None:
    """The family of kernels with this op: of this width of weights, or the one for everything else."""
    known = {(f.op, f.weight_bits): f for f in device.families}
    return known.get((op, weight_bits)) or known.get(("*", 0))


def weight_width(workload: Workload, work: Work) -> int:
    """Width of the largest weight that a work reads, one of ``WIDTHS``; 0 = none (or a look-up of rows)."""
    weights = [
        (workload.values[k], reads)
        for k, reads in zip(work.inputs, work.reads, strict=True)
        if workload.values[k].kind is ValueKind.WEIGHT and len(workload.values[k].shape) > 1
    ]
    if not weights or work.contraction is None:
        return 0
    bits = min(v.bits for v, _ in weights)
    return min(WIDTHS, key=lambda width: abs(width - bits))


class Fitted:
    """See the module's docstring."""

    shared = True
    by_device = False
    granularity = "kernels"

    def candidates(
        self, machine: Machine, workload: Workload, work: Work, points: Points
    ) -> tuple[DeviceCandidate, ...]:
        """Of the devices that were measured, and of those with a cost function of the user's."""
        found = []
        for device in machine.devices:
            estimates = self._estimates(device, machine, workload, work, points)
            if estimates is not None:
                name = f"{device.name}.{work.op}"
                found.append(DeviceCandidate(name, device.name, device.memory, estimates))
        return tuple(found)

    def _estimates(
        self, device: Device, machine: Machine, workload: Workload, work: Work, points: Points
    ) -> Estimates | None:
        function = user_cost(device, work.op)
        if function is not None:
            return function(device, machine, workload, work, points)
        if not isinstance(device, FittedCPU):
            return None
        family = family_of(device, work.op, weight_width(workload, work))
        return None if family is None else kernel_estimates(device, family, workload, work, points)

    def move(
        self, machine: Machine, value: Value, source: str | None, to: str, points: Points
    ) -> Estimates | None:
        """Kernels read main memory: nothing moves before."""
        return None


def kernel_estimates(
    device: FittedCPU, family: Family, workload: Workload, work: Work, points: Points
) -> Estimates:
    """Time of a kernel by its family; energy by the device's constants."""
    rows, moved, flop = amounts(workload, work, points)
    time_s = predict(family, rows, moved, flop)
    macs = 0.0 if work.contraction is None else evaluate(work.contraction.macs, points)
    energy_j = macs * device.j_per_mac + (flop - 2 * macs) * device.j_per_op
    zero = np.zeros_like(time_s)
    terms = (
        Term(Cause.COMPUTE, device.name, time_s, energy_j, flop, "flop"),
        Term(Cause.MEMORY, device.memory, zero, moved * device.j_per_byte, moved, "byte"),
    )
    return Estimates.of(terms, overlapped=False, source="measured" if family.op != "*" else "model")


def amounts(workload: Workload, work: Work, points: Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, bytes (operands and results, each touched once) and flop of a kernel, f64 ``[P]`` each."""
    values = workload.values
    flop, rows = evaluate(work.flop, points), evaluate(_rows(workload, work), points)
    moved = np.zeros_like(flop)
    for k, elems in zip(work.inputs, work.reads, strict=True):
        moved = moved + evaluate(elems, points) * (values[k].bits / 8)
    for k in work.outputs:
        moved = moved + evaluate(values[k].elems, points) * (values[k].bits / 8)
    return rows, moved, flop


def _rows(workload: Workload, work: Work) -> Dim:
    """Rows of activations: the first extent of the first thing that is read and is no weight."""
    values = [workload.values[k] for k in work.inputs]
    return next((v.shape[0] for v in values if v.kind is not ValueKind.WEIGHT and v.shape), 1)
