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

from dataclasses import replace

import numpy as np

from strata.graph.workload import Value, ValueKind, Work, Workload
from strata.planner.devices.types import Cause, DeviceCandidate, Estimates, Points, Term, evaluate
from strata.target.hardware import CPU, GPU, PHU, Device, Machine

from .base import user_estimates
from .electronic import electronic
from .photonic import can_do, photonic
from .traffic import Amounts, Traffic, amounts, constant


class Physical:
    """Costs by the machine's constants; see the module."""

    shared = True
    by_device = False
    granularity = "ops"

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
            for way, estimates in _ways(machine, device, workload, work, sizes, points).items():
                name = f"{device.name}.{work.op}{way}"
                found.append(DeviceCandidate(name, device.name, device.memory, estimates))
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


def _ways(
    machine: Machine, device: Device, workload: Workload, work: Work, sizes: Amounts, points: Points
) -> dict[str, Estimates]:
    """Costs of the ways to do a work on a device; a function of the user says all, also the power."""
    function = machine.cost_of(device, work.op)
    if function is None:
        known = _known(machine, device, work, sizes)
        return {way: _with_power(device, estimates) for way, estimates in known.items()}
    estimates = user_estimates(function, device, machine, workload, work, points)
    return {} if estimates is None else {"": estimates}


def _known(machine: Machine, device: Device, work: Work, sizes: Amounts) -> dict[str, Estimates]:
    match device:
        case CPU() | GPU() if not (sizes.flop.any() or sizes.in_bytes.any()):  # a view: nothing is done
            return {"": Estimates(np.zeros_like(sizes.flop), np.zeros_like(sizes.flop))}
        case CPU() | GPU():
            return {"": electronic(machine, device, work.op, sizes)}
        case PHU() if can_do(work):
            return photonic(machine, device, sizes)
    return {}


def _with_power(device: Device, estimates: Estimates) -> Estimates:
    """What the device draws while it is busy."""
    if not device.busy_w:
        return estimates
    time_s = estimates.time_s
    energy_j = time_s * device.busy_w
    term = Term(Cause.STATIC, device.name, constant(0.0, time_s), energy_j, time_s, "second")
    return replace(estimates, energy_j=estimates.energy_j + energy_j, terms=(*estimates.terms, term))
