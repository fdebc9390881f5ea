"""What photonic units cost in accuracy: the front of energy against perplexity, and budgets for plans.

::

    rows = sweep_numerics(DEMO_MODEL, machine, bits=(4, 6, 8, 10), noise=(0, 0.01))
    front(rows)                                            not beaten in both energy and accuracy

    sensitivity = measure_sensitivity(DEMO_MODEL, machine)
    sensitivity.losses()                                   (work, device) -> nats per token

A loss is the rise of the mean negative log likelihood per token, in nats: a loss of 0.01 makes the
perplexity 1 % larger. Budgets are in divergences instead (Kullback-Leibler, nats per token): the same thing
where the model predicts the text as well as it believes, but no matter of chance, so that a thousand tokens
tell apart what a loss needs a million for.

A divergence is, to first order, quadratic in the errors of logits, and errors of works are independent: those
of several works add up as long as they are small. :meth:`Sensitivity.additivity` says how far that holds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata.core.errors import UserError
from strata.planner.devices.result import MachinePlan, charges
from strata.planner.devices.types import Cause
from strata.planner.numerics import PhotonicNumerics, with_precision
from strata.target.hardware import PHU, Machine, read_machine

from .machine_plan import plan
from .simulate import DEFAULT_TOKENS, WINDOW, Simulation, Simulator, photonic_works

Progress = Callable[[int, int, str], None]  # steps done, in all, what the next one is

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One setting of the converters.

    Attributes:
        bits: Of each converter.
        noise: Additive, relative to the full scale of an output.
        energy_j, time_s: Of the plan.
        conversion_j: The part of the energy that goes into converters, which is what bits change.
        num_photonic: Products on photonic units.
        perplexity: With them.
        exact_perplexity: Without.
        loss_nats, loss_error_nats: Loss per token and its standard error.
        divergence_nats: Of the predictions from the exact ones, per token.
    """

    bits: int
    noise: float
    energy_j: float
    time_s: float
    conversion_j: float
    num_photonic: int
    perplexity: float
    exact_perplexity: float
    loss_nats: float
    loss_error_nats: float
    divergence_nats: float


def sweep_numerics(
    model: str | Path,
    machine: Machine | str | Path,
    *,
    bits: Sequence[int] = (4, 6, 8, 10),
    noise: Sequence[float] = (0.0, 0.01),
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[SweepRow, ...]:
    """Energy and perplexity of a model for converters of different bits and noise.

    The energy of converters doubles per bit, see :mod:`strata.planner.numerics.precision`; each number of
    bits gets a plan of its own. Noise changes no energy and hence no plan.

    Args:
        model: Folder or hub id, with weights.
        machine: With a photonic unit that has converters; a machine, its name, or a file.
        bits: Of each converter.
        noise: Additive, relative to the full scale of an output.
        tokens: How many to predict.
        seed: Of the noise.
        progress: Called before every row.
        options: Of :func:`strata.plan`, such as ``objective`` and ``pins``; the length is that of a window
            unless ``seq_len`` says otherwise.

    Returns:
        A row for every pair, bits first.

    Raises:
        UserError: the model or the machine cannot be read, the machine has no converters, there are several
            lengths or runs, or as :func:`strata.plan`.
    """
    found = machine if isinstance(machine, Machine) else read_machine(machine)
    machines = [with_precision(found, count) for count in bits]  # refused before any work
    arguments: dict[str, Any] = {"seq_len": WINDOW} | options
    simulator = Simulator.open(model, tokens=tokens)
    rows: list[SweepRow] = []
    for count, precise in zip(bits, machines, strict=True):
        chosen = plan(model, precise, **arguments)
        if not isinstance(chosen, MachinePlan) or chosen.graph.num_points != 1:
            raise UserError("sweep: got several lengths or runs; expected the plan of one")
        conversion_j = _conversion_j(chosen)
        for level in noise:
            if progress is not None:
                progress(len(rows), len(bits) * len(noise), f"{count} bits, noise {level:g}")
            units = {d.name: d for d in with_precision(precise, count, level).devices}
            assignment = {
                name: PhotonicNumerics.of(unit)
                for name, phu in photonic_works(chosen).items()
                if isinstance(unit := units[phu.name], PHU)
            }
            run = simulator.run(assignment, seed=seed)
            rows.append(
                SweepRow(
                    count,
                    level,
                    chosen.energy_j,
                    chosen.time_s,
                    conversion_j,
                    len(assignment),
                    run.perplexity,
                    run.exact_perplexity,
                    run.loss_nats,
                    run.loss_error_nats,
                    run.divergence_nats,
                )
            )
    return tuple(rows)


def _conversion_j(plan: MachinePlan) -> float:
    """Energy of converters at the first point, those of moves included."""
    chosen = [s[c] for s, c in zip(plan.graph.stacks, plan.choices[:, 0], strict=True)]
    made = [candidate.estimates for candidate in chosen]
    made += [charge.estimates for charge in charges(plan.graph, plan.choices) if charge.mask[0]]
    return float(sum(t.energy_j[0] for e in made for t in e.terms if t.cause is Cause.CONVERSION))


def front(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """The rows that no other of the same noise beats in energy and divergence, by energy.

    Noise is what a unit has, bits are what one chooses. Divergence rather than perplexity, since that of a
    short text falls and rises by chance.
    """
    found: list[SweepRow] = []
    least: dict[float, float] = {}
    for row in sorted(rows, key=lambda r: (r.energy_j, r.divergence_nats)):
        if row.divergence_nats < least.get(row.noise, math.inf):
            least[row.noise] = row.divergence_nats
            found.append(row)
    return tuple(found)


# --- budgets --------------------------------------------------------------------------------------


def kind_of(product: str) -> str:
    """The name of a product for all layers: ``"model.layers.*.mlp.down_proj"``."""
    return _NUMBER.sub("*", product)


@dataclass(frozen=True, slots=True)
class GroupLoss:
    """What it costs to compute some products, and no others, on a photonic unit.

    Attributes:
        group: What they are.
        device: Name of the unit.
        products: Their names.
        simulation: The run with all of them on the unit.
    """

    group: str
    device: str
    products: tuple[str, ...]
    simulation: Simulation


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """Losses of groups of products on photonic units.

    Attributes:
        groups: One per group and unit.
        together: By the name of a unit: the run with all groups on it at once.
    """

    groups: tuple[GroupLoss, ...]
    together: Mapping[str, Simulation]

    def sum_nats(self, device: str) -> float:
        """Divergence with all groups on a unit, if divergences add up."""
        return sum(g.simulation.divergence_nats for g in self.groups if g.device == device)

    def additivity(self, device: str) -> float:
        """Divergence with all groups on a unit, over the sum of theirs: 1 where they add up exactly.

        Between exact units, which cost nothing, it is 1.
        """
        total = self.sum_nats(device)
        return self.together[device].divergence_nats / total if total > 0 else 1.0

    def losses(self) -> dict[tuple[str, str], float]:
        """Nats per token by (name of a work, name of a device); pairs without an entry cost nothing.

        A group's divergence is spread evenly over its products.
        """
        return {
            (name, g.device): g.simulation.divergence_nats / len(g.products)
            for g in self.groups
            for name in g.products
        }


def measure_sensitivity(
    model: str | Path | Simulator,
    machine: Machine | str | Path,
    *,
    group: Callable[[str], str] = kind_of,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """Run a model with one group of its products after the other on each photonic unit of a machine.

    Args:
        model: Folder or hub id, with weights, or a simulator of it.
        machine: Whose units; a machine, its name, or a file.
        group: Group of a product, by its name; ``str`` measures every product alone.
        tokens: How many to predict, if ``model`` is no simulator.
        seed: Of the noise.
        progress: Called before every run.

    Raises:
        UserError: the model cannot be read, or the machine has no photonic unit.
    """
    owner = machine if isinstance(machine, Machine) else read_machine(machine)
    units = {d.name: PhotonicNumerics.of(d) for d in owner.devices if isinstance(d, PHU)}
    if not units:
        devices = ", ".join(f"{d.name} ({d.kind})" for d in owner.devices)
        raise UserError(f"machine {owner.name}: no photonic unit; it has {devices}")
    simulator = model if isinstance(model, Simulator) else Simulator.open(model, tokens=tokens)
    members: dict[str, list[str]] = {}
    for name in simulator.products:
        members.setdefault(group(name), []).append(name)
    groups: list[GroupLoss] = []
    together: dict[str, Simulation] = {}
    total = len(units) * (len(members) + 1)

    def run(products: Sequence[str], numerics: PhotonicNumerics, what: str) -> Simulation:
        if progress is not None:
            progress(len(groups) + len(together), total, what)
        return simulator.run(dict.fromkeys(products, numerics), seed=seed)

    for device, numerics in units.items():
        for name, products in members.items():
            groups.append(GroupLoss(name, device, tuple(products), run(products, numerics, name)))
        together[device] = run(simulator.products, numerics, "all")
    return Sensitivity(tuple(groups), together)
