"""Every pass and pipeline there is, by name: importing this module registers all of Strata's own.

What ``strata opt`` does is :func:`optimize_text`: IR text through passes to IR text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from strata.graph.nodes import Module
from strata.graph.text import parse_function, parse_module, print_function, print_module
from strata.ir.instruments import Instrument, PassRecord, timing_table
from strata.ir.passes import PASSES, PIPELINES, Pipeline, parse_pipeline, register_pass, register_pipeline
from strata.passes import named_pipeline, transform
from strata.passes.loops import parse_loops, print_loops, transform_loops
from strata.planner import fuse_loops, layouts  # noqa: F401  (they register their passes)

__all__ = ["has_own_code", "optimize_text", "pipeline", "register_pass", "register_pipeline"]

_OURS = frozenset(PIPELINES)


def pipeline(text: str | None = None) -> Pipeline[Any]:
    """The pipeline of a name (``"default"``, ``"zero"``, one of your own) or of text.

    Args:
        text: Name or text (``"canonicalize,fuse{max_ops=8}"``); default: the ``pipeline`` knob.

    Raises:
        ParseError: the text is bad; shows the place, and what exists.
    """
    return named_pipeline(text) if text is None else parse_pipeline(text)


@dataclass(frozen=True, slots=True)
class Optimized:
    """IR text after passes, and what each pass did."""

    text: str
    records: tuple[PassRecord, ...]

    def table(self) -> str:
        """The records as text, one line per pass."""
        return timing_table(self.records)


def optimize_text(
    text: str,
    pipeline: str | None = None,
    source: str = "<text>",
    *,
    instruments: Iterable[Instrument] = (),
) -> Optimized:
    """Run passes on graph IR (a module or one function) or loop IR (functions).

    Args:
        text: The IR.
        pipeline: Name or text; default: the knob ``pipeline``, for loop IR ``loop_pipeline``.
        source: Name of the text, for messages.
        instruments: What watches beside the knobs.

    Raises:
        ParseError: the IR or the pipeline does not parse.
        VerifyError: a pass failed or broke the IR.
        UserError: a pass works on the other IR.
    """
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith(("//", "#"))).lstrip()
    if _is_loop_ir(code):
        loops = transform_loops(pipeline, parse_loops(text, source), instruments=instruments)
        return Optimized(print_loops(loops.module), loops.records)
    if code.startswith(("func", "dims")):
        graph = transform(pipeline, Module((parse_function(text, source),)), instruments=instruments)
        return Optimized("\n".join(print_function(f) for f in graph.module.functions), graph.records)
    graph = transform(pipeline, parse_module(text, source), instruments=instruments)
    return Optimized(print_module(graph.module), graph.records)


def _is_loop_ir(code: str) -> bool:
    """Whether a text without comments is loop IR: its functions take no %values and have no braces."""
    head = re.match(r"(?:dims[^\n]*\s+)?func\s+@[^(]*\(([^\n]*)", code)
    plain = head is not None and not head[1].lstrip().startswith("%") and not head[1].rstrip().endswith("{")
    return code.startswith("stage ") or plain


def has_own_code(text: str) -> bool:
    """Whether a pipeline runs code of the user's, which no text and so no cache key says all about.

    Raises:
        ParseError: the text is bad.
    """
    parsed = parse_pipeline(text)
    if _names_of_yours(parsed):
        return True
    return any(not PASSES[step.name].__module__.startswith("strata.") for step in parsed.passes())


def _names_of_yours(parsed: Pipeline[Any]) -> bool:
    yours = parsed.label in PIPELINES and parsed.label not in _OURS
    return yours or any(isinstance(s, Pipeline) and _names_of_yours(s) for s in parsed.steps)
