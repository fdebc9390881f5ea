"""Speed of every matmul candidate by number of rows, beside the peak of its instruction.

python benchmarks/matmul_tiles.py --outputs 2048 --contracted 5632 --format bf16
"""

from __future__ import annotations

import argparse
import statistics
import time

import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16)
import numpy as np

from strata.app.machine import measure_peak
from strata.codegen.build import build_image
from strata.core.dims import SymDim
from strata.core.dtypes import dtype, f32
from strata.graph import builder
from strata.graph.nodes import Function
from strata.graph.types import TensorType
from strata.lower import lower_group
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.schedule import propose
from strata.schedule.rules.matmul import weight_layout
from strata.target import detect_host

ROWS = (1, 2, 4, 6, 8, 16, 64, 512)


def main() -> None:
    """Measure and print one line per candidate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outputs", type=int, default=2048)
    parser.add_argument("--contracted", type=int, default=2048)
    parser.add_argument("--format", default="f32", choices=["f32", "bf16", "f16"])
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    target, weight_dtype = detect_host(), dtype(args.format)
    n, k, m = args.outputs, args.contracted, SymDim("m", 1, max(ROWS))
    layout = weight_layout(weight_dtype, k, False, target)
    x = builder.input("x", TensorType((m, k), weight_dtype))
    w = builder.input("w", TensorType((n, k), weight_dtype))
    body = Function("matmul", (x, w), (builder.matmul(x, w, transpose_b=True, out_dtype=f32),))
    weight = layout.pack(np.random.default_rng(0).random((n, k), np.float32).astype(weight_dtype.numpy_name))
    for proposal in propose(lower_group("kernel", body, {1: layout}).func, target):
        image = load_image(build_image([proposal.func], [], target).blob, args.threads)
        kernel = image.function(proposal.func.name)
        peak = measure_peak(args.threads, "bf16" if proposal.dot else "f32") or 0.0
        line = [f"{proposal.name:<24} peak {peak / 1e9:.0f} GFLOP/s |"]
        for rows in ROWS:
            activations = (
                np.random.default_rng(1).random((rows, k), np.float32).astype(weight_dtype.numpy_name)
            )
            tensors = [as_tensor(a) for a in (activations, weight, np.empty((rows, n), np.float32))]
            kernel(*tensors)
            times = []
            for _ in range(5):
                start = time.perf_counter()
                kernel(*tensors)
                times.append(time.perf_counter() - start)
            rate = 2 * rows * n * k / statistics.median(times)
            line.append(f"{rows}: {rate / 1e9:.0f} ({rate / peak:.0%})")
        print("  ".join(line), flush=True)


if __name__ == "__main__":
    main()
