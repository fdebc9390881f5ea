"""The plan for a calibrated machine as the dispatch table of a compiled model.

Candidates of such a machine are this computer's kernels, so the ranges of lengths in which each of them is
the best one (:func:`strata.planner.thresholds.plan_ranges`) say what a compiled model has to launch::

    strata.thresholds("path/to/model", "this", "time")    # where kernels change, and which
    strata.load("path/to/model", machine="this")          # a model that changes them there
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from strata.core.errors import UserError
from strata.graph.nodes import Function
from strata.graph.workload import Workload
from strata.graph.works import LENGTH, Phase
from strata.models import ModelConfig
from strata.models.workload import Granularity, model_workload
from strata.planner.assemble import launch_names, launch_nodes
from strata.planner.devices.objective import Objective
from strata.planner.options import Pin
from strata.planner.profiles.fitted import rows_of
from strata.planner.thresholds import PlanRanges, plan_ranges
from strata.target.hardware import Machine

from .api import Options, define, format_of
from .driver import trace
from .machine_plan import machine_of

FITTED = "fitted"  # the profile of machines that were measured


def for_machine(
    config: ModelConfig,
    options: Options,
    machine: Machine | str | Path,
    objective: Objective | str = "time",
    name: str = "model",
) -> Options:
    """``options`` with the kernels that a plan for ``machine`` chooses, by number of rows; own pins go first.

    Gates stay launches of their own, as in the plan.

    Args:
        config: The model.
        options: How it is compiled.
        machine: Of ``strata calibrate``: itself, its name (``"this"``) or file.
        objective: A sum of time and energy.
        name: Of the model, for messages.

    Raises:
        UserError: the machine's candidates are no kernels, another objective, or a pipeline whose launches
            are not those of the plan.
    """
    found = machine_of(machine)
    if found.profile != FITTED:
        raise UserError(
            f"machine {found.name}: its profile is {found.profile}, whose candidates are no kernels; "
            f"expected one that strata calibrate measured, such as 'this'"
        )
    workload = model_workload(
        config,
        Phase.PREFILL,
        1,
        format_of(config, options),
        kv_dtype=options.kv_dtype,
        granularity=Granularity.KERNELS,
        max_context=options.max_context,
        name=name,
    )
    most = max(options.prefill_chunk, options.max_batch)
    ranges = plan_ranges(workload, found, objective, 1, min(most, *(d.hi for d in workload.dims)))
    names = launch_names(launch_nodes(_prefill(config, options)))
    if len(names) != len(workload.works):
        raise UserError(
            f"machine {found.name}: got {len(names)} launches of {name}; expected the {len(workload.works)} "
            f"of the default pipeline; compile without a machine, or without pipeline {options.passes}"
        )
    pins = tuple(pin for k, launch in enumerate(names) for pin in _pins(workload, ranges, k, launch))
    plan = replace(options.plan, pins=(*options.plan.pins, *pins), join_gates=False)
    return replace(options, plan=plan)


def _prefill(config: ModelConfig, options: Options) -> Function:
    definition = define(config, options)
    traced = trace(definition.module, None, definition.cache_record, definition.config)
    return traced.lower(options.passes).module[Phase.PREFILL.value]


def _pins(workload: Workload, ranges: PlanRanges, work: int, launch: str) -> Iterable[Pin]:
    """What the plan says of a launch whose rows are the tokens of a pass."""
    stack = ranges.stacks[work]
    rows = rows_of(workload, workload.works[work])
    if len(stack) < 2 or str(rows) != LENGTH:
        return
    lo = ranges.starts[0]
    for choice in ranges.dispatch(work):
        hi = choice.when[0].hi if choice.when else ranges.hi
        yield Pin(launch, stack[choice.candidate][1], (lo, hi))
        lo = hi + 1
