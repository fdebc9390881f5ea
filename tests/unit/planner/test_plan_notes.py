"""The planner follows notes: stored layouts, loop functions, composites; and says what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from strata.assets import DEMO_MODEL
from strata.compiler.api import Options, define
from strata.compiler.driver import Lowered, trace
from strata.core.dims import SymDim
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node, rewrite, with_notes
from strata.graph.text import parse_module, print_module
from strata.ir.passes import OptionError
from strata.loop.layout import Layout
from strata.loop.text import canonical_text
from strata.models import read_config
from strata.passes import run_passes
from strata.planner.composites import has_composites, node_options
from strata.planner.fuse_loops import FuseLoops
from strata.planner.layouts import Layouts, choose_layouts, noted_layouts
from strata.planner.options import PlanOptions
from strata.target import detect_host, get_target

N = SymDim("n", 1, 64)
X = g.input("x", g.tensor_type((N, 48), "f32"))
UP = g.param("up", g.tensor_type((80, 48), "f32"))
DOWN = g.param("down", g.tensor_type((48, 80), "f32"))
RNG = np.random.default_rng(0)
PARAMS = {
    "up": RNG.standard_normal((80, 48)).astype(np.float32),
    "down": RNG.standard_normal((48, 80)).astype(np.float32),
}
ROWS = RNG.standard_normal((7, 48)).astype(np.float32)
WANTED = np.maximum(ROWS @ PARAMS["up"].T, 0) @ PARAMS["down"].T


def mlp(pipeline: str = "default") -> Module:
    hidden = g.relu(g.matmul(X, UP, transpose_b=True, name="up_proj"))
    out = g.matmul(hidden, DOWN, transpose_b=True, name="down_proj")
    return run_passes(pipeline, Module((Function("f", (X,), (out,)),)))


def noted(module: Module, change: Callable[[Node], Node]) -> Module:
    return module.map(lambda f: rewrite(f, change))


def run(module: Module):
    planned = Lowered(trace(module), module).plan()
    program = planned.compile().program(PARAMS)
    np.testing.assert_allclose(program["f"](ROWS), WANTED, rtol=1e-4, atol=1e-4)
    return planned


def test_layouts_shows_what_the_planner_would_do() -> None:
    module = mlp()
    target = get_target("avx2")
    after = Layouts(str(target)).run(module)
    chosen = choose_layouts(module, target)
    assert noted_layouts(after) == chosen == {"up": Layout(16), "down": Layout(16)}
    assert noted_layouts(module) == {}
    with pytest.raises(OptionError, match="layouts: target: got 'z80'; expected one of host"):
        Layouts("z80").run(module)


@pytest.mark.parametrize("text", ["row_major", "tiles(rows=16,cols=1)", "tiles(rows=16,cols=2,transposed)"])
def test_a_layout_is_followed(text: str) -> None:
    changed = noted(
        mlp(), lambda n: with_notes(n, layout=text) if n.op == "param" and n.attrs["name"] == "up" else n
    )
    planned = run(changed)
    records = {p.name: p.layout for p in planned.params}
    assert records["up"] == ("" if text == "row_major" else text)
    assert records["down"] != ""
    assert noted_layouts(Layouts().run(changed))["up"] == noted_layouts(changed)["up"]


def test_bad_layouts() -> None:
    def with_layout(note: object, name: str = "up") -> Module:
        return noted(
            mlp(),
            lambda n: with_notes(n, layout=note) if n.op == "param" and n.attrs["name"] == name else n,  # type: ignore[arg-type]
        )

    with pytest.raises(OptionError, match=r"note layout of @up: layout: got 'columns'; .*, or row_major"):
        choose_layouts(with_layout("columns"), detect_host())
    for empty in ("", 3):
        with pytest.raises(OptionError, match="note layout of @up: "):
            choose_layouts(with_layout(empty), detect_host())
    bias = g.param("bias", g.tensor_type((48,), "f32"))
    odd = Module((Function("f", (X,), (g.add(X, with_notes(bias, layout="tiles(rows=16,cols=1)")),)),))
    with pytest.raises(
        OptionError, match=r"note layout of @bias: got .* for f32\[48\]; only constant 2-d params"
    ):
        choose_layouts(odd, detect_host())
    two = (
        with_layout("row_major").functions[0],
        replace(with_layout("tiles(rows=16,cols=1)").functions[0], name="g"),
    )
    with pytest.raises(
        OptionError, match=r"note layout of @up: got 'row_major' and 'tiles.*'; expected one of them"
    ):
        choose_layouts(Module(two), detect_host())


def test_loop_functions_are_followed() -> None:
    module = FuseLoops().run(mlp())
    assert list(module.loops) == ["matmul_relu", "matmul"]
    assert module.loops["matmul"].args == ("0", "1", "out")
    run(parse_module(print_module(module)))
    assert FuseLoops().run(module).loops == module.loops
    # What a person writes is what runs: the ReLU becomes a plain copy.
    text = print_module(module)
    changed = parse_module(text.replace("= max(matmul_buf[i0_1, i1_1], 0x0p+0)", "= matmul_buf[i0_1, i1_1]"))
    assert changed.loops != module.loops
    program = Lowered(trace(changed), changed).plan().compile().program(PARAMS)
    plain = ROWS @ PARAMS["up"].T @ PARAMS["down"].T
    np.testing.assert_allclose(program["f"](ROWS), plain, rtol=1e-4, atol=1e-3)


def test_a_model_by_its_loop_functions_is_the_same_model() -> None:
    module = run_passes("default", define(read_config(DEMO_MODEL), Options()).module)
    module = Module(tuple(f for f in module.functions if f.name == "decode"))
    by_text = parse_module(print_module(FuseLoops().run(module)))
    args = {a for loop in by_text.loops.values() for a in loop.args}
    assert any(a.endswith(".k_pages") for a in args)
    plain, other = (Lowered(trace(m), m).plan() for m in (module, by_text))
    assert list(plain.funcs) == list(other.funcs)
    for name, func in plain.funcs.items():
        assert canonical_text(func) == canonical_text(other.funcs[name])
    assert [p.record for p in plain.functions] == [p.record for p in other.functions]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'loop="matmul"',
            'loop="gemm"',
            "note loop of fused down_proj: no loop @gemm; .* has: @matmul_relu, @matmul",
        ),
        ('loop="matmul"', "loop=3", "no loop @3"),
        ("block ", "brick ", r"loop @matmul_relu: <loop @matmul_relu>:\d+:"),
        ("max(matmul_buf[i0_1, i1_1]", "max(matmul_buf[i0_1, i1_1, 0]", "loop @matmul_relu: "),
        (
            "(%0, %1, %out)",
            "(%0, %7, %out)",
            "got argument %7; expected %out or the number of one of 2 operands",
        ),
        ("(%0, %1, %out)", "(%0, %x, %out)", "got argument %x; expected %out"),
        ("(%0, %1, %out)", "(%0, %1.a.b.c, %out)", "got argument %1.a.b.c; expected %out"),
        ("(%0, %1, %out)", "(%0, %out)", "loop @matmul_relu: got 2 arguments for 3 parameters"),
        (
            "(%0, %1, %out)",
            "(%1, %0, %out)",
            r"parameter a0 is f32\[n,48\]; expected f32\[.*\(as f32\[80,48\] is stored",
        ),
        ("(%0, %1, %out)", "(%out, %1, %0)", r"parameter a0 is f32\[n,48\]; expected f32\[n,80\]"),
    ],
)
def test_bad_loops(old: str, new: str, message: str) -> None:
    module = parse_module(print_module(FuseLoops().run(mlp())).replace(old, new, 1))
    with pytest.raises(OptionError, match=message):
        Lowered(trace(module), module).plan()


def test_composites_prefer_their_library() -> None:
    module = mlp("canonicalize,partition{patterns=[openblas.matmul]},fuse")
    assert has_composites(module)
    assert not has_composites(mlp())
    composite, plain = (next(n for n in m["f"].nodes if n.op == "fused") for m in (module, mlp()))
    options = PlanOptions(prefer=("mine",))
    assert node_options(options, composite).prefer == ("openblas", "mine")
    assert node_options(options, plain) is options
    planned = Lowered(trace(module), module).plan()
    (function,) = planned.functions
    chosen = [[x.stack.candidates[c.candidate].name for c in x.choices] for x in function.launches]
    assert chosen[0] == ["openblas"]
    assert chosen[-1] == ["openblas"]
    assert {p.name: p.layout for p in planned.params} == {"up": "", "down": ""}
