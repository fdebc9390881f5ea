"""What photonic units cost in accuracy: the front of energy against perplexity, and budgets for plans.

::

    rows = sweep_numerics(DEMO_MODEL, machine, bits=(4, 6, 8, 10), noise=(0, 0.01))
    front(rows)                                            not beaten in both energy and perplexity

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

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from strata.core.errors import UserError
from strata.planner.devices.result import MachinePlan
from strata.planner.numerics import PhotonicNumerics, with_precision
from strata.target.hardware import PHU, Machine

from .simulate import DEFAULT_TOKENS, Simulation, Simulator, photonic_works

Progress = Callable[[int, int, str], None]  # steps done, in all, what the next one is

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One setting of the converters.

    Attributes:
        bits: Of each converter.
        noise: Additive, relative to the full scale of an output.
        energy_j, time_s: Of the plan.
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
    num_photonic: int
    perplexity: float
    exact_perplexity: float
    loss_nats: float
    loss_error_nats: float
    divergence_nats: float


def sweep_numerics(
    model: str | Path,
    machine: Machine,
    *,
    plan: Callable[[Machine], MachinePlan],
    bits: Sequence[int] = (4, 6, 8, 10),
    noise: Sequence[float] = (0.0, 0.01),
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[SweepRow, ...]:
    """Energy and perplexity of a model for converters of different bits and noise.

    The energy of converters doubles per bit, see :mod:`strata.planner.numerics.precision`; each number of
    bits gets a plan of its own. Noise changes no energy and hence no plan.

    Args:
        model: Folder or hub id, with weights.
        machine: With a photonic unit that has converters.
        plan: Plans this model for a machine.
        bits: Of each converter.
        noise: Additive, relative to the full scale of an output.
        tokens: How many to predict.
        seed: Of the noise.
        progress: Called before every row.

    Returns:
        A row for every pair, bits first.

    Raises:
        UserError: the model cannot be read, or the machine has no converters.
    """
    machines = [with_precision(machine, count) for count in bits]  # refused before any work
    simulator = Simulator.open(model, tokens=tokens)
    rows: list[SweepRow] = []
    for count, precise in zip(bits, machines, strict=True):
        chosen = plan(precise)
        for level in noise:
            if progress is not None:
                progress(len(rows), len(bits) * len(noise), f"{count} bits, noise {level:g}")
            units = {d.name: d for d in with_precision(precise, count, level).devices}
            assignment = {
                name: PhotonicNumerics.of(unit)
                for name, phu in photonic_works(chosen).items()
                if isinstance(unit := units[phu.name], PHU)
            }
            found = simulator.run(assignment, seed=seed)
            rows.append(
                SweepRow(
                    count,
                    level,
                    chosen.energy_j,
                    chosen.time_s,
                    len(assignment),
                    found.perplexity,
                    found.exact_perplexity,
                    found.loss_nats,
                    found.loss_error_nats,
                    found.divergence_nats,
                )
            )
    return tuple(rows)


def front(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """The rows that no other beats in energy and perplexity, by energy; of equal ones the first."""
    found: list[SweepRow] = []
    for row in sorted(rows, key=lambda r: (r.energy_j, r.perplexity)):
        if not found or row.perplexity < found[-1].perplexity:
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
    machine: Machine,
    *,
    group: Callable[[str], str] = kind_of,
    tokens: int = DEFAULT_TOKENS,
    seed: int = 0,
    progress: Progress | None = None,
) -> Sensitivity:
    """Run a model with one group of its products after the other on each photonic unit of a machine.

    Args:
        model: Folder or hub id, with weights, or a simulator of it.
        machine: Whose units.
        group: Group of a product, by its name; ``str`` measures every product alone.
        tokens: How many to predict, if ``model`` is no simulator.
        seed: Of the noise.
        progress: Called before every run.

    Raises:
        UserError: the model cannot be read, or the machine has no photonic unit.
    """
    units = {d.name: PhotonicNumerics.of(d) for d in machine.devices if isinstance(d, PHU)}
    if not units:
        devices = ", ".join(f"{d.name} ({d.kind})" for d in machine.devices)
        raise UserError(f"machine {machine.name}: no photonic unit; it has {devices}")
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
