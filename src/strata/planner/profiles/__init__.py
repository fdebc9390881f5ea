"""How works are costed on a machine: one file per profile, and functions of the user."""

from .base import PROFILES, CostProfile, op_cost
from .fitted import Fitted
from .lightcode import LightCode
from .physical import Physical

__all__ = ["PROFILES", "CostProfile", "op_cost"]

PROFILES.add("fitted", Fitted())
PROFILES.add("lightcode", LightCode())
PROFILES.add("physical", Physical())
