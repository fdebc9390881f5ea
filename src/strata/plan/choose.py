"""From estimates to a plan: for every range of the rows of a stack, the candidate with the least time."""

from __future__ import annotations

import itertools

from strata.core.dims import Dim, SymDim, bounds
from strata.runtime.records import DimRange

from .types import Candidate, Choice

SWITCH_GAIN = 1.05  # an estimate is not better than this: switching for less would only make the plan long


def main_dim(rows: Dim) -> SymDim | None:
    """The symbolic dim that the choice depends on, if the number of rows is just that."""
    return rows if isinstance(rows, SymDim) else None


def choose(candidates: tuple[Candidate, ...], rows: Dim) -> tuple[Choice, ...]:
    """Split the range of ``rows`` where the cheapest candidate changes.

    Args:
        candidates: Not empty; each with estimates at the same sample sizes.
        rows: Number of rows of the activations.

    Returns:
        Choices in ascending order of size; the last one is unconditional.
    """
    dim = main_dim(rows)
    if dim is None or len(candidates) == 1:
        lo, _ = bounds(rows)
        return (Choice(_best_at(candidates, lo)),)
    best = _winners(candidates)
    choices: list[Choice] = []
    lo = dim.lo
    for (size, winner), (_, follower) in itertools.pairwise(best):
        if winner != follower:
            choices.append(Choice(winner, (DimRange(dim.name, lo, size),)))
            lo = size + 1
    choices.append(Choice(best[-1][1]))
    return tuple(choices)


def _winners(candidates: tuple[Candidate, ...]) -> list[tuple[int, int]]:
    """(size, winner) at every sample size; a winner stays until another one is clearly cheaper."""
    winners: list[tuple[int, int]] = []
    for k, (size, _) in enumerate(candidates[0].estimates):
        times = [c.estimates[k][1].time_s for c in candidates]
        best = min(range(len(times)), key=times.__getitem__)
        if winners and times[winners[-1][1]] <= times[best] * SWITCH_GAIN:
            best = winners[-1][1]
        winners.append((size, best))
    return winners


def _best_at(candidates: tuple[Candidate, ...], size: int) -> int:
    """Index of the cheapest candidate at the sample size nearest to ``size``."""

    def time_s(candidate: Candidate) -> float:
        if not candidate.estimates:
            return 0.0
        return min(candidate.estimates, key=lambda e: abs(e[0] - size))[1].time_s

    return min(range(len(candidates)), key=lambda k: (time_s(candidates[k]), k))
