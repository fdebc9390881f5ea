"""``strata nodes`` and ``strata profile`` on the demo model."""

import json
import re

import pytest

FUNCTIONS = ("prefill", "decode", "score")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nodes_as_json(strata, artifact, function):
    data = json.loads(strata("nodes", artifact, "--function", function, "--tokens", 20, "--json").stdout)
    assert data["function"] == function
    assert data["dims"]["n"] == (1 if function == "decode" else 20)
    names = [n["name"] for n in data["nodes"]]
    assert len(set(names)) == len(names) > 50
    assert [n["index"] for n in data["nodes"]] == list(range(len(names)))
    up = next(n for n in data["nodes"] if n["name"] == "model.layers.3.mlp.gate_up_proj")
    assert up["op"] == "matmul"
    assert up["outputs"][0]["shape"] == [data["dims"]["n"], 768]
    assert up["work"]["flop"] == data["dims"]["n"] * (2 * 256 * 1536 + 3 * 768)  # and SwiGLU
    (chosen,) = (c for c in up["candidates"] if c["is_chosen"])
    assert (chosen["name"], chosen["kernel"]) == (up["candidate"], up["kernel"])
    assert chosen["in_image"]
    assert chosen["time_s"] > 0
    assert len(up["candidates"]) > 1
    assert up["choices"][-1]["when"] == []


def test_nodes_as_a_table(strata, artifact):
    result = strata("nodes", artifact, "--tokens", 5)
    assert re.search(r"decode · \d+ nodes · n = 1, num_seqs = 1", result.stdout)
    assert "model.layers.7.self_attn:paged_attention" in result.stdout


def test_one_node_in_detail(strata, artifact):
    text = strata("nodes", artifact, "--node", "*.0.mlp.gate_up_proj").stdout
    assert re.match(r"\d+: model.layers.0.mlp.gate_up_proj = matmul\n  input  \w+: bf16\[n,256\]\n", text)
    assert "model.layers.0.mlp.gate_up_proj.weight" in text
    assert text.count("\n  * ") == 1
    assert "select k" in text
    assert "func @matmul" in text


def test_profile_as_json(strata, artifact, tmp_path):
    trace = tmp_path / "trace.json"
    options = ("--function", "prefill", "--tokens", 8, "--repeats", 2, "--trace", trace, "--json")
    data = json.loads(strata("profile", artifact, *options).stdout)
    assert data["ceilings"]["source"] == "measured"
    listed = json.loads(strata("nodes", artifact, "--function", "prefill", "--json").stdout)["nodes"]
    assert [t["name"] for t in data["nodes"]] == [n["name"] for n in listed]
    assert sum(t["share"] for t in data["nodes"]) == pytest.approx(1)
    assert sum(t["launches"] for t in data["by_op"]) == len(listed)
    matmul = next(t for t in data["by_op"] if t["name"] == "matmul")
    assert matmul["flop"] == sum(t["flop"] for t in data["nodes"] if t["op"] == "matmul")
    assert matmul["roofline_fraction"] > 0
    assert len(json.loads(trace.read_text())["traceEvents"]) == len(listed)


def test_profile_as_tables(strata, artifact):
    text = strata("profile", artifact, "--tokens", 4, "--repeats", 1, "--top", 3).stdout
    assert re.search(r"\d+ nodes: [\d.]+ ms one by one, [\d.]+ ms in one call", text)
    assert "ceilings, measured:" in text
    assert "by op" in text
    assert text.split("by node")[1].count("│ cpu.") == 3
    kernels = strata("profile", artifact, "--tokens", 4, "--repeats", 1, "--by", "kernel").stdout
    assert "by kernel" in kernels
    assert "by op" not in kernels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("nodes", "--function", "encode"), "no function 'encode'; it has prefill, decode, score"),
        (("nodes", "--node", "nothing"), "no node 'nothing' in decode; there are"),
        (("nodes", "--tokens", 0), "--tokens: got 0; expected 1 .. "),
        (("profile", "--tokens", 1 << 20), "--tokens: got 1048576; expected 1 .. "),
        (("profile", "--repeats", 0), "--repeats: got 0; expected at least 1"),
        (("profile", "--by", "layer"), "--by: got 'layer'; expected one of node, op, kernel"),
        (("profile", "--repeats", 1, "--trace", "/nowhere/trace.json"), "cannot write /nowhere/trace.json"),
    ],
)
def test_mistakes(strata, artifact, options, message):
    command, *rest = options
    result = strata(command, artifact, *rest)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
