"""The search space of a task: random schedules, changed schedules, and what a schedule comes to."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from strata.core.errors import LegalityError, VerifyError
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.nodes import Func
from strata.schedule import Trace, apply_trace, finalize
from strata.target import Target

from .features import NAMES, features
from .mutate import mutate
from .sketches import applicable, random_schedule
from .tasks import kernel_text

MAX_CODE = 11.0  # log2 of the statements once loops are unrolled: LLVM takes long for more
_CODE = NAMES.index("code")


@dataclass(frozen=True, slots=True)
class Point:
    """A legal schedule.

    Attributes:
        trace: The steps.
        text: Finalised loop IR, as workers build it; equal texts are equal kernels.
        row: Its features.
    """

    trace: Trace
    text: str
    row: tuple[float, ...]


class Space:
    """Schedules of one naive function.

    Args:
        func: The naive function.
        sizes: Value of every symbolic dim, for the features.
        target: The machine.
    """

    def __init__(self, func: Func, sizes: Mapping[str, int], target: Target) -> None:
        self.func = func
        self.sizes = dict(sizes)
        self.target = target

    @property
    def is_trivial(self) -> bool:
        """Whether lowering left nothing to schedule."""
        return all(s.__name__ == "_nothing" for s in applicable(self.func))

    def point(self, trace: Trace) -> Point | None:
        """What a trace comes to; ``None`` if it is not legal or would be too much code."""
        try:
            return self._finished(apply_trace(self.func, trace), trace)
        except (LegalityError, VerifyError):
            return None

    def random(self, rng: random.Random) -> Point | None:
        """A random schedule; ``None`` if this draw was not legal."""
        try:
            func, trace = random_schedule(self.func, self.target, rng)
            return self._finished(func, trace)
        except (LegalityError, VerifyError):
            return None

    def _finished(self, scheduled: Func, trace: Trace) -> Point | None:
        func = finalize(scheduled)
        check(func, LOOP_LOWERED)
        row = features(func, self.sizes, self.target)
        return Point(trace, kernel_text(func), tuple(row)) if row[_CODE] <= MAX_CODE else None

    def changed(self, trace: Trace, rng: random.Random) -> Point | None:
        """A changed schedule; ``None`` if the change was not legal."""
        return self.point(mutate(self.func, trace, rng))
