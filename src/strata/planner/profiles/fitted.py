"""The cost profile of a computer that was measured, and the fit behind it.

Works are whole kernels here (a product with the norm before it and the activation after it is one), since
kernels are what was measured. Their time is a function of four amounts that a plan knows of each: rows,
bytes of weights, other bytes and flop. For each family of kernels and each number of rows that was measured,

    time = a + b * weight bytes / bandwidth + c * other bytes + d * flop        a, b, c, d >= 0

fitted to kernels of several widths by least squares of the relative error; between two numbers of rows the
times are interpolated on logarithmic scales. That is a table of measured rates rather than a model of a
processor: caches, instructions and threads are in the measurements. Weights come from main memory, whose
bandwidth may change while we measure (on a virtual machine it does): it is measured beside each sample, and
a prediction takes that of the machine's memory. Everything else is in a cache when a kernel begins.

At one number of rows a product's flop is proportional to its weight's bytes, so that the fit cannot tell
computing from reading, while a prediction for memory of another speed has to. Kernels that take more than
``COMPUTES`` times the reading of their weights compute, and read meanwhile: there b = 0.
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

from .base import user_estimates

WIDTHS = (32, 16, 8, 4)  # bits of weights that kernels are told apart by
COMPUTES = 2.0  # a kernel that takes this many times the reading of its weights does not wait for them


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured kernel.

    Attributes:
        op: Heaviest op.
        kernel: Name of the implementation.
        weight_bits: Width of its weight, 0 = none.
        rows: Rows of the activations.
        weight_s: Time to read its weights once, at the bandwidth measured beside it.
        bytes: Other operands and results, each touched once.
        flop: Arithmetic operations.
        time_s: Measured.
    """

    op: str
    kernel: str
    weight_bits: int
    rows: int
    weight_s: float
    bytes: float
    flop: float
    time_s: float


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a kernel's time depends on, f64 ``[P]`` each: fields as in :class:`Sample`."""

    rows: np.ndarray
    weight_s: np.ndarray
    bytes: np.ndarray
    flop: np.ndarray


def fit(samples: Iterable[Sample], source: str = "measured") -> tuple[Family, ...]:
    """One family per op, width of weights and kernel, with a knot per number of rows."""
    groups: dict[tuple[str, int, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.op, sample.weight_bits, sample.kernel), []).append(sample)
    return tuple(_family(*key, members, source) for key, members in sorted(groups.items()))


def _family(op: str, bits: int, kernel: str, samples: Sequence[Sample], source: str) -> Family:
    at: dict[int, list[Sample]] = {}
    for sample in samples:
        at.setdefault(sample.rows, []).append(sample)
    knots = tuple(_knot(rows, at[rows]) for rows in sorted(at))
    family = Family(op=op, kernel=kernel, weight_bits=bits, knots=knots)
    fields = {name: np.array([float(getattr(s, name)) for s in samples]) for name in Amounts.__slots__}
    errors = predict(family, Amounts(**fields)) / np.array([s.time_s for s in samples]) - 1
    return Family(
        op=op,
        kernel=kernel,
        weight_bits=bits,
        knots=knots,
        samples=len(samples),
        error=float(np.sqrt(np.mean(errors**2))),
        sources=(("", source),),
    )


def _knot(rows: int, samples: Sequence[Sample]) -> Knot:
    """Least squares of the relative error with coefficients >= 0.

    With four of them, all sets of those that are not 0 can be tried: the best feasible one is the solution
    (Lawson and Hanson, Solving Least Squares Problems, 1974, chapter 23).
    """
    times = np.array([s.time_s for s in samples])
    columns = np.array([[1.0, s.weight_s, s.bytes, s.flop] for s in samples]) / times[:, None]
    weight_s = np.array([s.weight_s for s in samples])
    waits = bool(np.median(times - COMPUTES * weight_s) <= 0)
    terms = [k for k in range(4) if waits or k != 1]
    best, least = np.zeros(4), np.inf
    for count in range(1, min(len(terms), len(samples)) + 1):
        for kept in itertools.combinations(terms, count):
            part = columns[:, kept]
            scale = np.maximum(np.abs(part).max(axis=0), 1e-300)
            found = np.linalg.lstsq(part / scale, np.ones(len(samples)), rcond=None)[0] / scale
            error = float(np.sum((part @ found - 1) ** 2))
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(4), error
                best[list(kept)] = found
    launch_s, weight_reads, s_per_byte, s_per_flop = map(float, best)
    return Knot(
        rows=rows,
        launch_s=launch_s,
        weight_reads=weight_reads,
        s_per_byte=s_per_byte,
        s_per_flop=s_per_flop,
    )


def predict(family: Family, of: Amounts) -> np.ndarray:
    """Time of a kernel of ``family``, s ``[P]``, from its amounts."""
    return predict_parts(family, of).sum(axis=0)


def predict_parts(family: Family, of: Amounts) -> np.ndarray:
    """The same by what it goes into: launch, weights from memory, everything else; s ``[3, P]``.

    Between two numbers of rows, the parts have shares between theirs.
    """
    parts = np.stack([_parts(k, of) for k in family.knots])
    if len(parts) == 1:
        return parts[0]
    at = np.log([k.rows for k in family.knots])
    x = np.clip(np.log(np.maximum(of.rows, 1.0)), at[0], at[-1])
    after = np.clip(np.searchsorted(at, x, side="left"), 1, len(at) - 1)
    weight = (x - at[after - 1]) / (at[after] - at[after - 1])
    points = np.arange(len(x))
    low, high = (parts[k, :, points].T for k in (after - 1, after))
    low_s, high_s = (np.maximum(p.sum(axis=0), 1e-12) for p in (low, high))
    shares = (1 - weight) * low / low_s + weight * high / high_s
    return shares * np.exp((1 - weight) * np.log(low_s) + weight * np.log(high_s))


def _parts(knot: Knot, of: Amounts) -> np.ndarray:
    launch_s = np.full_like(of.weight_s, knot.launch_s)
    compute_s = of.bytes * knot.s_per_byte + of.flop * knot.s_per_flop
    return np.stack([launch_s, of.weight_s * knot.weight_reads, compute_s])


def families_of(device: FittedCPU, op: str, weight_bits: int) -> tuple[Family, ...]:
    """The families of kernels with this op: on this width of weights, or those for everything else."""
    known: dict[tuple[str, int], list[Family]] = {}
    for family in device.families:
        known.setdefault((family.op, family.weight_bits), []).append(family)
    return tuple(known.get((op, weight_bits)) or known.get(("*", 0), ()))


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
        return tuple(
            DeviceCandidate(name, device.name, device.memory, estimates)
            for device in machine.devices
            for name, estimates in self._estimates(device, machine, workload, work, points)
        )

    def _estimates(
        self, device: Device, machine: Machine, workload: Workload, work: Work, points: Points
    ) -> Iterable[tuple[str, Estimates]]:
        name, function = f"{device.name}.{work.op}", machine.cost_of(device, work.op)
        if function is not None:
            found = user_estimates(function, device, machine, workload, work, points)
            if found is not None:
                yield name, found
        elif isinstance(device, FittedCPU):
            bandwidth = machine.memory(device.memory).bandwidth_bytes_per_s
            for family in families_of(device, work.op, weight_width(workload, work)):
                estimates = kernel_estimates(device, family, bandwidth, workload, work, points)
                yield family.kernel or name, estimates

    def move(
        self, machine: Machine, value: Value, source: str | None, to: str, points: Points
    ) -> Estimates | None:
        """Kernels read main memory: nothing moves before."""
        return None


def kernel_estimates(
    device: FittedCPU, family: Family, bandwidth: float, workload: Workload, work: Work, points: Points
) -> Estimates:
    """Time of a kernel by its family and the bandwidth of memory; energy by the device's constants."""
    of = amounts(workload, work, points, bandwidth)
    launch_s, memory_s, compute_s = predict_parts(family, of)
    macs = 0.0 if work.contraction is None else evaluate(work.contraction.macs, points)
    energy_j = macs * device.j_per_mac + (of.flop - 2 * macs) * device.j_per_op
    moved = of.bytes + _weight_bytes(workload, work, points)
    once, zero = np.ones_like(launch_s), np.zeros_like(launch_s)
    terms = (
        Term(Cause.LAUNCH, device.name, launch_s, zero, once, "launch"),
        Term(Cause.COMPUTE, device.name, compute_s, energy_j, of.flop, "flop"),
        Term(Cause.MEMORY, device.memory, memory_s, moved * device.j_per_byte, moved, "byte"),
    )
    return Estimates.of(terms, overlapped=False, source="measured" if family.op != "*" else "model")


def amounts(workload: Workload, work: Work, points: Points, bandwidth: float) -> Amounts:
    """What the time of a kernel depends on, with memory of ``bandwidth`` bytes/s."""
    values = workload.values
    others = [
        (values[k], elems)
        for k, elems in zip(work.inputs, work.reads, strict=True)
        if values[k].kind is not ValueKind.WEIGHT
    ]
    others += [(values[k], values[k].elems) for k in work.outputs]
    return Amounts(
        rows=evaluate(rows_of(workload, work), points),
        weight_s=_weight_bytes(workload, work, points) / bandwidth,
        bytes=_bytes(others, points),
        flop=evaluate(work.flop, points),
    )


def _weight_bytes(workload: Workload, work: Work, points: Points) -> np.ndarray:
    reads = [(workload.values[k], elems) for k, elems in zip(work.inputs, work.reads, strict=True)]
    return _bytes([(v, elems) for v, elems in reads if v.kind is ValueKind.WEIGHT], points)


def _bytes(parts: Iterable[tuple[Value, Dim]], points: Points) -> np.ndarray:
    return sum(
        (evaluate(elems, points) * (v.bits / 8) for v, elems in parts), start=0.0 * evaluate(0, points)
    )


def rows_of(workload: Workload, work: Work) -> Dim:
    """Rows of activations: the first extent of the first thing that is read and is no weight."""
    values = [workload.values[k] for k in work.inputs]
    return next((v.shape[0] for v in values if v.kind is not ValueKind.WEIGHT and v.shape), 1)
