"""``strata bench``: what is counted, by hand and by the functions; that figures fit each other."""

import json

import numpy as np
import pytest

from strata.app import bench
from strata.app.bench import Runner, Workload, matmul_flop, peak_dtype, weight_bytes_read
from strata.compiler.api import Options, define
from strata.frontend import nn
from strata.models import random_params, shape_config


class TwoLinears(nn.Module):
    def __init__(self):
        self.embedding = nn.Embedding(100, 8)
        self.up = nn.Linear(8, 24, bias=True)
        self.down = nn.Linear(24, 8, bias=False)
        self.norm = nn.RMSNorm(8, 1e-5)

    def forward(self, ids: nn.Tensor) -> nn.Tensor:
        return self.down(self.up(self.norm(self.embedding(ids))))


@pytest.fixture(scope="module")
def two_linears():
    n = nn.spec.dim("n", 1, 64)
    exported = TwoLinears().export({"forward": {"ids": nn.spec.Tensor([n], "i32")}})
    return exported.module["forward"]


def test_weight_bytes_read(two_linears):
    # f32: both matrices, the bias, the weights of the norm; of the embedding table only rows are read
    assert weight_bytes_read(two_linears) == 4 * (24 * 8 + 8 * 24 + 24 + 8)


def test_matmul_flop(two_linears):
    assert matmul_flop(two_linears, 1) == 2 * (8 * 24 + 24 * 8)
    assert matmul_flop(two_linears, 10) == 10 * matmul_flop(two_linears, 1)


def test_counts_of_a_named_shape():
    """TinyLlama 1.1B: the head is computed for the last position only; embedding rows are not counted."""
    definition = define(shape_config("tinyllama-1.1b"), Options("bf16", max_batch=1))
    d, f, kv, layers, vocab = 2048, 5632, 256, 22, 32000
    per_layer = d * (d + 2 * kv) + d * d + 3 * d * f
    norms = (2 * layers + 1) * d
    read = weight_bytes_read(definition.module["decode"])
    assert read == 2 * (layers * per_layer + vocab * d) + 4 * norms
    assert matmul_flop(definition.module["decode"], 1) == 2 * (layers * per_layer + vocab * d)
    assert matmul_flop(definition.module["prefill"], 512) == 2 * (512 * layers * per_layer + vocab * d)


def test_tied_weights_are_read_once():
    definition = define(shape_config("qwen2.5-0.5b"), Options("f16", max_batch=1))
    params = definition.module["decode"].params
    total = sum(np.prod(p.tensor.shape) * p.tensor.dtype.itemsize_bytes for p in params)
    assert weight_bytes_read(definition.module["decode"]) == total


def test_peak_dtype_is_that_of_the_chosen_kernel():
    def plan(*traces):
        candidates = [{"trace": t} for t in traces]
        when = [{"dim": "n", "lo": 1, "hi": 4}]
        choices = [{"candidate": 0, "when": when}, {"candidate": len(traces) - 1, "when": []}]
        launches = [
            {"op": "take", "candidates": [], "choices": []},
            {"op": "matmul", "candidates": candidates, "choices": choices},
        ]
        return json.dumps({"prefill": {"launches": launches}})

    mixed = plan("vectorize(loop=i)", "tensorize(loop=k)")
    assert (peak_dtype(mixed, 4), peak_dtype(mixed, 5)) == ("f32", "bf16")
    assert peak_dtype('{"prefill": {"launches": []}}', 1) == "f32"


def test_runner_prefills_in_chunks(monkeypatch):
    options = Options(max_batch=1, prefill_chunk=16, page_size=4)
    definition = define(shape_config("tiny"), options)
    program = bench._compile(definition, options).compiled.program(random_params(definition), 1)
    runner = Runner(program, 60)
    calls = []
    step = runner._step
    monkeypatch.setattr(runner, "_step", lambda f, ids: calls.append((f, len(ids))) or step(f, ids))
    assert runner.prefill(50) > 0
    assert runner.decode(3) > 0
    assert calls == [("prefill", 16)] * 3 + [("prefill", 2)] + [("decode", 1)] * 3
    assert runner._cache.length(0) == 53
    runner.prefill(60)
    runner._cache.check_integrity()


@pytest.fixture
def instant(monkeypatch):
    """Ceilings without measuring them."""
    monkeypatch.setattr(bench, "measure_bandwidth", lambda threads, repeats: 1e10 * threads)
    monkeypatch.setattr(bench, "measure_peak", lambda threads, dtype: {"f32": 1e12, "bf16": None}[dtype])


ARGS = [
    "bench",
    "--shape",
    "tiny",
    "--format",
    "f32",
    "--prompt",
    40,
    "--context",
    8,
    "--decode",
    4,
    "--repeats",
    3,
]


def test_json(strata, instant):
    figures = json.loads(strata(*ARGS, "--threads", 2, "--json").stdout)
    assert (figures["model"], figures["format"], figures["threads"]) == ("tiny", "f32", 2)
    assert figures["peak_flop_per_s"] == 1e12
    assert figures["peak_bf16_flop_per_s"] is None
    assert figures["bandwidth_bytes_per_s"] == 2e10
    assert figures["bandwidth_spread"] == 0
    rate = figures["decode_tokens_per_s"]
    assert figures["decode_bytes_per_s"] == pytest.approx(rate * figures["decode_bytes_per_token"])
    assert figures["decode_fraction_of_bandwidth"] == pytest.approx(figures["decode_bytes_per_s"] / 2e10)
    definition = define(shape_config("tiny"), Options("f32", max_batch=1))
    flop = matmul_flop(definition.module["prefill"], 40)
    assert figures["prefill_flop_per_s"] == pytest.approx(flop * figures["prefill_tokens_per_s"] / 40)
    assert figures["prefill_fraction_of_peak"] == pytest.approx(figures["prefill_flop_per_s"] / 1e12)
    assert figures["peak_rss_bytes"] > figures["stored_bytes"] > 4 * 512 * 64


def test_table(strata, instant):
    strata(*ARGS)
    lines = strata(*ARGS).stdout.splitlines()
    assert "tiny · f32" in lines[0]
    assert "loaded from the cache in" in lines[0]
    assert any("prefill 40" in line and "1000 GFLOP/s f32 multiply-add" in line for line in lines)
    assert any("decode 4 at 8" in line and "GB/s memory read" in line for line in lines)


def test_models(strata, instant, small):
    args = ["bench", small, "--prompt", 20, "--context", 4, "--decode", 2, "--repeats", 1, "--json"]
    figures = json.loads(strata(*args).stdout)
    assert (figures["model"], figures["format"]) == ("small", "f32")


def test_workload():
    assert Workload(512, 128, 64).max_tokens == 512
    assert Workload(10, 128, 64).max_tokens == 192
