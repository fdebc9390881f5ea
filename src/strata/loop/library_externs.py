"""What the functions of the vendor libraries take and compute (``runtime.libraries`` says where they are).

============================== ==============================================================================
extern                         what it computes
============================== ==============================================================================
``openblas.sgemm``             ``c = alpha * a @ b`` of row-major f32, as ``cblas_sgemm``; beta must be 0
``openblas.sgemv``             ``y = alpha * a @ x`` of row-major f32, as ``cblas_sgemv``; beta must be 0
``onednn.matmul_<in>_<out>``   ``c[.., m, n] = a[.., m, k] @ b[k, n]``: f32_f32, bf16_bf16, bf16_f32, i8_i32
``onednn.matmul_<in>_<out>_t`` the same with ``b[n, k]`` transposed
============================== ==============================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from strata.core.dtypes import DType, bf16, f32, i8, i32
from strata.core.errors import VerifyError

from .externs import EXTERNS, Convention, Extern, ExternParam, Role

Array = np.ndarray[Any, Any]

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112  # CBLAS_LAYOUT, CBLAS_TRANSPOSE
ONEDNN_MATMULS = ((f32, f32), (bf16, bf16), (bf16, f32), (i8, i32))  # operands, result


def onednn_matmul(operand: DType, result: DType, *, transposed: bool) -> str:
    """Name of the extern for these dtypes."""
    return f"onednn.matmul_{operand}_{result}{'_t' if transposed else ''}"


def _matrix(where: str, array: Array, rows: int, columns: int, stride: int) -> Array:
    """``rows`` rows of ``columns`` elements, ``stride`` elements apart, from the start of ``array``."""
    need = (rows - 1) * stride + columns if rows and columns else 0
    if stride < max(columns, 1) or need > array.size or not array.flags.c_contiguous:
        kind = "" if array.flags.c_contiguous else "strided "
        raise VerifyError(
            f"{where}: got {rows} rows of {columns}, {stride} apart, in a {kind}buffer of {array.size} "
            "elements; expected them inside of a dense one"
        )
    flat = array.reshape(-1)
    size = flat.itemsize
    return np.lib.stride_tricks.as_strided(flat, (rows, columns), (stride * size, size))


def _check_blas(where: str, order: int, beta: float) -> None:
    if order != ROW_MAJOR or beta != 0:
        raise VerifyError(f"{where}: got order {order}, beta {beta}; expected {ROW_MAJOR} (row-major) and 0")


def _sgemm(
    order: int,
    trans_a: int,
    trans_b: int,
    m: int,
    n: int,
    k: int,
    alpha: float,
    a: Array,
    lda: int,
    b: Array,
    ldb: int,
    beta: float,
    c: Array,
    ldc: int,
) -> None:
    where = "openblas.sgemm"
    _check_blas(where, order, beta)
    left = _operand(where, a, trans_a, m, k, lda)
    right = _operand(where, b, trans_b, k, n, ldb)
    product = left.astype(np.float64) @ right.astype(np.float64)
    _matrix(where, c, m, n, ldc)[...] = alpha * product


def _operand(where: str, array: Array, trans: int, rows: int, columns: int, stride: int) -> Array:
    if trans == TRANSPOSED:
        return _matrix(where, array, columns, rows, stride).T
    return _matrix(where, array, rows, columns, stride)


def _sgemv(
    order: int,
    trans: int,
    m: int,
    n: int,
    alpha: float,
    a: Array,
    lda: int,
    x: Array,
    incx: int,
    beta: float,
    y: Array,
    incy: int,
) -> None:
    where = "openblas.sgemv"
    _check_blas(where, order, beta)
    matrix = _matrix(where, a, m, n, lda).astype(np.float64)
    if trans == TRANSPOSED:
        matrix = matrix.T
    rows, columns = matrix.shape
    vector = _matrix(where, x, columns, 1, incx).astype(np.float64)
    _matrix(where, y, rows, 1, incy)[...] = alpha * (matrix @ vector)


def _values(text: str) -> list[ExternParam]:
    """Scalars: ``"m:i32 alpha:f32"``; buffers: ``"a:read c:write"``."""
    dtypes = {"i32": i32, "f32": f32}
    out = []
    for item in text.split():
        name, kind = item.split(":")
        role = Role.VALUE if kind in dtypes else Role(kind)
        out.append(ExternParam(name, role, dtypes.get(kind, f32)))
    return out


EXTERNS.add(
    "openblas.sgemm",
    Extern(
        "openblas.sgemm",
        tuple(
            _values(
                "order:i32 trans_a:i32 trans_b:i32 m:i32 n:i32 k:i32 alpha:f32 "
                "a:read lda:i32 b:read ldb:i32 beta:f32 c:write ldc:i32"
            )
        ),
        _sgemm,
        "matrix product, row-major f32",
    ),
)
EXTERNS.add(
    "openblas.sgemv",
    Extern(
        "openblas.sgemv",
        tuple(
            _values(
                "order:i32 trans:i32 m:i32 n:i32 alpha:f32 a:read lda:i32 x:read incx:i32 beta:f32 "
                "y:write incy:i32"
            )
        ),
        _sgemv,
        "matrix-vector product, row-major f32",
    ),
)


def _matmul(transposed: bool, wide: type) -> Callable[[Array, Array, Array], None]:
    def compute(a: Array, b: Array, c: Array) -> None:
        weight = b.reshape(b.shape[-2:]).astype(wide)
        rows = a.reshape(-1, a.shape[-1]).astype(wide)
        c[...] = (rows @ (weight.T if transposed else weight)).reshape(c.shape)

    return compute


def _add_onednn() -> None:
    for operand, result in ONEDNN_MATMULS:
        for transposed in (False, True):
            params = (
                ExternParam("a", Role.READ, operand),
                ExternParam("b", Role.READ, operand),
                ExternParam("c", Role.WRITE, result),
            )
            name = onednn_matmul(operand, result, transposed=transposed)
            compute = _matmul(transposed, np.int64 if operand is i8 else np.float64)
            doc = f"matrix product, row-major {operand}{', b transposed' if transposed else ''}"
            EXTERNS.add(name, Extern(name, params, compute, doc, Convention.TENSORS))


_add_onednn()
