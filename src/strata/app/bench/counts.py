"""What is counted beside the clock: flop of a prefill, bytes of a decode step, whose peak bounds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from strata.graph.nodes import Function
from strata.graph.stats import node_stats
from strata.runtime.nodes import PRODUCTS, NodeInfo, multiplies
from strata.runtime.program import Program
from strata.runtime.records import ArgKind


def matmul_flop(function: Function, num_tokens: int, sequences: int = 1) -> int:
    """Flop of the products in one call of ``function`` for ``num_tokens`` tokens of all ``sequences``."""
    env = {"n": num_tokens, "num_seqs": sequences}
    return sum(node_stats(node).at(env).flop for node in function.nodes if node.op in PRODUCTS)  # type: ignore[misc]


def weight_bytes_read(program: Program, function: str = "decode") -> int:
    """Bytes of the params that one call for one token reads.

    A launch that takes rows of tables counts nothing: it reads token ids, or far less than the tables.
    """
    records = {r.name: r for r in program.record.params}
    dims = {r.dim: r.lo for r in program[function].record.dims}
    read: set[str] = set()
    for node in program.nodes(function):
        names = {x.name for x in node.inputs if x.place.kind is ArgKind.PARAM}
        work, size = node.work(dims), sum(records[name].own_bytes for name in names)
        takes_rows = any(x.place.kind is ArgKind.INPUT and x.dtype == "i32" for x in node.inputs)
        if not takes_rows and (work is None or 2 * work["read_bytes"] >= size):  # layouts pad a little
            read |= names
    return sum(records[name].own_bytes for name in read)


def instruction(nodes: Sequence[NodeInfo], dims: dict[str, int]) -> str:
    """Whose peak bounds a call: ``f32``, ``bf16`` or ``int8``, by the kernels of most of the products' flop.

    Args:
        nodes: Of the function.
        dims: Sizes of the call.
    """
    flop: Counter[str] = Counter()
    for node in nodes:
        if node.op in PRODUCTS:
            work = node.work(dims)
            flop[multiplies(node.chosen(dims).trace)] += 1 if work is None else work["flop"]
    return flop.most_common(1)[0][0] if flop else "f32"
