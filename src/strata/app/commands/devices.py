"""``strata devices``: this machine, the libraries that programs may call, and other known machines."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported

if TYPE_CHECKING:
    from rich.table import Table


@reported()
def command(as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False) -> None:
    """Show this machine, the libraries that programs may call, and other known machines."""
    from strata.app.devices import devices

    figures = devices()
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120)
    for table in (_host(figures), _libraries(figures["libraries"]), _targets(figures["targets"])):
        console.print(table)


def _rate(value: float, unit: str) -> str:
    return f"{value / 1e9:.0f} G{unit}/s"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:g} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:g} KiB"


def _host(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="This machine", show_header=False)
    host = figures["host"]
    if host is None:
        table.add_row("no code for it", figures["host_problem"])
        return table
    caches = ", ".join(f"L{i} {_size(host[f'l{i}_bytes'])}" for i in (1, 2, 3))
    rows = {
        "processor": f"{host['model']} ({host['cpu']})",
        "cores": str(host["cores"]),
        "caches": caches,
        "vectors": f"{8 * host['vector_bytes']} bit",
        "features": " ".join(host["features"]),
        "peak f32": _rate(host["peak_f32_flop_per_s"], "FLOP"),
        "peak bf16": _rate(host["peak_bf16_flop_per_s"], "FLOP"),
        "peak int8": _rate(host["peak_int8_op_per_s"], "OP"),
        "memory": _rate(host["bandwidth_bytes_per_s"], "B"),
        "speeds are": host["source"],
    }
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _libraries(libraries: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="Libraries")
    for column in ("library", "version", "licence", "where it is, or how to get it"):
        table.add_column(column, overflow="fold")
    for x in libraries:
        where = x["path"] if x["found"] else f"not found; {x['install']}"
        table.add_row(x["name"], x["version"] or "-", x["licence"], where)
    return table


def _targets(targets: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table(title="Machines that code can be generated for")
    for column in ("name", "cores", "vectors", "peak f32", "peak bf16", "peak int8", "memory", "speeds are"):
        table.add_column(column, justify="left" if column in ("name", "speeds are") else "right")
    for x in targets:
        table.add_row(
            x["name"],
            str(x["cores"]),
            f"{8 * x['vector_bytes']} bit",
            _rate(x["peak_f32_flop_per_s"], "FLOP"),
            _rate(x["peak_bf16_flop_per_s"], "FLOP"),
            _rate(x["peak_int8_op_per_s"], "OP"),
            _rate(x["bandwidth_bytes_per_s"], "B"),
            x["source"],
        )
    return table
