"""Repetitions of all sides in turn, with the machine's ceilings measured beside ours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from strata.app.machine import PEAKS, measure_bandwidth, measure_peak

from .others import OtherWork
from .peers import PeerError
from .workload import Phase, Workload

REST_S = 0.3  # before each repetition: threads of the side before it spin for a while
BUSY_CORES = 0.1  # of other programs: from here on a machine counts as disturbed
OURS = "strata"


class Side(Protocol):
    """What is measured: our model, or a peer."""

    def prefill(self, tokens: int) -> float:
        """Seconds to read a prompt."""
        ...

    def decode(self, context: int, tokens: int, batch: int) -> float:
        """Seconds for greedy steps of ``batch`` sequences."""
        ...


@dataclass(slots=True)
class Samples:
    """Repetitions of one side.

    Attributes:
        seconds: By phase.
        failed: Why it was given up, if it was.
    """

    seconds: dict[Phase, list[float]] = field(default_factory=lambda: {phase: [] for phase in Phase})
    failed: str = ""


@dataclass(slots=True)
class Ceilings:
    """What the machine could do beside each of our repetitions.

    Attributes:
        flop_per_s: By instruction, around the prefills.
        bytes_per_s: Memory read, by phase, around the decodes: mean of before and after.
        other_cores: Processor time of other programs during all repetitions.
    """

    flop_per_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PEAKS})
    bytes_per_s: dict[Phase, list[float]] = field(default_factory=lambda: {phase: [] for phase in Phase})
    other_cores: list[float] = field(default_factory=list)


Report = Callable[[int, int, str], None]  # repetitions done, of how many, what comes next


def measure(
    sides: Mapping[str, Side],
    work: Workload,
    num_threads: int,
    pids: tuple[int, ...],
    report: Report,
    patience_s: float = 0.0,
) -> tuple[dict[str, Samples], Ceilings]:
    """Run every phase ``work.repeats`` times on all sides in turn, after one repetition that does not count.

    A side that fails is left out from then on.

    Args:
        sides: By name; :data:`OURS` is us.
        work: What to run.
        num_threads: Threads, for the ceilings.
        pids: Processes of the peers.
        report: Called before each repetition.
        patience_s: How long to wait before a repetition for other programs to be quiet, at most.
    """
    samples, ceilings = {name: Samples() for name in sides}, Ceilings()
    total = len(work.phases) * (work.repeats + 1) * len(sides)
    done = 0
    for phase in work.phases:
        for number in range(work.repeats + 1):
            for name, side in sides.items():
                report(done, total, f"{phase.value} · {name}")
                done += 1
                if samples[name].failed:
                    continue
                _rest(pids, patience_s if number > 0 else 0.0)
                others = OtherWork(pids)
                try:
                    seconds = _beside(ceilings, side, phase, work, num_threads, name == OURS and number > 0)
                except PeerError as error:
                    samples[name].failed = f"{phase.value}: {error}"
                    continue
                if number > 0:
                    samples[name].seconds[phase].append(seconds)
                    busy = others.cores()
                    ceilings.other_cores += [] if busy is None else [busy]
    report(total, total, "done")
    return samples, ceilings


def _rest(pids: tuple[int, ...], patience_s: float) -> None:
    """Pause, and go on pausing while other programs work, up to ``patience_s``."""
    end = time.monotonic() + patience_s
    while True:
        others = OtherWork(pids)
        time.sleep(REST_S)
        if (others.cores() or 0.0) < BUSY_CORES or time.monotonic() >= end:
            return


def _beside(
    ceilings: Ceilings, side: Side, phase: Phase, work: Workload, num_threads: int, with_ceilings: bool
) -> float:
    """One repetition, with the ceiling that bounds it measured beside it."""
    if not with_ceilings:
        return _run(side, phase, work)
    if phase is Phase.PREFILL:
        for name, values in ceilings.flop_per_s.items():
            peak = measure_peak(num_threads, name, repeats=3)
            values += [] if peak is None else [peak]
        return _run(side, phase, work)
    before = measure_bandwidth(num_threads, repeats=2)
    seconds = _run(side, phase, work)
    after = measure_bandwidth(num_threads, repeats=2)
    ceilings.bytes_per_s[phase].append(statistics.mean((before, after)))
    return seconds


def _run(side: Side, phase: Phase, work: Workload) -> float:
    match phase:
        case Phase.PREFILL:
            return side.prefill(work.prompt)
        case Phase.DECODE:
            return side.decode(work.context, work.decode, 1)
        case Phase.BATCH:
            return side.decode(work.context, work.decode, work.batch)
