"""What varies in a sweep.

::

    axis  ::= path {"," path} "=" items            devices.phu.dac.bits,devices.phu.adc.bits=4..10
    items ::= item {"," item}
    item  ::= value                                10, 9.7 GHz, true, physical
            | whole ".." whole                     4..10: every whole number
            | value ".." value ":" count           1 GHz..10 GHz:4: so many, evenly spaced
            | value ".." value ":log" count        1 pJ..1 nJ:log7: so many, each the same times the last

Parameters of one axis have the same value at the same time; axes are combined, each value with each.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strata.core.errors import UserError
from strata.target.hardware.parameters import Parameter, value_of

MAX_VALUES = 100_000  # of one axis
_FORM = "PATH=VALUE,VALUE,..., PATH=LO..HI or PATH=LO..HI:COUNT"
_RANGE = re.compile(r"(?P<low>.+?)\.\.(?P<high>[^:]+)(?::(?P<log>log)?(?P<count>\d+))?")


@dataclass(frozen=True, slots=True)
class Axis:
    """Parameters that have the same value, and their values as they were given.

    Attributes:
        paths: Of the parameters; see :mod:`strata.target.hardware.parameters`.
        items: Values, or texts of items.
    """

    paths: tuple[str, ...]
    items: tuple[object, ...]


def parse_axis(text: str) -> Axis:
    """The axis that a text says.

    Raises:
        UserError: it is not of the form, or has no values.
    """
    paths, equals, items = text.partition("=")
    if not equals:
        raise UserError(f"--vary: got {text!r:.80}; expected {_FORM}")
    return axis(paths, items)


def axis(paths: str, items: str | Sequence[object]) -> Axis:
    """An axis of the parameters at ``paths`` (several with commas).

    Args:
        paths: Where.
        items: Values, or a text of items with commas.

    Raises:
        UserError: no path or no values.
    """
    found = tuple(path.strip() for path in paths.split(","))
    if isinstance(items, str):
        items = [item.strip() for item in items.split(",")]
    if not all(found) or any(item == "" for item in items):
        raise UserError(f"vary: got {paths}={items!r:.60}; expected {_FORM}")
    if not items:
        raise UserError(f"vary: {paths}: got no values; expected at least one")
    return Axis(found, tuple(items))


def values_of(of: Axis, found: Parameter) -> tuple[object, ...]:
    """The values of an axis as one of its parameters takes them, each once.

    Raises:
        UserError: a value that does not fit, or a range that is empty or has too many values.
    """
    values: dict[object, None] = {}
    for item in of.items:
        for value in _expanded(item, found):
            values[value] = None
            if len(values) > MAX_VALUES:
                raise UserError(f"vary: {found.path}: got too many values; expected at most {MAX_VALUES}")
    return tuple(values)


def _expanded(item: object, found: Parameter) -> Iterator[object]:
    match = None
    if isinstance(item, str) and "str" not in str(found.field.type):
        match = _RANGE.fullmatch(item)
    if match is None:
        yield value_of(found, item)
        return
    where = f"vary: {found.path}: {item}"
    low, high = (value_of(found, match[end].strip()) for end in ("low", "high"))
    if isinstance(low, bool) or not isinstance(low, int | float) or not isinstance(high, int | float):
        raise UserError(f"{where}: got a range; expected values with commas")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"{where}: got a range with no end; expected finite numbers")
    if low > high:
        raise UserError(f"{where}: the range is empty; expected LO <= HI")
    if match["count"] is not None:
        yield from (value_of(found, v) for v in _spaced(low, high, int(match["count"]), match["log"], where))
        return
    if not (match["low"].strip().isdigit() and match["high"].strip().isdigit()):
        raise UserError(f"{where}: got a range of numbers that are not whole; say how many: LO..HI:COUNT")
    yield from (value_of(found, v) for v in range(int(low), int(high) + 1))


def _spaced(low: float, high: float, count: int, log: str | None, where: str) -> Iterator[float]:
    """``count`` numbers from ``low`` to ``high``; those that are whole are ints where both ends are."""
    if not 2 <= count <= MAX_VALUES:
        raise UserError(f"{where}: got a count of {count}; expected 2..{MAX_VALUES}")
    if log and not low > 0:
        raise UserError(f"{where}: got a logarithmic range from {low}; expected one from above 0")
    whole = isinstance(low, int) and isinstance(high, int)
    for k in range(count):
        part = k / (count - 1)
        value = low * (high / low) ** part if log else low + (high - low) * part
        value = high if k == count - 1 else value
        yield int(value) if whole and value == int(value) else value
