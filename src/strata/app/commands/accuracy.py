"""``strata accuracy``: what few bits and noise of photonic units do to a model's predictions."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from strata.app.errors import reported
from strata.app.options import JsonOption, ModelArgument, ObjectiveOption

from .machine_plan import rule, show

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
    objective: ObjectiveOption = "energy",
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

    name, title = model or DEMO_MODEL, f"{model or 'demo model'} on {machine}, {tokens} tokens"
    with progress_bar() as report:
        if losses:
            sensitivity = measure_sensitivity(name, machine, tokens=tokens, seed=seed, progress=report)
            figures: Any = simulation.losses_figures(sensitivity)
            tables = simulation.losses_tables(sensitivity, title)
        else:
            rows = sweep_numerics(
                name,
                machine,
                bits=_numbers("--bits", bits, int),
                noise=_numbers("--noise", noise, float),
                tokens=tokens,
                seed=seed,
                progress=report,
                objective=objective,
                seq_len=seq_len,
                pins=dict(rule("--pin", "PATTERN=DEVICE", text) for text in pin or ()),
            )
            figures, tables = simulation.sweep_figures(rows), [simulation.sweep_table(rows, title)]
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    else:
        show(tables)


def _numbers(option: str, text: str, kind: Callable[[str], N]) -> list[N]:
    from strata.core.errors import UserError

    try:
        return [kind(word) for word in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise UserError(f"{option}: got {text!r:.40}; expected {what} with commas") from None
