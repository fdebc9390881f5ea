"""Compiling a folder to an artifact: how much memory it takes, and that the weights arrive."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  (gives NumPy its bfloat16)
import numpy as np
import pytest

from strata.compiler.api import Options, compile_definition, define
from strata.core.dtypes import dtype
from strata.loop.layout import parse_layout
from strata.models import read_config
from strata.runtime.artifact import open_artifact
from strata.runtime.safetensors_file import TensorShape, write_safetensors

# The tied embedding is 29 % of the weights, as in the smallest released models (GPT-2: 31 %).
HIDDEN, FFN, VOCAB, NUM_LAYERS, HEADS, KV_HEADS = 1024, 3072, 14336, 3, 16, 4
MOST_PER_WEIGHT_BYTE = 1.3
# Prints by how many bytes the largest resident size grew from after the imports to the end. (Not ru_maxrss:
# the kernel lets a new process inherit that of the one that started it.)
COMPILE = """
import re, sys
from pathlib import Path
from strata.compiler.api import Options, compile_model
peak = lambda: 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = peak()
compile_model(sys.argv[1], sys.argv[2], Options(sys.argv[3]))
print(peak() - before)
"""


def tensor_shapes() -> dict[str, tuple[int, ...]]:
    kv = HIDDEN * KV_HEADS // HEADS
    layer = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (kv, HIDDEN),
        "self_attn.v_proj": (kv, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
        "input_layernorm": (HIDDEN,),
        "post_attention_layernorm": (HIDDEN,),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, HIDDEN)}
    for index in range(NUM_LAYERS):
        shapes |= {f"model.layers.{index}.{name}.weight": shape for name, shape in layer.items()}
    return {**shapes, "model.norm.weight": (HIDDEN,)}


def fill(name: str, shape: tuple[int, ...], numpy_name: str) -> np.ndarray:
    """Cheap values that differ by tensor, row and column; exact in bf16."""
    seed = sum(name.encode())
    rows = np.arange(shape[0]) * 37 + seed
    values = rows if len(shape) == 1 else rows[:, None] + np.arange(shape[1], dtype=np.int32)
    return ((values % 255 - 127) / np.float32(64)).astype(np.dtype(numpy_name))


def make_folder(folder: Path, stored: str) -> Path:
    folder.mkdir()
    numpy_name = dtype(stored).numpy_name
    shapes = tensor_shapes()

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for name, shape in shapes.items():
            yield name, fill(name, shape, numpy_name)

    listed = [TensorShape(name, stored, shape) for name, shape in shapes.items()]
    write_safetensors(folder / "model.safetensors", listed, arrays())
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "dtype": numpy_name,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = make_folder(tmp_path_factory.mktemp("wide") / "model", "f32")
    yield folder
    shutil.rmtree(folder)  # pytest keeps temporary folders for a while, and this one is large


@pytest.mark.parametrize("format", ["f32", "bf16"])
def test_peak_memory_and_weights(format: str, folder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    if format != "f32":
        # The machine code takes the same memory for any size of model: beside these small weights it would
        # be a large part, so the second run finds it in the cache.
        options = Options(format)
        compile_definition(define(read_config(folder), options, folder.name), options)
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(folder), str(artifact), format],
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    weights_bytes = (artifact / "weights.safetensors").stat().st_size
    assert weights_bytes > 100e6
    assert int(done.stdout) < MOST_PER_WEIGHT_BYTE * weights_bytes

    opened = open_artifact(artifact)
    for record in opened.record.params:
        name, layout = record.name, parse_layout(record.layout)
        got = opened.params[name]
        if layout is not None:
            got = layout.unpack(got, record.logical_shape)
        parts = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
        last = name.split(".")[-2]
        sources = [name.replace(last, part) for part in parts.get(last, (last,))]
        want = np.concatenate([fill(s, tensor_shapes()[s], dtype(record.dtype).numpy_name) for s in sources])
        np.testing.assert_array_equal(got, want, err_msg=name)
    shutil.rmtree(artifact)
