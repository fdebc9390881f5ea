"""``strata opt``: passes on IR text."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from strata.app.errors import reported
from strata.app.options import LoadOption


@reported()
def command(
    file: Annotated[str, typer.Argument(help="Graph or loop IR; - reads standard input")],
    pipeline: Annotated[
        str, typer.Option("--pipeline", "-p", help="Passes, by name or like 'canonicalize,fuse{max_ops=8}'")
    ] = "",
    time: Annotated[
        bool, typer.Option("--time", help="Write the time of each pass to standard error")
    ] = False,
    print_after: Annotated[
        str, typer.Option(help="Print the IR after these passes to standard error: names with commas, or all")
    ] = "",
    dump: Annotated[
        Path | None, typer.Option(help="Write the IR after every pass into this directory")
    ] = None,
    load: LoadOption = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON: the text, and what each pass did")
    ] = False,
) -> None:
    """Run passes on IR text and print the result.

    strata opt model.ir -p "canonicalize,fuse{max_ops=8}"; `strata passes` lists what there is.
    """
    from strata.app.session import debugging
    from strata.compiler.pipelines import optimize_text
    from strata.compiler.user_file import load_file

    for path in load or ():
        load_file(path)
    text = _read(file)
    with debugging(print_after, dump):
        result = optimize_text(text, pipeline or None, file)
    if as_json:
        figures = {"text": result.text, "passes": [asdict(r) for r in result.records]}
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    sys.stdout.write(result.text)
    if time:
        sys.stderr.write(result.table() + "\n")


def _read(name: str) -> str:
    from strata.core.errors import UserError

    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot read it as text: {error}; give a file of graph or loop IR") from None
