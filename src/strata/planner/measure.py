"""Measured cost: candidates of a task run on this machine, on operands of their own.

Weights are given in several copies that together exceed the caches, and calls take one after the other: in a
model, the rest of the network lies between two uses of a weight. (Where that takes too much memory, one copy
leaves the caches before each call.) Times are remembered by task, kernel text
and machine, so a candidate is measured once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
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
from strata.loop.matrix import has_matrix_loop
from strata.loop.nodes import Func
from strata.loop.text import canonical_text, func_symbols
from strata.runtime.image import load_image
from strata.runtime.records import DimRange
from strata.runtime.tensors import as_tensor
from strata.target import detect_host

from .candidates import Offer, Task
from .cost import bounds_bytes, is_flat_matmul, task_env, traffic_of
from .tuning.operands import CACHES, EVICT, inputs, results
from .tuning.worker import sample
from .types import Estimate

MAX_GAP = 1.1  # sizes around a switch point are at most this far apart, relatively
COARSE_STEP = 2.0  # between sizes measured first
LARGE_BYTES = 1 << 20  # weights whose products are worth measuring unasked
# Rows at which these are timed. The last one is a whole number of every tile, and long enough for small
# differences: from there on time grows with the rows, and what is fastest stays so.
QUICK_ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 96)
# A matrix unit is so fast that what happens once for all rows (unpacking a weight) counts for longer.
LONG_ROWS = 384
QUICK_CACHES = 1.25  # times the last-level cache that the copies of the weights take: little memory
QUICK_BYTES = 96 << 20  # of those copies at most; where a server's cache is larger, one copy is evicted
# Each candidate is called once to warm up, then so many times: another process may have disturbed some calls.
QUICK_CALLS = 3  # at least,
MOST_CALLS = 16  # at most, while all candidates together have taken less than CLOSE_S.
CLOSE_S = 0.02
LONG_S = 0.01  # Less of a disturbance: the fastest candidate is not called again after as much time.
SLOW = 2  # One that takes so many times as long is out after QUICK_CALLS, after two if it takes LONG_S / 2.
SLOW_ONCE = 6  # After a single call, which something may have disturbed, only one that takes so many times.

Estimates = tuple[tuple[int, Estimate], ...]


def measure_task(
    task: Task, offers: Sequence[Offer], funcs: Sequence[Func], sizes: Sequence[int], *, quick: bool = False
) -> list[Estimates]:
    """Time every candidate of a task at common sizes, closely spaced where the fastest one changes.

    Args:
        task: The group.
        offers: Its candidates.
        funcs: Their loop functions, workspace as parameters.
        sizes: Values of the task's rows that may be measured, ascending.
        quick: Measure less, and at ``QUICK_ROWS`` only.

    Returns:
        Per candidate: ``((size, Estimate), ...)``, the same sizes for all.
    """
    borders = {x for o in offers for r in o.when for x in (r.lo - 1, r.lo, r.hi, r.hi + 1)}
    lo, hi = sizes[0], sizes[-1]
    chosen = {s for s in QUICK_ROWS if lo <= s <= hi} | {lo} if quick else set(_spread(sizes))
    some = sorted(chosen | (borders & set(sizes)), reverse=True)
    is_long = quick and some[0] < LONG_ROWS <= hi and any(map(has_matrix_loop, funcs))
    most = LONG_ROWS if is_long else some[0]
    bench = TaskBench(task, funcs, [o.when for o in offers], is_quick=quick, most_rows=most)
    times = {size: bench.times_s(size) for size in some}
    if is_long:
        times[LONG_ROWS] = bench.times_s(LONG_ROWS, _too_slow(times[some[0]], LONG_ROWS / some[0]))
    while not quick and (size := _undecided(times)) is not None:
        times[size] = bench.times_s(size)
    bench.close()
    found = [
        tuple((size, _estimate(task, size, times[size][k])) for size in sorted(times))
        for k in range(len(funcs))
    ]
    return found


def is_worthwhile(task: Task, offers: Sequence[Offer]) -> bool:
    """Whether candidates are timed unasked: a product with a large weight, on the machine that it is for."""
    if len(offers) < 2 or not is_flat_matmul(task.anchor):
        return False
    weight = sum(bounds_bytes(x.tensor) for x in task.anchor.inputs[1:])
    return weight >= LARGE_BYTES and task.target == detect_host()


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


def _too_slow(times_s: Sequence[float], growth: float) -> dict[int, float]:
    """Candidates not to be run at ``growth`` times as many rows, and how long they would take there."""
    slow = SLOW * min(times_s)
    return {k: time_s * growth for k, time_s in enumerate(times_s) if time_s > slow}


def _estimate(task: Task, size: int, time_s: float) -> Estimate:
    return replace(traffic_of(task, task_env(task, size)), time_s=time_s, source="measured")


@dataclass(slots=True)
class _Memory:
    """Remembered times of one kernel: a small file of its own."""

    path: Path
    times_s: dict[str, float]

    @classmethod
    def of(cls, task: Task, func: Func) -> _Memory:
        weights = [p.name in task.weights for p in task.lowered.func.params]
        parts = (_neutral(task.lowered.func), weights, task.target, _neutral(func))
        digest = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()
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


def _neutral(func: Func) -> str:
    """Text without names, and without ranges of symbolic dims: functions that take the same time have one."""
    lines = canonical_text(func).splitlines()
    text = "\n".join(line for line in lines if not line.startswith("dims "))
    for position, dim in enumerate(func_symbols(func)):
        text = re.sub(rf"\b{re.escape(dim.name)}\b", f"dim.{position}", text)
    return text


class TaskBench:
    """Runs candidates of one task; machine code and operands are made when they are first needed.

    Args:
        task: The group.
        funcs: Finalised loop functions with distinct names and the same parameters.
        when: Per function: sizes for which it is correct; it is not run for others. ``None`` = all.
        num_threads: Threads to run on; ``None`` = all cores.
        is_quick: Time few calls only.
        most_rows: Rows of the operands that are made then, which also serve fewer.
    """

    def __init__(
        self,
        task: Task,
        funcs: Sequence[Func],
        when: Sequence[tuple[DimRange, ...]] | None = None,
        num_threads: int | None = None,
        is_quick: bool = False,
        most_rows: int = 0,
    ) -> None:
        self.task = task
        self._is_quick, self._most_rows = is_quick, most_rows
        target = task.target
        self._most = min(QUICK_CACHES, QUICK_BYTES / target.l3_bytes)
        self._evicts = is_quick and self._most < QUICK_CACHES and target.arch == "x86_64"
        self._stock: list[list[np.ndarray]] | None = None
        self.funcs = tuple(funcs)
        self._when = tuple(when or ((),) * len(funcs))
        self._threads = num_threads
        self._memories = [_Memory.of(task, f) for f in funcs]
        self._image: Any = None

    def times_s(self, size: int, known: Mapping[int, float] | None = None) -> list[float]:
        """Seconds of every candidate at ``size`` rows; infinite for one that is not correct there.

        Medians, or comparable least times (:func:`_compared`) where few calls are timed.

        Args:
            size: Rows.
            known: Seconds of candidates that are not to be run.
        """
        known = known or {}
        key, env = f"{size} by turns" if self._is_quick else str(size), task_env(self.task, size)
        legal = [all(r.lo <= env[r.dim] <= r.hi for r in when) for when in self._when]
        missing = [
            k for k, m in enumerate(self._memories) if legal[k] and k not in known and key not in m.times_s
        ]
        if missing:
            caches = (0.0 if self._evicts else self._most) if self._is_quick else CACHES
            if self._is_quick and self._stock is None and not self.task.cache_fields:
                most = max(size, self._most_rows)
                self._stock = _Operands(self.task, self.funcs[0], most, None, caches).arrays
            operands = _Operands(self.task, self.funcs[0], size, self._stock, caches)
            calls = {k: operands.calls(self._function(k), self.funcs[k]) for k in missing}
            before = self._evict(operands) if self._evicts else lambda: None
            measured = _in_turn(calls, before) if self._is_quick else _one_by_one(calls)
            for k, time_s in measured.items():
                self._memories[k].times_s[key] = time_s
        memories = enumerate(zip(self._memories, legal, strict=True))
        return [known[k] if k in known else m.times_s[key] if ok else math.inf for k, (m, ok) in memories]

    def _evict(self, operands: _Operands) -> Callable[[], None]:
        """What takes the weights out of all caches."""
        function = self._compiled(EVICT)
        params = (p.name for p in self.task.lowered.func.params)
        weights = [
            a[0] for name, a in zip(params, operands.arrays, strict=False) if name in self.task.weights
        ]
        parts = [as_tensor(w.reshape(-1).view(np.uint8)) for w in weights]

        def evict() -> None:
            for part in parts:
                function(part, part.shape[0])

        return evict

    def _function(self, k: int) -> Callable[..., Any]:
        return self._compiled(self.funcs[k])

    def _compiled(self, func: Func) -> Callable[..., Any]:
        if self._image is None:
            funcs = [*self.funcs, EVICT] if self._evicts else self.funcs
            self._image = load_image(build_image(funcs, [], self.task.target), self._threads)
        return self._image.function(func.name)

    def close(self) -> None:
        """Remember what was measured, and let go of the machine code."""
        for memory in self._memories:
            memory.save()
        self._image = None


def _one_by_one(calls: Mapping[int, Callable[[], None]]) -> dict[int, float]:
    """Median seconds of each call."""
    return {k: statistics.median(sample(call)) for k, call in calls.items()}


def _in_turn(calls: Mapping[int, Callable[[], None]], before: Callable[[], None]) -> dict[int, float]:
    """Seconds of each call, the first of which finds no cache filled; ``before`` runs before each."""
    times: dict[int, list[float]] = {k: [] for k in calls}
    begin, left = time.perf_counter(), list(calls)
    for turn in range(MOST_CALLS + 1):
        if turn:
            fastest = min(map(min, times.values()))
            short = LONG_S / 2 if turn <= QUICK_CALLS else 0.0
            slow = SLOW_ONCE if turn == 1 else SLOW
            left = [k for k in left if min(times[k]) <= max(short, slow * fastest)]
            if turn > 1 and turn * fastest > LONG_S:
                break
        if turn > QUICK_CALLS and (len(left) == 1 or time.perf_counter() - begin > CLOSE_S):
            break
        for k in left:
            before()
            start = time.perf_counter()
            calls[k]()
            times[k].append(time.perf_counter() - start)
    return _compared(times)


def _compared(times: Mapping[int, Sequence[float]]) -> dict[int, float]:
    """Least seconds of the fastest candidate, and as many times more as others took in the same turns.

    Memory has slow and fast moments that last for several turns: the least times of two candidates may be of
    different ones. Where there were few turns, calls are longer than such moments: then least times count.
    """
    fastest = times[min(times, key=lambda k: min(times[k]))]

    def seconds(own: Sequence[float]) -> float:
        ratios = [a / b for a, b in zip(own[1:], fastest[1:], strict=False)]
        return min(fastest) * statistics.median(ratios) if len(ratios) >= QUICK_CALLS else min(own)

    return {k: seconds(own) for k, own in times.items()}


class _Operands:
    """Arrays for the kernels of a task at one size.

    Args:
        task: The group.
        func: One of its kernels.
        size: Value of the task's rows.
        stock: Arrays of a larger size, whose beginnings serve; ``None`` = make them.
        caches: How many times the last-level cache the copies of the weights take.
    """

    def __init__(
        self, task: Task, func: Func, size: int, stock: list[list[np.ndarray]] | None, caches: float
    ) -> None:
        self.env = task_env(task, size)
        naive = task.lowered.func
        if stock is None:
            self.arrays = inputs(
                naive, self.env, task.cache_fields, task.weights, task.within, task.target, caches=caches
            )
        else:
            shapes = [tuple(evaluate(d, self.env) for d in p.shape) for p in naive.params[: len(stock)]]
            self.arrays = [[_beginning(a, s) for a in c] for c, s in zip(stock, shapes, strict=True)]
        self.inputs = [[as_tensor(a) for a in copies] for copies in self.arrays]
        written = results(func, self.env, len(func.params) - len(self.arrays))
        self.written = tuple(as_tensor(a) for a in written)
        self.keep = written
        # All kernels take from one cycle: one that took the copy of the one before would find it in a cache.
        rounds = range(max(map(len, self.inputs), default=1))
        self._turns = itertools.cycle([[c[k % len(c)] for c in self.inputs] for k in rounds])

    def calls(self, function: Callable[..., Any], func: Func) -> Callable[[], None]:
        """What runs ``function`` once, on the next copy of the weights."""
        fixed = (*self.written, *(self.env[d.name] for d in func.dims))
        return lambda: function(*next(self._turns), *fixed)


def _beginning(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return array.reshape(-1)[: math.prod(shape)].reshape(shape)
