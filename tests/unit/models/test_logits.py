"""Every architecture against ``transformers``: the graph interpreter's logits on tiny random models."""

from pathlib import Path

import hf_models
import numpy as np
import pytest

from strata.graph import interp
from strata.graph.interp import CacheValue
from strata.graph.types import CacheType, RopeMode
from strata.models import Checkpoint, ModelDefinition, build, read_config

TOLERANCE = 2e-4  # on logits of the order of 1, f32
CASES = sorted(hf_models.ARCHITECTURES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: hf_models.make_model(root / name, name) for name in CASES}


class Runner:
    """A model folder, loaded, with an interpreter cache."""

    def __init__(
        self, folder: Path, page_size: int = 16, rope_mode: RopeMode = RopeMode.NORMAL, **options
    ) -> None:
        self.definition: ModelDefinition = build(
            read_config(folder, **options), "f32", page_size=page_size, rope_mode=rope_mode
        )
        self.params = dict(self.definition.load(Checkpoint(folder)))
        record = self.definition.cache_record
        type_ = self.definition.module["prefill"].inputs[1].type
        assert isinstance(type_, CacheType)
        assert (type_.rope.value, type_.rotary_dim) == (record.rope, record.rotary_dim)
        self.cache = CacheValue.empty(
            type_, 64, 512, inv_freq=record.rope_inv_freq, attention_factor=record.rope_attention_factor
        )

    def step(self, function: str, past: list[int], sequences: list[list[int]]) -> np.ndarray:
        ids = np.array([t for s in sequences for t in s], np.int32)
        view = self.cache.view(past, [len(s) for s in sequences])
        logits, *_, self.cache = interp.run(self.definition.module[function], [ids, view], self.params)
        return logits


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, hf_models.VOCAB_SIZE, count).tolist()


@pytest.mark.parametrize("name", CASES)
def test_score_equals_transformers(name: str, folders: dict[str, Path]) -> None:
    ids = tokens(150)
    expected = hf_models.reference_logits(folders[name], ids)
    got = Runner(folders[name]).step("score", [0], [ids])
    assert expected.std() > 0.5
    assert np.abs(got - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen3", "gpt2"])
def test_chunked_prefill_and_decode_equal_transformers(name: str, folders: dict[str, Path]) -> None:
    ids = tokens(40, seed=1)
    expected = hf_models.reference_logits(folders[name], ids)
    runner = Runner(folders[name], page_size=5)
    begin = 0
    for size in (1, 7, 16, 9):
        got = runner.step("prefill", [begin], [ids[begin : begin + size]])
        begin += size
        assert got.shape == (1, hf_models.VOCAB_SIZE)
        assert np.abs(got[0] - expected[begin - 1]).max() <= TOLERANCE
    for position in range(begin, len(ids)):
        got = runner.step("decode", [position], [[ids[position]]])
        assert np.abs(got[0] - expected[position]).max() <= TOLERANCE


@pytest.mark.parametrize("name", ["llama-head-dim", "gpt2"])
def test_batch_equals_sequences_alone(name: str, folders: dict[str, Path]) -> None:
    sequences = [tokens(11, 2), tokens(1, 3), tokens(20, 4)]
    runner = Runner(folders[name], page_size=4)
    got = runner.step("prefill", [0, 0, 0], sequences)
    following = runner.step("decode", [11, 1, 20], [[5], [6], [7]])
    for row, sequence in enumerate(sequences):
        expected = hf_models.reference_logits(folders[name], [*sequence, 5 + row])
        assert np.abs(got[row] - expected[-2]).max() <= TOLERANCE
        assert np.abs(following[row] - expected[-1]).max() <= TOLERANCE


def test_inline_rope_equals_transformers(folders: dict[str, Path]) -> None:
    ids = tokens(33)
    expected = hf_models.reference_logits(folders["llama3"], ids)
    got = Runner(folders["llama3"], rope_mode=RopeMode.INLINE).step("score", [0], [ids])
    assert np.abs(got - expected).max() <= TOLERANCE


def test_sliding_window_models_up_to_the_window(tmp_path: Path) -> None:
    folder = hf_models.make_model(tmp_path / "m", "mistral", sliding_window=64)
    ids = tokens(64)
    got = Runner(folder, max_context=64).step("score", [0], [ids])
    assert np.abs(got - hf_models.reference_logits(folder, ids)).max() <= TOLERANCE


@pytest.mark.parametrize(
    "overrides",
    [
        {"tie_word_embeddings": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False, "n_inner": 80, "activation_function": "gelu"},
    ],
)
def test_gpt2_variants(tmp_path: Path, overrides: dict) -> None:
    folder = hf_models.make_model(tmp_path / "m", "gpt2", **overrides)
    ids = tokens(30)
    got = Runner(folder).step("score", [0], [ids])
    assert np.abs(got - hf_models.reference_logits(folder, ids)).max() <= TOLERANCE


def test_sharded_checkpoint_in_bf16(tmp_path: Path) -> None:
    folder = hf_models.make_model(tmp_path / "m", "llama", dtype="bfloat16", max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    ids = tokens(20)
    got = Runner(folder).step("score", [0], [ids])
    assert np.abs(got - hf_models.reference_logits(folder, ids)).max() <= TOLERANCE
