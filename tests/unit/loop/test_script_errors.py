"""Mistakes in kernels: each message, at the right line (marked ``#!``) and column (``at``)."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import pytest

from strata.core.errors import ParseError, ShapeError, UserError
from strata.loop.script import script
from strata.loop.text import print_func
from strata.script import (
    Out,
    alloc,
    bf16,
    block,
    call,
    dim,
    exp,
    f32,
    grid,
    i32,
    init,
    intrinsic,
    local,
    parallel,
    ramp,
    reduce,
    reduce_sum,
    register,
    spatial,
    splat,
    unroll,
    vectorize,
)

# ruff: noqa: B007, B018, E731, F821, F841, RUF059
n = dim("n", 1, 64)
other = dim("other", 1, 64)
big_n = dim("n", 1, 128)
CONSTANTS = {"a": (1, 2)}

BAD: list[tuple[Callable[..., Any], str, str]] = []


def bad(match: str, at: str) -> Callable[[Any], Any]:
    """A kernel that raises ``match`` with the caret at the text ``at`` of the marked line."""

    def add(function: Any) -> Any:
        BAD.append((function, match, at))
        return function

    return add


def helper(x):
    return x + missing  #!


def forever(x):
    return forever(x)  #!


def broken():
    raise OSError("no such luck")


# ------------------------------------------------------------------------------------------- signatures


@bad("got the parameter rest; expected plain parameters", "rest")
def star(*rest):  #!
    pass


@bad("got a default; a kernel takes buffers only", "None")
def default(a: f32[8] = None):  #!
    pass


@bad("a: got no annotation; expected a type like", "a")
def bare(a):  #!
    pass


@bad("a: got f32; expected a type with a shape", "f32")
def no_shape(a: f32):  #!
    pass


@bad("a: NameError: name 'f33' is not defined", "f33")
def unknown_type(a: f33[8]):  #!
    pass


@bad(r"f32\[...\]: got the dim 1.5; expected ints", "f32[1.5]")
def odd_dim(a: f32[1.5]):  #!
    pass


@bad(r"f32\[...\]: got the dim 0; expected at least 1", "f32[0]")
def no_elements(a: f32[0]):  #!
    pass


@bad(r"Out\[...\]: got 3; expected a type with a shape", "Out[3]")
def odd_output(a: Out[3]):  #!
    pass


@bad("no_output has no output; annotate what it writes as Out", "def")
def no_output(a: f32[8]):  #!
    pass


@bad("got the input b after an output; expected all outputs at the end", "b")
def order(a: Out[f32[8]], b: f32[8]):  #!
    pass


@bad("got two dims called n with different ranges", "b")
def ranges(a: f32[n], b: Out[f32[big_n]]):  #!
    pass


# ---------------------------------------------------------------------------------------- statements


@bad("got while: a kernel has for loops", "while")
def while_(a: Out[f32[8]]):
    while True:  #!
        pass


@bad("got return: a kernel returns nothing", "return")
def returns(a: Out[f32[8]]):
    return a  #!


@bad("got an annotation inside of the function", "t: ")
def annotated(a: Out[f32[8]]):
    t: float = 1.0  #!


@bad("got a function inside of a kernel", "def")
def inner_function(a: Out[f32[8]]):
    def inner():  #!
        pass


@bad("got break: all iterations", "break")
def breaks(a: Out[f32[8]]):
    for i in grid(8):
        break  #!


@bad("got continue: put the rest", "continue")
def continues(a: Out[f32[8]]):
    for i in grid(8):
        continue  #!


@bad("got delete, which kernels do not have", "del")
def deletes(a: Out[f32[8]]):
    del a  #!


@bad("got else of a loop", "a[0]")
def else_of_a_loop(a: Out[f32[8]]):
    for i in grid(8):
        a[i] = 0.0
    else:
        a[0] = 1.0  #!


@bad("grid: got the argument step; expected extents only", "grid")
def keyword_of_a_loop(a: Out[f32[8]]):
    for i in grid(8, step=2):  #!
        a[i] = 0.0


@bad("got 1 names for 2 loops", "i in")
def names_of_loops(a: Out[f32[8]]):
    for i in grid(8, 8):  #!
        a[i] = 0.0


@bad("got 0 names|got 1 names for 0 loops", "i in")
def no_extents(a: Out[f32[8]]):
    for i in grid():  #!
        a[i] = 0.0


@bad("the extent of a loop is f32; expected an integer", "a[0]")
def float_extent(a: Out[f32[8]]):
    for i in grid(a[0]):  #!
        a[i] = 0.0


@bad("unroll: got an extent that varies; expected a constant", "n)")
def unroll_varies(a: Out[f32[n]]):
    for i in unroll(n):  #!
        a[i] = 0.0


@bad("vectorize: got an extent that varies; expected a constant", "n)")
def vectorize_varies(a: Out[f32[n]]):
    for i in vectorize(n):  #!
        a[i] = 0.0


@bad("range: got 4 arguments; expected 1 to 3", "range")
def range_arguments(a: Out[f32[8]]):
    for i in range(1, 2, 3, 4):  #!
        a[i] = 0.0


@bad("range: got a step that is no positive constant", "range")
def range_step(a: Out[f32[8]]):
    for i in range(8, 0, -1):  #!
        a[i] = 0.0


@bad("got something without a constant length", "a:")
def loop_over_a_buffer(a: Out[f32[8]]):
    for x in a:  #!
        pass


@bad("got assert of something that is known at run time only", "assert")
def assert_at_run_time(a: Out[f32[8]]):
    assert a[0] > 0.0  #!


@bad("no taps", "assert")
def failed_assertion(a: Out[f32[8]]):
    assert len(CONSTANTS) > 1, "no taps"  #!


@bad("the assertion does not hold", "assert")
def plain_assertion(a: Out[f32[8]]):
    assert len(CONSTANTS) > 1  #!


# --------------------------------------------------------------------------------------- assignments


@bad("got a local buffer without a name of its own", "a[0] =")
def unnamed_buffer(a: Out[f32[8]]):
    a[0] = local(f32[8])  #!


@bad(r"local: a buffer needs a name of its own: t = local\(...\)", "local")
def buffer_in_an_expression(a: Out[f32[8]]):
    a[0] = 1.0 + local(f32[8])  #!


@bad("expected one type with a shape", "local")
def odd_buffer(a: Out[f32[8]]):
    t = local(8)  #!


@bad(r"got the shape of f32\[n\]; local memory has a constant one", "local")
def symbolic_local(a: Out[f32[n]]):
    t = local(f32[n])  #!


@bad("alloc: got a place inside of a loop", "alloc")
def alloc_in_a_loop(a: Out[f32[n]]):
    for i in grid(n):
        t = alloc(f32[n])  #!


@bad("dim other is of no parameter's shape; known: n", "alloc")
def dim_of_nothing(a: Out[f32[n]]):
    t = alloc(f32[other])  #!


@bad("the name t is taken; give the buffer another one", "t =")
def taken(a: Out[f32[n]]):
    t = 1.0
    t = local(f32[8])  #!


@bad("got 2 values for 3 names", "x, y, z")
def unpacking(a: Out[f32[n]]):
    x, y, z = CONSTANTS["a"]  #!


@bad(r"expected a name, buffer\[...\] or a tuple", "a.b")
def attribute_target(a: Out[f32[n]]):
    a.b = 1.0  #!


@bad(r"a is a buffer; assign to its elements: a\[...\] = ...", "a =")
def buffer_target(a: Out[f32[n]]):
    a = 1.0  #!


@bad("i is a loop variable or parameter; expected a name of its own", "i =")
def loop_variable(a: Out[f32[n]]):
    for i in grid(n):
        if a[i] > 0.0:
            i = i + 1  #!


@bad(r"expected a name or buffer\[...\] on the left", "a.b")
def augmented_attribute(a: Out[f32[n]]):
    a.b += 1.0  #!


@bad("expected a buffer on the left; tuples and lists are constants", "t[0]")
def tuple_target(a: Out[f32[n]]):
    t = (1, 2)
    t[0] = 3  #!


@bad(r"x is an input; annotate it as Out\[f32\[8\]\] to write it", "x[0]")
def input_target(x: f32[8], a: Out[f32[n]]):
    x[0] = 1.0  #!


@bad(r"a: got a value of i64; cast it: f32\(...\)", "a[i]")
def wrong_dtype(a: Out[f32[n]]):
    for i in grid(n):
        a[i] = i  #!


@bad("a: got a value of 4 lanes for 1 element", "a[0]")
def wrong_lanes(a: Out[f32[8]]):
    a[0] = a[0:4]  #!


@bad("got the float 1.5 where i32 is expected; cast explicitly", "a[0]")
def float_to_int(a: Out[i32[8]]):
    a[0] = 1.5  #!


@bad("const: got 3000000000; expected a value of i32", "a[0]")
def too_large(a: Out[i32[8]]):
    a[0] = 3000000000  #!


@bad("total is one value that all iterations of a parallel loop would change at once", "total")
def race(x: f32[n], a: Out[f32[1]]):
    total = 0.0
    for i in parallel(n):
        total += x[i]  #!
    a[0] = total


@bad("a: all iterations of the parallel loop over i write this element at once; index it with i", "a[0]")
def race_in_memory(x: f32[n], a: Out[f32[1]]):
    for i in parallel(n):
        a[0] += x[i]  #!


@bad("a: all iterations of the parallel loop over i write this element", "a[j]")
def race_of_rows(x: f32[n, 8], a: Out[f32[8]]):
    for i in parallel(n):
        for j, k in block("sum", 8, reduce(1)):
            a[j] += x[i, j]  #!


@bad("total gets a value of i64 x 1 lanes; its first value was f32 x 1", "total")
def other_dtype(x: f32[n], a: Out[f32[1]]):
    total = 0.0
    for i in grid(n):
        total = i  #!
    a[0] = total


@bad(r"t is assigned in an inner suite only \(line \d+\)", "t")
def ended(x: f32[n], a: Out[f32[1]]):
    if x[0] > 0.0:
        t = x[0]
    a[0] = t  #!


# ------------------------------------------------------------------------------------------- blocks


@bad("block: got no name", "block")
def unnamed_block(a: Out[f32[n]]):
    for i in block(n):  #!
        a[i] = 0.0


@bad("block: the name fill is taken", "block")
def block_twice(a: Out[f32[n]]):
    for i in block("fill", n):
        a[i] = 0.0
    for i in block("fill", n):  #!
        a[i] = 1.0


@bad("block: got the argument why; it has where", "block")
def block_argument(a: Out[f32[n]]):
    for i in block("fill", n, why=1):  #!
        a[i] = 0.0


@bad(r"block: where belongs to the form with block\(...\)", "n > 1")
def where_of_loops(a: Out[f32[n]]):
    for i in block("fill", n, where=n > 1):  #!
        a[i] = 0.0


@bad("got 1 names for 2 axes", "i in")
def names_of_axes(a: Out[f32[n]]):
    for i in block("fill", n, reduce(2)):  #!
        a[i] = 0.0


@bad("an axis of for ... in block(...) has an extent only".replace("(", r"\(").replace(")", r"\)"), "reduce")
def value_in_loops(a: Out[f32[n]]):
    for i in block("fill", reduce(n, 4)):  #!
        a[i] = 0.0


@bad("init: belongs directly into a block", "with")
def init_in_a_loop(a: Out[f32[n]]):
    for i in block("fill", n):
        for j in grid(2):
            with init():  #!
                a[i] = 0.0


@bad("init: got statements of the block before it; expected it first", "with")
def late_init(a: Out[f32[n]]):
    for i in block("fill", n):
        a[i] = 1.0
        with init():  #!
            a[i] = 0.0


@bad("got with of something else; expected with block", "with")
def other_with(a: Out[f32[n]]):
    with open("x"):  #!
        a[0] = 0.0


@bad("got 3 arguments; expected a value, and its extent", "spatial")
def axis_arguments(a: Out[f32[n]]):
    for i in grid(n):
        with block("fill", spatial(i, n, 1)) as vi:  #!
            a[vi] = 0.0


@bad(r"got an axis without its extent; only a loop variable has one: reduce\(value, extent\)", "reduce")
def axis_extent(a: Out[f32[n]]):
    for i in grid(n):
        with block("fill", reduce(i + 1)) as vi:  #!
            a[vi] = 0.0


@bad(r"got an axis without a name; expected with block\(...\) as", "spatial")
def axis_name(a: Out[f32[n]]):
    for i in grid(n):
        with block("fill", spatial(i + 0 * n, n)):  #!
            a[i] = 0.0


@bad("t is computed outside of the block, whose body sees loop variables only", "t")
def value_from_outside(x: f32[n], a: Out[f32[n]]):
    for i in grid(n):
        t = x[i]
        for j in block("fill", 1):
            a[i] = t  #!


# -------------------------------------------------------------------------------------- expressions


@bad("the name missing is not defined; known here: a", "missing")
def unknown_name(a: Out[f32[8]]):
    a[0] = missing  #!


@bad("the name missing is not defined; known here: x", "missing")
def in_a_helper(x: f32[8], a: Out[f32[8]]):
    a[0] = helper(x[0])


@bad("forever: calls are nested more than 32 deep; expected no recursion", "forever")
def recursion(x: f32[8], a: Out[f32[8]]):
    a[0] = forever(x[0])


@bad("Python raised OSError: no such luck", "broken")
def python_raises(a: Out[f32[8]]):
    a[0] = broken()  #!


@bad("Python raised ZeroDivisionError", "1 // 0")
def python_arithmetic(a: Out[f32[8]]):
    a[0] = 1 // 0  #!


@bad("got Lambda; kernels have arithmetic", "lambda")
def lambdas(a: Out[f32[8]]):
    a[0] = lambda: 0  #!


@bad("got 'text'; expected a number or an expression", "a[0]")
def text(a: Out[f32[8]]):
    a[0] = "text"  #!


@bad(r"got the buffer a; expected a value: index it, a\[...\]", "a + 1.0")
def whole_buffer(a: Out[f32[8]]):
    a[0] = a + 1.0  #!


@bad(r"got a.size; a buffer has .shape and .dtype", "a.size")
def buffer_attribute(a: Out[f32[8]]):
    a[0] = a.size  #!


@bad("got .real of a value of the kernel", "a[0].real")
def value_attribute(a: Out[f32[8]]):
    a[1] = a[0].real  #!


@bad("'dict' object has no attribute 'b'", "CONSTANTS")
def constant_attribute(a: Out[f32[8]]):
    a[1] = CONSTANTS.b  #!


@bad("got the operator MatMult; kernels have", "a[0] @")
def matmul(a: Out[f32[8]]):
    a[1] = a[0] @ a[1]  #!


@bad("got the operator Invert; kernels have - and not", "~")
def invert(a: Out[f32[8]]):
    a[1] = ~a[0]  #!


@bad("got the operator Is; kernels have <", "a[0] is")
def identity(a: Out[f32[8]]):
    a[1] = 1.0 if a[0] is a[1] else 0.0  #!


@bad(r"\*: got f32 and i64; cast one of them, e.g. f32\(...\)", "a[i]")
def mixed(a: Out[f32[n]]):
    for i in grid(n):
        a[i] = a[i] * i  #!


@bad(r"\+: got vectors of 4 and 2 lanes; expected as many", "a[0:4] +")
def mixed_lanes(a: Out[f32[8]]):
    a[0:4] = a[0:4] + a[0:2]  #!


@bad("arithmetic of bf16; expected f32, f64, i32 or i64; cast first", "x[i] *")
def narrow(x: bf16[n], a: Out[bf16[n]]):
    for i in grid(n):
        a[i] = x[i] * 2.0  #!


@bad("/: got operands of i64; expected floats; use floordiv", "i / 2")
def division(a: Out[f32[n]]):
    for i in grid(n):
        a[i] = f32(i / 2)  #!


@bad(r"\*\*: got the exponent 9; expected a constant int 1..8", "a[i] **")
def power(a: Out[f32[n]]):
    for i in grid(n):
        a[i] = a[i] ** 9  #!


@bad("got a condition of f32; expected bool: compare it", "a[i]:")
def condition(a: Out[f32[n]]):
    for i in grid(n):
        if a[i]:  #!
            a[i] = 0.0


@bad("got an index into a value of f32; expected a buffer", "a[i][0]")
def index_of_a_value(a: Out[f32[n]]):
    for i in grid(n):
        a[i] = a[i][0]  #!


@bad("got an index that is known at run time only, into a constant of Python", "CONSTANTS")
def index_of_a_constant(a: Out[f32[n]]):
    for i in grid(n):
        a[i] = CONSTANTS["a"][i]  #!


@bad("Python raised KeyError: 'b'", "CONSTANTS")
def missing_key(a: Out[f32[n]]):
    a[0] = CONSTANTS["b"]  #!


@bad(r"a: got 2 indices; expected 1: its shape is \[n\]", "a[0, 0]")
def rank(a: Out[f32[n]]):
    a[0, 0] = 1.0  #!


@bad("const: got 1180591620717411303424; expected a value of i64", "2**70")
def huge_index(a: Out[f32[n]]):
    a[2**70] = 1.0  #!


@bad("index 0 of a is f32; expected an integer", "0.5")
def float_index(a: Out[f32[n]]):
    a[0.5] = 1.0  #!


@bad("got a slice with a step", "::2")
def step(a: Out[f32[8]]):
    a[::2] = 1.0  #!


@bad("got a slice of a varying length; expected a constant length", "0:n")
def varying_slice(a: Out[f32[n]]):
    a[0:n] = 1.0  #!


@bad("got a slice of the length -1; expected a constant length", "3:2")
def empty_slice(a: Out[f32[8]]):
    a[3:2] = 1.0  #!


@bad("index 0 is a vector; only the last one may be", "x[0:4, 1]")
def vector_index(x: f32[8, 8], a: Out[f32[8]]):
    a[0:4] = x[0:4, 1]  #!


@bad(r"got 1 lane\(s\) under a condition of 8 lanes; expected as many", "a[0]")
def mask_lanes(a: Out[f32[8]]):
    if ramp(0, 8) < 3:
        a[0] = 1.0  #!


@bad("got a condition that is known at run time only; use a conditional", "a[0]")
def comprehension(a: Out[f32[8]]):
    a[0] = sum(k for k in (1, 2) if a[0] > 0.0)  #!


@bad("got Subscript; expected a name or a tuple", "a[0]")
def comprehension_target(a: Out[f32[8]]):
    a[0] = sum(1 for a[0] in (1, 2))  #!


@bad("got 2 values for 1 names", "(x,)")
def comprehension_names(a: Out[f32[8]]):
    a[0] = sum(x for (x,) in ((1, 2),))  #!


# -------------------------------------------------------------------------------------------- calls


@bad("grid: is no value; it is written as: for i in grid", "grid")
def loop_as_value(a: Out[f32[8]]):
    a[0] = grid(8)  #!


@bad(r"got \*\* in a call; name the arguments", "helper")
def star_star(a: Out[f32[8]]):
    a[0] = helper(**CONSTANTS)  #!


@bad(r"float: got a value of the kernel; use f32", "float")
def python_cast(a: Out[f32[8]]):
    a[0] = float(a[0])  #!


@bad("got 2 arguments; expected 1", "exp")
def exp_of_two(a: Out[f32[8]]):
    a[0] = exp(a[0], a[1])  #!


@bad("got an operand of i64; expected a float", "exp")
def exp_of_int(a: Out[f32[n]]):
    for i in grid(n):
        a[i] = exp(i)  #!


@bad("got something without a constant length", "max")
def largest_of_one(x: f32[8], a: Out[f32[8]]):
    a[0] = max(x[0])  #!


@bad("the number of lanes is 1; expected at least 2", "ramp")
def one_lane(a: Out[f32[8]]):
    a[ramp(0, 1)] = 1.0  #!


@bad("the number of lanes is n; expected a constant int", "ramp")
def varying_lanes(a: Out[f32[n]]):
    a[ramp(0, n)] = 1.0  #!


@bad("the base of a ramp is f32; expected an integer", "ramp")
def float_ramp(a: Out[f32[8]]):
    a[ramp(a[0], 4)] = 1.0  #!


@bad("splat: got a vector of 4 lanes", "splat")
def splat_vector(a: Out[f32[8]]):
    a[0:8] = splat(a[0:4], 8)  #!


@bad("reduce_sum: got a scalar; expected a vector", "reduce_sum")
def sum_of_a_scalar(a: Out[f32[8]]):
    a[0] = reduce_sum(a[0])  #!


@bad("intrinsic.fmma: no intrinsic 'fmma'; did you mean 'fma'", "intrinsic")
def unknown_intrinsic(a: Out[f32[8]]):
    a[0] = intrinsic.fmma(a[0], a[0], a[0])  #!


@bad(r"intrinsic.fma: got \(f32\[1\], f32\[1\]\); expected", "intrinsic")
def intrinsic_arguments(a: Out[f32[8]]):
    a[0] = intrinsic.fma(a[0], a[0])  #!


@bad("got a call of 3; expected a function", "CONSTANT")
def call_of_a_number(a: Out[f32[8]]):
    CONSTANT = 3
    a[0] = CONSTANT(a[0])  #!


@bad("call: got no name; expected that of an extern first", "call")
def unnamed_call(a: Out[f32[8]]):
    call(a)  #!


@bad("no extern 'nobody.home'", "call")
def unknown_extern(a: Out[f32[8]]):
    call("nobody.home", a)  #!


@bad(r"call @openblas.sgemm: got 1 arguments; expected 14", "call")
def extern_arguments(a: Out[f32[8]]):
    call("openblas.sgemm", a)  #!


@bad("round: cannot take a value of the kernel", "round")
def builtin(a: Out[f32[8]]):
    a[0] = round(a[0])  #!


@bad("Python raised TypeError: too many positional arguments", "helper")
def helper_arguments(a: Out[f32[8]]):
    a[0] = helper(a[0], a[1])  #!


# -------------------------------------------------------------------------------------------- bounds


@bad(r"a\[i \+ 1\]: index 0 is 1..8, outside of 0..7; a is f32\[8\]", "a[i + 1]")
def load_outside(a: f32[8], b: Out[f32[8]]):
    for i in grid(8):
        b[i] = a[i + 1]  #!


@bad(r"b\[i, j - 1\]: index 1 is -1..2, outside of 0..3; b is f32\[8, 4\]", "b[i, j - 1]")
def store_outside(b: Out[f32[8, 4]]):
    for i, j in grid(8, 4):
        b[i, j - 1] = 0.0  #!


@bad(r"a\[n\]: index 0 is 1..64, outside of 0..n - 1; a is f32\[n\]", "a[n]")
def symbolic_outside(a: Out[f32[n]]):
    a[n] = 0.0  #!


@bad("index 0 is 8, outside of 0..7", "row[8]")
def local_outside(a: Out[f32[n]]):
    row = register(f32[8])
    row[8] = 0.0  #!


def marked_line(function: Callable[..., Any]) -> str:
    import inspect

    return next((line for line in inspect.getsource(function).splitlines() if "#!" in line), "")


@pytest.mark.parametrize(("function", "match", "at"), BAD, ids=[f.__name__ for f, _, _ in BAD])
def test_mistakes_are_shown_where_they_are(function, match, at):
    with pytest.raises(ParseError, match=match) as info:
        script(function)
    span = info.value.span
    assert span is not None
    assert span.source == __file__
    first, shown, caret = str(info.value).split("\n")[-3:]
    assert first.startswith(f"{__file__}:{span.line}:{span.column}: ")
    line = (
        marked_line(function)
        or {"in_a_helper": marked_line(helper), "recursion": marked_line(forever)}[function.__name__]
    )
    assert shown == "  " + line
    assert line[span.column - 1 :].startswith(at)
    assert caret == " " * (span.column + 1) + "^"


def test_words_say_that_they_belong_into_kernels():
    words = [grid, parallel, unroll, vectorize, block, reduce, spatial, alloc, local, register, reduce_sum]
    for word in words:
        with pytest.raises(UserError, match=f"{word.__name__}: means something inside of a kernel only"):
            word("x")
    for word in (ramp, splat):
        with pytest.raises(UserError, match="means something inside of a kernel only"):
            word(0, 4)
    with pytest.raises(UserError, match="init: means something inside of a kernel only"):
        init()
    with pytest.raises(UserError, match=r"intrinsic.fma: means something inside of a kernel only"):
        intrinsic.fma(1.0, 2.0, 3.0)
    with pytest.raises(AttributeError):
        intrinsic.__wrapped__


def test_words_of_numbers_are_functions():
    assert exp(0.0) == 1.0
    assert f32(1 / 3) != 1 / 3
    with pytest.raises(UserError, match=r"f32\(...\): got 'x'; expected a number"):
        f32("x")
    with pytest.raises(UserError, match="exp: got 'x'; expected a number"):
        exp("x")
    with pytest.raises(ShapeError, match=r"symbolic dim n: got range 4\.\.2"):
        dim("n", 4, 2)


def test_sources_that_cannot_be_read():
    with pytest.raises(UserError, match="expected a Python function defined with def"):
        script(len)
    anonymous = lambda a: a
    with pytest.raises(UserError, match="kernel <lambda>: got Assign; expected a function"):
        script(anonymous)
    space: dict[str, Any] = {}
    exec("def made(a):\n    pass\n", space)
    with pytest.raises(UserError, match="kernel made: its source text cannot be read"):
        script(space["made"])


def test_closures_are_names_of_the_kernel():
    late: float

    def kernel(a: Out[f32[8]]):
        a[0] = late

    with pytest.raises(ParseError, match="the name late is not defined"):
        script(kernel)
    late = 2.0
    assert "a[0] = 0x1p+1" in print_func(script(kernel))


def test_annotations_of_an_inner_kernel_use_the_names_given():
    size = 8

    def kernel(a: Out[f32[size]]):
        a[0] = 1.0

    assert script(kernel, {"size": size}).params[0].shape == (8,)
    with pytest.raises(ParseError, match="a: NameError: name 'size' is not defined"):
        script(kernel)


def test_a_wrapped_function_is_none():
    with pytest.raises(UserError, match=re.escape("functools.partial")):
        script(functools.partial(helper))
