"""The text form: every construct there and back, names, and errors with places."""

import math

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, f16, f32, f64, i32, i64
from strata.core.errors import ParseError
from strata.loop.nodes import (
    Alloc,
    Block,
    Buffer,
    Cast,
    Const,
    For,
    ForKind,
    Func,
    Let,
    Load,
    MemSpace,
    Seq,
    Size,
    Store,
    Unary,
    UnaryOp,
    Var,
    index,
)
from strata.loop.text import (
    canonical_text,
    func_symbols,
    number_text,
    parse_func,
    print_expr,
    print_func,
    print_stmt,
)

EVERYTHING = """dims m in 4..64 multiple of 4, n in 1..512
func @every.thing(x: f32[n,256], w: bf16[m + 2*n,16], flags: bool[]) -> (y: f32[n,256], z: i64[4])
  alloc acc: f32[4,16] register
  alloc early: f32[256] local:
    early[0] = 0x1p+0
  alloc scratch: f32[256] local
  parallel i in n:
    for j in 256:
      block "ss" (r: spatial n = i, k: reduce 256 = j) where i < n and not j == 3:
        init: y[r, k] = 0x0p+0
        y[r, k] = y[r, k] + x[r, k] * x[r, k]
      block "two" ():
        init:
          z[0] = 1
          z[1] = -2
        pass
    unroll u in 2:
      vectorize v in 8:
        let q = u * 8 + v
        let h = f32(w[i, q]):
          scratch[q] = h
        z[q % 4] = min(q, max(u, 3)) - (u - v) - -5
  for io in (n + 63) // 64:
    let at = ramp(io * 64, 16)
    if io < 3 or n >= size(-m + 2*n):
      y[0, at] = (x[0, at] if at < splat(n, 16)) if not splat(flags[], 16)
    else:
      y[0, 0] = reduce_sum(x[0, ramp(0, 16)]) + reduce_max(y[1, at]) - reduce_min(y[2, at])
  z[0] = i64(select(True, 0x1.8p-1, -inf)) * -(3) + i64(3_i32) + i64(nan_f64) + i64(-0x1p-2_bf16)
  y[0, ramp(0, 4)] = @dot2_bf16<f32x4>(splat(exp(-x[0, 0]), 4), w[0, ramp(0, 8)], w[1, ramp(8, 8)])
  y[0, 1] = abs(sigmoid(@fma<f32>(x[0, 0], rsqrt(x[0, 1]), floor(x[0, 2]))))
  y[0, 2] = -(x[0, 0] + x[0, 1]) * (x[0, 2] - x[0, 3]) / x[0, 4]
"""


def test_every_construct_prints_as_it_was_read():
    func = parse_func(EVERYTHING)
    assert print_func(func) == EVERYTHING
    assert (func.name, len(func.params), func.num_outputs) == ("every.thing", 5, 2)
    n, m = SymDim("n"), SymDim("m")
    assert func.params[1].shape == (2 * n + m, 16)
    assert [(s.lo, s.hi, s.multiple_of) for s in func.dims] == [(4, 64, 4), (1, 512, 1)]


def test_comments_blank_lines_and_wrapped_parameters():
    long = "func @f({}) -> (y: f32[1])\n  pass\n".format(
        ", ".join(f"input_number_{k}: f32[1]" for k in range(9))
    )
    text = print_func(parse_func(long))
    assert text.startswith("func @f(\n    input_number_0: f32[1],\n    input_number_1: f32[1],")
    assert text.endswith("\n) -> (\n    y: f32[1]\n)\n  pass\n")
    assert print_func(parse_func(text)) == text
    commented = long.replace("  pass", "\n  # nothing to do\n    # here\n  pass  # really\n")
    assert print_func(parse_func(commented)) == text


def test_undeclared_dims_of_parameters_are_unbounded():
    func = parse_func("func @f(x: f32[k]) -> (y: f32[2*k])\n  pass\n")
    assert print_func(func).startswith("dims k in 1..2147483647\nfunc @f(x: f32[k]) -> (y: f32[2*k])")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0x0p+0"),
        (-0.0, "-0x0p+0"),
        (1.0, "0x1p+0"),
        (0.1, "0x1.999999999999ap-4"),
        (1024.0, "0x1p+10"),
        (5e-324, "0x0.0000000000001p-1022"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (17, "17"),
        (True, "True"),
    ],
)
def test_numbers_are_exact(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize("dtype", [f64, f32, f16, bf16])
def test_constants_of_every_float_dtype(dtype):
    y = Buffer("y", (), dtype)
    for value in (1.5, -2.0, -0.0, math.inf, -math.inf, 0.0):
        func = Func("f", (y,), Store(y, (), Const(value, dtype)))
        parsed = parse_func(print_func(func)).body.value
        assert (parsed.value, parsed.dtype) == (value, dtype)
        assert math.copysign(1, parsed.value) == math.copysign(1, value)


def test_negative_constants_and_negations_differ():
    y = Buffer("y", (), i64)
    for value in (index(-3), Unary(UnaryOp.NEG, index(3)), Unary(UnaryOp.NEG, Unary(UnaryOp.NEG, index(-3)))):
        func = Func("f", (y,), Store(y, (), value))
        assert parse_func(print_func(func)).body.value == value


def test_names_are_made_unique_and_legal():
    i1, i2, odd, keyword = Var("i"), Var("i"), Var("2nd loop-é"), Var("for")
    x, y = Buffer("i", (4,), f32), Buffer("n", (SymDim("n", 1, 4),), f32)
    body = Store(y, (i1,), Load(x, (i2,)))
    for var in (keyword, odd, i2, i1):
        body = For(var, index(1), ForKind.SERIAL, body)
    text = print_func(Func("a b", (x, y), body))
    assert "func @a_b(i: f32[4]) -> (n_1: f32[n])" in text
    assert "for i_1 in 1:\n    for i_2 in 1:\n      for _2nd_loop__ in 1:\n        for for_1 in 1:" in text
    assert "n_1[i_1] = i[i_2]" in text
    assert print_func(parse_func(text)) == text


def test_one_variable_bound_twice_prints_two_names():
    i, y = Var("i"), Buffer("y", (4,), f32)
    loop = For(i, index(4), ForKind.SERIAL, Store(y, (i,), Const(0.0, f32)))
    text = print_func(Func("f", (y,), Seq((loop, loop))))
    assert "for i in 4:\n    y[i] = 0x0p+0\n  for i_1 in 4:\n    y[i_1]" in text
    assert print_func(parse_func(text)) == text


def test_scopes_of_let_and_alloc():
    y = Buffer("y", (4,), f32)
    local = Buffer("t", (4,), f32, MemSpace.LOCAL)
    put = Store(y, (index(0),), Const(1.0, f32))
    inner = Alloc(local, Seq((put, put)))
    func = Func("f", (y,), Seq((inner, put, Let(Var("q"), index(1), Seq(())))))
    text = print_func(func)
    assert (
        "alloc t: f32[4] local:\n    y[0] = 0x1p+0\n    y[0] = 0x1p+0\n  y[0] = 0x1p+0\n  let q = 1\n  pass"
        in text
    )
    assert parse_func(text).body.stmts[0].body.stmts[1].buffer.name == "y"
    assert print_func(parse_func(text)) == text


def test_fragments_print_with_their_own_names():
    i = Var("i")
    y = Buffer("y", (4,), f32)
    assert print_expr(Cast(f32, i)) == "f32(i)"
    assert print_stmt(For(i, Size(SymDim("n")), ForKind.UNROLL, Store(y, (i,), Const(0.0, f32)))) == (
        "unroll i in n:\n  y[i] = 0x0p+0\n"
    )


def test_canonical_text_depends_on_structure_only():
    func = parse_func(EVERYTHING)
    renamed = EVERYTHING.replace("acc", "sums").replace("scratch", "tmp").replace('"ss"', '"other"')
    renamed = renamed.replace("@every.thing", "@thing").replace("io", "outer").replace("flags", "switches")
    assert renamed != EVERYTHING
    assert canonical_text(parse_func(renamed)) == canonical_text(func)
    changed = EVERYTHING.replace("0x1.8p-1", "0x1.9p-1")
    assert canonical_text(parse_func(changed)) != canonical_text(func)
    assert print_func(parse_func(canonical_text(func))).count("\n") == EVERYTHING.count("\n")


def test_symbols_come_from_everywhere():
    k = SymDim("k", 1, 9)
    y = Buffer("y", (4,), f32)
    body = Alloc(Buffer("t", (3 * k,), f32), Store(y, (Size(SymDim("j", 0, 3)),), Const(0.0, f32)))
    assert [s.name for s in func_symbols(Func("f", (y,), body))] == ["j", "k"]


def test_block_without_axes_and_empty_names():
    y = Buffer("", (), i32)
    func = Func("f", (y,), Block('say "hi"', (), Store(y, (), Const(1, i32))))
    text = print_func(func)
    assert "block \"say 'hi'\" ():\n    _[] = 1_i32" in text
    assert print_func(parse_func(text)) == text


def test_hardware_axes_and_notes():
    text = """func @f() -> (y: f32[8,8])
  for i in 8 on block_x with stage="first, of two", depth=-3:
    for j in 8 on thread_x:
      parallel k in 2 with grain=4:
        block "b" (a: spatial 8 = i, c: spatial 8 = j) where k < 1 with why="example":
          y[a, c] = 0x0p+0
"""
    func = parse_func(text)
    assert print_func(func) == text
    outer = func.body
    assert outer.kind is ForKind.BLOCK_X
    assert outer.notes == (("stage", "first, of two"), ("depth", -3))
    assert outer.body.kind is ForKind.THREAD_X
    assert outer.body.body.body.notes == (("why", "example"),)
    assert canonical_text(func) != canonical_text(parse_func(text.replace("grain=4", "grain=5")))
    y = Buffer("y", (2,), f32)
    named = For(Var("on"), index(2), ForKind.LANE, Store(y, (index(0),), Const(0.0, f32)))
    assert "for on_1 in 2 on lane:" in print_func(Func("f", (y,), named))


HEAD = "func @f(x: f32[n,4]) -> (y: f32[4])\n"

ERRORS = [
    ("func f() -> ()\n  pass\n", 1, 6, "got 'f'; expected @name"),
    ("func @f() -> ()\npass\n", 2, 1, "got 'pass'; expected an indented statement"),
    ("func @f() -> () pass\n", 1, 17, "got 'pass'; expected the end of the line"),
    ("func @f() -> ()\n  pass\nfunc", 3, 1, "got 'func'; expected the end of the text"),
    (
        "func @f() -> ()\n  pass\n    pass\n",
        3,
        5,
        "got a deeper indentation; expected a statement of this suite",
    ),
    ("func @f() -> ()\n    pass\n  pass\n", 3, 3, "got an indentation that matches no line above"),
    ("func @f() -> ()\n  for i in 3:\n  pass\n", 3, 3, "got 'pass'; expected an indented statement"),
    ("func @f() -> ()\n  for i in 3 pass\n", 2, 14, "got 'pass'; expected ':'"),
    ("func @f() -> ()\n  let ? = 3\n", 2, 7, r"got '\?'; expected a word of the loop language"),
    ("func @f(x: f31[4]) -> ()\n  pass\n", 1, 12, "got 'f31'; expected a dtype: f64, f32"),
    (
        "func @f(x: f32[4], x: f32[4]) -> ()\n  pass\n",
        1,
        20,
        "got 'x' again; expected a name that is not in use",
    ),
    ("func @f(x: f32[4 4]) -> ()\n  pass\n", 1, 18, "got '4'; expected ','"),
    ("func @f(x: f32[]] -> ()\n  pass\n", 1, 17, "got ']'; expected ','"),
    ("dims n in 4..2\nfunc @f() -> ()\n  pass\n", 1, 6, "got range 4..2; expected 0 <= lo <= hi"),
    ("dims n in 1_i32..2\nfunc @f() -> ()\n  pass\n", 1, 11, "got '1_i32'; expected an integer"),
    ("dims n in a..2\nfunc @f() -> ()\n  pass\n", 1, 11, "got 'a'; expected an integer"),
    ("dims 3 in 1..2\nfunc @f() -> ()\n  pass\n", 1, 6, "got '3'; expected the name of a dim"),
    ("dims n in 1..2 m\nfunc @f() -> ()\n  pass\n", 1, 16, "got 'm'; expected ',' or the end of the line"),
    (HEAD + "  y[0] = q\n", 2, 10, "got the unknown name 'q'; known here: x, y, n"),
    (HEAD + "  n[0] = 3\n", 2, 3, "got 'n'; expected a buffer to store to"),
    (HEAD + "  y[0] = x[0, 0\n", 3, 1, "got the end of the line; expected ','"),
    (HEAD + "  y[0] = foo(3)\n", 2, 10, r"got the unknown function 'foo'"),
    (HEAD + "  y[0] = min(3)\n", 2, 15, r"got '\)'; expected ','"),
    (HEAD + "  y[0] = ramp(3, n)\n", 2, 18, "got 'n'; expected an integer"),
    (HEAD + "  y[0] = *\n", 2, 10, r"got '\*'; expected an expression"),
    (HEAD + "  y[0] =\n", 2, 9, "got the end of the line; expected an expression"),
    (HEAD + "  y[0] = 3_q8\n", 2, 10, "got the suffix 'q8'; expected a dtype: f64"),
    (HEAD + "  y[0] = 3_f32\n", 2, 10, "got '3_f32'; expected a literal that f32 can hold"),
    (HEAD + "  y[0] = 0x1p+0_i64\n", 2, 10, "expected a literal that i64 can hold"),
    (
        HEAD + "  y[0] = (x[0, 0] + x[0, 1] if n < 3)\n",
        2,
        29,
        "got 'if' after something else than a plain load",
    ),
    (HEAD + "  y[0] = @fma<q>(x[0, 0])\n", 2, 15, "got 'q'; expected a type like f32 or f32x16"),
    (HEAD + "  y[0] = @fma<4>(x[0, 0])\n", 2, 15, "got '4'; expected a type like f32 or f32x16"),
    (HEAD + "  y[0] = size(n +)\n", 2, 18, r"got '\)'; expected an integer or the name of a dim"),
    (HEAD + "  y[0] = size(k)\n", 2, 15, "got the unknown dim 'k'; known: n"),
    (HEAD + "  y[0] = 1 < 2 < 3\n", 2, 16, "got '<'; expected the end of the line"),
    (HEAD + '  block "b" (m: spatial 4 = 0, m: reduce 4 = 1):\n    pass\n', 2, 32, "got the axis 'm' again"),
    (
        HEAD + '  block "b" (m: local 4 = 0):\n    pass\n',
        2,
        17,
        "got 'local'; expected 'spatial' or 'reduce'",
    ),
    (HEAD + '  block "b" ():\n  pass\n', 3, 3, "got 'pass'; expected an indented statement"),
    (HEAD + "  block b ():\n    pass\n", 2, 9, "got 'b'; expected the block's name in double quotes"),
    (HEAD + "  for i in 3:\n    pass\n  y[i] = x[0, 0]\n", 4, 5, "got the unknown name 'i'"),
    (HEAD + '  block "b" (m: spatial 4 = m):\n    pass\n', 2, 29, "got the unknown name 'm'"),
    (HEAD + "  let a = 1:\n    pass\n  y[a] = x[0, 0]\n", 4, 5, "got the unknown name 'a'"),
    (HEAD + "  let a = 1 2\n", 2, 13, "got '2'; expected ':' or the end of the line"),
    (HEAD + "  3\n", 2, 3, "got '3'; expected a statement"),
    (HEAD + "  for i in 3 on warp:\n    pass\n", 2, 17, "got 'warp'; expected one of block_x, .*, lane"),
    (HEAD + "  for i in 3 on 4:\n    pass\n", 2, 17, "got '4'; expected a hardware axis"),
    (HEAD + "  parallel i in 3 on lane:\n    pass\n", 2, 19, "got 'on'; expected ':'"),
    (HEAD + "  for i in 3 with 4:\n    pass\n", 2, 19, "got '4'; expected the key of a note"),
    (HEAD + "  for i in 3 with a=1, a=2:\n    pass\n", 2, 24, "got the key 'a' again"),
    (HEAD + "  for i in 3 with a=b:\n    pass\n", 2, 21, "got 'b'; expected an integer"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), ERRORS)
def test_errors_say_where(text, line, column, message):
    with pytest.raises(ParseError, match=message) as caught:
        parse_func(text, "kernel.loop")
    span = caught.value.span
    assert (span.source, span.line, span.column) == ("kernel.loop", line, column)
    if line <= text.count("\n"):
        shown = str(caught.value).split("\n")
        assert shown[-2] == "  " + text.split("\n")[line - 1]
        assert shown[-1] == "  " + " " * (column - 1) + "^"
