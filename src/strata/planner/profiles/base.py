"""What a cost profile is, the table of them, and cost functions that a user adds.

A profile turns one work into candidates on the machine's devices, and one value into what moving it costs.
Everything is an array over points, see :mod:`strata.planner.devices.types`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from strata.core.errors import UserError
from strata.core.registry import Registry
from strata.graph.workload import Value, Work, Workload
from strata.planner.devices.types import DeviceCandidate, Estimates, Points, evaluate
from strata.target.hardware import Device, Machine


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

# ``(device, machine, workload, work, points) -> Estimates``, or ``None`` if it cannot do the work.
CostFunction = Callable[[Device, Machine, Workload, Work, Points], Estimates | None]
_USERS: dict[tuple[str, str], CostFunction] = {}


def op_cost(device: type[Device] | str, op: str) -> Callable[[CostFunction], CostFunction]:
    """Cost ``op`` on devices of a kind (a class, or a device's name) by the decorated function."""
    key = device if isinstance(device, str) else device.__name__.lower()

    def register(function: CostFunction) -> CostFunction:
        _USERS[key, op] = function
        return function

    return register


def user_cost(device: Device, op: str) -> CostFunction | None:
    """The user's function for ``op`` on a device: by its name, its class, or a class that it extends."""
    keys = (device.name, *(cls.__name__.lower() for cls in type(device).__mro__))
    return next((_USERS[key, op] for key in keys if (key, op) in _USERS), None)


def user_costs() -> tuple[tuple[str, str], ...]:
    """For which devices (or classes of them) and ops there is a function of the user."""
    return tuple(sorted(_USERS))


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
