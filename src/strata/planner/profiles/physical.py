"""The cost profile ``physical``: honest estimates of every op on devices that a machine file describes.

A candidate's operands stream from where they are (:mod:`.traffic`), overlapped with its arithmetic
(:mod:`.electronic`, :mod:`.photonic`); launches, latencies, pipeline fills and programming come on top.
What a device cannot do it has no candidate for: a photonic unit multiplies matrices and nothing else, a
device with ``ops`` does only these. Functions of the user (``strata.op_cost``) come first; a device of a
class that Strata does not know can do what there is a function for.

Values move between memories along the fewest links and parents, every memory on the way written and read.
Weights and state move with the op that reads them, so moving them apart costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from strata.core.errors import UserError
from strata.graph.workload import Value, ValueKind, Work, Workload
from strata.planner.devices.types import Cause, DeviceCandidate, Estimates, Points, Term, evaluate
from strata.target.hardware import CPU, GPU, PHU, Device, Machine

from .base import CostFunction, user_cost
from .electronic import electronic
from .photonic import can_do, photonic
from .traffic import Amounts, Traffic, amounts, constant


class Physical:
    """Costs by the machine's constants; see the module."""

    shared = True
    by_device = False

    def candidates(
        self, machine: Machine, workload: Workload, work: Work, points: Points
    ) -> tuple[DeviceCandidate, ...]:
        """All ways to compute ``work``.

        Raises:
            UserError: a function of the user that gives something else than estimates.
        """
        sizes = amounts(workload, work, points)
        found: list[DeviceCandidate] = []
        for device in machine.devices:
            if device.ops and work.op not in device.ops:
                continue
            function = user_cost(device, work.op)
            if function is not None:
                estimates = _of_user(function, device, machine, workload, work, points)
            else:
                estimates = tuple(_with_power(device, e) for e in _known(machine, device, work, sizes))
            for number, e in enumerate(estimates):
                name = f"{device.name}.{work.op}" + (".turned" if number else "")
                found.append(DeviceCandidate(name, device.name, device.memory, e))
        return tuple(found)

    def move(
        self, machine: Machine, value: Value, source: str | None, to: str, points: Points
    ) -> Estimates | None:
        """Cost of bringing ``value`` from one memory to another.

        Raises:
            UserError: nothing connects them.
        """
        source = source or machine.home
        if source == to or value.kind in (ValueKind.WEIGHT, ValueKind.STATE):
            return None
        traffic = Traffic(machine)
        traffic.carry(source, to, evaluate(value.elems, points) * (value.bits / 8))
        return Estimates.of(traffic.terms(), overlapped=True)


def _known(machine: Machine, device: Device, work: Work, sizes: Amounts) -> Iterable[Estimates]:
    if not (sizes.flop.any() or sizes.in_bytes.any()):  # a view: nothing is done
        if isinstance(device, CPU | GPU):
            zero = np.zeros_like(sizes.flop)
            yield Estimates(zero, zero)
        return
    match device:
        case CPU() | GPU():
            yield electronic(machine, device, work.op, sizes)
        case PHU():
            if can_do(work):
                yield from photonic(machine, device, sizes)
        case _:
            return


def _with_power(device: Device, estimates: Estimates) -> Estimates:
    """What the device draws while it is busy."""
    if not device.busy_w:
        return estimates
    time_s = estimates.time_s
    energy_j = time_s * device.busy_w
    term = Term(Cause.STATIC, device.name, constant(0.0, time_s), energy_j, time_s, "second")
    return replace(estimates, energy_j=estimates.energy_j + energy_j, terms=(*estimates.terms, term))


def _of_user(
    function: CostFunction, device: Device, machine: Machine, workload: Workload, work: Work, points: Points
) -> tuple[Estimates, ...]:
    """What a function of the user says, checked."""
    estimates = function(device, machine, workload, work, points)
    if estimates is None:
        return ()
    where = f"cost of {work.op} on {device.name} ({getattr(function, '__name__', 'function')})"
    if not isinstance(estimates, Estimates):
        raise UserError(f"{where}: got {type(estimates).__name__}; expected strata.Estimates, or None")
    num_points = len(evaluate(0, points))
    for name in ("time_s", "energy_j"):
        value = getattr(estimates, name)
        if np.shape(value) != (num_points,):
            raise UserError(
                f"{where}: {name}: got shape {np.shape(value)}; expected ({num_points},), one per point"
            )
        if not (value >= 0).all():
            raise UserError(f"{where}: {name}: got {np.min(value)}; expected numbers >= 0")
    return (estimates,)
