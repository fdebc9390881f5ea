"""How works are costed on a machine: one file per profile."""

from .base import PROFILES, CostProfile
from .fitted import Fitted
from .lightcode import LightCode
from .physical import Physical

__all__ = ["PROFILES", "CostProfile"]

PROFILES.add("fitted", Fitted())
PROFILES.add("lightcode", LightCode())
PROFILES.add("physical", Physical())
