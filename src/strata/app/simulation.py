"""Models on photonic units as tables of the terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .units import si

if TYPE_CHECKING:
    from strata.compiler.accuracy import Sensitivity, SweepRow
    from strata.compiler.simulate import Simulation


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
    """A sweep as JSON says it; ``front``: no other row beats it in both energy and perplexity."""
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
        "time",
        "photonic",
        "perplexity",
        "loss (nat)",
        "divergence (nat)",
    ):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("front")
    for row in rows:
        table.add_row(
            str(row.bits),
            f"{row.noise:g}",
            si(row.energy_j, "J"),
            si(row.time_s, "s"),
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
        yield f"{device}: all at once diverge by {sensitivity.additivity(device):.3f} of the sum of the groups"


def _amounts(simulation: Simulation) -> dict[str, float]:
    names = ("perplexity", "loss_nats", "loss_error_nats", "divergence_nats", "divergence_error_nats")
    return {name: getattr(simulation, name) for name in names}


def _nats(value: float, error: float) -> str:
    return f"{value:.5f} ± {error:.5f} nat"
