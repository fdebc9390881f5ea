"""config.json: what is read, and that every mistake is a clear error."""

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import hf_models
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.core.dtypes import bf16
from strata.core.errors import UnsupportedError, UserError
from strata.frontend.nn.rope import RopeType
from strata.models import ARCHITECTURES, SHAPES, build, parse_config, read_config
from strata.models.config import Activation, Positions
from strata.models.fields import Fields, parse_object, read_object
from strata.models.registry import ReadOptions

LLAMA: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], **hf_models.ARCHITECTURES["llama"][1]}
QWEN2: dict[str, Any] = {**LLAMA, "architectures": ["Qwen2ForCausalLM"]}
MISTRAL: dict[str, Any] = {**LLAMA, "architectures": ["MistralForCausalLM"]}
GPT2: dict[str, Any] = {"architectures": ["GPT2LMHeadModel"], **hf_models.ARCHITECTURES["gpt2"][1]}


def test_llama_values() -> None:
    config = parse_config({**LLAMA, "dtype": "bfloat16", "eos_token_id": [0, 7]})
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert config.dtype is bf16
    assert config.eos_token_ids == (0, 7)
    assert config.positions is Positions.ROTARY
    assert not config.qkv_bias
    assert config.scores_scale(1) == 0.25


def test_keys_of_older_transformers() -> None:
    old = {
        **LLAMA,
        "torch_dtype": "bfloat16",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2},
    }
    config = parse_config(old)
    assert config.dtype is bf16
    assert config.rope_theta == 5e5
    assert (config.rope_scaling.type, config.rope_scaling.factor) == (RopeType.LINEAR, 2.0)


def test_model_type_stands_in_for_architectures() -> None:
    data = {key: value for key, value in QWEN2.items() if key != "architectures"}
    assert parse_config({**data, "model_type": "qwen2"}).qkv_bias


def test_gpt2_values() -> None:
    config = parse_config({**GPT2, "scale_attn_by_inverse_layer_idx": True})
    assert config.positions is Positions.LEARNED
    assert config.tie_embeddings
    assert config.intermediate_size == 4 * 48
    assert config.activation is Activation.GELU_NEW
    assert config.scores_scale(1) == pytest.approx(16**-0.5 / 2)


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read_config(tmp_path).eos_token_ids == (0,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 5]}')
    assert read_config(tmp_path).eos_token_ids == (3, 5)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 320]}')
    with pytest.raises(UserError, match=r"generation_config.json: eos_token_id: got \[3, 320\].*0\.\.319"):
        read_config(tmp_path)


def test_sliding_windows() -> None:
    # Absent means 4096 tokens for Mistral, null means none.
    assert parse_config({**MISTRAL, "sliding_window": None}).max_context == 512
    assert parse_config(MISTRAL).max_context == 512
    long = {**MISTRAL, "max_position_embeddings": 8192}
    with pytest.raises(
        UnsupportedError, match=r"sliding_window is 4096 tokens and the context 8192.*max_context=4096"
    ):
        parse_config(long)
    assert parse_config(long, options=ReadOptions(max_context=4096)).max_context == 4096
    # Qwen slides only when told to, and only in some layers.
    assert parse_config({**QWEN2, "sliding_window": 16}).max_context == 512
    some = {**QWEN2, "sliding_window": 16, "use_sliding_window": True}
    assert parse_config({**some, "max_window_layers": 2}).max_context == 512
    with pytest.raises(UnsupportedError, match="sliding_window is 16"):
        parse_config({**some, "max_window_layers": 1})
    assert parse_config({**some, "layer_types": ["full_attention"] * 2}).max_context == 512
    with pytest.raises(UnsupportedError, match="sliding_window is 16"):
        parse_config({**some, "layer_types": ["full_attention", "sliding_attention"]})


ERRORS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (LLAMA, {"vocab_size": None}, r"config.json: vocab_size is missing; expected an integer in 1\.\."),
    (LLAMA, {"vocab_size": "many"}, r"vocab_size: got 'many' \(str\); expected an integer"),
    (LLAMA, {"vocab_size": 320.0}, r"vocab_size: got 320.0 \(float\)"),
    (LLAMA, {"hidden_size": True}, r"hidden_size: got True \(bool\)"),
    (LLAMA, {"hidden_size": 0}, r"hidden_size: got 0 \(int\); expected an integer in 1\.\."),
    (LLAMA, {"num_hidden_layers": 10**9}, r"num_hidden_layers: got 1000000000"),
    (LLAMA, {"num_key_value_heads": 3}, "num_attention_heads 4 and num_key_value_heads 3.*multiple"),
    (LLAMA, {"hidden_size": 66}, "hidden size 66 and num_attention_heads 4 without head_dim"),
    (
        LLAMA,
        {"hidden_size": 1 << 20, "num_attention_heads": 2},
        "524288 elements per head; expected at most 4096",
    ),
    (LLAMA, {"head_dim": 15}, "15 elements per head; rotary embedding needs an even number"),
    (LLAMA, {"rms_norm_eps": "small"}, "rms_norm_eps: got 'small'.*expected a number in 0..1"),
    (LLAMA, {"rms_norm_eps": float("nan")}, r"rms_norm_eps: got nan \(float\)"),
    (LLAMA, {"tie_word_embeddings": 1}, r"tie_word_embeddings: got 1 \(int\); expected true or false"),
    (LLAMA, {"hidden_act": 3}, "hidden_act: got 3.*expected a string"),
    (LLAMA, {"hidden_act": "mish"}, "hidden_act: got 'mish'; Strata has .*silu"),
    (LLAMA, {"dtype": "int8"}, "dtype: got 'int8'.*bfloat16"),
    (LLAMA, {"torch_dtype": "float8_e4m3fn"}, "torch_dtype: got 'float8_e4m3fn'"),
    (LLAMA, {"eos_token_id": "</s>"}, "eos_token_id: got '</s>'.*a token id"),
    (LLAMA, {"eos_token_id": 320}, r"eos_token_id: got 320.*in 0\.\.319"),
    (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config: quant_method is missing"),
    (
        LLAMA,
        {"architectures": ["BertModel"]},
        "got architecture 'BertModel'; Strata builds .*LlamaForCausalLM",
    ),
    (LLAMA, {"architectures": "Llama"}, "architectures: got 'Llama'.*a list of strings"),
    (LLAMA, {"architectures": None}, "architectures and model_type are missing"),
    (LLAMA, {"architectures": [], "model_type": "bert"}, "got model_type 'bert'; Strata builds"),
    (LLAMA, {"rope_scaling": [1]}, r"rope_scaling: got \[1\] \(list\); expected an object"),
    (
        LLAMA,
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "type: got 'dynamic'; Strata has default, linear",
    ),
    (LLAMA, {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
    (LLAMA, {"rope_scaling": {"type": "linear", "factor": -1}}, "factor: got -1.*a number in 0.001"),
    (LLAMA, {"rope_theta": 0}, "rope_theta: got 0"),
    (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; Strata rotates whole heads only"),
    (
        LLAMA,
        {
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 4.0,
                "high_freq_factor": 1.0,
            }
        },
        "low_freq_factor 4 and high_freq_factor 1; expected low < high",
    ),
    (LLAMA, {"rope_theta": 1, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "expected more than 1"),
    (MISTRAL, {"sliding_window": "wide"}, "sliding_window: got 'wide'"),
    (GPT2, {"n_embd": None}, "n_embd is missing"),
    (GPT2, {"n_head": 5}, "n_embd 48 and n_head 5; expected the first to be a multiple"),
    (GPT2, {"add_cross_attention": True}, "add_cross_attention is true"),
]


@pytest.mark.parametrize(("base", "change", "message"), ERRORS, ids=lambda x: str(x)[:40])
def test_errors_name_key_got_and_expected(base: dict, change: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse_config({**base, **change}, "m/config.json")
    assert str(caught.value).startswith("m/config.json")


@pytest.mark.parametrize("limit", [0, 513])
def test_context_limits(limit: int) -> None:
    with pytest.raises(UserError, match=rf"maximum context of {limit} tokens; expected 1\.\.512"):
        parse_config(LLAMA, options=ReadOptions(max_context=limit))


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no config.json; expected a Hugging Face model folder"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"\xff\xfe", "not valid JSON.*utf-8"),
        (b"{", "not valid JSON"),
        (b"[1]", "got a JSON list; expected an object"),
        (b'{"a": 1, "a": 2}', "key 'a' occurs twice"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not valid JSON"),
    ],
    ids=["encoding", "syntax", "list", "twice", "deep", "digits"],
)
def test_json_errors(text: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_object(text, "f.json")


def test_infinities_of_python_json_fail_the_range_check() -> None:
    data = parse_object(b'{"a": Infinity}', "f.json")
    with pytest.raises(UserError, match=r"f.json: a: got nan \(float\)"):
        Fields(data, "f.json").number("a", 0, 1)


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="cannot be read: No such file"):
        read_object(tmp_path / "none.json")
    (tmp_path / "big.json").write_text(" " * 100)
    monkeypatch.setattr("strata.models.fields.MAX_JSON_BYTES", 10)
    with pytest.raises(UserError, match="got 100 bytes of JSON; expected at most 10"):
        read_object(tmp_path / "big.json")


def test_choices() -> None:
    fields = Fields({"a": "x", "b": 3}, "f")
    assert "a" in fields
    assert "c" not in fields
    assert fields.object("c") is None
    assert fields.number("b", 0, 5) == 3.0


# --- fuzzing: whatever the file says, the answer is a config or a UserError ------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=0, max_value=600)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["silu", "llama3", "yarn", "linear", "default", "LlamaForCausalLM", "float16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=4,
)
KEYS = [
    *sorted({k for shape in (LLAMA, GPT2) for k in shape}),
    *("head_dim", "hidden_act", "rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor"),
    *("sliding_window", "use_sliding_window", "layer_types", "max_window_layers", "n_inner", "torch_dtype"),
    *("dtype", "attention_bias", "mlp_bias", "quantization_config", "model_type"),
    "original_max_position_embeddings",
]
ROPE_KEYS = (
    "rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor", "attention_factor",
    "original_max_position_embeddings", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate",
)  # fmt: skip
ROPE = st.dictionaries(st.sampled_from(ROPE_KEYS), JSON, max_size=6)


@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4),
    st.none() | ROPE,
    st.none() | st.integers(),
)
def test_fuzzed_configs(name: str, change: dict, rope: dict | None, limit: int | None) -> None:
    base = copy.deepcopy(GPT2 if name == "GPT2LMHeadModel" else LLAMA)
    base.update({"architectures": [name], **change})
    if rope is not None:
        base["rope_parameters"] = rope
    with contextlib.suppress(UserError):
        config = parse_config(base, options=ReadOptions(max_context=limit))
        if config.num_layers <= 8:
            build(config, "f32")


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_fuzzed_json(data: bytes) -> None:
    with contextlib.suppress(UserError):
        parse_config(parse_object(data, "f"))


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_named_shapes_are_valid(name: str) -> None:
    assert parse_config(SHAPES[name]).num_layers >= 2
