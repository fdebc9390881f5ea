"""The stacked graph: per node a stack of candidate implementations, and the plan that picks among them.

A :class:`Candidate` is a finalised loop function with where it comes from, the trace that made it and an
:class:`Estimate` of its cost; a :class:`Stack` is all candidates of one launch; a :class:`Choice` says which
of them runs for which sizes. The graph itself is never changed by planning.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

from strata.graph.nodes import Node
from strata.loop.nodes import Func
from strata.runtime.records import DimRange


class Origin(Enum):
    """Where a candidate comes from."""

    RULE = "rule"  # a schedule rule
    ROUNDED = "rounded"  # a schedule rule, for operands rounded to bf16
    MATRIX = "matrix"  # a group that was lowered for a matrix unit
    BLOCKED = "blocked"  # a schedule rule, for a product that is added up block by block
    UNPACKED = "unpacked"  # a schedule rule, for codes of 4 bits that become bytes once for all rows
    SIZE = "size"  # a schedule rule, for one size
    TUNED = "tuned"  # a trace of the tuning database
    KERNEL = "kernel"  # a kernel or function of the user
    LIBRARY = "library"  # a call of a vendor library


@dataclass(frozen=True, slots=True)
class Estimate:
    """Predicted or measured cost of one launch at given sizes.

    Attributes:
        time_s: Seconds.
        flop: Arithmetic operations.
        read_bytes, write_bytes: Memory traffic with every operand touched once.
        source: Where ``time_s`` comes from.
    """

    time_s: float
    flop: float
    read_bytes: float
    write_bytes: float
    source: Literal["roofline", "measured", "model"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """One implementation of a node.

    Attributes:
        name: ``"cpu.matmul.tile6x64"``; unique within its stack.
        func: Finalised loop function (stage LOOP_LOWERED), ready for code generation.
        trace: Text of the schedule steps that led from the lowered function to ``func``.
        origin: Where it comes from.
        when: Sizes for which it is legal (empty = all).
        estimates: Cost at sample sizes: ``((size, Estimate), ...)``, size = value of the stack's main dim.
    """

    name: str
    func: Func
    trace: str
    origin: Origin = Origin.RULE
    when: tuple[DimRange, ...] = ()
    estimates: tuple[tuple[int, Estimate], ...] = ()


@dataclass(frozen=True, slots=True)
class Stack:
    """All candidates of one node (never empty)."""

    node: Node
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """Candidate ``candidate`` (index in its stack) for sizes ``when`` (empty = the rest)."""

    candidate: int
    when: tuple[DimRange, ...] = ()
