"""From estimates to a plan: for every range of the rows of a stack, the candidate with the least time."""

from __future__ import annotations

import itertools

from strata.core.dims import Dim, SymDim
from strata.runtime.records import DimRange

from .types import Candidate, Choice

SWITCH_GAIN = 1.05  # an estimate is not better than this: switching for less would only make the plan long


def choose(candidates: tuple[Candidate, ...], rows: Dim) -> tuple[Choice, ...]:
    """Split the range of ``rows`` where the cheapest candidate changes.

    Args:
        candidates: Not empty; each with estimates at the same sample sizes.
        rows: Number of rows of the activations. The choice depends on it where it is a symbolic dim.

    Returns:
        Choices in ascending order of size; the last one is unconditional.
    """
    if len(candidates) == 1:
        return (Choice(0),)
    if not isinstance(rows, SymDim):
        return (Choice(_safest(candidates)),)
    best = _winners(candidates)
    choices: list[Choice] = []
    lo = rows.lo
    for (size, winner), (_, follower) in itertools.pairwise(best):
        if winner != follower:
            choices.append(Choice(winner, (DimRange(rows.name, lo, size),)))
            lo = size + 1
    choices.append(Choice(best[-1][1]))
    return tuple(choices)


def _times(candidates: tuple[Candidate, ...]) -> list[tuple[int, list[float]]]:
    """(size, seconds of every candidate) at every sample size."""
    sizes = [size for size, _ in candidates[0].estimates]
    return [(size, [c.estimates[k][1].time_s for c in candidates]) for k, size in enumerate(sizes)]


def _winners(candidates: tuple[Candidate, ...]) -> list[tuple[int, int]]:
    """(size, winner) at every sample size; a winner stays until another one is clearly cheaper."""
    winners: list[tuple[int, int]] = []
    for size, times in _times(candidates):
        best = min(range(len(times)), key=times.__getitem__)
        if winners and times[winners[-1][1]] <= times[best] * SWITCH_GAIN:
            best = winners[-1][1]
        winners.append((size, best))
    return winners


def _safest(candidates: tuple[Candidate, ...]) -> int:
    """The candidate whose worst time, relative to the best one's at that size, is least."""
    worst = [0.0] * len(candidates)
    for _, times in _times(candidates):
        worst = [max(w, t / min(times)) for w, t in zip(worst, times, strict=True)]
    return min(range(len(candidates)), key=worst.__getitem__)
