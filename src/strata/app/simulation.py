"""Models on photonic units as tables of the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from strata.core.errors import UserError

from .progress import progress_bar
from .units import si

LOSS_TOKENS = 512  # that each product's loss is measured on

if TYPE_CHECKING:
    from strata.compiler.accuracy import Sensitivity, SweepRow
    from strata.compiler.simulate import Simulation
    from strata.planner.devices.limits import Budget
    from strata.planner.devices.result import MachinePlan


def simulated(plan: MachinePlan, model: str | None, graph: Path | None) -> Simulation:
    """Run a planned model with a progress bar.

    Args:
        plan: At one length.
        model: Folder or hub id that was planned; ``None`` = the demo model.
        graph: Or a graph without weights, which cannot be run.

    Raises:
        UserError: several lengths, no weights, or as :func:`strata.compiler.simulate.simulate`.
    """
    from strata.assets import DEMO_MODEL
    from strata.compiler.simulate import simulate

    if plan.graph.num_points > 1:
        raise UserError(f"--simulate: got {plan.graph.num_points} lengths; expected one")
    if graph is not None:
        raise UserError(f"--simulate: {graph} has no weights; expected a model folder")
    with progress_bar() as show:
        report = None if show is None else lambda done, total: show(done, total, "simulating")
        return simulate(model or DEMO_MODEL, plan, progress=report)


def loss_budget(limit: float, machine: str, model: str | None, graph: Path | None) -> Budget:
    """A budget of lost accuracy: what each product costs on each photonic unit, measured with a progress bar.

    Args:
        limit: Nats per token.
        machine: Whose units.
        model: Folder or hub id; ``None`` = the demo model.
        graph: Or a graph without weights, which cannot be run.

    Raises:
        UserError: no weights, or as :func:`strata.compiler.accuracy.measure_sensitivity`.
    """
    from strata.assets import DEMO_MODEL
    from strata.compiler.accuracy import measure_sensitivity
    from strata.planner.devices.limits import Budget

    if graph is not None:
        raise UserError(f"--max-loss: {graph} has no weights; expected a model folder")
    with progress_bar() as show:
        measured = measure_sensitivity(
            model or DEMO_MODEL, machine, group=str, tokens=LOSS_TOKENS, progress=show
        )
    return Budget("accuracy loss", limit, measured.losses(), "nat per token")


def simulation_figures(simulation: Simulation) -> dict[str, Any]:
    """A simulation as JSON says it."""
    figures = asdict(simulation)
    return figures | {"photonic": len(simulation.photonic), "products": figures.pop("num_products")}


def simulation_lines(simulation: Simulation) -> str:
    """A simulation in two lines."""
    s = simulation
    return (
        f"{len(s.photonic)} of {s.num_products} products on photonic units: perplexity {s.perplexity:.4f}, "
        f"exact {s.exact_perplexity:.4f} ({s.num_tokens} tokens)\n"
        f"loss {_nats(s.loss_nats, s.loss_error_nats)} per token, "
        f"divergence {_nats(s.divergence_nats, s.divergence_error_nats)}"
    )


def sweep_figures(rows: Sequence[SweepRow]) -> list[dict[str, Any]]:
    """A sweep as JSON says it; ``front``: see :func:`strata.compiler.accuracy.front`."""
    from strata.compiler.accuracy import front

    best = front(rows)
    return [asdict(row) | {"front": row in best} for row in rows]


def sweep_table(rows: Sequence[SweepRow], title: str) -> Table:
    """A line per setting; those of the front are marked."""
    from strata.compiler.accuracy import front

    table, best = Table(title=title), front(rows)
    for column in (
        "bits",
        "noise",
        "energy",
        "converters",
        "photonic",
        "perplexity",
        "loss (nat)",
        "divergence",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("front")
    for row in rows:
        table.add_row(
            str(row.bits),
            f"{row.noise:g}",
            si(row.energy_j, "J"),
            si(row.conversion_j, "J"),
            str(row.num_photonic),
            f"{row.perplexity:.4f}",
            f"{row.loss_nats:+.5f} ± {row.loss_error_nats:.5f}",
            f"{row.divergence_nats:.5f}",
            "*" if row in best else "",
        )
    return table


def losses_figures(sensitivity: Sensitivity) -> dict[str, Any]:
    """Losses of groups of products as JSON says them."""
    return {
        "groups": [
            {"group": g.group, "device": g.device, "products": len(g.products)} | _amounts(g.simulation)
            for g in sensitivity.groups
        ],
        "together": [
            {"device": name, "additivity": sensitivity.additivity(name)} | _amounts(simulation)
            for name, simulation in sensitivity.together.items()
        ],
    }


def losses_tables(sensitivity: Sensitivity, title: str) -> Iterator[Table | str]:
    """A line per group of products, and how well they add up."""
    table = Table(title=title)
    for column in ("products", "device"):
        table.add_column(column)
    for column in ("number", "divergence (nat)", "loss (nat)", "perplexity"):
        table.add_column(column, justify="right", no_wrap=True)
    runs = [(g.group, g.device, g.simulation) for g in sensitivity.groups]
    runs += [("all", name, simulation) for name, simulation in sensitivity.together.items()]
    for what, device, s in runs:
        table.add_row(
            what,
            device,
            str(len(s.photonic)),
            f"{s.divergence_nats:.5f} ± {s.divergence_error_nats:.5f}",
            f"{s.loss_nats:+.5f} ± {s.loss_error_nats:.5f}",
            f"{s.perplexity:.4f}",
        )
    yield table
    for device in sensitivity.together:
        ratio = sensitivity.additivity(device)
        yield f"{device}: divergence with all at once, over the sum of the groups: {ratio:.3f}"


def _amounts(simulation: Simulation) -> dict[str, float]:
    names = ("perplexity", "loss_nats", "loss_error_nats", "divergence_nats", "divergence_error_nats")
    return {name: getattr(simulation, name) for name in names}


def _nats(value: float, error: float) -> str:
    return f"{value:.5f} ± {error:.5f} nat"
