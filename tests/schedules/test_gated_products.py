"""Gated products, ``silu(x Wg) * (x Wu)`` in one launch: every candidate = the two launches = the graph."""

from itertools import pairwise

import numpy as np
import pytest
from equivalence import assert_same, random_values
from instruction_sets import LEVELS, RUNNABLE

from strata.codegen.build import build_image
from strata.core.dims import SymDim, evaluate
from strata.core.dtypes import DType, f32
from strata.core.weight_format import FormatChoice, parse_format
from strata.graph import builder as b
from strata.graph.interp import run as run_graph
from strata.graph.nodes import Function, Module, Node, with_notes
from strata.graph.types import TensorType
from strata.loop.interp import run as run_loops
from strata.loop.layout import Layout
from strata.loop.nodes import AxisKind
from strata.loop.values import numpy_dtype
from strata.passes import run_passes
from strata.passes.quantize import quantize_weights
from strata.planner.gates import join_gates
from strata.planner.layouts import choose_layouts
from strata.planner.options import PlanOptions
from strata.planner.stacks import Kernels, StackBuilder
from strata.runtime.image import load_image
from strata.runtime.tensors import as_tensor
from strata.schedule.rules.base import loops_over
from strata.target import Target, get_target

M = SymDim("m", 1, 64)
TILED = tuple(x for x in LEVELS if x != "avx512-amx")  # a matrix unit leaves gates apart
FORMATS = ("f32", "bf16", "f16", "int8", "int4", "int4:asymmetric")


def gate(x: Node, width: int, dtype: DType, *, name: str = "w", bias: bool = False) -> Node:
    """``silu(gate) * up`` of one product."""
    w = b.param(name, TensorType((2 * width, x.tensor.shape[1]), dtype))
    y = b.matmul(x, w, transpose_b=True, out_dtype=f32)
    if bias:
        y = b.add(y, b.param("bias", TensorType((2 * width,), f32)))
    return b.mul(b.silu(b.slice(y, 1, 0, width)), b.slice(y, 1, width, 2 * width))


def fused(format: str, width: int, contracted: int, *, bias: bool = False) -> Module:
    """The module after the pipeline, its weight in ``format``."""
    parsed = parse_format(format)
    dtype = parsed if isinstance(parsed, DType) else f32
    x = b.input("x", TensorType((M, contracted), dtype))
    module = Module((Function("f", (x,), (gate(x, width, dtype, bias=bias),)),))
    if not isinstance(parsed, DType):
        module = quantize_weights(module, FormatChoice(parsed))
    return run_passes("default", module)


def launches(module: Module) -> list[Node]:
    return [n for f in module.functions for n in f.nodes if n.op == "fused"]


def kernels_of(module: Module, target: Target) -> Kernels:
    (node,) = launches(module)
    return StackBuilder(choose_layouts(module, target), target, PlanOptions(measure=False)).kernels_of(node)


def width_of(target: Target) -> int:
    """Three tiles of results and no more: borders of tiles and of threads' shares."""
    return 3 * 2 * target.lanes_f32 if target.num_vector_registers >= 32 else 3 * target.lanes_f32


def arrays_of(kernels: Kernels, module: Module, rows: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Arguments of the kernels, and what the graph computes from the same values."""
    (node,), (function,) = launches(module), module.functions
    inputs, params = random_values(function, {"m": rows}, np.random.default_rng(rows))
    for name, value in params.items():
        if value.dtype == np.float16:
            params[name] = np.abs(value) + np.float16(0.25)  # scales
    (expected,) = run_graph(function, inputs, params)
    values = [inputs[0] if x.op == "input" else params[x.attrs["name"]] for x in node.inputs]
    first, arrays = kernels.stack.candidates[0].func, []
    for param, binding in zip(first.params, kernels.bindings, strict=True):
        if binding.operand >= 0:
            layout = kernels.task.layouts.get(binding.operand)
            value = values[binding.operand]
            value = value.view(np.uint8) if value.dtype.name == "uint4" and layout is None else value
            arrays.append(layout.pack(value) if layout is not None else np.ascontiguousarray(value))
        else:
            shape = tuple(evaluate(d, {"m": rows}) for d in param.shape)
            arrays.append(np.zeros(shape, numpy_dtype(param.dtype)))
    return arrays, expected


def result_of(kernels: Kernels, arrays: list[np.ndarray]) -> np.ndarray:
    (position,) = [k for k, x in enumerate(kernels.bindings) if x.operand == -1]
    return arrays[position]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("level", [x for x in TILED if x in RUNNABLE])
def test_every_candidate_computes_the_graph(level: str, format: str) -> None:
    target = get_target(level)
    module = join_gates(fused(format, width_of(target), 64, bias=format == "f32"), target)
    kernels = kernels_of(module, target)
    funcs = [c.func for c in kernels.stack.candidates]
    assert len(funcs) >= 3
    image = load_image(build_image(funcs, [], target).blob, 2)
    for rows in (1, 2, 3, 4, 5, 6, 7, 13):
        for func in funcs:
            arrays, expected = arrays_of(kernels, module, rows)
            image.function(func.name)(*map(as_tensor, arrays), rows)
            np.testing.assert_allclose(result_of(kernels, arrays), expected, rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("format", ["bf16", "int4"])
def test_the_interpreter_agrees(format: str) -> None:
    target = get_target("avx2")
    module = join_gates(fused(format, 16, 32), target)
    kernels = kernels_of(module, target)
    arrays, expected = arrays_of(kernels, module, 5)
    func = kernels.stack.candidates[-1].func
    run_loops(func, arrays, parallel_seed=1)
    np.testing.assert_allclose(result_of(kernels, arrays), expected, rtol=2e-4, atol=2e-3)


@pytest.mark.parametrize("level", [*TILED, "neon", "neon-i8mm"])
@pytest.mark.parametrize("format", ["f32", "int4"])
def test_both_factors_are_sums_of_one_tile(level: str, format: str) -> None:
    target = get_target(level)
    before = fused(format, width_of(target), 64)
    module = join_gates(before, target)
    assert len(launches(before)) == 2
    assert len(launches(module)) == 1
    assert_same(before, module)
    kernels = kernels_of(module, target)
    assert {x.parts for x in kernels.task.layouts.values()} == {2}
    names = [c.name for c in kernels.stack.candidates]
    assert all("x" in name for name in names)  # tiles, no fallback
    assert len(loops_over(kernels.task.lowered.func, "out", AxisKind.SPATIAL)) == 2


def refused(module: Module, target: str = "avx512-bf16") -> bool:
    return join_gates(module, get_target(target)) is module


def test_what_stays_two_launches() -> None:
    assert not refused(fused("f32", 32, 64))
    assert refused(fused("f32", 48, 64))  # no whole tiles
    assert refused(fused("f32", 32, 64), "avx512-amx")  # not measured there
    x = b.input("x", TensorType((M, 64), f32))
    y = gate(x, 32, f32)
    product = next(n for n in Function("f", (x,), (y,)).nodes if n.op == "matmul")
    assert refused(run_passes("default", Module((Function("f", (x,), (y, product)),))))  # wanted by itself
    table = b.param("w", TensorType((64, 64), f32))
    again = b.matmul(x, table, transpose_b=True, out_dtype=f32)
    assert refused(
        run_passes("default", Module((Function("f", (x,), (y, again)),)))
    )  # a reader of the weight
    w = b.input("w", TensorType((64, 64), f32))
    z = b.matmul(x, w, transpose_b=True, out_dtype=f32)
    z = b.mul(b.silu(b.slice(z, 1, 0, 32)), b.slice(z, 1, 32, 64))
    assert refused(run_passes("default", Module((Function("f", (x, w), (z,)),))))  # stored by nobody


@pytest.mark.parametrize("cuts", [(0, 32, 32, 96), (0, 32, 0, 32), (16, 48, 64, 96)])
def test_only_equal_parts_that_are_the_whole_gate(cuts: tuple[int, int, int, int]) -> None:
    x, w = b.input("x", TensorType((M, 64), f32)), b.param("w", TensorType((96, 64), f32))
    y = b.matmul(x, w, transpose_b=True, out_dtype=f32)
    first, second = (b.slice(y, 1, begin, end) for begin, end in ((cuts[0], cuts[1]), (cuts[2], cuts[3])))
    if cuts[3] - cuts[2] != 32:
        second = b.slice(second, 1, 0, 32)
    assert refused(run_passes("default", Module((Function("f", (x,), (b.mul(first, second),)),))))


def test_all_layers_and_functions_or_none() -> None:
    x = b.input("x", TensorType((M, 64), f32))
    y = gate(gate(gate(x, 64, f32, name="w0"), 64, f32, name="w1"), 64, f32, name="w2")
    module = run_passes("default", Module((Function("f", (x,), (y,)), Function("g", (x,), (y,)))))
    joined = join_gates(module, get_target("avx512-bf16"))
    assert [len([n for n in f.nodes if n.op == "fused"]) for f in joined.functions] == [3, 3]
    assert len({id(n.attrs["body"]) for n in launches(joined)}) == 1
    plain = gate(x, 64, f32, name="w1")
    product = next(n for n in Function("h", (x,), (plain,)).nodes if n.op == "matmul")
    mixed = run_passes("default", Module((Function("f", (x,), (y,)), Function("h", (x,), (product,)))))
    left = join_gates(mixed, get_target("avx512-bf16"))
    assert len(launches(left)) == 4 + 1  # two joined, one apart, and the other function's


def test_layouts_that_a_person_notes_stay() -> None:
    x, w = b.input("x", TensorType((M, 64), f32)), b.param("w", TensorType((64, 64), f32))
    w = with_notes(w, layout=str(Layout(64)))
    y = b.matmul(x, w, transpose_b=True, out_dtype=f32)
    y = b.mul(b.silu(b.slice(y, 1, 0, 32)), b.slice(y, 1, 32, 64))
    module = run_passes("default", Module((Function("f", (x,), (y,)),)))
    assert refused(module)


def test_rows_of_all_parts_lie_in_each_tile() -> None:
    rows = np.arange(64)[:, None]
    stored = Layout(16, parts=2).pack(rows)
    wanted = [[*range(k, k + 8), *range(32 + k, 40 + k)] for k in range(0, 32, 8)]
    assert stored.reshape(4, 16).tolist() == wanted
    assert all(after[0] - before[0] == 8 for before, after in pairwise(wanted))
