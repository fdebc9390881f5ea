"""What a schedule rule is: a function of a naive loop function and a target that proposes traces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strata.core.errors import LegalityError
from strata.core.registry import Registry
from strata.loop.nodes import AxisKind, Block, Const, For, Func, Load, Ramp, Store
from strata.loop.rewrite import free_vars, walk, walk_stmts
from strata.schedule.finalize import Finalizer
from strata.schedule.step import Step, Trace, find_block, find_loop, loops_around
from strata.schedule.steps import Fuse, Parallel, Split, Unroll, Vectorize
from strata.target import Target


@dataclass(frozen=True, slots=True)
class Proposal:
    """One schedule of a function.

    Attributes:
        name: Name of the candidate that it makes.
        func: The scheduled function, finalised.
        trace: The steps that make it.
        rows: Rows that one register tile of a matmul computes, for cost estimates; 0 = no such tile.
        dot: Multiplies by bf16 dot products.
    """

    name: str
    func: Func
    trace: Trace
    rows: int = 0
    dot: bool = False


Rule = Callable[[Func, Target], "Sequence[Proposal] | None"]
RULES: Registry[Rule] = Registry("schedule rule")


class Draft:
    """A function being scheduled, with the steps so far."""

    def __init__(self, func: Func) -> None:
        self.func = func
        self.steps: list[Step] = []
        self._finalizer = Finalizer()

    def copy(self) -> Draft:
        """Another draft with the steps so far."""
        other = Draft(self.func)
        other.steps, other._finalizer = list(self.steps), self._finalizer
        return other

    def finalized(self) -> Func:
        """The function as it is, finalised.

        Raises:
            LegalityError: it does not finalise.
        """
        return self._finalizer.finalize(self.func)

    def do(self, *steps: Step) -> None:
        """Apply steps."""
        for step in steps:
            self.func = step.apply(self.func)
            self.steps.append(step)

    def proposal(self, name: str, rows: int = 0, dot: bool = False) -> Proposal:
        """The finished schedule.

        Raises:
            LegalityError: it does not finalise.
        """
        return Proposal(name, self.finalized(), tuple(self.steps), rows, dot)

    def attempt(self, *steps: Step) -> bool:
        """Apply steps that must also finalise; undo them if they do not. Returns whether they stay."""
        before = self.func, len(self.steps)
        try:
            self.do(*steps)
            self.finalized()
        except LegalityError:
            self.func = before[0]
            del self.steps[before[1] :]
            return False
        return True

    def fuse_outer(self, names: Sequence[str], fused: str) -> str:
        """Fuse perfectly nested loops into one called ``fused``; returns the name of the resulting loop."""
        current = names[0]
        for k, name in enumerate(names[1:]):
            target = fused if k == len(names) - 2 else f"{fused}{k}"
            self.do(Fuse(current, name, target))
            current = target
        return current

    def extent(self, loop: str) -> int | None:
        """Constant extent of a loop, or ``None``."""
        extent = find_loop(self.func, loop).extent
        return int(extent.value) if isinstance(extent, Const) else None

    def vectorize(self, loop: str, lanes: int) -> bool:
        """Vectorise ``loop`` with up to ``lanes`` lanes where that is legal and adds no gathers."""
        extent = self.extent(loop)
        if extent is not None and extent <= 1:
            return False
        if extent is not None and extent < lanes:
            return extent in (2, 4, 8, 16, 32) and self.quietly(Vectorize(loop))
        if self.quietly(Split(loop, lanes), Vectorize(loop + "i")):
            return True
        if extent is None or extent % 2:
            return False
        half = extent // 2  # "rotate half" accesses are contiguous in each half of a row
        width = lanes if half % lanes == 0 else half
        if width > lanes:
            return False
        steps: list[Step] = [Split(loop, half), Unroll(loop + "o")]
        steps += (
            [Split(loop + "i", width), Vectorize(loop + "ii")] if half > width else [Vectorize(loop + "i")]
        )
        return self.quietly(*steps)

    def quietly(self, *steps: Step) -> bool:
        """:meth:`attempt` steps that must not add gathers."""
        before = self.func, len(self.steps), gathers(self.func)
        if self.attempt(*steps) and gathers(self.finalized()) <= before[2]:
            return True
        self.func = before[0]
        del self.steps[before[1] :]
        return False

    def parallel(self, loop: str) -> None:
        """Run a loop on all threads unless it has one iteration or may not be."""
        if self.extent(loop) == 1:
            return
        with contextlib.suppress(LegalityError):
            self.do(Parallel(loop))


def gathers(func: Func) -> int:
    """Vector accesses of a function that are not contiguous."""
    count = 0
    for node in walk(func):
        if isinstance(node, Load | Store) and node.indices:
            last = node.indices[-1]
            count += last.lanes > 1 and not isinstance(last, Ramp)
    return count


def stage_names(func: Func) -> list[str]:
    """Names of all blocks in order of execution."""
    return [s.name for s in walk_stmts(func) if isinstance(s, Block)]


def loops_over(func: Func, block: str, kind: AxisKind) -> list[str]:
    """Loops around a block that its axes of one kind use, outermost first."""
    axes = [a for a in find_block(func, block).axes if a.kind is kind]
    used = {v for a in axes for v in free_vars(a.value)}
    return [x.var.name for x in loops_around(func, block) if x.var in used]


def innermost_loop(func: Func, block: str) -> str | None:
    """The innermost loop around a block."""
    loops: list[For] = loops_around(func, block)
    return loops[-1].var.name if loops else None
