"""What a plan minimises.

::

    objective ::= "time" | "energy" | "edp" | "makespan" | sum
    sum       ::= [number "*"] ("time" | "energy") {"+" [number "*"] ("time" | "energy")}

``time`` is that of a sequential run, one op at a time; ``makespan`` that of a run in which devices and cores
work at the same time; ``edp`` is energy times time of a sequential run. In a sum, time counts in seconds and
energy in joules.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from strata.core.errors import UserError

_EXPECTED = "time, energy, edp, makespan, or a weighted sum like 0.5*time+2*energy"


@dataclass(frozen=True, slots=True)
class Objective:
    """A parsed objective.

    Attributes:
        text: As the user wrote it.
        per_second, per_joule: Weights of a sum; both 0 for ``edp`` and ``makespan``.
    """

    text: str
    per_second: float = 0.0
    per_joule: float = 0.0

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum over ops and moves, which is minimised exactly node by node."""
        return self.per_second > 0 or self.per_joule > 0

    def value(self, time_s: np.ndarray, energy_j: np.ndarray) -> np.ndarray:
        """The objective of a run."""
        if self.text == "edp":
            return time_s * energy_j
        if self.text == "makespan":
            return time_s
        return self.per_second * time_s + self.per_joule * energy_j


def parse_objective(text: str | Objective) -> Objective:
    """The objective that ``text`` says.

    Raises:
        UserError: another text, or a weight that is not > 0.
    """
    if isinstance(text, Objective):
        return text
    normal = text.strip().lower()
    if normal in ("edp", "makespan"):
        return Objective(normal)
    weights = {"time": 0.0, "energy": 0.0}
    for part in normal.split("+"):
        factor, star, name = part.rpartition("*")
        try:
            weight = float(factor) if star else 1.0
        except ValueError:
            weight = math.nan
        if name.strip() not in weights or not 0 < weight < math.inf:
            raise UserError(f"objective: got {text!r:.60}; expected {_EXPECTED}")
        weights[name.strip()] += weight
    return Objective(normal, weights["time"], weights["energy"])
