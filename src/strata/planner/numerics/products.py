"""Run a function of the graph with its matrix products computed by a callback, all else exactly.

::

    product(name, a [..., M, K], b [..., K, N]) -> [..., M, N]

A product has the name of the work that plans know it by: that of the graph's node, or ``NAME.matmul`` where
another op has that name (a table that is the head too). Attention has two: ``NAME.scores``
(queries times keys) and ``NAME.mix`` (their softmax times values).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from strata.graph.cache_value import CacheValue
from strata.graph.interp import Value, evaluate_node, run
from strata.graph.nodes import Function, Node
from strata.graph.ops.attention import product_factors
from strata.graph.ops.common import np_dtype, round_to, widen
from strata.graph.ops.reduce import softmax
from strata.graph.types import RopeMode

Product = Callable[[str, np.ndarray, np.ndarray], np.ndarray]

_SCORES, _MIX = ".scores", ".mix"
_NAMED = ("take", "rms_norm", "layer_norm")  # ops whose works have the name of their node too


def product_names(function: Function) -> tuple[str, ...]:
    """Names of all products, in the order of execution."""
    matmuls = _matmul_names(function)
    found: list[str] = []
    for node in function.nodes:
        if node.op == "matmul":
            found.append(matmuls[id(node)])
        elif node.op == "paged_attention":
            found += [node.name + _SCORES, node.name + _MIX]
    return tuple(found)


def _matmul_names(function: Function) -> dict[int, str]:
    """By the id of the node."""
    taken, names = set[str](), dict[int, str]()
    for node in function.nodes:
        if node.op == "matmul":
            names[id(node)] = f"{node.name}.matmul" if node.name in taken else node.name
        if node.op == "matmul" or node.op in _NAMED:
            taken.add(node.name)
    return names


def run_with_products(
    function: Function, inputs: Sequence[Any], params: Mapping[str, Any], product: Product
) -> list[Value]:
    """Evaluate ``function``; see :func:`strata.graph.interp.run`.

    Args:
        function: Before fusion: products within fused nodes are not seen.
        inputs: Its inputs.
        params: Its params.
        product: Computes every product, of f32 arrays.
    """
    names = _matmul_names(function)

    def evaluate(node: Node, operands: Sequence[Value], env: Mapping[str, int]) -> Value:
        match node.op:
            case "matmul":
                return _matmul(node, operands, names[id(node)], product)
            case "paged_attention":
                return _attention(node, operands, product)
        return evaluate_node(node, operands, env)

    return run(function, inputs, params, evaluate)


def _matmul(node: Node, operands: Sequence[Any], name: str, product: Product) -> np.ndarray:
    a, b = (widen(x) for x in operands)
    if node.attrs["transpose_b"]:
        b = np.swapaxes(b, -1, -2)
    return round_to(product(name, a, b), np_dtype(node.tensor.dtype))


def _attention(node: Node, operands: Sequence[Any], product: Product) -> np.ndarray:
    """What the op's reference computes, but all tokens of a sequence at once."""
    q, cache = operands
    queries = widen(q).astype(np.float32)
    if cache.type.rope is RopeMode.INLINE:
        queries = cache.rotate(queries, cache.positions)
    queries = product_factors(queries, cache.type)
    out = np.empty(q.shape, np.float32)
    for sequence in np.unique(cache.seq_ids):
        rows = np.flatnonzero(cache.seq_ids == sequence)
        out[rows] = _attend(node, queries[rows], cache, int(sequence), cache.positions[rows], product)
    return round_to(out, q.dtype)


def _attend(
    node: Node, queries: np.ndarray, cache: CacheValue, sequence: int, positions: np.ndarray, product: Product
) -> np.ndarray:
    """Attention of the queries ``[n, H, D]`` of one sequence, each to the tokens up to its position."""
    n, heads, d = queries.shape
    length = int(positions.max()) + 1
    keys, values = cache.history(node.attrs["layer"], sequence, length)  # [S, K, D]
    if cache.type.rope is RopeMode.INLINE:
        keys = product_factors(cache.rotate(keys, np.arange(length)), cache.type)
    kv_heads = keys.shape[1]
    q = queries.reshape(n, kv_heads, heads // kv_heads, d).transpose(1, 2, 0, 3)  # [K, H/K, n, D]
    scores = product(
        node.name + _SCORES, q.reshape(kv_heads, -1, d), keys.transpose(1, 2, 0)
    )  # [K, H/K*n, S]
    scores = np.float32(node.attrs["scale"]) * scores.reshape(kv_heads, -1, n, length)
    hidden = np.arange(length) > positions[:, None]  # [n, S]
    weights = softmax(np.where(hidden, np.float32(-np.inf), scores)).reshape(kv_heads, -1, length)
    found = product(node.name + _MIX, weights, values.transpose(1, 0, 2))  # [K, H/K*n, D]
    return found.reshape(kv_heads, -1, n, d).transpose(2, 0, 1, 3).reshape(n, heads, d)
