"""Small stacked graphs for tests of execution orders, and their best order by brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np

from strata.graph.workload import Value, ValueKind, Work, Workload
from strata.planner.devices.types import (
    Cause,
    DeviceCandidate,
    Estimates,
    StackedGraph,
    Term,
    Transfer,
)
from strata.planner.order.listing import place
from strata.planner.order.tasks import Tasks, instance_of, tasks_of
from strata.target.hardware import CPU, Machine, Memory


def machine(num_devices: int, cores: int = 1, static_w: float = 0.0) -> Machine:
    """Devices ``d0``, ``d1``, ... each with a memory ``m0``, ``m1``, ...; home is ``m0``."""
    memories = [
        Memory(
            name=f"m{k}",
            capacity_bytes=1e9,
            bandwidth_bytes_per_s=1e9,
            read_j_per_byte=0.0,
            write_j_per_byte=0.0,
        )
        for k in range(num_devices)
    ]
    devices = [
        CPU(name=f"d{k}", clock_hz=1e9, cores=cores, memory=f"m{k}", static_w=static_w)
        for k in range(num_devices)
    ]
    return Machine(devices, memories=memories)


def estimates(time_s: float, energy_j: float = 0.0, link: str = "", static_w: float = 0.0) -> Estimates:
    """At one point; over ``link`` if one is given."""
    array = np.array([float(time_s)])
    terms = [
        Term(
            Cause.LINK if link else Cause.COMPUTE,
            link or "device",
            array,
            np.array([energy_j]),
            array,
            "second",
        )
    ]
    if static_w:
        terms.append(Term(Cause.STATIC, "machine", 0 * array, array * static_w, array, "second"))
    return Estimates(array, np.array([energy_j]) + (array * static_w if static_w else 0.0), tuple(terms))


def graph_of(
    on: Machine,
    works: list[tuple[tuple[int, ...], dict[int, float]]],
    moves: dict[int, dict[tuple[int, int], float]] | None = None,
    *,
    link: str = "",
    shared: bool = True,
    weights: dict[int, dict[int, float]] | None = None,
    per_core: bool = False,
    static_w: float = 0.0,
) -> StackedGraph:
    """A stacked graph from numbers.

    Args:
        on: Made by :func:`machine`.
        works: Per work: works whose value it reads; seconds by device.
        moves: By work: seconds of moving its value, by (from device, to device).
        link: That the moves take; ``""`` = they are delays.
        shared: Moves are made once per place.
        weights: By work: seconds of moving its weight from home, by device.
        per_core: Candidates take one core.
        static_w: Of the machine, as part of the candidates' estimates.
    """
    moves, weights = moves or {}, weights or {}
    values = [Value(f"v{k}", (8,), 8.0, ValueKind.RESULT) for k in range(len(works))]
    weight_of = {k: len(values) + n for n, k in enumerate(sorted(weights))}
    values += [Value(f"w{k}", (16,), 8.0, ValueKind.WEIGHT) for k in sorted(weights)]
    made, stacks, transfers = [], [], []
    for k, (needs, times) in enumerate(works):
        inputs = (*needs, *((weight_of[k],) if k in weight_of else ()))
        made.append(Work(f"op{k}", "op", inputs, (8,) * len(inputs), (k,), 1))
        stacks.append(
            tuple(
                DeviceCandidate(
                    f"d{d}.op", f"d{d}", f"m{d}", estimates(t, 1.0, static_w=static_w), per_core=per_core
                )
                for d, t in times.items()
            )
        )
    for k, costs in moves.items():
        consumers = tuple(n for n, (needs, _) in enumerate(works) if k in needs)
        named = {(f"m{a}", f"m{b}"): estimates(t, 0.5, link, static_w) for (a, b), t in costs.items()}
        if consumers:
            transfers.append(Transfer(k, k, consumers, named, shared))
    for k, costs in weights.items():
        named = {("m0", f"m{b}"): estimates(t, 0.5, link, static_w) for b, t in costs.items()}
        transfers.append(Transfer(weight_of[k], None, (k,), named, shared))
    workload = Workload("test", tuple(values), tuple(made), ())
    return StackedGraph(workload, on, {}, tuple(stacks), tuple(transfers))


def random_graph(seed: int, num_works: int, num_devices: int = 2) -> StackedGraph:
    """A random graph: any widths, moves over a link or as delays, one core or whole devices, weights."""
    rng = random.Random(seed)

    def seconds() -> float:
        return rng.choice([0.0, 1.0, 2.0, 3.0, 5.0, rng.random() * 4])

    works: list[tuple[tuple[int, ...], dict[int, float]]] = []
    for k in range(num_works):
        needs = tuple(sorted(rng.sample(range(k), min(k, rng.choice([0, 1, 1, 2])))))
        devices = sorted(rng.sample(range(num_devices), rng.randint(1, num_devices)))
        works.append((needs, {d: seconds() for d in devices}))
    pairs = [(a, b) for a in range(num_devices) for b in range(num_devices) if a != b]
    moves = {k: {p: seconds() for p in pairs} for k in range(num_works) if rng.random() < 0.7}
    weights = {
        k: {b: seconds() for b in range(1, num_devices)} for k in range(num_works) if rng.random() < 0.2
    }
    cores = rng.choice([1, 1, 2])
    return graph_of(
        machine(num_devices, cores),
        works,
        moves,
        link=rng.choice(["", "bus"]),
        shared=rng.random() < 0.5,
        weights=weights,
        per_core=cores > 1 and rng.random() < 0.7,
    )


def sequences(tasks: Tasks) -> Iterator[list[int]]:
    """All sequences of tasks in which none precedes what it waits for.

    Tasks that take no resource are put as early as they can be: their place in a sequence changes nothing.
    """

    def extend(done: list[int], left: frozenset[int]) -> Iterator[list[int]]:
        ready = [k for k in left if not any(p in left for p in tasks.before[k])]
        free = [k for k in ready if not tasks.uses[k]]
        if not left:
            yield done
        for task in free[:1] or ready:
            yield from extend([*done, task], left - {task})

    yield from extend([], frozenset(range(len(tasks))))


def best_makespan_s(graph: StackedGraph) -> float:
    """Of all choices and orders, by trying them all."""
    instance = instance_of(graph, 0)
    best = np.inf
    for choices in itertools.product(*(range(len(o)) for o in instance.options)):
        tasks = tasks_of(instance, choices)
        for sequence in sequences(tasks):
            best = min(best, place(tasks, sequence).makespan_s)
    return float(best)


def sequential_optimum(graph: StackedGraph) -> np.ndarray:
    """Choices with the least sequential time, by trying them all: i16 [W]."""
    from strata.planner.devices.result import totals

    found = [
        (totals(graph, np.array(c, np.int16)[:, None])[0][0], c)
        for c in itertools.product(*(range(len(s)) for s in graph.stacks))
    ]
    return np.array(min(found)[1], np.int16)
