"""Numbers as people read them: with a unit and its prefix."""

from __future__ import annotations

_PREFIXES = ((12, "T"), (9, "G"), (6, "M"), (3, "k"), (0, ""), (-3, "m"), (-6, "µ"), (-9, "n"), (-12, "p"))


def scale(largest: float, unit: str) -> tuple[float, str]:
    """Factor and unit in which ``largest`` is a handy number: ``(1e3, "ms")``. Seconds have no kilo."""
    for exponent, prefix in _PREFIXES:
        if abs(largest) >= 10.0**exponent and not (unit == "s" and exponent > 0):
            return 10.0**-exponent, prefix + unit
    return (1e12, "p" + unit) if largest else (1.0, unit)


def si(value: float, unit: str) -> str:
    """``0.0123, "s"`` -> ``"12.3 ms"``."""
    factor, scaled = scale(value, unit)
    return f"{value * factor:.4g} {scaled}"
