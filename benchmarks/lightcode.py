"""LightCode's published plans beside the same plans here, and beside the best ones under its own costs.

    python benchmarks/lightcode.py [--graphs tests/data/relay] [--makespan] [--json]

Published figures: R. Tomich, Z. Zhong, D. Englund, arXiv 2509.16443, from its programs as rebuilt: a plan for
time (no matrix product on the photonic unit) and one for energy (all of them) per length. *Here* are the same
choices, costed by the profile ``lightcode`` and ordered by its rule. *Best* is the exact minimum of what the
plan is for, under the same costs: joules, or seconds one op at a time, since LightCode's own order is no
function of the choices alone (see ``lightcode_schedule``). Change is best against theirs, both costed alike;
it is 0 where LightCode found the best plan, and is never above 0. With ``--makespan``, plans for time are
also ordered by us, works of the same devices and cores side by side: seconds beside those of its order.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from strata.frontend.relay import read_relay
from strata.planner.devices.build import stacked_graph
from strata.planner.devices.objective import parse_objective
from strata.planner.devices.result import totals
from strata.planner.devices.solve import solve
from strata.planner.devices.types import StackedGraph
from strata.planner.order import minimise_makespan
from strata.planner.profiles.lightcode_schedule import lightcode_makespan
from strata.target.hardware import read_machine

GRAPHS = Path(__file__).parents[1] / "tests" / "data" / "relay"
PUBLISHED = json.loads((GRAPHS / "lightcode_published.json").read_text())


@dataclass(frozen=True, slots=True)
class Row:
    """One published plan.

    Attributes:
        graph, length: Of what.
        objective: What it minimises: ``"time"`` or ``"energy"``.
        published_s, published_j: Its figures.
        here_s, here_j: The same choices here, in its order.
        theirs: The objective of its choices, one op at a time, in seconds or joules.
        best: The least that any choices take.
        makespan_s: Of our plan and order on the same devices and cores; ``None`` if not asked for.
    """

    graph: str
    length: int
    objective: str
    published_s: float
    published_j: float
    here_s: float
    here_j: float
    theirs: float
    best: float
    makespan_s: float | None = None

    @property
    def change(self) -> float:
        """Of the best plan against theirs; negative = better."""
        return self.best / self.theirs - 1


def all_on(graph: StackedGraph, device: str) -> np.ndarray:
    """Choices ``[W, P]``: what ``device`` can do there, the rest on the only device that can."""
    numbers = [next((k for k, c in enumerate(s) if c.device == device), 0) for s in graph.stacks]
    return np.repeat(np.array(numbers, np.int16)[:, None], graph.num_points, 1)


def rows(graphs: Path = GRAPHS, makespan: bool = False) -> Iterator[Row]:
    """Every published plan; with ``makespan``, plans for time beside our order."""
    for name in dict.fromkeys(row["graph"] for row in PUBLISHED["rows"]):
        for text, device in PUBLISHED["matmuls_on"].items():
            published = [r for r in PUBLISHED["rows"] if (r["graph"], r["objective"]) == (name, text)]
            points = {"L": np.array([row["length"] for row in published])}
            graph = stacked_graph(read_relay(graphs / f"{name}.json.gz"), read_machine("lightcode"), points)
            objective, choices = parse_objective(text), all_on(graph, device)
            times_s, energies_j = totals(graph, choices)
            theirs = objective.value(times_s, energies_j)
            plan, makespans_s = solve(graph, objective), lightcode_makespan(graph, choices)
            for k, row in enumerate(published):
                figures = row["time_s"], row["energy_mj"] / 1e3, float(makespans_s[k]), float(energies_j[k])
                ours = None
                if makespan and text == "time":
                    _, order, _ = minimise_makespan(graph, k, plan.choices[:, k], effort=0)
                    ours = max(slot.end_s for slot in order)
                yield Row(name, row["length"], text, *figures, float(theirs[k]), float(plan.values[k]), ours)


def table(found: list[Row]) -> Table:
    """The rows for people."""
    out = Table(title="LightCode: published, here, and the best plan under its own costs")
    for header in ("graph", "L", "plan for"):
        out.add_column(header)
    amounts = ("published s", "here s", "published mJ", "here mJ")
    for header in (*amounts, "same digits", "best", "change", "our order"):
        out.add_column(header, justify="right")
    for row in found:
        times, energies = (row.published_s, row.here_s), (row.published_j * 1e3, row.here_j * 1e3)
        same = all(f"{a:.5g}" == f"{b:.5g}" for a, b in (times, energies))
        ours = row.makespan_s
        best = f"{row.best:.5g} s" if row.objective == "time" else f"{row.best * 1e3:.5g} mJ"
        figures = [f"{v:.5g}" for v in (*times, *energies)]
        out.add_row(
            row.graph.removesuffix("_prefill_graph"),
            str(row.length),
            row.objective,
            *figures,
            "all 5" if same else "[red]no[/red]",
            best,
            f"{row.change:+.2%}",
            "" if ours is None else f"{ours:.5g} s ({ours / row.here_s - 1:+.2%})",
        )
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--graphs", type=Path, default=GRAPHS, help="folder of the graphs")
    parser.add_argument("--makespan", action="store_true", help="order plans for time too (a minute)")
    parser.add_argument("--json", action="store_true", help="rows as JSON instead")
    options = parser.parse_args()
    found = list(rows(options.graphs, options.makespan))
    if options.json:
        print(json.dumps([dataclasses.asdict(row) | {"change": row.change} for row in found], indent=1))
    else:
        Console(width=None if sys.stdout.isatty() else 140).print(table(found))


if __name__ == "__main__":
    main()
