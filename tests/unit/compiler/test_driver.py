"""The staged driver: texts, params, constants, pipelines, artifacts."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from session_cache import session_cache

from strata.codegen.build import build_image
from strata.compiler.api import compile as compile_module
from strata.compiler.driver import Compiled, Traced, compiled_functions, trace
from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.errors import UnsupportedError, UserError
from strata.core.knobs import knobs
from strata.graph import builder as b
from strata.graph.interp import run as run_graph
from strata.graph.nodes import Function, Module, Node, rebuild, rewrite
from strata.graph.text import parse_module
from strata.graph.types import CacheType
from strata.loop.layout import Layout
from strata.loop.text import parse_func, print_func
from strata.passes import named_pipeline
from strata.passes.base import FunctionPass
from strata.runtime.program import Program
from strata.runtime.tensors import ALIGNMENT_BYTES, address, aligned_size
from strata.target import detect_host, get_target

N = SymDim("n", 1, 32)
RNG = np.random.default_rng(0)
PARAMS = {
    "w": RNG.standard_normal((70, 24)).astype(np.float32),
    "bias": RNG.standard_normal(70).astype(np.float32),
}
MASK = (np.arange(70) % 3 == 0).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with knobs(cache_dir=session_cache(tmp_path_factory)):
        yield


def module() -> Module:
    """``f(x) = softmax(gelu(x @ w.T + bias) * mask)`` with a constant mask."""
    x = b.input("x", b.tensor_type((N, 24), "f32"))
    w, bias = (b.param(name, b.tensor_type(a.shape, "f32")) for name, a in PARAMS.items())
    h = b.gelu(b.add(b.matmul(x, w, transpose_b=True), bias))
    return Module((Function("f", (x,), (b.softmax(b.mul(h, b.const(MASK))),)),))


def expected(source: Module, x: np.ndarray) -> np.ndarray:
    (out,) = run_graph(source["f"], [x], PARAMS)
    return np.asarray(out)


def inputs(rows: int = 5) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 24)).astype(np.float32)


def assert_computes(program: Program, source: Module) -> None:
    for rows in (1, 5, 32):
        x = inputs(rows)
        np.testing.assert_allclose(program["f"](x), expected(source, x), rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def traced() -> Traced:
    return trace(module(), detect_host(), config={"model_name": "tiny"})


@pytest.fixture(scope="module")
def compiled(traced: Traced) -> Compiled:
    return traced.lower().plan().compile()


def test_every_stage_has_a_text(traced: Traced) -> None:
    assert parse_module(traced.text)["f"].outputs[0].op == "softmax"
    lowered = traced.lower()
    assert {n.op for n in parse_module(lowered.text)["f"].nodes} <= {"input", "param", "const", "fused"}
    planned = lowered.plan()
    texts = planned.text.split("\n\n")
    funcs = [parse_func(text) for text in texts if text.strip()]
    assert [f.name for f in funcs] == list(planned.funcs)
    assert [print_func(f) for f in funcs] == [print_func(f) for f in planned.funcs.values()]
    choices = [c.kernel for launch in planned.functions[0].record.launches for c in launch.choices]
    assert set(choices) == set(planned.funcs)


def test_compiled_describes_the_program(traced: Traced, compiled: Compiled) -> None:
    record = compiled.record
    assert [f.name for f in record.functions] == ["f"]
    assert [(p.name, p.logical_shape) for p in record.params] == [
        ("w", (70, 24)),
        ("bias", (70,)),
        ("const.0", (70,)),
    ]
    assert record.params[0].shape == Layout(*_tiles(record.params[0].layout)).physical_shape((70, 24))
    assert record.target == str(detect_host())
    assert record.config == {"model_name": "tiny"}
    assert {k.name for k in record.kernels} == set(traced.lower().plan().funcs)
    assert list(json.loads(compiled.plan)) == ["f"]
    assert len(compiled.image) > 1000


def _tiles(text: str) -> tuple[int, int]:
    rows, cols = text.removeprefix("tiles(rows=").removesuffix(")").split(",cols=")
    return int(rows), int(cols)


def test_program_computes_what_the_graph_means(compiled: Compiled) -> None:
    assert_computes(compiled.program(PARAMS), module())
    assert_computes(compiled.program(PARAMS.items(), num_threads=1), module())


def test_params_with_a_layout_lie_side_by_side() -> None:
    x = b.input("x", b.tensor_type((N, 24), "f32"))
    weights = {f"w{k}": np.full((70, 24), k, np.float32) for k in range(3)}
    bias = np.arange(70, dtype=np.float32)
    products = [
        b.matmul(x, b.param(n, b.tensor_type(w.shape, "f32")), transpose_b=True) for n, w in weights.items()
    ]
    total = b.add(b.add(b.add(*products[:2]), products[2]), b.param("bias", b.tensor_type((70,), "f32")))
    compiled = trace(Module((Function("f", (x,), (total,)),))).lower().plan().compile()
    program = compiled.program({**weights, "bias": bias})
    assert program.params["bias"] is bias  # as it is: referenced
    stored = [program.params[name] for name in weights]
    places = sorted(address(array) for array in stored)
    assert all(place % ALIGNMENT_BYTES == 0 for place in places)
    assert [after - before for before, after in pairwise(places)] == [aligned_size(stored[0].nbytes)] * 2
    ones = np.ones((2, 24), np.float32)
    np.testing.assert_array_equal(program["f"](ones), np.tile(24 * 3 + bias, (2, 1)))


def quantized_product(
    shared_scales: bool = False, powers: bool = False
) -> tuple[Module, dict[str, np.ndarray]]:
    """``f(x) = x @ dequantize(codes, scales).T``, or the sum of two such products with the same scales."""
    x = b.input("x", b.tensor_type((N, 64), "f32"))
    rng = np.random.default_rng(3)
    params = {
        "codes": rng.integers(0, 16, (70, 64)).astype(ml_dtypes.uint4),
        "scales": rng.random((70, 2)).astype(np.float16),
    }
    if shared_scales:
        params["more"] = rng.integers(0, 16, (70, 64)).astype(ml_dtypes.uint4)
    p = {
        name: b.param(name, b.tensor_type(a.shape, {"uint4": "u4", "float16": "f16"}[a.dtype.name]))
        for name, a in params.items()
    }
    products = [b.quantized_matmul(x, p[c], p["scales"], powers=powers) for c in params if c != "scales"]
    out = products[0] if len(products) == 1 else b.add(*products)
    return Module((Function("f", (x,), (out,)),)), params


def codes_of_activations() -> np.ndarray:
    """Rows that quantising does not change: integers, of which 127 is the largest in each group."""
    x = np.random.default_rng(4).integers(-127, 128, (5, 64)).astype(np.float32)
    x[:, ::32] = 127
    return x


def quantized_result(params: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    scales = np.repeat(params["scales"].astype(np.float32), 32, axis=1)
    return sum(x @ ((a.astype(np.float32) - 8) * scales).T for name, a in params.items() if name != "scales")


def test_codes_and_scales_of_a_weight_are_one_stream(tmp_path: Path) -> None:
    source, params = quantized_product()
    compiled = trace(source).lower().plan().compile()
    program = compiled.program(params)
    codes, scales = program.params["codes"], program.params["scales"]
    assert address(codes) == address(scales)
    assert codes.nbytes == scales.nbytes
    assert {p.name: p.within for p in program.record.params} == {"codes": "", "scales": "codes"}
    assert sum(p.own_bytes for p in program.record.params) == codes.nbytes
    x = codes_of_activations()
    np.testing.assert_allclose(program["f"](x), quantized_result(params, x), rtol=1e-4, atol=0.01)
    compiled.save(tmp_path / "model", iter(params.items()))
    weights = (tmp_path / "model" / "weights.safetensors").stat().st_size
    assert codes.nbytes <= weights < codes.nbytes + 1000  # memory is in the file once
    loaded = Program.load(tmp_path / "model")
    assert address(loaded.params["codes"]) == address(loaded.params["scales"])
    np.testing.assert_array_equal(loaded["f"](x), program["f"](x))


def test_scales_of_two_weights_lie_with_the_first() -> None:
    source, params = quantized_product(shared_scales=True)
    program = trace(source).lower().plan().compile().program(params)
    within = {p.name: p.within for p in program.record.params}
    assert within.pop("scales") in within
    assert set(within.values()) == {""}
    x = codes_of_activations()
    np.testing.assert_allclose(program["f"](x), quantized_result(params, x), rtol=1e-4, atol=0.01)


@pytest.mark.parametrize("powers", [False, True])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_row_with_no_number_gives_none_and_leaves_the_others(value: float, powers: bool) -> None:
    source, params = quantized_product(powers=powers)
    program = trace(source).lower().plan().compile().program(params)
    x = codes_of_activations()
    expected = program["f"](x)
    x[2, 5] = value
    got = program["f"](x)
    others = [0, 1, 3, 4]
    assert not np.isfinite(got[2]).any()
    np.testing.assert_array_equal(got[others], expected[others])


def test_saved_artifact_computes_the_same(compiled: Compiled, tmp_path: Path) -> None:
    compiled.save(tmp_path / "model", iter(PARAMS.items()), {"notes.txt": b"hello"})
    assert (tmp_path / "model" / "notes.txt").read_bytes() == b"hello"
    assert (tmp_path / "model" / "plan.json").read_text() == compiled.plan
    program = Program.load(tmp_path / "model")
    x = inputs()
    np.testing.assert_array_equal(program["f"](x), compiled.program(PARAMS)["f"](x))


def test_strided_params_are_copied(compiled: Compiled) -> None:
    strided = {name: np.stack([a, a], -1)[..., 0] for name, a in PARAMS.items()}
    assert not strided["bias"].flags.c_contiguous
    x = inputs()
    np.testing.assert_array_equal(compiled.program(strided)["f"](x), compiled.program(PARAMS)["f"](x))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": PARAMS["w"]}, "params: 1 missing, e.g. 'bias'"),
        ({}, "params: 2 missing, e.g. 'w'"),
        ({**PARAMS, "v": PARAMS["w"]}, "params: 'v' is unknown; the graph has: w, bias, const.0$"),
        ([*PARAMS.items(), ("w", PARAMS["w"])], "params: 'w' comes twice"),
        ({**PARAMS, "const.0": MASK}, "params: 'const.0' comes twice"),
        ({**PARAMS, "w": PARAMS["w"].T}, r"params: w: got float32\[24, 70\]; expected f32\[70, 24\]"),
        (
            {**PARAMS, "bias": PARAMS["bias"].astype(np.float64)},
            r"params: bias: got float64\[70\]; expected f32\[70\]",
        ),
        ({**PARAMS, "bias": PARAMS["bias"].tolist()}, "params: bias: got a list; expected a NumPy array"),
    ],
)
def test_params_must_fit(compiled: Compiled, params, message: str) -> None:
    with pytest.raises(UserError, match=message):
        compiled.program(params)


def test_long_lists_of_params_are_cut() -> None:
    x = b.input("x", b.tensor_type((N, 8), "f32"))
    total: Node = x
    for number in range(7):
        total = b.add(total, b.param(f"p{number}", b.tensor_type((8,), "f32")))
    out = trace(Module((Function("f", (x,), (total,)),))).lower().plan().compile()
    with pytest.raises(UserError, match=r"'q' is unknown; the graph has: p0, p1, p2, p3, p4, \.\.\.$"):
        out.program({"q": np.zeros(8, np.float32)})


def test_params_of_symbolic_shape_are_refused() -> None:
    x = b.input("x", b.tensor_type((N, 8), "f32"))
    w = b.param("w", b.tensor_type((N, 8), "f32"))
    with pytest.raises(UnsupportedError, match=r"param w: got f32\[n,8\]; expected a constant shape"):
        trace(Module((Function("f", (x,), (b.add(x, w),)),))).lower().plan()


def test_constants_keep_clear_of_params() -> None:
    x = b.input("x", b.tensor_type((N, 8), "f32"))
    clash = b.param("const.0", b.tensor_type((8,), "f32"))
    one, two = (np.arange(8).astype(d) for d in (np.float32, ml_dtypes.bfloat16))
    total = b.add(b.add(b.add(x, clash), b.const(one)), b.cast(b.const(two, "bf16"), "f32"))
    graph = Module((Function("f", (x,), (total,)), Function("g", (x,), (b.mul(x, b.const(one)),))))
    program = compile_module(graph, {"const.0": np.full(8, 100, np.float32)})
    ones = np.ones((2, 8), np.float32)
    np.testing.assert_array_equal(program["f"](ones), ones + 100 + 2 * one)
    np.testing.assert_array_equal(program["g"](ones), ones * one)


def test_a_weight_read_in_both_orders_is_stored_once() -> None:
    x, y = b.input("x", b.tensor_type((N, 24), "f32")), b.input("y", b.tensor_type((N, 70), "f32"))
    ids = b.input("ids", b.tensor_type((N,), "i32"))
    w = b.param("w", b.tensor_type((70, 24), "f32"))
    graph = Module(
        (
            Function("f", (x,), (b.matmul(x, w, transpose_b=True),)),
            Function("g", (y,), (b.matmul(y, w),)),
            Function("h", (ids,), (b.take(w, ids),)),
        )
    )
    program = compile_module(graph, {"w": PARAMS["w"]})
    assert len(program.record.params) == 1
    a, c = inputs(3), np.random.default_rng(1).standard_normal((3, 70)).astype(np.float32)
    np.testing.assert_allclose(program["f"](a), a @ PARAMS["w"].T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(program["g"](c), c @ PARAMS["w"], rtol=1e-5, atol=1e-5)
    rows = np.array([69, 0, 3], np.int32)
    np.testing.assert_array_equal(program["h"](rows), PARAMS["w"][rows])


@dataclass(frozen=True)
class TanhForGelu(FunctionPass):
    """A pass of somebody else."""

    name = "tanh-for-gelu"

    def run_function(self, function: Function) -> Function:
        """Replace every gelu."""

        def change(node: Node) -> Node:
            return b.tanh(node.inputs[0]) if node.op == "gelu" else rebuild(node, node.inputs)

        return rewrite(function, change)


def test_a_user_s_pass_runs_in_the_pipeline() -> None:
    pipeline = named_pipeline("default").insert_before("fuse", TanhForGelu())
    program = trace(module()).lower(pipeline).plan().compile().program(PARAMS)
    x = inputs()
    h = np.tanh(x @ PARAMS["w"].T + PARAMS["bias"]) * MASK
    h = np.exp(h - h.max(-1, keepdims=True))
    np.testing.assert_allclose(program["f"](x), h / h.sum(-1, keepdims=True), rtol=1e-5)


def test_the_zero_pipeline_computes_the_same() -> None:
    program = compile_module(module(), PARAMS, pipeline="zero")
    assert len(program.record.functions[0].launches) > 3
    assert_computes(program, module())


def test_a_pipeline_without_fuse_is_refused() -> None:
    with pytest.raises(UserError, match=r"pipeline: left node .* alone; expected fused nodes only"):
        trace(module()).lower("canonicalize").plan()


def test_constructors_of_caches_are_not_compiled() -> None:
    x = b.input("x", b.tensor_type((N, 8), "f32"))
    cache = b.create_kv_cache(CacheType(1, 1, 8, f32))
    graph = Module((Function("f", (x,), (b.exp(x),)), Function("make", (), (cache,))))
    assert [f.name for f in compiled_functions(graph)] == ["f"]


def test_plans_for_every_machine_compile_to_code_of_this_architecture() -> None:
    """Objects for other x86-64 machines are made here as well; they are just not run."""
    for name in ("x86-64", "avx2", "zen4"):
        planned = trace(module(), get_target(name)).lower().plan()
        assert build_image(list(planned.funcs.values()), [], get_target(name)).blob
