"""Numbers with units, as people write them: ``"9.7 GHz"``, ``"80 GiB"``, ``"2.4 pJ/byte"``, and back.

A field's name says what its number means (``clock_hz``, ``read_j_per_byte``); :func:`kind_of` finds the kind,
and :func:`parse` takes numbers in the base unit, or texts with one of the kind's units. Both directions are
exact: a text gives the float nearest to what it says, and ``parse(k, text_of(k, x)) == x``.

::

    quantity ::= number unit            unit ::= [prefix] symbol
    prefix   ::= f p n u µ m k M G T P E, for bytes also Ki Mi Gi Ti
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from strata.core.errors import UserError

_PREFIXES = {
    "f": -15, "p": -12, "n": -9, "u": -6, "µ": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15,
    "E": 18,
}  # fmt: skip
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*)?")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a number means.

    Attributes:
        what: For messages: ``"a frequency"``.
        base: Unit of the stored number: ``"Hz"``.
        symbols: Other spellings of a unit without prefix, with their size in base units.
        example: A text that is accepted.
        binary: Whether prefixes like ``Gi`` are accepted too.
        prefixes: The prefixes that are accepted and printed, smallest first.
    """

    what: str
    base: str
    symbols: tuple[tuple[str, Fraction], ...]
    example: str
    binary: bool = False
    prefixes: str = "fpnum kMGTPE"

    def units(self) -> dict[str, Fraction]:
        """Size of every accepted unit in base units."""
        found: dict[str, Fraction] = {}
        for symbol, size in self.symbols:
            for prefix, exponent in _PREFIXES.items():
                if (prefix or " ").replace("µ", "u") in self.prefixes:
                    found[prefix + symbol] = size * Fraction(10) ** exponent
            if self.binary:
                found |= {prefix + symbol: size * factor for prefix, factor in _BINARY.items()}
        return found


def _one(*symbols: str) -> tuple[tuple[str, Fraction], ...]:
    return tuple((s, Fraction(1)) for s in symbols)


_BYTES = (*_one("B"), ("byte", Fraction(1)), ("bytes", Fraction(1)), ("bit", Fraction(1, 8)))
_LARGE = " kMGTPE"

# By the end of a field's name; the longest one that fits counts.
KINDS: dict[str, Kind] = {
    "hz": Kind("a frequency", "Hz", _one("Hz"), "9.7 GHz", prefixes=_LARGE),
    "bytes": Kind("a size", "B", _BYTES, "80 GiB", binary=True, prefixes=_LARGE),
    "bytes_per_s": Kind(
        "a bandwidth", "B/s", tuple((f"{s}/s", n) for s, n in _BYTES), "3.35 TB/s", True, _LARGE
    ),
    "samples_per_s": Kind("a sample rate", "S/s", _one("S/s", "Hz"), "10 GS/s", prefixes=_LARGE),
    "j_per_byte": Kind(
        "an energy per byte",
        "J/byte",
        (*_one("J/byte", "J/B"), ("J/bit", Fraction(8))),
        "8 pJ/byte",
    ),
    "j_per_mac": Kind("an energy per multiply-add", "J/MAC", _one("J/MAC", "J"), "0.04 pJ/MAC"),
    "j_per_op": Kind("an energy per operation", "J/op", _one("J/op", "J"), "1 pJ/op"),
    "j_per_sample": Kind("an energy per sample", "J/sample", _one("J/sample", "J"), "3.17 pJ/sample"),
    "j_per_weight": Kind("an energy per weight", "J/weight", _one("J/weight", "J"), "2 pJ/weight"),
    "j": Kind("an energy", "J", _one("J"), "2.4 pJ"),
    "s": Kind("a time", "s", _one("s"), "10 ns", prefixes="fpnum "),
    "w": Kind("a power", "W", _one("W"), "700 W"),
}


def kind_of(name: str) -> Kind | None:
    """Kind of the number in a field called ``name``; ``None`` for counts and ratios, which have no unit."""
    fits = [end for end in KINDS if name == end or name.endswith(f"_{end}")]
    longest = max(fits, key=len, default=None)
    if longest is None or (longest == "s" and name.endswith("_per_s")):  # a rate of something else
        return None
    return KINDS[longest]


def parse(kind: Kind, value: str | float, where: str) -> float:
    """The number in base units that ``value`` says.

    Args:
        kind: What it should be.
        value: A number, in base units, or a text with a unit.
        where: For messages: ``"h100.toml: devices.gpu: clock_hz"``.

    Raises:
        UserError: no number, or a unit that does not fit.
    """
    if not isinstance(value, str):
        return value
    match = _NUMBER.fullmatch(value)
    units = kind.units()
    unit = (match[2] or "").strip() if match is not None else None
    if match is None or unit not in units:
        got = f"{value!r}" if unit is None else f"the unit {unit or 'none'!r} in {value!r}"
        symbols = ", ".join(symbol for symbol, _ in kind.symbols)
        raise UserError(
            f"{where}: got {got}; expected {kind.what} such as {kind.example!r} "
            f"(units: {symbols}, with a prefix)"
        )
    return float(Fraction(match[1]) * units[unit])


def text_of(kind: Kind, value: float) -> str | float:
    """``value`` with a unit, such that :func:`parse` gives it back; 0 and infinity as they are."""
    if value == 0 or math.isinf(value):
        return value
    for prefix, factor in reversed(_BINARY.items()):
        if kind.base == "B" and value % factor == 0 and 1 <= value / factor < 2**14:
            return f"{int(value) // factor} {prefix}{kind.base}"
    exact = Decimal(repr(float(value)))
    exponents = [e for p, e in _PREFIXES.items() if p != "µ" and (p or " ") in kind.prefixes]
    exponent = max((e for e in exponents if e <= exact.adjusted()), default=min(exponents))
    prefix = next(p for p, e in _PREFIXES.items() if e == exponent)
    return f"{exact.scaleb(-exponent).normalize():f} {prefix}{kind.base}"
