"""What weighted sums of two costs can reach: the vertices of the lower convex hull, and the least product.

Every plan is a point (x, y) of two costs >= 0. Minimising a*x + b*y with a, b >= 0 gives a vertex of the
lower left convex hull of all of them. Between two known vertices the weights for which both cost the same
either give a vertex beyond their line, or prove that there is none (Aneja and Nair, *Bicriteria
transportation problem*, Management Science 25, 1979).

The product x*y is quasi-concave where x, y >= 0 (the points with x*y >= c form a convex set), so a mean of
vertices has no lower product than the best of them: its minimum over all plans is at a vertex of their hull,
and at the lower left, as it grows with x and y (Konno and Kuno, *Linear multiplicative programming*,
Mathematical Programming 56, 1992).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

TOLERANCE = 1e-12  # relative: rounding of sums is not a vertex


class Solver(Protocol):
    """What the hull is made with."""

    def __call__(
        self, at: np.ndarray, x_weight: np.ndarray, y_weight: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Minimise ``x_weight * x + y_weight * y`` at the points ``at``: choices ``[W, T]``, x, y ``[T]``."""
        ...


@dataclass(frozen=True, slots=True)
class Vertex:
    """A plan on the hull: its costs and its choices i16 ``[W]``."""

    x: float
    y: float
    choices: np.ndarray


def lower_hull(solve: Solver, point: int = 0) -> tuple[Vertex, ...]:
    """All vertices of the lower left hull at one point, ascending in x, descending in y."""
    first, last = _solve_all(solve, point, [(1.0, 0.0), (0.0, 1.0)])
    found, open_ = {(v.x, v.y): v for v in (first, last)}, [(first, last)]
    while open_:
        open_ = [(a, b) for a, b in open_ if a.x < b.x and a.y > b.y]
        below = _solve_all(solve, point, [(a.y - b.y, b.x - a.x) for a, b in open_])
        following = []
        for (a, b), c in zip(open_, below, strict=True):
            line = (a.y - b.y) * a.x + (b.x - a.x) * a.y
            if (a.y - b.y) * c.x + (b.x - a.x) * c.y < line * (1 - TOLERANCE):
                found[c.x, c.y] = c
                following += [(a, c), (c, b)]
        open_ = following
    # What has the least x, or the least y, may have another beside it that is better in the other.
    best = sorted(found.values(), key=lambda v: (v.x, v.y))
    return tuple(v for k, v in enumerate(best) if all(v.y < before.y for before in best[:k]))


def _solve_all(solve: Solver, point: int, weights: list[tuple[float, float]]) -> list[Vertex]:
    if not weights:
        return []
    x_weight, y_weight = np.array(weights).T
    choices, x, y = solve(np.full(len(weights), point), x_weight, y_weight)
    return [Vertex(float(x[k]), float(y[k]), choices[:, k]) for k in range(len(weights))]


def minimise_product(solve: Solver, num_points: int) -> np.ndarray:
    """Choices i16 ``[W, P]`` with the least x*y at each point, exactly: the best vertex of the hull.

    A segment of the hull is not looked into if the corner that its plans can reach at most, where the lines
    that are known to have nothing below them meet, has no lower product than the best plan so far.
    """
    at = np.arange(num_points)
    ones, zeros = np.ones(num_points), np.zeros(num_points)
    choices, ax, ay = solve(at, ones, zeros)
    others, bx, by = solve(at, zeros, ones)
    best = ax * ay
    choices, best = _keep_better(choices, best, others, bx * by, at)
    corner = ax * by
    while True:
        rest = (ax < bx) & (ay > by) & (corner < best[at] * (1 - TOLERANCE))
        if not rest.any():
            return choices
        at, ax, ay, bx, by, corner = (a[rest] for a in (at, ax, ay, bx, by, corner))
        x_weight, y_weight = ay - by, bx - ax
        found, cx, cy = solve(at, x_weight, y_weight)
        choices, best = _keep_better(choices, best, found, cx * cy, at)
        least = x_weight * cx + y_weight * cy
        below = least < (x_weight * ax + y_weight * ay) * (1 - TOLERANCE)
        at, ax, ay, bx, by, cx, cy, corner = (a[below] for a in (at, ax, ay, bx, by, cx, cy, corner))
        x_weight, y_weight, least = x_weight[below], y_weight[below], least[below]
        # Along the line through c the product is least at an end: above a's x, or beside b's y.
        left = ax * ((least - x_weight * ax) / y_weight)
        right = ((least - y_weight * by) / x_weight) * by
        corner = np.concatenate([np.maximum(corner, left), np.maximum(corner, right)])
        at = np.concatenate([at, at])
        ax, bx = np.concatenate([ax, cx]), np.concatenate([cx, bx])
        ay, by = np.concatenate([ay, cy]), np.concatenate([cy, by])


def _keep_better(
    choices: np.ndarray, best: np.ndarray, others: np.ndarray, products: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The better of the best plans so far and of others at the points ``at``, which may repeat."""
    order = np.lexsort((products, at))
    points, first = np.unique(at[order], return_index=True)
    first = order[first]
    better = products[first] < best[points]
    points, first = points[better], first[better]
    choices, best = choices.copy(), best.copy()
    choices[:, points] = others[:, first]
    best[points] = products[first]
    return choices, best
