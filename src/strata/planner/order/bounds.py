"""Times that no order of any choice undercuts.

- *Critical path*: every work as early as the cheapest chain of candidates and moves before it allows.
- *Load*: for any weights ``l_r >= 0`` of the resources with sum 1, the makespan is at least the sum over the
  works of ``min_c sum_r l_r * load_r(c)``: the average of the loads is at most the largest. This is the dual
  of the linear program that splits works among devices at will; the weights are improved by multiplicative
  updates, and any weights give a valid bound.
"""

from __future__ import annotations

import numpy as np

from .tasks import Haul, Instance

ROUNDING = 1e-12  # bounds are lowered by this much of themselves, so that rounding never makes them invalid
STEPS = 200  # of multiplicative updates; far more than two to six resources need


def lower_bound_s(instance: Instance) -> float:
    """The larger one of the two bounds."""
    return max(critical_path_s(instance), load_bound_s(instance))


def delay_s(haul: Haul, origin: str, to: str) -> float:
    """Seconds of the move of a value; 0 if none is needed."""
    return next((time_s for a, b, time_s, _ in haul.costs if (a, b) == (origin, to)), 0.0)


def delays_of(instance: Instance) -> dict[tuple[int | None, int], np.ndarray]:
    """Least seconds from the end of a work to the beginning of another one that waits for a move.

    Returns:
        By (producer or ``None``, consumer): f64 ``[options of the producer (1 for None), options]``.
    """
    found: dict[tuple[int | None, int], np.ndarray] = {}
    for haul in instance.hauls:
        for consumer, targets in zip(haul.consumers, haul.targets, strict=True):
            delays = np.array([[delay_s(haul, a, b) for b in targets] for a in haul.origins])
            if delays.any():
                known = found.get((haul.producer, consumer), delays)
                found[haul.producer, consumer] = np.maximum(known, delays)
    return found


def critical_path_s(instance: Instance) -> float:
    """Longest chain when every work, on each of its devices, begins as early as its inputs ever can."""
    delays = delays_of(instance)
    ends: list[np.ndarray] = []
    for work, (options, needs) in enumerate(zip(instance.options, instance.needs, strict=True)):
        ready = np.zeros(len(options))
        if (None, work) in delays:
            ready = delays[None, work][0]
        for k in needs:
            if (k, work) in delays:
                ready = np.maximum(ready, (ends[k][:, None] + delays[k, work]).min(axis=0))
            else:
                ready = np.maximum(ready, ends[k].min())
        ends.append(ready + [o.time_s for o in options])
    return max((float(end.min()) for end in ends), default=0.0) * (1 - ROUNDING)


def load_bound_s(instance: Instance) -> float:
    """Least possible load of the busiest resource if works could be split among their options."""
    loads, starts = _loads(instance)
    if not loads.size:
        return 0.0
    weights = np.full(loads.shape[1], 1.0 / loads.shape[1])
    best = 0.0
    counts = np.diff([*starts, len(loads)])
    never = np.isinf(loads).any(axis=1)
    loads[never] = 0.0
    for step in range(STEPS):
        costs = np.where(never, np.inf, loads @ weights)
        least = np.minimum.reduceat(costs, starts)
        best = max(best, float(least.sum()))
        chosen = costs <= np.repeat(least, counts)
        share = chosen / np.repeat(np.add.reduceat(chosen, starts), counts)
        load = share @ loads
        if not load.max() > 0:
            break
        weights = weights * np.exp(load / load.max() * (2.0 / np.sqrt(step + 1)))
        weights /= weights.sum()
    return best * (1 - ROUNDING)


def _loads(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    """Seconds that each option of each work keeps each resource busy, and where each work's options begin.

    Moves count where they depend on one work alone: values from home that are moved for it only.
    """
    num_devices = len(instance.cores)
    links = {name: num_devices + k for k, name in enumerate(instance.links)}
    counts = [len(options) for options in instance.options]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]]).astype(np.int64)
    loads = np.zeros((sum(counts), num_devices + len(links)))
    for start, options in zip(starts, instance.options, strict=True):
        for k, o in enumerate(options):
            loads[start + k, o.device] += o.time_s / (instance.cores[o.device] if o.per_core else 1)
    for haul in instance.hauls:
        if haul.producer is not None or (haul.shared and len(haul.consumers) > 1):
            continue
        for consumer, targets in zip(haul.consumers, haul.targets, strict=True):
            for k, to in enumerate(targets):
                for a, b, time_s, taken in haul.costs:
                    if (a, b) == (haul.origins[0], to):
                        for link in taken:
                            loads[starts[consumer] + k, links[link]] += time_s
    return loads, starts
