"""Machine code against ``transformers``: every architecture in several shapes, prompts of 1 to 200 tokens,
then 64 tokens decoded greedily.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hf_models
import numpy as np
import pytest
import small_models
from small_models import BY_ID, CASES, NUM_DECODED, PROMPT_LENGTHS, Case, Session, padded_logits, tokens
from tolerance import for_model

import strata
from strata.core.dtypes import dtype
from strata.engine.generate import LanguageModel

F32_BOUND = 2e-4  # largest difference of logits, whose rms is about 1
TEXT = "def read_lines(path):\n    with open(path) as file:\n        return [x.strip() for x in file]\n" * 2


def load(folder: Path, format: str | None = "f32", **options: Any) -> LanguageModel:
    return strata.load(folder, format, 2, **{"prefill_chunk": 256, **options})


def prefill_and_decode(model: LanguageModel, vocab_size: int) -> tuple[list[list[int]], list[np.ndarray]]:
    """For each prompt length: all tokens that the model saw, and its logits ``[NUM_DECODED + 1, vocab]``."""
    session = Session(model.program)
    seen, logits = [], []
    for name, length in enumerate(PROMPT_LENGTHS):
        prompt = tokens(length, vocab_size, seed=name)
        chosen, rows = session.greedy(session.step("prefill", {name: prompt})[0], NUM_DECODED, name)
        seen.append(prompt + chosen[:-1])
        logits.append(rows)
    return seen, logits


def differences(got: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([(g - e[-len(g) :]).ravel() for g, e in zip(got, expected, strict=True)])


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_f32(case: Case, tmp_path: Path) -> None:
    folder = case.make(tmp_path / "model")
    reference = hf_models.reference_model(folder)
    model = load(folder)
    seen, logits = prefill_and_decode(model, model.vocab_size)
    expected = padded_logits(reference, seen)
    assert 0.5 < rms(expected[-1]) < 2.0  # the bound means something
    assert np.abs(differences(logits, expected)).max() <= F32_BOUND
    # Each token is what transformers chooses after the same tokens: both generate the same text.
    for ids, rows, want in zip(seen, logits, expected, strict=True):
        np.testing.assert_array_equal(rows.argmax(1), want[-len(rows) :].argmax(1))
        np.testing.assert_array_equal(rows[:-1].argmax(1), ids[-NUM_DECODED:])
    ids = seen[-1]
    assert np.abs(model.logits(ids) - expected[-1]).max() <= F32_BOUND
    # The engine runs all prompts at once, in batches and chunks of its own choice.
    prompts = [s[:-NUM_DECODED] for s in seen]
    results = model.generate(prompts, max_tokens=NUM_DECODED, ignore_eos=True)
    for result, ids in zip(results, seen, strict=True):
        assert list(result.token_ids) == ids[-NUM_DECODED:]


@pytest.mark.parametrize("format", ["bf16", "f16"])
@pytest.mark.parametrize("case", ["llama-mqa20-tied", "llama-odd", "qwen2-mha80", "qwen3", "gpt2-20"])
def test_16_bit_formats(case: str, format: str, tmp_path: Path) -> None:
    folder = BY_ID[case].make(tmp_path / "model")
    reference = small_models.round_weights(hf_models.reference_model(folder), format)
    model = load(folder, format)
    seen, logits = prefill_and_decode(model, model.vocab_size)
    expected = padded_logits(reference, seen)
    assert model.program.cache is not None
    bound = for_model(dtype(format), model.program.cache.num_layers, rms(expected[-1]))["atol"]
    error = differences(logits, expected)
    assert np.abs(error).max() <= bound
    assert rms(error) <= bound / 6  # the bound is six standard deviations
    assert np.abs(model.logits(seen[-1]) - expected[-1]).max() <= bound


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_folder_in_its_own_format(name: str, tmp_path: Path) -> None:
    folder = hf_models.make_model(tmp_path / "model", "llama", dtype=name, max_shard_size="60KB")
    model = load(folder, None)
    format = {"bfloat16": "bf16", "float16": "f16"}[name]
    assert model.config["format"] == format
    ids = tokens(100)
    expected = hf_models.reference_logits(folder, ids)
    bound = for_model(dtype(format), 2, rms(expected))["atol"]
    assert np.abs(model.logits(ids) - expected).max() <= bound
    # Widening to f32 loses nothing.
    assert np.abs(load(folder, "f32").logits(ids) - expected).max() <= F32_BOUND


@pytest.mark.parametrize("case", ["llama", "gpt2-tied"])
def test_perplexity_equals_torch(case: str, tmp_path: Path) -> None:
    import torch

    folder = BY_ID[case].make(tmp_path / "model")
    reference = hf_models.reference_model(folder)
    model = load(folder)
    assert model.tokenizer is not None
    ids = torch.tensor([model.tokenizer.encode(TEXT)])
    count = ids.shape[1]

    def nll(begin: int, first: int, end: int) -> float:
        """Of tokens ``first .. end - 1``, seen from ``begin``."""
        with torch.no_grad():
            logits = reference(ids[:, begin:end]).logits[0].double()
        rows = logits[first - begin - 1 : -1]
        return float(torch.nn.functional.cross_entropy(rows, ids[0, first:end], reduction="sum"))

    whole = np.exp(nll(0, 1, count) / (count - 1))
    assert model.perplexity(TEXT) == pytest.approx(whole, rel=1e-5)
    # Windows of 32 tokens that begin every 16: each predicts what the one before did not.
    total, done = 0.0, 1
    for begin in range(0, count - 1, 16):
        end = min(begin + 33, count)
        if end > done:
            total += nll(begin, done, end)
            done = end
    assert model.perplexity(TEXT, window=32, stride=16) == pytest.approx(
        np.exp(total / (count - 1)), rel=1e-5
    )
