"""A plan for a machine: which candidate computes each work at each point, and what the run then costs.

:func:`charges` and :func:`totals` are the definition of the cost of a choice; every solver is tested against
them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .objective import Objective
from .types import Estimates, StackedGraph, Transfer


@dataclass(frozen=True, slots=True)
class Charge:
    """A move that a run makes.

    Attributes:
        transfer: What is moved.
        origin, to: Places: memories, or devices where the profile tells them apart.
        consumers: Works on whose behalf: all that read it there at some point, or one if it is not shared.
        estimates: Cost of one move.
        mask: bool ``[P]``: the points at which it is made.
    """

    transfer: Transfer
    origin: str
    to: str
    consumers: tuple[int, ...]
    estimates: Estimates
    mask: np.ndarray


def places(graph: StackedGraph, transfer: Transfer, work: int, choices: np.ndarray) -> dict[str, np.ndarray]:
    """By the name of each place, at which points ``work`` reads or leaves its values there: bool ``[P]``."""
    found: dict[str, np.ndarray] = {}
    for k, candidate in enumerate(graph.stacks[work]):
        name = candidate.device if transfer.by_device else candidate.memory
        here = choices[work] == k
        found[name] = found[name] | here if name in found else here
    return found


def charges(graph: StackedGraph, choices: np.ndarray) -> Iterator[Charge]:
    """The moves that the choices ``[W, P]`` make at some point."""
    for transfer in graph.transfers:
        if transfer.producer is None:
            origins = {graph.machine.home: np.ones(graph.num_points, bool)}
        else:
            origins = places(graph, transfer, transfer.producer, choices)
        at = {k: places(graph, transfer, k, choices) for k in transfer.consumers}
        for (source, to), estimates in transfer.costs.items():
            origin = origins.get(source)
            if origin is None or not origin.any():
                continue
            masks = {k: origin & where[to] for k, where in at.items() if to in where}
            masks = {k: mask for k, mask in masks.items() if mask.any()}
            if masks and transfer.shared:
                mask = np.logical_or.reduce(list(masks.values()))
                yield Charge(transfer, source, to, tuple(masks), estimates, mask)
            else:
                for k, mask in masks.items():
                    yield Charge(transfer, source, to, (k,), estimates, mask)


def totals(graph: StackedGraph, choices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Time of a sequential run and energy of the choices ``[W, P]``: f64 ``[P]`` each."""
    time_s, energy_j = np.zeros(graph.num_points), np.zeros(graph.num_points)

    def add(estimates: Estimates, mask: np.ndarray) -> None:
        nonlocal time_s, energy_j
        if mask.all():
            time_s += estimates.time_s
            energy_j += estimates.energy_j
        elif mask.any():
            time_s += np.where(mask, estimates.time_s, 0.0)
            energy_j += np.where(mask, estimates.energy_j, 0.0)

    for stack, chosen in zip(graph.stacks, choices, strict=True):
        for k, candidate in enumerate(stack):
            add(candidate.estimates, chosen == k)
    for charge in charges(graph, choices):
        add(charge.estimates, charge.mask)
    return time_s, energy_j


@dataclass(frozen=True, slots=True)
class Slot:
    """One entry of an execution order: a work or a move, in time.

    Attributes:
        work: Number of the work, or ``None`` for a move.
        value: Number of the value that is moved, or ``None`` for a work.
        place: Device, or ``"a->b"`` for a move.
        core: Which of the device's cores, from 0; 0 too for a candidate that takes the whole device.
        begin_s, end_s: When.
    """

    work: int | None
    value: int | None
    place: str
    core: int
    begin_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """How much of a model a device computes: ``ops``, of these ``matmuls``, its busy time and energy."""

    ops: int
    matmuls: int
    time_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class MachinePlan:
    """A choice for every work and point, with its cost.

    Attributes:
        graph: What was chosen from.
        objective: What was minimised.
        choices: i16 ``[W, P]``: number of the chosen candidate in each stack.
        times_s: f64 ``[P]``: of a sequential run; for ``makespan`` of the execution order.
        energies_j: f64 ``[P]``.
        values: f64 ``[P]``: the objective.
        bounds: f64 ``[P]``: no plan has a lower value.
        orders: Execution order at each point, for ``makespan``; else empty.
    """

    graph: StackedGraph
    objective: Objective
    choices: np.ndarray
    times_s: np.ndarray
    energies_j: np.ndarray
    values: np.ndarray
    bounds: np.ndarray
    orders: tuple[tuple[Slot, ...], ...] = ()

    def device_of(self, work: int, point: int = 0) -> str:
        """Device that computes a work at a point."""
        return self.graph.stacks[work][self.choices[work, point]].device

    def loads(self, point: int = 0) -> dict[str, DeviceLoad]:
        """Per device of the machine, in its order, what it computes at a point."""
        found = {d.name: [0, 0, 0.0, 0.0] for d in self.graph.machine.devices}
        for work, stack, chosen in zip(
            self.graph.workload.works, self.graph.stacks, self.choices[:, point], strict=True
        ):
            candidate = stack[chosen]
            entry = found[candidate.device]
            entry[0] += 1
            entry[1] += work.contraction is not None
            entry[2] += float(candidate.estimates.time_s[point])
            entry[3] += float(candidate.estimates.energy_j[point])
        return {name: DeviceLoad(int(e[0]), int(e[1]), e[2], e[3]) for name, e in found.items()}

    def gap(self, point: int = 0) -> float:
        """How far the plan may be from the best one, relative to its bound; 0 = proven best."""
        bound = float(self.bounds[point])
        return (float(self.values[point]) - bound) / bound if bound > 0 else 0.0

    # --- the plan at a single point, as most people want it ---------------------------------------

    @property
    def time_s(self) -> float:
        """Time at the first point."""
        return float(self.times_s[0])

    @property
    def energy_j(self) -> float:
        """Energy at the first point."""
        return float(self.energies_j[0])

    @property
    def lower_bound(self) -> float:
        """Bound of the objective at the first point."""
        return float(self.bounds[0])

    @property
    def devices(self) -> dict[str, DeviceLoad]:
        """Loads at the first point."""
        return self.loads(0)
