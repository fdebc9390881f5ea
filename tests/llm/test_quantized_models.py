"""Models with weights of 4 and 8 bits: like the same weights in f32, alone and in batches, on any threads."""

from pathlib import Path

import numpy as np
import pytest
from small_models import BY_ID, Case, Session, compile_folder, define, tokens
from tolerance import for_quantized_model

from strata.compiler.api import Options, compile_definition
from strata.core.errors import UserError
from strata.core.weight_format import INT4, INT8
from strata.graph.opdef import OPS
from strata.models import Checkpoint
from strata.passes.quantize import CODES, SCALES, ZEROS
from strata.runtime.program import Program
from strata.target import detect_host

MIXED = "int4;lm_head=bf16;*qkv_proj=int8"
FORMATS = (
    "int8:group=32",
    "int8:group=channel",
    "int4",
    "int4:asymmetric",
    "int4;lm_head=bf16;*qkv_proj=int8",
)
CASES = (BY_ID["tinyllama"], Case("gpt2", "gpt2", {"n_embd": 64, "n_head": 2, "n_inner": 160}))
IDS = tokens(70, 250)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("quantized")
    return {case.id: case.make(root / case.id) for case in CASES}


def dequantized(folder: Path, format: str) -> dict[str, np.ndarray]:
    """Params of the f32 model with the values that the quantised one stores."""
    stored = dict(define(folder, format).load(Checkpoint(folder)))
    params: dict[str, np.ndarray] = {}
    for name, array in stored.items():
        base = name.removesuffix(CODES)
        if base != name:
            weight = [
                array,
                stored[base + SCALES],
                *([stored[base + ZEROS]] if base + ZEROS in stored else []),
            ]
            zero = INT4.zero if array.dtype.name == "uint4" else INT8.zero
            attrs = OPS["dequantize"].complete_attrs({"zero": zero})
            params[base] = OPS["dequantize"].reference(weight, attrs)
        elif not name.endswith((SCALES, ZEROS)):
            params[name] = array.astype(np.float32)
    return params


def in_f32(folder: Path, params: dict[str, np.ndarray]) -> Program:
    compiled = compile_definition(define(folder, "f32"), Options("f32"))
    return compiled.program(params)


@pytest.mark.parametrize("case", [c.id for c in CASES])
@pytest.mark.parametrize("format", FORMATS)
def test_logits_are_those_of_the_same_weights_in_f32(
    folders: dict[str, Path], case: str, format: str
) -> None:
    if case == "gpt2" and format == MIXED:
        format = "int4;*wte=bf16;*c_attn=int8"
    folder = folders[case]
    program = compile_folder(folder, format)
    want = Session(in_f32(folder, dequantized(folder, format))).step("score", {0: IDS})
    session = Session(program)
    got = session.step("score", {0: IDS})
    size = float(np.sqrt(np.mean(want * want)))
    layers = program.record.cache.num_layers if program.record.cache is not None else 0
    np.testing.assert_allclose(got, want, **for_quantized_model(layers, size))
    error = float(np.sqrt(np.mean((got - want) ** 2)))
    assert 0 < error < 0.05 * size  # int8 activations cost something, and little
    single = Session(program)
    single.step("prefill", {0: IDS[:-1]})
    np.testing.assert_allclose(
        single.step("decode", {0: IDS[-1:]})[0], got[-1], **for_quantized_model(layers, size)
    )


def test_threads_and_other_sequences_change_nothing(folders: dict[str, Path]) -> None:
    """Rows of a quantised product do not depend on one another, and sums have one order.

    But a matrix unit multiplies many rows at once as bf16, which rounds otherwise.
    """
    programs = [compile_folder(folders["tinyllama"], "int4", num_threads=t) for t in (1, 2, 3)]
    alone = [Session(p).step("prefill", {0: IDS[:33]})[0] for p in programs]
    assert all(np.array_equal(row, alone[0]) for row in alone)
    batched = Session(programs[1])
    rows = batched.step("prefill", {0: IDS[:33], 1: IDS[5:12], 2: IDS[:1]})
    if detect_host().has_matrix_bf16:
        layers = programs[1].record.cache.num_layers  # type: ignore[union-attr]
        size = float(np.sqrt(np.mean(alone[0] ** 2)))
        np.testing.assert_allclose(rows[0], alone[0], **for_quantized_model(layers, size))
    else:
        np.testing.assert_array_equal(rows[0], alone[0])


def test_rows_that_do_not_fit_the_group_are_an_error_before_any_work(tmp_path: Path) -> None:
    folder = BY_ID["llama-odd"].make(tmp_path / "odd")
    with pytest.raises(UserError, match=r"embed_tokens.weight: got rows of 75 elements; expected a multiple"):
        define(folder, "int4")


def test_a_pattern_that_fits_nothing_is_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(
        UserError, match=r"format: pattern 'hed' fits no weight; there are: model.embed_tokens"
    ):
        define(folders["tinyllama"], "int4;hed=int8")
