"""Measured products on a machine whose last-level cache may hold what is measured."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import single_products

from strata.core.dims import SymDim
from strata.core.knobs import knobs
from strata.planner.candidates import Offer
from strata.planner.measure import (
    LONG_ROWS,
    LONG_S,
    MOST_CALLS,
    QUICK_BYTES,
    QUICK_CACHES,
    QUICK_CALLS,
    QUICK_ROWS,
    SLOW,
    TaskBench,
    _in_turn,
    measure_task,
)
from strata.planner.stacks import Kernels
from strata.planner.tuning.operands import EVICT
from strata.planner.types import Origin
from strata.target import Target, detect_host


def kernels_of(target: Target, rows: SymDim) -> Kernels:
    return single_products.kernels_of(target, "f32", 64, 64, rows)


@pytest.mark.parametrize("share", [1.0, 1.1])
def test_weights_leave_a_cache_that_copies_would_not_fill(tmp_path, monkeypatch, share):
    target = replace(detect_host(), l3_bytes=int(share * QUICK_BYTES / QUICK_CACHES))
    kernels = kernels_of(target, SymDim("m", 1, 8))
    evicted: list[int] = []

    def compiled(self, func, original=TaskBench._compiled):
        function = original(self, func)

        def evict(part, count):
            evicted.append(count)
            function(part, count)

        return evict if func is EVICT else function

    monkeypatch.setattr(TaskBench, "_compiled", compiled)
    with knobs(cache_dir=tmp_path):
        funcs = [c.func for c in kernels.stack.candidates]
        times = TaskBench(kernels.task, funcs, num_threads=1, is_quick=True).times_s(1)
    assert len(times) > 1
    assert np.isfinite(times).all()
    # The whole weight before each call.
    assert set(evicted) == ({64 * 64 * 4} if share > 1 else set())
    turns, rest = divmod(len(evicted), len(funcs))
    assert rest == 0
    assert QUICK_CALLS < turns <= MOST_CALLS + 1 if share > 1 else turns == 0


def test_no_candidate_is_timed_on_the_copy_of_the_one_before(tmp_path, monkeypatch):
    """It would find it in a cache."""
    target = replace(detect_host(), l3_bytes=8 << 20)  # small enough for copies that exceed it
    kernels, weights = kernels_of(target, SymDim("m", 1, 8)), []

    def compiled(self, func, original=TaskBench._compiled):
        function = original(self, func)

        def call(x, w, *rest):
            weights.append(w.data_ptr())
            function(x, w, *rest)

        return call

    monkeypatch.setattr(TaskBench, "_compiled", compiled)
    with knobs(cache_dir=tmp_path):
        funcs = [c.func for c in kernels.stack.candidates]
        TaskBench(kernels.task, funcs, num_threads=1, is_quick=True).times_s(1)
    assert len(weights) > len(funcs) > 1
    assert len(set(weights)) == len(weights)


def test_a_product_is_timed_once_whatever_its_dims_are_called(tmp_path):
    with knobs(cache_dir=tmp_path):
        times = []
        for rows in (SymDim("m", 1, 8), SymDim("num_seqs", 1, 70)):
            kernels = kernels_of(detect_host(), rows)
            bench = TaskBench(kernels.task, [c.func for c in kernels.stack.candidates], num_threads=1)
            times.append(bench.times_s(2))
            bench.close()
        assert times[0] == times[1]
        assert len(list((tmp_path / "measured").iterdir())) == len(times[0])


class Clock:
    """A clock that calls advance."""

    def __init__(self) -> None:
        self.now_s, self.calls = 0.0, ""

    def __call__(self) -> float:
        return self.now_s

    def call(self, name: str, takes_s: float):
        def run() -> None:
            self.calls += name
            self.now_s += takes_s

        return run


@pytest.mark.parametrize(
    ("fast", "slow", "calls"),
    [
        # Disturbances may be as long as these calls; what is much slower is out after some of them.
        (LONG_S / 1000, LONG_S / 4, "ab" * (QUICK_CALLS + 1)),
        (LONG_S / 1000, LONG_S, "ab" + "a" * QUICK_CALLS),  # out after one call
        (LONG_S, SLOW * LONG_S, "abab"),  # enough after two
    ],
)
def test_long_calls_are_not_repeated(monkeypatch, fast, slow, calls):
    clock = Clock()
    monkeypatch.setattr("strata.planner.measure.time.perf_counter", clock)
    best = _in_turn({0: clock.call("a", fast), 1: clock.call("b", slow)}, lambda: None)
    assert clock.calls == calls
    assert best == pytest.approx({0: fast, 1: slow})


def test_one_disturbed_call_puts_no_candidate_out(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("strata.planner.measure.time.perf_counter", clock)
    turns = itertools.count()
    better = [clock.call("b", 3 * LONG_S if k == 0 else 0.9 * LONG_S) for k in range(MOST_CALLS + 1)]
    calls = {0: clock.call("a", LONG_S), 1: lambda: better[next(turns)]()}
    found = _in_turn(calls, lambda: None)
    assert clock.calls == "abab"
    assert found == pytest.approx({0: LONG_S, 1: 0.9 * LONG_S})


def test_a_fast_moment_of_memory_favours_nobody(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("strata.planner.measure.time.perf_counter", clock)
    turns = itertools.count()  # b takes a tenth more than a, but for one call, while memory is fast
    fast = clock.call("a", 1e-3)
    slow = [clock.call("b", 0.7e-3 if k == 2 else 1.1e-3) for k in range(MOST_CALLS + 1)]
    found = _in_turn({0: fast, 1: lambda: slow[next(turns)]()}, lambda: None)
    assert found[1] == pytest.approx(1.1 * found[0])
    assert "ab" * (QUICK_CALLS + 2) in clock.calls


@pytest.mark.parametrize(("is_long", "most"), [(True, 512), (False, 512), (True, 300)])
def test_what_is_fast_is_timed_at_more_rows_where_a_matrix_unit_multiplies(
    tmp_path, monkeypatch, is_long, most
):
    """All candidates up to 96 rows; at ``LONG_ROWS`` those that are not SLOW times the fastest there."""
    kernels = kernels_of(detect_host(), SymDim("m", 1, most))
    funcs = [c.func for c in kernels.stack.candidates]
    names = {f.name: k for k, f in enumerate(funcs)}
    offers = [Offer(c.name, c.func, "", Origin.RULE, None) for c in kernels.stack.candidates]
    ran = set[tuple[int, int]]()

    def timed(calls, before):
        return {k: call() for k, call in calls.items()}

    def calls(self, function, func):
        k, rows = names[func.name], self.env["m"]
        ran.add((rows, k))
        return lambda: (1e-6 if k == 1 else 1e-3) * rows

    monkeypatch.setattr("strata.planner.measure.has_matrix_loop", lambda func: is_long)
    monkeypatch.setattr("strata.planner.measure._in_turn", timed)
    monkeypatch.setattr("strata.planner.measure._Operands.calls", calls)
    with knobs(cache_dir=tmp_path):
        found = measure_task(kernels.task, offers, funcs, range(1, most + 1), quick=True)
    expects_more = is_long and most >= LONG_ROWS
    sizes = [*QUICK_ROWS, *([LONG_ROWS] if expects_more else [])]
    assert [[size for size, _ in curve] for curve in found] == [sizes] * len(funcs)
    assert {k for rows, k in ran if rows == QUICK_ROWS[-1]} == set(range(len(funcs)))
    assert {k for rows, k in ran if rows == LONG_ROWS} == ({1} if expects_more else set())
    assert [curve[-1][1].time_s for curve in found] == pytest.approx(
        [(1e-6 if k == 1 else 1e-3) * sizes[-1] for k in range(len(funcs))]
    )
