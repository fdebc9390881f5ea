"""``fold_constants``: what depends on constants only is computed once, at compile time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.core.dims import product, shape_symbols
from strata.graph.interp import evaluate_node
from strata.graph.nodes import Function, Node, make_node, rewrite
from strata.graph.types import TensorType
from strata.ir.passes import register_pass

from .base import FunctionPass


@register_pass
@dataclass(frozen=True)
class FoldConstants(FunctionPass):
    """Replaces nodes whose operands are all constants by the constant that the op's reference gives.

    Stage: any graph -> the same.
    Preserves: values bit by bit (the reference defines them).

    Attributes:
        max_bytes: Larger results stay computed: they would only make the artifact bigger.
    """

    name: ClassVar[str] = "fold_constants"
    max_bytes: int = 1 << 16

    def run_function(self, function: Function) -> Function:
        """Fold bottom-up."""
        return rewrite(function, self._fold)

    def _fold(self, node: Node) -> Node:
        if not node.inputs or any(i.op != "const" for i in node.inputs):
            return node
        if not isinstance(node.type, TensorType) or shape_symbols(node.type.shape):
            return node
        size = product(node.type.shape)
        assert isinstance(size, int)
        if size * node.type.dtype.itemsize_bytes > self.max_bytes:
            return node
        value = evaluate_node(node, [i.attrs["value"] for i in node.inputs], {})
        return make_node("const", name=node.name, value=value)
