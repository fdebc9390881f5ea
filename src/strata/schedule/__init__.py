"""Loop to loop: schedule steps with legality, rules that propose traces, finalisation."""

from .finalize import finalize
from .rules import Proposal, propose
from .step import STEPS, Step, Trace, apply_trace, parse_trace, trace_text

__all__ = [
    "STEPS",
    "Proposal",
    "Step",
    "Trace",
    "apply_trace",
    "finalize",
    "parse_trace",
    "propose",
    "trace_text",
]
