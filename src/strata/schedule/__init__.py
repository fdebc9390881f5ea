"""Loop to loop: schedule steps with legality, rules that propose traces, finalisation."""

from .builder import Schedule
from .finalize import finalize
from .rules import Proposal, propose
from .step import STEPS, Step, Trace, apply_trace, parse_trace, trace_text

__all__ = [
    "STEPS",
    "Proposal",
    "Schedule",
    "Step",
    "Trace",
    "apply_trace",
    "finalize",
    "parse_trace",
    "propose",
    "trace_text",
]
