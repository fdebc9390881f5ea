"""``fused``: a group of nodes that becomes one launch. Made by the fuse pass, never by front ends.

The attention layers of a model have the same body: ``layer`` of the fused node is added to the ``layer`` of
the cache ops in it (:func:`bind_layer`), so that one kernel serves all layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from strata.core.dims import Dim
from strata.core.dtypes import bf16, f32
from strata.core.errors import ShapeError
from strata.graph.nodes import Function, Node, make_node, rebuild, rewrite
from strata.graph.types import Type

from .common import Attr, Attrs, OpDef, Pattern, Sample, Types, as_tensor, define_op, elements, t


def bind_layer(body: Function, layer: int) -> Function:
    """``body`` with ``layer`` added to the ``layer`` attribute of every node that has one."""

    def shift(node: Node) -> Node:
        return (
            rebuild(node, node.inputs, layer=node.attrs["layer"] + layer) if "layer" in node.attrs else node
        )

    return rewrite(body, shift) if layer else body


def _infer(types: Types, attrs: Attrs) -> Type:
    body: Function = attrs["body"]
    wanted = tuple(n.type for n in body.inputs)
    if types != wanted:
        got, want = (", ".join(map(str, ts)) for ts in (types, wanted))
        raise ShapeError(f"fused @{body.name}: got operands ({got}); the body takes ({want})")
    if len(body.outputs) != 1:
        raise ShapeError(f"fused @{body.name}: the body has {len(body.outputs)} outputs; expected 1")
    bind_layer(body, attrs["layer"])  # raises where a layer is out of range
    return body.outputs[0].type


def _reference(operands: Sequence[Any], attrs: Attrs) -> Any:
    from strata.graph.interp import run  # the interpreter needs the op table

    return run(bind_layer(attrs["body"], attrs["layer"]), list(operands), {})[0]


def _flop(types: Types, attrs: Attrs) -> Dim:
    total: Dim = 0
    for node in attrs["body"].nodes:
        definition = node.opdef
        operand_types = tuple(x.type for x in node.inputs)
        if definition.flop is not None:
            total = total + definition.flop(operand_types, node.attrs)
        else:
            total = total + elements(as_tensor(node.op, node.type, "result"))
    return total


def _samples() -> Iterator[Sample]:
    for dtype in (f32, bf16):
        x = make_node("input", name="x", type=t(dtype, 3, 17))
        bias = make_node("input", name="bias", type=t(dtype, 17))
        out = make_node("silu", [make_node("add", [x, bias])])
        yield Sample((x.type, bias.type), {"body": Function("add_silu", (x, bias), (out,))})
    a, b = (make_node("input", name=n, type=s) for n, s in (("a", t(f32, 2, 5)), ("b", t(f32, 7, 5))))
    product = make_node("matmul", [a, b], transpose_b=True)
    out = make_node("mul", [product, product])
    yield Sample((a.type, b.type), {"body": Function("matmul_square", (a, b), (out,))})


define_op(
    OpDef(
        "fused",
        _infer,
        _reference,
        Pattern.OPAQUE,
        {
            "body": Attr((Function,), doc="what the group computes; inputs in operand order, one output"),
            "layer": Attr((int,), 0, "added to the layer of the cache ops in body"),
        },
        _samples,
        _flop,
        "The result of calling body: a group of nodes that becomes one launch.",
    )
)
