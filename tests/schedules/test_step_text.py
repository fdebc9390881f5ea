"""Rewrites of schedule steps as text: ``steps/*.txt`` holds function, trace, function after it.

``UPDATE_GOLDEN=1 pytest tests/schedules/test_step_text.py`` writes the part after the trace anew.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from strata.core.dims import evaluate
from strata.loop.check import LOOP_LOWERED, LOOP_NAIVE, LOOP_SCHEDULED, check
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.text import parse_func, print_func
from strata.loop.values import numpy_dtype
from strata.schedule import STEPS, apply_trace, finalize, parse_trace, trace_text

FILES = sorted((Path(__file__).parent / "steps").glob("*.txt"))
MARK = "\n==> "
SIZES = {"n": 5, "m": 8}


def outputs(func: Func) -> list[np.ndarray]:
    """Results on small whole numbers, so that sums are exact in any order."""
    rng = np.random.default_rng(0)
    shapes = [tuple(evaluate(d, SIZES) for d in p.shape) for p in func.params]
    args = [
        rng.integers(-4, 5, s).astype(numpy_dtype(p.dtype)) for p, s in zip(func.params, shapes, strict=True)
    ]
    run(func, args, parallel_seed=1)
    return args[-func.num_outputs :]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_rewrite(path: Path) -> None:
    before, _, rest = path.read_text().partition(MARK)
    line, _, after = rest.partition("\n")
    func = parse_func(before)
    assert print_func(func).strip() == before.strip()
    check(func, LOOP_NAIVE)
    trace = parse_trace(line)
    assert trace_text(trace) == line
    scheduled = apply_trace(func, trace)
    check(scheduled, LOOP_SCHEDULED)
    if "UPDATE_GOLDEN" in os.environ:
        path.write_text(f"{before.rstrip()}\n{MARK}{line}\n\n{print_func(scheduled)}")
        return
    assert print_func(scheduled).strip() == after.strip()
    lowered = finalize(scheduled)
    check(lowered, LOOP_LOWERED)
    for got in (outputs(scheduled), outputs(lowered)):
        for a, b in zip(got, outputs(func), strict=True):
            np.testing.assert_array_equal(a, b)


def test_every_step_has_an_example() -> None:
    traces = [parse_trace(p.read_text().partition(MARK)[2].partition("\n")[0]) for p in FILES]
    shown = {step.step_name() for trace in traces for step in trace}
    assert shown == set(STEPS)
