"""The thread pool: what a fork and join costs, and what another process on one of the cores costs a model.

::

    python benchmarks/threads.py
    python benchmarks/threads.py --shape tinyllama-1.1b --format int8 --share 0.5

*Fork and join* is the time of a kernel with some microseconds of work for each thread, less that of the same
work for one thread alone. *Disturbed* is a prefill while a process of its own computes on one core for
``--share`` of the time; beside it stands the slowdown of work that is split perfectly: ``threads / (threads -
share)``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time

import numpy as np

from strata.app.bench.amounts import Amounts
from strata.app.bench.ours import Runner
from strata.codegen.build import build_image
from strata.compiler.api import Options, compile_definition, define
from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.loop import build as b
from strata.loop.nodes import Buffer, For, ForKind, Func, Load, Store, Var, index, size
from strata.models.shapes import SHAPES, random_params, shape_config
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.target import detect_host

CALLS = 2000
WORK = 4000  # dependent additions: some microseconds
SPACING = 64  # f32 between the results of two threads: cache lines of their own
PERIOD_S = 0.01  # of the disturbing process: it computes for a part of each


def fork_join_s(threads: int) -> float:
    """Seconds that ``threads`` equal pieces of work take longer than one; lower quartiles of many calls."""
    n = SymDim("n", 1, 1 << 10)
    y, i, k = Buffer("y", (n, SPACING), f32), Var("i"), Var("k")
    step = Store(y, (i, index(0)), b.add(Load(y, (i, index(0))), b.const(1.0, f32)))
    body = For(i, size(n), ForKind.PARALLEL, For(k, index(WORK), ForKind.SERIAL, step))
    kernel = load_image(build_image([Func("work", (y,), body)], [], detect_host()).blob, threads).function(
        "work"
    )

    def call_s(pieces: int) -> float:
        array, times = as_tensor(np.zeros((pieces, SPACING), np.float32)), []
        for _ in range(CALLS):
            start = time.perf_counter()
            kernel(array)
            times.append(time.perf_counter() - start)
        return statistics.quantiles(times, n=4)[0]

    return call_s(threads) - call_s(1)


def disturb(share: float, core: int) -> None:
    """Compute on one core for a share of the time, until killed."""
    os.sched_setaffinity(0, {core})
    while True:
        end = time.perf_counter() + share * PERIOD_S
        while time.perf_counter() < end:
            pass
        time.sleep((1 - share) * PERIOD_S)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="tinyllama-1.1b", choices=list(SHAPES))
    parser.add_argument("--format", default="int8")
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--share", type=float, default=0.5)
    args = parser.parse_args()

    threads = detect_host().num_cores
    print(f"fork and join, {threads} threads: {fork_join_s(threads) * 1e6:.2f} us")
    options = Options(args.format, max_batch=1)
    definition = define(shape_config(args.shape), options, args.shape)
    program = compile_definition(definition, options).program(random_params(definition), threads)
    runner = Runner(program, Amounts(args.prompt, 1, 1, args.repeats))
    runner.prefill(args.prompt)
    quiet = statistics.median(runner.prefill(args.prompt) for _ in range(args.repeats))
    other = multiprocessing.Process(target=disturb, args=(args.share, 0), daemon=True)
    other.start()
    disturbed = statistics.median(runner.prefill(args.prompt) for _ in range(args.repeats))
    other.kill()
    ideal = threads / (threads - args.share)
    print(f"prefill of {args.prompt} tokens, {args.format}: {args.prompt / quiet:.1f} tok/s")
    print(f"beside a process that takes {args.share:.0%} of a core: {disturbed / quiet:.2f} times as long")
    print(f"of the work split perfectly ({ideal:.2f}): {disturbed / quiet / ideal:.2f}")


if __name__ == "__main__":
    main()
