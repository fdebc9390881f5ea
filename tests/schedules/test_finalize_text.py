"""What ``finalize`` makes, as text: ``finalize/*.txt`` holds a function and what becomes of it.

``UPDATE_GOLDEN=1 pytest tests/schedules/test_finalize_text.py`` writes the second part anew.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from strata.codegen.build import build_image
from strata.core.dims import evaluate
from strata.loop.check import LOOP_LOWERED, LOOP_SCHEDULED, check
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.text import parse_func, print_func
from strata.loop.values import numpy_dtype
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.schedule import finalize
from strata.target import detect_host

FILES = sorted((Path(__file__).parent / "finalize").glob("*.txt"))
MARK = "\n==>\n"


def arguments(func: Func, n: int) -> list[np.ndarray]:
    """Small whole numbers: sums are exact in any order, and integers may be indices into 16 elements."""
    rng = np.random.default_rng(n)
    args = []
    for param in func.params:
        shape = tuple(evaluate(d, {"n": n}) for d in param.shape)
        args.append(rng.integers(0 if param.dtype.is_int else -4, 9, shape).astype(numpy_dtype(param.dtype)))
    return args


def outputs(func: Func, n: int) -> list[np.ndarray]:
    """Results by the interpreter."""
    args = arguments(func, n)
    run(func, args)
    return args[-func.num_outputs :]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_finalize(path: Path) -> None:
    before, _, after = path.read_text().partition(MARK)
    func = parse_func(before)
    assert print_func(func).strip() == before.strip()
    check(func, LOOP_SCHEDULED)
    lowered = finalize(func)
    check(lowered, LOOP_LOWERED)
    text = print_func(lowered)
    if "UPDATE_GOLDEN" in os.environ:
        path.write_text(f"{before.rstrip()}\n{MARK}\n{text}")
        return
    assert text.strip() == after.strip()
    for n in (1, 5, 8):
        for a, b in zip(outputs(lowered, n), outputs(func, n), strict=True):
            np.testing.assert_array_equal(a, b)


def test_machine_code_agrees() -> None:
    """The same functions in machine code: masks in variables, masked gathers, reductions under masks."""
    funcs = []
    for path in FILES:
        func = finalize(parse_func(path.read_text().partition(MARK)[0]))
        funcs.append(Func(path.stem, func.params, func.body, func.num_outputs))
    image = load_image(build_image(funcs, [], detect_host()).blob, 2)
    for func in funcs:
        for n in (1, 5, 8):
            args, expected = arguments(func, n), arguments(func, n)
            run(func, expected)
            image.function(func.name)(*[as_tensor(a) for a in args], *([n] if func.dims else []))
            for a, b in zip(args, expected, strict=True):
                np.testing.assert_array_equal(a, b, err_msg=func.name)
