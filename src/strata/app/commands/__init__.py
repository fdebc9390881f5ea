"""Commands with a file each: module ``<name>`` has the function ``command``, or ``app`` if it is a group.

The command line imports them on start, so they import what costs time inside of their functions.
"""

from __future__ import annotations

from importlib import import_module

import typer

COMMANDS: tuple[str, ...] = (
    "accuracy",
    "bench",
    "calibrate",
    "debug",
    "devices",
    "machines",
    "nodes",
    "opt",
    "passes",
    "perplexity",
    "plan",
    "profile",
    "quantize",
    "sweep",
    "thresholds",
    "tune",
    "viz",
)


def add_to(app: typer.Typer) -> None:
    """Register every command of :data:`COMMANDS` under the name of its module."""
    for name in COMMANDS:
        module = import_module(f"{__name__}.{name}")
        group = getattr(module, "app", None)
        if group is not None:
            app.add_typer(group, name=name)
        else:
            app.command(name)(module.command)
