"""A small model to tune, and a runner without processes whose times are exact."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.loop.text_parser import parse_func
from strata.passes import run_passes
from strata.planner.loop_cost import issue_time_s
from strata.planner.tuning.problem import Outcome, Trial
from strata.target.machine import parse_target
from strata.target.machines import TARGETS

TARGET = TARGETS["zen4"]
ROWS = SymDim("n", 1, 64)


def mlp(hidden: int = 96) -> Module:
    """``silu(x w1) w2``: two tasks of different weight, and the smaller one again."""
    x = builder.input("x", TensorType((ROWS, 64), f32))
    w1 = builder.param("w1", TensorType((hidden, 64), f32))
    w2 = builder.param("w2", TensorType((32, hidden), f32))
    h = builder.silu(builder.matmul(x, w1, transpose_b=True))
    y = builder.matmul(h, w2, transpose_b=True)
    return run_passes("default", Module((Function("main", (x,), (y,)),)))


class StaticRunner:
    """A runner whose times are those of the static cost model: exact, at once, always the same.

    Args:
        hook: Called with the number of every trial; may raise, or return an error for it.
    """

    def __init__(self, hook: Callable[[int, Trial], str] | None = None) -> None:
        self.trials: list[Trial] = []
        self._hook = hook
        self.is_closed = False

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        for number, trial in enumerate(trials):
            self.trials.append(trial)
            error = self._hook(len(self.trials), trial) if self._hook is not None else ""
            if error:
                yield number, Outcome(None, error=error)
                continue
            sizes, target = dict(trial.problem.sizes), parse_target(trial.problem.target)
            yield number, Outcome(issue_time_s(parse_func(trial.text), sizes, target), 5, 1e-9)

    def close(self) -> None:
        self.is_closed = True
