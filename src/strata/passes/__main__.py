"""``python -m strata.passes FILE [-p PIPELINE] [--times]``: run graph passes on IR text and print the result.

It is what the reproducer of a failed pass names; ``-`` reads standard input. Knobs come from the environment.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from strata.core.errors import UserError
from strata.graph.text import parse_module, print_module

from . import transform


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 2 where the input is bad."""
    parser = argparse.ArgumentParser(
        prog="python -m strata.passes", description="Run graph passes on IR text."
    )
    parser.add_argument("file", help="graph IR text; - for standard input")
    parser.add_argument("-p", "--pipeline", help="name or text of a pipeline; default: the pipeline knob")
    parser.add_argument("--times", action="store_true", help="write a line per pass to standard error")
    options = parser.parse_args(arguments)
    try:
        result = transform(options.pipeline, parse_module(_read(options.file), options.file))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(print_module(result.module))
    if options.times:
        sys.stderr.write(result.table() + "\n")
    return 0


def _read(name: str) -> str:
    try:
        return sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot read it as text: {error}; give a file of graph IR") from None


if __name__ == "__main__":
    sys.exit(main())
