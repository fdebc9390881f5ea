"""Options, compiling a model's graph through the cache, artifacts by name of their inputs."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import strata.compiler.api as api
from strata.compiler.api import compile_definition, define, load
from strata.compiler.artifact_cache import MAX_SIZE, Options, artifact_path, source_fingerprint
from strata.core.dtypes import bf16, f32, f64
from strata.core.errors import UserError
from strata.core.knobs import knobs
from strata.models import ModelConfig
from strata.models.config import Activation, Positions
from strata.target import get_target

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=32,
    intermediate_size=48,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    max_context=64,
    activation=Activation.SILU,
    norm_eps=1e-5,
    tie_embeddings=False,
    positions=Positions.ROTARY,
)
OPTIONS = Options("f32", max_batch=2, prefill_chunk=8)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    with knobs(cache_dir=tmp_path):
        yield tmp_path


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kv_dtype": "i8"}, "--kv-dtype: got 'i8'; expected one of f32, f16, bf16, int8"),
        ({"format": "f64"}, "--format: got 'f64'; expected f32, bf16, f16, int4 or int8"),
        ({"max_batch": 0}, f"--max-batch: got 0; expected 1 .. {MAX_SIZE}"),
        ({"max_batch": MAX_SIZE + 1}, f"--max-batch: got {MAX_SIZE + 1}; expected 1 .. {MAX_SIZE}"),
        ({"prefill_chunk": -3}, "--prefill-chunk: got -3; expected 1"),
        ({"page_size": "16"}, "--page-size: got 16; expected 1"),
        ({"page_size": True}, "--page-size: got True; expected 1"),
        ({"max_context": 0}, "--max-context: got 0; expected at least 1 token"),
        ({"max_context": 1.5}, r"--max-context: got 1\.5; expected at least 1 token"),
    ],
)
def test_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Options(**options)


def test_the_format_is_the_stored_one_by_default() -> None:
    assert define(CONFIG, OPTIONS).cache_record.dtype == "f32"
    assert define(CONFIG, Options("f16")).cache_record.dtype == "f16"
    for stored, used in ((bf16, "bf16"), (f32, "f32"), (f64, "f32"), (None, "f32")):
        assert define(replace(CONFIG, dtype=stored), Options()).cache_record.dtype == used


def test_the_second_compilation_is_a_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    original = api.trace

    def counted(*args):
        traced = original(*args)
        return _Counted(traced, compiled)

    monkeypatch.setattr(api, "trace", counted)
    definition = define(CONFIG, OPTIONS)
    first = compile_definition(definition, OPTIONS)
    again = compile_definition(definition, OPTIONS)
    assert len(compiled) == 1
    assert (first.record, first.image, first.plan) == (again.record, again.image, again.plan)
    assert compile_definition(definition, OPTIONS, fresh=True).record == first.record
    assert len(compiled) == 2
    compile_definition(definition, OPTIONS, get_target("avx2"))
    assert len(compiled) == 3


class _Counted:
    """A traced module that notes when it is lowered."""

    def __init__(self, traced, lowered: list[object]) -> None:
        self._traced, self._lowered = traced, lowered

    def __getattr__(self, name: str):
        return getattr(self._traced, name)

    def lower(self, pipeline):
        self._lowered.append(pipeline)
        return self._traced.lower(pipeline)


def test_artifacts_are_named_by_all_their_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    target = get_target("zen5")
    names = [
        artifact_path(folder, Options(), target),
        artifact_path(folder, Options("f32"), target),
        artifact_path(folder, Options(max_batch=4), target),
        artifact_path(folder, Options(), get_target("avx2")),
    ]
    assert artifact_path(folder, Options(), target) == names[0]
    with knobs(pipeline="zero"):
        names.append(artifact_path(folder, Options(), target))
    (folder / "config.json").write_text("{ }")
    names.append(artifact_path(folder, Options(), target))
    (folder / "tokenizer.json").write_text("{}")
    names.append(artifact_path(folder, Options(), target))
    assert len(set(names)) == len(names)
    assert source_fingerprint() == source_fingerprint()


def test_load_names_its_options() -> None:
    with pytest.raises(UserError, match="load: no option 'batch'; it has format, max_context, max_batch, "):
        load("nowhere", batch=3)
