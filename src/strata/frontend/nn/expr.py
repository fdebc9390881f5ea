"""Functions for formulas written in Python: ``op.tensor_expr(lambda x, i: expr.exp(x[i]), [x], x.shape)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from strata.core.dims import Dim

from .formula import Element, Value, call
from .formula import reduce as _reduce


def exp(x: Value) -> Element:
    """The exponential."""
    return call("exp", x)


def log(x: Value) -> Element:
    """The natural logarithm."""
    return call("log", x)


def sqrt(x: Value) -> Element:
    """The square root."""
    return call("sqrt", x)


def rsqrt(x: Value) -> Element:
    """One over the square root."""
    return call("rsqrt", x)


def tanh(x: Value) -> Element:
    """The hyperbolic tangent."""
    return call("tanh", x)


def erf(x: Value) -> Element:
    """The error function."""
    return call("erf", x)


def sigmoid(x: Value) -> Element:
    """``1 / (1 + exp(-x))``."""
    return call("sigmoid", x)


def silu(x: Value) -> Element:
    """``x * sigmoid(x)``."""
    return call("silu", x)


def gelu(x: Value) -> Element:
    """``x`` times the normal distribution function."""
    return call("gelu", x)


def relu(x: Value) -> Element:
    """``max(x, 0)``."""
    return call("relu", x)


def absolute(x: Value) -> Element:
    """``|x|``."""
    return call("abs", x)


def sin(x: Value) -> Element:
    """The sine of radians."""
    return call("sin", x)


def cos(x: Value) -> Element:
    """The cosine of radians."""
    return call("cos", x)


def floor(x: Value) -> Element:
    """The largest integer not above ``x``."""
    return call("floor", x)


def minimum(a: Value, b: Value) -> Element:
    """The smaller of ``a`` and ``b``."""
    return call("min", a, b)


def maximum(a: Value, b: Value) -> Element:
    """The larger of ``a`` and ``b``."""
    return call("max", a, b)


def select(condition: Value, a: Value, b: Value) -> Element:
    """``a`` where the condition holds, else ``b``."""
    return call("select", condition, a, b)


def sum(extent: Dim, body: Callable[[Any], Value]) -> Element:
    """Sum of ``body(k)`` for ``k`` in ``0 .. extent-1``."""
    return _reduce("sum", extent, body)


def largest(extent: Dim, body: Callable[[Any], Value]) -> Element:
    """Largest ``body(k)`` for ``k`` in ``0 .. extent-1``."""
    return _reduce("reduce_max", extent, body)


def smallest(extent: Dim, body: Callable[[Any], Value]) -> Element:
    """Smallest ``body(k)`` for ``k`` in ``0 .. extent-1``."""
    return _reduce("reduce_min", extent, body)
