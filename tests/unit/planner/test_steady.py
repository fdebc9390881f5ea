"""Timing waits until the machine is itself, and is repeated where it was not: with patience that ends."""

import itertools

import numpy as np
import pytest

from strata.codegen.build import build_image
from strata.planner import steady
from strata.planner.steady import CALLS, CHAINS, FIRST_CALLS, LANES, PATIENCE_S, PROBE, Steadiness
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.target import detect_host

FAST_S, SLOW_S = 1e-4, 2e-4


class Machine:
    """A clock, and a probe that takes what the next of ``checks`` says, ``CALLS`` times."""

    def __init__(self, monkeypatch, checks) -> None:
        self.now_s, self.timings = 0.0, 0
        each = itertools.chain.from_iterable(itertools.repeat(s, CALLS) for s in checks)
        self._calls_s = itertools.chain(itertools.repeat(FAST_S, FIRST_CALLS), each)
        monkeypatch.setattr(steady.time, "perf_counter", lambda: self.now_s)

    def probe(self) -> None:
        self.now_s += next(self._calls_s)

    def time_all(self) -> int:
        self.now_s += 0.05
        self.timings += 1
        return self.timings


@pytest.mark.parametrize(
    ("checks", "timings"),
    [
        ([FAST_S], 1),  # after; before, the first calls were
        ([SLOW_S, FAST_S, FAST_S], 2),  # another time, after a steady check
        ([SLOW_S, SLOW_S, SLOW_S, FAST_S, SLOW_S, FAST_S, FAST_S], 3),
    ],
)
def test_timing_counts_between_two_steady_moments(monkeypatch, checks, timings):
    machine = Machine(monkeypatch, checks)
    assert Steadiness().timed(machine.probe, 2, machine.time_all) == timings
    with pytest.raises(StopIteration):
        machine.probe()  # all checks were made


def test_patience_ends(monkeypatch):
    machine = Machine(monkeypatch, itertools.repeat(SLOW_S))
    steadiness = Steadiness()
    assert steadiness.timed(machine.probe, 2, machine.time_all) > 1
    assert machine.now_s < PATIENCE_S + 0.2
    before_s = machine.now_s
    steadiness.timed(machine.probe, 2, machine.time_all)
    assert machine.now_s == pytest.approx(before_s + 0.05)  # not even a probe


def test_the_probe_multiplies():
    function = load_image(build_image([PROBE], [], detect_host()).blob, 2).function("probe")
    x, sums = np.full(LANES, 2, np.float32), np.zeros((2, CHAINS * LANES), np.float32)
    function(as_tensor(x), as_tensor(sums), 2)
    assert (sums == 4 * 12000).all()
