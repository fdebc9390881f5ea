"""Flop and bytes of nodes."""

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16
from strata.core.errors import ShapeError
from strata.graph import builder as b
from strata.graph.nodes import Function, Node
from strata.graph.samples import op_samples, sample_function
from strata.graph.stats import function_stats, node_stats
from strata.graph.types import CacheType, RopeMode

n = SymDim("n", 1, 512)
CACHE = CacheType(2, 2, 8, bf16, 16, RopeMode.NORMAL, 8)
x = b.input("x", b.tensor_type((n, 16), "f32"))
w = b.param("w", b.tensor_type((32, 16), "bf16"))
q = b.input("q", b.tensor_type((n, 4, 8), "f32"))
k = b.input("k", b.tensor_type((n, 2, 8), "f32"))
cache = b.input("cache", CACHE)
ids = b.input("ids", b.tensor_type((n,), "i32"))

CASES: list[tuple[Node, int, int, int]] = [  # at n = 3, num_seqs = 2, max_context = 10
    (x, 0, 0, 0),
    (b.reshape(x, (-1,)), 0, 0, 0),
    (b.add(x, x), 48, 192, 192),
    (b.softmax(x), 5 * 48, 192, 192),
    (b.matmul(b.cast(x, "bf16"), w, transpose_b=True, out_dtype="f32"), 2 * 3 * 16 * 32, 96 + 1024, 384),
    (b.take(w, ids), 0, 96 + 12, 96),
    (b.slice(x, 1, 0, 4), 0, 48, 48),
    (b.last_tokens(x, cache), 0, 128, 128),
    (b.rope(q, cache), 3 * 96, 384 + 3 * 8 * 4, 384),
    (b.kv_append(cache, k, k, 0), 0, 192, 192),
    (b.paged_attention(q, cache, 0, 1.0), 4 * 96 * 10, 384 + 2 * 10 * 64, 384),
    (b.create_kv_cache(CACHE), 0, 0, 0),
    (b.tensor_expr([x], "sum(k < 16, a0[i0, k] * 2)", (n,), "f32"), 3 * 2 * 16, 192, 12),
]


@pytest.mark.parametrize(("node", "flop", "read_bytes", "write_bytes"), CASES, ids=[c[0].op for c in CASES])
def test_node(node: Node, flop: int, read_bytes: int, write_bytes: int) -> None:
    stats = node_stats(node).at({"n": 3, "num_seqs": 2, "max_context": 10})
    assert (stats.flop, stats.read_bytes, stats.write_bytes) == (flop, read_bytes, write_bytes)


def test_every_sample_has_stats() -> None:
    env = {"num_seqs": 1, "max_context": 8}
    for _, op, sample in op_samples():
        stats = function_stats(sample_function(op, sample)).at(env)
        assert min(stats.flop, stats.read_bytes, stats.write_bytes) >= 0  # type: ignore[type-var]


def test_function_is_the_sum() -> None:
    y = b.exp(b.add(x, x))
    stats = function_stats(Function("f", (x,), (y,)))
    assert (str(stats.flop), str(stats.read_bytes)) == ("32*n", "128*n")


def test_fused_counts_its_body() -> None:
    body = Function("body", (x,), (b.exp(b.add(x, x)),))
    stats = node_stats(b.fused([x], body))
    assert (str(stats.flop), str(stats.read_bytes), str(stats.write_bytes)) == ("32*n", "64*n", "64*n")


def test_dim_without_value() -> None:
    with pytest.raises(ShapeError, match="n has no value; known: m"):
        node_stats(b.exp(x)).at({"m": 3})
