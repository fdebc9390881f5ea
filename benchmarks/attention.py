"""Time of every attention candidate by number of tokens, in turns.

python benchmarks/attention.py --heads 32 --kv-heads 4 --head-dim 64 --tokens 1 128 512

One sequence, whose context ends with these tokens (512 in all, or as many as there are); one layer.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from strata.core.dims import SymDim
from strata.core.dtypes import dtype, f32
from strata.core.knobs import knobs
from strata.core.kv_layout import DEFAULT_PAGE_SIZE, KV_FORMATS
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import CacheType, RopeMode, TensorType
from strata.passes import run_passes
from strata.planner.measure import TaskBench
from strata.planner.options import PlanOptions
from strata.planner.stacks import Kernels, StackBuilder
from strata.target import Target, detect_host

TOKENS = (1, 32, 128, 512)


def kernels_of(args: argparse.Namespace, target: Target) -> Kernels:
    """Candidates of the attention of one layer."""
    kind = dtype(KV_FORMATS[args.kv_dtype])
    cache = CacheType(1, args.kv_heads, args.head_dim, kind, DEFAULT_PAGE_SIZE, RopeMode("none"), 0)
    tokens = SymDim("n", 1, max(*args.tokens, 2))
    q = builder.input("q", TensorType((tokens, args.heads, args.head_dim), f32))
    attention = builder.paged_attention(q, kv := builder.input("cache", cache), 0, args.head_dim**-0.5)
    module = run_passes("default", Module((Function("attention", (q, kv), (attention,)),)))
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    return StackBuilder({}, target, PlanOptions(measure=False)).kernels_of(node)


def measure(args: argparse.Namespace, kernels: Kernels) -> Mapping[str, list[float]]:
    """Median seconds by candidate and number of tokens; infinite where a candidate does not apply."""
    found = kernels.stack.candidates
    rounds: dict[str, list[list[float]]] = {c.name: [[] for _ in args.tokens] for c in found}
    for _ in range(args.repeats):
        for place, tokens in enumerate(args.tokens):
            funcs, when = [c.func for c in found], [c.when for c in found]
            with tempfile.TemporaryDirectory() as folder, knobs(cache_dir=Path(folder)):
                times = TaskBench(kernels.task, funcs, when, args.threads).times_s(tokens)
            for candidate, time_s in zip(found, times, strict=True):
                rounds[candidate.name][place].append(time_s)
    return {name: [statistics.median(times) for times in every] for name, every in rounds.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--kv-dtype", default="bf16", choices=list(KV_FORMATS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="*", default=TOKENS)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for name, times in measure(args, kernels_of(args, detect_host())).items():
        line = [f"{name:<24}"]
        for tokens, time_s in zip(args.tokens, times, strict=True):
            line.append(f"{tokens}: {time_s * 1e3:.3f} ms" if time_s < math.inf else f"{tokens}: none")
        print("  ".join(line))


if __name__ == "__main__":
    main()
