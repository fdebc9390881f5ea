"""Kernels written in Python: what each feature of the language means."""

from __future__ import annotations

import numpy as np
import pytest
import tolerance
from script_cases import CASES, Case

from strata.core.dims import evaluate
from strata.core.dtypes import dtype
from strata.loop import interp
from strata.loop.check import LOOP_SCHEDULED, check
from strata.loop.text import parse_func, print_func


def run(case: Case, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Inputs, and outputs of the interpreter."""
    inputs = case.inputs(np.random.default_rng(seed))
    dims: dict[str, int] = {}
    for param, array in zip(case.func.params, inputs, strict=False):
        for d, extent in zip(param.shape, array.shape, strict=True):
            dims.setdefault(str(d), extent)
    outputs = case.func.params[len(inputs) :]
    arrays = [
        np.full([evaluate(d, dims) for d in p.shape], 99, np.dtype(p.dtype.numpy_name)) for p in outputs
    ]
    interp.run(case.func, [*inputs, *arrays], parallel_seed=seed)
    return inputs, arrays


@pytest.mark.parametrize("name", CASES)
def test_kernel_computes_what_it_says(name):
    case = CASES[name]
    inputs, (got,) = run(case)
    limit = tolerance.for_(dtype(got.dtype.name), 16)
    np.testing.assert_allclose(
        got.astype(np.float64), np.asarray(case.expected(*inputs), np.float64), **limit
    )


@pytest.mark.parametrize("name", CASES)
def test_text_of_a_kernel_reads_back(name):
    text = print_func(CASES[name].func)
    again = parse_func(text)
    check(again, LOOP_SCHEDULED)
    assert print_func(again) == text
