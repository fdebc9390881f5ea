"""Stacks, choices and kernels: the candidates of each group of nodes, with their costs, traces and texts.

::

    stack     ::= {"op", "body": graph IR, "naive": loop IR, "work": [[size, flop, bytes]],
                   "candidates": [candidate]}
    candidate ::= {"name", "origin", "kernel", "trace", "when": text, "source", "points": [[size, seconds]]}
    dispatch  ::= {"stack": index, "op", "dim", "ranges": [[lo, hi, candidate index]], "scale": scale | null}
    scale     ::= {"dim", "lo", "hi", "at"}      the choice depends on no size, the cost on this one:
                                                 estimates are for size "at", and proportional to it
    kernel    ::= {"loop": loop IR, "llvm"?, "asm"?}                     the last two of chosen ones
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from strata.codegen.compile import assembly, emit_module
from strata.compiler.driver import Planned
from strata.graph.text import print_function
from strata.loop.nodes import Func
from strata.loop.text import print_func
from strata.passes.loops import LoopStage, run_loop_passes
from strata.planner.assemble import PlannedLaunch
from strata.planner.cost import SAMPLE_SIZE
from strata.planner.dispatch import dispatch_table
from strata.planner.fuse_loops import lowered_node, operand_layouts
from strata.planner.stacks import group_body
from strata.planner.types import Candidate, Stack

KERNEL_BYTES = 96 << 10  # of one kernel's LLVM text or assembly; what is longer is cut
LLVM_BYTES = 1 << 20  # of all kernels' LLVM text together
ASSEMBLY_BYTES = 1 << 20  # of all kernels' assembly together


class StackTable:
    """Numbers the stacks of a plan and what is chosen from them; every text is kept once.

    Attributes:
        stacks, dispatch: The entries so far; see the module's grammar.
    """

    def __init__(self, planned: Planned) -> None:
        self.stacks: list[dict[str, Any]] = []
        self.dispatch: list[dict[str, Any]] = []
        self._planned = planned
        self._numbers: dict[int, int] = {}
        self._funcs: dict[str, Func] = {}

    def add(self, launches: Sequence[PlannedLaunch]) -> dict[str, int]:
        """Add what these launches choose from; returns the index of each launch's entry by node name."""
        by_name = {x.node: x for x in launches}
        found: dict[str, int] = {}
        for entry in dispatch_table(launches):
            stack = by_name[entry.nodes[0]].stack
            names = [c.name for c in stack.candidates]
            found.update(dict.fromkeys(entry.nodes, len(self.dispatch)))
            self.dispatch.append(
                {
                    "stack": self._number(stack, entry.op),
                    "op": entry.op,
                    "dim": entry.dim,
                    "ranges": [[r.lo, r.hi, names.index(r.candidate)] for r in entry.ranges],
                    "scale": _scale(by_name[entry.nodes[0]]),
                }
            )
        return found

    def _number(self, stack: Stack, op: str) -> int:
        if id(stack) not in self._numbers:
            self._numbers[id(stack)] = len(self.stacks)
            self.stacks.append(self._stack(stack, op))
        return self._numbers[id(stack)]

    def _stack(self, stack: Stack, op: str) -> dict[str, Any]:
        layouts = operand_layouts(stack.node, self._planned.layouts)
        lowered = lowered_node(stack.node, op, layouts, self._planned.source.module.loops)
        (naive,) = run_loop_passes(LoopStage.NAIVE, [lowered.func])
        estimates = stack.candidates[0].estimates
        self._funcs.update({c.func.name: c.func for c in stack.candidates})
        return {
            "op": op,
            "body": print_function(group_body(stack.node)),
            "naive": print_func(naive),
            "work": [[s, round(e.flop), round(e.read_bytes + e.write_bytes)] for s, e in estimates],
            "candidates": [_candidate(c) for c in stack.candidates],
        }

    def kernel_texts(self) -> dict[str, dict[str, Any]]:
        """Texts of all candidates' loop functions; code of those that are chosen, within the limits."""
        stored = {name: {"loop": print_func(func)} for name, func in self._funcs.items()}
        llvm, asm = Budget(LLVM_BYTES), Budget(ASSEMBLY_BYTES)
        target = self._planned.source.source.target
        for name, func in self._planned.funcs.items():
            if name in stored:
                module = emit_module(func, target)
                stored[name]["llvm"] = llvm.keep(module)
                stored[name]["asm"] = asm.keep(assembly(module, target))
        return stored


class Budget:
    """Cuts texts so that all of them together stay below a limit.

    Attributes:
        left_bytes: What may still be kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.left_bytes = limit_bytes

    def keep(self, text: str) -> str:
        """The text, or its first lines and how many lines were left out."""
        allowed = min(KERNEL_BYTES, self.left_bytes)
        if len(text) > allowed:
            kept = text[:allowed].rpartition("\n")[0]
            text = f"{kept}\n... {text.count(chr(10)) - kept.count(chr(10))} more lines: see strata inspect\n"
        self.left_bytes = max(self.left_bytes - len(text), 0)
        return text


def _scale(launch: PlannedLaunch) -> dict[str, Any] | None:
    dims = group_body(launch.group).dims
    if not isinstance(launch.rows, int) or len(dims) != 1:
        return None
    (dim,) = dims
    return {"dim": dim.name, "lo": dim.lo, "hi": dim.hi, "at": min(dim.hi, SAMPLE_SIZE)}


def _candidate(candidate: Candidate) -> dict[str, Any]:
    """Estimates at sizes for which the candidate is not correct are left out."""
    legal = [(s, e) for s, e in candidate.estimates if all(r.lo <= s <= r.hi for r in candidate.when)]
    return {
        "name": candidate.name,
        "origin": candidate.origin.value,
        "kernel": candidate.func.name,
        "trace": candidate.trace,
        "when": " and ".join(f"{r.lo} <= {r.dim} <= {r.hi}" for r in candidate.when),
        "source": " and ".join(sorted({e.source for _, e in legal})),
        "points": [[size, float(f"{e.time_s:.4g}")] for size, e in legal],
    }
