"""What a report shows, as plain data: taken from plans, drawn by ``figures``, printed as JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from strata.planner.devices.result import MachinePlan, Slot, charges
from strata.planner.devices.types import Cause, StackedGraph, evaluate

MOVES = "moves"  # stands for an op where values are moved


@dataclass(frozen=True, slots=True)
class Spent:
    """Time and energy of works of one op on one device for one cause, at the point that the report is for.

    Attributes:
        op, device: Of the works; for moves ``"moves"`` and ``"from -> to"``.
        cause: One of :class:`~strata.planner.devices.types.Cause`.
        place: Part of the machine.
        time_s: Sum over works of the time that this would take alone.
        energy_j: Sum over works.
    """

    op: str
    device: str
    cause: str
    place: str
    time_s: float
    energy_j: float


@dataclass(frozen=True, slots=True)
class Placed:
    """One work of the plan.

    Attributes:
        name: Of the work.
        role: Its name without the number of its layer: equal in all layers.
        layer: Number of its layer, or ``None``.
        op, device: What and where.
        time_s, energy_j: Of the chosen candidate.
        flop, bytes: Its work: every operand and result touched once.
        is_product: Whether it is a matrix product.
    """

    name: str
    role: str
    layer: int | None
    op: str
    device: str
    time_s: float
    energy_j: float
    flop: float
    bytes: float
    is_product: bool


@dataclass(frozen=True, slots=True)
class Curve:
    """An objective over the points: of the plan, or of the same model with all it can on one device."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """A length at which the best plan changes, and what changes."""

    length: int
    text: str


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Bytes that are alive in a memory over time: ``times_s[i]`` is when ``bytes[i]`` begins."""

    memory: str
    times_s: tuple[float, ...]
    bytes: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What every report says.

    Attributes:
        title: Model, and function.
        machine, about: The machine.
        objective: What was minimised.
        time_s, energy_j, value, bound, gap: Of the plan.
    """

    title: str
    machine: str
    about: str
    objective: str
    time_s: float
    energy_j: float
    value: float
    bound: float
    gap: float

    def to_json(self) -> dict[str, Any]:
        """Everything, as JSON can say it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PlanReport(Report):
    """A plan; its time, energy and bound are those at ``length``.

    Attributes:
        dim: Name of the symbolic dim that changes over the points.
        lengths: Its values at the points.
        length: The one that the report is for.
        devices: Names, in the machine's order.
        works: The plan.
        spent: Where time and energy go.
        curves: Objective over the lengths.
        marks: Thresholds.
        slots: Execution order.
        occupancy: Of every memory.
        spent_j: ``(time_s, J)``: energy spent so far, linear between two entries.
        front: ``(time_s, energy_j)`` of the Pareto front.
    """

    dim: str
    lengths: tuple[int, ...]
    length: int
    devices: tuple[str, ...]
    works: tuple[Placed, ...]
    spent: tuple[Spent, ...]
    curves: tuple[Curve, ...]
    marks: tuple[Mark, ...] = ()
    slots: tuple[Slot, ...] = ()
    occupancy: tuple[Occupancy, ...] = ()
    spent_j: tuple[tuple[float, float], ...] = ()
    front: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class RequestReport(Report):
    """A whole request, the run over the prompt and those of the new tokens; of all of them together.

    Attributes:
        prompt, new_tokens, batch: The request.
        phases: Prefill and, if there are new tokens, decode, shown for the last one of them.
        times_s, energies_j: Of all runs of each phase.
    """

    prompt: int
    new_tokens: int
    batch: int
    phases: tuple[PlanReport, ...]
    times_s: tuple[float, ...]
    energies_j: tuple[float, ...]


def works_of(plan: MachinePlan, point: int) -> tuple[Placed, ...]:
    """Every work with its device and cost at a point."""
    graph, found = plan.graph, []
    at = {name: values[point : point + 1] for name, values in graph.points.items()}
    for number, work in enumerate(graph.workload.works):
        candidate = graph.stacks[number][plan.choices[number, point]]
        values = graph.workload.values
        touched = sum(
            float(evaluate(reads, at)[0]) * values[k].bits / 8
            for k, reads in zip(work.inputs, work.reads, strict=True)
        ) + sum(float(evaluate(values[k].elems, at)[0]) * values[k].bits / 8 for k in work.outputs)
        found.append(
            Placed(
                work.name,
                role_of(work.name, work.layer),
                work.layer,
                work.op,
                candidate.device,
                float(candidate.estimates.time_s[point]),
                float(candidate.estimates.energy_j[point]),
                float(evaluate(work.flop, at)[0]),
                touched,
                work.contraction is not None,
            )
        )
    return tuple(found)


def role_of(name: str, layer: int | None) -> str:
    """``"layers.3.mlp.up_proj"`` -> ``"mlp.up_proj"``: what works of different layers have in common."""
    if layer is None:
        return name
    return re.sub(rf"^.*?\b{layer}\b[._]?", "", name, count=1) or name


def spent_of(plan: MachinePlan, point: int) -> tuple[Spent, ...]:
    """Time and energy by op, device and cause at a point, moves included; the largest energy first."""
    sums: dict[tuple[str, str, str, str], np.ndarray] = {}

    def add(op: str, device: str, cause: Cause, place: str, time_s: float, energy_j: float) -> None:
        entry = sums.setdefault((op, device, cause.value, place), np.zeros(2))
        entry += (time_s, energy_j)

    graph = plan.graph
    for number, work in enumerate(graph.workload.works):
        candidate = graph.stacks[number][plan.choices[number, point]]
        for t in candidate.estimates.terms:
            add(work.op, candidate.device, t.cause, t.place, float(t.time_s[point]), float(t.energy_j[point]))
    for charge in charges(graph, plan.choices):
        if charge.mask[point]:
            where = f"{charge.origin} -> {charge.to}"
            for t in charge.estimates.terms:
                add(MOVES, where, t.cause, t.place, float(t.time_s[point]), float(t.energy_j[point]))
    found = [Spent(*key, float(s[0]), float(s[1])) for key, s in sums.items()]
    return tuple(sorted(found, key=lambda s: -s.energy_j))


def on_one_device(graph: StackedGraph, device: str) -> StackedGraph:
    """The graph with no other choice where ``device`` can do a work."""
    stacks = []
    for stack in graph.stacks:
        mine = tuple(c for c in stack if c.device == device)
        stacks.append(mine or stack)
    return replace(graph, stacks=tuple(stacks))


def report_of(
    plan: MachinePlan, point: int, baselines: Sequence[tuple[str, MachinePlan]] = (), **more: Any
) -> PlanReport:
    """The report of a plan at a point.

    Args:
        plan: At one or several points.
        point: The one that details are for.
        baselines: Other plans of the same points, by name.
        more: Further fields of :class:`PlanReport`: ``marks``, ``slots``, ``occupancy``, ...
    """
    graph = plan.graph
    dim = varied_dim(graph)
    lengths = graph.points[dim] if dim else np.ones(1, np.int64)
    curves = [Curve(f"plan ({plan.objective.text})", tuple(map(float, plan.values)))]
    curves += [Curve(name, tuple(map(float, other.values))) for name, other in baselines]
    return PlanReport(
        title=graph.workload.name,
        machine=graph.machine.name,
        about=graph.machine.about,
        objective=plan.objective.text,
        dim=dim,
        lengths=tuple(int(n) for n in lengths),
        length=int(lengths[point]),
        time_s=float(plan.times_s[point]),
        energy_j=float(plan.energies_j[point]),
        value=float(plan.values[point]),
        bound=float(plan.bounds[point]),
        gap=plan.gap(point),
        devices=tuple(d.name for d in graph.machine.devices),
        works=works_of(plan, point),
        spent=spent_of(plan, point),
        curves=tuple(curves),
        **more,
    )


def varied_dim(graph: StackedGraph) -> str:
    """The dim that differs between the points; the first one if none does."""
    for name, values in graph.points.items():
        if values.min() != values.max():
            return name
    return next(iter(graph.points), "")
