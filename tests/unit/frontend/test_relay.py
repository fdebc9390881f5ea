"""Reading graph-executor JSON: shapes, symbolic lengths, contractions, layers, and files that are no good."""

import copy
import gzip
import json
from pathlib import Path

import pytest

from strata.core.errors import ParseError, UserError
from strata.frontend.relay import LENGTH as L
from strata.frontend.relay import read_relay
from strata.graph.workload import Contraction, ValueKind

DATA = Path(__file__).parents[2] / "data" / "relay"


def op(func, *inputs, outputs=1):
    attrs = {"func_name": func, "num_outputs": str(outputs), "num_inputs": str(len(inputs))}
    return {"op": "tvm_op", "name": func, "attrs": attrs, "inputs": [[*i, 0] for i in inputs]}


def null(name):
    return {"op": "null", "name": name, "inputs": []}


SMALL = {
    "nodes": [
        null("input_ids"),  # 0
        null("p0"),
        op("tvmgen_default_fused_take", (1, 0), (0, 0)),
        op("tvmgen_default_fused_split_3", (2, 0), outputs=2),
        null("p1"),
        op("tvmgen_default_fused_nn_dense_2", (3, 1), (4, 0)),
        op("tvmgen_default_fused_multiply", (5, 0), (5, 0)),
        op("tvmgen_default_fused_broadcast_to", (6, 0)),
    ],
    "attrs": {
        "shape": ["list_shape", [[5], [100, 8], [5, 8], [5, 4], [5, 4], [3, 4], [5, 3], [5, 3], [6, 5, 3]]],
    },
}


@pytest.fixture
def small():
    return copy.deepcopy(SMALL)


def read(tmp_path, graph, **options):
    path = tmp_path / "small.json"
    path.write_text(json.dumps(graph))
    return read_relay(path, **options)


def test_a_small_graph_to_the_last_field(tmp_path, small):
    load = read(tmp_path, small)
    assert load.name == "small"
    assert [v.name for v in load.values] == [
        "input_ids", "p0", "take.2", "split.3:0", "split.3:1", "p1", "dense.5", "multiply.6", "broadcast_to.7"
    ]  # fmt: skip
    assert [v.shape for v in load.values][-4:] == [(3, 4), (L, 3), (L, 3), (L + 1, L, 3)]
    assert [v.kind for v in load.values[:3]] == [ValueKind.INPUT, ValueKind.WEIGHT, ValueKind.RESULT]
    assert {v.bits for v in load.values} == {8.0}
    take, split, dense, multiply, to = load.works
    assert take.reads == (8 * L, L)  # of the table only what it returns
    assert split.outputs == (3, 4)
    assert dense.inputs == (4, 5)
    assert dense.contraction == Contraction(1, L, 3, 4)
    assert dense.flop == 24 * L
    assert (multiply.inputs, multiply.reads, multiply.flop) == ((6,), (3 * L,), 3 * L)
    assert (to.op, to.flop) == ("broadcast_to", 0)
    assert load.outputs == (3, 8)  # nobody reads the first half
    assert [(d.name, d.lo, d.hi) for d in load.dims] == [("L", 1, 131072)]


def test_gzipped_is_the_same(tmp_path, small):
    path = tmp_path / "small.json.gz"
    path.write_bytes(gzip.compress(json.dumps(small).encode()))
    assert read_relay(path) == read(tmp_path, small)


def test_dtypes_of_the_file_count(tmp_path, small):
    small["attrs"]["dltype"] = ["list_str", ["int64", "float16", *["float32"] * 6, "bool"]]
    assert [v.bits for v in read(tmp_path, small).values] == [64, 16, *[32] * 6, 8]
    small["attrs"]["dltype"][1][0] = "text"
    with pytest.raises(ParseError, match=r"attrs.dltype\[1\]: got 'text'; expected one like 'float32'"):
        read(tmp_path, small)
    small["attrs"]["dltype"][1] = []
    with pytest.raises(ParseError, match=r"attrs.dltype\[1\]: got \[\]; expected 9 dtypes"):
        read(tmp_path, small)


def test_a_fused_matrix_product_stays_one(tmp_path, small):
    small["nodes"][5]["attrs"]["func_name"] = "tvmgen_default_fused_nn_dense_add_nn_relu_1"
    assert read(tmp_path, small).works[2].op == "dense"


@pytest.mark.parametrize(
    ("file", "matmuls", "num_layers", "per_layer", "works"),
    [
        ("gpt2_prefill_graph", 73, 12, [65] * 12, 810),
        ("gpt2_decoder_graph", 73, 12, [68] * 12, 834),
        ("llama-2-7b_prefill_graph", 289, 32, [81] + [72] * 31, 2326),  # the first one makes the mask
    ],
)
def test_real_graphs(file, matmuls, num_layers, per_layer, works):
    load = read_relay(DATA / f"{file}.json.gz")
    assert len(load.works) == works
    assert sum(w.contraction is not None for w in load.works) == matmuls
    assert [sum(w.layer == k for w in load.works) for k in range(num_layers)] == per_layer
    assert load.dims == (L,)


def test_layers_begin_with_their_norm_and_end_with_the_residual():
    load = read_relay(DATA / "gpt2_prefill_graph.json.gz")
    for layer in range(12):
        ops = [w.op for w in load.works if w.layer == layer]
        assert ops[:2] == ["mean", "subtract"]
        assert ops[-1] == "add"
    assert next(w for w in load.works if w.name == "dense.1094").layer is None  # the head


def test_multi_output_nodes_shift_the_shapes():
    load = read_relay(DATA / "gpt2_prefill_graph.json.gz")
    head = next(w for w in load.works if w.name == "dense.1094")
    assert head.contraction == Contraction(1, L, 50257, 768)
    scores = next(w for w in load.works if w.name == "matmul.50")
    assert scores.contraction == Contraction(12, L, L, 64)


def test_a_decoder_knows_its_length_by_its_cache():
    load = read_relay(DATA / "gpt2_decoder_graph.json.gz")
    assert load.values[1].kind is ValueKind.STATE
    assert load.values[1].shape == (1, 12, L, 64)
    scores = next(w for w in load.works if w.name == "matmul.76")
    assert scores.contraction == Contraction(12, 1, L + 1, 64)


def test_a_graph_without_a_length(tmp_path, small):
    small["nodes"][0]["name"] = "image"
    with pytest.raises(UserError, match=r"cannot be inferred.*give it with --traced-len N"):
        read(tmp_path, small)
    assert read(tmp_path, small, traced_len=0).dims == ()
    assert read(tmp_path, small, traced_len=5).dims == (L,)
    with pytest.raises(UserError, match=r"--traced-len: got 77; .* has no dim of that size"):
        read(tmp_path, small, traced_len=77)
    with pytest.raises(UserError, match="--traced-len: got 1; expected >= 2"):
        read(tmp_path, small, traced_len=1)


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"none\.json: cannot be read: No such file"):
        read_relay(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("a.json.gz", b"{}", "not a gzip file"),
        ("a.json.gz", gzip.compress(b"{}" * 999, mtime=0)[:-9], "not a gzip file, or a broken one"),
        (
            "a.json.gz",
            gzip.compress(b"{}" * 999, mtime=0)[:12] + b"\xff" * 20,
            "not a gzip file, or a broken one",
        ),
        ("a.json", b"{]", "a.json: not JSON"),
        ("a.json", b"\xff\xfe", "a.json: not JSON"),
        ("a.json", b"[]", 'got no "nodes"; expected a list of at least one node'),
        ("a.json", b'{"nodes": []}', 'got no "nodes"'),
    ],
)
def test_files_that_are_no_graphs(tmp_path, name, raw, message):
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ParseError, match=message):
        read_relay(tmp_path / name)


def _set(path, value):
    def edit(graph):
        for key in path[:-1]:
            graph = graph[key]
        graph[path[-1]] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (_set(["nodes", 2], 7), r'node 2: got 7; expected "name", and "op"'),
        (_set(["nodes", 2, "op"], "conv"), r'node 2: got \{"op": "conv".*\.\.\.; expected "name"'),
        (_set(["nodes", 2, "attrs"], None), r"node 2 \(tvm.*take\): got attrs null; expected func_name"),
        (
            _set(["nodes", 2, "attrs", "num_outputs"], "0"),
            "node 2 .*func_name, and num_outputs >= 1",
        ),
        (_set(["nodes", 2, "inputs"], "x"), 'node 2 .*got inputs "x"; expected a list of'),
        (
            _set(["nodes", 2, "inputs", 0], [0]),
            r"node 2 .*got input \[0\]; expected \[node, output",
        ),
        (_set(["nodes", 2, "inputs", 0], [-1, 0, 0]), r"got input \[-1, 0, 0\]"),
        (
            _set(["nodes", 2, "inputs", 0], [6, 0, 0]),
            "node 2 .*reads node 6, which is not before it",
        ),
        (
            _set(["nodes", 2, "inputs", 0], [99, 0, 0]),
            "node 2 .*reads node 99.*no such node",
        ),
        (
            _set(["nodes", 5, "inputs", 0], [3, 2, 0]),
            r"output 2 of node 3 \(tvm.*split_3\), which has 2",
        ),
        (_set(["nodes", 4, "name"], "p0"), "two inputs are called 'p0'"),
        (
            _set(["attrs"], {}),
            r"attrs.shape\[1\]: got none shapes; expected 9, .* the 8 nodes",
        ),
        (_set(["attrs", "shape", 1], [[5]]), r"attrs.shape\[1\]: got 1 shapes; expected 9"),
        (
            _set(["attrs", "shape", 1, 4], [5, -4]),
            r"node 3 .*got shape \[5, -4\]; expected a list",
        ),
        (
            _set(["attrs", "shape", 1, 5], [3, 7]),
            r"node 5 .*got shapes \[L, 4\] x \[3, 7\] -> \[L, 3\]",
        ),
        (_set(["nodes", 5, "inputs"], []), "node 5 .*got shapes none ->"),
    ],
)
def test_malformed_graphs_name_the_node(tmp_path, small, edit, message):
    edit(small)
    with pytest.raises(ParseError, match=message):
        read(tmp_path, small)
