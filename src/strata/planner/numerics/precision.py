"""A machine with converters of more or fewer bits, and what that does to their energy.

The energy of a conversion doubles with every bit: Walden's figure of merit, joules per conversion and level,
is a constant of the technology (R. H. Walden, "Analog-to-digital converter survey and analysis", IEEE JSAC
17(4), 1999; B. Murmann, "ADC Performance Survey 1997-2025", github.com/bmurmann/ADC-survey). It holds for
converters that matching and comparators limit. From about 10 effective bits on thermal noise does, and every
bit costs four times the energy of the one before (Schreier's figure of merit, same survey): there, what
follows is a lower bound. Light's own share is not changed: a smaller noise may need more of it.
"""

from __future__ import annotations

from dataclasses import replace

from strata.core.errors import UserError
from strata.target.hardware import PHU, Converter, Device, Machine

from .photonic import PhotonicNumerics


def with_bits(converter: Converter, bits: int) -> Converter:
    """The converter at another resolution, at the same energy per level."""
    return replace(converter, bits=bits, j_per_sample=converter.j_per_sample * 2.0 ** (bits - converter.bits))


def with_precision(machine: Machine, bits: int, noise_additive: float | None = None) -> Machine:
    """The machine with all converters of its photonic units at ``bits``.

    Args:
        machine: Has a photonic unit with converters.
        bits: Of each DAC and ADC.
        noise_additive: Of each photonic unit, relative to the full scale of an output; ``None`` = as it is.

    Raises:
        UserError: there is no photonic unit, or one without converters or their energy, or a number is out of
            range.
    """
    if not any(isinstance(d, PHU) for d in machine.devices):
        devices = ", ".join(f"{d.name} ({d.kind})" for d in machine.devices)
        raise UserError(f"machine {machine.name}: no photonic unit; it has {devices}")
    return replace(machine, devices=tuple(_changed(d, bits, noise_additive) for d in machine.devices))


def _changed(device: Device, bits: int, noise_additive: float | None) -> Device:
    if not isinstance(device, PHU):
        return device
    dac, adc = (_priced(device, name) for name in ("dac", "adc"))
    noise = device.noise_additive if noise_additive is None else noise_additive
    changed = replace(device, dac=with_bits(dac, bits), adc=with_bits(adc, bits), noise_additive=noise)
    PhotonicNumerics.of(changed)  # refused here, whether or not a plan uses the unit
    return changed


def _priced(device: PHU, name: str) -> Converter:
    converter: Converter | None = getattr(device, name)
    if converter is None or converter.j_per_sample == 0:
        got = "none" if converter is None else "one of 0 J per sample"
        raise UserError(
            f"device {device.name}: {name}: got {got}: what its bits cost is unknown; "
            f"give it a converter with its energy"
        )
    return converter
