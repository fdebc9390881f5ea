"""What a machine makes of a workload: with light, without, and with all products on the photonic unit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from strata.graph.workload import Workload
from strata.planner.devices.build import stacked_graph
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.result import MachinePlan
from strata.planner.devices.solve import solve
from strata.planner.devices.types import StackedGraph
from strata.target.hardware import PHU, Machine

# Of two devices that take the same energy, the faster one: a second counts as much as a microjoule.
ENERGY, TIME = parse_objective("energy+1e-6*time"), parse_objective("time")


@dataclass(frozen=True, slots=True)
class Outcome:
    """Plans of one workload at several lengths.

    Attributes:
        electronic: Least energy without the photonic unit.
        best: Least energy with it.
        fastest: Least time with it.
        photonic: Least energy with every product that the photonic unit can do on it.
    """

    electronic: MachinePlan
    best: MachinePlan
    fastest: MachinePlan
    photonic: MachinePlan

    @property
    def saving(self) -> np.ndarray:
        """Of energy by the best plan, ``[P]``; never below 0."""
        return 1 - self.best.energies_j / self.electronic.energies_j

    @property
    def forced_saving(self) -> np.ndarray:
        """Of energy with all products on the photonic unit, ``[P]``; negative where that costs more."""
        return 1 - self.photonic.energies_j / self.electronic.energies_j

    @property
    def slowdown(self) -> np.ndarray:
        """Time with all products on the photonic unit over that of electronics alone, ``[P]``."""
        return self.photonic.times_s / self.electronic.times_s

    def num_photonic(self, plan: MachinePlan, point: int) -> int:
        """Works of a plan that run on photonic units."""
        names = photonic_devices(plan.graph.machine)
        return sum(load.ops for name, load in plan.loads(point).items() if name in names)


def photonic_devices(machine: Machine) -> tuple[str, ...]:
    """Names of the photonic units."""
    return tuple(d.name for d in machine.devices if isinstance(d, PHU))


def outcome(workload: Workload, machine: Machine, lengths: list[int]) -> Outcome:
    """All plans of ``workload`` at ``lengths``, exact."""
    points = {d.name: np.array(lengths) for d in workload.dims}
    graph = stacked_graph(workload, machine, points)
    rest = replace(machine, devices=[d for d in machine.devices if not isinstance(d, PHU)])
    return Outcome(
        solve(stacked_graph(workload, rest, points), ENERGY),
        solve(graph, ENERGY),
        solve(graph, TIME),
        solve(all_photonic(graph), ENERGY),
    )


def saving_at(workload: Workload, machine: Machine, length: int, electronic_j: float) -> float:
    """Saving of the best plan at one length against a known energy of electronics alone."""
    points = {d.name: np.array([length]) for d in workload.dims}
    return float(1 - solve(stacked_graph(workload, machine, points), ENERGY).energies_j[0] / electronic_j)


def works_apart(a: MachinePlan, b: MachinePlan, point: int) -> int:
    """Products that two plans put on different devices."""
    products = [k for k, work in enumerate(a.graph.workload.works) if work.contraction is not None]
    return sum(a.device_of(k, point) != b.device_of(k, point) for k in products)


def all_photonic(graph: StackedGraph) -> StackedGraph:
    """The graph in which a photonic unit does all that it can."""
    names = photonic_devices(graph.machine)
    stacks = [tuple(c for c in stack if c.device in names) or stack for stack in graph.stacks]
    return replace(graph, stacks=tuple(stacks))


def eight_bit(workload: Workload) -> Workload:
    """The workload with every number in one byte, as LightCode has it."""
    return replace(workload, values=tuple(replace(v, bits=min(v.bits, 8.0)) for v in workload.values))
