"""Codes in the packings of other tools, built here from known codes, come back as they are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantized_folders import (
    GPT2,
    LLAMA,
    awq_tensors,
    float_tensors,
    gptq_tensors,
    mlc_tensors,
    random_matrix,
    write_folder,
)
from safetensors.numpy import save_file

from strata.core.errors import UnsupportedError, UserError
from strata.core.weight_format import INT4, INT8, FormatChoice, WeightFormat, parse_format_choice
from strata.models import Checkpoint, build, read_config
from strata.models.quantize.codes import QuantizedMatrix, dequantize_matrix
from strata.models.quantize.packed import pack, unpack

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
MLC = {"quant_method": "mlc", "format": "q4f16_1"}
ASYMMETRIC = WeightFormat(4, 32, True)
STEM = "model.layers.0.mlp.down_proj"

Tensors = dict[str, np.ndarray]


def checkpoint_of(folder: Path, config: dict[str, Any], tensors: Tensors) -> Checkpoint:
    return Checkpoint(write_folder(folder, {}, tensors, quantization_config=config))


def assert_same(got: QuantizedMatrix, expected: QuantizedMatrix) -> None:
    assert got.format == expected.format
    for (name, a), (_, b) in zip(got.arrays(), expected.arrays(), strict=True):
        assert a.dtype == b.dtype, name
        np.testing.assert_array_equal(a, b, err_msg=name)


@given(st.integers(1, 5), st.integers(1, 9), st.sampled_from([4, 8]), st.integers(0, 1 << 30))
def test_bytes_round_trip(n: int, pairs: int, bits: int, seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << bits, (n, 2 * pairs), np.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (n, pairs * bits // 4)
    np.testing.assert_array_equal(unpack(packed, bits).view(np.uint8), codes)
    if bits == 4:
        assert packed[0, 0] == codes[0, 0] + 16 * codes[0, 1]


# --- gptq -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "change", "offset"),
    [
        (INT4, {}, 1),
        (INT4, {"checkpoint_format": "gptq_v2"}, 0),
        (ASYMMETRIC, {"sym": False}, 1),
        (WeightFormat(4, 0), {"group_size": -1}, 1),
        (WeightFormat(4, 64), {"group_size": 64}, 1),
        (WeightFormat(8, 32), {"bits": 8}, 1),
        (WeightFormat(8, 32, True), {"bits": 8, "sym": False}, 1),
    ],
    ids=str,
)
def test_gptq(tmp_path: Path, format: WeightFormat, change: dict[str, Any], offset: int) -> None:
    matrix = random_matrix(format, 16, 128)
    tensors = gptq_tensors(STEM, matrix, offset)
    bias = {f"{STEM}.bias": np.zeros(16, np.float16), "norm.weight": np.ones(4, np.float32)}
    checkpoint = checkpoint_of(tmp_path, {**GPTQ, **change}, {**tensors, **bias})
    name = f"{STEM}.weight"
    assert set(checkpoint) == {name, f"{STEM}.bias", "norm.weight"}
    assert checkpoint.format(name) == format
    assert checkpoint.format("norm.weight") is None
    assert checkpoint.entry(name).shape == (16, 128)
    assert checkpoint.is_void(f"{STEM}.bias")
    assert not checkpoint.is_void("norm.weight")
    assert_same(checkpoint.codes(name), matrix)
    np.testing.assert_array_equal(checkpoint[name], dequantize_matrix(matrix))
    checkpoint.release(name)
    with pytest.raises(UserError, match=r"norm\.weight is not quantized; it has no codes"):
        checkpoint.codes("norm.weight")


def test_one_gptq_word(tmp_path: Path) -> None:
    """The first word of a column holds its first eight codes, the first in the lowest bits."""
    matrix = random_matrix(INT4, 8, 32)
    tensors = gptq_tensors("w", matrix)
    word = int(tensors["w.qweight"].view(np.uint32)[1, 3])
    assert [word >> 4 * j & 15 for j in range(8)] == matrix.codes[3, 8:16].astype(int).tolist()
    assert (tensors["w.qzeros"].view(np.uint32) == 0x77777777).all()


def changed(tensors: Tensors, **changes: Any) -> Tensors:
    """The weight ``w`` with other tensors; ``None`` = without."""
    result = dict(tensors)
    for key, value in changes.items():
        result.pop(f"w.{key}", None)
        if value is not None:
            result[f"w.{key}"] = value(tensors[f"w.{key}"]) if callable(value) else value
    return result


Change = Callable[[np.ndarray], np.ndarray]


def shuffled(g_idx: np.ndarray) -> np.ndarray:
    return g_idx[::-1].copy()


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({"scales": None}, {}, r"w: the checkpoint has no tensor 'w\.scales'; expected it \(gptq with int4"),
        (
            {"qweight": lambda q: q.astype(np.float32)},
            {},
            r"got w\.qweight as f32.*; expected a matrix of i32",
        ),
        ({"scales": lambda s: s[:1]}, {}, r"got w\.scales as f16\[1, 16\]; expected floats\[4, 16\]"),
        ({"scales": lambda s: s.astype(np.int32)}, {}, r"got w\.scales as i32"),
        ({"qzeros": lambda z: z[:, :1]}, {}, r"got w\.qzeros as i32\[4, 1\]; expected i32\[4, 2\]"),
        ({"g_idx": lambda g: g[:7]}, {}, r"got g_idx is int32\[7\]; expected int32\[128\]"),
        ({"g_idx": shuffled}, {}, "its groups are no neighbours along K .g_idx; desc_act without static"),
        ({"qzeros": lambda z: z + 1}, {}, "zero points differ from 8; expected sym is true in config"),
        ({}, {"group_size": 64}, r"got w\.scales as f16\[4, 16\]; expected floats\[2, 16\]"),
        ({}, {"bits": 8}, r"got w\.qzeros as i32\[4, 2\]; expected|got w\.scales as f16"),
        (
            {},
            {"group_size": 96},
            r"w: got rows of 128 elements; expected a multiple of the group \(gptq with int4:group=96",
        ),
    ],
)
def test_gptq_refused(tmp_path: Path, changes: dict[str, Any], config: dict[str, Any], message: str) -> None:
    tensors = changed(gptq_tensors("w", random_matrix(INT4, 16, 128)), **changes)
    with pytest.raises(UserError, match=message):
        checkpoint_of(tmp_path, {**GPTQ, **config}, tensors)


def test_scales_beyond_f16(tmp_path: Path) -> None:
    tensors = gptq_tensors("w", random_matrix(INT4, 16, 128))
    tensors["w.scales"] = np.full((4, 16), 1e6, np.float32)
    checkpoint = checkpoint_of(tmp_path, GPTQ, tensors)
    with pytest.raises(UserError, match=r"tensor 'w\.scales' has scales that are no numbers in f16"):
        checkpoint.codes("w.weight")


# --- awq ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [32, 64, 0])
def test_awq(tmp_path: Path, group: int) -> None:
    matrix = random_matrix(WeightFormat(4, group, True), 24, 128)
    config = {**AWQ, "group_size": group or -1}
    checkpoint = checkpoint_of(tmp_path, config, awq_tensors(STEM, matrix))
    assert_same(checkpoint.codes(f"{STEM}.weight"), matrix)


def test_one_awq_word(tmp_path: Path) -> None:
    matrix = random_matrix(ASYMMETRIC, 16, 32)
    word = int(awq_tensors("w", matrix)["w.qweight"].view(np.uint32)[5, 1])
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    assert [word >> 4 * j & 15 for j in range(8)] == [int(matrix.codes[8 + n, 5]) for n in order]


def test_awq_and_gptq_mixed_up(tmp_path: Path) -> None:
    matrix = random_matrix(ASYMMETRIC, 64, 128)
    message = "config.json and the weights do not belong together, or packings are mixed up"
    with pytest.raises(UserError, match=message):
        checkpoint_of(tmp_path / "a", GPTQ, awq_tensors("w", matrix))
    with pytest.raises(UserError, match=message):
        checkpoint_of(tmp_path / "b", AWQ, gptq_tensors("w", matrix))
    both = {**gptq_tensors("w", random_matrix(INT4, 64, 128)), **mlc_tensors("v", random_matrix(INT4, 8, 32))}
    with pytest.raises(UserError, match=r"tensor 'v\.q_weight' is no part of a weight quantized by gptq"):
        checkpoint_of(tmp_path / "c", GPTQ, both)
    with pytest.raises(
        UserError, match="says that weights are quantized by mlc, but the checkpoint has no such"
    ):
        checkpoint_of(tmp_path / "d", MLC, {"w.weight": np.ones((2, 32), np.float32)})
    plain = {**gptq_tensors("w", random_matrix(INT4, 8, 32)), "w.weight": np.ones((8, 32), np.float32)}
    with pytest.raises(UserError, match=r"tensor 'w\.weight' is there as floats and as codes"):
        checkpoint_of(tmp_path / "e", GPTQ, plain)


def test_packed_tensors_without_a_word_in_the_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {}, gptq_tensors("w", random_matrix(INT4, 8, 32)))
    with pytest.raises(
        UserError, match=r"tensor 'w.qweight' is packed, but config.json has no quantization_c"
    ):
        Checkpoint(folder)


# --- mlc ------------------------------------------------------------------------------------------


def mlc_matrix(n: int, k: int, seed: int = 0) -> QuantizedMatrix:
    """MLC has codes 0..14, which are 1..15 here."""
    matrix = random_matrix(INT4, n, k, seed)
    codes = np.maximum(matrix.codes.view(np.uint8), 1).view(ml_dtypes.uint4)
    return QuantizedMatrix(INT4, codes, matrix.scales)


def test_mlc(tmp_path: Path) -> None:
    matrix = mlc_matrix(12, 96)
    tensors = mlc_tensors(STEM, matrix)
    # By the definition: (q - 7) * scale.
    q = int(tensors[f"{STEM}.q_weight"][2, 5]) >> 12 & 15
    value = (q - 7) * float(matrix.scales[2, 43 // 32])
    checkpoint = checkpoint_of(tmp_path, MLC, tensors)
    assert checkpoint[f"{STEM}.weight"][2, 43] == pytest.approx(value)
    assert_same(checkpoint.codes(f"{STEM}.weight"), matrix)


def test_mlc_refused(tmp_path: Path) -> None:
    tensors = mlc_tensors("w", mlc_matrix(12, 96))
    tensors["w.q_weight"][0, 0] = 0xF
    checkpoint = checkpoint_of(tmp_path / "a", MLC, tensors)
    with pytest.raises(UserError, match=r"w: got codes reach 15; expected 0\.\.14 of q4f16_1"):
        checkpoint.codes("w.weight")
    tensors["w.q_scale"] = tensors["w.q_scale"].astype(np.float32)
    with pytest.raises(UserError, match=r"got w\.q_scale as f32\[12, 3\]; expected f16\[12, 3\]"):
        checkpoint_of(tmp_path / "b", MLC, tensors)


# --- strata ---------------------------------------------------------------------------------------


def strata_tensors(name: str, matrix: QuantizedMatrix) -> Tensors:
    tensors = {f"{name}.codes": pack(matrix.codes, matrix.format.bits), f"{name}.scales": matrix.scales}
    return tensors if matrix.zeros is None else {**tensors, f"{name}.zeros": matrix.zeros}


def strata_config(**weights: WeightFormat) -> dict[str, Any]:
    texts = {name.replace("__", "."): str(format) for name, format in weights.items()}
    return {"quant_method": "strata", "version": 1, "format": "int4", "weights": texts}


@pytest.mark.parametrize(
    "format", [INT4, INT8, ASYMMETRIC, WeightFormat(8, 0), WeightFormat(8, 64, True)], ids=str
)
def test_strata(tmp_path: Path, format: WeightFormat) -> None:
    matrix = random_matrix(format, 10, 128)
    checkpoint = checkpoint_of(tmp_path, strata_config(a__weight=format), strata_tensors("a.weight", matrix))
    assert_same(checkpoint.codes("a.weight"), matrix)
    assert checkpoint.num_bytes("a.weight") == format.num_bytes(10, 128)


def test_strata_refused(tmp_path: Path) -> None:
    tensors = strata_tensors("a.weight", random_matrix(ASYMMETRIC, 10, 128))
    message = r"got a\.weight\.scales as f16\[10, 4\]; expected f16\[10, 2\] \(strata with int4:group=64\)"
    with pytest.raises(UserError, match=message):
        checkpoint_of(tmp_path / "a", strata_config(a__weight=WeightFormat(4, 64)), tensors)
    more = {**tensors, "b.weight.codes": np.zeros((1, 16), np.uint8)}
    with pytest.raises(
        UserError, match=r"tensor 'b\.weight\.codes' is no part of a weight quantized by strata"
    ):
        checkpoint_of(tmp_path / "b", strata_config(a__weight=ASYMMETRIC), more)
    tensors["a.weight.zeros"] = np.full((10, 4), 16, np.uint8)
    checkpoint = checkpoint_of(tmp_path / "c", strata_config(a__weight=ASYMMETRIC), tensors)
    with pytest.raises(UserError, match=r"tensor 'a\.weight\.zeros' has zeros beyond int4:asymmetric"):
        checkpoint.codes("a.weight")


# --- what configs say -----------------------------------------------------------------------------

FLOATS = "lm_head|*embed_tokens|*wte|*wpe"


@pytest.mark.parametrize(
    ("config", "choice"),
    [
        (GPTQ, f"int4;{FLOATS}=bf16"),
        ({**GPTQ, "lm_head": True, "group_size": 128}, "int4:group=128;*embed_tokens|*wte|*wpe=bf16"),
        ({**GPTQ, "bits": 8, "sym": False, "group_size": -1}, f"int8:group=channel,asymmetric;{FLOATS}=bf16"),
        (AWQ, f"int4:asymmetric;{FLOATS}=bf16"),
        ({**AWQ, "modules_to_not_convert": ["gate"]}, f"int4:asymmetric;{FLOATS}|*gate*=bf16"),
        (MLC, "int4:group=32"),
        ({"quant_method": "strata", "version": 1, "format": "int4", "weights": {}}, "int4:group=32"),
        (
            {"quant_method": "strata", "version": 1, "format": "int8;*qkv_proj=int4", "weights": {}},
            "int8;*qkv_proj=int4",
        ),
    ],
    ids=str,
)
def test_formats_of_configs(tmp_path: Path, config: dict[str, Any], choice: str) -> None:
    write_folder(tmp_path, LLAMA, {}, quantization_config=config, torch_dtype="bfloat16")
    found = read_config(tmp_path).format
    assert found == parse_format_choice(choice)


OURS = {"quant_method": "strata", "version": 1, "format": "int4"}


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"bits": 4}, UserError, "quantization_config: quant_method is missing"),
        (
            {"quant_method": "bnb"},
            UnsupportedError,
            "got quant_method 'bnb'; Strata reads strata, gptq, awq, mlc",
        ),
        ({**GPTQ, "bits": 3}, UnsupportedError, "got bits 3; Strata reads 4 or 8"),
        ({**AWQ, "bits": 8}, UnsupportedError, "got bits 8; Strata reads 4"),
        (
            {**GPTQ, "checkpoint_format": "marlin"},
            UnsupportedError,
            "got checkpoint_format 'marlin'; Strata reads",
        ),
        ({**AWQ, "version": "gemv"}, UnsupportedError, "got version 'gemv'; Strata reads gemm"),
        (
            {**AWQ, "zero_point": False},
            UnsupportedError,
            "zero_point is false; Strata reads AWQ with zero points",
        ),
        (
            {**AWQ, "modules_to_not_convert": ["a;b"]},
            UserError,
            "to_not_convert: got .*; expected names of modules",
        ),
        (
            {**GPTQ, "group_size": 0},
            UserError,
            r"group_size: got 0 \(int\); expected -1 or a positive number",
        ),
        ({**GPTQ, "group_size": 33}, UserError, "weight format: got a group of 33"),
        ({**MLC, "format": "q3f16_1"}, UnsupportedError, "got quantization 'q3f16_1'; of MLC's packings"),
        ({**OURS, "version": 2}, UnsupportedError, "got version 2; this Strata reads 1"),
        (OURS, UserError, "weights is missing; expected the format"),
        ({**OURS, "weights": {"a": "int5"}}, UserError, "format: got 'int5'; expected int4 or int8"),
    ],
)
def test_configs_refused(
    tmp_path: Path, config: dict[str, Any], error: type[UserError], message: str
) -> None:
    write_folder(tmp_path, LLAMA, {}, quantization_config=config)
    with pytest.raises(error, match=message):
        read_config(tmp_path)


# --- whole models ---------------------------------------------------------------------------------


def quantized_model(
    folder: Path,
    config: dict[str, Any],
    pack_weight: Callable[[str, QuantizedMatrix], Tensors],
    format: WeightFormat,
    **more: Any,
) -> dict[str, QuantizedMatrix]:
    """A model folder with packed matrices (but the tables and the head); returns them by weight."""
    made: dict[str, QuantizedMatrix] = {}
    tensors: Tensors = {}
    for seed, (name, value) in enumerate(float_tensors(config).items()):
        if value.ndim == 2 and not any(part in name for part in ("embed", "lm_head", "wte", "wpe")):
            k, n = value.shape if config is GPT2 else value.shape[::-1]
            made[name] = random_matrix(format, n, k, seed)
            tensors.update(pack_weight(name.removesuffix(".weight"), made[name]))
        else:
            tensors[name] = value
    write_folder(folder, config, tensors, **more)
    return made


def test_params_of_a_gptq_model(tmp_path: Path) -> None:
    """Codes of q, k and v become those of one matrix, without a change."""
    made = quantized_model(tmp_path, LLAMA, gptq_tensors, INT4, quantization_config=GPTQ)
    config = read_config(tmp_path)
    assert config.format is not None
    params = dict(build(config, config.format).load(Checkpoint(tmp_path)))
    attention = "model.layers.1.self_attn"
    parts = [made[f"{attention}.{part}_proj.weight"] for part in "qkv"]
    np.testing.assert_array_equal(
        params[f"{attention}.qkv_proj.weight.codes"], np.concatenate([p.codes for p in parts])
    )
    np.testing.assert_array_equal(
        params[f"{attention}.qkv_proj.weight.scales"], np.concatenate([p.scales for p in parts])
    )
    assert params["lm_head.weight"].dtype == np.float16
    # The same as floats, where somebody asks for floats.
    floats = dict(build(config, "f32").load(Checkpoint(tmp_path)))
    np.testing.assert_array_equal(
        floats[f"{attention}.qkv_proj.weight"], np.concatenate([dequantize_matrix(p) for p in parts])
    )


def test_params_of_an_awq_gpt2(tmp_path: Path) -> None:
    """Matrices that GPT-2 stores transposed are not, as codes."""
    made = quantized_model(tmp_path, GPT2, awq_tensors, ASYMMETRIC, quantization_config=AWQ)
    config = read_config(tmp_path)
    assert config.format is not None
    definition = build(config, config.format)
    params = dict(definition.load(Checkpoint(tmp_path)))
    name = "transformer.h.1.mlp.c_fc.weight"
    assert definition.formats[name] == ASYMMETRIC
    for part, array in made[name].arrays():
        np.testing.assert_array_equal(params[f"{name}.{part}"], array)
    floats = dict(build(config, "f32").load(Checkpoint(tmp_path)))
    np.testing.assert_array_equal(floats[name], dequantize_matrix(made[name]))


def test_another_format_than_the_stored_one(tmp_path: Path) -> None:
    """Codes of another format are made anew from the values."""
    made = quantized_model(tmp_path, LLAMA, gptq_tensors, INT4, quantization_config=GPTQ)
    config = read_config(tmp_path)
    params = dict(build(config, FormatChoice(INT8)).load(Checkpoint(tmp_path)))
    name = "model.layers.0.mlp.down_proj.weight"
    matrix = QuantizedMatrix(INT8, params[f"{name}.codes"], params[f"{name}.scales"])
    assert np.abs(dequantize_matrix(matrix) - dequantize_matrix(made[name])).max() < 0.01


def test_layers_that_differ_from_the_config(tmp_path: Path) -> None:
    """A zero bias of a quantised layer is no part of the model; another one contradicts the config."""
    quantized_model(tmp_path, LLAMA, gptq_tensors, INT4, quantization_config=GPTQ)
    path = tmp_path / "model.safetensors"
    tensors = {name: np.array(Checkpoint(tmp_path)._tensors[name]) for name in Checkpoint(tmp_path)._tensors}
    config = read_config(tmp_path)
    bias = "model.layers.0.mlp.up_proj.bias"
    save_file({**tensors, bias: np.zeros(96, np.float16)}, path)
    assert dict(build(config, "f32").load(Checkpoint(tmp_path)))
    save_file({**tensors, bias: np.ones(96, np.float16)}, path)
    with pytest.raises(UserError, match=f"tensor '{bias}' is not part of this architecture"):
        build(config, "f32").load(Checkpoint(tmp_path))


# --- folders of MLC -------------------------------------------------------------------------------


def mlc_folder(folder: Path) -> dict[str, QuantizedMatrix]:
    """A model as MLC stores it: fused matrices, two shards, everything but the norms quantised."""
    made: dict[str, QuantizedMatrix] = {}
    tensors: Tensors = {}
    config = {**LLAMA, "max_position_embeddings": 64}
    write_folder(folder, config, float_tensors(config))
    sources = build(read_config(folder), "f32").sources
    for seed, (name, source) in enumerate(sources.items()):
        if len(source.shape) == 2:
            made[name] = mlc_matrix(*source.shape, seed)
            tensors.update(mlc_tensors(name.removesuffix(".weight"), made[name]))
        else:
            tensors[name] = np.full(source.shape, 1.5, np.float16)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    records: list[dict[str, Any]] = []
    for number, names in enumerate((list(tensors)[:5], list(tensors)[5:])):
        data, inner = b"", []
        for name in names:
            array = tensors[name]
            place = {"nbytes": array.nbytes, "byteOffset": len(data)}
            inner.append(
                {
                    "name": name,
                    "shape": list(array.shape),
                    "dtype": str(array.dtype),
                    "format": "raw",
                    **place,
                }
            )
            data += array.tobytes()
        file = f"params_shard_{number}.bin"
        (folder / file).write_bytes(data)
        records.append({"dataPath": file, "format": "raw-shard", "nbytes": len(data), "records": inner})
    (folder / "ndarray-cache.json").write_text(json.dumps({"metadata": {}, "records": records}))
    model = {
        k: v for k, v in LLAMA.items() if k.startswith(("hidden", "inter", "num", "rms", "vocab", "tie"))
    }
    model |= {"context_window_size": 64, "position_embedding_base": 0, "head_dim": 16, "rope_scaling": None}
    chat = {"model_type": "llama", "quantization": "q4f16_1", "model_config": model}
    (folder / "mlc-chat-config.json").write_text(
        json.dumps({**chat, "bos_token_id": 1, "eos_token_id": [2, 0]})
    )
    return made


def test_mlc_folder(tmp_path: Path) -> None:
    made = mlc_folder(tmp_path)
    config = read_config(tmp_path)
    assert (config.max_context, config.head_dim, config.bos_token_id) == (64, 16, 1)
    assert config.eos_token_ids == (2, 0)
    assert config.format == FormatChoice(INT4)
    checkpoint = Checkpoint(tmp_path)
    params = dict(build(config, config.format).load(checkpoint))
    for name, matrix in made.items():
        np.testing.assert_array_equal(params[f"{name}.codes"], matrix.codes, err_msg=name)
        np.testing.assert_array_equal(params[f"{name}.scales"], matrix.scales)
    assert (params["model.norm.weight"] == 1.5).all()


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def first_tensor(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["records"][0]["records"][0].update(values)


def first_shard(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["records"][0].update(values)


def listed_twice(index: dict[str, Any]) -> None:
    tensors = index["records"][0]["records"]
    tensors.append(tensors[0])


CHAT, INDEX = "mlc-chat-config.json", "ndarray-cache.json"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            CHAT,
            lambda c: c.update(model_type="rwkv"),
            "got model_type 'rwkv'; of MLC's folders, Strata reads llama",
        ),
        (CHAT, lambda c: c.pop("model_config"), "model_config is missing; expected an object"),
        (CHAT, lambda c: c.update(quantization="q4f32_1"), "got quantization 'q4f32_1'"),
        (INDEX, lambda c: c.pop("records"), r"records: got None \(NoneType\); expected a list of objects"),
        (
            INDEX,
            first_shard(dataPath="../x"),
            r"dataPath: got '\.\./x' \(str\); expected the name of a file in",
        ),
        (INDEX, first_shard(dataPath="x"), "x: cannot read the weights: No such file"),
        (INDEX, first_shard(nbytes=5), "says 5: fetch it again"),
        (INDEX, listed_twice, "twice; expected it once"),
        (INDEX, first_tensor(shape=[0]), r"shape: got .*; expected a list of sizes"),
        (INDEX, first_tensor(shape=[3]), "takes 12 bytes; got"),
        (INDEX, first_tensor(dtype="int7"), "dtype: got 'int7'; expected one of"),
    ],
)
def test_mlc_folders_refused(
    tmp_path: Path, file: str, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    mlc_folder(tmp_path)
    edit(tmp_path / file, change)
    with pytest.raises(UserError, match=message):
        build(read_config(tmp_path), "f32").load(Checkpoint(tmp_path))


def test_mlc_floats_of_another_kind(tmp_path: Path) -> None:
    """Floats are stored as bf16 where the index says so, and the index has a newer name too."""
    mlc_folder(tmp_path)
    index = tmp_path / "ndarray-cache.json"
    data = json.loads(index.read_text())
    norm = next(r for shard in data["records"] for r in shard["records"] if r["name"] == "model.norm.weight")
    norm.update(dtype="float32", format="f32-to-bf16")
    index.unlink()
    (tmp_path / "tensor-cache.json").write_text(json.dumps(data))
    bits = np.full(64, 1.5, np.float16).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(Checkpoint(tmp_path)["model.norm.weight"], bits)
