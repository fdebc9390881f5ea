"""Measured cost: candidates of a task run on this machine, on operands of their own.

Weights are given in several copies that together exceed the caches, and calls take one after the other: in a
model, the rest of the network lies between two uses of a weight. Times are remembered by task, kernel text
and machine, so a candidate is measured once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from strata.codegen.build import build_image
from strata.core.knobs import cache_folder
from strata.loop.nodes import Func
from strata.loop.text import print_func
from strata.runtime.image import load_image
from strata.runtime.records import DimRange
from strata.runtime.tensors import as_tensor

from .candidates import Offer, Task
from .cost import task_env, traffic_of
from .options import PlanOptions
from .tuning.operands import inputs, results
from .tuning.worker import sample
from .types import Estimate

MAX_GAP = 1.1  # sizes around a switch point are at most this far apart, relatively
COARSE_STEP = 2.0  # between sizes measured first

Estimates = tuple[tuple[int, Estimate], ...]


def measure_task(
    task: Task, offers: Sequence[Offer], funcs: Sequence[Func], sizes: Sequence[int], options: PlanOptions
) -> list[Estimates]:
    """Time every candidate of a task at common sizes, closely spaced where the fastest one changes.

    Args:
        task: The group.
        offers: Its candidates.
        funcs: Their loop functions, workspace as parameters.
        sizes: Values of the task's rows that may be measured, ascending.
        options: Planning options.

    Returns:
        Per candidate: ``((size, Estimate), ...)``, the same sizes for all.
    """
    bench = TaskBench(task, funcs, [o.when for o in offers])
    borders = {x for o in offers for r in o.when for x in (r.lo - 1, r.lo, r.hi, r.hi + 1)}
    chosen = sorted(set(_spread(sizes)) | (borders & set(sizes)))
    times = {size: bench.times_s(size) for size in chosen}
    while (size := _undecided(times)) is not None:
        times[size] = bench.times_s(size)
    bench.close()
    found = [
        tuple((size, _estimate(task, size, times[size][k])) for size in sorted(times))
        for k in range(len(funcs))
    ]
    return found


def _spread(sizes: Sequence[int]) -> list[int]:
    """The first and the last size, and some between them that grow by at least ``COARSE_STEP``."""
    kept = [sizes[0]]
    for size in sizes[1:]:
        if size >= kept[-1] * COARSE_STEP:
            kept.append(size)
    return kept if kept[-1] == sizes[-1] else [*kept, sizes[-1]]


def _undecided(times: Mapping[int, Sequence[float]]) -> int | None:
    """A size between two neighbours with different winners that are still far apart."""
    ordered = sorted(times)
    for a, b in itertools.pairwise(ordered):
        fastest_a, fastest_b = (min(range(len(times[s])), key=times[s].__getitem__) for s in (a, b))
        if fastest_a != fastest_b and b - a > 1 and b > a * MAX_GAP:
            return (a + b) // 2
    return None


def _estimate(task: Task, size: int, time_s: float) -> Estimate:
    return replace(traffic_of(task, task_env(task, size)), time_s=time_s, source="measured")


@dataclass(slots=True)
class _Memory:
    """Remembered times of one kernel: a small file of its own."""

    path: Path
    times_s: dict[str, float]

    @classmethod
    def of(cls, task: Task, func: Func) -> _Memory:
        anonymous = Func("kernel", func.params, func.body, func.num_outputs)
        digest = hashlib.sha256(f"{task.key}\n{task.target}\n{print_func(anonymous)}".encode()).hexdigest()
        path = cache_folder() / "measured" / f"{digest[:32]}.json"
        try:
            times = json.loads(path.read_text())
        except (OSError, ValueError):
            times = {}
        return cls(path, times if isinstance(times, dict) else {})

    def save(self) -> None:
        """Write the file; a cache that cannot be written is left alone."""
        part = self.path.with_name(f"{self.path.name}.part-{os.getpid()}")
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(self.times_s))
            part.replace(self.path)


class TaskBench:
    """Runs candidates of one task; machine code and operands are made when they are first needed.

    Args:
        task: The group.
        funcs: Finalised loop functions with distinct names and the same parameters.
        when: Per function: sizes for which it is correct; it is not run for others. ``None`` = all.
        num_threads: Threads to run on; ``None`` = all cores.
    """

    def __init__(
        self,
        task: Task,
        funcs: Sequence[Func],
        when: Sequence[tuple[DimRange, ...]] | None = None,
        num_threads: int | None = None,
    ) -> None:
        self.task = task
        self.funcs = tuple(funcs)
        self._when = tuple(when or ((),) * len(funcs))
        self._threads = num_threads
        self._memories = [_Memory.of(task, f) for f in funcs]
        self._image: Any = None

    def times_s(self, size: int) -> list[float]:
        """Median seconds of every candidate at ``size`` rows; infinite for one that is not correct there."""
        key, env = str(size), task_env(self.task, size)
        legal = [all(r.lo <= env[r.dim] <= r.hi for r in when) for when in self._when]
        missing = [k for k, m in enumerate(self._memories) if legal[k] and key not in m.times_s]
        if missing:
            operands = _Operands(self.task, self.funcs[0], size)
            for k in missing:
                call = operands.calls(self._function(k), self.funcs[k])
                self._memories[k].times_s[key] = statistics.median(sample(call))
        return [m.times_s[key] if ok else math.inf for m, ok in zip(self._memories, legal, strict=True)]

    def _function(self, k: int) -> Callable[..., Any]:
        if self._image is None:
            self._image = load_image(build_image(self.funcs, [], self.task.target), self._threads)
        return self._image.function(self.funcs[k].name)

    def close(self) -> None:
        """Remember what was measured, and let go of the machine code."""
        for memory in self._memories:
            memory.save()
        self._image = None


class _Operands:
    """Arrays for the kernels of a task at one size."""

    def __init__(self, task: Task, func: Func, size: int) -> None:
        self.env = task_env(task, size)
        arrays = inputs(task.lowered.func, self.env, task.cache_fields, task.weights, task.target)
        self.inputs = [[as_tensor(a) for a in copies] for copies in arrays]
        written = results(func, self.env, len(func.params) - len(arrays))
        self.written = tuple(as_tensor(a) for a in written)
        self.keep = arrays, written

    def calls(self, function: Callable[..., Any], func: Func) -> Callable[[], None]:
        """What runs ``function`` once, on the next copy of the weights."""
        dims = tuple(self.env[d.name] for d in func.dims)
        rounds = max(map(len, self.inputs), default=1)
        fixed = (*self.written, *dims)
        turns = [(*(copies[k % len(copies)] for copies in self.inputs), *fixed) for k in range(rounds)]
        order = itertools.cycle(turns)
        return lambda: function(*next(order))
