"""Every exception that Strata raises on purpose, and source locations.

``UserError`` and its kinds are mistakes in what a person handed in: the command line prints them without a
traceback and exits with 2. ``LegalityError`` is the only error that a search over schedules catches.
``VerifyError`` and ``CodegenError`` are our own bugs.

Messages say *where: what; got vs expected; what to do*.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Span:
    """A place in a text: 1-based ``line`` and ``column`` of ``source`` (a file name or ``"<text>"``)."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


class StrataError(Exception):
    """Base of all errors that Strata raises on purpose."""


class UserError(StrataError):
    """Bad input: a model file, a flag, a request. Shown without a traceback; exit code 2."""


class ParseError(UserError):
    """A text (IR, pipeline, schedule, dim) does not parse; shows the line with a caret.

    Args:
        message: What was wrong, got vs expected.
        span: Where; ``None`` when the text is a single word.
        line_text: The offending source line, for the caret display.
    """

    def __init__(self, message: str, span: Span | None = None, line_text: str = "") -> None:
        self.span = span
        if span is not None:
            message = f"{span}: {message}"
            if line_text:
                message += f"\n  {line_text}\n  {' ' * (span.column - 1)}^"
        super().__init__(message)


class ShapeError(UserError):
    """Shapes or dtypes of an operation's inputs do not fit together."""


class UnsupportedError(UserError):
    """Something valid that Strata cannot do (yet): names what, where, and what to use instead."""


class ExternError(UserError):
    """A function that Strata did not generate failed while a program called it; names the function."""


class LegalityError(StrataError):
    """A schedule step does not apply to this function. The only error that a search catches."""


class VerifyError(StrataError):
    """An IR invariant is broken: a bug in Strata or in a user's pass. Names pass, op and IR slice."""


class CodegenError(StrataError):
    """LLVM rejected the text that we generated; the message carries the numbered text."""


class DeviceError(StrataError):
    """A driver, memory or launch failure, with call, code, name and sizes."""
