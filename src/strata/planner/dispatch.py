"""Which kernel runs for which sizes: the table that compiled code consults, with the costs behind it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from strata.core.dims import bounds

from .assemble import PlannedLaunch
from .types import Stack


@dataclass(frozen=True, slots=True)
class Range:
    """``candidate`` runs for sizes ``lo .. hi``, both included."""

    lo: int
    hi: int
    candidate: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Cost of a candidate over sizes.

    Attributes:
        candidate: Its name.
        points: (size, seconds), ascending; only sizes for which it is correct.
        source: Where the seconds come from: ``"roofline"``, ``"measured"``, ``"model"``.
    """

    candidate: str
    points: tuple[tuple[int, float], ...]
    source: str


@dataclass(frozen=True, slots=True)
class Dispatch:
    """The choice of one stack.

    Attributes:
        nodes: Names of the nodes that share the stack.
        op: Their heaviest op.
        dim: The size that decides, as text; a number where nothing is to decide.
        ranges: What runs for every size of the dim, ascending.
        curves: Cost of all candidates.
    """

    nodes: tuple[str, ...]
    op: str
    dim: str
    ranges: tuple[Range, ...]
    curves: tuple[Curve, ...]


def dispatch_table(launches: Iterable[PlannedLaunch]) -> list[Dispatch]:
    """One entry per distinct stack and choice, in order of first use."""
    groups: dict[tuple[int, object], list[PlannedLaunch]] = {}
    for launch in launches:
        groups.setdefault((id(launch.stack), launch.choices), []).append(launch)
    return [
        Dispatch(
            tuple(x.node for x in group),
            group[0].op,
            str(group[0].rows),
            tuple(_ranges(group[0])),
            tuple(_curves(group[0].stack)),
        )
        for group in groups.values()
    ]


def _ranges(launch: PlannedLaunch) -> Iterable[Range]:
    """What runs for each size, neighbours with the same kernel joined."""
    lo, hi = bounds(launch.rows)
    dim = str(launch.rows)
    candidates = launch.stack.candidates
    starts = {lo} | {x for c in launch.choices for r in c.when if r.dim == dim for x in (r.lo, r.hi + 1)}
    borders = [*sorted(x for x in starts if lo <= x <= hi), hi + 1]
    found: list[Range] = []
    for first, after in itertools.pairwise(borders):
        choice = next(c for c in launch.choices if all(r.dim != dim or r.lo <= first <= r.hi for r in c.when))
        name = candidates[choice.candidate].name
        if found and found[-1].candidate == name:
            found[-1] = Range(found[-1].lo, after - 1, name)
        else:
            found.append(Range(first, after - 1, name))
    return found


def _curves(stack: Stack) -> Iterable[Curve]:
    for c in stack.candidates:
        legal = [(s, e) for s, e in c.estimates if all(r.lo <= s <= r.hi for r in c.when)]
        if legal:
            sources = {e.source for _, e in legal}
            source = "measured" if sources == {"measured"} else " and ".join(sorted(sources))
            yield Curve(c.name, tuple((s, e.time_s) for s, e in legal), source)
