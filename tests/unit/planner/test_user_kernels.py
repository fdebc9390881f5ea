"""User kernels as candidates: what fits a node, what is inlined, what the check of the result finds."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest

import strata
from strata.core import dtypes
from strata.core.dims import SymDim
from strata.core.errors import UserError
from strata.core.knobs import cache_folder, knobs
from strata.frontend import nn
from strata.frontend.nn import spec
from strata.graph.nodes import Node, make_node
from strata.graph.samples import op_samples, sample_function
from strata.graph.types import CacheType, TensorType
from strata.loop import interp
from strata.loop.nodes import Alloc, Buffer, For, Func, Let
from strata.loop.rewrite import walk_stmts
from strata.loop.specialize import specialize
from strata.planner.candidates.kernels import (
    Instance,
    UserKernel,
    forget,
    instantiate,
    registered,
    why_not,
)
from strata.planner.candidates.verify import sample_sizes, verify_kernel
from strata.planner.options import PlanOptions, parse_pin
from strata.planner.types import Origin
from strata.runtime.records import DimRange
from strata.script import Out, bf16, block, exp, f32, f64, grid, i32, init, local, reduce, rsqrt
from strata.target import detect_host

TARGET = detect_host()
ROWS = SymDim("rows", 1, 4096)
n, m, k = strata.dim("n", 1, 16), strata.dim("m"), strata.dim("k")


@pytest.fixture(autouse=True)
def clean(tmp_path):
    """Candidates of a test are gone after it; checks are not remembered from one test to the next."""
    with knobs(cache_dir=tmp_path):
        yield
    for kernel in registered():
        forget(kernel.name)


@strata.kernel
def dense(x: f32[n, k], w: f32[m, k], y: Out[f32[n, m]]):
    for i, j, q in block("dense", n, m, reduce(k)):
        with init():
            y[i, j] = 0.0
        y[i, j] += x[i, q] * w[j, q]


@strata.kernel
def square(x: f32[m, 8], w: f32[8, 8], y: Out[f32[m, 8]]):
    for i, j, q in block("square", m, 8, reduce(8)):
        with init():
            y[i, j] = 0.0
        y[i, j] += x[i, q] * w[j, q]


def node(op: str, *shapes: tuple, dtype=dtypes.f32, **attrs) -> Node:
    """A node of inputs of these shapes."""
    inputs = [make_node("input", name=f"x{i}", type=TensorType(s, dtype)) for i, s in enumerate(shapes)]
    return make_node(op, inputs, **attrs)


def user(implementation, op="matmul", **options) -> UserKernel:
    """A registered candidate."""
    strata.candidate(op, name="mine", **options)(implementation)
    return registered()[-1]


def fitting(kernel: UserKernel, where: Node) -> Instance:
    instance = instantiate(kernel, where, TARGET)
    assert instance is not None, why_not(kernel, where, TARGET)
    return instance


# -------------------------------------------------------------------------------------------- registry


def test_candidates_are_declared_above_and_below():
    @strata.candidate("exp", when={"m": (1, 8)})
    @strata.kernel
    def above(x: f32[m], y: Out[f32[m]]):
        for i in grid(m):
            y[i] = exp(x[i])

    @strata.kernel
    @strata.candidate("exp", name="called below", check=False)
    def below(x: f32[m], y: Out[f32[m]]):
        for i in grid(m):
            y[i] = exp(x[i])

    first, second = registered("exp")
    assert (first.name, first.when, first.check, first.implementation) == (
        "above",
        {"m": (1, 8)},
        True,
        above,
    )
    assert (second.name, second.when, second.check) == ("called below", None, False)
    assert second.implementation is below
    assert registered("log") == ()


def test_a_name_that_is_used_again_is_replaced():
    user(dense)
    assert user(square).implementation is square
    assert len(registered()) == 1
    forget("mine")
    assert registered() == ()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"op": "matmull"}, "no op 'matmull'; did you mean 'matmul'"),
        (
            {"op": "matmul", "attrs": {"transpose_a": True}},
            "op matmul has no attribute 'transpose_a'; it has: tran",
        ),
        ({"op": "matmul", "when": {"q": (1, 2)}}, "when: the kernel has no dim 'q'; it has: k, m, n"),
        ({"op": "matmul", "when": {"n": (5, 2)}}, r"when: got n=\(5, 2\); expected \(lowest, highest\)"),
        ({"op": "matmul", "when": {"n": 5}}, r"when: got n=5; expected"),
    ],
)
def test_declarations_that_make_no_sense(options, match):
    with pytest.raises(UserError, match=match):
        strata.candidate(**options)(dense)


def test_only_what_can_be_called_is_declared():
    with pytest.raises(UserError, match="candidate: got 3; expected a kernel or a function"):
        strata.candidate("exp")(3)

    @strata.kernel
    def two(x: f32[m], y: Out[f32[m]], z: Out[f32[m]]):
        for i in grid(m):
            y[i] = z[i] = x[i]

    with pytest.raises(UserError, match="candidate two: got a kernel with 2 outputs; expected 1"):
        strata.candidate("exp")(two)


# ------------------------------------------------------------------------------------------ unification


def test_dims_stand_for_sizes_and_dims():
    assert fitting(user(dense), node("matmul", (4, 24), (32, 24), transpose_b=True)).when == ()
    instance = fitting(user(dense), node("matmul", (ROWS, 24), (32, 24), transpose_b=True))
    assert instance.when == (DimRange("rows", 1, 16),)
    assert instance.open_attrs == ()
    narrowed = fitting(
        user(dense, when={"n": (3, 9)}), node("matmul", (ROWS, 24), (32, 24), transpose_b=True)
    )
    assert narrowed.when == (DimRange("rows", 3, 9),)


@pytest.mark.parametrize(
    ("where", "match"),
    [
        (node("exp", (4, 8)), "user.mine: it computes matmul, the node is exp"),
        (node("matmul", (4, 8), (8, 8)), r"its parameters are not those of matmul \(transpose_b=False"),
        (node("matmul", (17, 8), (8, 8), transpose_b=True), "n is in 1..16, the node's is 17 in 17..17"),
        (
            node("matmul", (SymDim("rows", 20, 30), 8), (8, 8), transpose_b=True),
            "n is in 1..16, the node's is rows in 20..30",
        ),
        (
            node("matmul", (2 * SymDim("rows", 1, 30), 8), (8, 8), transpose_b=True),
            r"n is in 1..16, the node's is 2\*rows in 2..60",
        ),
        (
            node("matmul", (4, 8), (8, 8), transpose_b=True, dtype=dtypes.f64),
            r"x is f32\[n,k\], the node has f64\[4,8\]",
        ),
        (node("matmul", (2, 4, 8), (8, 8), transpose_b=True), r"x is f32\[n,k\], the node has f32\[2,4,8\]"),
        (
            node("matmul", (4, 8), (8, 8), transpose_b=True, out_dtype=dtypes.f16),
            r"it gives f32\[n,m\]; matmul \(transpose_b=True, out_dtype=f16\) of its operands gives f16",
        ),
    ],
)
def test_nodes_that_do_not_fit(where, match):
    kernel = user(dense)
    assert instantiate(kernel, where, TARGET) is None
    reason = why_not(kernel, where, TARGET)
    assert reason is not None
    with pytest.raises(UserError, match=match):
        raise UserError(reason)


def reason(kernel: UserKernel, where: Node) -> str:
    assert instantiate(kernel, where, TARGET) is None
    return why_not(kernel, where, TARGET) or ""


def test_more_that_does_not_fit():
    assert "it takes 2 operands, the node has 1" in reason(user(dense, op="exp"), node("exp", (4, 8)))
    assert "dim 1 of x is 8, that of the node is 9" in reason(
        user(square), node("matmul", (4, 9), (9, 9), transpose_b=True)
    )
    transposed = node("matmul", (4, 8), (8, 8), transpose_b=True)
    assert "it is for transpose_b=False, the node has transpose_b=True" in reason(
        user(square, attrs={"transpose_b": False}), transposed
    )
    assert "its condition (when) does not hold" in reason(user(square, when=lambda _: False), transposed)
    same = make_node("add", [node("exp", (4, 8)), node("exp", (4, 8))])

    @strata.kernel
    def equal_sides(x: f32[m, m], z: f32[m, m], y: Out[f32[m, m]]):
        for i, j in grid(m, m):
            y[i, j] = x[i, j] + z[i, j]

    assert "m would be 4 and 8" in reason(user(equal_sides, op="add"), same)


def test_nodes_of_caches_do_not_fit():
    op, sample = next((op, s) for _, op, s in op_samples() if any(isinstance(t, CacheType) for t in s.types))
    where = sample_function(op, sample).outputs[0]
    assert "the node has an operand that is no tensor" in reason(user(lambda *_: None, op=op), where)


def test_multiples_and_sums_of_dims():
    even = strata.dim("even", 2, 64, multiple_of=2)

    @strata.kernel
    def by_two(x: f32[even], y: Out[f32[even]]):
        for i in grid(even):
            y[i] = exp(x[i])

    kernel = user(by_two, op="exp")
    assert fitting(kernel, node("exp", (6,))).when == ()
    assert fitting(kernel, node("exp", (4 * SymDim("rows", 1, 16),))).when == ()
    assert fitting(kernel, node("exp", (SymDim("rows", 4, 32, 4),))).when == ()
    for odd in (7, ROWS, 2 * ROWS + 1):
        assert "even is a multiple of 2" in reason(kernel, node("exp", (odd,)))

    @strata.kernel
    def longer(x: f32[m + 1], y: Out[f32[m + 1]]):
        for i in grid(m + 1):
            y[i] = exp(x[i])

    assert "m occurs in sums and products only" in reason(user(longer, op="exp"), node("exp", (6,)))


def test_floating_point_attributes_have_to_be_said():
    @strata.kernel
    def norm(x: f32[m, 8], w: f32[8], y: Out[f32[m, 8]]):
        for i in grid(m):
            total = 0.0
            for j in grid(8):
                total += x[i, j] * x[i, j]
            scale = rsqrt(total / 8.0 + 1e-5)
            for j in grid(8):
                y[i, j] = x[i, j] * scale * w[j]

    where = node("rms_norm", (ROWS, 8), (8,), eps=1e-5)
    silent = reason(user(norm, op="rms_norm"), where)
    assert (
        "it does not say for which eps it computes rms_norm; declare it with attrs={'eps': 1e-05}" in silent
    )
    assert verify_kernel(fitting(user(norm, op="rms_norm", attrs={"eps": 1e-5}), where))
    other = node("rms_norm", (ROWS, 8), (8,), eps=1e-6)
    assert "it is for eps=1e-05, the node has eps=1e-06" in reason(registered()[-1], other)


# --------------------------------------------------------------------------------------------- emission


def test_a_kernel_is_inlined_with_names_of_its_own():
    @strata.kernel
    def softplus(x: f32[m, k], y: Out[f32[m, k]]):
        for i in grid(m):
            row = local(f32[4])
            first = x[i, 0]
            for j in grid(k):
                row[0] = x[i, j] + first
                y[i, j] = exp(row[0] - first)

    instance = fitting(user(softplus, op="exp"), node("exp", (ROWS, 12)))
    x, y = Buffer("a", (ROWS, 12), dtypes.f32), Buffer("result", (ROWS, 12), dtypes.f32)
    stmts = [instance.emit((x,), y) for _ in range(2)]
    names = [
        s.buffer.name if isinstance(s, Alloc) else s.var.name
        for s in walk_stmts(stmts[0])
        if isinstance(s, For | Let | Alloc)
    ]
    assert all(name.startswith("result_") for name in names)
    bound = [{s.var for s in walk_stmts(t) if isinstance(s, For)} for t in stmts]
    assert not bound[0] & bound[1]
    a = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    out = np.empty_like(a)
    interp.run(Func("alone", (x, y), stmts[0]), [a, out])
    np.testing.assert_allclose(out, np.exp(a), rtol=1e-5)


def test_dims_of_a_function_are_replaced():
    func = specialize(dense.func, {"n": 2, "m": ROWS, "k": 5})
    assert [p.shape for p in func.params] == [(2, 5), (ROWS, 5), (2, ROWS)]
    assert [d.name for d in func.dims] == ["rows"]
    a, w = np.ones((2, 5), np.float32), np.ones((3, 5), np.float32)
    out = np.empty((2, 3), np.float32)
    interp.run(func, [a, w, out])
    np.testing.assert_array_equal(out, np.full((2, 3), 5))


# ---------------------------------------------------------------------------------- check of the result


def test_sizes_that_are_checked():
    instance = fitting(
        user(dense, when={"n": (3, 9)}), node("matmul", (ROWS, 24), (32, 24), transpose_b=True)
    )
    assert [env["rows"] for env in sample_sizes(instance)] == [3, 5, 9]
    wide = fitting(user(square), node("matmul", (ROWS, 8), (8, 8), transpose_b=True))
    assert [env["rows"] for env in sample_sizes(wide)] == [1, 45, 131]
    fixed = fitting(user(square), node("matmul", (6, 8), (8, 8), transpose_b=True))
    assert sample_sizes(fixed) == [{}]
    large = SymDim("rows", 1, 1 << 20)
    huge = node("exp", (large, 1 << 16))

    @strata.kernel
    def exponential(x: f32[m, k], y: Out[f32[m, k]]):
        for i, j in grid(m, k):
            y[i, j] = exp(x[i, j])

    assert max(env["rows"] for env in sample_sizes(fitting(user(exponential, op="exp"), huge))) == 32
    steps = SymDim("rows", 0, 256, 4)
    sizes = [
        env["rows"] for env in sample_sizes(fitting(user(exponential, op="exp"), node("exp", (steps, 8))))
    ]
    assert sizes == [4, 44, 128]


def test_a_right_kernel_is_checked_once():
    instance = fitting(user(dense), node("matmul", (ROWS, 24), (32, 24), transpose_b=True))
    assert verify_kernel(instance)
    (record,) = (cache_folder() / "verified").iterdir()
    assert json.loads(record.read_text()) == {"verdict": "right", "why": ""}
    record.write_text(json.dumps({"verdict": "wrong", "why": "it is remembered"}))
    with pytest.raises(UserError, match="candidate mine: it is remembered"):
        verify_kernel(instance)
    record.write_text("{")
    assert verify_kernel(instance)


def test_flags_that_no_shape_shows_are_found_by_running():
    both = [node("matmul", (ROWS, 8), (8, 8), transpose_b=t) for t in (True, False)]
    instances = [fitting(user(square), where) for where in both]
    assert [len(i.open_attrs) for i in instances] == [1, 1]
    assert [verify_kernel(i) for i in instances] == [True, False]
    assert fitting(user(square, attrs={"transpose_b": True}), both[0]).open_attrs == ()


def check_of(kernel, where: Node, op: str = "matmul", **options) -> bool:
    return verify_kernel(fitting(user(kernel, op, **options), where))


def test_a_kernel_that_computes_something_else():
    @strata.kernel
    def short(x: f32[m, 8], w: f32[8, 8], y: Out[f32[m, 8]]):
        for i, j, q in block("short", m, 8, reduce(7)):
            with init():
                y[i, j] = 0.0
            y[i, j] += x[i, q] * w[j, q]

    where = node("matmul", (ROWS, 8), (8, 8), transpose_b=True)
    match = (
        r"candidate mine: computes something else than matmul\(f32\[rows,8\], f32\[8,8\], transpose_b=True\) "
        r"at rows = 1: element \[0, 0\] is -?[\d.]+, expected -?[\d.]+ \(\d of 8 differ\)"
    )
    with pytest.raises(UserError, match=match):
        check_of(short, where)
    with pytest.raises(UserError, match="candidate mine: computes something else"):
        check_of(short, where)  # what was remembered


def test_a_kernel_that_leaves_elements_out():
    @strata.kernel
    def all_but_one(x: f32[m], y: Out[f32[m]]):
        for i in grid(m - 1):
            y[i] = exp(x[i])

    with pytest.raises(UserError, match=r"at rows = 1: element \[0\] is nan, expected"):
        check_of(all_but_one, node("exp", (ROWS,)), "exp")


def test_a_kernel_that_is_wrong_at_larger_sizes_only():
    @strata.kernel
    def few(x: f32[m], y: Out[f32[m]]):
        for i in grid(m):
            y[i] = exp(x[i]) if i < 40 else 0.0

    with pytest.raises(UserError, match=r"at rows = 45: element \[40\] is 0, expected"):
        check_of(few, node("exp", (ROWS,)), "exp")


def test_a_kernel_that_writes_outside():
    @strata.kernel
    def beyond(x: f32[m], y: Out[f32[m]]):
        for i in grid(m):
            y[i] = exp(x[i])
        if m > 1:
            y[m - 1 + m // 2 // m + m // 2] = 0.0

    with pytest.raises(UserError, match=r"candidate mine: .*y.*\(?at rows = 45"):
        check_of(beyond, node("exp", (ROWS,)), "exp")

    @strata.kernel
    def large_and_beyond(x: f32[m, k], y: Out[f32[m, k]]):
        for i, j in grid(m, k):
            y[i, j] = exp(x[i, j])
        if m > 1:
            y[m // 2 * 2 - m // 2 + m // 2 + 1, 0] = 0.0

    where = node("exp", (ROWS, 1000))
    with pytest.raises(UserError, match=r"writes outside of y: \d+ byte\(s\) after it at rows = 45"):
        check_of(large_and_beyond, where, "exp")

    @strata.kernel
    def before(x: f32[m, k], y: Out[f32[m, k]]):
        for i, j in grid(m, k):
            y[i, j] = exp(x[i, j])
        if m > 1:
            y[m // 2 - m, 0] = 0.0

    with pytest.raises(UserError, match=r"writes outside of y: \d+ byte\(s\) before it"):
        check_of(before, node("exp", (SymDim("rows", 1, 3), 20_000)), "exp")


def test_a_kernel_that_reads_outside():
    @strata.kernel
    def neighbour(x: f32[m, k], y: Out[f32[m, k]]):
        for i, j in grid(m, k):
            y[i, j] = exp(x[i + m // 2 * 2 - m // 2 * 2 + (i + 1) // m, j])

    with pytest.raises(UserError, match=r"computes something else|x"):
        check_of(neighbour, node("exp", (ROWS, 1000)), "exp")


def test_narrow_floats_are_compared_with_their_own_tolerance():
    @strata.kernel
    def narrow(x: bf16[m], y: Out[bf16[m]]):
        for i in grid(m):
            y[i] = bf16(exp(f32(x[i])))

    assert check_of(narrow, node("exp", (ROWS,), dtype=dtypes.bf16), "exp")

    @strata.kernel
    def coarse(x: f64[m], y: Out[f64[m]]):
        for i in grid(m):
            y[i] = f64(exp(f32(x[i])))

    with pytest.raises(UserError, match="computes something else"):
        check_of(coarse, node("exp", (ROWS,), dtype=dtypes.f64), "exp")


def test_ops_of_integers_are_compared_exactly():
    @strata.kernel
    def add(x: i32[m], z: i32[m], y: Out[i32[m]]):
        for i in grid(m):
            y[i] = x[i] + z[i]

    where = node("add", (ROWS,), (ROWS,), dtype=dtypes.i32)
    assert check_of(add, where, "add")

    @strata.kernel
    def off(x: i32[m], z: i32[m], y: Out[i32[m]]):
        for i in grid(m):
            y[i] = x[i] + z[i] + 1

    with pytest.raises(UserError, match="computes something else"):
        check_of(off, where, "add")


# ---------------------------------------------------------------------------------- functions of others


def matmul_t(x, w):
    """A function of NumPy arrays."""
    return x @ w.T


def test_a_function_is_a_candidate():
    kernel = user(matmul_t, when={"rows": (1, 8)})
    where = node("matmul", (ROWS, 8), (5, 8), transpose_b=True)
    instance = fitting(kernel, where)
    assert instance.when == (DimRange("rows", 1, 8),)
    assert verify_kernel(instance)
    assert verify_kernel(instance)
    assert "when speaks of rows; the dims of the node are constants" in reason(
        kernel, node("matmul", (4, 8), (5, 8), transpose_b=True)
    )
    assert "its range (when) is outside of the node's" in reason(
        kernel, node("matmul", (SymDim("rows", 9, 20), 8), (5, 8), transpose_b=True)
    )


def test_a_function_that_fails_or_lies():
    def raises(x, w):
        raise RuntimeError("no GPU here")

    where = node("matmul", (ROWS, 8), (5, 8), transpose_b=True)
    with pytest.raises(UserError, match=r"candidate mine: fails with .*no GPU here"):
        check_of(raises, where)
    with pytest.raises(UserError, match="candidate mine: computes something else than matmul"):
        check_of(lambda x, w: 2 * (x @ w.T), where)


# --------------------------------------------------------------------------------------- whole models


class Head(nn.Module):
    def __init__(self) -> None:
        self.w = nn.Parameter((24, 40), "float32")

    def forward(self, x: nn.Tensor) -> nn.Tensor:
        return nn.op.relu(nn.op.matmul(x, self.w))


@strata.kernel
def head(x: f32[n, 24], w: f32[24, 40], y: Out[f32[n, 40]]):
    for i, j, q in block("head", n, 40, reduce(24)):
        with init():
            y[i, j] = 0.0
        y[i, j] += x[i, q] * w[q, j]


def planned(options: PlanOptions):
    exported = Head().export({"forward": {"x": spec.Tensor(["rows", 24], "float32")}})
    from strata.compiler.driver import trace

    return trace(exported.module).lower().plan(options)


PINNED = PlanOptions(pins=(parse_pin("matmul=user.mine"),))


@pytest.mark.parametrize("implementation", [head, lambda x, w: x @ w], ids=["kernel", "function"])
def test_a_pinned_kernel_runs_in_its_range(implementation):
    user(implementation, when=None)
    plan = planned(PINNED)
    (launch,) = plan.functions[0].launches
    offered = [c for c in launch.stack.candidates if c.name == "user.mine"]
    assert [c.origin for c in offered] == [Origin.KERNEL]
    assert launch.stack.candidates[launch.choices[0].candidate].name == "user.mine"
    w = np.random.default_rng(0).standard_normal((24, 40)).astype(np.float32)
    program = plan.compile().program({"w": w})
    for rows in (1, 7, 16, 17, 40):  # the kernel takes 1 to 16
        x = np.random.default_rng(rows).standard_normal((rows, 24)).astype(np.float32)
        np.testing.assert_allclose(program["forward"](x), np.maximum(x @ w, 0), rtol=1e-4, atol=1e-4)


@strata.kernel
def negated(x: f32[n, 24], w: f32[24, 40], y: Out[f32[n, 40]]):
    for i, j, q in block("negated", n, 40, reduce(24)):
        with init():
            y[i, j] = 0.0
        y[i, j] -= x[i, q] * w[q, j]


def test_a_wrong_kernel_is_left_out_unless_it_is_asked_for(caplog):
    user(negated)
    with caplog.at_level(logging.WARNING, logger="strata.planner"):
        (launch,) = planned(PlanOptions()).functions[0].launches
    assert "candidate mine: computes something else" in caplog.text
    assert all(c.name != "user.mine" for c in launch.stack.candidates)
    with pytest.raises(UserError, match="candidate mine: computes something else"):
        planned(PINNED)


def test_the_check_can_be_switched_off():
    user(negated, check=False)
    (launch,) = planned(PINNED).functions[0].launches
    assert launch.stack.candidates[launch.choices[0].candidate].name == "user.mine"
    user(negated)
    unchecked = PlanOptions(pins=PINNED.pins, verify_kernels=False)
    (launch,) = planned(unchecked).functions[0].launches
    assert launch.stack.candidates[launch.choices[0].candidate].name == "user.mine"
