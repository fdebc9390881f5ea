"""Comparing node by node: correct models agree with every reference, a wrong kernel is found and named."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hf_models import make_model

from strata.compiler.api import Options, compile_model, define
from strata.compiler.compare import (
    Expected,
    Interpreter,
    Recorded,
    Tolerance,
    compare,
    computed_body,
    difference,
    record_values,
)
from strata.compiler.compare_torch import TorchModel, import_torch
from strata.core.errors import UserError
from strata.engine.forward import ForwardPass
from strata.engine.generate import LanguageModel
from strata.models import read_config
from strata.runtime.program import Program
from strata.runtime.safetensors_file import TensorShape, write_safetensors
from strata.runtime.stepping import NodeEvent

IDS = [(37 * i + 11) % 300 for i in range(11)]
DOWN = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("hf")
    names = ("llama", "qwen3", "gpt2")
    return {name: make_model(root / name, name) for name in names}


@pytest.fixture(scope="module")
def models(folders, tmp_path_factory):
    """Compiled models by architecture and format, made when they are asked for."""
    made: dict[tuple[str, str], LanguageModel] = {}
    root = tmp_path_factory.mktemp("compiled")

    def get(name: str, format_: str = "f32") -> LanguageModel:
        if (name, format_) not in made:
            options = Options(format_, max_context=64, max_batch=2, prefill_chunk=16)
            artifact = compile_model(folders[name], root / f"{name}-{format_.replace(':', '-')}", options)
            made[name, format_] = LanguageModel.load(artifact, 1)
        model = made[name, format_]
        model.stepping_program.restore()
        return model

    return get


@pytest.mark.parametrize(("origin", "activations"), [("rule", "i8"), ("rounded", "bf16")])
def test_a_kernel_that_rounds_is_compared_with_what_it_computes(models, origin, activations):
    node = next(
        n for n in models("llama", "int4:group=channel").nodes("prefill") if n.op == "quantized_matmul"
    )
    details = {**node.details, "candidates": [{"kernel": "fast", "origin": origin}]}
    event = NodeEvent(replace(node, _details=lambda _: details), "fast", (), (), {})
    found = [n for n in computed_body(event).nodes if n.op == "quantized_matmul"]
    assert [n.attrs["activations"].name for n in found] == [activations]


def names(forward: ForwardPass) -> list[str]:
    return [n.name for n in forward.program.nodes(forward.function)]


def scaled(factor: float):
    """A kernel in the place of one with a residual: it adds it ``factor`` times."""

    def wrong(*arrays: np.ndarray) -> None:
        *_, residual, out = arrays
        out[...] = factor * residual

    return wrong


@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize(
    ("name", "format_"), [("llama", "f32"), ("llama", "bf16"), ("qwen3", "f32"), ("gpt2", "f16")]
)
@pytest.mark.parametrize("function", ["prefill", "decode", "score"])
def test_models_agree_with_the_interpreter(models, name, format_, function, accumulates):
    forward = models(name, format_).forward_pass(function, IDS)
    report = compare(forward, Interpreter(forward, accumulates))
    assert report.agrees, report.first
    assert report.first is None
    assert report.suspects() == ()
    assert [d.node.index for d in report.compared] == list(range(len(forward.step().nodes)))
    assert report.unmatched == ()


@pytest.mark.parametrize("function", ["prefill", "decode"])
def test_a_wrong_kernel_is_found(models, function):
    model = models("llama")
    forward = model.forward_pass(function, IDS)
    model.stepping_program.swap(DOWN, scaled(1.001), function)
    report = compare(forward, Interpreter(forward))
    assert [d.node.name for d in report.compared if d.diverges] == [DOWN]
    first = report.first
    assert first is not None
    assert first.kernel == "wrong"
    assert first.max_abs > first.tolerance.atol
    assert first.ratio > 1
    assert "matmul: f32 sums of 112 terms, result in f32" in first.tolerance.why
    assert report.suspects() == (first.node,)
    end_to_end = compare(forward, Interpreter(forward, accumulates=True))
    assert end_to_end.first is not None
    assert end_to_end.first.node.name == DOWN
    assert sum(d.diverges for d in end_to_end.compared) > 1  # what follows is wrong as well


def test_a_kernel_that_is_off_by_little_is_found(models):
    """One weight of thousands is left out of one output."""
    model = models("llama")
    forward = model.forward_pass("decode", IDS)
    run = forward.step()
    run.run_to("lm_head", before=True)
    x, _ = run.inputs("lm_head")
    run.finish()

    def nearly(event: NodeEvent) -> None:
        event.value[0, 5] += 0.01 * np.abs(x).max()

    model.stepping_program.hook("lm_head", after=nearly, function="decode")
    report = compare(forward, Interpreter(forward))
    assert report.first is not None
    assert (report.first.node.name, report.first.worst) == ("lm_head", (0, 5))


def test_a_cache_that_is_not_written_is_found(models):
    model = models("llama")
    forward = model.forward_pass("prefill", IDS)
    model.stepping_program.hook("*.1.*kv_append", before=NodeEvent.skip, function="prefill")
    report = compare(forward, Interpreter(forward))
    assert [d.node.op for d in report.compared if d.diverges] == ["kv_append"]
    assert report.first.node.name.startswith("model.layers.1.self_attn")


def test_only_some_nodes(models):
    forward = models("llama").forward_pass("decode", IDS)
    report = compare(forward, Interpreter(forward), "*.mlp.*")
    assert {d.node.name for d in report.compared} == {n for n in names(forward) if ".mlp." in n}
    with pytest.raises(UserError, match="no node 'nothing' in decode"):
        compare(forward, Interpreter(forward), "nothing")


def test_reports_as_data(models):
    model = models("llama")
    forward = model.forward_pass("decode", IDS)
    model.stepping_program.swap(DOWN, scaled(2.0), "decode")
    data = compare(forward, Interpreter(forward)).to_json()
    assert json.loads(json.dumps(data)) == data
    assert data["first"]["node"] == DOWN
    assert data["suspects"] == [DOWN]
    assert not data["agrees"]


# --- PyTorch ----------------------------------------------------------------------------------------------


def torch_reference(
    folders, model: LanguageModel, name: str, function: str
) -> tuple[ForwardPass, TorchModel]:
    format_ = str(model.config["format"])
    definition = define(read_config(folders[name], 64), Options(format_, max_context=64))
    forward = model.forward_pass(function, IDS)
    return forward, TorchModel(folders[name], definition, forward)


@pytest.mark.parametrize(
    ("name", "format_"), [("llama", "f32"), ("qwen3", "f32"), ("gpt2", "f32"), ("llama", "bf16")]
)
@pytest.mark.parametrize("function", ["prefill", "decode", "score"])
def test_models_agree_with_pytorch(folders, models, name, format_, function):
    model = models(name, format_)
    report_pass, reference = torch_reference(folders, model, name, function)
    report = compare(report_pass, reference)
    assert report.agrees, report.first
    assert report.compared[0].node.index == 0  # the embedding
    head = next(n for n in reversed(names(report_pass)) if not n.endswith(":argmax"))
    assert report.compared[-1].node.name == head
    assert all(n.op not in ("matmul", "rms_norm", "layer_norm") for n in report.unmatched)


def test_a_wrong_kernel_is_found_by_pytorch(folders, models):
    """Attention has no counterpart: what shows is the projection after it, and attention is a suspect."""
    model = models("llama")
    forward, reference = torch_reference(folders, model, "llama", "decode")
    model.stepping_program.swap("*.0.*paged_attention", lambda *arrays: arrays[-1].fill(0), "decode")
    report = compare(forward, reference)
    assert report.first.node.name == "model.layers.0.self_attn.o_proj"
    assert "model.layers.0.self_attn:paged_attention" in [n.name for n in report.suspects()]
    model.stepping_program.restore()
    model.stepping_program.swap("model.norm", lambda x, w, y: y.fill(1), "decode")
    assert compare(forward, reference).first.node.name == "model.norm"


def test_nothing_corresponds(folders, models):
    forward, reference = torch_reference(folders, models("llama"), "llama", "decode")
    with pytest.raises(UserError, match="decode: nothing to compare: no node has a counterpart in PyTorch"):
        compare(forward, reference, "*kv_append")


def test_folders_that_transformers_cannot_load(folders, models, tmp_path):
    model = models("llama")
    definition = define(read_config(folders["llama"], 64), Options("f32", max_context=64))
    with pytest.raises(UserError, match="transformers cannot load it"):
        TorchModel(tmp_path, definition, model.forward_pass("decode", IDS))


def test_without_pytorch(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"torch: cannot import transformers: pip install 'strata-llm\[torch\]'"
    ):
        import_torch()


def test_the_command_line_hides_pytorch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from strata.compiler.compare_torch import import_torch\n"
        "print(*(m.__name__ for m in import_torch()))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["torch", "transformers"]


# --- files ------------------------------------------------------------------------------------------------


def test_recorded_values(models, tmp_path):
    model = models("llama")
    file = tmp_path / "values.safetensors"
    nodes = model.nodes("decode")
    assert record_values(model.forward_pass("decode", IDS), file) == sum(len(n.outputs) for n in nodes)
    assert [p.name for p in tmp_path.iterdir()] == ["values.safetensors"]
    recorded = Recorded(file, model)
    assert recorded.forward.all_ids.tolist() == IDS
    report = compare(recorded.forward, recorded)
    assert report.agrees
    assert [n.op for n in report.unmatched] == ["argmax"]  # which of nearly equal logits is largest
    assert len(report.compared) == len(nodes) - 1
    assert all(d.max_abs == 0 for d in report.compared)
    model.stepping_program.swap(DOWN, scaled(1.5), "decode")
    assert compare(recorded.forward, recorded).first.node.name == DOWN
    # Another format rounds elsewhere; what is off by more than that shows.
    other = Recorded(file, models("llama", "bf16"))
    assert compare(other.forward, other).agrees


def test_nodes_that_the_file_lacks(models, tmp_path):
    model = models("llama")
    record_values(model.forward_pass("prefill", IDS), tmp_path / "some", "*.mlp.*")
    recorded = Recorded(tmp_path / "some", model)
    report = compare(recorded.forward, recorded)
    assert all(".mlp." in d.node.name for d in report.compared)
    assert all(".mlp." not in n.name for n in report.unmatched)
    assert report.compared


def test_damaged_files(models, tmp_path):
    model = models("llama")
    (tmp_path / "text").write_text("no values at all")
    with pytest.raises(UserError, match="no safetensors file"):
        Recorded(tmp_path / "text", model)
    x = np.zeros(3, np.float32)
    for meta in ({}, {"function": "decode", "tokens": "[1, x]"}, {"function": "decode", "tokens": '["a"]'}):
        write_safetensors(tmp_path / "other", [TensorShape("x", "f32", (3,))], [("x", x)], meta)
        with pytest.raises(
            UserError, match="other: its metadata must say function and tokens, as of 'strata debug"
        ):
            Recorded(tmp_path / "other", model)
    meta = {"function": "decode", "tokens": "[1, 999999]"}
    write_safetensors(tmp_path / "other", [TensorShape("x", "f32", (3,))], [("x", x)], meta)
    with pytest.raises(UserError, match="token ids: got 999999 at position 1"):
        Recorded(tmp_path / "other", model)
    with pytest.raises(UserError, match="/nowhere/values: cannot write: No such file"):
        record_values(model.forward_pass("decode", IDS), "/nowhere/values")


# --- differences ------------------------------------------------------------------------------------------


def off(got: list[float], want: list[float], rtol: float = 0.0, atol: float = 0.0):
    array = np.array(got, np.float32)
    event = NodeEvent(None, "k", (), (array,), {})  # type: ignore[arg-type]
    return difference(event, Expected(0, np.array(want, np.float32), Tolerance(rtol, atol, "test")))


def test_differences():
    same = off([1, math.inf, math.nan], [1, math.inf, math.nan])
    assert (same.max_abs, same.max_rel, same.ratio, same.diverges) == (0, 0, 0, False)
    near = off([1.0, 2.0], [1.0, 2.5], rtol=0.1, atol=0.25)
    assert (near.max_abs, near.max_rel, near.worst, near.got, near.expected) == (0.5, 0.2, (1,), 2.0, 2.5)
    assert near.ratio == 1.0
    assert not near.diverges
    assert off([1.0, 2.0], [1.0, 2.6], rtol=0.1, atol=0.25).diverges
    assert off([math.nan, 1], [1, 1], atol=1e9).diverges
    assert off([math.inf, 1], [1, 1], atol=1e9).diverges
    assert off([1, 1], [math.inf, 1], atol=1e9).diverges
    assert off([0.0], [1e-9]).diverges
    assert off([], []).ratio == 0
    assert str(Tolerance(0.5, 0.25, "why")) == "0.25 + 0.5 * |expected| (why)"


def test_a_program_without_a_plan(models):
    model = models("llama")
    program = model.stepping_program
    bare = Program(program.record, program.image, program.params)
    forward = replace(model.forward_pass("decode", IDS), program=bare)
    with pytest.raises(
        UserError, match=r"decode: the program has no plan\.json with the graphs of its nodes"
    ):
        compare(forward, Interpreter(forward))
