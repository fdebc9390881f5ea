"""Kernels written in Python as machine code: the interpreter is the definition."""

from __future__ import annotations

import numpy as np
import pytest
import tolerance
from script_cases import CASES

from strata.compiler.kernel import Kernel
from strata.core.dtypes import dtype


@pytest.mark.parametrize("name", CASES)
def test_machine_code_is_the_interpreter(name):
    case = CASES[name]
    kernel = Kernel(case.func)
    inputs = case.inputs(np.random.default_rng(1))
    got, defined = kernel(*inputs), kernel.interpret(*inputs)
    limit = tolerance.for_(dtype(got.dtype.name), 16)
    np.testing.assert_allclose(got.astype(np.float64), defined.astype(np.float64), **limit)
