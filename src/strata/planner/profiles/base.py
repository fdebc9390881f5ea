"""What a cost profile is, the table of them, and what a cost function of the user says.

A profile turns one work into candidates on the machine's devices, and one value into what moving it costs.
Everything is an array over points, see :mod:`strata.planner.devices.types`.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from strata.core.errors import UserError
from strata.core.registry import Registry
from strata.graph.workload import Value, Work, Workload
from strata.planner.devices.types import DeviceCandidate, Estimates, Points, evaluate
from strata.target.hardware import CostFunction, Device, Machine


class CostProfile(Protocol):
    """One way of costing works.

    Attributes:
        shared: Whether a value that several works read at one place is brought there once.
        by_device: Whether moves depend on devices rather than on their memories.
        granularity: What a work should be: ``"ops"`` of the graph, or ``"kernels"``, the compiler's launches.
    """

    shared: bool
    by_device: bool
    granularity: str

    def candidates(
        self, machine: Machine, workload: Workload, work: Work, points: Points
    ) -> tuple[DeviceCandidate, ...]:
        """All ways to compute ``work``; empty if there is none."""
        ...

    def move(
        self, machine: Machine, value: Value, source: str | None, to: str, points: Points
    ) -> Estimates | None:
        """Cost of bringing ``value`` from a place (``None``: home) to another; ``None``: free."""
        ...


PROFILES: Registry[CostProfile] = Registry("cost profile")


def user_estimates(
    function: CostFunction, device: Device, machine: Machine, workload: Workload, work: Work, points: Points
) -> Estimates | None:
    """What a function of the user says of a work; ``None`` if the device cannot do it.

    Raises:
        UserError: no estimates, or such without a number >= 0 for each point.
    """
    estimates = function(device, machine, workload, work, points)
    if estimates is None:
        return None
    where = f"cost of {work.op} on {device.name}"
    if not isinstance(estimates, Estimates):
        raise UserError(f"{where}: got {type(estimates).__name__}; expected Estimates, or None")
    num_points = len(evaluate(0, points))
    for name in ("time_s", "energy_j"):
        value = np.asarray(getattr(estimates, name))
        if value.shape != (num_points,):
            raise UserError(
                f"{where}: {name}: got shape {value.shape}; expected ({num_points},): one per point"
            )
        if not (value >= 0).all():
            raise UserError(f"{where}: {name}: got {value.min()}; expected numbers >= 0")
    return estimates
