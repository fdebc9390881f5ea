"""``strata bench``: what is counted, by hand and by the functions; that figures fit each other."""

import functools
import itertools
import json
from statistics import median

import numpy as np
import pytest

from strata.app.bench import measure, profiling
from strata.app.bench.amounts import Amounts, Phase
from strata.app.bench.counts import instruction, matmul_flop, weight_bytes_read
from strata.app.bench.ours import Runner, open_subject
from strata.app.bench.run import Bench
from strata.app.bench.shapes import peer_values, shape_values
from strata.compiler.api import Options, define
from strata.models import shape_config
from strata.runtime.nodes import CandidateInfo
from strata.runtime.profile import Ceilings
from strata.runtime.records import ParamRecord

D, F, KV, LAYERS, VOCAB = 64, 160, 32, 2, 512  # the shape "tiny"
PER_LAYER = D * (D + 2 * KV) + D * D + 3 * D * F
NORMS = (2 * LAYERS + 1) * D


@pytest.fixture(scope="module")
def subjects():
    """The tiny shape by format, compiled once each."""
    made = {}

    def get(format_):
        if format_ not in made:
            made[format_] = Bench(shape="tiny", format=format_).open()
        return made[format_]

    return get


@pytest.mark.parametrize(
    ("format_", "bits"),
    [("f32", 32), ("bf16", 16), ("int4:group=32", 4 + 16 / 32)],  # 16-bit scales of 32 weights
)
def test_weight_bytes_read(subjects, format_, bits):
    """Every matrix and the head once, f32 norms; of the embedding table only rows are read."""
    read = weight_bytes_read(subjects(format_).program)
    assert read == (LAYERS * PER_LAYER + VOCAB * D) * bits / 8 + 4 * NORMS


def test_tied_weights_are_read_once(model):
    """The demo model's embedding is its head, in the head's layout."""
    program = model.stepping_program
    assert weight_bytes_read(program) == sum(p.own_bytes for p in program.record.params)


def test_stored_bytes_are_those_of_the_layout():
    assert ParamRecord("w", "u8", (2, 8, 256), (128, 64), "packed").own_bytes == 4096
    assert ParamRecord("w", "bf16", (3, 5), (3, 5)).own_bytes == 30
    assert ParamRecord("scales", "f16", (2, 8, 128), (128, 8), "packed", "w").own_bytes == 0


def test_flop_of_a_named_shape():
    """TinyLlama 1.1B: the head is computed for the last position only."""
    definition = define(shape_config("tinyllama-1.1b"), Options("bf16", max_batch=1))
    d, f, kv, layers, vocab = 2048, 5632, 256, 22, 32000
    per_layer = d * (d + 2 * kv) + d * d + 3 * d * f
    assert matmul_flop(definition.module["decode"], 1) == 2 * (layers * per_layer + vocab * d)
    assert matmul_flop(definition.module["prefill"], 512) == 2 * (512 * layers * per_layer + vocab * d)


class Node:
    """A launch, as far as :func:`instruction` looks."""

    def __init__(self, op, flop, *traces):
        self.op, self.flop, self.traces = op, flop, traces

    def chosen(self, dims):
        return CandidateInfo("c", "k", True, self.traces[0 if dims["n"] <= 4 else -1])

    def work(self, dims):
        return {"flop": self.flop * dims["n"]}


def test_instruction_is_that_of_most_of_the_flop():
    nodes = [
        Node("take", 1000, "tensorize(loop=k)"),
        Node("matmul", 10, "vectorize(loop=i)", "tensorize(loop=k)"),
        Node("matmul", 1, "vectorize(loop=i)"),
    ]
    assert instruction(nodes, {"n": 4}) == "f32"
    assert instruction(nodes, {"n": 5}) == "bf16"
    assert instruction([], {"n": 1}) == "f32"


def test_instruction_of_a_program(subjects):
    program = subjects("int4").program
    dims = {r.dim: r.lo for r in program["prefill"].record.dims}
    assert instruction(program.nodes("prefill"), dims) == "int8"


@pytest.fixture
def runner():
    options = Options(max_batch=3, prefill_chunk=16, page_size=4)
    work = Amounts(50, 20, 3, batch=3)
    return Runner(open_subject(None, "tiny", options, 1, work).program, work)


def test_runner_prefills_in_chunks(runner, monkeypatch):
    calls, step = [], runner._step

    def noted(function, sequences, lengths, ids):
        calls.append((function, lengths))
        return step(function, sequences, lengths, ids)

    monkeypatch.setattr(runner, "_step", noted)
    assert runner.prefill(50) > 0
    assert runner.decode(20, 3, 1) > 0  # cut to 20 tokens: nothing is computed again
    assert calls == [("prefill", [16])] * 3 + [("prefill", [2])] + [("decode", [1])] * 3
    assert runner._cache.length(0) == 23
    assert [len(times) for times in runner.chunks_s] == [4]
    runner._cache.check_integrity()


def test_runner_decodes_several_sequences(runner):
    assert runner.decode(20, 3, 3) > 0
    assert [runner._cache.length(s) for s in range(3)] == [23] * 3
    runner.decode(7, 2, 3)
    assert [runner._cache.length(s) for s in range(3)] == [9] * 3
    runner.decode(7, 1, 1)  # one of several: the others stay as they are
    assert [runner._cache.length(s) for s in range(3)] == [8, 9, 9]
    runner.decode(12, 1, 1)
    assert runner._cache.sequences == (0,)
    runner._cache.check_integrity()


@pytest.fixture
def instant(monkeypatch):
    """Ceilings without measuring them, and no rests."""
    monkeypatch.setattr(measure, "measure_bandwidth", lambda threads, repeats: 1e10 * threads)
    peaks = {"f32": 1e12, "bf16": None, "int8": 4e12}
    monkeypatch.setattr(measure, "measure_peak", lambda threads, name, repeats: peaks[name])
    sustained = itertools.cycle((0.7, 0.9))  # before a phase and after it
    monkeypatch.setattr(
        measure,
        "measure_sustained_peak",
        lambda threads, name: peak * next(sustained) if (peak := peaks[name]) else None,
    )
    monkeypatch.setattr(measure, "REST_S", 0.0)


ARGS = ["bench", "--shape", "tiny", "--prompt", 40, "--context", 8, "--decode", 4, "--repeats", 3]


def test_json(strata, instant):
    figures = json.loads(strata(*ARGS, "--format", "f32", "--threads", 2, "--json").stdout)
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
    assert figures["sustained_peak_flop_per_s"] == pytest.approx(0.8e12)
    assert figures["prefill_fraction_of_sustained_peak"] == pytest.approx(
        figures["prefill_fraction_of_peak"] / 0.8
    )
    assert figures["peak_rss_bytes"] > figures["stored_bytes"] > 4 * 512 * 64
    kv_bytes = 2 * LAYERS * KV * 4 * (8 + 2)  # K and V in f32, of the context and half of the steps
    assert figures["decode_kv_bytes_per_token"] == kv_bytes
    more = figures["decode_fraction_of_bandwidth_with_kv"] / figures["decode_fraction_of_bandwidth"]
    assert more == pytest.approx(1 + kv_bytes / figures["decode_bytes_per_token"])
    assert figures["prefill_over_first_chunk"] == pytest.approx(1.0)
    assert [len(s) for s in figures["seconds"].values()] == [3, 3]
    assert figures["peers"] == []
    assert "batch_tokens_per_s" not in figures


def test_batch(strata, instant):
    figures = json.loads(strata(*ARGS, "--format", "f32", "--batch", 3, "--json").stdout)
    pairs = zip(figures["seconds"]["decode"], figures["seconds"]["batch"], strict=True)
    assert figures["batch_over_one"] == pytest.approx(3 * median(one / all_ for one, all_ in pairs))
    steps_per_s = figures["batch_tokens_per_s"] / 3
    moved = steps_per_s * figures["decode_bytes_per_token"]
    bandwidth = figures["bandwidth_bytes_per_s"]
    assert figures["batch_bandwidth_bytes_per_s"] == bandwidth
    assert figures["batch_fraction_of_bandwidth"] == pytest.approx(moved / bandwidth)
    definition = define(shape_config("tiny"), Options("f32", max_batch=3))
    flop = matmul_flop(definition.module["decode"], 3, 3)
    assert flop == 3 * 2 * (LAYERS * PER_LAYER + VOCAB * D)
    assert figures["batch_flop_per_s"] == pytest.approx(flop * steps_per_s)
    assert figures["batch_sustained_peak_flop_per_s"] == pytest.approx(0.8e12)
    assert figures["batch_fraction_of_sustained_peak"] == pytest.approx(flop * steps_per_s / 0.8e12)


def test_table(strata, instant):
    strata(*ARGS, "--format", "f32")
    lines = strata(*ARGS, "--format", "f32", "--batch", 2).stdout.splitlines()
    assert "tiny · f32" in lines[0]
    assert any("prefill 40" in line and "1000 GFLOP/s f32 multiply-add" in line for line in lines)
    assert any("decode 4 at 8" in line and "GB/s memory read" in line for line in lines)
    assert any("decode of 2 sequences" in line and "x of one" in line for line in lines)
    assert "loaded from the cache in" in strata(*ARGS, "--format", "f32").stdout


class Sleeper:
    """A side that takes a second each time it is asked."""

    def __init__(self):
        self.runs = 0

    def prefill(self, tokens):
        self.runs += 1
        return float(self.runs)


@pytest.mark.parametrize(
    ("patience_s", "busy", "runs"),
    [
        (60.0, [0.5, 0.5, 0.05, 0.02], 1),  # waits twice
        (60.0, [0.0, 0.9, 0.0, 0.0], 2),  # is disturbed, and runs again
        (0.0, [0.5, 0.9], 1),  # takes what comes
        (60.0, [None, None], 1),  # nobody knows
    ],
)
def test_patience(monkeypatch, patience_s, busy, runs):
    monkeypatch.setattr(measure, "REST_S", 0.0)
    monkeypatch.setattr(measure.OtherWork, "cores", lambda self: busy.pop(0))
    side, last = Sleeper(), busy[-1]
    run = functools.partial(measure._run, side, Phase.PREFILL, Amounts())
    found = measure._repetition(run, (), patience_s)
    assert (found.seconds, found.other_cores, side.runs, busy) == (float(runs), last, runs, [])


def test_models(strata, instant, small):
    args = ["bench", small, "--prompt", 20, "--context", 4, "--decode", 2, "--repeats", 1, "--json"]
    figures = json.loads(strata(*args).stdout)
    assert (figures["model"], figures["format"]) == ("small", "f32")


def test_a_longer_context_than_the_shape(strata, instant):
    args = ["bench", "--shape", "tiny", "--prompt", 600, "--context", 4, "--decode", 2, "--repeats", 1]
    result = strata(*args)
    assert result.exit_code == 2
    assert "600 tokens are needed, the context is 512; lower --prompt" in result.stderr
    assert "raise --max-context" in result.stderr
    figures = json.loads(strata(*args, "--max-context", 640, "--json").stdout)
    assert figures["prompt_tokens"] == 600
    assert figures["prefill_over_first_chunk"] > 0


def test_shape_values():
    assert shape_values("tiny")["max_position_embeddings"] == 512
    assert shape_values("tiny", 100)["max_position_embeddings"] == 512
    assert shape_values("tiny", 4096)["max_position_embeddings"] == 4096
    assert shape_values("gpt2-124m", 2048)["n_positions"] == 2048
    assert peer_values("tiny") == peer_values("tiny", 4096)
    assert peer_values("gpt2-124m") == shape_values("gpt2-124m")


def test_workload():
    work = Amounts(512, 128, 64)
    assert work.max_tokens == 512
    assert work.phases == (Phase.PREFILL, Phase.DECODE)
    batched = Amounts(10, 128, 64, batch=8)
    assert batched.max_tokens == 192
    assert [batched.tokens(p) for p in batched.phases] == [10, 64, 512]
    assert np.prod([len(batched.phases), batched.repeats]) == 15


@pytest.fixture
def ceilings(monkeypatch):
    found = Ceilings({"f32": 1e12, "bf16": 2e12, "int8": 4e12}, 1e10, "measured")
    monkeypatch.setattr(profiling, "measure_ceilings", lambda threads: found)


def test_profile(strata, ceilings, tmp_path):
    plot = tmp_path / "roofline.svg"
    args = ["bench", "--shape", "tiny", "--format", "int4", "--prompt", 40, "--context", 8, "--repeats", 2]
    data = json.loads(strata(*args, "--batch", 3, "--profile", "--plot", plot, "--json").stdout)
    assert data["ceilings"]["flop_per_s"]["int8"] == 4e12
    for function, tokens in (("prefill", 40), ("decode", 1), ("batch", 3)):
        part = data[function]
        assert part["dims"]["n"] == tokens
        assert part["total_s"] == pytest.approx(sum(t["time_s"] for t in part["nodes"]))
        by_op = {t["name"]: t for t in part["by_op"]}
        products = by_op["quantized_matmul"]
        work = products["read_bytes"] + products["write_bytes"]
        compute_s = products["flop"] / 4e12
        assert products["floor_s"] >= max(compute_s, work / 1e10) * 0.999
    assert "quantized_matmul" in plot.read_text()
    page = tmp_path / "<roofline>.html"
    text = strata(*args, "--profile", "--plot", page).stdout
    assert "<title>&lt;roofline&gt;</title>" in page.read_text()
    assert "quantized_matmul" in page.read_text()
    assert "prefill · n = 40" in text
    assert "decode · n = 1" in text
    assert "by op" in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--plot", "x.svg"], "--plot: expected --profile with it"),
        (["--profile", "--peers"], "--profile: expected no --peers with it"),
        (["--only", "torch"], "--only: expected --peers with it"),
        (["--batch", "0"], "--batch: got 0; expected at least 1"),
        (["--repeats", "0"], "--repeats: got 0; expected at least 1"),
    ],
)
def test_mistakes(strata, args, message):
    result = strata("bench", "--shape", "tiny", *args)
    assert result.exit_code == 2
    assert message in result.stderr
