"""Models as work: amounts against closed formulas and against the graph's own figures."""

import pytest

from strata.core.dims import Dim, evaluate, product
from strata.core.errors import UserError
from strata.graph.nodes import Function, Module
from strata.graph.stats import function_stats, node_stats
from strata.graph.text import print_function
from strata.graph.workload import ValueKind, Work, Workload
from strata.graph.works import Phase, function_workload
from strata.models import ModelConfig, build, parse_config, shape_config
from strata.models.workload import model_workload
from strata.passes import run_passes

NAMES = ("gpt2-124m", "llama-2-7b", "llama-3-70b", "tinyllama-1.1b", "qwen2.5-0.5b")
LENGTHS = (1, 5, 128, 1000)


def at(dim: Dim, length: int) -> int:
    return evaluate(dim, {"L": length})


def total(dims: list[Dim], length: int) -> int:
    return sum(at(d, length) for d in dims)


def macs(workload: Workload, length: int) -> int:
    return total([w.contraction.macs for w in workload.works if w.contraction is not None], length)


def expected_macs(c: ModelConfig, tokens: int, pairs: int, sequences: int) -> int:
    """Textbook: projections and feed-forward per token, two products per pair of tokens, head per text."""
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    ups = 1 if c.architecture.startswith("GPT2") else 2
    per_token = c.hidden_size * (2 * q + 2 * kv) + (1 + ups) * c.hidden_size * c.intermediate_size
    head = sequences * c.hidden_size * c.vocab_size
    return c.num_layers * (tokens * per_token + 2 * pairs * q) + head


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [1, 3])
def test_multiply_adds_are_those_of_the_formula(name: str, batch: int) -> None:
    config = shape_config(name)
    prefill, decode = (model_workload(config, phase, batch) for phase in ("prefill", "decode"))
    for n in LENGTHS:
        pairs = batch * n * (n + 1) // 2
        if batch * config.num_heads % 2 == 0:
            assert macs(prefill, n) == expected_macs(config, batch * n, pairs, batch)
        assert macs(decode, n) == expected_macs(config, batch, batch * (n + 1), batch)


def test_llama_2_7b_at_1024() -> None:
    work = model_workload(shape_config("llama-2-7b"))
    # 6.476e9 weights that multiply every token, 32 layers of causal attention, the head once
    assert macs(work, 1024) == 6_476_005_376 * 1024 + 32 * 4096 * 1024 * 1025 + 4096 * 32000


@pytest.mark.parametrize("name", ["tiny", "gpt2-124m", "qwen2.5-0.5b"])
@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("granularity", ["ops", "kernels"])
def test_flop_is_that_of_the_graph(name: str, phase: Phase, granularity: str) -> None:
    """Casts are no arithmetic, and the graph's attention is an upper bound without the softmax."""
    config, batch = shape_config(name), 2
    workload = model_workload(config, phase, batch, granularity=granularity)
    function = build(config, "f16", max_batch=batch).module[phase.value]
    for n in (1, 7, 100):
        tokens, context = (batch * n, n) if phase is Phase.PREFILL else (batch, n + 1)
        env = {"n": tokens, "num_seqs": batch, "max_context": context}
        wanted = function_stats(function).at(env).flop
        assert isinstance(wanted, int)
        wanted -= sum(evaluate(node_stats(x).flop, env) for x in function.nodes if x.op == "cast")
        pairs = batch * config.num_heads * (n * (n + 1) // 2 if phase is Phase.PREFILL else context)
        full = batch * config.num_heads * (n * n if phase is Phase.PREFILL else context)
        wanted += config.num_layers * (5 * pairs - 4 * config.head_dim * (full - pairs))
        assert total([w.flop for w in workload.works], n) == wanted


@pytest.mark.parametrize("format", ["f32", "f16", "int8", "int4", "mixed", "int4:group=64,asymmetric"])
@pytest.mark.parametrize("granularity", ["ops", "kernels"])
def test_weights_are_as_many_bytes_as_the_model(format: str, granularity: str) -> None:
    for name in ("tiny", "gpt2-124m") if "64" not in format else ("gpt2-124m",):
        config = shape_config(name)
        workload = model_workload(config, "decode", 1, format, granularity=granularity)
        weights = [v for v in workload.values if v.kind is ValueKind.WEIGHT]
        got = sum(at(v.elems, 1) * v.bits / 8 for v in weights)
        params = build(config, format).module.params.values()
        wanted = sum(at(product(t.shape), 1) * t.dtype.bits / 8 for t in params)
        assert got == pytest.approx(wanted, rel=1e-12)
        assert len({v.name for v in weights}) == len(weights)


def test_int4_takes_four_and_a_half_bits() -> None:
    workload = model_workload(shape_config("tiny"), format="int4")
    bits = {v.name: v.bits for v in workload.values if v.kind is ValueKind.WEIGHT}
    assert bits["model.layers.0.mlp.down_proj.weight"] == 4.5
    assert bits["model.layers.0.input_layernorm.weight"] == 32


def named(workload: Workload, name: str) -> Work:
    return next(w for w in workload.works if w.name == name)


def reads(workload: Workload, work: Work, length: int) -> dict[str, float]:
    """Bytes that a work reads of each value."""
    return {
        workload.values[k].name: at(r, length) * workload.values[k].bits / 8
        for k, r in zip(work.inputs, work.reads, strict=True)
    }


@pytest.mark.parametrize(("kv_dtype", "bytes_per_head"), [("f16", 128), ("int8", 64 + 4), ("f32", 256)])
@pytest.mark.parametrize("granularity", ["ops", "kernels"])
def test_decode_reads_the_cache_once_per_kv_head(
    kv_dtype: str, bytes_per_head: int, granularity: str
) -> None:
    config, batch, n = shape_config("tinyllama-1.1b"), 3, 77  # 32 heads share 4 kv heads of 64
    workload = model_workload(config, "decode", batch, kv_dtype=kv_dtype, granularity=granularity)
    states = [v for v in workload.values if v.kind is ValueKind.STATE]
    assert len(states) == 2 * config.num_layers
    for value in states:
        assert at(value.elems, n) * value.bits / 8 == batch * n * 4 * bytes_per_head
    kernel = granularity == "kernels"
    work = named(workload, "model.layers.5.self_attn." + ("paged_attention" if kernel else "scores"))
    got = reads(workload, work, n)
    assert got["cache.5.keys"] == batch * n * 4 * bytes_per_head
    assert got["model.layers.5.self_attn.kv_append.keys"] == batch * 4 * bytes_per_head
    assert ("cache.5.values" in got) == kernel


def test_prefill_has_no_state_and_leaves_the_cache() -> None:
    config = shape_config("tiny")
    workload = model_workload(config, "prefill", 2)
    assert not [v for v in workload.values if v.kind is ValueKind.STATE]
    left = [workload.values[k] for k in workload.outputs]
    assert [v.name for v in left if v.name.endswith((".keys", ".values"))] == [
        f"model.layers.{i}.self_attn.kv_append.{part}" for i in range(2) for part in ("keys", "values")
    ]
    assert [v.shape for v in left if v.name == "lm_head"] == [(2, 512)]


def test_scores_above_the_diagonal_are_no_work() -> None:
    workload = model_workload(shape_config("tinyllama-1.1b"), batch=2)
    product_ = named(workload, "model.layers.0.self_attn.scores").contraction
    assert product_ is not None
    assert (product_.batch, str(product_.rows), str(product_.cols), product_.depth) == (8, "8*L", "L", 64)
    for n in LENGTHS:
        assert at(product_.macs, n) == 2 * 32 * 64 * n * (n + 1) // 2
        assert at(product_.macs + product_.skipped, n) == 2 * 32 * 64 * n * n
        soft = named(workload, "model.layers.0.self_attn.softmax")
        assert at(soft.reads[0], n) == 2 * 32 * n * (n + 1) // 2


def test_one_odd_head_counts_all_scores() -> None:
    data = {
        "architectures": ["GPT2LMHeadModel"],
        **{"vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 64},
    }
    workload = model_workload(parse_config(data))
    product_ = named(workload, "transformer.h.0.attn.scores").contraction
    assert product_ is not None
    assert product_.skipped == 0


def test_look_ups_read_their_rows_only() -> None:
    workload = model_workload(shape_config("gpt2-124m"))
    assert reads(workload, named(workload, "transformer.wte"), 10) == {
        "transformer.wte.weight": 10 * 768 * 2,
        "ids": 40,
    }
    assert reads(workload, named(workload, "transformer.wpe"), 10)["positions"] == 40
    head = reads(workload, named(workload, "lm_head"), 10)  # one row of hidden states
    assert head == {"transformer.ln_f": 768 * 2, "transformer.wte.weight": 50257 * 768 * 2}


def test_parts_of_a_value_are_read_as_parts() -> None:
    workload = model_workload(shape_config("tiny"))
    got = reads(workload, named(workload, "model.layers.1.mlp.silu"), 3)
    assert got == {"model.layers.1.mlp.gate_up_proj": 3 * 160 * 4}
    fused = model_workload(shape_config("tiny"), granularity="kernels")
    got = reads(fused, named(fused, "model.layers.1.mlp.down_proj.mul"), 3)  # with the cast of down_proj
    assert got == {"model.layers.1.mlp.gate_up_proj": 3 * 320 * 4}


def test_results_have_the_bits_that_their_readers_ask_for() -> None:
    config = shape_config("tiny")
    bits = {v.name: v.bits for v in model_workload(config).values}
    assert bits["model.layers.0.mlp.mul"] == 16  # down_proj multiplies f16
    assert bits["model.layers.0.add"] == 32
    assert bits["lm_head"] == 32
    half = model_workload(config, activations="f16", kv_dtype="f32")
    results = {v.name: v.bits for v in half.values if v.kind is ValueKind.RESULT}
    assert results.pop("prefill.argmax") == 32  # a token, no float
    assert {bits for name, bits in results.items() if "kv_append" not in name} == {16}
    assert {v.bits for v in half.values if "kv_append" in v.name} == {32}


def test_layers_and_names() -> None:
    workload = model_workload(shape_config("llama-2-7b"))
    assert {w.layer for w in workload.works} == {None, *range(32)}
    assert named(workload, "model.layers.31.self_attn.softmax").layer == 31
    assert len({w.name for w in workload.works}) == len(workload.works)
    assert len({v.name for v in workload.values}) == len(workload.values)
    assert sum(w.contraction is not None for w in workload.works) == 32 * 6 + 1
    assert workload.name == "model prefill"


def test_kernels_are_the_launches_of_the_compiler() -> None:
    config = shape_config("tiny")
    workload = model_workload(config, "decode", granularity="kernels")
    module = run_passes("default", Module((build(config, "f16").module["decode"],)))
    launches = [n for n in module["decode"].nodes if n.op == "fused"]
    assert len(workload.works) == len(launches)
    assert {w.op for w in workload.works} == {
        *("take", "rms_norm", "matmul", "rope", "kv_append", "paged_attention", "mul"),
        *("last_tokens", "argmax"),
    }


def test_ranges_are_what_the_model_allows() -> None:
    config = shape_config("gpt2-124m")
    assert [(d.name, d.lo, d.hi) for d in model_workload(config).dims] == [("L", 1, 1024)]
    assert [d.hi for d in model_workload(config, "decode").dims] == [1023]
    assert [d.hi for d in model_workload(config, max_context=131072).dims] == [131072]


def test_graph_stays_and_nothing_carries_over() -> None:
    config = shape_config("tiny")
    module = run_passes("default", build(config, "int4").module)
    before = print_function(module["decode"])
    first = function_workload(module["decode"], "tiny", phase=Phase.DECODE)
    assert function_workload(module["decode"], "tiny", phase=Phase.DECODE) == first
    assert print_function(module["decode"]) == before
    assert model_workload(config) == model_workload(config)


def test_bad_requests() -> None:
    config = shape_config("tiny")
    with pytest.raises(UserError, match="phase: got 'fill'; expected one of prefill, decode"):
        model_workload(config, "fill")
    with pytest.raises(UserError, match=r"model: got a batch of 0; expected 1\.\.65536 sequences"):
        model_workload(config, batch=0)
    with pytest.raises(UserError, match=r"got a context of 0 tokens; expected 1\.\.16777216"):
        model_workload(config, max_context=0)
    with pytest.raises(UserError, match="got at most 0 tokens; expected at least 1"):
        model_workload(config, "decode", max_context=1)


def test_every_function_of_every_shape_is_work() -> None:
    for name in (*NAMES, "tiny", "llama-3.2-1b"):
        for phase in Phase:
            function: Function = build(shape_config(name), "f16").module[phase.value]
            assert function_workload(function, name, phase=phase, max_length=64).works
