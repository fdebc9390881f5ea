"""What the command line does with mistakes: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from strata.core.errors import DeviceError, UserError


@contextmanager
def reported() -> Iterator[None]:
    """Turn ``UserError`` and ``DeviceError`` into a message on stderr and exit code 2."""
    try:
        yield
    except (UserError, DeviceError) as error:
        sys.stderr.write(f"strata: {error}\n")
        raise typer.Exit(2) from None
