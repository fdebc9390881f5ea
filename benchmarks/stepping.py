"""What launching node by node costs over the native entry, which makes the same launches in one call.

    python benchmarks/stepping.py [MODEL] [--repeats 200] [--threads N]

One decode step, made in turns by the native entry and by runs of several kinds, so that all see the same
state of the machine. Overhead per node is (time of the kind - time of the native entry) / nodes; beginning a
run (checks, binding) is part of it. Times are lower quartiles: other programs only ever add to them. The aim
is at most 3 us for plain stepping. One thread by default: the pool of one kind would spin into the next.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import strata
from strata.assets import DEMO_MODEL
from strata.engine.forward import ForwardPass
from strata.runtime.stepping import NodeEvent

AIM_S = 3e-6


def kinds(forward: ForwardPass) -> dict[str, Callable[[], object]]:
    """Ways to make the same call."""

    def step_by_step() -> None:
        for _ in forward.step():
            pass

    def hooked(hook: Callable[[NodeEvent], object]) -> Callable[[], object]:
        def go() -> None:
            run = forward.step()
            run.after("*", hook)
            run.finish()

        return go

    return {
        "native entry": forward,
        "finish(): all launches": lambda: forward.step().finish(),
        "timed(): with two clock readings": lambda: forward.step().timed(),
        "for node in run": step_by_step,
        "with a hook that does nothing": hooked(lambda event: None),
        "with a hook that reads the value": hooked(lambda event: event.value.flat[0]),
        "keep=True: copies of all values": lambda: forward.step(keep=True).finish(),
    }


def measure(forward: ForwardPass, repeats: int) -> dict[str, list[float]]:
    """Seconds per call of every kind, in turns."""
    calls = kinds(forward)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number >= 2:
                times[name].append(time.perf_counter() - start)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?", default=str(DEMO_MODEL))
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    model = strata.load(options.model, threads=options.threads)
    forward = model.forward_pass("decode", [1] * min(64, model.max_context))
    nodes = len(model.nodes("decode"))
    times = measure(forward, options.repeats)
    quartiles = {name: statistics.quantiles(t, n=4)[0] for name, t in times.items()}
    native_s = quartiles.pop("native entry")
    print(f"{nodes} nodes, native entry {native_s * 1e6:.0f} us")
    for name, seconds in quartiles.items():
        print(
            f"{name:36} {seconds * 1e6:8.0f} us   {(seconds - native_s) / nodes * 1e6:6.2f} us per node more"
        )
    plain = (quartiles["for node in run"] - native_s) / nodes
    print(
        f"plain stepping {'meets' if plain <= AIM_S else 'MISSES'} the aim of {AIM_S * 1e6:.0f} us per node"
    )


if __name__ == "__main__":
    main()
