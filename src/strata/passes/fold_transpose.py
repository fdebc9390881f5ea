"""``fold_transpose``: ``matmul(x, permute_dims(w))`` reads ``w`` as it is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.graph.nodes import Function, Node, rebuild
from strata.ir.passes import register_pass

from .base import FunctionPass
from .rules import Rule, simplify


def _fold(node: Node) -> Node | None:
    a, b = node.inputs
    if b.op != "permute_dims":
        return None
    rank = b.tensor.rank
    axes = tuple(x % rank for x in b.attrs["axes"])
    if axes != (*range(rank - 2), rank - 1, rank - 2):
        return None
    return rebuild(node, (a, b.inputs[0]), transpose_b=not node.attrs["transpose_b"])


FOLD = Rule("fold-transpose", ("matmul",), _fold, "transpose_b reads the stored matrix, row by row")


@register_pass
@dataclass(frozen=True)
class FoldTranspose(FunctionPass):
    """``matmul(a, permute_dims(b, (.., last, last - 1)))`` -> ``matmul(a, b) {transpose_b=true}`` and back.

    Stage: any graph -> the same.
    Preserves: values bit by bit; a weight used as it is stays untouched.
    """

    name: ClassVar[str] = "fold_transpose"

    def run_function(self, function: Function) -> Function:
        """Apply the rule wherever it fits."""
        return simplify(function, (FOLD,))
