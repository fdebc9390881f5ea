"""Groups in which one op is computed by foreign code: what user kernels and libraries have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from strata.graph.nodes import Node
from strata.loop.nodes import Func
from strata.lower import Emit, lower_group
from strata.planner.cost import loop_estimate, with_call
from strata.planner.types import Estimate, Origin
from strata.runtime.records import DimRange
from strata.schedule import propose

from .base import Model, Offer, Task

Cost = Callable[[int], Estimate]  # value of the task's rows -> cost of the foreign code alone


def replaced_offers(
    task: Task,
    name: str,
    origin: Origin,
    emits: Iterable[tuple[Node, Emit]],
    cost: Cost | None,
    when: tuple[DimRange, ...] = (),
) -> list[Offer]:
    """The group with some of its nodes computed by foreign code, the rest as always; none if nothing fits.

    Args:
        task: The group.
        name: Of the candidate.
        origin: Where it comes from.
        emits: For each node that is replaced, what computes it.
        cost: Modelled cost of the foreign code; ``None`` = unknown.
        when: Sizes for which it is correct.
    """
    chosen = list(emits)
    replace = {id(node): emit for node, emit in chosen}
    tiled = {id(task.body.inputs[number]) for number in task.layouts}
    if not replace or any(id(i) in tiled for node, _ in chosen for i in node.inputs):
        return []  # foreign code takes matrices as they are in the graph
    lowered = lower_group("naive", task.body, task.layouts, replace)
    if lowered.bindings != task.lowered.bindings:
        return []  # it would be called in another way than the other candidates
    func = propose(lowered.func, task.target)[-1].func
    model = None if cost is None else _model(task, func, cost)
    return [Offer(name, func, "", origin, model, when)]


def _model(task: Task, func: Func, cost: Cost) -> Model:
    """Cost of the foreign code plus that of the loops around it."""
    return lambda size: with_call(loop_estimate(task, func, size), cost(size))
