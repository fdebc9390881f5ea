"""The rule engine, and how often rules fire on random graphs."""

from __future__ import annotations

import pytest
import random_graphs
from hypothesis import Phase, given, settings

from strata.core.dims import SymDim
from strata.core.dtypes import ALL_DTYPES, bf16, bool_, dtype, f16, f32, f64, i8, i16, i32, i64, u8
from strata.core.errors import VerifyError
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node, rebuild
from strata.graph.ops.common import np_dtype
from strata.graph.types import TensorType
from strata.passes.canonicalize import RULES
from strata.passes.rules import Rule, simplify
from strata.passes.rules_algebra import is_lossless

N = SymDim("n", 1, 8)


def function(change: str = "neg") -> Function:
    x = g.input("x", TensorType((N, 4), f32))
    return Function("f", (x,), (getattr(g, change)(x, name="origin"),))


def test_rules_apply_bottom_up_to_a_fixpoint() -> None:
    x = g.input("x", TensorType((N,), f32))
    deep = x
    for _ in range(4001):
        deep = g.neg(deep)
    rule = next(r for r in RULES if r.name == "no-double")
    fired: dict[str, int] = {}
    after = simplify(Function("f", (x,), (deep,)), (rule,), fired)
    assert [n.op for n in after.nodes] == ["input", "neg"]
    assert fired == {"no-double": 2000}


def test_a_rule_that_changes_a_type_is_named() -> None:
    wrong = Rule("wrong", ("neg",), lambda node: g.cast(node.inputs[0], bf16), "")
    with pytest.raises(VerifyError, match=r"rule wrong: neg origin: got bf16\[n,4\]; expected f32\[n,4\]"):
        simplify(function(), (wrong,))


def test_rules_that_chase_each_other_are_named() -> None:
    def to(op: str) -> Rule:
        def apply(node: Node) -> Node:
            return getattr(g, op)(node.inputs[0], name=node.name)

        return Rule(f"to-{op}", ("neg", "abs"), lambda node: apply(node) if node.op != op else None, "")

    with pytest.raises(VerifyError, match=r"rules do not end on .* origin; the last ones: to-.*, to-"):
        simplify(function(), (to("neg"), to("abs")))


def test_nothing_to_do_keeps_the_nodes() -> None:
    before = function("exp")
    assert simplify(before, RULES).outputs[0] is before.outputs[0]


def test_lossless_casts_against_numpy() -> None:
    """Every lossless pair keeps the extremes and a third of each dtype; some pairs are known to lose."""
    import ml_dtypes
    import numpy as np

    for source in ALL_DTYPES.values():
        kind = np_dtype(source)
        if source is bool_:
            values = np.array([False, True])
        elif source.is_int:
            info = ml_dtypes.iinfo(kind)
            values = np.array([info.min, info.max, info.max // 3], kind)
        else:
            values = np.array([1 / 3, -65504.0, 6e-8, -0.0, np.inf], np.float64).astype(kind)
        for target in ALL_DTYPES.values():
            if is_lossless(source, target):
                back = values.astype(np_dtype(target)).astype(kind)
                assert back.tobytes() == values.tobytes(), (source, target)
    for source, target in ((f32, bf16), (f16, bf16), (bf16, f16), (i32, f32), (i64, f64), (u8, i8), (i8, u8)):
        assert not is_lossless(source, target)
    assert is_lossless(u8, i16)
    assert is_lossless(i16, i32)
    assert is_lossless(dtype("bool"), i32)


def test_random_graphs_reach_the_rules() -> None:
    """Otherwise the property tests would say nothing about them."""
    fired: dict[str, int] = {}

    @settings(max_examples=300, derandomize=True, phases=[Phase.generate], database=None)
    @given(random_graphs.modules())
    def collect(module: Module) -> None:
        simplify(module.functions[0], RULES, fired)

    collect()
    assert {r.name for r in RULES} - set(fired) <= {"known-choice", "no-double", "concat", "sink-slice"}


def test_rebuild_keeps_identity() -> None:
    node = function().outputs[0]
    assert rebuild(node, node.inputs) is node
