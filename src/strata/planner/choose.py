"""From estimates to a plan: for every range of the rows of a stack, the candidate with the least time."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from strata.core.dims import Dim, SymDim
from strata.runtime.records import DimRange

from .types import Candidate, Choice

# An estimate is not better than this: switching for less would only make the plan long. But at the last size
# any gain counts: what is chosen there holds for all sizes above it.
SWITCH_GAIN = 1.02


@dataclass(frozen=True, slots=True)
class Favour:
    """Candidates that win wherever they are correct, whatever their cost.

    Attributes:
        holds: Whether a candidate is one, for a number of rows (``None``: for all numbers).
        borders: Numbers of rows after which that may change.
    """

    holds: Callable[[Candidate, int | None], bool]
    borders: tuple[int, ...] = ()


NONE = Favour(lambda candidate, size: False)


def choose(candidates: tuple[Candidate, ...], rows: Dim, favour: Favour = NONE) -> tuple[Choice, ...]:
    """Split the range of ``rows`` where the cheapest candidate changes.

    Args:
        candidates: Not empty; each with estimates at the same sample sizes. One of them at least is correct
            for all sizes.
        rows: Number of rows of the activations. The choice depends on it where it is a symbolic dim.
        favour: What the user wants.

    Returns:
        Choices in ascending order of size; the last one is unconditional. Candidates that are correct only
        for ranges of other dims than ``rows`` are chosen if they are favoured, and come first.
    """
    everywhere = [k for k, c in enumerate(candidates) if _only_by(rows, c)]
    elsewhere = [(k, c) for k, c in enumerate(candidates) if k not in everywhere]
    first = [Choice(k, c.when) for k, c in elsewhere if favour.holds(c, None)]
    if not isinstance(rows, SymDim):
        best = [k for k in everywhere if favour.holds(candidates[k], rows if isinstance(rows, int) else None)]
        unranged = [k for k in best or everywhere if not candidates[k].when] or everywhere
        return (*first, Choice(_safest(candidates, unranged)))
    winners = _winners(candidates, everywhere, favour, rows)
    return (*first, *by_size(rows.name, rows.lo, winners))


def by_size(dim: str, lo: int, winners: Sequence[tuple[int, int]]) -> tuple[Choice, ...]:
    """Choices by ranges of a dim from ``lo`` on, in ascending order; the last one is unconditional.

    Args:
        dim: Name of the dim.
        lo: Its least value.
        winners: ``(size, winner)``, ascending: who wins from the size before up to this one.
    """
    choices: list[Choice] = []
    for (size, winner), (_, follower) in itertools.pairwise(winners):
        if winner != follower:
            choices.append(Choice(winner, (DimRange(dim, lo, size),)))
            lo = size + 1
    return (*choices, Choice(winners[-1][1]))


def _only_by(rows: Dim, candidate: Candidate) -> bool:
    """Whether nothing but ``rows`` decides if the candidate is correct."""
    return all(isinstance(rows, SymDim) and r.dim == rows.name for r in candidate.when)


def _winners(
    candidates: Sequence[Candidate], everywhere: Sequence[int], favour: Favour, rows: SymDim
) -> list[tuple[int, int]]:
    """(size, winner) at every sample size and border; one wins until another is clearly cheaper."""
    samples = [size for size, _ in candidates[0].estimates]
    winners: list[tuple[int, int]] = []
    for size in sorted({*samples, *(b for b in favour.borders if rows.lo <= b <= samples[-1])}):
        at = bisect_left(samples, size)
        legal = [k for k in everywhere if all(r.lo <= size <= r.hi for r in candidates[k].when)]
        pool = [k for k in legal if favour.holds(candidates[k], size)] or legal
        times = {k: candidates[k].estimates[at][1].time_s for k in pool}
        best = min(pool, key=times.__getitem__)
        before = winners[-1][1] if winners else pool[0]
        gain = SWITCH_GAIN if size < samples[-1] else 1.0
        if before in times and times[before] <= times[best] * gain:
            best = before
        winners.append((size, best))
    return winners


def _safest(candidates: Sequence[Candidate], pool: Sequence[int]) -> int:
    """The candidate of ``pool`` whose worst time, relative to the best one's at that size, is least."""
    worst = dict.fromkeys(pool, 0.0)
    for at in range(len(candidates[0].estimates)):
        times = {k: candidates[k].estimates[at][1].time_s for k in pool}
        least = min(times.values())
        for k, time_s in times.items():
            worst[k] = max(worst[k], time_s / least if math.isfinite(time_s) else math.inf)
    return min(pool, key=worst.__getitem__)
