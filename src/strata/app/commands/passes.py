"""``strata passes``: what pipelines are made of."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from strata.app.errors import reported
from strata.app.options import LoadOption

if TYPE_CHECKING:
    from strata.ir.describe import PassInfo


@reported()
def command(
    name: Annotated[str | None, typer.Argument(help="Show this pass or pipeline in full")] = None,
    load: LoadOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON")] = False,
) -> None:
    """List passes with their options, and named pipelines."""
    from strata.compiler.user_file import load_file
    from strata.ir.describe import describe_passes, describe_pipelines
    from strata.ir.passes import PASSES, PIPELINES

    for path in load or ():
        load_file(path)
    if name is not None and name not in PIPELINES:
        PASSES[name]  # says which there are
    chosen = [p for p in describe_passes() if name in (None, p.name)]
    pipelines = {key: text for key, text in describe_pipelines().items() if name in (None, key)}
    if as_json:
        figures = {"passes": [asdict(p) for p in chosen], "pipelines": pipelines}
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    lines: list[str] = []
    for info in chosen:
        lines += _full(info) if name is not None else _brief(info)
    if pipelines:
        lines += ["", "named pipelines:"] if name is None else []
        lines += [f"  {text}" for text in pipelines.values()]
    sys.stdout.write("\n".join(lines) + "\n")


def _usage(info: PassInfo) -> str:
    options = ",".join(f"{o.name}={o.default}" for o in info.options)
    return f"{info.name}{{{options}}}" if options else info.name


def _brief(info: PassInfo) -> list[str]:
    on = "" if info.ir == "graph" else f"  (on {info.ir} functions)"
    return [f"{_usage(info)}{on}", f"    {info.summary.replace('``', '')}"]


def _full(info: PassInfo) -> list[str]:
    lines = [_usage(info), "", info.doc.replace("``", "")]
    if info.options:
        lines += ["", "Options:", *(f"  {o.name} ({o.kind}; {o.default}): {o.doc}" for o in info.options)]
    return lines
