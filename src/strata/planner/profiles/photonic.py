"""Photonic units: products only. What is converted, programmed and added up, and when.

Rows x columns of the product are M x N, contracted over K, B times; a tile holds ``rows`` inputs by ``cols``
outputs of the second operand, R x C; m = ``multiplex``.

=====================  ======================================  =========================================
amount                 a tile (R, C > 0)                       a dot-product unit (R = C = 0)
=====================  ======================================  =========================================
cycles                 ceil(B*ceil(K/R)*ceil(N/C) / cores)     ceil(ceil(M*N/m) / cores) * K * B
                       rounds of ceil(M/m)                     (LightCode's)
DAC, first operand     B*M*K * ceil(ceil(N/C) / broadcast)     B*M*K
DAC, second operand    ``dynamic``: B*K*N * ceil(M/m)          B*K*N
                       otherwise none: it is programmed
programming            once per tile: ``program_s`` per        none
                       round, B*K*N weights
ADC                    B*M*N * ceil(ceil(K/R) / analog_sums)   B*M*N: light or charge adds up over K
digital sums           of all but one of these                 none
pipeline fill          DAC and ADC once; once per round if     DAC and ADC once
                       tiles are programmed
=====================  ======================================  =========================================

A dot-product unit converts every number of an operand once per op, as if the analog value could be kept
until the last product that needs it: a lower bound that no demonstrated unit reaches. A unit that modulates
operands anew in every cycle is a ``dynamic`` tile: ``m`` rows by ``C`` columns with R = 1 and as many
``analog_sums`` as it can integrate.

A cycle takes as long as the slowest of the clock, a DAC and an ADC. Conversion and light overlap with each
other and with the traffic; programming and the fill do not. Every number that is converted passes the core's
buffer. Sums that are added digitally are f32 in that buffer, read and written once each, or in the device's
memory where a tile's (M*C of them) do not fit; the adder itself (0.03 pJ for 32-bit integers in 7 nm, Jouppi
et al., ISCA 2021) is not charged. Light is counted per multiply-add that is needed (``j_per_mac``) and per
second of the op (``busy_w``), whatever part of a tile is used.

A unit with tiles can also hold the first operand and stream the second, with rows and columns exchanged
above: a candidate of its own where it is cheaper in anything.
"""

from __future__ import annotations

import math

import numpy as np

from strata.graph.workload import Work
from strata.planner.devices.types import Cause, Estimates, Term
from strata.target.hardware import PHU, Machine

from .traffic import Amounts, Product, constant, operand_traffic

_SUM_BYTES = 4  # f32


def can_do(work: Work) -> bool:
    """Whether a work is a product of matrices and nothing else."""
    c = work.contraction
    return c is not None and work.flop == 2 * c.macs


def photonic(machine: Machine, device: PHU, sizes: Amounts) -> tuple[Estimates, ...]:
    """What a product costs on a photonic unit: as it is, and turned where that may be better."""
    product = sizes.product
    assert product is not None  # can_do() said so
    if not device.rows:
        return (_dot_products(machine, device, sizes, product),)
    held = _tiles(machine, device, sizes, product)
    if device.dynamic:
        return (held,)
    turned = _tiles(machine, device, sizes, product.turned())
    if _never_better(turned, held):
        return (held,)
    return (turned,) if _never_better(held, turned) else (held, turned)


def _never_better(a: Estimates, b: Estimates) -> bool:
    return bool((a.time_s >= b.time_s).all() and (a.energy_j >= b.energy_j).all())


def _dot_products(machine: Machine, device: PHU, sizes: Amounts, p: Product) -> Estimates:
    outputs = p.rows * p.cols * p.share
    cycles = np.ceil(np.ceil(outputs / device.multiplex) / device.cores) * p.depth * p.batch
    first, second = p.batch * p.rows * p.depth, p.batch * p.depth * p.cols
    out = p.batch * outputs
    terms = _converted(device, sizes, cycles, first + second, out, p.depth)
    terms += operand_traffic(machine, device, sizes).terms()
    terms += _fill(device, constant(1.0, cycles))
    return Estimates.of([*_light(device, cycles, p), *terms, *_launch(device, cycles)], overlapped=True)


def _tiles(machine: Machine, device: PHU, sizes: Amounts, p: Product) -> Estimates:
    down, across = np.ceil(p.depth / device.rows), np.ceil(p.cols / device.cols)
    passes = np.ceil(p.rows / device.multiplex)
    rounds = np.ceil(p.batch * down * across * p.share / device.cores)
    cycles = rounds * passes
    weights = p.batch * p.depth * p.cols * p.share
    rows_in = p.batch * p.rows * p.depth * p.share
    converted = rows_in * np.ceil(across / device.broadcast)
    sums = np.ceil(down / device.analog_sums)
    out = p.batch * p.rows * p.cols * p.share * sums

    traffic = operand_traffic(machine, device, sizes)
    added = out - p.batch * p.rows * p.cols * p.share
    in_memory = np.where(p.rows * device.cols * _SUM_BYTES > device.buffer_bytes, added * _SUM_BYTES, 0.0)
    if in_memory.any():
        traffic.read(device.memory, in_memory)
        traffic.write(device.memory, in_memory)

    if device.dynamic:
        program: list[Term] = []
        converted = converted + weights * passes
        fills = constant(1.0, cycles)
    else:
        energy_j = weights * device.program_j_per_weight
        program = [Term(Cause.PROGRAM, device.name, rounds * device.program_s, energy_j, weights, "weight")]
        fills = rounds if device.program_s else constant(1.0, rounds)
    per_conversion = np.minimum(down, device.analog_sums)
    terms = [
        *_light(device, cycles, p),
        *_converted(device, sizes, cycles, converted, out, per_conversion),
        *traffic.terms(),
        *program,
        *_fill(device, fills),
        *_launch(device, cycles),
    ]
    if device.buffer_j_per_byte:
        held = (0.0 if device.dynamic else weights * sizes.bytes_per_elem) + 2 * added * _SUM_BYTES
        energy_j = held * device.buffer_j_per_byte
        terms.append(Term(Cause.MEMORY, f"{device.name}.sums", constant(0.0, held), energy_j, held, "byte"))
    return Estimates.of(terms, overlapped=True)


def _light(device: PHU, cycles: np.ndarray, p: Product) -> list[Term]:
    energy_j = p.macs * device.j_per_mac
    return [Term(Cause.COMPUTE, device.name, cycles / device.clock_hz, energy_j, p.macs, "MAC")]


def _converted(
    device: PHU,
    sizes: Amounts,
    cycles: np.ndarray,
    into: np.ndarray,
    out: np.ndarray,
    cycles_per_output: np.ndarray,
) -> list[Term]:
    """Conversions of ``into`` and ``out`` numbers, which also pass the buffer."""
    terms: list[Term] = []
    every = ((device.dac, into, cycles), (device.adc, out, cycles / np.maximum(cycles_per_output, 1.0)))
    for converter, samples, samples_of_one in every:
        if converter is not None:
            time_s = samples_of_one / converter.samples_per_s
            energy_j = samples * converter.j_per_sample
            place = f"{device.name}.{converter.name}"
            terms.append(Term(Cause.CONVERSION, place, time_s, energy_j, samples, "sample"))
    if device.buffer_j_per_byte:
        per_out = sizes.out_bytes / np.maximum(sizes.out_elems, 1.0)
        moved = into * sizes.bytes_per_elem + out * per_out
        energy_j = moved * device.buffer_j_per_byte
        terms.append(
            Term(Cause.MEMORY, f"{device.name}.buffer", constant(0.0, moved), energy_j, moved, "byte")
        )
    return terms


def _fill(device: PHU, times: np.ndarray) -> list[Term]:
    delay_s = math.fsum(c.delay_s for c in (device.dac, device.adc) if c is not None)
    if not delay_s:
        return []
    return [Term(Cause.LAUNCH, f"{device.name}.fill", times * delay_s, constant(0.0, times), times, "fill")]


def _launch(device: PHU, like: np.ndarray) -> list[Term]:
    if not device.launch_s:
        return []
    launch_s = constant(device.launch_s, like)
    return [
        Term(Cause.LAUNCH, device.name, launch_s, constant(0.0, launch_s), constant(1.0, launch_s), "launch")
    ]
