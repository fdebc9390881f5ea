"""Graph nodes as calls of externs: matrix products by vendor libraries, anything by a function of one's own.

What a function here returns computes one node on whole row-major buffers; ``lower_group(..., replace=...)``
puts it inside of a group.
"""

from __future__ import annotations

from strata.core.dims import Dim, Shape, product
from strata.core.dtypes import f32, i32
from strata.graph.nodes import Node
from strata.graph.types import TensorType
from strata.loop import build as b
from strata.loop.externs import EXTERNS, Role
from strata.loop.library_externs import ONEDNN_MATMULS, PLAIN, ROW_MAJOR, TRANSPOSED, onednn_matmul
from strata.loop.nodes import Buffer, Expr, If, Stmt, size

from .group import Emit

LIBRARY_NAMES = ("openblas", "onednn")
_MAX_INT = 2**31 - 1  # sizes are ints in the C functions


def library_calls(node: Node, library: str) -> Emit | None:
    """How a library computes a node, or ``None`` if it does not.

    Both libraries multiply ``a[..., M, K]`` (all dims but the last become rows) by ``b[K, N]``, or by
    ``b[N, K]`` with ``transpose_b``; batch dims of ``b`` are 1; only M may be symbolic. OpenBLAS takes
    f32 and uses its matrix-vector product for one row; oneDNN takes f32 and bf16 (result bf16 or f32).

    Args:
        node: Node of a graph.
        library: ``"openblas"`` or ``"onednn"``.
    """
    if node.op != "matmul" or library not in LIBRARY_NAMES:
        return None
    a, weight = (x.tensor for x in node.inputs)
    sizes = _sizes(a, weight, bool(node.attrs["transpose_b"]))
    if sizes is None:
        return None
    rows, n, k = sizes
    transposed = bool(node.attrs["transpose_b"])
    result = node.tensor.dtype
    if library == "openblas" and a.dtype is f32 and result is f32:
        return lambda operands, out: _blas(operands, out, rows, n, k, transposed)
    if library == "onednn" and (a.dtype, result) in ONEDNN_MATMULS:
        extern = onednn_matmul(a.dtype, result, transposed=transposed)
        return lambda operands, out: b.call(extern, *operands, out)
    return None


def extern_calls(node: Node, extern: str) -> Emit | None:
    """How an extern that takes a node's operands, then its result, computes it; ``None`` if it does not fit.

    Raises:
        UserError: no such extern.
    """
    params = EXTERNS[extern].params
    if not isinstance(node.type, TensorType) or not all(isinstance(x.type, TensorType) for x in node.inputs):
        return None
    types = [*(x.tensor for x in node.inputs), node.tensor]
    roles = [Role.READ] * len(node.inputs) + [Role.WRITE]
    fits = [p.role for p in params] == roles and [p.dtype for p in params] == [t.dtype for t in types]
    if not fits or not _unifies([p.shape for p in params], [t.shape for t in types]):
        return None
    return lambda operands, out: b.call(extern, *operands, out)


def _unifies(wanted: list[Shape | None], got: list[Shape]) -> bool:
    """Whether dims of the params can stand for those of the tensors."""
    sizes: dict[Dim, Dim] = {}
    for want, have in zip(wanted, got, strict=True):
        if want is not None and len(want) != len(have):
            return False
        for w, h in zip(want or (), have, strict=False):
            if (w if isinstance(w, int) else sizes.setdefault(w, h)) != h:
                return False
    return True


def _sizes(a: TensorType, weight: TensorType, transposed: bool) -> tuple[Dim, int, int] | None:
    """Rows, columns and inner size of a product that a library can do."""
    rows, k = product(a.shape[:-1]), a.shape[-1]
    n = weight.shape[-2 if transposed else -1]
    if not isinstance(k, int) or not isinstance(n, int) or not 0 < k <= _MAX_INT or not 0 < n <= _MAX_INT:
        return None
    if any(dim != 1 for dim in weight.shape[:-2]) or (isinstance(rows, int) and not 0 < rows <= _MAX_INT):
        return None
    return rows, n, k


def _blas(operands: tuple[Buffer, ...], out: Buffer, rows: Dim, n: int, k: int, transposed: bool) -> Stmt:
    """``cblas_sgemm``, and ``cblas_sgemv`` where there is one row."""
    a, weight = operands
    m: Expr = b.cast(i32, size(rows))
    trans, stride = (TRANSPOSED, k) if transposed else (PLAIN, n)
    matrix = b.call(
        "openblas.sgemm", ROW_MAJOR, PLAIN, trans, m, n, k, 1.0, a, k, weight, stride, 0.0, out, n
    )
    # y = W x with W[n, k] as stored, or with the transpose of W[k, n].
    stored, trans = ((n, k), PLAIN) if transposed else ((k, n), TRANSPOSED)
    vector = b.call("openblas.sgemv", ROW_MAJOR, trans, *stored, 1.0, weight, stride, a, 1, 0.0, out, 1)
    if isinstance(rows, int):
        return vector if rows == 1 else matrix
    return If(b.eq(size(rows), 1), vector, matrix)
