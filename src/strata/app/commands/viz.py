"""``strata viz``: a compiled model as one HTML file."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from strata.app.errors import reported
from strata.app.options import (
    DatabaseOption,
    FormatOption,
    JsonOption,
    LibrariesOption,
    LoadOption,
    MeasureOption,
    ModelArgument,
    PinOption,
    PipelineOption,
    PreferOption,
    RangeOption,
    ShapeOption,
)


@reported()
def command(
    model: ModelArgument = None,
    shape: ShapeOption = None,
    function: Annotated[
        list[str] | None, typer.Option(help="prefill, decode or score (may be repeated); default: all")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File; default: <model>.html")] = None,
    format: FormatOption = None,
    pipeline: PipelineOption = "",
    prefer: PreferOption = "",
    pin: PinOption = None,
    libraries: LibrariesOption = "",
    measure: MeasureOption = None,
    load: LoadOption = None,
    ranges: RangeOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML file: graph, passes as diffs, candidates with costs, loops and assembly of every node.

    Needs no weights. The file loads nothing: open it in any browser, send it to anybody.
    """
    from strata.app.inspect import define_model
    from strata.app.session import Planning, pipeline_text
    from strata.app.viz.data import Subject, model_data
    from strata.app.viz.page import write_page
    from strata.assets import DEMO_MODEL
    from strata.compiler.artifact_cache import Options
    from strata.compiler.driver import trace
    from strata.planner.options import PlanOptions

    planning = Planning(prefer, pin or (), libraries, measure, load or (), ranges or (), database)
    plan = planning.options() or PlanOptions()
    options = Options(format, pipeline=pipeline_text(pipeline), plan=plan, ranges=planning.dim_ranges())
    definition = define_model(model, shape, options)
    traced = trace(definition.module, None, definition.cache_record, definition.config)
    name = shape or Path(model or DEMO_MODEL).resolve().name
    data = model_data(Subject(name, traced, options, tuple(function or ())))
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2) + "\n")
        return
    path = output or Path(f"{name}.html")
    size_bytes = write_page(data, path)
    sys.stdout.write(f"{path}: {size_bytes / 2**20:.2f} MiB\n")
