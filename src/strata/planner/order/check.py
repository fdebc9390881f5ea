"""Whether an execution order is legal: the definition that every order is tested against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

from strata.core.errors import VerifyError
from strata.planner.devices.result import Slot
from strata.planner.devices.types import Estimates, StackedGraph, Transfer

from .tasks import Choices, links_of

TOLERANCE = 1e-9  # of the makespan: what rounding of sums may come to


def validate_order(graph: StackedGraph, choices: Choices, slots: Sequence[Slot], point: int) -> None:
    """Refuse an order that is no execution of the choices ``[W]`` at a point.

    Legal: every work once, on its device, for as long as estimated; every move that the choices make, once;
    nothing before what it needs is there; one work at a time per device, or per core where the candidates
    take one; one move at a time per link.

    Raises:
        VerifyError: the order is not legal; names the slots.
    """
    _Checker(graph, choices, slots, point).run()


class _Checker:
    def __init__(self, graph: StackedGraph, choices: Choices, slots: Sequence[Slot], point: int) -> None:
        self.graph, self.choices, self.slots, self.point = graph, choices, slots, point
        self.slack_s = TOLERANCE * max((s.end_s for s in slots), default=0.0)
        self.chosen = [stack[c] for stack, c in zip(graph.stacks, choices, strict=True)]
        self.of_work = {s.work: s for s in slots if s.work is not None}

    def run(self) -> None:
        self._works()
        self._precedence()
        lanes: dict[object, list[Slot]] = {}
        for slot in self.slots:
            if slot.work is not None and slot.end_s > slot.begin_s:
                candidate, device = self.chosen[slot.work], self.graph.machine.device(slot.place)
                for core in [slot.core] if candidate.per_core else range(device.cores):
                    lanes.setdefault((f"device {slot.place}, core", core), []).append(slot)
        pending: dict[tuple[int, str], list[Slot]] = {}
        for slot in self.slots:
            if slot.value is not None:
                pending.setdefault((slot.value, slot.place), []).append(slot)
        for transfer in self.graph.transfers:
            for links, slot in self._moves(transfer, pending):
                for link in links if slot.end_s > slot.begin_s else ():
                    lanes.setdefault(("link", link), []).append(slot)
        if left := [s for found in pending.values() for s in found]:
            raise VerifyError(f"order: {self._text(left[0])}: the plan makes no such move")
        for lane, found in lanes.items():
            self._no_overlap(lane, found)

    def _works(self) -> None:
        if sorted(s.work for s in self.slots if s.work is not None) != list(range(len(self.chosen))):
            raise VerifyError(f"order: expected each of {len(self.chosen)} works once; some miss or repeat")
        for work, candidate in enumerate(self.chosen):
            slot = self.of_work[work]
            if slot.place != candidate.device:
                raise VerifyError(f"order: {self._text(slot)}: the plan runs it on {candidate.device}")
            if not 0 <= slot.core < self.graph.machine.device(slot.place).cores:
                raise VerifyError(f"order: {self._text(slot)}: there is no core {slot.core}")
            self._duration(slot, candidate.estimates)

    def _duration(self, slot: Slot, estimates: Estimates) -> None:
        expected_s = float(estimates.time_s[self.point])
        if slot.begin_s < -self.slack_s or abs(slot.end_s - slot.begin_s - expected_s) > self.slack_s:
            raise VerifyError(f"order: {self._text(slot)}: expected {expected_s} s, from 0 on")

    def _precedence(self) -> None:
        producers = self.graph.workload.producers()
        for k, work in enumerate(self.graph.workload.works):
            for value in work.inputs:
                if value in producers:
                    self._follows(self.of_work[producers[value]], self.of_work[k])

    def _follows(self, first: Slot, then: Slot) -> None:
        if then.begin_s < first.end_s - self.slack_s:
            raise VerifyError(f"order: {self._text(then)}: begins before {self._text(first)}, which it needs")

    def _moves(
        self, transfer: Transfer, pending: dict[tuple[int, str], list[Slot]]
    ) -> Iterable[tuple[tuple[str, ...], Slot]]:
        """Slots of a transfer's moves with the links that they take; takes them from ``pending``."""
        makes = transfer.producer
        origin = self.graph.machine.home if makes is None else self._place(transfer, makes)
        readers: dict[str, list[int]] = {}
        for k in transfer.consumers:
            readers.setdefault(self._place(transfer, k), []).append(k)
        for to, works in readers.items():
            estimates = transfer.costs.get((origin, to))
            if estimates is None:
                continue
            works.sort(key=lambda k: self.of_work[k].begin_s)
            groups = [works] if transfer.shared else [[k] for k in works]
            name = f"{origin}->{to}"
            slots = sorted(pending.pop((transfer.value, name), []), key=lambda s: s.end_s)
            if len(slots) != len(groups):
                value = self.graph.workload.values[transfer.value].name
                raise VerifyError(f"order: {value} {name}: got {len(slots)} moves; expected {len(groups)}")
            for slot, group in zip(slots, groups, strict=True):
                self._duration(slot, estimates)
                if makes is not None:
                    self._follows(self.of_work[makes], slot)
                self._follows(slot, self.of_work[group[0]])
                yield links_of(estimates, self.point), slot

    def _place(self, transfer: Transfer, work: int) -> str:
        candidate = self.chosen[work]
        return candidate.device if transfer.by_device else candidate.memory

    def _no_overlap(self, lane: object, slots: list[Slot]) -> None:
        slots.sort(key=lambda s: (s.begin_s, s.end_s))
        for first, then in pairwise(slots):
            if then.begin_s < first.end_s - self.slack_s:
                raise VerifyError(f"order: {self._text(first)} and {self._text(then)} overlap on {lane}")

    def _text(self, slot: Slot) -> str:
        graph = self.graph.workload
        what = graph.values[slot.value].name if slot.value is not None else graph.works[slot.work or 0].name
        return f"{what} ({slot.place} {slot.begin_s:.6g}..{slot.end_s:.6g} s)"
