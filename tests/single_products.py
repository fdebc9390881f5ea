"""Candidates of one product with a weight, as the compiler sees it, and what they compute."""

from collections.abc import Sequence

import numpy as np

from strata.codegen.build import build_image
from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import DType, f32, u8
from strata.core.weight_format import FormatChoice, parse_format
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.values import numpy_dtype
from strata.passes import run_passes
from strata.passes.quantize import quantize_weights
from strata.planner.layouts import choose_layouts
from strata.planner.options import PlanOptions
from strata.planner.stacks import Kernels, StackBuilder
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.target import Target


def kernels_of(target: Target, format: str, outputs: int, contracted: int, rows: SymDim) -> Kernels:
    """Of ``[rows, contracted] x [outputs, contracted]``, the weight in ``format``."""
    parsed = parse_format(format)
    dtype = parsed if isinstance(parsed, DType) else f32
    x = builder.input("x", TensorType((rows, contracted), dtype))
    w = builder.param("w", TensorType((outputs, contracted), dtype))
    module = Module((Function("product", (x,), (builder.matmul(x, w, transpose_b=True, out_dtype=f32),)),))
    if not isinstance(parsed, DType):
        module = quantize_weights(module, FormatChoice(parsed))
    module = run_passes("default", module)
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    stacks = StackBuilder(choose_layouts(module, target), target, PlanOptions(measure=False))
    return stacks.kernels_of(node)


def arrays(func: Func, rows: int) -> list[np.ndarray]:
    """Small whole numbers, whose sums are exact in any order, and any codes; NaN where the result belongs."""
    rng = np.random.default_rng(rows)
    shapes = [tuple(evaluate(d, {"m": rows}) for d in p.shape) for p in func.params]
    *given, result = (
        rng.integers(*((0, 256) if p.dtype is u8 else (-3, 4)), shape).astype(numpy_dtype(p.dtype))
        for p, shape in zip(func.params, shapes, strict=True)
    )
    return [*given, np.full(result.shape, np.nan, result.dtype)]


def assert_loops_agree(funcs: Sequence[Func], rows: int) -> None:
    """Candidates of a product give the same bits in the interpreter of loops."""
    results = []
    for func in funcs:
        values = arrays(func, rows)
        run(func, values, parallel_seed=rows)
        results.append(values[-1])
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def assert_machine_code_agrees(funcs: Sequence[Func], target: Target, sizes: Sequence[int]) -> None:
    """Candidates of a product give the same bits as machine code, for each number of rows and of threads."""
    blob = build_image(funcs, [], target).blob
    for threads in (1, 2):
        image = load_image(blob, threads)
        for rows in sizes:
            results = []
            for func in funcs:
                values = arrays(func, rows)
                image.function(func.name)(*map(as_tensor, values))
                results.append(values[-1])
            for result in results[1:]:
                np.testing.assert_array_equal(result, results[0])
