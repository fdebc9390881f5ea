"""Index formulas: the typed tree and every parse error."""

import re

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f32
from strata.core.errors import ParseError
from strata.graph import builder as b
from strata.graph.interp import run
from strata.graph.nodes import Function
from strata.graph.ops.formula import (
    Axis,
    Binary,
    Call,
    FormulaKind,
    FormulaOp,
    Input,
    Negate,
    Not,
    Number,
    Reduce,
    ReduceKind,
    Select,
    Size,
    bind_dims,
    formula_dims,
    parse_formula,
    walk,
)

n = SymDim("n", 1, 64)


def test_tree() -> None:
    assert parse_formula("a0[i0, i1] * 2.0 + exp(a1[i1])", 2, (3, 4)) == Binary(
        FormulaOp.ADD,
        Binary(FormulaOp.MUL, Input(0, (Axis("i0"), Axis("i1"))), Number(2.0)),
        Call("exp", Input(1, (Axis("i1"),))),
    )
    assert parse_formula("sum(k < n, a0[a1[k]])", 2, ()) == Reduce(
        ReduceKind.SUM, "k", n, Input(0, (Input(1, (Axis("k"),), True),))
    )
    assert parse_formula("select(not i0 < 2, -i0, -1)", 0, (4,)) == Select(
        Not(Binary(FormulaOp.LT, Axis("i0"), Number(2))), Negate(Axis("i0")), Number(-1)
    )
    assert parse_formula("a0[()]", 1, ()) == Input(0, ())


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("i0 // 2 % 3", FormulaKind.INT),
        ("max(i0, n) - 1", FormulaKind.INT),
        ("i0 / 2", FormulaKind.FLOAT),
        ("i0 ** 2", FormulaKind.FLOAT),
        ("i0 + 1.0", FormulaKind.FLOAT),
        ("a0[i0]", FormulaKind.FLOAT),
        ("select(i0 < 1, i0, 2)", FormulaKind.INT),
        ("sum(k < 3, k)", FormulaKind.FLOAT),
        ("i0 < 1 or i0 == 3 and not i0 != 2", FormulaKind.BOOL),
    ],
)
def test_kinds(text: str, kind: FormulaKind) -> None:
    assert parse_formula(text, 1, (5,)).kind is kind


def test_dims_and_walk() -> None:
    tree = parse_formula("sum(k < 2*n + m - 1, a0[k]) / n", 1, ())
    assert [d.name for d in formula_dims(tree)] == ["m", "n"]
    assert [type(x).__name__ for x in walk(tree)] == ["Binary", "Reduce", "Input", "Axis", "Size"]
    assert isinstance(tree, Binary)
    assert isinstance(tree.b, Size)


def test_declared_dims_keep_their_range() -> None:
    wide = SymDim("n", 8, 16)
    for tree in (parse_formula("n", 0, (wide,)), parse_formula("n", 0, (), [wide])):
        assert isinstance(tree, Size)
        assert isinstance(tree.dim, SymDim)
        assert tree.dim.lo == 8
    b.tensor_expr([], "reduce_max(k < n - 7, k)", (wide,), f32)  # at least one term


def test_bind_dims() -> None:
    assert bind_dims("sum(k < n, a0[k, i0]) / n", {"n": 7, "k": 3}) == "sum(k < 7, a0[k, i0]) / 7"
    assert bind_dims("n", {"n": 2}) == "2"


ERRORS = [
    ("a0[i0", "formula: '[' was never closed"),
    ("", "formula: "),
    ("i0\0", "formula: "),
    ("'text'", "got \"'text'\"; expected axes"),
    ("True", "got 'True'; expected axes"),
    ("i0 < i0 < 2", "got 'i0 < i0 < 2'; expected axes"),
    ("a0.b", "got 'a0.b'; expected axes"),
    ("exp(x=1)", "got 'exp(x=1)'; expected axes"),
    ("i0 << 1", "got 'i0 << 1'; expected axes"),
    ("i1", "no axis i1; the result has rank 1"),
    ("a0", "operand a0 without an index; write a0[i0, ...] (a0[()] if it is 0-d)"),
    ("a1[i0]", "no operand a1; there are: a0"),
    ("b[i0]", "no operand b; there are: a0"),
    ("a0[0.5]", "'0.5' is f32; expected an integer index (i64)"),
    ("i0 and i0", "'i0' is i64; expected a condition (bool)"),
    ("not 1.0", "'1.0' is f32; expected a condition"),
    ("select(i0, 1, 2)", "'i0' is i64; expected a condition"),
    ("exp(i0 < 1)", "'i0 < 1' is a condition; expected a number"),
    ("-(i0 < 1)", "'i0 < 1' is a condition; expected a number"),
    ("(i0 < 1) + 1", "operand of + is a condition; expected numbers"),
    ("a0[i0] // 2", "operands of // must be integers"),
    ("sinh(i0)", "no function 'sinh'; known: exp, log"),
    ("exp(i0, 1)", "exp got 2 arguments; expected 1"),
    ("sum(a0[i0], i0)", "got 'a0[i0]'; expected 'axis < extent', as in sum(k < 16, ...)"),
    ("sum(i0 < 3, i0)", "reduction axis i0 is taken"),
    ("sum(k < 3, sum(k < 3, k))", "reduction axis k is taken"),
    ("sum(k < i0, k)", "extent 'i0'; expected integers and dims with + - *"),
    ("sum(k < n / 2, k)", "extent 'n / 2'; expected integers and dims"),
    ("+i0", "got '+i0'; expected axes"),
    ("(" * 90 + "i0" + ")" * 90 + "+ -" * 210 + "i0", "formula: "),
]


@pytest.mark.parametrize(("text", "message"), ERRORS, ids=range(len(ERRORS)))
def test_errors(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=re.escape(message)):
        parse_formula(text, 1, (4,))


def test_error_points_at_the_place() -> None:
    with pytest.raises(ParseError) as caught:
        parse_formula("1.0 + a7[i0]", 1, (4,))
    assert str(caught.value).splitlines()[1:] == ["  1.0 + a7[i0]", "        ^"]


def test_deep_formula() -> None:
    with pytest.raises(ParseError, match="nested deeper than 100; split it into several ops"):
        parse_formula("exp(" * 80 + "+".join(["i0"] * 90) + ")" * 80, 0, (4,))
    with pytest.raises(ParseError, match="formula: "):
        parse_formula("(" * 1000 + "1" + ")" * 1000, 0, ())


def test_formula_of_the_greatest_depth() -> None:
    text = "exp(" * 99 + "n" + ")" * 99
    parse_formula(text, 0, ())
    assert bind_dims(text, {"n": 5}) == text.replace("(n)", "(5)")


def test_empty_sum_and_dims_at_run_time() -> None:
    x = b.input("x", b.tensor_type((n, 3), "f32"))
    mean = b.tensor_expr([x], "sum(k < n, a0[k, i0]) / n", (3,), f32)
    none = b.tensor_expr([x], "sum(k < n - n, 1.0) + 1", (n,), f32)
    value = np.arange(12, dtype=np.float32).reshape(4, 3)
    got = run(Function("f", (x,), (mean, none)), [value])
    np.testing.assert_array_equal(got[0], value.mean(axis=0))
    np.testing.assert_array_equal(got[1], np.ones(4, np.float32))
