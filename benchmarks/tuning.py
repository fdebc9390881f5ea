"""Default rules beside schedules tuned from scratch, on the layers of TinyLlama in f32.

python benchmarks/tuning.py --trials 200

For every matmul of a layer, at 1 and at 128 rows: the time of the fastest schedule that the rules propose,
the time of the fastest one that a search found which knew nothing of the rules, the ratio, and how long the
search took. Both times are from one run, measured in turn.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.passes import run_passes
from strata.planner.tuning.database import Database
from strata.planner.tuning.tasks import ModelPass, model_tasks
from strata.planner.tuning.tuner import TuneOptions, tune
from strata.planner.tuning.workers import LocalWorkers
from strata.target import detect_host

LAYERS = {  # outputs, inputs
    "qkv": (2560, 2048),
    "o": (2048, 2048),
    "gate_up": (11264, 2048),
    "down": (2048, 5632),
}


def layer(name: str) -> Module:
    """One matmul with a weight param ``[N, K]`` and a symbolic number of rows."""
    outputs, inputs = LAYERS[name]
    n = SymDim("n", 1, 512)
    x = builder.input("x", TensorType((n, inputs), f32))
    w = builder.param("w", TensorType((outputs, inputs), f32))
    function = Function(name, (x,), (builder.matmul(x, w, transpose_b=True, out_dtype=f32),))
    return run_passes("default", Module((function,)))


def main() -> None:
    """Search and print one line per layer and number of rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--layers", default=",".join(LAYERS), help="names with commas")
    parser.add_argument("--rows", default="1,128", help="numbers with commas")
    parser.add_argument("--with-rules", action="store_true", help="start from what the rules propose")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    target = detect_host()
    print(
        f"{'layer':<10} {'rows':>5} {'rules':>10} {'tuned':>10} {'ratio':>6} {'trials':>7} {'failed':>7} "
        f"{'search':>8}"
    )
    options = TuneOptions(args.trials, from_scratch=not args.with_rules, seed=args.seed)
    with tempfile.TemporaryDirectory() as folder, LocalWorkers() as workers:
        for name in args.layers.split(","):
            for rows in map(int, args.rows.split(",")):
                tasks = model_tasks(layer(name), target, [ModelPass(name, rows)])
                report = tune(tasks, Database(Path(folder) / "tuning.jsonl"), workers, options)
                (result,) = report.results
                ratio = result.untuned_s / result.found_s
                print(
                    f"{name:<10} {rows:>5} {result.untuned_s * 1e3:>7.3f} ms {result.found_s * 1e3:>7.3f} ms "
                    f"{ratio:>6.2f} {report.trials:>7} {result.errors:>7} {report.seconds:>6.1f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
