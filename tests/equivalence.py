"""Random operands for graph functions, and the comparison of two functions that should compute the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tolerance

from strata.core.dims import evaluate
from strata.core.dtypes import Kind
from strata.graph.cache_value import CacheValue
from strata.graph.interp import run
from strata.graph.nodes import Function, Module, Node
from strata.graph.ops.common import np_dtype
from strata.graph.types import CacheType, TensorType

INDEX_BELOW = 3  # integers are below: they may be indices into a table
MATMULS = ("matmul", "paged_attention", "tensor_expr", "rms_norm", "layer_norm", "softmax", "sum", "mean")


def ragged_cache(type_: CacheType, tokens: int, rng: np.random.Generator) -> CacheValue:
    """A cache with random pages, whose view spreads ``tokens`` over one to three sequences."""
    parts = min(tokens, int(rng.integers(1, 4)))
    cuts = sorted(rng.choice(np.arange(1, tokens), parts - 1, replace=False).tolist()) if parts > 1 else []
    new = [b - a for a, b in zip([0, *cuts], [*cuts, tokens], strict=True)]
    past = [int(p) for p in rng.integers(0, 2 * type_.page_size, parts)]
    longest = max(p + a for p, a in zip(past, new, strict=True))
    cache = CacheValue.empty(type_, parts * -(-longest // type_.page_size) + 1, longest + 2)
    for pages in (*cache.k_pages, *cache.v_pages):
        pages[...] = rng.standard_normal(pages.shape).astype(pages.dtype)
    return cache.view(past, new)


def random_values(
    function: Function, sizes: Mapping[str, int], rng: np.random.Generator
) -> tuple[list[Any], dict[str, Any]]:
    """Inputs and params; ``sizes`` gives the symbolic dims (``n``: tokens of a cache's batch view)."""

    def draw(node: Node) -> Any:
        if isinstance(node.type, CacheType):
            return ragged_cache(node.type, sizes.get("n", 3), rng)
        assert isinstance(node.type, TensorType)
        shape = tuple(evaluate(d, sizes) for d in node.type.shape)
        match node.type.dtype.kind:
            case Kind.FLOAT:
                return np.asarray(rng.standard_normal(shape)).astype(np_dtype(node.type.dtype))
            case Kind.BOOL:
                return np.asarray(rng.integers(0, 2, shape)).astype(np.bool_)
            case Kind.INT | Kind.UINT:
                return np.asarray(rng.integers(0, INDEX_BELOW, shape)).astype(np_dtype(node.type.dtype))

    return [draw(n) for n in function.inputs], {n.attrs["name"]: draw(n) for n in function.params}


def assert_equal_values(got: Any, wanted: Any, node: Node, exact: bool) -> None:
    """Compare two results of one output node: bit by bit, or within the tolerance of a long sum."""
    if isinstance(wanted, CacheValue):
        for a, b in zip((*got.k_pages, *got.v_pages), (*wanted.k_pages, *wanted.v_pages), strict=True):
            _compare(a, b, tolerance.for_(wanted.type.dtype, 256), exact)
        return
    assert got.dtype == wanted.dtype
    assert got.shape == wanted.shape
    _compare(got, wanted, tolerance.for_(node.tensor.dtype, 256), exact)


def _compare(got: Any, wanted: Any, limit: Any, exact: bool) -> None:
    wide = [x.astype(np.float64) if x.dtype.kind in "fV" else x for x in (got, wanted)]
    np.testing.assert_allclose(*wide, **({"rtol": 0.0, "atol": 0.0} if exact else limit), equal_nan=True)


def assert_same(before: Module, after: Module, sizes: Mapping[str, int] | None = None, seed: int = 0) -> None:
    """Functions of ``after`` compute what those of the same name in ``before`` compute, on random operands.

    Bit by bit, except where NumPy may sum in another order for another shape of the same matmul or reduction.
    """
    for new in after.functions:
        old = before[new.name]
        used = {d.name: d for d in old.dims}
        chosen = {name: min(max(3, d.lo), d.hi) for name, d in used.items()} | dict(sizes or {})
        inputs, params = random_values(old, chosen, np.random.default_rng(seed))
        with np.errstate(all="ignore"):
            wanted = run(old, inputs, params)
            got = run(new, inputs, params)
        exact = not any(n.op in MATMULS for n in old.nodes)
        for node, a, b in zip(old.outputs, got, wanted, strict=True):
            assert_equal_values(a, b, node, exact)
