"""How many plans of GPT-2 a sweep makes per minute on one core.

    python benchmarks/sweep.py [--points 200] [--repeats 3] [--json]

A plan is one row: the exact best choice for one setting of the machine's parameters, length and objective,
with its cost. *Alone*: every setting at one length; *lengths*: at sixteen lengths each. GPT-2 is the shape
(209 ops) and the graph that LightCode plans (``tests/data/relay``). Seconds are those of one core
(``time.process_time``), the least of the repeats; reading the model is counted once per sweep, as it happens.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from strata.compiler.explore import sweep

GRAPH = Path(__file__).parents[1] / "tests" / "data" / "relay" / "gpt2_prefill_graph.json.gz"
MODELS = {"gpt2-124m": "gpt2-124m", "gpt2 (graph)": GRAPH}
LENGTHS = {"alone": [1024], "lengths": list(range(64, 1025, 64))}


@dataclass(frozen=True, slots=True)
class Rate:
    """One sweep.

    Attributes:
        model, machine, objective, lengths: What was planned.
        plans: Rows.
        core_s: Seconds of one core, from the call to the rows.
        per_minute: Plans.
    """

    model: str
    machine: str
    objective: str
    lengths: str
    plans: int
    core_s: float
    per_minute: float


def measure(model: str, machine: str, objective: str, lengths: str, points: int, repeats: int) -> Rate:
    """The fastest of some sweeps over ``points`` settings of the photonic unit."""
    vary = {"devices.phu.multiplex": f"1..{(points + 1) // 2}", "devices.phu.cores": [1, 4]}
    best_s, plans = float("inf"), 0
    for _ in range(repeats):
        begin = time.process_time()
        rows = sweep(MODELS[model], machine, vary, seq_len=LENGTHS[lengths], objective=objective)
        best_s, plans = min(best_s, time.process_time() - begin), len(rows)
    return Rate(model, machine, objective, lengths, plans, best_s, 60 * plans / best_s)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=200, help="settings of the machine")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    cases = [
        (model, machine, objective, lengths)
        for model in MODELS
        for machine in ("lightcode", "lightcode-honest")
        for objective in ("energy", "edp")
        for lengths in LENGTHS
    ]
    rates = [measure(*case, args.points, args.repeats) for case in cases]
    if args.json:
        print(json.dumps([asdict(r) for r in rates], indent=2))
        return
    table = Table("model", "machine", "objective", "lengths", "plans", "core s", "plans per minute")
    for r in rates:
        figures = (str(r.plans), f"{r.core_s:.2f}", f"{r.per_minute:,.0f}")
        table.add_row(r.model, r.machine, r.objective, r.lengths, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
