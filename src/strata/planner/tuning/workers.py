"""Local workers: persistent processes that build in parallel and measure one at a time.

Kernels are built by all workers at once, then measured by one of them while the others rest: a kernel is
timed on quiet cores, with as many threads as it will have. A worker that crashes or takes too long is
replaced; the trial that it was at gets an error.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol

from strata.core.errors import DeviceError

from .problem import BuildJob, Built, Limits, MeasureJob, Outcome, Trial

KEPT_KERNELS = 256  # machine code of recent ones, some 10 kB each


class Runner(Protocol):
    """What measures trials: local workers, or those of a cluster."""

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        """Outcome of every trial with its number, as they come in."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class _Died(Exception):
    """A worker ended before it answered."""


class _Worker:
    """One worker process and the pipe to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: Ctrl-C reaches the search, which ends its workers in order.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "strata.planner.tuning.worker", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.pipe = Connection(ours.detach())

    def send(self, job: BuildJob | MeasureJob) -> None:
        try:
            self.pipe.send(job)
        except (BrokenPipeError, ConnectionError):
            raise _Died from None

    def receive(self) -> Any:
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            raise _Died from None

    def end(self) -> int:
        """Make sure that the process is gone; returns its exit status."""
        self.pipe.close()
        try:
            return self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _why(status: int, limit_s: float) -> str:
    """A worker's exit status in words."""
    if status == -signal.SIGALRM:
        return f"time-out: took more than {limit_s:g} s"
    if status < 0:
        return f"crashed: {signal.strsignal(-status)} ({signal.Signals(-status).name})"
    return f"its worker ended with status {status}"


class LocalWorkers:
    """A :class:`Runner` on this machine; a context manager.

    Args:
        count: Processes that build; default: one per core that this process may use.
        limits: When a job is ended.
    """

    def __init__(self, count: int | None = None, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._workers: list[_Worker | None] = [None] * (count or len(os.sched_getaffinity(0)))
        self._built: OrderedDict[tuple[str, str], Built | Outcome] = OrderedDict()

    def __enter__(self) -> LocalWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers."""
        for number, worker in enumerate(self._workers):
            if worker is not None:
                worker.process.kill()
                worker.end()
                self._workers[number] = None

    @property
    def process_ids(self) -> tuple[int, ...]:
        """Of the workers that are running."""
        return tuple(w.process.pid for w in self._workers if w is not None)

    def run(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        """Build all trials, then measure them one by one."""
        for number, outcome in self._build_all(trials):
            yield number, outcome
        for number, trial in enumerate(trials):
            kernel = self._built[trial.text, trial.problem.target]
            reference = self._built[trial.problem.reference, trial.problem.target]
            if isinstance(kernel, Outcome):
                continue
            if isinstance(reference, Outcome):
                yield number, Outcome(None, error=f"the untuned kernel does not build: {reference.error}")
                continue
            job = MeasureJob(trial.problem, kernel, reference, self.limits.measure_s, trial.best_s)
            yield number, self._measure(job)

    def _build_all(self, trials: Sequence[Trial]) -> Iterator[tuple[int, Outcome]]:
        """Have the kernels of the trials and their references built; gives the trials that do not build."""
        wanted: dict[tuple[str, str], list[int]] = {}
        for number, trial in enumerate(trials):
            wanted.setdefault((trial.problem.reference, trial.problem.target), [])
            wanted.setdefault((trial.text, trial.problem.target), []).append(number)
        missing = [key for key in wanted if key not in self._built]
        for key in wanted:
            if key in self._built:
                self._built.move_to_end(key)
        jobs = [BuildJob(text, target, self.limits.build_s) for text, target in missing]
        for job, answer in self._build(jobs):
            self._built[missing[job]] = answer
        for key, numbers in wanted.items():
            answer = self._built[key]
            if isinstance(answer, Outcome):
                yield from ((number, answer) for number in numbers)
        while len(self._built) > max(KEPT_KERNELS, len(wanted)):
            self._built.popitem(last=False)

    def _worker(self, number: int) -> _Worker:
        worker = self._workers[number]
        if worker is None:
            worker = self._workers[number] = _Worker()
        return worker

    def _bury(self, number: int, limit_s: float) -> Outcome:
        worker, self._workers[number] = self._workers[number], None
        status = worker.end() if worker is not None else 0
        return Outcome(None, error=_why(status, limit_s))

    def _build(self, jobs: Sequence[BuildJob]) -> Iterator[tuple[int, Built | Outcome]]:
        """Answers to all jobs as they come in, each worker at one of them at a time."""
        waiting = list(range(len(jobs)))[::-1]
        busy: dict[int, int] = {}  # worker -> job
        while waiting or busy:
            for number in range(len(self._workers)):
                if waiting and number not in busy:
                    job = waiting.pop()
                    busy[number] = job
                    try:
                        self._worker(number).send(jobs[job])
                    except _Died:
                        del busy[number]
                        yield job, self._bury(number, jobs[job].limit_s)
            pipes = {self._worker(number).pipe: number for number in busy}
            for pipe in wait(list(pipes)) if pipes else ():
                number = pipes[pipe]  # type: ignore[index]
                job = busy.pop(number)
                try:
                    yield job, self._worker(number).receive()
                except _Died:
                    yield job, self._bury(number, jobs[job].limit_s)

    def _measure(self, job: MeasureJob) -> Outcome:
        """By the first worker, whose memory holds the operands."""
        try:
            self._worker(0).send(job)
            answer = self._worker(0).receive()
        except _Died:
            return self._bury(0, job.limit_s)
        if not isinstance(answer, Outcome):
            raise DeviceError(f"tuning worker: got {type(answer).__name__}; expected an outcome")
        return answer
