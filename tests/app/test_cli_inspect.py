"""``strata inspect``: every stage is a text of the right kind, and highlighting changes no character."""

import json
import re

import pytest
from pygments.token import Error

from strata.app.inspect import IRLexer, View, stage_text
from strata.core.errors import UserError
from strata.graph.text import parse_function
from strata.loop.text import parse_func

ANSI = re.compile(r"\x1b\[[\d;]*m")


def view(stage, **options):
    return View(shape="tiny", stage=stage, **options)


@pytest.mark.parametrize("stage", ["graph", "fused"])
@pytest.mark.parametrize("function", ["prefill", "decode", "score"])
def test_graph_stages_parse_back(stage, function):
    text = stage_text(view(stage, function=function))
    assert parse_function(text).name == function
    assert ("fused(" in text) == (stage == "fused")
    assert text.startswith("// default(canonicalize," if stage == "fused" else "dims ")


def test_loop_stage_parses_back():
    text = stage_text(view("loop", op="rms_norm"))
    parts = ["dims " + part for part in ("\n" + text).split("\ndims ")[1:]]
    assert parts
    assert all("rms_norm" in parse_func(part).name for part in parts)


def test_plan():
    text = stage_text(view("plan", op="lm_head"))
    assert text.startswith("stack lm_head: matmul\n  [0] cpu.matmul.")
    assert re.search(r"\n  select \[\d\] otherwise$", text)
    plan = json.loads(stage_text(view("plan", op="lm_head"), as_json=True))
    (launch,) = plan["decode"]["launches"]
    assert launch["op"] == "matmul"
    assert {"name", "kernel", "trace", "estimates"} <= launch["candidates"][0].keys()


def test_llvm_and_assembly():
    llvm = stage_text(view("llvm", op="take"))
    assert "define" in llvm
    assert re.search(r"@\w*take\w*\.impl\b", llvm)
    asm = stage_text(view("asm", op="take"))
    assert re.search(r"^\w*take\w*\.impl:$", asm, re.MULTILINE)


def test_op_selects_nodes():
    text = stage_text(view("graph", op="rms_norm"))
    assert text.count("\n") + 1 == text.count(" = rms_norm(") == 5
    by_name = stage_text(view("graph", op="layers.1.mlp"))
    assert all("layers.1.mlp" in line for line in by_name.splitlines())
    fused = stage_text(view("fused", op="silu"))
    assert fused.count("body=func @") == 2
    assert fused.count("{") == fused.count("}")


def test_pipeline_option():
    assert "fused(" not in stage_text(view("fused", pipeline="dead_code"))
    assert stage_text(view("fused", pipeline="zero")).count("fused(") > stage_text(view("fused")).count(
        "fused("
    )


def test_color(strata):
    args = ["inspect", "--shape", "tiny", "--stage", "fused"]
    plain = strata(*args).stdout
    assert "\x1b" not in plain
    assert ANSI.sub("", strata(*args, "--color").stdout) == plain
    assert strata(*args, "--no-color").stdout == plain


@pytest.mark.parametrize("options", [["llvm"], ["asm"], ["plan", "--json"]])
def test_color_of_other_languages(strata, options):
    result = strata("inspect", "--shape", "tiny", "--op", "take", "--color", "--stage", *options)
    assert len(set(ANSI.findall(result.stdout))) > 3


def test_demo_model_and_formats(strata):
    result = strata("inspect", "--stage", "graph", "--format", "f16")
    assert "f16[4096,256] = @model.embed_tokens.weight" in result.stdout


@pytest.mark.parametrize("stage", ["graph", "fused", "loop", "plan"])
def test_lexer_knows_every_character(stage):
    text = stage_text(view(stage))
    tokens = list(IRLexer(stripnl=False).get_tokens(text))
    assert "".join(value for _, value in tokens).strip() == text.strip()
    assert not [value for kind, value in tokens if kind is Error]


def test_lexer_kinds():
    line = '%3: f32[n,64] = rms_norm(%2, %"odd name") {eps=0x1.4p-17}  # model.norm'
    kinds = {value: str(kind) for kind, value in IRLexer().get_tokens(line)}
    assert kinds["%3"] == kinds['%"odd name"'] == "Token.Name.Variable"
    assert kinds["f32"] == "Token.Keyword.Type"
    assert kinds["rms_norm"] == "Token.Name.Function"
    assert kinds["64"] == "Token.Literal.Number"
    assert kinds["0x1.4p-17"] == "Token.Literal.Number.Hex"
    assert kinds["# model.norm"] == "Token.Comment"


def test_unknown_stage():
    with pytest.raises(UserError, match="--stage: got 'ptx'"):
        stage_text(view("ptx"))
