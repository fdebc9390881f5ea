"""The cost model of LightCode, faithfully: to compare with, and to show what its gaps are worth.

Per op, with E output elements, and for matrix products B x [rows, K] x [K, cols], R = rows * cols:

==================  ==========================================================  =================
matrix products     cycles                                                      energy
==================  ==========================================================  =================
PHU                 ceil(ceil(R / multiplex) / cores) * K * B                   0.04 pJ / MAC
GPU                 ceil(B*R / tensor cores) * ceil(K / MACs per cycle)         0.07 pJ / MAC
CPU                 fitted: seconds linear in B*R*K                             0.1 pJ / MAC
==================  ==========================================================  =================

Every other op takes cycles of the CPU or GPU, E times a small number or a single one, at 1 pJ each. A value
goes to SRAM and from there to where it is read, at a constant time and an energy per number.

Source: R. Tomich, Z. Zhong, D. Englund, arXiv 2509.16443; formulas and constants as its programs have them.
What is wrong with it, all of it kept here:

1. Conversion is free: SRAM to PHU and back costs 0 J (its 10 pJ per DAC and 3.17 pJ per ADC sample, 2.4 pJ
   of SRAM and 2 pJ of local memory are never charged), so the PHU wins energy from length 1.
2. A move takes the same time whatever its size; memories have no bandwidth and no capacity.
3. Each reader pays for its own move of a value, also when others read it at the same place; a value that
   stays on its device is moved through SRAM all the same.
4. The GPU does one element per cycle in elementwise ops, all its lanes idle, at 1 pJ per cycle.
5. Only the CPU or GPU registered last computes what is not a matrix product; adds of a CPU cost as fitted.
6. ``less``, ``take``, ``where``, ``slice``, ``concatenate`` and reshapes take one cycle whatever they move.
7. ``mean`` counts the rows of one matrix only, whatever the batch; its energy is that of its result.
8. All numbers have 8 bits in memory; weights come from DRAM at every run, in no time.
9. A product takes the time of the whole device, on one of its cores: the others are free meanwhile.
10. Nothing draws static power.

Beyond LightCode, which knows no other ops: those of Strata's op table that are not named above take one cycle
per arithmetic operation. A value that both its producer and its reader keep in SRAM is free (LightCode stops
there, so two products in a row cannot run on its PHU).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from strata.core.dims import Dim
from strata.graph.opdef import OPS
from strata.graph.workload import Contraction, Value, ValueKind, Work, Workload
from strata.planner.devices.types import Cause, DeviceCandidate, Estimates, Points, Term, evaluate
from strata.target.hardware import CPU, GPU, PHU, Device, Machine

from .base import user_estimates

SRAM = "sram"
# Joules per number read and written (a number is a byte), in a machine without memories of its own.
_MEMORY_J = {"dram": (8e-12, 8e-12), "hbm": (0.0, 0.0), SRAM: (2.4e-12, 2.4e-12), "local": (1e-12, 1e-12)}
_HOP_S = 1 / 6e9  # one clock of the memories
_CONVERSION_S = 10e-9  # into or out of a PHU

_CPU_PRODUCT = (6.845684637179875e-11, 8.258292187675319e-07)  # seconds per MAC and per product
_CPU_LARGE_PRODUCT = (3.554631597170242e-10, -7.057115703999989e-3)  # of inputs with a dim above 50000
_CPU_ADD = (5.728114536194012e-11, 2.018610633633051e-07)  # seconds per element and per add
_LARGE = 50000

_ONE_CYCLE = ("nop", "reshape", "less", "take", "where", "erf", "slice", "concatenate")
_CYCLES_PER_ELEM = {
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "sqrt", "rsqrt", "power", "transpose"), 1),
    **dict.fromkeys(("negative", "cast", "equal", "broadcast_to", "scatter_nd"), 1),
    **{"relu": 2, "tanh": 4, "sigmoid": 4, "softmax": 6},
}


def place_of(device: Device) -> str:
    """The place that a device reads from and writes to."""
    return f"{device.name}.local"


def hop_s(machine: Machine, place: str, *, into: bool) -> float:
    """Time of one hop: from SRAM ``into`` a place, or out of it; ``"hbm"`` is one too."""
    if place == SRAM:
        return 0.0
    end = place if place == "hbm" else "local"
    latency_s = next((k.latency_s for k in machine.links if {*k.ends} == {SRAM, end}), _HOP_S)
    device = None if place == "hbm" else machine.device(place.removesuffix(".local"))
    if not isinstance(device, PHU):
        return latency_s
    converter = device.dac if into else device.adc
    return latency_s + (_CONVERSION_S if converter is None else converter.delay_s)


def _hop_j(machine: Machine, place: str, *, into: bool) -> float:
    """Energy per number of one hop."""
    sram_read_j, sram_write_j = _memory_j(machine, SRAM)
    if place == "hbm":
        return _memory_j(machine, "hbm")[0] + sram_write_j
    if isinstance(machine.device(place.removesuffix(".local")), PHU):
        return 0.0
    return sum(_memory_j(machine, "local")) + (sram_read_j if into else sram_write_j)


def _memory_j(machine: Machine, name: str) -> tuple[float, float]:
    """Energy per number read and written; a number is a byte."""
    if all(m.name != SRAM for m in machine.memories):
        return _MEMORY_J[name]
    memory = machine.memory(name)
    return memory.read_j_per_byte, memory.write_j_per_byte


class LightCode:
    """The profile. Places are the local memories of the devices, and SRAM, where ``split`` happens."""

    shared = False
    by_device = False
    granularity = "ops"

    def candidates(
        self, machine: Machine, workload: Workload, work: Work, points: Points
    ) -> tuple[DeviceCandidate, ...]:
        """Matrix products on all devices; ``split`` in SRAM; the rest on the CPU or GPU registered last.

        A user's cost function for an op comes before all of these, on the devices that it is for. The first
        work that reads a weight or input pays for bringing it from DRAM.
        """
        loads = _loads(machine, workload, work, points)
        found: list[DeviceCandidate] = []
        for device in machine.devices:
            place = SRAM if work.op == "split" else place_of(device)
            function = machine.cost_of(device, work.op)
            if function is not None:
                estimates = user_estimates(function, device, machine, workload, work, points)
            else:
                estimates = _estimates(device, machine, workload, work, points)
            if estimates is not None and (not device.ops or work.op in device.ops):
                total = estimates if loads is None else estimates.plus(loads)
                name = f"{device.name}.{work.op}"
                found.append(DeviceCandidate(name, device.name, place, total, per_core=function is None))
        return tuple(found)

    def move(
        self, machine: Machine, value: Value, source: str | None, to: str, points: Points
    ) -> Estimates | None:
        """Through SRAM: one term on the way in, one on the way out."""
        hops = [("hbm", False)] if source is None else [(source, False)] if source != SRAM else []
        hops += [(to, True)] if to != SRAM else []
        numbers = evaluate(value.elems, points)
        terms = [_hop(machine, place, numbers, into=into) for place, into in hops]
        return Estimates.of(terms, overlapped=False, source="published") if terms else None


def _hop(machine: Machine, place: str, numbers: np.ndarray, *, into: bool) -> Term:
    time_s = np.full_like(numbers, hop_s(machine, place, into=into))
    ends = f"sram->{place}" if into else f"{place}->sram"
    return Term(Cause.LINK, ends, time_s, numbers * _hop_j(machine, place, into=into), numbers, "number")


def _loads(machine: Machine, workload: Workload, work: Work, points: Points) -> Estimates | None:
    """Reading from DRAM what no work before this one has read."""
    numbers = [
        evaluate(workload.values[k].elems, points)
        for k in work.inputs
        if workload.values[k].kind is not ValueKind.RESULT and workload.is_first_reader(work, k)
    ]
    if not numbers:
        return None
    total = np.add.reduce(numbers)
    j_per_number = _memory_j(machine, "dram")[0] + _memory_j(machine, "hbm")[1]
    term = Term(Cause.MEMORY, "dram", np.zeros_like(total), total * j_per_number, total, "number")
    return Estimates.of([term], overlapped=False, source="published")


def _estimates(
    device: Device, machine: Machine, workload: Workload, work: Work, points: Points
) -> Estimates | None:
    """Cost of a work on a device by LightCode's formulas; ``None`` if they have none."""
    hosts = [d for d in machine.devices if isinstance(d, CPU | GPU)]
    if work.contraction is not None and isinstance(device, CPU | GPU | PHU):
        return _product(device, workload, work, work.contraction, points)
    if not hosts or device is not hosts[-1]:
        return None
    if work.op == "split":
        return _computed(device, evaluate(0, points), 0.0)
    cycles = _cycles(hosts[-1], workload, work, points)
    return None if cycles is None else _computed(device, cycles[0], cycles[1] * hosts[-1].j_per_op)


def _computed(
    device: Device, cycles: np.ndarray, energy_j: np.ndarray | float, macs: np.ndarray | None = None
) -> Estimates:
    amount, unit = (cycles, "cycle") if macs is None else (macs, "MAC")
    energies_j = np.broadcast_to(np.asarray(energy_j, np.float64), cycles.shape)
    term = Term(Cause.COMPUTE, device.name, cycles / device.clock_hz, energies_j, amount, unit)
    return Estimates.of([term], overlapped=False, source="published")


def _cycles(
    device: CPU | GPU, workload: Workload, work: Work, points: Points
) -> tuple[np.ndarray, np.ndarray] | None:
    """Cycles that an op which is no matrix product takes, and cycles that it pays energy for."""
    elems = evaluate(workload.values[work.outputs[0]].elems, points)
    if work.op == "mean":
        rows, depth = (1, 1, *workload.values[work.inputs[0]].shape)[-2:]
        return evaluate((depth + 1) * rows, points), elems
    if work.op == "add" and isinstance(device, CPU):
        cycles = (_CPU_ADD[0] * elems + _CPU_ADD[1]) * device.clock_hz
    elif work.op in _ONE_CYCLE:
        cycles = np.ones_like(elems)
    elif work.op in _CYCLES_PER_ELEM:
        cycles = _CYCLES_PER_ELEM[work.op] * elems
    elif work.op in OPS:
        cycles = evaluate(work.flop, points)
    else:
        return None
    return cycles, cycles


def _product(
    device: CPU | GPU | PHU, workload: Workload, work: Work, contraction: Contraction, points: Points
) -> Estimates:
    batch, rows, cols, depth = (
        evaluate(d, points)
        for d in (contraction.batch, contraction.rows, contraction.cols, contraction.depth)
    )
    macs = batch * rows * cols * depth
    match device:
        case PHU():
            cycles = np.ceil(np.ceil(rows * cols / device.multiplex) / device.cores) * depth * batch
        case GPU():
            dots = np.ceil(batch * rows * cols / device.tensor_cores)
            cycles = dots * np.ceil(depth / device.macs_per_cycle)
        case CPU():
            large = _has_large_dim((d for k in work.inputs for d in workload.values[k].shape), points)
            slope = np.where(large, _CPU_LARGE_PRODUCT[0], _CPU_PRODUCT[0])
            start = np.where(large, _CPU_LARGE_PRODUCT[1], _CPU_PRODUCT[1])
            cycles = (slope * macs + start) * device.clock_hz
    return _computed(device, cycles, macs * device.j_per_mac, macs)


def _has_large_dim(dims: Iterable[Dim], points: Points) -> np.ndarray:
    return np.logical_or.reduce([evaluate(d, points) > _LARGE for d in dict.fromkeys(dims)])
