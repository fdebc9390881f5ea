"""Plans of models for machines that need not exist: what ``strata.plan`` and ``strata.thresholds`` are.

::

    machine = strata.Machine([strata.CPU(clock_hz=3.2e9), strata.PHU(clock_hz=9.7e9, multiplex=20)])
    plan = strata.plan("llama-2-7b", machine, objective="energy", seq_len=1400)
    print(plan.energy_j, plan.devices)

Every call starts from nothing: model, machine and choices of one call never matter to the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from strata.core.errors import UserError
from strata.graph.workload import Workload
from strata.graph.works import LENGTH, Phase
from strata.models.workload import Granularity
from strata.planner.devices.build import Rules, stacked_graph
from strata.planner.devices.limits import WITHIN_MEMORY, Limits
from strata.planner.devices.objective import Objective, parse_objective
from strata.planner.devices.request import RequestPlan, solve_request
from strata.planner.devices.result import MachinePlan
from strata.planner.devices.solve import solve
from strata.planner.devices.types import Points
from strata.planner.profiles import PROFILES
from strata.planner.thresholds import MAX_LENGTH, Threshold
from strata.planner.thresholds import thresholds as workload_thresholds
from strata.target.hardware import CostFunction, Machine
from strata.target.hardware.read import read_machine

from .workloads import Model, WorkloadOptions, read_workload

Lengths = int | str | range | Sequence[int] | np.ndarray
REQUEST = "request"
MAX_LENGTHS = 1 << 20


def plan(
    model: Model,
    machine: Machine | str | Path,
    objective: Objective | str = "energy",
    *,
    seq_len: Lengths | None = None,
    phase: Phase | str = Phase.PREFILL,
    new_tokens: int | None = None,
    pins: Mapping[str, str] | None = None,
    allowed: Mapping[str, Sequence[str]] | None = None,
    devices: Sequence[str] | None = None,
    costs: Sequence[CostFunction] = (),
    limits: Limits = WITHIN_MEMORY,
    **options: Any,
) -> MachinePlan | RequestPlan:
    """Choose the device of every op of a model so that a run costs least: exactly, with the proof.

    Args:
        model: Model folder, ``config.json``, hub id, name of a shape, graph-executor JSON, graph, workload.
        machine: A machine, its name (``strata machines``), or a TOML or Python file.
        objective: ``"time"``, ``"energy"``, ``"edp"``, ``"makespan"``, or a sum like ``"0.5*time+2*energy"``.
        seq_len: Tokens per sequence: a number, or several for a plan at each (``range(1, 4097)``,
            ``"1..4096"``). In decode: tokens in the KV cache before the new one; in a request: the prompt.
        phase: ``"prefill"``, ``"decode"`` or ``"request"``.
        new_tokens: Tokens after the prompt; makes the plan one of a request.
        pins: Device of ops, by a pattern of their name or op: ``{"lm_head": "gpu"}``.
        allowed: Devices that ops may run on, by a pattern: ``{"softmax": ("cpu", "gpu")}``.
        devices: Devices that may be used at all; ``None`` = every one.
        costs: Functions decorated with ``strata.op_cost``, which come before what the machine says.
        limits: What a run may not exceed: time, energy, power, memories, other budgets. Of a request, each
            of its runs.
        options: Fields of :class:`~strata.compiler.workloads.WorkloadOptions`: ``batch``, ``format``,
            ``kv_dtype``, ``activations``, ``granularity``, ``max_context``, ``traced_len``.

    Raises:
        UserError: something cannot be read, an op that no device can do, a rule that fits nothing, a length
            outside the model, or no plan within the limits.
        UnsupportedError: an architecture that Strata lacks.
    """
    found, goal = machine_of(machine).with_costs(costs), parse_objective(objective)
    known = workload_options(options, found)
    rules = _rules(pins, allowed, devices)
    if phase == REQUEST or new_tokens is not None:
        if phase not in (REQUEST, Phase.PREFILL, Phase.PREFILL.value):
            raise UserError(f"plan: got new_tokens and phase {Phase(phase).value}; expected phase request")
        return _request(model, found, goal, rules, seq_len, new_tokens, limits, known)
    workload = read_workload(model, phase, known)
    return solve(stacked_graph(workload, found, points_of(workload, seq_len, phase), rules), goal, limits)


def thresholds(
    model: Model,
    machine: Machine | str | Path,
    objective: Objective | str = "energy",
    *,
    seq_len: str | range = range(1, MAX_LENGTH + 1),
    phase: Phase | str = Phase.PREFILL,
    pins: Mapping[str, str] | None = None,
    allowed: Mapping[str, Sequence[str]] | None = None,
    devices: Sequence[str] | None = None,
    costs: Sequence[CostFunction] = (),
    **options: Any,
) -> tuple[Threshold, ...]:
    """The exact lengths at which the best plan of a model changes, and what changes there.

    Lengths beyond what the model was made for are looked at too: they ask what a longer one would cost.

    Args:
        model: As for :func:`plan`.
        machine: As for :func:`plan`.
        objective: ``"time"``, ``"energy"`` or a sum of both.
        seq_len: Range of lengths: ``range(1, 4097)`` or ``"1..4096"``.
        phase: ``"prefill"`` or ``"decode"``.
        pins: As for :func:`plan`.
        allowed: As for :func:`plan`.
        devices: As for :func:`plan`.
        costs: As for :func:`plan`.
        options: As for :func:`plan`.

    Raises:
        UserError: as for :func:`plan`, or the objective is no sum.
        UnsupportedError: an architecture that Strata lacks.
    """
    found, lengths = machine_of(machine).with_costs(costs), lengths_of(seq_len)
    lo, hi = int(lengths[0]), int(lengths[-1])
    if len(lengths) != hi - lo + 1:
        raise UserError(f"thresholds: got the lengths {seq_len!r:.60}; expected all of a range LO..HI")
    workload = read_workload(model, phase, workload_options(options, found))
    dims = tuple(replace(d, hi=max(d.hi, hi)) if d.name == LENGTH else d for d in workload.dims)
    workload = replace(workload, dims=dims)
    rules = _rules(pins, allowed, devices)
    return workload_thresholds(workload, found, objective, lo, hi, rules=rules)


def _rules(
    pins: Mapping[str, str] | None,
    allowed: Mapping[str, Sequence[str]] | None,
    devices: Sequence[str] | None,
) -> Rules:
    return Rules(allowed or {}, pins or {}, None if devices is None else tuple(devices))


def _request(
    model: Model,
    machine: Machine,
    objective: Objective,
    rules: Rules,
    prompt: Lengths | None,
    new_tokens: int | None,
    limits: Limits,
    options: WorkloadOptions,
) -> RequestPlan:
    if not isinstance(prompt, int | str) or len(lengths_of(prompt)) != 1:
        raise UserError(f"plan: got a prompt of {prompt!r:.40} tokens; expected one number")
    count, new = int(lengths_of(prompt)[0]), 0 if new_tokens is None else new_tokens
    if not 0 <= new <= MAX_LENGTHS:
        raise UserError(f"plan: got {new} new tokens; expected 0..{MAX_LENGTHS}")
    workload = read_workload(model, Phase.PREFILL, options)
    prefill = stacked_graph(workload, machine, points_of(workload, count), rules)
    decode = None
    if new:
        workload = read_workload(model, Phase.DECODE, options)
        points = points_of(workload, range(count, count + new), Phase.DECODE)
        decode = stacked_graph(workload, machine, points, rules)
    return solve_request(prefill, decode, objective, count, options.batch, limits)


def points_of(workload: Workload, seq_len: Lengths | None, phase: Phase | str = Phase.PREFILL) -> Points:
    """The settings of the one symbolic size of a workload.

    Raises:
        UserError: no length although sizes depend on one, or the other way round, or lengths outside the
            model.
    """
    if not workload.dims:
        if seq_len is not None:
            raise UserError(f"{workload.name}: got a length; all its sizes are fixed: leave the length out")
        return {}
    names = ", ".join(d.name for d in workload.dims)
    if len(workload.dims) > 1:
        raise UserError(f"{workload.name}: its sizes depend on {names}; expected one symbolic size")
    if seq_len is None:
        raise UserError(
            f"{workload.name}: its sizes depend on {names}; say how long a sequence is: "
            "--seq-len (in Python seq_len)"
        )
    dim, lengths = next(iter(workload.dims)), lengths_of(seq_len)
    low, high = int(lengths.min()), int(lengths.max())
    if low < dim.lo or high > dim.hi:
        got = str(low) if low == high else f"{low}..{high}"
        beyond = ""
        if high > dim.hi:
            context = high + (Phase(phase) is Phase.DECODE)  # the token that is decoded has a place too
            beyond = (
                f"; to ask what a longer model would cost, add --max-context {context} "
                f"(in Python max_context={context})"
            )
        raise UserError(
            f"{workload.name}: got a length of {got}, outside the model; expected {dim.lo}..{dim.hi}{beyond}"
        )
    return {dim.name: lengths}


def lengths_of(lengths: Lengths) -> np.ndarray:
    """Lengths as i64 ``[P]``: of a number, of numbers, or of ``"1..4096"`` and ``"128,256"``.

    Raises:
        UserError: none, too many, or something else.
    """
    if isinstance(lengths, str):
        lengths = _parse_lengths(lengths)
    if isinstance(lengths, int | np.integer):
        lengths = (int(lengths),)
    if not 1 <= len(lengths) <= MAX_LENGTHS:
        raise UserError(f"seq_len: got {len(lengths)} lengths; expected 1..{MAX_LENGTHS}")
    found = np.asarray(lengths)
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UserError(f"seq_len: got {lengths!r:.60}; expected whole numbers")
    return found.astype(np.int64)


def _parse_lengths(text: str) -> Sequence[int]:
    """``"128"``, ``"1..4096"``, ``"128,256,512"``."""
    low, dots, high = text.partition("..")
    parts = [low, high] if dots else text.split(",")
    if not all(p.strip().isascii() and p.strip().isdigit() and len(p.strip()) < 10 for p in parts):
        raise UserError(f"seq_len: got {text!r:.60}; expected a number, LO..HI, or numbers with commas")
    numbers = [int(p) for p in parts]
    return range(numbers[0], numbers[1] + 1) if dots else numbers


def machine_of(machine: Machine | str | Path) -> Machine:
    """A machine, or the one of a name or file.

    Raises:
        UserError: no such machine or file.
    """
    return machine if isinstance(machine, Machine) else read_machine(machine)


def workload_options(options: Mapping[str, Any], machine: Machine) -> WorkloadOptions:
    """Options by name; works are as large as the machine's costs expect them, unless an option says.

    Raises:
        UserError: there is none of a name.
    """
    names = [f.name for f in fields(WorkloadOptions)]
    if unknown := [name for name in options if name not in names]:
        raise UserError(f"plan: no option {unknown[0]!r}; it has {', '.join(names)}")
    granularity = Granularity(PROFILES[machine.profile].granularity)
    return replace(WorkloadOptions(granularity=granularity), **options)
