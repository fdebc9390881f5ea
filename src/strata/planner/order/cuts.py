r"""Split a graph where everything passes through one work.

A *cut* is a work that every other one either precedes or follows. Nothing runs beside it, so the works
between two cuts have the devices for themselves, and an order of the whole is an order of each such segment,
one after the other::

       q
     /   \              cuts: a, b; segments: [a], [q k v b]
    a - k - b -         what a segment takes depends only on the candidates of the cuts at its ends
     \   /
       v

Some works *float* beside many others: a second result, a cache that is written, the angles of a late layer
that wait for nothing. No cut could be made beside them, so they are left out: with less work the best order
ends no later, and bounds stay valid. So are moves that can begin before the segment does: of values from home
or from before the cut. The same layers give equal segments, which are solved once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

from .tasks import Haul, Instance, Option

SEGMENT_WORKS = 64  # CP-SAT proves orders of this many works in seconds


@dataclass(frozen=True, slots=True)
class Segment:
    """Works between two cuts.

    Attributes:
        entry: The cut before it, or ``None`` for the first segment.
        works: Its works, ascending; the last one is the cut at its end.
        values: Value of the graph that each haul of the instance moves.
        instance: They alone. Where there is an entry, it is work 0, takes no time, and keeps its options:
            they say where its values are.
    """

    entry: int | None
    works: tuple[int, ...]
    values: tuple[int, ...]
    instance: Instance

    @property
    def numbers(self) -> tuple[int, ...]:
        """Work of the graph that each work of the instance is."""
        return self.works if self.entry is None else (self.entry, *self.works)


def segments_of(instance: Instance) -> tuple[Segment, ...]:
    """The segments, in the order of time; without the works that float (see above)."""
    core, cuts = _core_and_cuts(instance)
    found: list[Segment] = []
    hauls_of: dict[int, list[Haul]] = {}
    for haul in instance.hauls:
        for consumer in haul.consumers:
            hauls_of.setdefault(consumer, []).append(haul)
    entry, begin = None, 0
    for cut in cuts:
        end = bisect_right(core, cut)
        works = tuple(core[begin:end])
        cut_out, values = _cut_out(instance, entry, works, hauls_of)
        found.append(Segment(entry, works, values, cut_out))
        entry, begin = cut, end
    return tuple(found)


def _core_and_cuts(instance: Instance) -> tuple[list[int], list[int]]:
    """As many works as leave segments of at most ``SEGMENT_WORKS``, and their cuts; all, if nothing helps."""
    spans = spans_of(instance)
    everything = None
    for most in (inf, 256, 128, 64, 32, 16):
        core = [k for k, span in enumerate(spans) if span <= most and span < inf]
        cuts = cuts_of(instance, core)
        sizes = [bisect_right(core, b) - bisect_right(core, a) for a, b in pairwise([-1, *cuts])]
        everything = everything or (core, cuts)
        if max(sizes, default=0) <= SEGMENT_WORKS:
            return core, cuts
    return everything or ([], [])


def spans_of(instance: Instance) -> list[float]:
    """How much of the longest chain of works may pass beside each work.

    The number of works on that chain between the last one that it waits for and the first one that waits for
    it; 0 for those on the chain, ``inf`` if none waits for it.
    """
    depths: list[int] = []
    for needs in instance.needs:
        depths.append(1 + max((depths[k] for k in needs), default=0))
    if not depths:
        return []
    chain = [max(range(len(depths)), key=lambda k: (depths[k], k))]
    while needs := instance.needs[chain[-1]]:
        chain.append(max(needs, key=lambda k: (depths[k], k)))
    position = {work: k for k, work in enumerate(reversed(chain))}
    after = [-1.0] * len(depths)
    until = [inf] * len(depths)
    for work, needs in enumerate(instance.needs):
        after[work] = position.get(work, max((after[k] for k in needs), default=-1.0))
    for work in range(len(depths) - 1, -1, -1):
        until[work] = position.get(work, until[work])
        for k in instance.needs[work]:
            until[k] = min(until[k], until[work])
    return [b - a for a, b in zip(after, until, strict=True)]


def cuts_of(instance: Instance, core: Sequence[int]) -> list[int]:
    """Works of ``core`` that all its others precede or follow, ascending. O(works + edges).

    Run the works in any order: if a work is the only one that can begin, all that remain follow it. Run them
    backwards likewise: all that remain precede it. It is a cut if the two make up everything.
    """
    members = set(core)
    before = {k: [p for p in instance.needs[k] if p in members] for k in core}
    after: dict[int, list[int]] = {k: [] for k in core}
    for k, needs in before.items():
        for p in needs:
            after[p].append(k)
    follow = _alone(before, after)
    precede = _alone(after, before)
    return [k for k in core if k in follow and k in precede and follow[k] + precede[k] == len(core) - 1]


def _alone(before: dict[int, list[int]], after: dict[int, list[int]]) -> dict[int, int]:
    """Works that are alone when they begin, with the number of those that remain then."""
    waiting = {k: len(needs) for k, needs in before.items()}
    ready = deque(k for k, count in waiting.items() if not count)
    remaining = len(waiting)
    found: dict[int, int] = {}
    while ready:
        work = ready.popleft()
        remaining -= 1
        if not ready:
            found[work] = remaining
        for k in after[work]:
            waiting[k] -= 1
            if not waiting[k]:
                ready.append(k)
    return found


def _cut_out(
    instance: Instance, entry: int | None, works: tuple[int, ...], hauls_of: dict[int, list[Haul]]
) -> tuple[Instance, tuple[int, ...]]:
    """The instance of ``works`` after ``entry``, all numbered from 0, and the values of its hauls."""
    members = works if entry is None else (entry, *works)
    number = {k: n for n, k in enumerate(members)}
    options = [instance.options[k] for k in members]
    needs = [tuple(number[p] for p in instance.needs[k] if p in number) for k in members]
    if entry is not None:
        options[0] = tuple(replace(o, time_s=0.0) for o in options[0])
        needs[0] = ()
    hauls: dict[int, Haul] = {}
    for work in works:
        for haul in hauls_of.get(work, ()):
            inside = haul.producer in number if haul.producer is not None else entry is None
            if inside and haul.value not in hauls:
                hauls[haul.value] = _narrowed(haul, number, len(hauls))
    return Instance(instance.cores, tuple(options), tuple(needs), tuple(hauls.values())), tuple(hauls)


def _narrowed(haul: Haul, number: dict[int, int], value: int) -> Haul:
    """``haul`` for the consumers that have a number."""
    kept = [(number[k], t) for k, t in zip(haul.consumers, haul.targets, strict=True) if k in number]
    producer = None if haul.producer is None else number[haul.producer]
    return Haul(
        value,
        producer,
        tuple(k for k, _ in kept),
        haul.shared,
        haul.origins,
        tuple(t for _, t in kept),
        haul.costs,
    )


def fixed(instance: Instance, work: int, option: int) -> Instance:
    """``instance`` with one work restricted to one of its options."""
    options: list[tuple[Option, ...]] = list(instance.options)
    options[work] = (options[work][option],)
    hauls = tuple(
        replace(
            haul,
            origins=(haul.origins[option],) if haul.producer == work else haul.origins,
            targets=tuple(
                (t[option],) if k == work else t for k, t in zip(haul.consumers, haul.targets, strict=True)
            ),
        )
        for haul in instance.hauls
    )
    return replace(instance, options=tuple(options), hauls=hauls)
