"""Candidates on devices and what they cost, at many points at once.

A *point* is one setting of the symbolic dims (a length, a context); every cost is an array over the
points, ``[P]``, so that one pass over the graph plans for all of them: exactly, at one length or at
131072.

::

    StackedGraph ::= workload, machine, points, a Stack per work, a Transfer per value that may have to move
    Stack        ::= DeviceCandidate+                 what may compute a work
    DeviceCandidate ::= name, device, Estimates       time and energy, [P], with their terms
    Transfer     ::= value, producer, consumers, Estimates by (from memory, to memory)

A work's operands come from its device's memory; the transfers bring them there. A transfer that is *shared*
is charged once per memory that needs the value, however many works read it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import reduce
from typing import Literal

import numpy as np

from strata.core.dims import Dim
from strata.core.dims import evaluate as evaluate_dim
from strata.graph.workload import Workload
from strata.target.hardware import Machine

Points = Mapping[str, np.ndarray]  # i64 [P] by the name of a symbolic dim


class Cause(Enum):
    """What time and energy go into."""

    COMPUTE = "compute"
    MEMORY = "memory"  # reads and writes of a memory
    LINK = "link"  # between memories
    CONVERSION = "conversion"  # DACs and ADCs
    PROGRAM = "program"  # loading weights into an analog array
    LAUNCH = "launch"
    STATIC = "static"  # power that flows whatever happens


@dataclass(frozen=True, slots=True)
class Term:
    """One reason for time or energy.

    Attributes:
        cause: Which one.
        place: Part of the machine: ``"phu.adc"``, ``"hbm"``.
        time_s: f64 ``[P]``: how long it would take alone.
        energy_j: f64 ``[P]``.
        amount: f64 ``[P]``: how many ``unit``.
        unit: ``"byte"``, ``"MAC"``, ``"sample"``, ``"cycle"``, ...
    """

    cause: Cause
    place: str
    time_s: np.ndarray
    energy_j: np.ndarray
    amount: np.ndarray
    unit: str


@dataclass(frozen=True, slots=True)
class Estimates:
    """Cost of a candidate or a transfer at all points.

    Attributes:
        time_s: f64 ``[P]``. With overlap it is less than the sum over the terms.
        energy_j: f64 ``[P]``: the sum over the terms.
        terms: What it is made of.
        source: Where it comes from.
    """

    time_s: np.ndarray
    energy_j: np.ndarray
    terms: tuple[Term, ...] = ()
    source: Literal["model", "measured", "published"] = "model"

    @staticmethod
    def of(
        terms: Iterable[Term],
        *,
        overlapped: bool,
        source: Literal["model", "measured", "published"] = "model",
    ) -> Estimates:
        """Terms one after the other, or (``overlapped``) all at once: the slowest one decides.

        Launch and programming never overlap.
        """
        terms = tuple(terms)
        zero = np.zeros_like(terms[0].time_s)
        apart = (Cause.LAUNCH, Cause.PROGRAM)
        together = [t.time_s for t in terms if t.cause not in apart]
        time_s = sum((t.time_s for t in terms if t.cause in apart), zero)
        if together:
            time_s = time_s + (reduce(np.maximum, together) if overlapped else sum(together, zero))
        return Estimates(time_s, sum((t.energy_j for t in terms), zero), terms, source)

    def at(self, numbers: np.ndarray, *, terms: bool = True) -> Estimates:
        """At some of the points, by their numbers i64 ``[Q]``; without ``terms`` if they are not needed."""
        kept = self.terms if terms else ()
        return Estimates(
            _picked(self.time_s, numbers),
            _picked(self.energy_j, numbers),
            tuple(
                replace(
                    t,
                    time_s=_picked(t.time_s, numbers),
                    energy_j=_picked(t.energy_j, numbers),
                    amount=_picked(t.amount, numbers),
                )
                for t in kept
            ),
            self.source,
        )

    def plus(self, other: Estimates) -> Estimates:
        """Both, one after the other."""
        return Estimates(
            self.time_s + other.time_s, self.energy_j + other.energy_j, self.terms + other.terms, self.source
        )


def _picked(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """``values[numbers]``; a constant stays one number in memory."""
    if values.strides == (0,):
        return np.broadcast_to(values[:1], numbers.shape)
    return values[numbers]


@dataclass(frozen=True, slots=True)
class DeviceCandidate:
    """One way to compute a work.

    Attributes:
        name: ``"phu.matmul"``; unique within its stack.
        device: Name of the machine's device.
        memory: Name of the memory where it finds its operands and leaves its results.
        estimates: Cost.
        per_core: Whether the estimates are those of one of the device's cores, so that others can work beside
            it. Otherwise they are those of the whole device, which then does nothing else meanwhile.
    """

    name: str
    device: str
    memory: str
    estimates: Estimates
    per_core: bool = False


@dataclass(frozen=True, slots=True)
class Transfer:
    """What it costs to bring a value to where it is read.

    Attributes:
        value: Number of the value in the workload.
        producer: Number of the work that makes it, ``None`` for inputs, weights and state, which are at the
            machine's ``home``.
        consumers: Numbers of the works that read it.
        costs: Estimates by (from, to): names of memories, or of devices if the profile tells them apart
            (``by_device``). Pairs without an entry cost nothing.
        shared: Charged once per place that needs the value; otherwise once per consumer.
        by_device: Places are devices, not memories.
    """

    value: int
    producer: int | None
    consumers: tuple[int, ...]
    costs: Mapping[tuple[str, str], Estimates]
    shared: bool = True
    by_device: bool = False


@dataclass(frozen=True, slots=True)
class StackedGraph:
    """A workload with all ways to compute it on a machine.

    Attributes:
        workload: The works.
        machine: The machine.
        points: The settings of the dims; arrays of one length.
        stacks: Candidates of each work, in the order of ``workload.works``; never empty.
        transfers: What moving values costs; values that never have to move are left out.
    """

    workload: Workload
    machine: Machine
    points: Points
    stacks: tuple[tuple[DeviceCandidate, ...], ...]
    transfers: tuple[Transfer, ...] = field(default=())

    @property
    def num_points(self) -> int:
        """P."""
        return len(next(iter(self.points.values()))) if self.points else 1

    def at(self, numbers: np.ndarray, *, terms: bool = True) -> StackedGraph:
        """The same graph at some of its points. What was one object stays one object.

        Args:
            numbers: i64 ``[Q]``: numbers of points, in any order, possibly repeated.
            terms: Whether estimates keep their terms; totals do not need them.
        """
        known: dict[int, Estimates] = {}

        def picked(estimates: Estimates) -> Estimates:
            if id(estimates) not in known:
                known[id(estimates)] = estimates.at(numbers, terms=terms)
            return known[id(estimates)]

        return self.with_estimates(picked, {name: v[numbers] for name, v in self.points.items()})

    def with_estimates(self, other: Callable[[Estimates], Estimates], points: Points) -> StackedGraph:
        """The same structure at other points. What was one object stays one object.

        Args:
            other: What stands for each estimates; asked once per stack or transfer that has them.
            points: The points of these.
        """
        stacks: dict[int, tuple[DeviceCandidate, ...]] = {}
        for stack in self.stacks:
            if id(stack) not in stacks:
                stacks[id(stack)] = tuple([replace(c, estimates=other(c.estimates)) for c in stack])
        costs: dict[int, dict[tuple[str, str], Estimates]] = {}
        for t in self.transfers:
            if id(t.costs) not in costs:
                costs[id(t.costs)] = {pair: other(e) for pair, e in t.costs.items()}
        return replace(
            self,
            points=points,
            stacks=tuple([stacks[id(stack)] for stack in self.stacks]),
            transfers=tuple([replace(t, costs=costs[id(t.costs)]) for t in self.transfers]),
        )


def evaluate(dim: Dim, points: Points) -> np.ndarray:
    """Value of ``dim`` at all points, f64 ``[P]``.

    Raises:
        ShapeError: a symbol has no value in ``points``.
    """
    num_points = len(next(iter(points.values()))) if points else 1
    floats = {name: np.asarray(values, np.float64) for name, values in points.items()}
    found = np.asarray(evaluate_dim(dim, floats), np.float64)  # type: ignore[arg-type]
    return found if found.ndim else np.broadcast_to(found, (num_points,))
