"""The search for a faster schedule of one task: evolution, guided by a model that learns on the way.

A round makes many schedules, by changes of the fastest ones so far and at random, ranks them by the model,
and measures the most promising ones and a few picked blindly. What was measured teaches the model.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from strata.schedule import Trace, parse_trace, trace_text

from .cost_model import CostModel
from .database import Database, Record, Sizes
from .problem import Outcome, Problem, Trial
from .space import Point, Space
from .tasks import TuningTask

POOL = 4  # schedules made per schedule measured: each takes some 10 ms
ELITE = 16  # schedules that are changed
BLIND = 0.15  # of the measured ones are picked at random
FRESH = 0.2  # of the pool are random schedules, more while little is known
MAX_RESUMED = 400  # records of earlier searches that are learned from
MAX_TRIES = 6  # draws per schedule of the pool


@dataclass(frozen=True, slots=True)
class Tried:
    """A measured schedule."""

    point: Point
    time_s: float


@dataclass
class TaskSearch:
    """State of the search for one task.

    Attributes:
        task: What is tuned.
        database: Where results go, and earlier ones come from.
        rng: Source of randomness.
        from_scratch: Start without the schedules of the rules and without earlier records.
        learn: Use a learned model.
        pool: Schedules made per schedule measured.
        untuned_s: Fastest time of the rules' schedules; infinite until it is measured.
        trials: Schedules measured so far.
        errors: How many of them failed.
        history: Best time after every round.
    """

    task: TuningTask
    database: Database
    rng: random.Random
    from_scratch: bool = False
    learn: bool | None = None
    pool: int = POOL
    untuned_s: float = math.inf
    trials: int = 0
    errors: int = 0
    history: list[float] = field(default_factory=list)
    error: str = ""

    def __post_init__(self) -> None:
        self.problem: Problem = self.task.problem()
        self.space = Space(self.task.naive, dict(self.task.sizes), self.task.task.target)
        self.model = CostModel(self.learn)
        self.best: list[Tried] = []  # fastest first
        self._seen: set[str] = set()
        self._untuned = self._untuned_points()

    def _untuned_points(self) -> list[Point]:
        points = (self.space.point(parse_trace(trace)) for _, trace, _ in self.task.untuned())
        return [p for p in points if p is not None]

    # --------------------------------------------------------------------------------------- beginning

    def first(self) -> list[Point]:
        """Schedules to measure before the search: those of the rules."""
        return self._untuned

    def begin(self, results: Sequence[tuple[Point, Outcome]]) -> None:
        """Take in the times of :meth:`first`, and earlier records unless from scratch."""
        for point, outcome in results:
            if outcome.time_s is None:
                self.error = outcome.error
                continue
            self.untuned_s = min(self.untuned_s, outcome.time_s)
            if not self.from_scratch:
                self._learn(point, outcome.time_s)
        if not self.from_scratch:
            self._resume()
        self.history.append(self.best_s)

    def _resume(self) -> None:
        """Learn from earlier records of this task at these sizes; the newest of a trace counts."""
        records = self.database.records(self.task.task.key)[-MAX_RESUMED:]
        newest = {r.trace: r for r in records if r.sizes == self.task.sizes}
        for record in newest.values():
            point = self.space.point(parse_trace(record.trace))
            if point is not None and point.text not in self._seen:
                self._learn(point, record.time_s)

    # ---------------------------------------------------------------------------------------- searching

    @property
    def best_s(self) -> float:
        """Fastest time so far, that of the rules included."""
        found = self.best[0].time_s if self.best else math.inf
        return min(found, self.untuned_s)

    @property
    def improvement(self) -> Point | None:
        """The fastest schedule, if it is none of the rules'."""
        if not self.best or self.best[0].point.text in {p.text for p in self._untuned}:
            return None
        return self.best[0].point if self.best[0].time_s < self.untuned_s else None

    @property
    def found_s(self) -> float:
        """Fastest time of what the search itself found (infinite if nothing)."""
        return self.best[0].time_s if self.best else math.inf

    def propose(self, count: int) -> list[Point]:
        """Up to ``count`` schedules to measure next; none if the space has nothing new."""
        if self.space.is_trivial:
            return []
        pool = self._pool(count * self.pool)
        if not pool:
            return []
        blind = min(len(pool), max(1, round(count * BLIND))) if self.best else 0
        scores = self.model.scores([p.row for p in pool])
        ranked = [p for _, p in sorted(zip(scores, pool, strict=True), key=lambda pair: pair[0])]
        chosen = ranked[: count - blind]
        rest = ranked[count - blind :]
        chosen += self.rng.sample(rest, min(blind, len(rest)))
        self._seen.update(p.text for p in chosen)
        return chosen

    def _pool(self, size: int) -> list[Point]:
        """New schedules: changes of the fastest ones, and random ones."""
        fresh = FRESH if self.best else 1.0
        pool: dict[str, Point] = {}
        for _ in range(size * MAX_TRIES):
            if len(pool) >= size:
                break
            if self.rng.random() < fresh:
                point = self.space.random(self.rng)
            else:
                point = self.space.changed(self._parent(), self.rng)
            if point is not None and point.text not in self._seen:
                pool.setdefault(point.text, point)
        return list(pool.values())

    def _parent(self) -> Trace:
        """One of the fastest schedules, the faster the likelier."""
        elite = self.best[:ELITE]
        weights = [elite[0].time_s / t.time_s / (1 + 0.2 * k) for k, t in enumerate(elite)]
        return self.rng.choices(elite, weights)[0].point.trace

    def trial(self, point: Point, sizes: Sizes = ()) -> Trial:
        """The trial of a schedule, at ``sizes`` (default: the task's)."""
        if sizes:
            return Trial(replace(self.problem, sizes=sizes), point.text)
        return Trial(self.problem, point.text, self.best_s)

    def record(self, point: Point, outcome: Outcome, sizes: Sizes = ()) -> Record:
        """The record of an outcome."""
        task = self.task
        return Record(
            task.task.key,
            trace_text(point.trace),
            sizes or task.sizes,
            outcome.time_s,
            outcome.samples,
            outcome.spread_s,
            task.num_threads,
            outcome.error,
            task.name,
            task.task.target.features,
        )

    def take(self, point: Point, outcome: Outcome) -> None:
        """Learn from the outcome of a trial."""
        self.trials += 1
        self.errors += outcome.time_s is None
        self._learn(point, outcome.time_s)

    def end_round(self) -> None:
        """Remember how good the best schedule is now."""
        self.history.append(self.best_s)

    def _learn(self, point: Point, time_s: float | None) -> None:
        self._seen.add(point.text)
        self.model.add(point.row, time_s)
        if time_s is not None:
            self.best.append(Tried(point, time_s))
            self.best.sort(key=lambda t: t.time_s)

    # ------------------------------------------------------------------------------------------- ending

    def finalists(self, count: int) -> list[Point]:
        """The fastest schedules found and those of the rules: they are measured once more, side by side."""
        fastest = {t.point.text: t.point for t in self.best[:count]}
        return list((fastest | {p.text: p for p in self._untuned}).values())

    def settle(self, times: Sequence[tuple[Point, float]]) -> None:
        """Replace the times of the finalists by their final ones."""
        untuned = {p.text for p in self._untuned}
        final = {p.text: t for p, t in times}
        self.untuned_s = min((t for p, t in times if p.text in untuned), default=self.untuned_s)
        kept = [t for t in self.best if t.point.text in final]
        self.best = (
            sorted((Tried(t.point, final[t.point.text]) for t in kept), key=lambda t: t.time_s) or self.best
        )
