"""``strata profile``: where the time of a function goes, node by node."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from strata.app.errors import reported

if TYPE_CHECKING:
    from collections.abc import Sequence

    from strata.runtime.profile import Ceilings, Profile, Timing

KEYS = ("node", "op", "kernel")
BANDWIDTH_BYTES = 1 << 28  # read to measure the bandwidth: larger than caches, soon done


@reported()
def command(
    model: Annotated[
        str | None, typer.Argument(help="Model folder, hub id or artifact; default: the demo model")
    ] = None,
    function: Annotated[str, typer.Option(help="prefill, decode or score")] = "decode",
    tokens: Annotated[int | None, typer.Option(help="Tokens of the sequence; default: 128")] = None,
    repeats: Annotated[int, typer.Option(help="Repetitions; times are medians")] = 20,
    by: Annotated[str, typer.Option(help="Only this table: node, op or kernel; default: op and node")] = "",
    top: Annotated[int, typer.Option(help="Rows of the table by node; 0 = all")] = 20,
    trace: Annotated[
        Path | None, typer.Option(help="Write a Chrome trace (chrome://tracing, Perfetto) to this file")
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="Weights: f32, bf16, f16, int8, int4, mixed, ...; default: as stored")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads; default: all cores")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """Time every node of a function in its place among the others.

    Times are measured, work (flop, bytes) is modelled: the roofline fraction is the least time for that work
    at the machine's ceilings over the measured time. Above 100%: operands came from a cache. Prefill computes
    all tokens of the sequence, decode the last one.
    """
    from strata.app.sequence import example_pass
    from strata.app.session import Source, open_model
    from strata.core.errors import UserError
    from strata.runtime.profile import profile

    if by and by not in KEYS:
        raise UserError(f"--by: got {by!r}; expected one of {', '.join(KEYS)}")
    if repeats < 1:
        raise UserError(f"--repeats: got {repeats}; expected at least 1")
    language_model = open_model(Source(model, format=format, threads=threads))
    forward = example_pass(language_model, function, tokens)
    num_threads = language_model.stepping_program.num_threads
    ceilings = measured_ceilings(num_threads)
    result = profile(forward.step, forward, repeats=repeats, work_dims=forward.work_dims, ceilings=ceilings)
    if trace is not None:
        result.trace().write(trace)
    if as_json:
        data = {"threads": num_threads, "ceilings": ceilings_json(ceilings), **result.to_json()}
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
    else:
        print_profile(result, ceilings, by, top, num_threads)


def measured_ceilings(num_threads: int) -> Ceilings | None:
    """Ceilings of this machine, measured now; ``None`` without the compiler, which makes kernels for it."""
    try:
        from strata.app.machine import measure_ceilings
    except ModuleNotFoundError:
        return None
    return measure_ceilings(num_threads, BANDWIDTH_BYTES)


def ceilings_json(ceilings: Ceilings | None) -> dict[str, object] | None:
    """What JSON says of the ceilings."""
    if ceilings is None:
        return None
    return {
        "flop_per_s": dict(ceilings.flop_per_s),
        "bytes_per_s": ceilings.bytes_per_s,
        "source": ceilings.source,
    }


def print_profile(result: Profile, ceilings: Ceilings | None, by: str, top: int, num_threads: int) -> None:
    """Print a profile: totals, and tables by ``by`` (default: op and node, the ``top`` first; 0 = all)."""
    from strata.app.sequence import sizes_text

    sys.stdout.write(
        f"{result.function} · {sizes_text(dict(result.dims))} · {num_threads} threads · "
        f"{result.repeats} repetitions\n"
        f"{len(result.nodes)} nodes: {result.total_s * 1e3:.3f} ms one by one, "
        f"{result.whole_s * 1e3:.3f} ms in one call (medians)\n"
    )
    if ceilings is not None:
        peaks = ", ".join(f"{v / 1e9:.0f} GFLOP/s {k}" for k, v in ceilings.flop_per_s.items())
        sys.stdout.write(f"ceilings, measured: {peaks}, {ceilings.bytes_per_s / 1e9:.1f} GB/s\n")
    for key in (by,) if by else ("op", "node"):
        if key == "node":
            rows = sorted(result.nodes, key=lambda t: -t.time_s)
            _print_table(key, rows[: top or None], result.total_s)
        else:
            _print_table(key, result.by(key), result.total_s)


def _print_table(key: str, rows: Sequence[Timing], total_s: float) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"by {key}")
    columns = ("time", "share", "spread", "estimate", "GFLOP/s", "GB/s", "of roofline")
    table.add_column(key, overflow="fold")
    table.add_column(
        "candidate" if key == "node" else "launches", justify="left" if key == "node" else "right"
    )
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for t in rows:
        estimate = "" if t.estimate_s is None else f"{t.estimate_s * 1e6:.1f} us {t.estimate_source}"
        table.add_row(
            t.name,
            t.candidate if key == "node" else str(t.launches),
            f"{t.time_s * 1e6:.1f} us",
            f"{t.time_s / total_s:.1%}",
            f"{t.spread:.0%}",
            estimate,
            _rate(t.flop_per_s),
            _rate(t.bytes_per_s),
            "" if t.roofline_fraction is None else f"{t.roofline_fraction:.0%}",
        )
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def _rate(per_s: float | None) -> str:
    return "" if per_s is None else f"{per_s / 1e9:.1f}"
