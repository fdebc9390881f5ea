"""``strata accuracy``: what few bits and noise of photonic units do to a model's predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from strata.app.errors import reported
from strata.app.options import JsonOption, ModelArgument

if TYPE_CHECKING:
    from rich.table import Table

    from strata.planner.devices.result import MachinePlan
    from strata.target.hardware import Machine

N = TypeVar("N", int, float)


@reported()
def command(
    model: ModelArgument = None,
    machine: Annotated[
        str, typer.Option(help="Machine, by name (strata machines) or file")
    ] = "lightcode-honest",
    bits: Annotated[str, typer.Option(help="Bits of the converters, with commas")] = "4,6,8,10",
    noise: Annotated[
        str, typer.Option(help="Noise of a read-out, relative to its full scale, with commas")
    ] = "0,0.01",
    objective: Annotated[str, typer.Option(help="What plans minimise, as for strata plan")] = "energy",
    pin: Annotated[
        list[str] | None, typer.Option(help="Device of ops: PATTERN=DEVICE, e.g. 'matmul=phu'")
    ] = None,
    seq_len: Annotated[int, typer.Option(help="Tokens of the run that is planned")] = 256,
    losses: Annotated[
        bool, typer.Option("--losses", help="Instead: loss of each kind of product, alone on a photonic unit")
    ] = False,
    tokens: Annotated[int, typer.Option(help="Tokens to predict")] = 2048,
    seed: Annotated[int, typer.Option(help="Of the noise")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Sweep bits and noise of photonic units: energy of the best plan against perplexity.

    The energy of a conversion doubles with every bit. Held-out text is predicted with the planned products
    computed as the units would, and all else exactly.
    """
    from strata.app import simulation
    from strata.app.progress import progress_bar
    from strata.assets import DEMO_MODEL
    from strata.compiler.accuracy import measure_sensitivity, sweep_numerics
    from strata.target.hardware import read_machine

    name, found = model or DEMO_MODEL, read_machine(machine)
    title = f"{model or 'demo model'} on {found.name}, {tokens} tokens"
    with progress_bar() as show:
        if losses:
            sensitivity = measure_sensitivity(name, found, tokens=tokens, seed=seed, progress=show)
            figures: Any = simulation.losses_figures(sensitivity)
            tables = simulation.losses_tables(sensitivity, title)
        else:
            rows = sweep_numerics(
                name,
                found,
                plan=_planner(str(name), objective, seq_len, pin or []),
                bits=_numbers("--bits", bits, int),
                noise=_numbers("--noise", noise, float),
                tokens=tokens,
                seed=seed,
                progress=show,
            )
            figures, tables = simulation.sweep_figures(rows), [simulation.sweep_table(rows, title)]
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        _print(tables)


def _planner(model: str, objective: str, seq_len: int, pins: list[str]) -> Callable[[Machine], MachinePlan]:
    from strata.app.commands.machine_plan import rule
    from strata.compiler.machine_plan import RequestPlan, plan

    pinned = dict(rule("--pin", "PATTERN=DEVICE", text) for text in pins)

    def planned(machine: Machine) -> MachinePlan:
        found = plan(model, machine, objective, seq_len=seq_len, pins=pinned)
        assert not isinstance(found, RequestPlan)  # of one run
        return found

    return planned


def _numbers(option: str, text: str, kind: Callable[[str], N]) -> list[N]:
    from strata.core.errors import UserError

    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option}: got {text!r:.40}; expected {what} with commas") from None


def _print(tables: Iterable[Table | str]) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 120, markup=False)
    for table in tables:
        console.print(table)
