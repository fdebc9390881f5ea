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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from strata.codegen.build import build_image
from strata.core.dims import evaluate
from strata.core.knobs import cache_folder
from strata.loop.nodes import Buffer, Func
from strata.loop.text import print_func
from strata.runtime.image import load_image
from strata.runtime.records import DimRange
from strata.runtime.tensors import aligned_empty, as_tensor

from .candidates import Offer, Task
from .cost import task_env, traffic_of
from .options import PlanOptions
from .types import Estimate

MIN_SAMPLES = 5
MAX_SAMPLES = 200
SAMPLE_BUDGET_S = 0.03  # per candidate and size, after one warm-up call
MAX_COPIES = 8  # of a weight
MAX_GAP = 1.1  # sizes around a switch point are at most this far apart, relatively
COARSE_STEP = 2.0  # between sizes measured first
SEED = 1

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
            operands = Operands(self.task, self.funcs[0], size)
            for k in missing:
                self._memories[k].times_s[key] = median_time_s(operands.calls(self._function(k)))
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


class Operands:
    """Arrays for the parameters of a task's kernels at one size.

    Args:
        task: The group.
        func: Any of its candidates.
        size: Value of the task's rows.
    """

    def __init__(self, task: Task, func: Func, size: int) -> None:
        self.env = {**task_env(task, size)}
        self.func = func
        rng = np.random.default_rng(SEED)
        weights = _weights(task, func)
        large = 2 * max(task.target.l3_bytes, task.target.l2_bytes)
        total = sum(_bytes(b, self.env) for b in weights) or 1
        copies = min(MAX_COPIES, max(1, math.ceil(large / total)))
        self.arrays = [
            [_array(b, self.env, rng) for _ in range(copies if b in weights else 1)] for b in func.params
        ]

    def calls(self, function: Callable[..., Any]) -> Callable[[], None]:
        """What runs ``function`` once, on the next copy of the weights."""
        tensors = [[as_tensor(a) for a in copies] for copies in self.arrays]
        dims = [self.env[d.name] for d in self.func.dims]
        rounds = max(map(len, tensors))
        prepared = [(*(copies[k % len(copies)] for copies in tensors), *dims) for k in range(rounds)]
        turn = 0

        def call() -> None:
            nonlocal turn
            function(*prepared[turn])
            turn = (turn + 1) % rounds

        return call


def _weights(task: Task, func: Func) -> set[Buffer]:
    """Parameters that are bound to params of the model."""
    inputs = func.params[: len(func.params) - func.num_outputs]
    return {
        buffer
        for buffer, binding in zip(inputs, task.lowered.bindings, strict=False)
        if binding.operand >= 0 and task.node.inputs[binding.operand].op == "param"
    }


def _bytes(buffer: Buffer, env: Mapping[str, int]) -> int:
    return math.prod(evaluate(d, env) for d in buffer.shape) * buffer.dtype.itemsize_bytes


def _array(buffer: Buffer, env: Mapping[str, int], rng: np.random.Generator) -> np.ndarray:
    """Random floats around 0; zeros for integers, which may be indices."""
    shape = tuple(evaluate(d, env) for d in buffer.shape)
    array = aligned_empty(shape, buffer.dtype.numpy_name)
    if buffer.dtype.is_float:
        some = rng.standard_normal(min(array.size, 1 << 16)).astype(array.dtype)
        array.reshape(-1)[:] = np.resize(some, array.size)
    else:
        array[...] = 0
    return array


def median_time_s(call: Callable[[], None]) -> float:
    """Median seconds of a call, after one to warm up."""
    call()
    samples: list[float] = []
    spent = 0.0
    while len(samples) < MIN_SAMPLES or (spent < SAMPLE_BUDGET_S and len(samples) < MAX_SAMPLES):
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
        spent += samples[-1]
    return statistics.median(samples)


__all__ = ["Operands", "TaskBench", "measure_task", "median_time_s"]
