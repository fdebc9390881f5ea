"""Damaged data never gives anything but a message: hypothesis edits JSON files of artifacts and models."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from folders import linked_copy, replace
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from strata.app.inspect import define_model
from strata.compiler.api import Options
from strata.core.errors import UserError
from strata.engine.generate import LanguageModel
from strata.models import Checkpoint
from strata.runtime.artifact import _digest

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 70),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.sampled_from(["f32", "n", "2*n", "cache", "../x", "\ud800", "decode", "llama3", "{{", "float16"]),
)
VALUES = st.recursive(
    SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=3), v, max_size=3)
)


def mutated(draw: st.DataObject, tree: Any) -> Any:
    """A deep copy of ``tree`` with one to three values replaced, removed, repeated or exchanged."""
    tree = {"root": copy.deepcopy(tree)}
    for _ in range(draw.draw(st.integers(1, 3))):
        at, key = tree, "root"
        while isinstance(at[key], (dict, list)) and at[key] and draw.draw(st.integers(0, 6)):
            at = at[key]
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw.draw(st.sampled_from(keys))
        match draw.draw(st.sampled_from(["replace", "replace", "remove", "repeat", "exchange"])):
            case "remove" if at is not tree:
                del at[key]
            case "repeat" if isinstance(at, list):
                at.append(copy.deepcopy(at[key]))
            case "exchange" if isinstance(at, list):
                at[key], at[0] = at[0], at[key]
            case _:
                at[key] = draw.draw(VALUES)
    return tree["root"]


@pytest.fixture(scope="module")
def victim(artifact, tmp_path_factory) -> Path:
    return linked_copy(artifact, tmp_path_factory.mktemp("fuzz") / "victim")


def write(file: Path, data: Any) -> None:
    replace(file, json.dumps(data).encode("utf-8", "surrogatepass"))


@FUZZ
@given(data=st.data())
def test_an_edited_manifest_is_refused(strata, artifact, victim, data):
    """Native code trusts the record, so one that was changed in any way must not get that far."""
    original = json.loads((artifact / "manifest.json").read_bytes())
    changed = mutated(data, original)
    write(victim / "manifest.json", changed)
    result = strata("generate", "x", "--max-tokens", 1, "--artifact", victim)
    if result.exit_code == 0:  # nothing was changed, or nothing that is read
        same = ("machine", "version", "code", "weights", "program")
        assert json.dumps([changed[k] for k in same]) == json.dumps([original[k] for k in same])
    else:
        assert result.exit_code == 2
        assert result.stderr.startswith("strata: ")
        assert result.stderr.count("\n") == 1


@FUZZ
@given(data=st.data())
def test_a_forged_record_is_refused_or_loads(artifact, victim, data):
    """Even a record with a fresh hash only ever gives a UserError (or a model, which is not run here)."""
    manifest = json.loads((artifact / "manifest.json").read_bytes())
    manifest["program"] = mutated(data, manifest["program"])
    if isinstance(manifest["program"], dict):
        manifest["program_sha256"] = _digest(manifest["program"])
    write(victim / "manifest.json", manifest)
    try:
        with suppress(UserError):
            LanguageModel.load(victim, 1)
    finally:
        replace(victim / "manifest.json", (artifact / "manifest.json").read_bytes())


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
@settings(FUZZ, max_examples=8)
@given(data=st.data())
def test_edited_tokenizer_files(strata, artifact, victim, name, data):
    write(victim / name, mutated(data, json.loads((artifact / name).read_bytes())))
    try:
        result = strata("generate", "def f(x):", "--max-tokens", 2, "--artifact", victim)
        assert result.exit_code in (0, 2)
        assert result.stderr.count("\n") == 1
        piped = strata("chat", "--max-tokens", 2, "--artifact", victim, stdin="Hi\n")
        assert piped.exit_code in (0, 2)
    finally:
        replace(victim / name, (artifact / name).read_bytes())


@settings(FUZZ, max_examples=80)
@given(data=st.data())
def test_edited_model_configs(small, tmp_path_factory, data):
    folder = linked_copy(small, tmp_path_factory.mktemp("fuzz") / "model")
    write(folder / "config.json", mutated(data, json.loads((small / "config.json").read_bytes())))
    with suppress(UserError):
        for _ in define_model(str(folder), None, Options()).load(Checkpoint(folder)):
            pass


@settings(FUZZ, max_examples=40)
@given(data=st.data())
def test_edited_safetensors_headers(small, tmp_path_factory, data):
    folder = linked_copy(small, tmp_path_factory.mktemp("fuzz") / "model")
    blob = (small / "model.safetensors").read_bytes()
    size = int.from_bytes(blob[:8], "little")
    header = json.dumps(mutated(data, json.loads(blob[8 : 8 + size]))).encode("utf-8", "surrogatepass")
    replace(folder / "model.safetensors", len(header).to_bytes(8, "little") + header + blob[8 + size :])
    definition = define_model(str(folder), None, Options())
    with suppress(UserError):
        for _ in definition.load(Checkpoint(folder)):
            pass
