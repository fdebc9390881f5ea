"""Formats of weights: texts that parse back, sizes, choices by name."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.core.dtypes import bf16, f32
from strata.core.errors import UserError
from strata.core.weight_format import (
    INT4,
    INT8,
    NAMED_CHOICES,
    FormatChoice,
    WeightFormat,
    parse_format,
    parse_format_choice,
    parse_weight_format,
)

ASYMMETRIC = WeightFormat(4, None, True)
FORMATS = st.builds(
    WeightFormat, st.sampled_from([4, 8]), st.sampled_from([0, 32, 64, 96, 128, 1024]), st.booleans()
)
ANY = FORMATS | st.sampled_from([f32, bf16])
PATTERNS = st.text("abz.*?_|", min_size=1, max_size=8)


@given(FORMATS)
def test_format_text_round_trip(format: WeightFormat) -> None:
    assert parse_weight_format(str(format)) == format
    assert parse_format(f" {format} ") == format


@given(st.builds(FormatChoice, ANY, st.lists(st.tuples(PATTERNS, ANY), max_size=4).map(tuple)))
def test_choice_text_round_trip(choice: FormatChoice) -> None:
    assert parse_format_choice(str(choice)) == choice
    assert parse_format_choice(choice) is choice


def test_texts() -> None:
    assert str(INT4) == "int4"
    assert parse_weight_format("q8") == INT8
    assert parse_weight_format("int4:asymmetric, group=64") == WeightFormat(4, 64, True)
    assert str(WeightFormat(8, 0)) == "int8:group=channel"
    assert str(parse_format_choice("q4;lm_head=bf16")) == "int4;lm_head=bf16"
    assert parse_format_choice(INT8) == FormatChoice(INT8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int3", r"format: got 'int3'; expected f32, bf16, f16, int4 or int8, alone or like int4:group=64"),
        ("f64", "format: got 'f64'; expected f32, bf16, f16"),
        ("int4:", "format: got 'int4:'; expected int4 or int8"),
        ("int4:group", "got option 'group'; expected group=32, group=channel or asymmetric"),
        ("int4:symmetric", "got option 'symmetric'; expected group=32"),
        ("int4:group=32,group=64", "got group twice; expected it once"),
        ("int4:group=0", "weight format: got a group of -1; expected a multiple of 32, or channel"),
        ("int4:group=48", "weight format: got a group of 48; expected a multiple of 32, or channel"),
        ("int4;lm_head", r"got 'lm_head'; expected PATTERN=FORMAT, like lm_head=int8"),
        ("int4;=int8", r"got '=int8'; expected PATTERN=FORMAT"),
        ("lm_head=int8", "format: got 'lm_head=int8'; expected f32"),
    ],
)
def test_bad_texts(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_format_choice(text)


def test_bad_weight_format() -> None:
    with pytest.raises(UserError, match="weight format: got 5 bits; expected 4 or 8"):
        WeightFormat(5)
    with pytest.raises(UserError, match="format: got 'bf16'; expected int4 or int8"):
        parse_weight_format("bf16")


def test_facts_of_formats() -> None:
    assert (INT4.zero, INT4.max_code, INT4.codes_dtype) == (8, 15, "u4")
    assert (INT8.zero, INT8.max_code, INT8.codes_dtype) == (128, 255, "u8")
    assert INT4.bytes_per_weight == 0.5 + 2 / 32
    assert WeightFormat(4, 64, True).bytes_per_weight == 0.5 + 3 / 64
    assert WeightFormat(8, 0).bytes_per_weight == 1
    assert INT4.num_groups(96) == 3
    assert WeightFormat(8, 0).num_groups(33) == 1
    assert INT4.num_bytes(10, 64) == 10 * (32 + 2 * 2)
    assert WeightFormat(4, 32, True).num_bytes(3, 32) == 3 * (16 + 3)
    assert WeightFormat(8, 0, True).num_bytes(3, 5) == 3 * (5 + 2 + 1)


@pytest.mark.parametrize(
    ("format", "k", "message"),
    [
        (INT4, 112, "lm_head: got rows of 112 elements; expected a multiple of the group of 32: choose"),
        (INT8, 0, "lm_head: got rows of 0 elements"),
        (WeightFormat(4, 0), 33, "lm_head: got rows of 33 elements; int4:group=channel stores pairs"),
    ],
)
def test_rows_that_do_not_fit(format: WeightFormat, k: int, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        format.num_groups(k, "lm_head")


def test_last_fitting_pattern_decides() -> None:
    choice = parse_format_choice("int4;*.mlp.*=int8;*.1.*=bf16;lm_head|*embed_tokens=f32")
    assert choice.of("model.layers.0.mlp.down_proj.weight") == INT8
    assert choice.of("model.layers.1.mlp.down_proj.weight") is bf16
    assert choice.of("lm_head.weight") is f32
    assert choice.of("model.embed_tokens.weight") is f32
    assert choice.of("model.layers.0.self_attn.qkv_proj.weight") == INT4
    assert choice.formats == (INT4, INT8, bf16, f32)
    assert choice.is_quantized
    assert not parse_format_choice("bf16").is_quantized
    # Alternatives need not all fit.
    assert choice.unused_patterns(["lm_head.weight", "a.mlp.b"]) == ("*.1.*",)


@pytest.mark.parametrize("name", NAMED_CHOICES)
def test_named_choices(name: str) -> None:
    choice = parse_format_choice(name)
    assert choice.is_quantized
    assert choice.default == INT4
    assert choice.of("lm_head.weight") == choice.of("wte.weight") == (INT8 if name == "mixed" else ASYMMETRIC)
    assert str(choice) == name.replace("q4", "int4")
    assert parse_format_choice(choice.explicit, has_names=False) == choice
    assert choice.unused_patterns(["other.weight"]) == ()


def test_int4_for_all_weights() -> None:
    choice = parse_format_choice("int4:group=32")
    assert choice == FormatChoice(INT4) == parse_format_choice("int4", has_names=False)
    assert (str(choice), choice.explicit) == ("int4:group=32", "int4")
    # With exceptions, int4 is the format too.
    assert parse_format_choice("int4;*.mlp.*=int8").of("lm_head.weight") == INT4
