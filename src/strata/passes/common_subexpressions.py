"""``common_subexpressions``: the same op on the same operands is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from strata.graph.nodes import Function, Node, rebuild
from strata.ir.passes import register_pass

from .base import FunctionPass, Key, attributes_key
from .rules_algebra import COMMUTATIVE

EFFECTS = frozenset({"kv_append", "create_kv_cache", "fused"})  # fused: may hold an append
_UNIQUE = EFFECTS | {"input"}


@register_pass
@dataclass(frozen=True)
class CommonSubexpressions(FunctionPass):
    """Merges nodes of equal op, attributes, notes and operands; params by name, constants by bits.

    Stage: any graph -> the same.
    Preserves: values bit by bit; never merges two cache updates or inputs.
    """

    name: ClassVar[str] = "common_subexpressions"

    def run_function(self, function: Function) -> Function:
        """Keep the first of each set of equal nodes."""
        first: dict[Key, Node] = {}
        new: dict[int, Node] = {}
        for node in function.nodes:
            candidate = rebuild(node, [new[id(i)] for i in node.inputs])
            if node.op not in _UNIQUE:
                candidate = first.setdefault(_key(candidate), candidate)
            new[id(node)] = candidate
        return function.with_outputs([new[id(n)] for n in function.outputs])


def _key(node: Node) -> Key:
    operands = [id(i) for i in node.inputs]
    if node.op in COMMUTATIVE:
        operands.sort()
    return (node.op, attributes_key(node.attrs), attributes_key(node.notes), *operands)
