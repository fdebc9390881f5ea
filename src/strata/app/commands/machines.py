"""``strata machines``: the machines that come with Strata, and where every number of one comes from."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported
from strata.app.options import JsonOption

from .machine_plan import show

if TYPE_CHECKING:
    from strata.target.hardware import Machine
    from strata.target.hardware.machine import Part


@reported()
def command(
    name: Annotated[
        str | None, typer.Argument(help="Name of a machine, or a .toml or .py file; default: list all")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the machines that plans can be made for, or show one with the source of every number."""
    from rich.table import Table

    from strata.target.hardware.read import machine_names, read_machine

    machines = [read_machine(n) for n in ((name,) if name is not None else machine_names())]
    if as_json:
        figures = [_figures(m) for m in machines]
        sys.stdout.write(json.dumps(figures if name is None else figures[0], indent=2) + "\n")
        return
    if name is None:
        table = Table("name", "devices", "costs", "about", title="Machines")
        for machine in machines:
            devices = ", ".join(d.name for d in machine.devices)
            table.add_row(machine.name, devices, machine.profile, machine.about)
        show([table])
        return
    (machine,) = machines
    table = Table("part", "", "value", "source", title=f"{machine.name} (costs: {machine.profile})")
    last = ""
    for path, field, value, source in _numbers(machine):
        if path != last:
            table.add_section()
        table.add_row(path if path != last else "", field, _text(field, value), source)
        last = path
    show([machine.about + "\n", table] if machine.about else [table])


def _numbers(machine: Machine) -> Iterator[tuple[str, str, Any, str]]:
    """Part, field, value and source of everything that a machine says."""
    parts = [("device", p) for p in machine.devices]
    parts += [("memory", p) for p in machine.memories]
    parts += [("link", p) for p in machine.links]
    for kind, part in parts:
        yield from _of_part(f"{kind} {part.name}", part)


def _of_part(path: str, part: Part) -> Iterator[tuple[str, str, Any, str]]:
    from strata.target.hardware.machine import Part as PartClass

    inner = []
    for f in fields(part):
        value = getattr(part, f.name)
        if isinstance(value, PartClass):
            inner.append((f"{path}.{f.name}", value))
        elif f.name not in ("name", "sources") and value not in (None, "", ()):
            is_number = isinstance(value, int | float)
            yield path, f.name, value, part.source_of(f.name) if is_number else ""
    for name, value in inner:
        yield from _of_part(name, value)


def _text(field: str, value: Any) -> str:
    from strata.target.hardware.units import kind_of, text_of

    kind = kind_of(field) if isinstance(value, float) else None
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return str(text_of(kind, value) if kind is not None else value)


def _figures(machine: Machine) -> dict[str, Any]:
    return {
        "name": machine.name,
        "about": machine.about,
        "profile": machine.profile,
        "home": machine.home,
        "devices": {d.name: d.kind for d in machine.devices},
        "numbers": [
            {"part": path, "field": field, "value": value, "source": source}
            for path, field, value, source in _numbers(machine)
            if isinstance(value, int | float)
        ],
    }
