"""``strata sweep``: plans over parameters of machines, lengths, models and objectives, as a file of rows."""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strata.app.errors import reported
from strata.app.options import (
    JsonOption,
    LongestOption,
    SeqLenOption,
    also_takes,
    planning_options,
)

from .machine_plan import options_of

if TYPE_CHECKING:
    from strata.planner.explore import Row


@reported()
@also_takes(planning_options)
def command(
    context: typer.Context,
    models: Annotated[
        list[str],
        typer.Argument(help="Model folders, hub ids, names of shapes, files of graph-executor JSON"),
    ],
    machine: Annotated[
        list[str],
        typer.Option(help="Name of a machine (see strata machines), or a .toml or .py file; several times"),
    ],
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="PATH[,PATH]=VALUES: parameters by their path in the machine's file, e.g. "
            "devices.phu.multiplex=1,5,20 or devices.phu.dac.bits=4..10 or "
            "'memories.hbm.bandwidth_bytes_per_s=1 TB/s..8 TB/s:5' (so many; :log5 logarithmically)"
        ),
    ] = None,
    seq_len: SeqLenOption = None,
    objective: Annotated[
        str, typer.Option(help="time, energy, edp, makespan or sums like 0.5*time+2*energy, with commas")
    ] = "energy",
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write and go on with, .parquet or .csv; default: CSV on stdout"
        ),
    ] = None,
    phase: Annotated[str, typer.Option(help="prefill or decode")] = "prefill",
    workers: Annotated[int, typer.Option(help="Processes of this machine")] = 1,
    ray: Annotated[str, typer.Option(help="Plan on the Ray cluster at this address instead")] = "",
    max_context: LongestOption = None,
    as_json: JsonOption = False,
) -> None:
    """Plan models on variations of machines: one row per model, machine, values, length and objective.

    A sweep that was interrupted goes on where it stopped when the command is given again; with more values,
    lengths, models, machines or objectives it adds to the file.
    """
    from strata.app.progress import progress_bar
    from strata.compiler.explore import sweep
    from strata.planner.explore import parse_axis

    options = options_of({**context.params, "model": None, "machine": "", "load": ()})
    arguments = options.arguments()
    for name in ("model", "machine"):
        del arguments[name]
    begin, first = time.monotonic(), []
    with progress_bar() as bar:

        def progress(done: int, total: int, what: str) -> None:
            first.append(done)
            if bar is not None:
                bar(done, total, what)

        rows = sweep(
            models,
            machine,
            [parse_axis(text) for text in vary or ()],
            seq_len=seq_len,
            objective=objective.split(","),
            output=output,
            phase=phase,
            workers=workers,
            ray=ray,
            load=context.params["load"] or (),
            progress=progress,
            **arguments,
        )
    _show(rows, len(rows) - first[0], time.monotonic() - begin, output, as_json)


def _show(rows: list[Row], new: int, seconds: float, output: Path | None, as_json: bool) -> None:
    from strata.planner.explore.table import record

    if output is None:
        records = list(map(record, rows))
        if as_json:
            sys.stdout.write(json.dumps(records, indent=2) + "\n")
            return
        names = dict.fromkeys(name for found in records for name in found)
        writer = csv.DictWriter(sys.stdout, list(names), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    elif as_json:
        figures = {"output": str(output), "plans": len(rows), "new": new, "seconds": seconds}
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        rate = f", {60 * new / seconds:.0f} per minute" if new else ""
        sys.stdout.write(f"{output}: {len(rows)} plans, {new} of them new, in {seconds:.1f} s{rate}\n")
