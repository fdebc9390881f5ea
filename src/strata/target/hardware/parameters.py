"""Parameters of a machine by the paths that they have in its TOML file, and machines with others.

::

    path  ::= group "." name of the part "." field          devices.phu.multiplex
            | path of a converter "." field                 devices.phu.dac.bits
            | path of a list "[" number "]" "." field       devices.cpu.families[0].error
            | "profile" | "home"
    group ::= "devices" | "memories" | "links"
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields, replace
from typing import Any

from strata.core.errors import UserError

from .machine import Machine, Part
from .read import ASSUMED, read_value

_GROUPS = ("devices", "memories", "links")
Steps = tuple[str | int, ...]  # names of fields and parts, numbers of members of lists
_WORDS = tuple(f for f in fields(Machine) if f.name in ("profile", "home"))


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value that a machine says.

    Attributes:
        path: Where.
        steps: From the machine to the value.
        field: Of the part.
        value: As it is.
    """

    path: str
    steps: Steps
    field: Field[Any]
    value: object


def parameters(machine: Machine) -> dict[str, Parameter]:
    """All parameters of a machine by path, in the order of its description."""
    found = {f.name: Parameter(f.name, (f.name,), f, getattr(machine, f.name)) for f in _WORDS}
    for group in _GROUPS:
        for part in getattr(machine, group):
            found |= {p.path: p for p in _of_part(part, f"{group}.{part.name}", (group, part.name))}
    return found


def _of_part(part: Part, path: str, steps: Steps) -> Iterator[Parameter]:
    for f in fields(part):
        value, here, to = getattr(part, f.name), f"{path}.{f.name}", (*steps, f.name)
        if f.name in ("name", "sources"):
            continue
        if isinstance(value, Part):
            yield from _of_part(value, here, to)
        elif isinstance(value, tuple) and any(isinstance(v, Part) for v in value):
            for k, member in enumerate(value):
                yield from _of_part(member, f"{here}[{k}]", (*to, k))
        elif "Converter" not in str(f.type):  # there is none whose fields could be set
            yield Parameter(here, to, f, value)


def parameter(machine: Machine, path: str) -> Parameter:
    """The parameter at a path.

    Raises:
        UserError: there is none.
    """
    known = parameters(machine)
    if path not in known:
        near = difflib.get_close_matches(path, known, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "."
        parts = ", ".join(dict.fromkeys(p.rpartition(".")[0] for p in known if "." in p))
        raise UserError(f"machine {machine.name}: no parameter {path!r}{hint} Its parts are {parts}")
    return known[path]


def value_of(found: Parameter, value: object) -> object:
    """``value`` as the parameter takes it: a text may have a unit, or be a number or ``true`` or ``false``.

    Raises:
        UserError: it does not fit.
    """
    if isinstance(value, str) and "str" not in str(found.field.type):
        value = _literal(value.strip())
    if isinstance(value, tuple):
        value = list(value)
    where, _, _ = found.path.rpartition(".")
    return read_value(found.field, "parameter", where or "machine", value)


def _literal(text: str) -> object:
    """The number or truth value that a text is; otherwise the text."""
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def with_parameters(machine: Machine, values: Mapping[Steps, object]) -> Machine:
    """The machine with other values; in its sources they are "assumed".

    Args:
        machine: Which.
        values: New values by the steps to the parameter, as :func:`value_of` gives them.

    Raises:
        UserError: values that no machine has.
    """
    tree: dict[str | int, Any] = {}
    for steps, value in values.items():
        at = tree
        for step in steps[:-1]:
            at = at.setdefault(step, {})
        at[steps[-1]] = value
    given = {f.name: tree.get(f.name, getattr(machine, f.name)) for f in fields(Machine)}
    for group in _GROUPS:
        changes = tree.get(group, {})
        given[group] = [
            _changed(p, changes[p.name]) if p.name in changes else p for p in getattr(machine, group)
        ]
    return Machine(**given)


def _changed(part: Part, changes: Mapping[str | int, Any]) -> Part:
    """A part with other fields; those of the parts that it has are changed in them."""
    given: dict[str, object] = {}
    for name, change in changes.items():
        old = getattr(part, str(name))
        if isinstance(old, Part):
            given[str(name)] = _changed(old, change)
        elif isinstance(old, tuple) and isinstance(change, dict):
            members = (_changed(v, change[k]) if k in change else v for k, v in enumerate(old))
            given[str(name)] = tuple(members)
        else:
            given[str(name)] = change
    own = [str(n) for n, c in changes.items() if not isinstance(c, dict)]
    sources = {**dict(part.sources), **dict.fromkeys(own, ASSUMED)}
    return replace(part, sources=tuple(sources.items()), **given)  # type: ignore[arg-type]
