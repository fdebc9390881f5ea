"""``examples/build_llama.py``: what it exports computes what ``transformers`` computes."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import hf_models
import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f16
from strata.frontend import nn
from strata.graph import interp
from strata.graph.interp import CacheValue

EXAMPLE = Path(__file__).parents[3] / "examples" / "build_llama.py"
TOLERANCE = 2e-4


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_llama", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_llama"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.make_model(tmp_path_factory.mktemp("m"), "llama")


@pytest.fixture(scope="module")
def exported(example: ModuleType) -> nn.Exported:
    values = hf_models.ARCHITECTURES["llama"][1]
    config = example.LlamaConfig(
        hidden_size=values["hidden_size"],
        intermediate_size=values["intermediate_size"],
        num_hidden_layers=values["num_hidden_layers"],
        num_attention_heads=values["num_attention_heads"],
        num_key_value_heads=values["num_key_value_heads"],
        head_dim=16,
        vocab_size=values["vocab_size"],
        page_size=4,
    )
    model = example.LlamaForCausalLM(config)
    return model.export(model.get_default_spec())


@pytest.fixture(scope="module")
def params(exported: nn.Exported, folder: Path) -> dict[str, np.ndarray]:
    """The folder's weights, fused as the example's modules are."""
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
    result = {}
    for name in exported.params:
        layer = name.split(".")[-2]
        names = [name.replace(layer, part) for part in parts.get(layer, (layer,))]
        result[name] = np.concatenate([weights[n] for n in names])
    return result


def test_prefill_and_decode(exported: nn.Exported, params: dict[str, np.ndarray], folder: Path) -> None:
    module, _ = exported
    ids = np.array([5, 17, 300, 42, 8, 99, 4], np.int32)
    expected = hf_models.reference_logits(folder, ids.tolist())
    assert exported.cache is not None
    (cache,) = interp.run(exported.module["create_kv_cache"], [])
    assert isinstance(cache, CacheValue)
    cache = CacheValue.empty(cache.type, 8, 32, inv_freq=exported.cache.rope_inv_freq)
    (hidden,) = interp.run(module["embed"], [ids], params)
    logits, cache = interp.run(module["prefill"], [hidden[None, :5], cache.view([0], [5])], params)
    assert logits.shape == (1, 1, 320)
    assert np.abs(logits[0, 0] - expected[4]).max() <= TOLERANCE
    for position in (5, 6):
        token = hidden[None, position : position + 1]
        logits, cache = interp.run(module["decode"], [token, cache.view([position], [1])], params)
        assert np.abs(logits[0, 0] - expected[position]).max() <= TOLERANCE


def test_batches(exported: nn.Exported, params: dict[str, np.ndarray], folder: Path) -> None:
    module, _ = exported
    prompts, following = [[5, 17, 300], [42, 8, 99, 4, 7]], [11, 12]
    assert exported.cache is not None
    type_ = module["decode"].inputs[1].type
    cache = CacheValue.empty(type_, 8, 32, inv_freq=exported.cache.rope_inv_freq)
    (hidden,) = interp.run(module["embed"], [np.concatenate(prompts).astype(np.int32)], params)
    first, cache = interp.run(module["batch_prefill"], [hidden[None], cache.view([0, 0], [3, 5])], params)
    (hidden,) = interp.run(module["embed"], [np.array(following, np.int32)], params)
    second, _ = interp.run(module["batch_decode"], [hidden[:, None], cache.view([3, 5], [1, 1])], params)
    assert first.shape == second.shape == (2, 1, 320)
    for row, prompt in enumerate(prompts):
        expected = hf_models.reference_logits(folder, [*prompt, following[row]])
        assert np.abs(first[row, 0] - expected[-2]).max() <= TOLERANCE
        assert np.abs(second[row, 0] - expected[-1]).max() <= TOLERANCE


def test_half_precision_throughout(example: ModuleType) -> None:
    model = example.LlamaForCausalLM(example.LlamaConfig()).to("float16")
    exported = model.export(model.get_default_spec())
    assert {p.dtype for p in exported.params.values()} == {f16}
    assert exported.cache is not None
    assert exported.cache.dtype == "f16"
    logits = exported.module["prefill"].outputs[0].tensor
    assert (logits.shape, logits.dtype.name) == ((1, 1, 1024), "f32")
    others = [n for n in exported.module["prefill"].nodes if n.op == "matmul" and n.name != "lm_head"]
    assert {n.tensor.dtype for n in others} == {f16}
    (seq_len,) = exported.module["prefill"].dims
    assert (seq_len, seq_len.hi) == (SymDim("seq_len"), 256)
    assert exported.functions["create_kv_cache"].param_mode is nn.ParamMode.NONE
    names = [f.name for f in exported.module.functions]
    assert names == ["embed", "prefill", "decode", "batch_prefill", "batch_decode", "create_kv_cache"]


def test_random_weights_fit(example: ModuleType, exported: nn.Exported) -> None:
    arrays = dict(example.random_weights(exported.params))
    assert {n: a.shape for n, a in arrays.items()} == {n: p.shape for n, p in exported.params.items()}
    assert example.sample(np.array([[[0.0, 2.0, 1.0]]])) == 1


def test_compiled_loop_generates_what_transformers_does(
    example: ModuleType, exported: nn.Exported, params: dict[str, np.ndarray], folder: Path
) -> None:
    import strata

    assert exported.cache is not None
    program = strata.compile(exported, params=params)
    cache = example.RuntimeKVCache(exported.cache, num_pages=16, max_context=64, max_batch=1)
    prompt = [5, 17, 300, 42, 8, 99, 4]
    tokens = example.generate(program, cache, prompt, 12)
    model = hf_models.reference_model(folder)
    for count, token in enumerate(tokens):
        assert token == hf_models.reference_logits(model, [*prompt, *tokens[:count]])[-1].argmax()
    cache.check_integrity()
    assert cache.num_free_pages == 16


def test_script(
    example: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        sys, "argv", ["build_llama.py", "--layers", "1", "--tokens", "3", "--dtype", "bfloat16"]
    )
    example.main()
    printed = capsys.readouterr().out
    assert "functions: embed, prefill, decode, batch_prefill, batch_decode, create_kv_cache" in printed
    assert "tokens/s" in printed
