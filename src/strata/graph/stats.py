"""Arithmetic and memory traffic of graph nodes, for planners and reports.

Figures are lower bounds at the level of one node: every operand is read once, the result is written once,
nothing stays in a cache of the machine between nodes. They are exact polynomials of the symbolic dims;
``core.dims.evaluate`` gives numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from strata.core.dims import Dim, evaluate, product
from strata.core.kv_layout import page_bytes

from .nodes import Function, Node
from .types import MAX_CONTEXT, NUM_SEQUENCES, CacheType, TensorType

_MOVES_NOTHING = ("input", "param", "const", "reshape", "view")
_READS_ROWS = ("take", "slice", "last_tokens")


@dataclass(frozen=True, slots=True)
class NodeStats:
    """Work of one node.

    Attributes:
        flop: Arithmetic operations.
        read_bytes: Bytes of operands that are read.
        write_bytes: Bytes of the result.
    """

    flop: Dim
    read_bytes: Dim
    write_bytes: Dim

    def at(self, env: Mapping[str, int]) -> NodeStats:
        """The figures as integers, with dims as in ``env``.

        Raises:
            ShapeError: a dim has no value in ``env``.
        """
        return NodeStats(*(evaluate(d, env) for d in (self.flop, self.read_bytes, self.write_bytes)))


def size_bytes(type_: TensorType) -> Dim:
    """Bytes of a tensor."""
    elements = product(type_.shape)
    if type_.dtype.bits < 8 and isinstance(elements, int):
        return -(-elements * type_.dtype.bits // 8)
    return elements * type_.dtype.itemsize_bytes


def node_stats(node: Node) -> NodeStats:
    """Work of ``node``. Leaves and ``reshape`` move nothing; ``take`` reads only the rows that it returns.

    ``paged_attention`` counts ``max_context`` cached tokens per sequence as an upper bound.
    """
    definition = node.opdef
    if definition.flop is not None:
        flop = definition.flop(tuple(i.type for i in node.inputs), node.attrs)
    else:
        flop = product(node.tensor.shape)
    if node.op in _MOVES_NOTHING:
        return NodeStats(flop, 0, 0)
    return NodeStats(flop, _read_bytes(node), _write_bytes(node))


def function_stats(function: Function) -> NodeStats:
    """Sum over all nodes of ``function``."""
    flop: Dim = 0
    read_bytes: Dim = 0
    write_bytes: Dim = 0
    for node in function.nodes:
        stats = node_stats(node)
        flop = flop + stats.flop
        read_bytes, write_bytes = read_bytes + stats.read_bytes, write_bytes + stats.write_bytes
    return NodeStats(flop, read_bytes, write_bytes)


def _read_bytes(node: Node) -> Dim:
    total: Dim = 0
    if node.op in ("take", "slice", "last_tokens"):  # reads what it returns, and the indices
        total = size_bytes(node.tensor)
        return total + size_bytes(node.inputs[1].tensor) if node.op == "take" else total
    for operand in {id(i): i for i in node.inputs}.values():
        match operand.type:
            case CacheType():
                total = total + _cache_bytes(node, operand.type)
            case TensorType():
                total = total + size_bytes(operand.type)
    return total


def _cache_bytes(node: Node, cache: CacheType) -> Dim:
    """Bytes of a cache that a node reads: K and V of every position for attention, table rows for rope."""
    if node.op == "paged_attention":
        row_bytes = page_bytes(cache.dtype.name, 1, cache.num_kv_heads, cache.head_dim, 1)
        return NUM_SEQUENCES * MAX_CONTEXT * row_bytes
    return node.tensor.shape[0] * cache.rotary_dim * 4 if node.op == "rope" else 0


def _write_bytes(node: Node) -> Dim:
    if isinstance(node.type, TensorType):
        return size_bytes(node.type)
    if node.op != "kv_append":
        return 0
    written: Dim = 0
    for operand in node.inputs[1:]:
        written = written + product(operand.tensor.shape) * node.type.dtype.itemsize_bytes
    return written


def group_stats(body: Function) -> NodeStats:
    """Work of one launch of a whole group, with every operand touched once and nothing between its nodes.

    Of an operand that is only cut or looked up, what is taken counts; of a cache, what attention reads
    (``max_context`` tokens per sequence, an upper bound).
    """
    read: Dim = 0
    for operand in body.inputs:
        users = [n for n in body.nodes if any(x is operand for x in n.inputs)]
        read = read + _operand_bytes(operand, users)
    written: Dim = 0
    for node in (n for n in body.nodes if n.op == "kv_append"):
        written = written + node_stats(node).write_bytes
    for result in body.outputs:
        written = written + (size_bytes(result.type) if isinstance(result.type, TensorType) else 0)
    return NodeStats(function_stats(body).flop, read, written)


def _operand_bytes(operand: Node, users: list[Node]) -> Dim:
    """Bytes of one operand of a group that its users read."""
    if isinstance(operand.type, CacheType):
        total: Dim = 0
        for user in users:
            if user.op != "kv_append" and user.op not in _READS_ROWS:
                tensors = sum((size_bytes(x.tensor) for x in user.inputs if x is not operand), start=0)
                total = total + node_stats(user).read_bytes - tensors
        return total
    if users and all(u.op in _READS_ROWS and u.inputs[0] is operand for u in users):
        taken: Dim = 0
        for user in users:
            taken = taken + size_bytes(user.tensor)
        return taken
    return size_bytes(operand.tensor)
