"""``strata plan``: which kernel runs for which sizes, or which device of a machine does which op, and why."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported
from strata.app.options import (
    DatabaseOption,
    GraphOption,
    JsonOption,
    LibrariesOption,
    LongestOption,
    MachineOption,
    MeasureOption,
    ModelArgument,
    ObjectiveOption,
    PhaseOption,
    PipelineOption,
    PreferOption,
    RangeOption,
    SeqLenOption,
    ShapeOption,
    also_takes,
    planning_options,
)
from strata.core.errors import UserError

from .machine_plan import options_of, run

if TYPE_CHECKING:
    from strata.planner.dispatch import Dispatch


# Options of one of the two tables: the other refuses them.
_OF_KERNELS = (
    "function", "node", "dispatch", "plot", "pipeline", "prefer", "libraries", "measure", "ranges",
    "database",
)  # fmt: skip
_OF_MACHINES = (
    "objective", "seq_len", "phase", "prompt", "new_tokens", "batch", "graph", "traced_len", "allow",
    "devices", "kv_dtype", "activations", "granularity", "max_context", "power_cap", "time_limit",
    "energy_limit", "max_loss", "explain", "report", "simulate",
)  # fmt: skip


@reported()
@also_takes(planning_options)
def command(
    context: typer.Context,
    model: ModelArgument = None,
    shape: ShapeOption = None,
    function: Annotated[str, typer.Option(help="prefill, decode or score")] = "prefill",
    node: Annotated[str | None, typer.Option(help="Only nodes whose name or op contains this")] = None,
    dispatch: Annotated[
        bool, typer.Option("--dispatch", help="Only nodes whose kernel depends on a size")
    ] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the cost of every candidate over the size (.svg, .png, .pdf)")
    ] = None,
    pipeline: PipelineOption = "",
    prefer: PreferOption = "",
    libraries: LibrariesOption = "",
    measure: MeasureOption = None,
    ranges: RangeOption = None,
    database: DatabaseOption = None,
    machine: MachineOption = None,
    objective: ObjectiveOption = "energy",
    seq_len: SeqLenOption = None,
    phase: PhaseOption = "prefill",
    prompt: Annotated[int | None, typer.Option(help="Tokens of a request's prompt")] = None,
    new_tokens: Annotated[int | None, typer.Option(help="Tokens that follow the prompt")] = None,
    graph: GraphOption = None,
    max_context: LongestOption = None,
    power_cap: Annotated[float | None, typer.Option(help="Most power, W: energy over time")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Most time of a run, s")] = None,
    energy_limit: Annotated[float | None, typer.Option(help="Most energy of a run, J")] = None,
    max_loss: Annotated[
        float | None,
        typer.Option(help="Most that photonic units may cost in accuracy, nats per token: measured first"),
    ] = None,
    explain: Annotated[
        str | None, typer.Option(help="All candidates of ops of this name or kind, and why one won")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a page about the plan (.html)")] = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Predict held-out text as photonic units would: perplexity")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show which kernel runs for which sizes, with the cost of all candidates. Needs no weights.

    With --machine: which device computes which op of a model, at what time and energy, with the proof that
    no plan is better. MODEL may then be the name of a shape as well.
    """
    if machine is None:
        _refuse(context, _OF_MACHINES, "--machine is missing: without it, plan shows the kernels of a model")
        _kernels(context.params)
        return
    _refuse(context, _OF_KERNELS, "with --machine, devices are planned, not kernels")
    if shape is not None and model is not None:
        raise UserError(f"got the model {model} and --shape {shape}; expected one of them")
    run(options_of(context.params), explain, report, simulate, as_json)


def _refuse(context: typer.Context, names: tuple[str, ...], why: str) -> None:
    """Refuse options that were typed but would not be obeyed."""
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            option = next(p.opts[0] for p in context.command.params if p.name == name)
            raise UserError(f"plan: got {option}; {why}")


def _kernels(given: Mapping[str, Any]) -> None:
    """The table of kernels by size."""
    from rich.console import Console

    from strata.app.inspect import View, planned_launches
    from strata.app.session import Planning
    from strata.planner.dispatch import dispatch_table

    lists = (tuple(given[name] or ()) for name in ("pin", "load", "ranges"))
    pins, files, ranges = lists
    planning = Planning(
        given["prefer"], pins, given["libraries"], given["measure"], files, ranges, given["database"]
    )
    names = ("function", "node", "format", "pipeline")
    view = View(given["model"], given["shape"], "plan", *(given[name] for name in names))
    options, dims = planning.options(), planning.dim_ranges()
    status = Console(stderr=True).status("planning")
    with status if sys.stderr.isatty() else nullcontext():
        table = dispatch_table(
            planned_launches(view, options, dims, lambda name: status.update(f"measuring {name}"))
        )
    dispatch, plot, as_json, function = (given[k] for k in ("dispatch", "plot", "as_json", "function"))
    if dispatch:
        table = [d for d in table if len(d.ranges) > 1]
    if plot is not None:
        from strata.app.plots import plot_dispatch

        drawn = [d for d in table if len(d.curves) > 1]
        if not drawn:
            raise UserError("--plot: no node has more than one candidate; nothing to compare")
        plot_dispatch(drawn, plot)
    if as_json:
        sys.stdout.write(json.dumps([asdict(d) for d in table], indent=2) + "\n")
    else:
        _print_table(table, function)


def _print_table(table: list[Dispatch], function: str) -> None:
    from rich.console import Console
    from rich.table import Table

    rows = Table(title=f"{function} · {len(table)} kinds of nodes")
    for column in ("nodes", "op", "sizes", "kernel", "estimate", "instead of"):
        rows.add_column(column, overflow="fold")
    for d in table:
        for k, r in enumerate(d.ranges):
            sizes = f"{d.dim} = {r.lo}..{r.hi}" if r.lo < r.hi else f"{d.dim} = {r.lo}"
            names = _names(d.nodes) if k == 0 else ""
            rows.add_row(
                names, d.op if k == 0 else "", sizes, r.candidate, *_costs(d, r.candidate, r.lo, r.hi)
            )
    width = None if sys.stdout.isatty() else 160
    Console(file=sys.stdout, width=width, markup=False).print(rows)


def _names(nodes: tuple[str, ...]) -> str:
    return nodes[0] + (f" and {len(nodes) - 1} more" if len(nodes) > 1 else "")


def _costs(entry: Dispatch, candidate: str, lo: int, hi: int) -> tuple[str, str]:
    """Cost of the chosen candidate and of the best other one at the ends of a range."""
    times = {c.candidate: dict(c.points) for c in entry.curves}
    sources = {c.candidate: c.source for c in entry.curves}
    sizes = [s for s in times.get(candidate, {}) if lo <= s <= hi]
    if not sizes:
        return "", ""
    ends = sorted({min(sizes), max(sizes)})
    chosen = ", ".join(f"{times[candidate][s] * 1e6:.1f} us at {s}" for s in ends)
    others = {s: [(t[s], c) for c, t in times.items() if c != candidate and s in t] for s in ends}
    best = [(s, *min(others[s])) for s in ends if others[s]]
    instead = ", ".join(f"{time_s * 1e6:.1f} us at {s} ({name})" for s, time_s, name in best)
    return f"{chosen} ({sources[candidate]})", instead
