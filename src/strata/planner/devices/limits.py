"""What a plan may not exceed, and how much of it a choice uses.

Every limit is of something that is linear in the choices and the moves they make; a plan meets a limit if it
uses no more than that, but for :data:`TOLERANCE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from strata.core.errors import UserError
from strata.graph.workload import ValueKind
from strata.target.hardware import Machine

from .types import StackedGraph, evaluate

TOLERANCE = 1e-8  # relative: more than the rounding of sums, less than anybody knows a cost


@dataclass(frozen=True, slots=True)
class Budget:
    """An amount that adds up over works, such as the accuracy lost by computing them on a device.

    Attributes:
        name: ``"accuracy loss"``.
        limit: What the sum may be.
        amounts: By (name of a work, name of a device); pairs without an entry are free.
        unit: Of the amounts.

    Raises:
        UserError: a negative amount or limit.
    """

    name: str
    limit: float
    amounts: Mapping[tuple[str, str], float]
    unit: str = ""

    def __post_init__(self) -> None:
        for where, amount in [
            ("limit", self.limit),
            *((f"{w} on {d}", a) for (w, d), a in self.amounts.items()),
        ]:
            if not amount >= 0:
                raise UserError(f"budget {self.name}: {where}: got {amount} {self.unit}; expected >= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a plan may not exceed at any point.

    Attributes:
        time_s: Time of a sequential run.
        energy_j: Energy.
        power_w: Energy divided by time of a sequential run.
        capacity: Whether weights, state and results must fit, see :func:`resident_bytes`. Where memories have
            no limit, they always do.
        budgets: Other sums.
        effort: Deterministic seconds of search for one optimum (no clock is read, so that the same call gives
            the same result).

    Raises:
        UserError: a number that is not > 0.
    """

    time_s: float | None = None
    energy_j: float | None = None
    power_w: float | None = None
    capacity: bool = True
    budgets: tuple[Budget, ...] = ()
    effort: float = 2.0

    def __post_init__(self) -> None:
        for name in ("time_s", "energy_j", "power_w", "effort"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"limits: {name}: got {value}; expected > 0")

    def check(self, graph: StackedGraph) -> None:
        """Refuse budgets of works and devices that there are none of.

        Raises:
            UserError: such a budget.
        """
        works = {work.name for work in graph.workload.works}
        for budget in self.budgets:
            for work, device in budget.amounts:
                graph.machine.device(device)
                if work not in works:
                    raise UserError(
                        f"budget {budget.name}: {graph.workload.name} has no work {work!r}; "
                        f"expected a name like {next(iter(sorted(works)))!r}"
                    )


@dataclass(frozen=True, slots=True)
class Use:
    """How much of a limit a plan uses: ``used`` f64 ``[P]``, and the ``limit``, in ``unit``."""

    name: str
    unit: str
    used: np.ndarray
    limit: float

    @property
    def exceeded(self) -> np.ndarray:
        """Bool ``[P]``: where it is too much."""
        return ~(self.used <= self.limit * (1 + TOLERANCE))


WITHIN_MEMORY = Limits()  # what fits the machine's memories


def uses(
    graph: StackedGraph, limits: Limits, choices: np.ndarray, times_s: np.ndarray, energies_j: np.ndarray
) -> tuple[Use, ...]:
    """What choices ``[W, P]`` of this time and energy use of each limit."""
    found: list[Use] = []
    if limits.time_s is not None:
        found.append(Use("time", "s", times_s, limits.time_s))
    if limits.energy_j is not None:
        found.append(Use("energy", "J", energies_j, limits.energy_j))
    if limits.power_w is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            power_w = np.where(energies_j == 0, 0.0, energies_j / times_s)
        found.append(Use("power", "W", power_w, limits.power_w))
    if limits.capacity:
        for memory, used in resident_bytes(graph, choices).items():
            found.append(Use(f"memory {memory}", "bytes", used, graph.machine.memory(memory).capacity_bytes))
    for budget in limits.budgets:
        used = np.zeros(graph.num_points)
        for work, k, amount in budget_amounts(graph, budget):
            used += np.where(choices[work] == k, amount, 0.0)
        found.append(Use(budget.name, budget.unit, used, budget.limit))
    return tuple(found)


def budget_amounts(graph: StackedGraph, budget: Budget) -> Iterator[tuple[int, int, float]]:
    """``(work, candidate, amount)`` wherever a budget is used."""
    for number, (work, stack) in enumerate(zip(graph.workload.works, graph.stacks, strict=True)):
        for k, candidate in enumerate(stack):
            if amount := budget.amounts.get((work.name, candidate.device), 0.0):
                yield number, k, amount


def backing(machine: Machine, memory: str) -> str:
    """The memory that at last takes what does not fit into ``memory``: its outermost parent."""
    while (parent := machine.memory(memory).parent) is not None:
        memory = parent
    return memory


def kept_values(graph: StackedGraph) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Weights and state, and at last what a run needs besides: ``(works that read it, bytes [P])``."""
    consumers = graph.workload.consumers()
    for number, value in enumerate(graph.workload.values):
        if value.kind in (ValueKind.WEIGHT, ValueKind.STATE):
            yield consumers.get(number, ()), _size(graph, number)
    yield (), passing_bytes(graph)


def passing_bytes(graph: StackedGraph) -> np.ndarray:
    """The most that inputs and results take at any time of a sequential run: bytes ``[P]``.

    A result is there from the work that makes it to the last one that reads it, an output to the end.
    """
    workload, consumers = graph.workload, graph.workload.consumers()
    alive, most = np.zeros(graph.num_points), np.zeros(graph.num_points)
    for number, value in enumerate(workload.values):
        if value.kind is ValueKind.INPUT:
            alive = alive + _size(graph, number)
    ends: dict[int, list[int]] = {}
    for number in workload.producers():
        if number not in workload.outputs:
            ends.setdefault(max(consumers.get(number, (-1,))), []).append(number)
    for k, work in enumerate(workload.works):
        for number in work.outputs:
            alive = alive + _size(graph, number)
        most = np.maximum(most, alive)
        for number in ends.get(k, ()):
            alive = alive - _size(graph, number)
    return most


def _size(graph: StackedGraph, number: int) -> np.ndarray:
    value = graph.workload.values[number]
    return evaluate(value.elems, graph.points) * (value.bits / 8)


def resident_bytes(graph: StackedGraph, choices: np.ndarray) -> dict[str, np.ndarray]:
    """What must fit into each memory of limited capacity that has no parent: bytes ``[P]``.

    A weight, or state such as the KV cache, is kept at home, and a copy of it wherever a work reads it on a
    device whose memory, or the outermost parent of it, is another one. Inputs and results count at home,
    wherever they are made: see :func:`passing_bytes`. Memories with a parent limit nothing: what does not
    fit is in the parent.
    """
    machine = graph.machine
    home = backing(machine, machine.home)
    found = {
        m.name: np.zeros(graph.num_points)
        for m in machine.memories
        if m.parent is None and np.isfinite(m.capacity_bytes)
    }
    for readers, size in kept_values(graph) if found else ():
        for memory, total in found.items():
            if memory == home:
                total += size
                continue
            mask = np.zeros(graph.num_points, bool)
            for work in readers:
                for k, candidate in enumerate(graph.stacks[work]):
                    if backing(machine, machine.device(candidate.device).memory) == memory:
                        mask |= choices[work] == k
            total += np.where(mask, size, 0.0)
    return found
