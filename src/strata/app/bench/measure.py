"""Repetitions of all sides in turn, with the machine's ceilings measured beside ours."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from strata.app.machine import PEAKS, measure_bandwidth, measure_peak, measure_sustained_peak

from .amounts import Amounts, Phase
from .others import OtherWork
from .peers import PeerError

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
        flop_per_s: By instruction, before the prefills.
        sustained_flop_per_s: The same for a quarter of a second, mean of before and after.
        bytes_per_s: Memory read, by phase, around the decodes: mean of before and after.
        other_cores: Processor time of other programs during all repetitions.
    """

    flop_per_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PEAKS})
    sustained_flop_per_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PEAKS})
    bytes_per_s: dict[Phase, list[float]] = field(default_factory=lambda: {phase: [] for phase in Phase})
    other_cores: list[float] = field(default_factory=list)


Report = Callable[[int, int, str], None]  # repetitions done, of how many, what comes next


def measure(
    sides: Mapping[str, Side],
    work: Amounts,
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
        patience_s: For how long a repetition is put off, and made again, while other programs work.
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
                beside = num_threads if name == OURS and number > 0 else 0
                try:
                    found = _repetition(side, phase, work, pids, beside, patience_s if number > 0 else 0.0)
                except PeerError as error:
                    samples[name].failed = f"{phase.value}: {error}"
                    continue
                if number > 0:
                    samples[name].seconds[phase].append(found.seconds)
                    _note(ceilings, phase, found)
    report(total, total, "done")
    return samples, ceilings


@dataclass(frozen=True, slots=True)
class _Repetition:
    """One repetition, with the ceilings measured beside it."""

    seconds: float
    flop_per_s: Mapping[str, float]
    sustained_flop_per_s: Mapping[str, float]
    bytes_per_s: float | None
    other_cores: float | None


def _note(ceilings: Ceilings, phase: Phase, found: _Repetition) -> None:
    for name, peak in found.flop_per_s.items():
        ceilings.flop_per_s[name].append(peak)
    for name, peak in found.sustained_flop_per_s.items():
        ceilings.sustained_flop_per_s[name].append(peak)
    if found.bytes_per_s is not None:
        ceilings.bytes_per_s[phase].append(found.bytes_per_s)
    if found.other_cores is not None:
        ceilings.other_cores.append(found.other_cores)


def _repetition(
    side: Side, phase: Phase, work: Amounts, pids: tuple[int, ...], num_threads: int, patience_s: float
) -> _Repetition:
    """Pause and run, again while other programs work and there is patience left."""
    end = time.monotonic() + patience_s
    while True:
        others = OtherWork(pids)
        time.sleep(REST_S)
        if (others.cores() or 0.0) >= BUSY_CORES and time.monotonic() < end:
            continue
        found = _beside(side, phase, work, pids, num_threads)
        if (found.other_cores or 0.0) < BUSY_CORES or time.monotonic() >= end:
            return found


def _beside(side: Side, phase: Phase, work: Amounts, pids: tuple[int, ...], num_threads: int) -> _Repetition:
    """Run, with the ceilings that ``num_threads`` threads reach measured beside it (0 = without)."""
    others = OtherWork(pids)
    if not num_threads:
        return _Repetition(_run(side, phase, work), {}, {}, None, others.cores())
    if phase is Phase.PREFILL:
        peaks = _known(lambda name: measure_peak(num_threads, name, repeats=3))
        early = _known(lambda name: measure_sustained_peak(num_threads, name))
        seconds = _run(side, phase, work)
        late = _known(lambda name: measure_sustained_peak(num_threads, name))
        sustained = {name: statistics.mean((early[name], late[name])) for name in peaks}
        return _Repetition(seconds, peaks, sustained, None, others.cores())
    before = measure_bandwidth(num_threads, repeats=2)
    seconds = _run(side, phase, work)
    after = measure_bandwidth(num_threads, repeats=2)
    return _Repetition(seconds, {}, {}, statistics.mean((before, after)), others.cores())


def _known(measured: Callable[[str], float | None]) -> dict[str, float]:
    """What is ``measured`` of each instruction that exists here."""
    return {name: peak for name in PEAKS if (peak := measured(name)) is not None}


def _run(side: Side, phase: Phase, work: Amounts) -> float:
    match phase:
        case Phase.PREFILL:
            return side.prefill(work.prompt)
        case Phase.DECODE:
            return side.decode(work.context, work.decode, 1)
        case Phase.BATCH:
            return side.decode(work.context, work.decode, work.batch)
