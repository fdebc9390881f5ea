"""The worker process: builds kernels and measures them, one job after the other, until the pipe closes.

``python -m strata.planner.tuning.worker FD`` talks over the socket FD in pickles: a :class:`BuildJob` or
:class:`MeasureJob` in, a ``Built`` or ``Outcome`` out. A kernel under trial may do anything: what it crashes
is this process, and a job that takes too long ends it by an alarm, which also ends a worker whose parent has
gone.
"""

from __future__ import annotations

import math
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, assert_never

import numpy as np

from .problem import KERNEL, BuildJob, Built, MeasureJob, Outcome, Problem

MIN_SAMPLES, MAX_SAMPLES = 5, 100
SAMPLE_S = 2e-4  # short kernels are called several times per sample
BUDGET_S = 0.12  # of timed calls per trial
HOPELESS = 3.0  # so much slower than the best one: one sample is enough
TOLERANCE = {"f64": 1e-9, "f32": 2e-4, "f16": 1e-2, "bf16": 5e-2}  # of the results' root mean square


def main(descriptor: int) -> None:
    """Work until the other end closes."""
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # tvm-ffi would import it
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    bench = Bench()
    with socket.socket(fileno=descriptor) as held, Connection(held.detach()) as pipe:
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            signal.setitimer(signal.ITIMER_REAL, job.limit_s)
            answer = perform(job, bench)
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(answer)


def perform(job: BuildJob | MeasureJob, bench: Bench) -> Built | Outcome:
    """Do one job; whatever goes wrong is its outcome."""
    try:
        match job:
            case BuildJob():
                return build(job)
            case MeasureJob():
                return bench.measure(job)
            case _:
                assert_never(job)
    except MemoryError:
        return Outcome(None, error="out of memory")
    except Exception as error:  # noqa: BLE001  (a trial is foreign code: the search must go on)
        first = (str(error).splitlines() or [""])[0]
        return Outcome(None, error=f"{type(error).__name__}: {first}"[:500])


def build(job: BuildJob) -> Built:
    """Check and compile a function.

    Raises:
        VerifyError: it is not of the stage that the code generator takes.
        CodegenError: it cannot be compiled.
    """
    from strata.codegen.build import build_image
    from strata.loop.check import LOOP_LOWERED, check
    from strata.loop.text_parser import parse_func
    from strata.target.machine import parse_target

    func = parse_func(job.text)
    check(func, LOOP_LOWERED)
    return Built(job.text, build_image([func], [], parse_target(job.target), threads=1).blob)


@dataclass
class _Bed:
    """What all kernels of a problem share: operands and the right results."""

    problem: Problem
    inputs: list[list[np.ndarray]]
    expected: list[np.ndarray]


class Bench:
    """Measures kernels; keeps the operands of the last problem."""

    def __init__(self) -> None:
        self._bed: _Bed | None = None

    def measure(self, job: MeasureJob) -> Outcome:
        """Run a kernel, compare its results with the reference, time it."""
        if self._bed is None or self._bed.problem != job.problem:
            self._bed = None  # free it first: operands may be large
            self._bed = _lay_out(job.problem, job.reference)
        bed = self._bed
        run = _Run(job.kernel, bed)
        run.call()
        error = run.difference(bed.expected)
        if error:
            return Outcome(None, error=f"wrong result: {error}")
        times = sample(run.call, job.best_s)
        quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else (0.0, 0.0, 0.0)
        return Outcome(statistics.median(times), len(times), quartiles[2] - quartiles[0])


def sample(call: Callable[[], None], best_s: float = math.inf) -> list[float]:
    """Seconds of ``call``, several times; fewer where the first one is hopeless beside ``best_s``."""
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    if first > HOPELESS * best_s:
        start = time.perf_counter()
        call()
        return [min(first, time.perf_counter() - start)]
    calls = max(1, int(SAMPLE_S / max(first, 1e-8)))
    times: list[float] = []
    while len(times) < MIN_SAMPLES or (sum(times) * calls < BUDGET_S and len(times) < MAX_SAMPLES):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        times.append((time.perf_counter() - start) / calls)
    return times


def _lay_out(problem: Problem, reference: Built) -> _Bed:
    from strata.loop.text_parser import parse_func
    from strata.target.machine import parse_target

    from . import operands

    naive, target = parse_func(problem.text), parse_target(problem.target)
    arrays = operands.inputs(
        naive, dict(problem.sizes), dict(problem.fields), problem.weights, dict(problem.within), target
    )
    bed = _Bed(problem, arrays, [])
    run = _Run(reference, bed)
    run.call()
    bed.expected = run.outputs
    return bed


class _Run:
    """A loaded kernel with its arguments."""

    def __init__(self, kernel: Built, bed: _Bed) -> None:
        from strata.loop.text_parser import parse_func
        from strata.runtime.image import load_image
        from strata.runtime.tensors import as_tensor

        from . import operands

        func = parse_func(kernel.text)
        sizes = dict(bed.problem.sizes)
        count = len(func.params) - len(bed.inputs)
        written = operands.results(func, sizes, count)
        naive = parse_func(bed.problem.text)
        self.outputs = written[count - naive.num_outputs :]
        self._written = written
        self._image = load_image(kernel.image, bed.problem.num_threads)
        self._function: Any = self._image.function(KERNEL)
        rounds = max((len(copies) for copies in bed.inputs), default=1)
        tail = (*(as_tensor(a) for a in written), *(sizes[d.name] for d in func.dims))
        tensors = [[as_tensor(a) for a in copies] for copies in bed.inputs]
        self._turns = [(*(t[k % len(t)] for t in tensors), *tail) for k in range(rounds)]
        self._turn = 0

    def call(self) -> None:
        """Run it once, on the next copy of the weights."""
        self._function(*self._turns[self._turn])
        self._turn = (self._turn + 1) % len(self._turns)

    def difference(self, expected: Sequence[np.ndarray]) -> str:
        """What is wrong with the results; empty if nothing."""
        from . import operands

        if not all(operands.is_intact(a) for a in self._written):
            return "it writes behind the end of a buffer"
        pairs = zip(self.outputs, expected, strict=True)
        return next((why for got, want in pairs if (why := compare(got, want))), "")


def compare(got: np.ndarray, want: np.ndarray) -> str:
    """Why two results are not the same up to rounding; empty if they are."""
    if got.dtype.kind in "iub":
        wrong = int(np.count_nonzero(got != want))
        return f"{wrong} of {got.size} elements differ" if wrong else ""
    tolerance = TOLERANCE[{"float64": "f64", "float32": "f32", "float16": "f16"}.get(got.dtype.name, "bf16")]
    x, y = got.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(y)
    same = np.array_equal(x[~finite], y[~finite], equal_nan=True)
    if not same or not np.isfinite(x[finite]).all():
        return "elements that are not finite differ"
    x, y = x[finite], y[finite]
    if not x.size:
        return ""
    scale = float(np.sqrt(np.mean(y * y))) + 1e-30
    error = float(np.max(np.abs(x - y) / (np.abs(y) + scale)))
    return "" if error <= tolerance else f"relative error {error:.1e}; expected at most {tolerance:.0e}"


if __name__ == "__main__":
    main(int(sys.argv[1]))
