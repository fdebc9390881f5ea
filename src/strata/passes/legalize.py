"""``legalize``: ops in terms of simpler ops.

A *legalization* says how a node is written with other ops::

    @legalization("silu")
    def _silu(node):
        (x,) = node.inputs
        return g.mul(x, g.sigmoid(x))

``legalize`` applies those of the ops that have no lowering to loops (``required=True``: every op of Strata
has one, but an op of your own may not), and those of the ops that it is given: with
``legalize{ops=[silu,rms_norm]}`` one sees what an op costs in parts, ``fuse`` may group the parts otherwise,
and patterns can match them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from strata.core.dtypes import f32, f64
from strata.core.errors import VerifyError
from strata.core.registry import Registry
from strata.graph import builder as g
from strata.graph.nodes import Function, Node, rebuild, rewrite
from strata.graph.opdef import OPS
from strata.ir.passes import OptionError, register_pass

from .base import FunctionPass

MAX_DEPTH = 50
Build = Callable[[Node], Node | None]


@dataclass(frozen=True, slots=True)
class Legalization:
    """How one op is written with others.

    Attributes:
        build: Node to node of the same type, or ``None`` where it does not apply.
        required: Whether the op has no lowering, so that ``legalize`` always rewrites it.
    """

    build: Build
    required: bool = False


LEGALIZATIONS: Registry[Legalization] = Registry("legalization")


def legalization(op: str, *, required: bool = False) -> Callable[[Build], Build]:
    """Decorator: registers how ``op`` is written with other ops.

    Args:
        op: Name of the op.
        required: The op has no lowering: ``legalize`` rewrites it without being asked to.

    Raises:
        UserError: no such op, or it has a legalization already.
    """
    OPS[op]

    def add(build: Build) -> Build:
        LEGALIZATIONS.add(op, Legalization(build, required))
        return build

    return add


@register_pass
@dataclass(frozen=True)
class Legalize(FunctionPass):
    """Writes ops with simpler ops: those without a lowering, and those asked for.

    Stage: any graph that is not fused -> the same.
    Preserves: types; values up to rounding (sums may be taken in another order, 16-bit floats are computed
    in f32 and rounded once, as the ops do).

    Attributes:
        ops: Ops to rewrite beside those that need it.
    """

    name: ClassVar[str] = "legalize"
    ops: tuple[str, ...] = ()

    def run_function(self, function: Function) -> Function:
        """Rewrite until none of the ops is left.

        Raises:
            OptionError: an op of the option has no legalization.
        """
        for op in self.ops:
            if op not in LEGALIZATIONS:
                raise OptionError(
                    f"legalize: no legalization for {op!r}; there are: {', '.join(LEGALIZATIONS)}"
                )
        chosen = {op: rule.build for op, rule in LEGALIZATIONS.items() if rule.required or op in self.ops}
        return rewrite(function, lambda node: _legal(node, chosen, 0)) if chosen else function


def _legal(node: Node, chosen: Mapping[str, Build], depth: int) -> Node:
    """``node``, whose operands are legal, in legal ops."""
    build = chosen.get(node.op)
    made = build(node) if build is not None else None
    if made is None:
        return node
    if made.type != node.type:
        raise VerifyError(f"legalization of {node.op} {node.name}: got {made.type}; expected {node.type}")
    if depth == MAX_DEPTH:
        raise VerifyError(
            f"legalization of {node.op} {node.name}: it leads back to {node.op} again and again"
        )
    legal = {id(n): n for n in node.inputs}

    def parts(part: Node) -> Node:
        if id(part) not in legal:
            named = part if part.name else replace(part, name=node.name)
            legal[id(part)] = _legal(rebuild(named, [parts(i) for i in part.inputs]), chosen, depth + 1)
        return legal[id(part)]

    return parts(made)


# ---- Strata's own ----


def _in_f32(node: Node, build: Callable[..., Node]) -> Node:
    """``build`` on the operands in f32 (f64 if one is), rounded to the node's dtype: ops compute so."""
    wide = f64 if any(x.tensor.dtype is f64 for x in node.inputs) else f32
    made = build(*(x if x.tensor.dtype is wide else g.cast(x, wide) for x in node.inputs))
    return made if made.tensor.dtype is node.tensor.dtype else g.cast(made, node.tensor.dtype)


@legalization("silu")
def _silu(node: Node) -> Node:
    return _in_f32(node, lambda x: g.mul(x, g.sigmoid(x)))


@legalization("sigmoid")
def _sigmoid(node: Node) -> Node:
    return _in_f32(node, lambda x: g.div(g.const(1.0, x.tensor.dtype), g.add(g.exp(g.neg(x)), 1.0)))


@legalization("gelu")
def _gelu(node: Node) -> Node:
    def exact(x: Node) -> Node:
        return g.mul(g.mul(x, 0.5), g.add(g.erf(g.mul(x, 1 / math.sqrt(2))), 1.0))

    def by_tanh(x: Node) -> Node:
        cubic = g.add(x, g.mul(g.mul(g.mul(x, x), x), 0.044715))
        return g.mul(g.mul(x, 0.5), g.add(g.tanh(g.mul(cubic, math.sqrt(2 / math.pi))), 1.0))

    return _in_f32(node, by_tanh if node.attrs["approximate"] == "tanh" else exact)


@legalization("relu")
def _relu(node: Node) -> Node:
    (x,) = node.inputs
    return g.maximum(x, g.const(0, x.tensor.dtype))


@legalization("rsqrt")
def _rsqrt(node: Node) -> Node:
    return _in_f32(node, lambda x: g.div(g.const(1.0, x.tensor.dtype), g.sqrt(x)))


@legalization("softmax")
def _softmax(node: Node) -> Node:
    axis = node.attrs["axis"]

    def build(x: Node) -> Node:
        e = g.exp(g.sub(x, g.max(x, axis, keepdims=True)))
        return g.div(e, g.sum(e, axis, keepdims=True))

    return _in_f32(node, build)


@legalization("mean")
def _mean(node: Node) -> Node | None:
    (x,) = node.inputs
    axes = node.attrs["axes"]
    count = 1
    for a in axes:
        extent = x.tensor.shape[a]
        if not isinstance(extent, int):
            return None  # the number is known at run time only
        count *= extent
    return _in_f32(node, lambda x: g.div(g.sum(x, axes, keepdims=node.attrs["keepdims"]), float(count)))


@legalization("rms_norm")
def _rms_norm(node: Node) -> Node:
    def build(x: Node, weight: Node) -> Node:
        square = g.mean(g.mul(x, x), -1, keepdims=True)
        return g.mul(g.mul(x, g.rsqrt(g.add(square, node.attrs["eps"]))), weight)

    return _in_f32(node, build)


@legalization("layer_norm")
def _layer_norm(node: Node) -> Node:
    def build(x: Node, weight: Node, bias: Node) -> Node:
        centred = g.sub(x, g.mean(x, -1, keepdims=True))
        variance = g.mean(g.mul(centred, centred), -1, keepdims=True)
        scaled = g.mul(centred, g.rsqrt(g.add(variance, node.attrs["eps"])))
        return g.add(g.mul(scaled, weight), bias)

    return _in_f32(node, build)
