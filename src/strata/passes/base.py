"""What graph passes share: the base class, structural keys, use counts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from strata.graph.nodes import Function, Module, Node
from strata.graph.types import CacheType
from strata.ir.passes import Pass

Key = tuple[Any, ...]
VIEWS = frozenset({"reshape", "view"})  # outside of groups they show the memory of their operand


@dataclass(frozen=True)
class FunctionPass(Pass[Module]):
    """A graph pass that treats each function on its own."""

    def run(self, module: Module) -> Module:
        """Apply :meth:`run_function` to every function."""
        return module.map(self.run_function)

    @abstractmethod
    def run_function(self, function: Function) -> Function:
        """The transformed function; the argument is not changed."""


def attribute_key(value: Any) -> Any:
    """A hashable key of an attribute value: equal iff the values are the same in type and bits.

    ``1``, ``1.0`` and ``True`` differ, so do ``0.0`` and ``-0.0``; ``nan`` is the same as itself.
    """
    match value:
        case np.ndarray():
            return ("array", value.dtype.name, value.shape, value.tobytes())
        case Function():
            return function_key(value)
        case tuple():
            return ("tuple", *(attribute_key(v) for v in value))
        case _:
            return (type(value).__name__, repr(value))


def attributes_key(attrs: Mapping[str, Any]) -> Key:
    """:func:`attribute_key` of all attributes; attributes are in the order of the op's schema."""
    return tuple((name, attribute_key(value)) for name, value in attrs.items())


def function_key(function: Function) -> Key:
    """A structural key: equal iff two functions compute the same by the same nodes.

    Names of the function and of nodes do not count; names of inputs and params do.
    """
    number = {id(n): k for k, n in enumerate(function.nodes)}
    nodes = tuple(
        (n.op, attributes_key(n.attrs), tuple(number[id(i)] for i in n.inputs), str(n.type))
        for n in function.nodes
    )
    ends = tuple(number[id(n)] for n in function.inputs), tuple(number[id(n)] for n in function.outputs)
    return (nodes, *ends)


def uses(function: Function) -> dict[int, list[Node]]:
    """Consumers of every node, by id, in execution order; a consumer is listed once per operand."""
    found: dict[int, list[Node]] = {id(n): [] for n in function.nodes}
    for node in function.nodes:
        for operand in node.inputs:
            found[id(operand)].append(node)
    return found


def root_cache(node: Node) -> Node:
    """The cache value that ``node`` was made from by appends: the one that came into the function.

    All values between share the batch view (positions, slots, page table); only pages differ.
    """
    while node.op in ("kv_append", "fused") and isinstance(node.type, CacheType):
        node = next(i for i in node.inputs if isinstance(i.type, CacheType))
    return node
