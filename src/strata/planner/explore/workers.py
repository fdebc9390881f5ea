"""Who plans the chunks of a sweep: this process, several of this machine, or those of a Ray cluster.

Rows come back in the order of the chunks, and are the same whoever makes them.
"""

from __future__ import annotations

import pickle
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from strata.core.errors import DeviceError, UserError
from strata.planner.cluster import connect

from .sweep import Chunk, Planner, Row, Sweep

MAX_ATTEMPTS = 3  # of a chunk whose worker is lost
AHEAD = 2  # chunks per worker that wait
_WHERE = (
    "define classes of devices and cost functions in a file that all load (--load, load=[...]) or a module "
    "that all can import, or sweep in one process"
)


@dataclass(frozen=True, slots=True)
class Workers:
    """Who plans.

    Attributes:
        processes: Of this machine; 1 = this one. Ignored with ``ray``.
        ray: Address of a Ray cluster; all of its CPUs are used.
        setup: Called first in every other process: runs the user's files.
    """

    processes: int = 1
    ray: str = ""
    setup: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        if self.processes < 1:
            raise UserError(f"--workers: got {self.processes}; expected at least 1")

    def run(self, sweep: Sweep, chunks: Iterable[Chunk]) -> Iterator[list[Row]]:
        """Rows of all chunks, chunk by chunk.

        Raises:
            UserError: a plan cannot be made, the sweep cannot be sent to workers, or there is no cluster.
            DeviceError: workers died.
        """
        if self.ray:
            return _on_cluster(self.ray, self._job(sweep), chunks)
        if self.processes == 1:
            return map(Planner(sweep).rows, chunks)
        return _in_processes(self.processes, self._job(sweep), chunks)

    def _job(self, sweep: Sweep) -> bytes:
        try:
            return pickle.dumps(_Job(self.setup, pickle.dumps(sweep)))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise UserError(
                f"sweep: the machines or models cannot be sent to workers ({error}); {_WHERE}"
            ) from error


@dataclass(frozen=True, slots=True)
class _Job:
    """What a worker needs to know.

    Attributes:
        setup: Called first: the sweep may be of what it defines.
        sweep: Pickled.
    """

    setup: Callable[[], object] | None
    sweep: bytes

    def planner(self) -> Planner:
        """Raises a UserError if the sweep is of something that this worker cannot import."""
        if self.setup is not None:
            self.setup()
        try:
            return Planner(pickle.loads(self.sweep))
        except (ImportError, AttributeError) as error:
            raise UserError(f"sweep: a worker lacks what the sweep is of ({error}); {_WHERE}") from error


Answer = list[Row] | str  # rows, or the message of a mistake


def _answer(planner: Callable[[], Planner], chunk: Chunk) -> Answer:
    try:
        return planner().rows(chunk)
    except UserError as error:
        return str(error)


def _rows(answer: Answer) -> list[Row]:
    if isinstance(answer, str):
        raise UserError(answer)
    return answer


# --- processes of this machine ------------------------------------------------------------------------

_job = b""  # of this worker process
_planner: Planner | None = None


def _begin(job: bytes) -> None:
    """In a new process: Ctrl-C is for the one that began the sweep."""
    global _job
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _job = job


def _own_planner() -> Planner:
    global _planner
    if _planner is None:
        job: _Job = pickle.loads(_job)
        _planner = job.planner()
    return _planner


def _in_processes(count: int, job: bytes, chunks: Iterable[Chunk]) -> Iterator[list[Row]]:
    context = get_context("spawn")  # a fork would copy locks that other threads hold
    with ProcessPoolExecutor(count, context, _begin, (job,)) as pool:
        try:
            yield from _in_order(lambda chunk: pool.submit(_answer, _own_planner, chunk), chunks, count)
        except BrokenProcessPool as error:
            raise DeviceError(
                "sweep: a worker process ended before its plans were made: out of memory, or a program that "
                "begins a sweep whenever it is imported (put it under: if __name__ == '__main__')"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _in_order(submit: Callable[[Chunk], Any], chunks: Iterable[Chunk], count: int) -> Iterator[list[Row]]:
    """Rows in the order of the chunks, of which a few per worker are on their way at the same time."""
    waiting: deque[Any] = deque()
    for chunk in chunks:
        waiting.append(submit(chunk))
        if len(waiting) > AHEAD * count:
            yield _rows(waiting.popleft().result())
    while waiting:
        yield _rows(waiting.popleft().result())


# --- a Ray cluster ------------------------------------------------------------------------------------

_planners: dict[str, Planner] = {}  # of this Ray worker, by job; the last one only


def _planned(name: str, job: list[Any], chunk: Chunk) -> Answer:
    """In a worker of the cluster: ``job`` holds a reference that is followed once per worker."""
    import ray

    def planner() -> Planner:
        if name not in _planners:
            _planners.clear()
            _planners[name] = pickle.loads(ray.get(job[0])).planner()
        return _planners[name]

    return _answer(planner, chunk)


def _on_cluster(address: str, job: bytes, chunks: Iterable[Chunk]) -> Iterator[list[Row]]:
    ray = connect(address)
    try:
        reference = ray.put(job)
        name = reference.hex()
        remote = ray.remote(num_cpus=1, max_retries=MAX_ATTEMPTS - 1)(_planned)
        count = max(1, int(ray.cluster_resources().get("CPU", 1)))

        def submit(chunk: Chunk) -> Any:
            return remote.remote(name, [reference], chunk).future()

        yield from _in_order(submit, chunks, count)
    except ray.exceptions.RayError as error:
        raise DeviceError(
            f"--ray: the cluster lost a worker {MAX_ATTEMPTS} times: {type(error).__name__}"
        ) from error
    finally:
        ray.shutdown()
