"""Photonic units: products only. What is converted, programmed and added up, and when.

Rows x columns of the product are M x N, contracted over K, B times; a tile holds ``rows`` inputs by ``cols``
outputs of the second operand, R x C; m = ``multiplex``.

=====================  ======================================  =========================================
amount                 a tile (R, C > 0)                       a dot-product unit (R = C = 0)
=====================  ======================================  =========================================
cycles                 ceil(B*ceil(K/R)*ceil(N/C) / cores)     ceil(ceil(M*N/m) / cores) * K * B
                       rounds of ceil(M/m)                     (LightCode's)
DAC, first operand     B*M*K * ceil(ceil(N/C) / broadcast)     B*M*K, and again what is read again
DAC, second operand    ``dynamic``: B*K*N * ceil(M/m)          B*K*N, and again what is read again
                       otherwise none: it is programmed
programming            once per tile: ``program_s`` per        none
                       round, B*K*N weights
ADC                    B*M*N * ceil(ceil(K/R) / analog_sums)   B*M*N: light or charge adds up over K
digital sums           of all but one of these                 none
pipeline fill          DAC and ADC once; once per round if     DAC and ADC once
                       tiles are programmed
=====================  ======================================  =========================================

A dot-product unit converts a number whenever it is read into the core's buffer, and keeps the analog value
as long as the number is there; what does not fit is read again (:func:`.traffic.reads_again`) and converted
again. This is a lower bound that no demonstrated unit reaches; without a limit of the buffer it is once per
number and op. A unit that modulates operands anew in every cycle is a ``dynamic`` tile: ``m`` rows by ``C``
columns with R = 1 and as many ``analog_sums`` as it can integrate.

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

from .traffic import Amounts, Product, buffered, constant, launched, operand_traffic, reads_again

_SUM_BYTES = 4  # f32


def can_do(work: Work) -> bool:
    """Whether a work is a product of matrices and nothing else."""
    c = work.contraction
    return c is not None and work.flop == 2 * c.macs


def photonic(machine: Machine, device: PHU, sizes: Amounts) -> dict[str, Estimates]:
    """What a product costs on a photonic unit: as it is (``""``), and turned where that is better."""
    product = sizes.product
    assert product is not None  # can_do() said so
    if not device.rows:
        return {"": _dot_products(machine, device, sizes, product)}
    held = _tiles(machine, device, sizes, product)
    if device.dynamic:
        return {"": held}
    turned = _tiles(machine, device, sizes, product.turned())
    if _never_better(turned, held):
        return {"": held}
    return {".turned": turned} if _never_better(held, turned) else {"": held, ".turned": turned}


def _never_better(a: Estimates, b: Estimates) -> bool:
    return bool((a.time_s >= b.time_s).all() and (a.energy_j >= b.energy_j).all())


def _dot_products(machine: Machine, device: PHU, sizes: Amounts, p: Product) -> Estimates:
    outputs = p.rows * p.cols * p.share
    cycles = np.ceil(np.ceil(outputs / device.multiplex) / device.cores) * p.depth * p.batch
    again = reads_again(sizes, device.buffer_bytes)
    converted = p.batch * p.depth * (p.rows + p.cols) + again / np.maximum(sizes.bytes_per_elem, 1e-9)
    out = p.batch * outputs
    terms = [
        *_light(device, cycles, p),
        *_converted(device, cycles, converted, out, p.depth),
        *operand_traffic(machine, device, sizes, again).terms(),
        *buffered(device, _bytes(sizes, converted, out)),
        *_fill(device, constant(1.0, cycles)),
        *launched(device, cycles),
    ]
    return Estimates.of(terms, overlapped=True)


def _tiles(machine: Machine, device: PHU, sizes: Amounts, p: Product) -> Estimates:
    down, across = np.ceil(p.depth / device.rows), np.ceil(p.cols / device.cols)
    passes = np.ceil(p.rows / device.multiplex)
    rounds = np.ceil(p.batch * down * across * p.share / device.cores)
    cycles = rounds * passes
    weights = p.batch * p.depth * p.cols * p.share
    results = p.batch * p.rows * p.cols * p.share
    converted = p.batch * p.rows * p.depth * p.share * np.ceil(across / device.broadcast)
    out = results * np.ceil(down / device.analog_sums)
    added_bytes = (out - results) * _SUM_BYTES

    again = reads_again(sizes, device.buffer_bytes)
    traffic = operand_traffic(machine, device, sizes, again)
    in_memory = np.where(p.rows * device.cols * _SUM_BYTES > device.buffer_bytes, added_bytes, 0.0)
    if in_memory.any():
        traffic.read(device.memory, in_memory)
        traffic.write(device.memory, in_memory)
    if device.dynamic:
        converted = converted + weights * passes
        passing = _bytes(sizes, converted, out)
        program, fills = [], constant(1.0, cycles)
    else:
        passing = _bytes(sizes, converted + weights, out)
        energy_j = weights * device.program_j_per_weight
        program = [Term(Cause.PROGRAM, device.name, rounds * device.program_s, energy_j, weights, "weight")]
        fills = rounds if device.program_s else constant(1.0, cycles)
    terms = [
        *_light(device, cycles, p),
        *_converted(device, cycles, converted, out, np.minimum(down, device.analog_sums)),
        *traffic.terms(),
        *buffered(device, passing + 2 * added_bytes),
        *program,
        *_fill(device, fills),
        *launched(device, cycles),
    ]
    return Estimates.of(terms, overlapped=True)


def _bytes(sizes: Amounts, into: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Bytes of ``into`` numbers of operands and ``out`` numbers of results."""
    return into * sizes.bytes_per_elem + out * sizes.out_bytes / np.maximum(sizes.out_elems, 1.0)


def _light(device: PHU, cycles: np.ndarray, p: Product) -> list[Term]:
    energy_j = p.macs * device.j_per_mac
    return [Term(Cause.COMPUTE, device.name, cycles / device.clock_hz, energy_j, p.macs, "MAC")]


def _converted(
    device: PHU, cycles: np.ndarray, into: np.ndarray, out: np.ndarray, cycles_per_output: np.ndarray
) -> list[Term]:
    """Conversions of ``into`` and ``out`` numbers; a DAC works in every cycle, an ADC once per output."""
    terms: list[Term] = []
    every = ((device.dac, into, cycles), (device.adc, out, cycles / np.maximum(cycles_per_output, 1.0)))
    for converter, samples, samples_of_one in every:
        if converter is not None:
            time_s = samples_of_one / converter.samples_per_s
            energy_j = samples * converter.j_per_sample
            place = f"{device.name}.{converter.name}"
            terms.append(Term(Cause.CONVERSION, place, time_s, energy_j, samples, "sample"))
    return terms


def _fill(device: PHU, times: np.ndarray) -> list[Term]:
    delay_s = math.fsum(c.delay_s for c in (device.dac, device.adc) if c is not None)
    if not delay_s:
        return []
    return [Term(Cause.LAUNCH, f"{device.name}.fill", times * delay_s, constant(0.0, times), times, "fill")]
