"""Definitions: what is exported, random params, named shapes, hub ids."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, f16, f32, i32
from strata.core.errors import UserError
from strata.graph import interp
from strata.graph.interp import CacheValue
from strata.graph.types import NUM_SEQUENCES, CacheType, TensorType
from strata.models import SHAPES, ModelDefinition, build, locate, random_params, shape_config
from strata.models.hub import _download


def test_functions_of_a_model() -> None:
    definition = build(shape_config("tiny"), bf16, max_tokens=64, max_batch=4, model_name="tiny")
    assert [f.name for f in definition.module.functions] == ["prefill", "decode", "score"]
    n = SymDim("n")
    for function in definition.module.functions:
        ids, cache = function.inputs
        assert (ids.attrs["name"], ids.tensor.shape, ids.tensor.dtype.name) == ("ids", (n,), "i32")
        assert isinstance(cache.type, CacheType)
        assert (function.dims[0].lo, function.dims[0].hi) == (1, 64)
        logits, *best, out_cache = function.outputs
        rows = n if function.name == "score" else NUM_SEQUENCES
        assert [b.type for b in best] == ([] if function.name == "score" else [TensorType((rows,), i32)])
        assert logits.type == TensorType((rows, 512), f32)
        assert out_cache.op == "kv_append"
    assert definition.config == {
        "architecture": "LlamaForCausalLM",
        "model_name": "tiny",
        "format": "bf16",
        "vocab_size": 512,
        "max_context": 512,
        "max_tokens": 64,
        "max_batch": 4,
        "eos_token_ids": [],
        "bos_token_id": None,
    }
    assert definition.cache_record.dtype == "bf16"
    assert len(definition.cache_record.rope_inv_freq) == 8


def test_params_are_fused_and_named_after_modules() -> None:
    definition = build(shape_config("tiny"), "f16")
    params = definition.module.params
    assert list(params) == list(definition.sources)
    qkv = "model.layers.1.self_attn.qkv_proj.weight"
    assert params[qkv] == TensorType(((4 + 2 * 2) * 16, 64), f16)
    assert params["model.layers.0.mlp.gate_up_proj.weight"] == TensorType((2 * 160, 64), f16)
    assert params["model.norm.weight"] == TensorType((64,), f32)
    assert [name.split(".")[-2] for name, _ in definition.sources[qkv].tensors] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    for name, source in definition.sources.items():
        assert (source.shape, source.dtype) == (params[name].shape, params[name].dtype)


def test_nodes_are_named_after_modules() -> None:
    names = {n.name for n in build(shape_config("tiny"), "f32").module["decode"].nodes}
    assert {"model.layers.1.mlp.down_proj", "model.layers.0.self_attn", "lm_head", "model.norm"} <= names


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_every_shape_builds(name: str) -> None:
    definition = build(shape_config(name), "bf16")
    assert set(definition.sources) == set(definition.module.params)


def test_sizes_of_known_models() -> None:
    def count(name: str) -> int:
        return sum(int(np.prod(s.shape)) for s in build(shape_config(name), "bf16").sources.values())

    assert count("tinyllama-1.1b") == 1_100_048_384
    assert count("gpt2-124m") == 124_439_808
    assert count("llama-3.2-1b") == 1_235_814_400
    assert count("qwen2.5-0.5b") == 494_032_768


def test_build_limits() -> None:
    config = shape_config("tiny")
    with pytest.raises(UserError, match="format: got 'i8'; expected f32, bf16, f16, int4 or int8"):
        build(config, "i8")
    with pytest.raises(UserError, match="max_batch 16 and max_tokens 8; expected 1 <= batch <= tokens"):
        build(config, "f32", max_tokens=8, max_batch=16)
    with pytest.raises(UserError, match="kv_dtype: got 'i4'; expected one of f32, f16, bf16, int8"):
        build(config, "f32", kv_dtype="i4")
    with pytest.raises(UserError, match="page_size must be at least 1"):
        build(config, "f32", page_size=0)


def run_prefill(definition: ModelDefinition) -> np.ndarray:
    type_ = definition.module["prefill"].inputs[1].type
    assert isinstance(type_, CacheType)
    cache = CacheValue.empty(type_, 4, 64, inv_freq=definition.cache_record.rope_inv_freq)
    ids = np.arange(9, dtype=np.int32)
    logits, *_ = interp.run(
        definition.module["prefill"], [ids, cache.view([0], [9])], dict(random_params(definition))
    )
    return logits


def test_random_params_give_sensible_logits() -> None:
    definition = build(shape_config("tiny"), "f32")
    params, again = dict(random_params(definition, 1)), dict(random_params(definition, 1))
    other = dict(random_params(definition, 2))
    for name, source in definition.sources.items():
        assert params[name].shape == source.shape
        np.testing.assert_array_equal(params[name], again[name])
        assert not np.array_equal(params[name], other[name])
    logits = run_prefill(definition)
    assert 0.3 < logits.std() < 3.0


def test_formats_agree() -> None:
    """16-bit weights and KV move the logits by their rounding, not more."""
    exact = run_prefill(build(shape_config("tiny"), "f32"))
    for format, tolerance in (("f16", 0.02), ("bf16", 0.15)):
        got = run_prefill(build(shape_config("tiny"), format))
        assert got.dtype == np.float32
        assert 0 < np.abs(got - exact).max() < tolerance


def test_kv_dtypes_agree() -> None:
    """What the cache stores moves the logits by its rounding, not more."""
    exact = run_prefill(build(shape_config("tiny"), "f32"))
    for kv_dtype, stored, tolerance in (("f16", "f16", 0.01), ("bf16", "bf16", 0.1), ("int8", "i8", 0.1)):
        definition = build(shape_config("tiny"), "f32", kv_dtype=kv_dtype)
        assert definition.cache_record.dtype == stored
        assert 0 < np.abs(run_prefill(definition) - exact).max() < tolerance


def test_large_random_params_repeat_a_block() -> None:
    definition = build(shape_config("gpt2-124m"), "bf16")
    name, array = next(iter(random_params(definition)))
    assert name == "transformer.wte.weight"
    assert array.dtype == ml_dtypes.bfloat16
    assert not np.array_equal(array[0], array[1366])


def test_unknown_shape() -> None:
    with pytest.raises(UserError, match=r"no shape 'tinyllama'; did you mean 'tinyllama-1.1b'"):
        shape_config("tinyllama")


# --- where models are -----------------------------------------------------------------------------


def test_folders_are_taken_as_they_are(tmp_path: Path) -> None:
    assert locate(tmp_path) == tmp_path
    assert locate(str(tmp_path)) == tmp_path


def test_things_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file; expected a model folder"):
        locate(tmp_path / "file")
    for name in ("./none", "none", "/none/x", "a/b/c"):
        with pytest.raises(UserError, match="no such folder; expected a model folder, or a hub id"):
            locate(name)


HUB_ERRORS = [
    ("LocalEntryNotFoundError", "no folder of this name, and no network"),
    ("OfflineModeIsEnabled", "no folder of this name, and no network"),
    ("GatedRepoError", "the hub asks for a login"),
    ("RepositoryNotFoundError", "the hub has no such model"),
    ("HfHubHTTPError", "the hub refused the download"),
    ("HFValidationError", "no hub id"),
    ("ConnectionError", "no folder of this name, and no network"),
]


@pytest.mark.parametrize(("error", "message"), HUB_ERRORS)
def test_hub_errors(monkeypatch: pytest.MonkeyPatch, error: str, message: str) -> None:
    from huggingface_hub import errors

    kind = getattr(errors, error, ConnectionError)

    def fail(*args: object, **options: object) -> str:
        raise kind.__new__(kind, "x")  # without the HTTP response that its constructor asks for

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(UserError, match=f"org/name: .*{message}"):
        locate("org/name")


def test_hub_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, allow_patterns: str(tmp_path))
    assert _download("org/name") == tmp_path
