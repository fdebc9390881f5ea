"""Functions without a cache as work, and what cannot be one."""

import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16
from strata.core.errors import UnsupportedError, UserError, VerifyError
from strata.graph import builder as b
from strata.graph.nodes import Function, Node
from strata.graph.types import CacheType
from strata.graph.workload import Contraction, Value, ValueKind, Workload
from strata.graph.works import Phase, function_workload

n, m = SymDim("n", 1, 512), SymDim("m", 1, 64)
x = b.input("x", b.tensor_type((n, 16), "f32"))
w = b.param("w", b.tensor_type((32, 16), "f32"))
CACHE = CacheType(1, 2, 8, bf16)
cache = b.input("cache", CACHE)
q = b.input("q", b.tensor_type((n, 4, 8), "f32"))


def works(out: Node, *inputs: Node) -> Workload:
    return function_workload(Function("f", inputs or (x,), (out,)), "f")


def test_own_dims_stay() -> None:
    found = works(b.relu(b.matmul(x, b.permute_dims(w, (1, 0)))))
    assert found.dims == (n,)
    assert [(k.name, k.op, str(k.flop)) for k in found.works] == [
        ("matmul", "matmul", "1024*n"),
        ("relu", "relu", "32*n"),
    ]
    assert found.works[0].contraction == Contraction(1, n, 32, 16)
    assert [found.values[k].name for k in found.outputs] == ["relu"]
    assert [v.kind.value for v in found.values][:2] == ["weight", "input"]


def test_batched_product() -> None:
    a, c = (b.input(s, b.tensor_type((2, m, n, 8), "f32")) for s in "ac")
    found = works(b.matmul(a, c, transpose_b=True), a, c)
    assert found.works[0].contraction == Contraction(2 * m, n, n, 8)


def test_an_operand_used_twice_is_read_once() -> None:
    assert [str(r) for r in works(b.mul(x, x)).works[0].reads] == ["16*n"]
    halves = b.mul(b.slice(x, 1, 0, 4), b.slice(x, 1, 8, 12))
    assert [str(r) for r in works(halves).works[0].reads] == ["8*n"]


def test_activations_are_moved_to_be_transposed() -> None:
    found = works(b.permute_dims(x, (1, 0)))
    assert [k.op for k in found.works] == ["permute_dims"]


def test_constants_are_part_of_their_op() -> None:
    assert len(works(b.mul(x, b.const(2.0, "f32"))).works[0].inputs) == 1


def test_refusals() -> None:
    with pytest.raises(UserError, match="got a batch of 2; @f has no sequences: expected 1"):
        function_workload(Function("f", (x,), (b.relu(x),)), "net", batch=2)
    y = b.input("y", b.tensor_type((m, 4), "f32"))
    kept = b.kv_append(cache, b.slice(q, 1, 0, 2), b.slice(q, 1, 2, 4), 0)
    with pytest.raises(UserError, match="@g has the dims m, n; expected the number of tokens only"):
        function_workload(Function("g", (q, y, cache), (b.relu(y), kept)), "net")
    with pytest.raises(UnsupportedError, match="attention of layer 0 comes before its kv_append"):
        function_workload(
            Function("h", (q, cache), (b.paged_attention(q, cache, 0, 1.0),)), "net", phase=Phase.DECODE
        )


def test_outputs_are_checked() -> None:
    value = Value("y", (1,), 32, ValueKind.RESULT)
    with pytest.raises(VerifyError, match="w: value 0 is an output that nothing makes"):
        Workload("w", (value,), (), (), (0,))
