"""Calls of externs: text, checker, interpreter, rewriting, and the steps that leave them alone."""

import numpy as np
import pytest
from extern_functions import Refused, function

from strata.core.dtypes import f32, i32
from strata.core.errors import LegalityError, ParseError, ShapeError, UserError, VerifyError
from strata.loop import build as b
from strata.loop.check import LOOP_LOWERED, STAGES, check
from strata.loop.externs import EXTERNS, Extern, buffers_of, call_problem, call_reads, call_writes
from strata.loop.interp import run
from strata.loop.nodes import Alloc, Buffer, Call, Cast, Func, MemSpace, Var, seq
from strata.loop.rewrite import (
    buffers_read,
    buffers_written,
    free_vars,
    refresh,
    replace_buffers,
    substitute,
    walk_stmts,
)
from strata.loop.simplify import simplify_func
from strata.loop.text import canonical_text, parse_func, print_func
from strata.schedule import apply_trace, finalize, parse_trace

TWICE = """
alloc t: f32[n]
call @test.scale(x, 0x1p+1, t)
for i in n:
  block "b" (v: spatial n = i):
    y[v] = t[v] + x[v]
"""


def calls(func: Func) -> list[Call]:
    return [s for s in walk_stmts(func) if isinstance(s, Call)]


# ----------------------------------------------------------------------------------------------- text


def test_text_round_trip():
    func = function(TWICE)
    text = print_func(func)
    assert "  call @test.scale(x, 0x1p+1, t)\n" in text
    assert print_func(parse_func(text)) == text
    assert "call @test.scale(b1, 0x1p+1, b" in canonical_text(func)


def test_arguments_are_buffers_or_expressions():
    func = function("for i in n:\n  call @test.scale(x, x[i] * 2.0, y)".replace("2.0", "0x1p+1"))
    (call,) = calls(func)
    assert call.args[0] is func.params[0]
    assert call.args[2] is func.params[1]
    assert list(free_vars(call)) == [next(s.var for s in walk_stmts(func) if hasattr(s, "var"))]


def test_a_name_that_is_a_word_of_the_language():
    func = Func("f", (Buffer("call", (4,), f32),), seq(), 1)
    assert "call_1: f32[4]" in print_func(func)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("call scale(x)", r"got 'scale'; expected @name of an extern"),
        ("call @test.scale x", r"got 'x'; expected '\('"),
        ("call @test.scale(x,, y)", r"got ','; expected an expression"),
        ("call @test.scale(q, 0x1p+1, y)", r"got the unknown name 'q'"),
        ("call @test.scale(x, 0x1p+1, y) 3", r"got '3'; expected the end of the line"),
    ],
)
def test_malformed_text(line, message):
    with pytest.raises(ParseError, match=message):
        function(line)


# -------------------------------------------------------------------------------------------- checker


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda s: s.name)
def test_calls_are_legal_at_every_stage(stage):
    check(function("alloc t: f32[n]\ncall @test.scale(x, 0x1p+1, t)\ncall @test.scale(t, 0x1p+1, y)"), stage)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("call @no.such(x)", r"call @no.such: got the extern 'no.such'; known: .*test.scale"),
        ("call @test.scale(x, y)", r"got 2 arguments; expected 3: \(x: read f32\[n\], factor: f32, y: write"),
        ("call @test.scale(x, x, y)", r"argument factor: got buffer x; expected a scalar of f32"),
        ("call @test.scale(x, 3, y)", r"argument factor: got i64; expected f32"),
        ("call @test.scale(0x1p+1, 0x1p+1, y)", r"argument x: got a scalar of f32; expected a buffer of f32"),
        ("call @test.scale(x, splat(0x1p+1, 4), y)", r"argument factor: got f32 x 4 lanes; expected f32"),
        ("alloc t: i32[n]\ncall @test.scale(t, 0x1p+1, y)", r"got i32 in buffer t; expected f32"),
        ("alloc t: f32[3] register\ncall @test.scale(t, 0x1p+1, y)", r"got register buffer t, which has no"),
        ("alloc t: f32[3]\ncall @test.scale(t, 0x1p+1, y)", r"argument y: got y\[n\]; expected \[n\]"),
        ("alloc t: f32[n,1]\ncall @test.scale(t, 0x1p+1, y)", r"argument x: got t\[n,1\]; expected \[n\]"),
        ("call @test.scale(y, 0x1p+1, y)", r"buffer y is written and passed twice; expected another buffer"),
        (
            "call @test.scale(y, 0x1p+1, x)",
            r"call @test.scale writes x; expected an output parameter or an al",
        ),
        (
            "parallel i in n:\n  call @test.scale(x, 0x1p+1, y)",
            r"call @test.scale inside the parallel loop i",
        ),
        (
            'for i in n:\n  block "b" (v: spatial n = i):\n    call @test.scale(x, 0x1p+1, y)',
            r'call @test.scale inside block "b"; expected it outside',
        ),
    ],
)
def test_rules(body, message):
    with pytest.raises(VerifyError, match=message):
        check(function(body))


def test_buffers_must_be_in_scope():
    x, y, t = (Buffer(name, (4,), f32) for name in "xyt")
    with pytest.raises(VerifyError, match=r"buffer t is not in scope"):
        check(Func("f", (x, y), b.call("test.scale", t, 2.0, y)))


# ------------------------------------------------------------------------------------ builder, queries


def test_builder_makes_constants_of_the_right_kind():
    x, y = Buffer("x", (4,), f32), Buffer("y", (4,), f32)
    call = b.call("test.mixed", 1, x, 2, 3, 4.0, y)
    assert [a.dtype.name for a in call.args if not isinstance(a, Buffer)] == ["i32", "i64", "f32", "f64"]
    with pytest.raises(ShapeError, match=r"call @test.mixed: got 1 arguments; expected 6"):
        b.call("test.mixed", 1)
    with pytest.raises(UserError, match=r"no extern 'test.skale'; did you mean 'test.scale'"):
        b.call("test.skale", x)


def test_what_a_call_reads_and_writes():
    x, y = Buffer("x", (4,), f32), Buffer("y", (4,), f32)
    scale, update = b.call("test.scale", x, 2.0, y), b.call("test.accumulate", x, y)
    assert (call_reads(scale), call_writes(scale)) == ((x,), (y,))
    assert (call_reads(update), call_writes(update), buffers_of(update)) == ((x, y), (y,), (x, y))
    assert list(buffers_read(seq(scale, update))) == [x, y]
    assert list(buffers_written(seq(scale, update))) == [y]
    assert call_problem(scale) is None


def test_rewriting():
    x, y, z, i = Buffer("x", (4,), f32), Buffer("y", (4,), f32), Buffer("z", (4,), f32), Var("i")
    call = b.call("test.scale", x, b.cast(f32, i), y)
    moved = replace_buffers(call, {x: z})
    assert isinstance(moved, Call)
    assert moved.args == (z, *call.args[1:])
    assert replace_buffers(call, {z: x}) is call
    three = b.const(3, i.dtype)
    assert substitute(call, {i: three}) == Call("test.scale", (x, Cast(f32, three), y))
    assert substitute(call, {Var("j"): i}) is call
    fresh = refresh(Alloc(z, b.call("test.scale", x, 2.0, z)))
    assert isinstance(fresh, Alloc)
    assert fresh.buffer is not z
    assert fresh.body == b.call("test.scale", x, 2.0, fresh.buffer)


def test_simplify_keeps_calls_and_what_they_use():
    func = simplify_func(function(TWICE.replace("0x1p+1", "select(n < 1, 0x1p+2, 0x1p+1)")))
    assert "alloc t: f32[n]\n  call @test.scale(x, 0x1p+1, t)" in print_func(func)


# ----------------------------------------------------------------------------------------- interpreter


def test_interpreter_runs_the_semantics():
    x, y = np.arange(5, dtype=np.float32), np.empty(5, np.float32)
    run(function(TWICE), [x, y])
    np.testing.assert_array_equal(y, 3 * x)
    run(function("call @test.mixed(i32(n), x, n, 0x1p-1, 0x1p+1_f64, y)"), [x, y])
    np.testing.assert_array_equal(y, 5 * x + 6)


def test_interpreter_errors():
    x, y = np.ones(3, np.float32), np.empty(3, np.float32)
    with pytest.raises(Refused, match=r"thirteen"):
        run(function("call @test.scale(x, 0x1.ap+3, y)"), [x, y])
    with pytest.raises(VerifyError, match=r"f: call @test.scale: got 1 arguments; expected 3"):
        run(function("call @test.scale(x)"), [x, y])


# ----------------------------------------------------------------------------------------------- steps


def test_finalize_keeps_calls():
    func = finalize(apply_trace(function(TWICE), parse_trace("split(loop=i, factor=8); vectorize(loop=ii)")))
    check(func, LOOP_LOWERED)
    assert len(calls(func)) == 1
    x, y = np.arange(21, dtype=np.float32), np.empty(21, np.float32)
    run(func, [x, y])
    np.testing.assert_array_equal(y, 3 * x)


LOOP = "for i in 4:\n  call @test.scale(x, f32(i), y)"
STAGE = """
alloc s: f32[n]
for j in n:
  block "s" (v: spatial n = j):
    s[v] = x[v] + 0x1p+0
alloc t: f32[n]
call @test.scale(s, 0x1p+1, t)
for i in n:
  block "b" (v: spatial n = i):
    y[v] = t[v] + s[v]
"""


@pytest.mark.parametrize(
    ("body", "trace", "message"),
    [
        (LOOP, "parallel(loop=i)", r"parallel: loop i calls @test.scale, which stays as it is"),
        (LOOP, "vectorize(loop=i)", r"vectorize: loop i calls @test.scale, which stays as it is"),
        (LOOP, "split(loop=i, factor=3)", r"loop i, which cannot be guarded: it calls @test.scale"),
        (STAGE, "compute_at(block=s, loop=i)", r"compute_at: s is passed as a whole to @test.scale"),
        (
            'alloc s: f32[n]\nfor j in n:\n  block "s" (v: spatial n = j):\n    s[v] = y[v]\n'
            'call @test.scale(x, 0x1p+1, y)\nfor i in n:\n  block "b" (v: spatial n = i):\n    y[v] = s[v]',
            "compute_at(block=s, loop=i)",
            r"compute_at: @test.scale writes what block s reads, after it",
        ),
    ],
)
def test_steps_leave_calls_alone(body, trace, message):
    with pytest.raises(LegalityError, match=message):
        apply_trace(function(body), parse_trace(trace))


def test_a_loop_with_a_call_can_be_split_where_nothing_needs_a_guard():
    func = apply_trace(function(LOOP), parse_trace("split(loop=i, factor=2)"))
    x, y = np.ones(3, np.float32), np.empty(3, np.float32)
    run(func, [x, y])
    np.testing.assert_array_equal(y, 3 * x)


def test_vectorizing_around_a_call_is_refused_when_finalised():
    func = function("vectorize i in 4:\n  call @test.scale(x, f32(i), y)")
    with pytest.raises(LegalityError, match=r"vectorize: loop i calls @test.scale"):
        finalize(func)


def test_the_table_knows_its_names():
    with pytest.raises(UserError, match=r"extern 'test.scale' is registered already"):
        EXTERNS.add("test.scale", Extern("test.scale", (), print, ""))
    assert str(EXTERNS["test.mixed"].params[0]) == "a: i32"
    assert EXTERNS["openblas.sgemv"].signature.endswith("y: write f32[...], incy: i32)")
    t = Buffer("t", (4,), i32, MemSpace.LOCAL)
    assert call_problem(Call("test.scale", (t, t, t))) == "argument x: got i32 in buffer t; expected f32"
