"""Build the stacked graph of a workload on a machine: candidates by the profile, transfers between places."""

from __future__ import annotations

import fnmatch
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from strata.core.errors import UserError
from strata.graph.workload import Work, Workload
from strata.planner.profiles.base import PROFILES, CostProfile
from strata.target.hardware import Machine

from .types import Cause, DeviceCandidate, Estimates, Points, StackedGraph, Term, Transfer


@dataclass(frozen=True, slots=True)
class Rules:
    """What the user forbids.

    Attributes:
        allowed: Devices that works may run on, by a pattern of their name or op (``{"softmax": ("cpu",)}``).
        pinned: The device of works, by a pattern of their name or op: ``{"lm_head": "gpu"}``.
        only: Devices that may be used at all; ``None`` = every one.
    """

    allowed: Mapping[str, Sequence[str]] = field(default_factory=dict)
    pinned: Mapping[str, str] = field(default_factory=dict)
    only: tuple[str, ...] | None = None

    @property
    def is_free(self) -> bool:
        """Whether nothing is forbidden."""
        return self.only is None and not self.allowed and not self.pinned

    def permits(self, work: Work, device: str) -> bool:
        """Whether ``work`` may run on ``device``."""
        if self.only is not None and device not in self.only:
            return False
        rules = [(p, tuple(d)) for p, d in self.allowed.items()] + [(p, (d,)) for p, d in self.pinned.items()]
        return all(device in devices for pattern, devices in rules if fits(work, pattern))

    def check(self, workload: Workload, machine: Machine) -> None:
        """Refuse devices that there are none of and patterns that fit nothing.

        Raises:
            UserError: one of them.
        """
        rules = [(p, tuple(d)) for p, d in self.allowed.items()] + [(p, (d,)) for p, d in self.pinned.items()]
        for device in (d for _, devices in rules for d in devices):
            machine.device(device)
        for device in self.only or ():
            machine.device(device)
        for pattern, _ in rules:
            if not any(fits(work, pattern) for work in workload.works):
                ops = ", ".join(sorted({w.op for w in workload.works}))
                raise UserError(f"plan: {pattern!r} fits no op of {workload.name}; it has the ops {ops}")


class Outline:
    """What of a workload is the same on every machine: which works and values are equal, who makes what.

    Attributes:
        workload: Of which.
        kinds: A number per work; equal works (one layer and the next) have the same.
        value_kinds: A number per value, likewise.
        producers, consumers: As of the workload.
    """

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        numbers: dict[Hashable, int] = {}
        self.value_kinds = tuple(
            [numbers.setdefault((v.shape, v.bits, v.kind), len(numbers)) for v in workload.values]
        )
        numbers = {}
        self.kinds = tuple([numbers.setdefault(self._key(work), len(numbers)) for work in workload.works])
        self.producers, self.consumers = workload.producers(), workload.consumers()

    def _key(self, work: Work) -> Hashable:
        return (
            work.op,
            work.reads,
            work.flop,
            work.contraction,
            tuple([self.value_kinds[k] for k in (*work.inputs, *work.outputs)]),
            tuple([self.workload.is_first_reader(work, k) for k in work.inputs]),
        )


def stacked_graph(
    workload: Workload,
    machine: Machine,
    points: Points,
    rules: Rules | None = None,
    outline: Outline | None = None,
) -> StackedGraph:
    """All candidates of all works of ``workload`` on ``machine``, and what moving their values costs.

    Equal works (one layer and the next) share their candidates, transfers their costs: the same objects.

    Args:
        workload: The works.
        machine: The machine.
        points: The settings of the dims.
        rules: What is forbidden.
        outline: Of the workload, if it is known from another machine.

    Raises:
        UserError: a work that no device can do, or that ``rules`` leave no device for; a length outside the
            range that the workload allows.
    """
    rules = rules or Rules()
    rules.check(workload, machine)
    _check_points(workload, points)
    builder = _Builder(outline or Outline(workload), machine, points, PROFILES[machine.profile])
    stacks = builder.stacks(rules)
    return StackedGraph(workload, machine, points, stacks, tuple(builder.transfers(stacks)))


Stack = tuple[DeviceCandidate, ...]


class _Builder:
    """What is shared while one graph is built."""

    def __init__(self, outline: Outline, machine: Machine, points: Points, profile: CostProfile) -> None:
        self.outline, self.machine, self.points, self.profile = outline, machine, points, profile
        self.workload = outline.workload
        self.known_moves: dict[tuple[int, str | None, str], Estimates | None] = {}

    def stacks(self, rules: Rules) -> tuple[Stack, ...]:
        known: dict[int, Stack] = {}
        found: list[Stack] = []
        for kind, work in zip(self.outline.kinds, self.workload.works, strict=True):
            if kind not in known:
                known[kind] = self._candidates(work)
            offered = known[kind]
            if rules.is_free and offered:
                found.append(offered)
                continue
            permitted = tuple([c for c in offered if rules.permits(work, c.device)])
            if not permitted:
                self._refuse(work, offered)
            found.append(offered if permitted == offered else permitted)
        return tuple(found)

    def _candidates(self, work: Work) -> Stack:
        found = self.profile.candidates(self.machine, self.workload, work, self.points)
        return tuple(replace(c, estimates=self._with_static(c.estimates)) for c in found)

    def _refuse(self, work: Work, offered: tuple[DeviceCandidate, ...]) -> None:
        devices = ", ".join(f"{d.name} ({d.kind})" for d in self.machine.devices)
        if offered:
            able = ", ".join(sorted({c.device for c in offered}))
            raise UserError(
                f"{work.name}: {work.op}: the rules leave no device; {able} could do it; allow one of them"
            )
        raise UserError(
            f"{work.name}: no device of machine {self.machine.name} can do the op {work.op!r}; "
            f"it has {devices}; add a device that can, or a cost function for it (strata.op_cost)"
        )

    def _with_static(self, estimates: Estimates) -> Estimates:
        """Energy that the whole machine draws meanwhile."""
        if not self.machine.static_w:
            return estimates
        energy_j = estimates.time_s * self.machine.static_w
        term = Term(Cause.STATIC, "machine", np.zeros_like(energy_j), energy_j, estimates.time_s, "second")
        return replace(estimates, energy_j=estimates.energy_j + energy_j, terms=(*estimates.terms, term))

    def transfers(self, stacks: tuple[Stack, ...]) -> Iterable[Transfer]:
        """One per value that has to move between some places; no other moves are costed."""
        places = {id(stack): self._places(stack) for stack in stacks}
        known: dict[Hashable, dict[tuple[str, str], Estimates]] = {}
        for number, consumers in self.outline.consumers.items():
            producer = self.outline.producers.get(number)
            origins = None if producer is None else places[id(stacks[producer])]
            ends = frozenset([places[id(stacks[k])] for k in consumers])
            kind = self.outline.value_kinds[number]
            costs = known.get((kind, origins, ends))
            if costs is None:
                costs = known[kind, origins, ends] = self._costs(number, origins, frozenset().union(*ends))
            if costs:
                yield Transfer(
                    number, producer, consumers, costs, self.profile.shared, self.profile.by_device
                )

    def _costs(
        self, number: int, origins: frozenset[str] | None, places: frozenset[str]
    ) -> dict[tuple[str, str], Estimates]:
        """Costs of moving a value, by places."""
        costs: dict[tuple[str, str], Estimates] = {}
        for origin in (None,) if origins is None else sorted(origins):
            for to in sorted(places):
                estimates = self._move(number, origin, to)
                if estimates is not None:
                    costs[origin or self.machine.home, to] = estimates
        return costs

    def _places(self, stack: Stack) -> frozenset[str]:
        return frozenset([c.device if self.profile.by_device else c.memory for c in stack])

    def _move(self, number: int, origin: str | None, to: str) -> Estimates | None:
        key = (self.outline.value_kinds[number], origin, to)
        if key not in self.known_moves:
            value = self.workload.values[number]
            found = self.profile.move(self.machine, value, origin, to, self.points)
            self.known_moves[key] = None if found is None else self._with_static(found)
        return self.known_moves[key]


def fits(work: Work, pattern: str) -> bool:
    """Whether a pattern means ``work``: one of its name, or its op."""
    return fnmatch.fnmatchcase(work.name, pattern) or work.op == pattern


def _check_points(workload: Workload, points: Points) -> None:
    for dim in workload.dims:
        if dim.name not in points:
            raise UserError(f"{workload.name}: got no value for {dim.name}; expected {dim.lo}..{dim.hi}")
        values = points[dim.name]
        if len(values) == 0 or values.min() < dim.lo or values.max() > dim.hi:
            got = f"{values.min()}..{values.max()}" if len(values) else "none"
            raise UserError(f"{workload.name}: {dim.name}: got {got}; expected {dim.lo}..{dim.hi}")
