"""Models corrected by measurements: what tuning has measured scales what the model says.

A candidate that was measured at some sizes has the measured time there; between them the ratio of measured
to modelled time is interpolated over the logarithm of the size, beyond them it stays. Candidates of the same
task without a measurement get the mean ratio of those that have one: then one model is compared with another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from strata.core.dims import SymDim

from .candidates import Offer, Task
from .candidates.base import Model
from .tuning.database import Database
from .types import Estimate

Points = list[tuple[int, float]]  # (rows, logarithm of measured / modelled time), by rows


def calibrated(task: Task, offers: Sequence[Offer], database: Database) -> list[Model | None]:
    """The models of ``offers`` in order, corrected by what the database knows of their traces."""
    points = [_points(task, o, database) for o in offers]
    known = [ratio for each in points for _, ratio in each]
    if not known:
        return [o.model for o in offers]
    common: Points = [(1, sum(known) / len(known))]
    return [_corrected(o.model, each or common) for o, each in zip(offers, points, strict=True)]


def _points(task: Task, offer: Offer, database: Database) -> Points:
    if offer.model is None or not offer.trace:
        return []
    found: dict[int, float] = {}
    for sizes, time_s in database.times(task.key, offer.trace):
        rows = dict(sizes).get(task.rows.name, 0) if isinstance(task.rows, SymDim) else task.rows
        if isinstance(rows, int) and rows:
            found[rows] = math.log(time_s / offer.model(rows).time_s)
    return sorted(found.items())


def _corrected(model: Model | None, points: Points) -> Model | None:
    if model is None:
        return None
    at, ratios = [math.log(rows) for rows, _ in points], [ratio for _, ratio in points]
    measured = {rows for rows, _ in points}

    def corrected(size: int) -> Estimate:
        estimate = model(size)
        factor = math.exp(float(np.interp(math.log(size), at, ratios)))
        source = "measured" if size in measured else "model"
        return replace(estimate, time_s=estimate.time_s * factor, source=source)

    return corrected
