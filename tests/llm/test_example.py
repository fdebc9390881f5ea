"""``examples/build_llama.py``: compiled functions against the graph interpreter, and the script."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tolerance import for_model

import strata
from strata.core.dtypes import dtype as dtype_of
from strata.engine.kv_cache import PagedKVCache
from strata.frontend import nn
from strata.graph import interp
from strata.graph.interp import CacheValue

EXAMPLE = Path(__file__).parents[2] / "examples" / "build_llama.py"
PROMPT = [1, 5, 9, 2, 6, 5, 3, 5]  # the script's own


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_llama_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_llama_example"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Interpreted:
    """The exported functions in the graph interpreter; called like a program with its cache."""

    def __init__(self, exported: nn.Exported, params: dict[str, np.ndarray], context: int) -> None:
        assert exported.cache is not None
        self.module, self.params = exported.module, params
        type_ = exported.module["decode"].inputs[1].type
        pages = -(-context // exported.cache.page_size)
        self.cache = CacheValue.empty(type_, pages, context, inv_freq=exported.cache.rope_inv_freq)

    def embed(self, ids: list[int]) -> np.ndarray:
        (hidden,) = interp.run(self.module["embed"], [np.array(ids, np.int32)], self.params)
        return hidden

    def run(self, function: str, hidden: np.ndarray, past: list[int], counts: list[int]) -> np.ndarray:
        view = self.cache.view(past, counts)
        logits, self.cache = interp.run(self.module[function], [hidden, view], self.params)
        return logits


def build(example: ModuleType, config: Any, dtype: str) -> tuple[nn.Exported, dict[str, np.ndarray]]:
    model = example.LlamaForCausalLM(config).to(dtype)
    exported = model.export(model.get_default_spec())
    return exported, dict(example.random_weights(exported.params))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_functions_equal_the_interpreter(example: ModuleType, dtype: str) -> None:
    config = example.LlamaConfig(
        hidden_size=72,
        intermediate_size=90,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=12,
        vocab_size=130,
        context_window_size=64,
        page_size=5,
    )
    exported, params = build(example, config, dtype)
    program = strata.compile(exported, params=params, num_threads=2)
    cache = PagedKVCache(exported.cache, num_pages=32, max_context=64, max_batch=4)
    expected = Interpreted(exported, params, 64)
    # Every activation is rounded to the format here, too: more roundings per layer than for_model counts,
    # but the same ones in both programs.
    bound = for_model(dtype_of(dtype), config.num_hidden_layers)["atol"]

    def step(function: str, hidden: np.ndarray, names: list[int], past: list[int], counts: list[int]) -> None:
        view = cache.begin_forward(names, counts)
        got = program[function](hidden, view)
        cache.end_forward()
        want = expected.run(function, hidden, past, counts)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=bound)

    ids = [7, 99, 129, 0, 3, 64, 5]
    hidden = program["embed"](np.array(ids, np.int32))
    np.testing.assert_array_equal(hidden, expected.embed(ids))
    hidden = hidden.copy()
    cache.add_sequence(0)
    step("prefill", hidden[None, :6], [0], [0], [6])
    step("decode", hidden[None, 6:], [0], [6], [1])
    # Several sequences begin afresh, one after the other in one tensor; then one token of each.
    cache.remove_sequence(0)
    for name in (1, 2):
        cache.add_sequence(name)
    step("batch_prefill", hidden[None], [1, 2], [0, 0], [5, 2])
    step("batch_decode", hidden[:2, None], [1, 2], [5, 2], [1, 1])


def test_script_prints_what_the_interpreter_computes(example: ModuleType) -> None:
    command = [sys.executable, str(EXAMPLE), "--hidden-size", "64", "--layers", "2", "--tokens", "8"]
    done = subprocess.run(
        [*command, "--dtype", "float32"], capture_output=True, text=True, timeout=100, check=True
    )
    assert "functions: embed, prefill, decode, batch_prefill, batch_decode, create_kv_cache" in done.stdout
    found = re.search(r"^tokens \[(.*)\]$", done.stdout, re.MULTILINE)
    assert found is not None
    got = [int(t) for t in found[1].split(",")]

    config = example.LlamaConfig(hidden_size=64, num_hidden_layers=2)
    exported, params = build(example, config, "float32")
    expected = Interpreted(exported, params, 32)
    logits = expected.run("prefill", expected.embed(PROMPT)[None], [0], [len(PROMPT)])
    tokens = [example.sample(logits)]
    while len(tokens) < 8:
        past = len(PROMPT) + len(tokens) - 1
        logits = expected.run("decode", expected.embed(tokens[-1:])[None], [past], [1])
        tokens.append(example.sample(logits))
    assert got == tokens
