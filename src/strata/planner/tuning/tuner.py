"""Tuning a model: trials are spread over its tasks by what each promises, until they or the time run out."""

from __future__ import annotations

import math
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from .database import Database
from .problem import Outcome
from .search import POOL, TaskSearch
from .space import Point
from .tasks import TuningTask
from .workers import Runner

RECENT = 3  # rounds whose gain counts
HOPE = 0.3  # gain expected of a task that was not searched yet; it fades with the rounds
FINALISTS = 3
FINAL_ROUNDS = 3
SWEEP = (1, 2, 4, 8, 16, 64, 256, 1024)  # rows at which the winners are measured too


@dataclass(frozen=True, slots=True)
class TuneOptions:
    """How to search.

    Attributes:
        trials: Schedules to measure over all tasks.
        time_s: Seconds after which no new round begins; ``None`` = no limit.
        batch: Schedules per round.
        from_scratch: Do not start from the schedules of the rules and of the database.
        seed: Of the random choices.
        learn: Use a learned model; ``None`` = if scikit-learn is installed.
        pool: Schedules made, and ranked by the model, per schedule measured.
    """

    trials: int = 200
    time_s: float | None = None
    batch: int = 10
    from_scratch: bool = False
    seed: int = 0
    learn: bool | None = None
    pool: int = POOL


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What came out for one task.

    Attributes:
        task: The task in words, with its sizes.
        share: Fraction of the run time that the plan's estimates give it.
        untuned_s: Seconds of the fastest schedule of the rules; infinite if none could be measured.
        tuned_s: Seconds of the fastest schedule known now; never more than ``untuned_s``.
        found_s: Seconds of the fastest schedule that the search measured itself (infinite if none).
        trials, errors: Schedules measured, and how many of them failed.
        error: Why the task could not be tuned, if so.
    """

    task: str
    share: float
    untuned_s: float
    tuned_s: float
    found_s: float
    trials: int
    errors: int
    error: str = ""

    @property
    def gain(self) -> float:
        """How many times faster."""
        return self.untuned_s / self.tuned_s if math.isfinite(self.untuned_s) else 1.0


@dataclass(frozen=True, slots=True)
class TuneReport:
    """What tuning gave: results of the tasks that were searched, the seconds it took, how it ended."""

    results: tuple[TaskResult, ...]
    trials: int
    seconds: float
    interrupted: bool = False


Progress = Callable[[TuneReport], None]


def tune(
    tasks: Sequence[TuningTask],
    database: Database,
    runner: Runner,
    options: TuneOptions | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Search for faster schedules; every outcome is in the database before the next one is waited for.

    Args:
        tasks: What to tune.
        database: Where records go.
        runner: Builds and measures.
        options: How to search.
        progress: Called after every trial.

    Returns:
        The report; also after Ctrl-C, with ``interrupted`` set.
    """
    return _Tuner(tasks, database, runner, options or TuneOptions(), progress).run()


class _Tuner:
    """One run of :func:`tune`."""

    def __init__(
        self,
        tasks: Sequence[TuningTask],
        database: Database,
        runner: Runner,
        options: TuneOptions,
        progress: Progress | None,
    ) -> None:
        self.searches: dict[int, TaskSearch] = {}
        self.finished: set[int] = set()
        self.tasks, self.database, self.runner = tasks, database, runner
        self.options, self.progress = options, progress
        self.start = time.monotonic()
        self.trials = 0
        self.check: Callable[[], None] = lambda: None

    def run(self) -> TuneReport:
        interrupted = False
        try:
            with _interrupts() as self.check:
                while (number := self._next()) is not None:
                    self._round(number)
                searched = [s for s in self.searches.values() if s.trials]
                for search in searched:
                    self._settle(search)
                self._sweep(searched)
        except KeyboardInterrupt:
            interrupted = True
        return self._report(interrupted)

    # ---------------------------------------------------------------------------------------- scheduling

    def _next(self) -> int | None:
        """The task that promises most per round; ``None`` at the end of trials, time or tasks."""
        limit = self.options.time_s
        if self.trials >= self.options.trials or (limit is not None and self._elapsed() >= limit):
            return None
        open_ = [k for k in range(len(self.tasks)) if k not in self.finished]
        return max(open_, key=self._promise, default=None)

    def _promise(self, number: int) -> float:
        """Share of the run time, times the gain to expect: the recent one, and hope that fades."""
        search = self.searches.get(number)
        rounds = max(0, len(search.history) - 1) if search is not None else 0
        gain = 0.0
        if search is not None and rounds:
            before = search.history[max(0, rounds - RECENT)]
            gain = 1.0 - search.best_s / before if math.isfinite(before) and before > 0 else 1.0
        return max(self.tasks[number].share, 1e-9) * (gain + HOPE / (1 + rounds))

    def _elapsed(self) -> float:
        return time.monotonic() - self.start

    # -------------------------------------------------------------------------------------------- rounds

    def _round(self, number: int) -> None:
        search = self.searches.get(number)
        if search is None:
            search = self.searches[number] = self._begin(number)
            if number in self.finished:
                return
        points = search.propose(min(self.options.batch, self.options.trials - self.trials))
        if not points:
            self.finished.add(number)
            return
        for point, outcome in self._measured(search, points):
            search.take(point, outcome)
            self.trials += 1
            if self.progress is not None:
                self.progress(self._report(False))
        search.end_round()

    def _begin(self, number: int) -> TaskSearch:
        """Start a task: measure what the rules propose; without that nothing can be compared."""
        rng = random.Random(f"{self.options.seed}-{self.tasks[number].label}")
        options = self.options
        search = TaskSearch(
            self.tasks[number], self.database, rng, options.from_scratch, options.learn, options.pool
        )
        search.begin(list(self._measured(search, search.first())))
        if not math.isfinite(search.untuned_s):
            self.finished.add(number)
        else:
            search.error = ""
        return search

    def _measured(self, search: TaskSearch, points: Sequence[Point]):
        """Outcomes as they come in, each in the database already."""
        for number, outcome in self.runner.run([search.trial(p) for p in points]):
            self.database.add(search.record(points[number], outcome))
            self.check()
            yield points[number], outcome

    def _settle(self, search: TaskSearch) -> None:
        """Measure the best ones and the rules' ones again, in turn: the fastest of many was also lucky."""
        points = search.finalists(FINALISTS)
        times: dict[int, list[Outcome]] = {k: [] for k in range(len(points))}
        for _ in range(FINAL_ROUNDS):
            for number, outcome in self.runner.run([search.trial(p) for p in points]):
                if outcome.time_s is not None:
                    times[number].append(outcome)
        final = []
        for number, outcomes in times.items():
            if outcomes:
                middle = statistics.median_low([o.time_s for o in outcomes if o.time_s is not None])
                chosen = next(o for o in outcomes if o.time_s == middle)
                self.database.add(search.record(points[number], chosen))
                final.append((points[number], middle))
        search.settle(final)

    def _sweep(self, searches: Sequence[TaskSearch]) -> None:
        """Measure what was found, and the rules' schedules, at other sizes: a plan compares them there."""
        groups: dict[str, list[TaskSearch]] = {}
        for search in searches:
            groups.setdefault(search.task.task.key, []).append(search)
        for group in groups.values():
            found = {p.text: p for s in group if (p := s.improvement) is not None}
            points = list((found | {p.text: p for p in group[0].first()}).values()) if found else []
            done = {s.task.sizes for s in group}
            for sizes in (x for x in group[0].task.other_sizes(SWEEP) if x not in done):
                for number, outcome in self.runner.run([group[0].trial(p, sizes) for p in points]):
                    self.database.add(group[0].record(points[number], outcome, sizes))

    # ------------------------------------------------------------------------------------------- results

    def _report(self, interrupted: bool) -> TuneReport:
        results = tuple(_result(self.searches[k]) for k in sorted(self.searches))
        return TuneReport(results, self.trials, self._elapsed(), interrupted)


@contextmanager
def _interrupts() -> Iterator[Callable[[], None]]:
    """Gives a function that raises ``KeyboardInterrupt`` if Ctrl-C was pressed and nothing came of it.

    The exception is lost where Python has nowhere to raise it: in a finaliser, in a callback from C.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield lambda: None  # signals are the main thread's, and a handler of the user's is theirs
        return
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, remember)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def _result(search: TaskSearch) -> TaskResult:
    return TaskResult(
        search.task.label,
        search.task.share,
        search.untuned_s,
        min(search.best_s, search.untuned_s),
        search.found_s,
        search.trials,
        search.errors,
        search.error,
    )
