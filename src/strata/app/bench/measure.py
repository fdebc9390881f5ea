"""Repetitions of all sides in turn, with the machine's ceilings measured beside ours."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
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
        sustained_flop_per_s: By phase, of its instruction, in a quarter of a second: mean around it.
        bytes_per_s: Memory read, by phase, around the decodes: mean of before and after.
        other_cores: Processor time of other programs during all repetitions.
    """

    flop_per_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in PEAKS})
    sustained_flop_per_s: dict[Phase, list[float]] = field(default_factory=lambda: {p: [] for p in Phase})
    bytes_per_s: dict[Phase, list[float]] = field(default_factory=lambda: {phase: [] for phase in Phase})
    other_cores: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Which ceilings are measured, and beside whom.

    Attributes:
        num_threads: Of our side.
        instructions: By phase: what its products are made of, a key of ``PEAKS``; phases that wait for memory
            have none.
        pids: Processes of the peers.
    """

    num_threads: int
    instructions: Mapping[Phase, str]
    pids: tuple[int, ...] = ()


Report = Callable[[int, int, str], None]  # repetitions done, of how many, what comes next


def measure(
    sides: Mapping[str, Side],
    work: Amounts,
    conditions: Conditions,
    report: Report,
    patience_s: float = 0.0,
) -> tuple[dict[str, Samples], Ceilings]:
    """Run every phase ``work.repeats`` times on all sides in turn, after one repetition that does not count.

    What is compared is of the same minute: a side decodes one sequence and several right after each other.
    A side that fails is left out from then on.

    Args:
        sides: By name; :data:`OURS` is us.
        work: What to run.
        conditions: For the ceilings.
        report: Called before each repetition.
        patience_s: For how long a repetition is put off, and made again, while other programs work.
    """
    samples, ceilings = {name: Samples() for name in sides}, Ceilings()
    total = len(work.phases) * (work.repeats + 1) * len(sides)
    done = 0
    for phases in work.rounds:
        for number in range(work.repeats + 1):
            for (name, side), phase in itertools.product(sides.items(), phases):
                report(done, total, f"{phase.value} · {name}")
                done += 1
                if samples[name].failed:
                    continue
                run = partial(_run, side, phase, work)
                if name == OURS and number > 0:
                    run = partial(_beside, run, phase, conditions)
                try:
                    found = _repetition(run, conditions.pids, patience_s if number > 0 else 0.0)
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
    flop_per_s: Mapping[str, float] = field(default_factory=dict)
    sustained_flop_per_s: float | None = None
    bytes_per_s: float | None = None
    other_cores: float | None = None


def _note(ceilings: Ceilings, phase: Phase, found: _Repetition) -> None:
    for name, peak in found.flop_per_s.items():
        ceilings.flop_per_s[name].append(peak)
    if found.sustained_flop_per_s is not None:
        ceilings.sustained_flop_per_s[phase].append(found.sustained_flop_per_s)
    if found.bytes_per_s is not None:
        ceilings.bytes_per_s[phase].append(found.bytes_per_s)
    if found.other_cores is not None:
        ceilings.other_cores.append(found.other_cores)


def _repetition(run: Callable[[], _Repetition], pids: tuple[int, ...], patience_s: float) -> _Repetition:
    """Pause and run, again while other programs work and there is patience left."""
    end = time.monotonic() + patience_s
    while True:
        others = OtherWork(pids)
        time.sleep(REST_S)
        if (others.cores() or 0.0) >= BUSY_CORES and time.monotonic() < end:
            continue
        others = OtherWork(pids)
        found = replace(run(), other_cores=others.cores())
        if (found.other_cores or 0.0) < BUSY_CORES or time.monotonic() >= end:
            return found


def _beside(run: Callable[[], _Repetition], phase: Phase, conditions: Conditions) -> _Repetition:
    """Run, with the ceilings that bound the phase measured beside it."""
    threads, name = conditions.num_threads, conditions.instructions.get(phase)
    peaks = {}
    if phase is Phase.PREFILL:
        found = {name: measure_peak(threads, name, repeats=3) for name in PEAKS}
        peaks = {name: peak for name, peak in found.items() if peak is not None}  # instructions that exist

    def ceilings() -> tuple[float | None, float | None]:
        sustained = None if name is None else measure_sustained_peak(threads, name)
        return sustained, None if phase is Phase.PREFILL else measure_bandwidth(threads, repeats=2)

    before, repetition, after = ceilings(), run(), ceilings()
    sustained, bandwidth = (
        None if a is None or b is None else statistics.mean((a, b))
        for a, b in zip(before, after, strict=True)
    )
    return replace(repetition, flop_per_s=peaks, sustained_flop_per_s=sustained, bytes_per_s=bandwidth)


def _run(side: Side, phase: Phase, work: Amounts) -> _Repetition:
    match phase:
        case Phase.PREFILL:
            return _Repetition(side.prefill(work.prompt))
        case Phase.DECODE:
            return _Repetition(side.decode(work.context, work.decode, 1))
        case Phase.BATCH:
            return _Repetition(side.decode(work.context, work.decode, work.batch))
