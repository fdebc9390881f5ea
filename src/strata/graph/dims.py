"""Other symbolic dims, or values, in the place of the symbolic dims of a function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from strata.core.dims import Dim, DimExpr, SymDim, substitute_dims

from .nodes import Function, Node, make_node
from .ops.formula import bind_dims
from .types import TensorType


def with_dims(function: Function, env: Mapping[str, Dim]) -> Function:
    """``function`` with the symbolic dims that ``env`` names replaced, in types, attributes and bodies.

    Args:
        function: Unchanged.
        env: By name: a number, or a dim with another range.

    Raises:
        ShapeError: the function does not hold for these dims.
    """
    new: dict[int, Node] = {}
    numbers = {name: dim for name, dim in env.items() if isinstance(dim, int)}
    for node in function.nodes:
        attrs = {key: _replaced(value, env) for key, value in node.attrs.items()}
        if node.op == "tensor_expr":
            attrs["formula"] = bind_dims(attrs["formula"], numbers)
        new[id(node)] = make_node(node.op, [new[id(i)] for i in node.inputs], **{"name": node.name, **attrs})
    return function.with_outputs(
        [new[id(n)] for n in function.outputs], [new[id(n)] for n in function.inputs]
    )


def _replaced(value: Any, env: Mapping[str, Dim]) -> Any:
    match value:
        case SymDim() | DimExpr():
            return substitute_dims(value, env)
        case tuple():
            return tuple(_replaced(v, env) for v in value)
        case TensorType():
            return replace(value, shape=_replaced(value.shape, env))
        case Function():
            return with_dims(value, env)
    return value
