"""Every pass and pipeline there is, by name: importing this module registers all of Strata's own."""

from __future__ import annotations

from typing import Any

from strata.ir.passes import Pipeline, register_pass, register_pipeline
from strata.passes import named_pipeline
from strata.plan import fuse_loops, layouts  # noqa: F401  (they register their passes)

__all__ = ["pipeline", "register_pass", "register_pipeline"]


def pipeline(text: str | None = None) -> Pipeline[Any]:
    """The pipeline of a name (``"default"``, ``"zero"``, one of your own) or of text.

    Args:
        text: Name or text (``"canonicalize,fuse{max_ops=8}"``); default: the ``pipeline`` knob.

    Raises:
        ParseError: the text is bad; shows the place, and what exists.
    """
    return named_pipeline(text)
