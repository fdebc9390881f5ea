"""A model of time, learned while a task is tuned: gradient boosting over the features of schedules.

It predicts the logarithm of the time relative to the best one so far. It needs scikit-learn (the extra
``tune``); without it, or before there is enough to learn from, schedules are ranked by the static model
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np

from .features import NAMES

MIN_EXAMPLES = 12
FAILED_PENALTY = 3.0  # a schedule that fails counts as 2**this times slower than the slowest one
_STATIC = NAMES.index("issue_time")


def is_available() -> bool:
    """Whether scikit-learn is installed."""
    return find_spec("sklearn") is not None


class CostModel:
    """Ranks schedules of one task at one size.

    Args:
        learn: Use scikit-learn.
    """

    def __init__(self, learn: bool | None = None) -> None:
        self._learn = is_available() if learn is None else learn
        self._rows: list[Sequence[float]] = []
        self._times: list[float | None] = []
        self._model: Any = None

    def add(self, row: Sequence[float], time_s: float | None) -> None:
        """Remember the features of a schedule and its time (``None``: it failed)."""
        self._rows.append(row)
        self._times.append(time_s)
        self._model = None

    def scores(self, rows: Sequence[Sequence[float]]) -> list[float]:
        """Predicted slowness of every schedule: the smaller, the better. Only the order means something."""
        if not rows:
            return []
        if self._model is None and self._learn and len(self._rows) >= MIN_EXAMPLES:
            self._model = self._fitted()
        if self._model is None:
            return [row[_STATIC] for row in rows]
        return [float(v) for v in self._model.predict(np.asarray(rows))]

    def _fitted(self) -> Any:
        # Not its histogram sibling, which runs on OpenMP threads: they spin where other work has the cores.
        from sklearn.ensemble import GradientBoostingRegressor

        known = [t for t in self._times if t is not None]
        if len(known) < MIN_EXAMPLES // 2:
            return None
        worst = np.log2(max(known)) + FAILED_PENALTY
        targets = np.array([worst if t is None else np.log2(t) for t in self._times])
        best = targets.min()
        model = GradientBoostingRegressor(
            n_estimators=80,
            learning_rate=0.12,
            max_depth=4,
            min_samples_leaf=3,
            subsample=0.8,
            random_state=0,
        )
        # The fast ones matter: a schedule four times slower than the best one weighs a quarter.
        return model.fit(np.asarray(self._rows), targets, sample_weight=np.exp2(best - targets) + 0.02)
