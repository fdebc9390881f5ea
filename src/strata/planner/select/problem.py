"""The bare problem of selection: variables with costs, pairs of variables with costs, at many points.

::

    minimise over x   sum_v node_costs[v][x_v] + sum_(u,v) edge_costs[u,v][x_u, x_v]      at each point apart

Costs are f64; ``inf`` forbids. The problem knows nothing of devices: the stacked graph over devices and any
other choice with costs between neighbours become one of these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Problem:
    """Costs of a selection.

    Attributes:
        node_costs: One array ``[K_v, P]`` per variable, or ``[K_v, 1]`` where all points cost the same.
        edge_costs: ``(u, v, [K_u, K_v, P or 1])``, u < v; a pair may occur more than once.
        num_points: P.

    Equal arrays should be the same object: solvers then do equal parts of a problem once.
    """

    node_costs: tuple[np.ndarray, ...]
    edge_costs: tuple[tuple[int, int, np.ndarray], ...]
    num_points: int


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice per variable and point.

    Attributes:
        choices: i16 ``[V, P]``.
        cost: f64 ``[P]``: the value of the objective.
        bound: f64 ``[P]``: no choice costs less. Equal to ``cost`` where the solver is exact.
    """

    choices: np.ndarray
    cost: np.ndarray
    bound: np.ndarray
