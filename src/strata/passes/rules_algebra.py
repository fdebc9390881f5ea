"""Rules of ``canonicalize`` about values: casts, neutral elements, constants, cache views."""

from __future__ import annotations

from typing import Any

import numpy as np

from strata.core.dtypes import DType, Kind, bf16, bool_, f16, f32, f64
from strata.graph import builder as g
from strata.graph.nodes import Node, rebuild
from strata.graph.types import CacheType

from .base import root_cache
from .rules import Rule

COMMUTATIVE = ("add", "mul", "equal", "not_equal", "logical_and", "logical_or")
BROADCASTING = (
    *COMMUTATIVE,
    *("sub", "div", "maximum", "minimum", "power"),
    *("less", "less_equal", "greater", "greater_equal", "where"),
)
_WIDER = {f16: (f32, f64), bf16: (f32, f64), f32: (f64,)}


def is_lossless(source: DType, target: DType) -> bool:
    """Whether every value of ``source`` survives a cast to ``target``, both floats or both integers."""
    if source == target:
        return True
    if source.is_float or target.is_float:
        return target in _WIDER.get(source, ())
    if source is bool_ or target is bool_:
        return target.is_int
    if source.kind is target.kind:
        return source.bits < target.bits
    return source.kind is Kind.UINT and source.bits < target.bits


def scalar(node: Node) -> Any:
    """The value of a one-element ``const``, else ``None``."""
    if node.op == "const" and node.attrs["value"].size == 1:
        return node.attrs["value"].reshape(()).item()
    return None


def _no_cast(node: Node) -> Node | None:
    (x,) = node.inputs
    if x.tensor.dtype == node.tensor.dtype:
        return x
    if x.op == "cast" and is_lossless(x.inputs[0].tensor.dtype, x.tensor.dtype):
        return g.cast(x.inputs[0], node.tensor.dtype, name=node.name)
    return None


def _const_right(node: Node) -> Node | None:
    a, b = node.inputs
    return rebuild(node, (b, a)) if a.op == "const" and b.op != "const" else None


def _is_neutral(op: str, value: float, is_float: bool) -> bool:
    """Whether ``op(x, value)`` is ``x`` for every ``x``, -0.0 included."""
    match op:
        case "mul" | "div":
            return value == 1
        case "add":
            return value == 0 and (not is_float or bool(np.signbit(value)))
        case "sub":
            return value == 0 and not (is_float and bool(np.signbit(value)))
        case "logical_and":
            return bool(value)
        case "logical_or":
            return not value
    return False


def _no_neutral(node: Node) -> Node | None:
    x, constant = node.inputs
    value = scalar(constant)
    if value is None or x.type != node.type:
        return None
    return x if _is_neutral(node.op, value, node.tensor.dtype.is_float) else None


def _no_double(node: Node) -> Node | None:
    (x,) = node.inputs
    return x.inputs[0] if x.op == node.op else None


def _uniform(node: Node) -> Node | None:
    """A 0-d const for a const of more dims whose elements are all the same, bit by bit."""
    if node.op != "const" or not node.tensor.rank or not node.attrs["value"].size:
        return None
    flat = np.ascontiguousarray(node.attrs["value"]).reshape(-1)
    bits = flat.view(np.dtype(f"u{flat.dtype.itemsize}"))
    return g.const(flat[:1].reshape(()), name=node.name) if bool((bits == bits[0]).all()) else None


def _smaller_operands(node: Node) -> Node | None:
    """Constants to 0-d and broadcasts dropped, where the op's own broadcasting gives the same type."""
    for k, operand in enumerate(node.inputs):
        smaller = operand.inputs[0] if operand.op == "broadcast_to" else _uniform(operand)
        if smaller is None:
            continue
        candidate = rebuild(node, (*node.inputs[:k], smaller, *node.inputs[k + 1 :]))
        if candidate.type == node.type:
            return candidate
    return None


def _known_choice(node: Node) -> Node | None:
    cond, a, b = node.inputs
    value = scalar(cond)
    if value is None:
        return None
    chosen = a if value else b
    return chosen if chosen.type == node.type else None


def _view_of_root(node: Node) -> Node | None:
    operands = tuple(root_cache(i) if isinstance(i.type, CacheType) else i for i in node.inputs)
    return (
        rebuild(node, operands)
        if any(a is not b for a, b in zip(operands, node.inputs, strict=True))
        else None
    )


ALGEBRA_RULES: tuple[Rule, ...] = (
    Rule(
        "no-cast", ("cast",), _no_cast, "a cast to the same dtype, or back from a wider one, changes nothing"
    ),
    Rule("smaller-operands", BROADCASTING, _smaller_operands, "broadcasting is the op's own business"),
    Rule(
        "const-right", COMMUTATIVE, _const_right, "one order for commutative ops: later rules look right only"
    ),
    Rule(
        "no-neutral",
        ("mul", "div", "add", "sub", "logical_and", "logical_or"),
        _no_neutral,
        "exact in IEEE arithmetic: x * 1, x / 1, x - 0, x + -0",
    ),
    Rule("no-double", ("neg", "logical_not"), _no_double, "twice is nothing"),
    Rule("known-choice", ("where",), _known_choice, "the condition is constant"),
    Rule(
        "view-of-root",
        ("rope", "last_tokens", "cache_positions"),
        _view_of_root,
        "appends change pages only, and these ops read none",
    ),
)
