"""What the interpreter computes for library functions: strides, transposition, and sizes that do not fit."""

import ml_dtypes  # noqa: F401  (registers bfloat16)
import numpy as np
import pytest

from strata.core.errors import VerifyError
from strata.loop.externs import EXTERNS
from strata.loop.library_externs import PLAIN, ROW_MAJOR, TRANSPOSED

SGEMM, SGEMV = EXTERNS["openblas.sgemm"].semantics, EXTERNS["openblas.sgemv"].semantics


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(shape).integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize("trans_a", [PLAIN, TRANSPOSED])
@pytest.mark.parametrize("trans_b", [PLAIN, TRANSPOSED])
def test_sgemm(trans_a, trans_b):
    a, w = draw(3, 5), draw(5, 4)
    stored_a = a if trans_a == PLAIN else np.ascontiguousarray(a.T)
    stored_w = w if trans_b == PLAIN else np.ascontiguousarray(w.T)
    c = np.full((3, 6), np.nan, np.float32)  # rows 6 apart, of which 4 are written
    lda, ldb = stored_a.shape[1], stored_w.shape[1]
    SGEMM(ROW_MAJOR, trans_a, trans_b, 3, 4, 5, 2.0, stored_a, lda, stored_w, ldb, 0.0, c, 6)
    np.testing.assert_array_equal(c[:, :4], 2 * (a @ w))
    assert np.isnan(c[:, 4:]).all()


@pytest.mark.parametrize("trans", [PLAIN, TRANSPOSED])
def test_sgemv(trans):
    a = draw(3, 5)
    matrix = a if trans == PLAIN else a.T
    x, y = draw(matrix.shape[1], 2), np.full((matrix.shape[0], 3), np.nan, np.float32)
    SGEMV(ROW_MAJOR, trans, 3, 5, 1.0, a, 5, x, 2, 0.0, y, 3)
    np.testing.assert_array_equal(y[:, 0], matrix @ x[:, 0])
    assert np.isnan(y[:, 1:]).all()


@pytest.mark.parametrize(
    ("operand", "result"), [("float32", "float32"), ("bfloat16", "float32"), ("int8", "int32")]
)
def test_onednn(operand, result):
    names = {"float32": "f32", "bfloat16": "bf16", "int8": "i8", "int32": "i32"}
    a, w = draw(2, 3, 5), draw(5, 4)
    extern = EXTERNS[f"onednn.matmul_{names[operand]}_{names[result]}"]
    c = np.zeros((2, 3, 4), result)
    extern.semantics(a.astype(operand), w.astype(operand), c)
    np.testing.assert_array_equal(c, a @ w)
    EXTERNS[f"{extern.name}_t"].semantics(a.astype(operand), np.ascontiguousarray(w.T).astype(operand), c)
    np.testing.assert_array_equal(c, a @ w)


def test_sizes_outside_of_a_buffer():
    a, w, c = draw(3, 5), draw(5, 4), draw(3, 4)
    args = [ROW_MAJOR, PLAIN, PLAIN, 3, 4, 5, 1.0, a, 5, w, 4, 0.0, c, 4]
    SGEMM(*args)
    for place, wrong, message in (
        (
            3,
            4,
            r"openblas.sgemm: got 4 rows of 5, 5 apart, in a buffer of 15 elements; expected them",
        ),
        (10, 3, r"openblas.sgemm: got 5 rows of 4, 3 apart, in a buffer of 20 elements"),
        (0, 102, r"openblas.sgemm: got order 102, beta 0.0; expected 101 \(row-major\) and 0"),
        (11, 1.0, r"openblas.sgemm: got order 101, beta 1.0; expected 101 \(row-major\) and 0"),
    ):
        with pytest.raises(VerifyError, match=message):
            SGEMM(*[wrong if i == place else x for i, x in enumerate(args)])
    SGEMM(*[0 if i == 3 else x for i, x in enumerate(args)])  # no rows at all
    with pytest.raises(
        VerifyError, match=r"in a strided buffer of 12 elements; expected them inside of a dense"
    ):
        SGEMM(*[c[:, ::-1] if x is c else x for x in args])
