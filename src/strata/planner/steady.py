"""Whether the machine is itself while candidates are timed.

Threads that wake up may share a core for some milliseconds, and the host of a virtual machine may run two of
its cores on one of its own for tens of them. What multiplies takes twice as long then, what waits for memory
does not: a comparison of both would be wrong, and for good, since times are remembered. A loop that
multiplies in registers shows such moments. It is called until they are over, since threads that work are
moved apart, while those that have slept may wake up on one core again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

from strata.loop.text import parse_func

LANES, CHAINS = 16, 12
# One task per thread: some tens of microseconds of one that has a core of its own.
PROBE = parse_func(f"""
dims tasks in 1..1024
func @probe(x: f32[{LANES}]) -> (sums: f32[tasks, {CHAINS * LANES}])
  parallel t in tasks:
    alloc acc: f32[{CHAINS}, {LANES}] register
    unroll c in {CHAINS}:
      acc[c, ramp(0, {LANES})] = splat(0x0p+0, {LANES})
    let v = x[ramp(0, {LANES})]:
      for i in 12000:
        unroll c in {CHAINS}:
          acc[c, ramp(0, {LANES})] = acc[c, ramp(0, {LANES})] + v * v
    unroll c in {CHAINS}:
      sums[t, ramp(c * {LANES}, {LANES})] = acc[c, ramp(0, {LANES})]
""")
CALLS = 4  # the first one may find a thread asleep
FIRST_CALLS = 400  # before it is known how long a call takes
TOLERANCE = 1.3
PATIENCE_S = 1.0  # for all that a process times: with busy neighbours no machine is ever itself

T = TypeVar("T")


class Steadiness:
    """Puts timing off, or repeats it, while a probe takes longer than it has taken before."""

    def __init__(self) -> None:
        self._least_s: dict[int, float] = {}
        self._left_s = PATIENCE_S

    def timed(self, probe: Callable[[], object], threads: int, time_all: Callable[[], T]) -> T:
        """What ``time_all`` returns, run in a moment that was steady before and after, if there is patience.

        Args:
            probe: Runs :data:`PROBE` on as many threads as ``time_all`` uses.
            threads: Their number.
            time_all: Times candidates.
        """
        while self._left_s > 0:
            start = time.perf_counter()
            while not self._is_steady(probe, threads) and time.perf_counter() - start < self._left_s:
                pass
            self._left_s -= time.perf_counter() - start
            start = time.perf_counter()
            found = time_all()
            if self._is_steady(probe, threads):
                return found
            self._left_s -= time.perf_counter() - start
        return time_all()

    def _is_steady(self, probe: Callable[[], object], threads: int) -> bool:
        calls_s = []
        for _ in range(CALLS if threads in self._least_s else FIRST_CALLS):
            start = time.perf_counter()
            probe()
            calls_s.append(time.perf_counter() - start)
        self._least_s[threads] = min(*calls_s, self._least_s.get(threads, math.inf))
        return min(calls_s) <= TOLERANCE * self._least_s[threads]


STEADINESS = Steadiness()  # of this process
