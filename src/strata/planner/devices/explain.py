"""Why a candidate was chosen: all candidates of a work with terms and moves, and the plans that they make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from strata.core.errors import UserError
from strata.graph.workload import Work

from .build import fits
from .result import Charge, MachinePlan, charges, totals
from .types import DeviceCandidate, StackedGraph


@dataclass(frozen=True, slots=True)
class Offer:
    """One candidate, in the company of all other choices of the plan.

    Attributes:
        candidate: The candidate; its estimates are of one point.
        moves: What is moved for its operands and its results.
        time_s, energy_j: Of the whole run with this candidate, all else as planned.
        value: The objective of that run; for ``makespan`` the time of one op after the other.
        is_chosen: Whether the plan has it.
    """

    candidate: DeviceCandidate
    moves: tuple[Charge, ...]
    time_s: float
    energy_j: float
    value: float
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """All candidates of a work at one point, in the order of its stack.

    Attributes:
        work: Which work.
        alike: Works with the same candidates and the same choice, this one first: other layers, mostly.
        offers: Its candidates.
    """

    work: Work
    alike: tuple[Work, ...]
    offers: tuple[Offer, ...]

    @property
    def chosen(self) -> Offer:
        """The candidate that the plan has."""
        return next(o for o in self.offers if o.is_chosen)


def explain(plan: MachinePlan, pattern: str, point: int = 0) -> tuple[Explanation, ...]:
    """The works whose name or op fits ``pattern``, those with equal candidates and choices together.

    Raises:
        UserError: there are none.
    """
    graph = plan.graph.at(np.array([point]))
    choices = plan.choices[:, point : point + 1]
    found: dict[tuple[int, int], list[int]] = {}
    for k, work in enumerate(graph.workload.works):
        if fits(work, pattern):
            found.setdefault((id(graph.stacks[k]), int(choices[k, 0])), []).append(k)
    if not found:
        names = ", ".join(w.name for w in graph.workload.works[:6])
        raise UserError(f"explain: {pattern!r} fits no op of {graph.workload.name}; it has {names}, ...")
    return tuple(_explain(plan, graph, choices, numbers) for numbers in found.values())


def _explain(
    plan: MachinePlan, graph: StackedGraph, choices: np.ndarray, numbers: Sequence[int]
) -> Explanation:
    work, offers = numbers[0], []
    for k, candidate in enumerate(graph.stacks[work]):
        changed = choices.copy()
        changed[work] = k
        time_s, energy_j = totals(graph, changed)
        moves = tuple(
            c for c in charges(graph, changed) if work == c.transfer.producer or work in c.consumers
        )
        value = float(plan.objective.value(time_s, energy_j)[0])
        is_chosen = k == int(choices[work, 0])
        offers.append(Offer(candidate, moves, float(time_s[0]), float(energy_j[0]), value, is_chosen))
    works = graph.workload.works
    return Explanation(works[work], tuple(works[n] for n in numbers), tuple(offers))
