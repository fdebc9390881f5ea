"""Speed of every matmul candidate by number of rows, beside the peak of its instruction.

python benchmarks/matmul_tiles.py --outputs 2048 --contracted 5632 --format bf16
python benchmarks/matmul_tiles.py --outputs 2048 --contracted 5632 --format int4
python benchmarks/matmul_tiles.py --outputs 2048 --contracted 5632 --format int8 --rows 1 --ahead 8192

Weights come from memory, as in a model; activations are f32 (for weights of 16 bits: of their dtype).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from strata.app.machine import measure_peak
from strata.core.dims import SymDim
from strata.core.dtypes import DType, f32
from strata.core.knobs import knobs
from strata.core.weight_format import AnyFormat, FormatChoice, parse_format
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.passes import run_passes
from strata.passes.quantize import quantize_weights
from strata.planner.layouts import choose_layouts
from strata.planner.measure import TaskBench
from strata.planner.options import PlanOptions
from strata.planner.stacks import StackBuilder
from strata.runtime.nodes import multiplies
from strata.target import Target, detect_host

ROWS = (1, 2, 4, 6, 8, 16, 64, 512)


def fused_module(outputs: int, contracted: int, format: AnyFormat) -> Module:
    """One product, as the compiler sees it."""
    dtype = format if isinstance(format, DType) else f32
    x = builder.input("x", TensorType((SymDim("m", 1, max(ROWS)), contracted), dtype))
    w = builder.param("w", TensorType((outputs, contracted), dtype))
    module = Module((Function("product", (x,), (builder.matmul(x, w, transpose_b=True, out_dtype=f32),)),))
    if not isinstance(format, DType):
        module = quantize_weights(module, FormatChoice(format))
    return run_passes("default", module)


def measure(args: argparse.Namespace, target: Target) -> None:
    """Print one line per candidate."""
    format = parse_format(args.format)
    module = fused_module(args.outputs, args.contracted, format)
    stacks = StackBuilder(choose_layouts(module, target), target, PlanOptions(measure=False))
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    kernels = stacks.kernels_of(node)
    bench = TaskBench(kernels.task, [c.func for c in kernels.stack.candidates], num_threads=args.threads)
    times = {rows: bench.times_s(rows) for rows in args.rows or ROWS}
    for k, candidate in enumerate(kernels.stack.candidates):
        instruction = multiplies(candidate.trace)
        peak = measure_peak(args.threads, instruction) or 0.0
        line = [f"{candidate.name:<24} peak {peak / 1e9:.0f} G{instruction}/s |"]
        for rows in times:
            rate = 2 * rows * args.outputs * args.contracted / times[rows][k]
            line.append(f"{rows}: {rate / 1e9:.0f} ({rate / peak:.0%})")
        print("  ".join(line), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outputs", type=int, default=2048)
    parser.add_argument("--contracted", type=int, default=2048)
    parser.add_argument("--format", default="f32", help="f32, bf16, f16, int8, int4:group=64, ...")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="*", help=f"default: {ROWS}")
    parser.add_argument(
        "--ahead", type=int, help="bytes by which streams are fetched ahead; default: the target's"
    )
    with tempfile.TemporaryDirectory() as folder, knobs(cache_dir=Path(folder)):  # what is measured anew
        args, host = parser.parse_args(), detect_host()
        measure(args, replace(host, fetch_ahead_bytes=args.ahead) if args.ahead else host)


if __name__ == "__main__":
    main()
