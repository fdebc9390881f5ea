"""``strata thresholds``: from which length on another plan for a machine is best, and what changes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from strata.app.errors import reported
from strata.app.options import (
    GraphOption,
    JsonOption,
    ModelArgument,
    ObjectiveOption,
    also_takes,
    planning_options,
)

from .machine_plan import options_of, show

if TYPE_CHECKING:
    from strata.planner.thresholds import Threshold


@reported()
@also_takes(planning_options)
def command(
    context: typer.Context,
    model: ModelArgument = None,
    machine: Annotated[
        str, typer.Option(help="Name of a machine (see strata machines), or a .toml or .py file")
    ] = ...,  # type: ignore[assignment]
    objective: ObjectiveOption = "energy",
    seq_len: Annotated[str, typer.Option(help="Lengths to look at, LO..HI")] = "1..131072",
    phase: Annotated[str, typer.Option(help="prefill or decode")] = "prefill",
    graph: GraphOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the exact lengths at which the best plan of a model changes, and what changes there.

    Lengths beyond what the model was made for ask what a longer one would cost.
    """
    from strata.app.machine_tables import threshold_tables
    from strata.compiler.machine_plan import thresholds

    options = options_of(context.params)
    arguments = options.arguments()
    found = thresholds(objective=objective, seq_len=seq_len, phase=phase, **arguments)
    title = f"{arguments['model']} {phase} on {machine}, {objective}, {seq_len} tokens"
    if as_json:
        sys.stdout.write(json.dumps(_figures(title, found), indent=2) + "\n")
    else:
        show(threshold_tables(title, found))


def _figures(title: str, found: tuple[Threshold, ...]) -> dict[str, Any]:
    return {
        "title": title,
        "lengths": [t.length for t in found],
        "thresholds": [
            {
                "length": t.length,
                "changes": [
                    {
                        "op": c.op,
                        "name": c.name,
                        "works": len(c.works),
                        "before": c.before,
                        "after": c.after,
                    }
                    for c in t.changes
                ],
            }
            for t in found
        ],
    }
