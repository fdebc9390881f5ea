"""What the command line does with failures: one clear line on stderr, an exit code, no traceback.

======  ============================================================
code    meaning
======  ============================================================
2       bad input: a ``UserError``, ``DeviceError``, a file or memory that cannot be had; usage (typer)
130     interrupted (Ctrl-C)
141     nobody reads standard output any more (``strata ... | head``)
======  ============================================================

Anything else is a bug of Strata and shows its traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from strata.core.errors import DeviceError, UserError

BAD_INPUT = 2
INTERRUPTED = 130
BROKEN_PIPE = 141


@contextmanager
def reported() -> Iterator[None]:
    """Context or decorator: turn expected failures into a message and ``typer.Exit``."""
    try:
        yield
        sys.stdout.flush()  # here, where a failure still is a message
    except (UserError, DeviceError) as error:
        raise _failed(str(error)) from None
    except MemoryError as error:
        raise _failed(
            f"out of memory: {error}; choose a smaller model, --max-context or --max-batch"
        ) from None
    except BrokenPipeError:
        _drop_stdout()
        raise typer.Exit(BROKEN_PIPE) from None
    except OSError as error:
        _drop_stdout()
        where = f"{error.filename}: " if error.filename else ""
        raise _failed(f"{where}{error.strerror or error}") from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _failed(message: str) -> typer.Exit:
    sys.stderr.write(f"strata: {message}\n")
    return typer.Exit(BAD_INPUT)


def _drop_stdout() -> None:
    """Let the flush at exit go nowhere: what is still buffered cannot be written."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):
        return  # standard output is no file (a test's buffer), so nothing will fail at exit
