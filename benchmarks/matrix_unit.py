"""Speed of a matrix unit by where its operands are: tile registers, the level-1, level-2 or level-3 cache.

python benchmarks/matrix_unit.py --threads 1 --seconds 20

Each round multiplies two tiles by two, which takes four loads unless they stay in registers. Sizes take
turns, and the speed with registers is taken before and after each: on a virtual machine a core may be shared
with somebody else for milliseconds, which lowers all speeds, but not alike. Both states are reported.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from strata.app.machine import PEAKS, tile_peak_func
from strata.codegen.build import build_image
from strata.loop.values import numpy_dtype
from strata.runtime.image import load_image
from strata.runtime.tensors import aligned_empty, as_tensor
from strata.target import detect_host

PAIRS = (1, 4, 16, 64, 256, 1024)  # of tiles, of each operand: 4 KiB together
ROUNDS = 4096
FULL, SHARED = 0.85, 0.6  # of the best speed from registers: at least, at most


def calls_of(name: str, threads: int) -> dict[int, Callable[[], float]]:
    """Per number of pairs, what runs once and returns Gflop/s."""
    peak = PEAKS[name]
    funcs = {n: replace(tile_peak_func(name, n), name=f"pairs_{n}") for n in PAIRS}
    image = load_image(build_image(list(funcs.values()), [], detect_host()).blob, threads)

    def call_of(pairs: int) -> Callable[[], float]:
        *operands, sums = funcs[pairs].params
        z = np.empty((threads, *sums.shape[1:]), numpy_dtype(peak.sums))
        args = [np.zeros(ROUNDS, np.float32), z]
        for place, operand in enumerate(operands[:2]):
            tiles = aligned_empty(operand.shape, numpy_dtype(operand.dtype))
            tiles.fill(1)
            args.insert(place, tiles)
        kernel, tensors = image.function(f"pairs_{pairs}"), [as_tensor(a) for a in args]
        flop = 2.0 * peak.products * 16 * z.size * ROUNDS

        def call() -> float:
            start = time.perf_counter()
            kernel(*tensors)
            return flop / (time.perf_counter() - start) / 1e9

        return call

    return {pairs: call_of(pairs) for pairs in PAIRS}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", default="bf16", choices=("bf16", "int8"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0)
    args = parser.parse_args()
    if not PEAKS[args.format].by_tiles(detect_host()):
        parser.exit(2, f"matrix_unit: this machine has no matrix unit for {args.format}\n")
    calls = calls_of(args.format, args.threads)
    rounds: list[tuple[int, float, float, float]] = []
    end = time.perf_counter() + args.seconds
    while time.perf_counter() < end:
        for pairs, call in calls.items():
            rounds.append((pairs, calls[1](), call(), calls[1]()))
    best = max(max(before, after) for _, before, _, after in rounds)
    print(f"{args.format}, {args.threads} threads; from registers at best {best:.0f} Gflop/s")
    for pairs in PAIRS:
        mine = [r[1:] for r in rounds if r[0] == pairs]
        full = [rate for before, rate, after in mine if min(before, after) >= FULL * best]
        shared = [rate for before, rate, after in mine if max(before, after) <= SHARED * best]
        states = (f"{statistics.median(s):6.0f} ({len(s)})" if s else "   none" for s in (full, shared))
        where = "registers" if pairs == 1 else f"{4 * pairs} KiB"
        print(f"{where:>10}: undisturbed {next(states)}, shared {next(states)}")


if __name__ == "__main__":
    main()
