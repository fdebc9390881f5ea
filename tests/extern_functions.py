"""Externs of the tests: Python functions that loop functions call, in the interpreter and natively."""

import numpy as np

from strata.core.dims import SymDim
from strata.core.dtypes import f32, f64, i32, i64
from strata.loop.externs import EXTERNS, Convention, Extern, ExternParam, Role
from strata.loop.nodes import Func
from strata.loop.text import parse_func
from strata.runtime.externs import bind, guarded

N = SymDim("n", 0)


class Refused(Exception):
    """What the failing functions raise."""


def scale(x, factor, y):
    """y = factor * x; refuses to multiply by 13."""
    if factor == 13:
        raise Refused("thirteen")
    np.multiply(x, np.float32(factor), out=y)


def accumulate(x, total):
    """total += x."""
    total += x


def mixed(a, x, b, c, d, y):
    """All kinds of scalars."""
    y[...] = x * np.float32(a) + np.float32(b + c * d)


def measure(x, out):
    """Shape of a matrix, and its last element."""
    out[:] = [*x.shape, x[-1, -1]]


X = ExternParam("x", Role.READ, f32, (N,))
Y = ExternParam("y", Role.WRITE, f32, (N,))


def value(name, dtype):
    return ExternParam(name, Role.VALUE, dtype)


def add(name, params, function, convention=Convention.TENSORS):
    extern = Extern(name, tuple(params), function, "test", convention)
    EXTERNS.add(name, extern)
    if convention is Convention.TENSORS:
        bind(name, guarded(function), "tensors ()")
    return extern


add("test.scale", (X, value("factor", f32), Y), scale)
add("test.accumulate", (X, ExternParam("total", Role.UPDATE, f32, (N,))), accumulate)
MIXED = (value("a", i32), X, value("b", i64), value("c", f32), value("d", f64), Y)
add("test.mixed", MIXED, mixed)
add("test.mixed_c", MIXED, mixed, Convention.C)
MATRIX = ExternParam("x", Role.READ, f32, (N, SymDim("m", 0)))
add("test.measure", (MATRIX, ExternParam("out", Role.WRITE, f32, (3,))), measure)


def function(body: str, params: str = "x: f32[n]", outputs: str = "y: f32[n]", name: str = "f") -> Func:
    """A loop function of one body."""
    lines = "\n".join("  " + line for line in body.strip("\n").split("\n"))
    return parse_func(f"dims n in 1..64\nfunc @{name}({params}) -> ({outputs})\n{lines}\n")
