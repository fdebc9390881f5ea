"""``argmax`` of a vocabulary in parts: the first of equal ones, the first NaN, for any number of threads."""

import numpy as np
import pytest

from strata.codegen.build import build_image
from strata.core.dtypes import f32
from strata.graph import builder as b
from strata.graph.nodes import Function
from strata.loop.nodes import Func
from strata.lower import lower_group
from strata.planner.workspace import hoist_workspace
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.schedule import propose
from strata.target import detect_host

ROWS, VOCAB = 9, 50257  # 24.5 parts


@pytest.fixture(scope="module")
def kernel() -> Func:
    x = b.input("x", b.tensor_type((ROWS, VOCAB), f32))
    lowered = lower_group("argmax", Function("argmax", (x,), (b.argmax(x),)))
    (proposal,) = propose(lowered.func, detect_host())
    assert proposal.name == "cpu.parts"
    return hoist_workspace(proposal.func).func


def rows_with(*special: tuple[int, float]) -> np.ndarray:
    """Logits with some values at some places in every row, which ends where the next one begins."""
    rows = np.random.default_rng(0).standard_normal((ROWS, VOCAB)).astype(np.float32)
    for column, value in special:
        rows[:, column] = value
    return rows


CASES = {
    "random": rows_with(),
    "ties": rows_with((3000, 9.0), (3001, 9.0), (49999, 9.0)),
    "ends": rows_with((0, 9.0), (VOCAB - 1, 9.0)),
    "last": rows_with((VOCAB - 1, 9.0)),
    "in two parts": rows_with((VOCAB - 1500, 9.0), (VOCAB - 1400, 9.0)),
    "nan": rows_with((4, np.inf), (20000, np.nan), (40000, np.nan)),
    "all equal": np.zeros((ROWS, VOCAB), np.float32),
    "signs of zero": np.where(np.arange(VOCAB) % 2, 0.0, -0.0).astype(np.float32) * np.ones((ROWS, 1), "f4"),
    "nothing": np.full((ROWS, VOCAB), -np.inf, np.float32),
}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_every_number_of_threads_finds_the_first(kernel: Func, threads: int) -> None:
    image = load_image(build_image([kernel], [], detect_host()).blob, threads)
    for name, rows in CASES.items():
        tops, best = np.full((ROWS, -(-VOCAB // 2048)), np.nan, np.float32), np.full(ROWS, -1, np.int32)
        for _ in range(5):
            image.function("argmax")(*[as_tensor(a) for a in (rows, tops, best)])
            np.testing.assert_array_equal(best, rows.argmax(axis=1), err_msg=name)
