"""Matrix products by OpenBLAS and oneDNN, at odd sizes: NumPy = interpreter = machine code."""

from __future__ import annotations

import numpy as np
import pytest
import tolerance

from strata.codegen.build import build_image
from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import DType, bf16, f32
from strata.graph import builder as b
from strata.graph.interp import run as run_graph
from strata.graph.nodes import Function, Node
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.interp import run
from strata.loop.nodes import Call, Func
from strata.loop.rewrite import walk_stmts
from strata.loop.text import parse_func
from strata.lower import lower_group
from strata.lower.library import LIBRARY_NAMES, extern_calls, library_calls
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor, numpy_dtype
from strata.schedule import finalize
from strata.target import detect_host

N = SymDim("n", 1, 300)
SIZES = [(1, 1, 1), (7, 3, 5), (1, 33, 17), (129, 65, 31), (2, 257, 3)]
DTYPES = {"openblas": [(f32, None)], "onednn": [(f32, None), (bf16, None), (bf16, f32)]}
CASES = [(lib, *types, t) for lib in LIBRARY_NAMES for types in DTYPES[lib] for t in (False, True)]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATA_CACHE_DIR", str(tmp_path))


def product(shape, k: int, n: int, dtype: DType, out: DType | None, transposed: bool) -> Node:
    """A matmul node of inputs ``a`` and ``w``."""
    a = b.input("a", b.tensor_type((*shape, k), dtype.name))
    w = b.input("w", b.tensor_type((n, k) if transposed else (k, n), dtype.name))
    return b.matmul(a, w, transpose_b=transposed, out_dtype=out)


def by_library(name: str, node: Node, library: str) -> tuple[Func, Function]:
    """The group of one node, computed by a library."""
    emit = library_calls(node, library)
    assert emit is not None
    body = Function("f", node.inputs, (node,))
    func = finalize(lower_group(name, body, replace={id(node): emit}).func)
    check(func, LOOP_LOWERED)
    return func, body


def draw(node: Node, rng: np.random.Generator, rows: int) -> np.ndarray:
    shape = tuple(evaluate(d, {"n": rows}) for d in node.tensor.shape)
    return rng.standard_normal(shape).astype(numpy_dtype(node.tensor.dtype.name))


@pytest.mark.parametrize(("library", "dtype", "out", "transposed"), CASES)
def test_products(library, dtype, out, transposed):
    """One kernel per inner and outer size; the number of rows is symbolic and constant."""
    rng = np.random.default_rng(0)
    items = []
    for i, (m, k, n) in enumerate(SIZES):
        for shape in ((N,), (m,), (1, N)):
            node = product(shape, k, n, dtype, out, transposed)
            items.append((m, *by_library(f"p{i}_{len(items)}", node, library)))
    image = load_image(build_image([func for _, func, _ in items], [], detect_host()).blob, 2)
    for m, func, body in items:
        operands = [draw(x, rng, m) for x in body.inputs]
        (wanted,) = run_graph(body, operands)
        native, slow = np.full_like(wanted, np.nan), np.full_like(wanted, np.nan)
        image.function(func.name)(*map(as_tensor, (*operands, native)))
        run(func, [*operands, slow])
        limit = tolerance.for_(body.outputs[0].tensor.dtype, operands[0].shape[-1])
        for got in (native, slow):
            np.testing.assert_allclose(got.astype(np.float64), np.asarray(wanted, np.float64), **limit)


@pytest.mark.parametrize("suffix", ["", "_t"])
def test_integer_products(suffix):
    """No graph op has them yet: sums of products of i8 in i32, exact."""
    w_shape = "17,33" if suffix else "33,17"
    func = parse_func(
        f"dims n in 1..300\nfunc @f(a: i8[n,33], w: i8[{w_shape}]) -> (c: i32[n,17])\n"
        f"  call @onednn.matmul_i8_i32{suffix}(a, w, c)\n"
    )
    image = load_image(build_image([func], [], detect_host()).blob, 2)
    rng = np.random.default_rng(0)
    a, w = (rng.integers(-64, 65, s).astype(np.int8) for s in ((129, 33), (33, 17)))
    stored = np.ascontiguousarray(w.T) if suffix else w
    native, slow = np.zeros((129, 17), np.int32), np.zeros((129, 17), np.int32)
    image.function("f")(*map(as_tensor, (a, stored, native)))
    run(func, [a, stored, slow])
    np.testing.assert_array_equal(slow, a.astype(np.int64) @ w.astype(np.int64))
    np.testing.assert_array_equal(native, slow)


def calls(stmt) -> list[str]:
    return [s.extern for s in walk_stmts(stmt) if isinstance(s, Call)]


def test_one_row_is_a_matrix_vector_product():
    names = {shape: calls(by_library("f", product(shape, 8, 4, f32, None, False), "openblas")[0].body)
             for shape in ((1,), (3,), (N,))}  # fmt: skip
    assert names == {
        (1,): ["openblas.sgemv"],
        (3,): ["openblas.sgemm"],
        (N,): ["openblas.sgemv", "openblas.sgemm"],  # chosen at run time
    }


def test_what_libraries_do_not_compute():
    x = b.input("x", b.tensor_type((N, 8), "f32"))
    symbolic = b.matmul(
        b.input("a", b.tensor_type((4, N), "f32")), b.input("w", b.tensor_type((N, 4), "f32"))
    )
    batched = b.matmul(
        b.input("a", b.tensor_type((2, 4, 8), "f32")), b.input("w", b.tensor_type((2, 8, 4), "f32"))
    )
    half = product((4,), 8, 4, bf16, None, False)
    for library in LIBRARY_NAMES:
        assert library_calls(b.add(x, x), library) is None
        assert library_calls(symbolic, library) is None
        assert library_calls(batched, library) is None
    assert library_calls(half, "openblas") is None
    assert library_calls(half, "onednn") is not None
    assert library_calls(product((4,), 8, 4, f32, None, False), "mkl") is None


def test_a_node_by_an_extern_of_ones_own():
    node = product((N,), 8, 4, bf16, f32, True)
    emit = extern_calls(node, "onednn.matmul_bf16_f32_t")
    assert emit is not None
    func = lower_group("f", Function("f", node.inputs, (node,)), replace={id(node): emit}).func
    assert calls(func.body) == ["onednn.matmul_bf16_f32_t"]
    assert extern_calls(node, "onednn.matmul_f32_f32_t") is None
    assert extern_calls(node, "openblas.sgemm") is None
