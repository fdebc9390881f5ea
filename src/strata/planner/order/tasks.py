"""The stacked graph at one point as bare numbers, and what the choices make of it: tasks on resources.

::

    Instance ::= cores of each device, options of each work, works that each work waits for, hauls
    Option   ::= device, one core or the whole device, places, seconds
    Haul     ::= a value that may have to move: its places, seconds and links by (from, to)
    Tasks    ::= works 0..W-1, then the moves that the choices make; each with seconds and resources

**Resources.** A device does one work at a time: estimates are those of the whole device. Only a candidate
that is ``per_core`` takes a single core. A move takes every link that its estimates name (a term of cause
LINK that takes time), in either direction, from its beginning to its end; a move whose estimates name none is
a delay, and any number of them may pass at once. What takes no time occupies nothing. Values at home can be
moved from the beginning on. A move is a task of its own: neither its producer's device nor its consumer's
waits for it while it does other work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from strata.planner.devices.types import Cause, Estimates, StackedGraph

Choices = Sequence[int] | np.ndarray


@dataclass(frozen=True, slots=True)
class Option:
    """A candidate at the point.

    Attributes:
        device: Number of the device.
        per_core: Takes one core, not all.
        memory, device_name: Its place, as transfers name it.
        time_s: How long it takes.
    """

    device: int
    per_core: bool
    memory: str
    device_name: str
    time_s: float


@dataclass(frozen=True, slots=True)
class Haul:
    """A transfer at the point.

    Attributes:
        value: Number of the value.
        producer: Work that makes it, or ``None``: it is at home from the start.
        consumers: Works that read it.
        shared: Moved once per place; else once per consumer.
        origins: Where it is, by the option of the producer; one entry for a value at home.
        targets: Where it is read, by consumer and its option.
        costs: ``(from, to, seconds, links)`` of the moves that it may make.
    """

    value: int
    producer: int | None
    consumers: tuple[int, ...]
    shared: bool
    origins: tuple[str, ...]
    targets: tuple[tuple[str, ...], ...]
    costs: tuple[tuple[str, str, float, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Instance:
    """A stacked graph at one point. Equal instances are the same problem, whatever they were cut from.

    Attributes:
        cores: Of each device.
        options: Of each work.
        needs: Works whose values each work reads, ascending.
        hauls: What may have to move.
    """

    cores: tuple[int, ...]
    options: tuple[tuple[Option, ...], ...]
    needs: tuple[tuple[int, ...], ...]
    hauls: tuple[Haul, ...]

    @property
    def links(self) -> tuple[str, ...]:
        """Links that moves take, sorted."""
        return tuple(sorted({k for haul in self.hauls for *_, links in haul.costs for k in links}))


def instance_of(graph: StackedGraph, point: int) -> Instance:
    """``graph`` at one point."""
    numbers = {d.name: k for k, d in enumerate(graph.machine.devices)}
    known: dict[int, tuple[Option, ...]] = {}  # equal works share their stack

    def options(stack: tuple) -> tuple[Option, ...]:
        if id(stack) not in known:
            known[id(stack)] = tuple(
                Option(numbers[c.device], c.per_core, c.memory, c.device, float(c.estimates.time_s[point]))
                for c in stack
            )
        return known[id(stack)]

    stacks = tuple(options(stack) for stack in graph.stacks)
    producers = graph.workload.producers()
    needs = tuple(
        tuple(sorted({producers[v] for v in work.inputs if v in producers})) for work in graph.workload.works
    )
    hauls: list[Haul] = []
    for t in graph.transfers:

        def names(work: int, by_device: bool = t.by_device) -> tuple[str, ...]:
            return tuple(c.device_name if by_device else c.memory for c in stacks[work])

        origins = (graph.machine.home,) if t.producer is None else names(t.producer)
        costs = tuple(
            (*ends, float(estimates.time_s[point]), links_of(estimates, point))
            for ends, estimates in sorted(t.costs.items())
        )
        targets = tuple(names(k) for k in t.consumers)
        hauls.append(Haul(t.value, t.producer, t.consumers, t.shared, origins, targets, costs))
    return Instance(tuple(d.cores for d in graph.machine.devices), stacks, needs, tuple(hauls))


def links_of(estimates: Estimates, point: int) -> tuple[str, ...]:
    """Links that a move with these estimates takes at a point, sorted."""
    return tuple(sorted({t.place for t in estimates.terms if t.cause is Cause.LINK and t.time_s[point] > 0}))


@dataclass(frozen=True, slots=True)
class Move:
    """A move that the choices make: of ``haul``, ``value`` from ``origin`` to ``to`` for ``consumers``."""

    haul: int
    value: int
    origin: str
    to: str
    producer: int | None
    consumers: tuple[int, ...]
    time_s: float
    links: tuple[str, ...]


def moves_of(instance: Instance, choices: Choices) -> Iterator[Move]:
    """The moves that the choices ``[W]`` make, in the order of the hauls."""
    for number, haul in enumerate(instance.hauls):
        origin = haul.origins[0 if haul.producer is None else choices[haul.producer]]
        at = [t[choices[k]] for k, t in zip(haul.consumers, haul.targets, strict=True)]
        for source, to, time_s, links in haul.costs:
            if source != origin or to not in at:
                continue
            there = tuple(k for k, place in zip(haul.consumers, at, strict=True) if place == to)
            for group in [there] if haul.shared else [(k,) for k in there]:
                yield Move(number, haul.value, source, to, haul.producer, group, time_s, links)


@dataclass(frozen=True, slots=True)
class Tasks:
    """Works and moves with all that their order depends on; task ``k < W`` is work ``k``.

    Attributes:
        cores: Capacity of each resource: devices, then links (1 each).
        times_s: Of each task.
        uses: Resources of each task; empty if it takes no time, or a move without links.
        one_core: Whether a task takes one unit of its resource instead of all.
        before: Tasks that each task waits for.
        after: Tasks that wait for it.
        ranks: Position of each task in an order in which none precedes what it waits for.
        moves: Task ``W + k`` is ``moves[k]``.
    """

    cores: tuple[int, ...]
    times_s: list[float]
    uses: list[tuple[int, ...]]
    one_core: list[bool]
    before: list[list[int]]
    after: list[list[int]]
    ranks: list[tuple[float, int]]
    moves: tuple[Move, ...]

    def __len__(self) -> int:
        return len(self.times_s)


def tasks_of(instance: Instance, choices: Choices) -> Tasks:
    """The tasks that the choices ``[W]`` make."""
    chosen = [options[c] for options, c in zip(instance.options, choices, strict=True)]
    times_s = [o.time_s for o in chosen]
    uses: list[tuple[int, ...]] = [(o.device,) if o.time_s > 0 else () for o in chosen]
    one_core = [o.per_core for o in chosen]
    before = [list(needs) for needs in instance.needs]
    ranks: list[tuple[float, int]] = [(float(k), 0) for k in range(len(chosen))]
    links = {name: len(instance.cores) + k for k, name in enumerate(instance.links)}
    moves = tuple(moves_of(instance, choices))
    for number, move in enumerate(moves, start=len(chosen)):
        times_s.append(move.time_s)
        uses.append(tuple(links[k] for k in move.links) if move.time_s > 0 else ())
        one_core.append(False)
        before.append([] if move.producer is None else [move.producer])
        ranks.append((min(move.consumers) - 0.5, number))
        for consumer in move.consumers:
            before[consumer].append(number)
    after: list[list[int]] = [[] for _ in times_s]
    for task, earlier in enumerate(before):
        for k in earlier:
            after[k].append(task)
    cores = instance.cores + (1,) * len(links)
    return Tasks(cores, times_s, uses, one_core, before, after, ranks, moves)
