"""Bad input: one clear line on stderr, exit code 2, no traceback, nothing on stdout, nothing half-written."""

from __future__ import annotations

import pytest
from folders import content, cut_off, edited, flipped, linked_copy, missing

from strata.app.inspect import View, stage_text
from strata.app.session import DEMO_MODEL
from strata.core.errors import UserError
from strata.engine.generate import LanguageModel


def refused(result, *parts: str, lines: int = 1) -> None:
    """Check that a command ended with one message that has all of these parts."""
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("strata: ")
    assert result.stderr.count("\n") == lines
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


OPTIONS: list[tuple[list[object], str]] = [
    (["generate", ""], "prompt: is empty; expected a text to continue"),
    (["generate", "-"], "prompt: is empty"),
    (["generate", "\udcff"], "prompt: is no UTF-8 text"),
    (["generate", "x " * 2000], "prompt has 2001 tokens, context is 1024; shorten the prompt"),
    (["generate", "x", "--max-tokens", 0], "max_tokens: got 0; expected an integer >= 1"),
    (["generate", "x", "--max-tokens", -5], "max_tokens: got -5; expected an integer >= 1"),
    (["generate", "x", "--temperature", -1], "temperature: got -1.0; expected a number >= 0"),
    (["generate", "x", "--temperature", "nan"], "temperature: got nan; expected a number >= 0"),
    (["generate", "x", "--top-k", -1], "top_k: got -1; expected an integer >= 0"),
    (["generate", "x", "--top-p", 0], "top_p: got 0.0; expected a number in (0, 1]"),
    (["generate", "x", "--min-p", 1], "min_p: got 1.0; expected a number in [0, 1)"),
    (["generate", "x", "--repetition-penalty", 0], "repetition_penalty: got 0.0; expected a number > 0"),
    (["generate", "x", "--presence-penalty", 3], "presence_penalty: got 3.0; expected a number in [-2, 2]"),
    (["generate", "x", "--frequency-penalty", -3], "frequency_penalty: got -3.0; expected a number in [-2"),
    (["generate", "x", "--seed", -1], "seed: got -1; expected an integer >= 0"),
    (["generate", "x", "--stop", ""], "stop: got ('',); expected texts that are not empty"),
    (["generate", "x", "--threads", 0], "threads: got 0; expected an integer from 1 to 256"),
    (["generate", "x", "--threads", -2], "threads: got -2; expected an integer from 1 to 256"),
    (["generate", "x", "--format", "int7"], "--format: got 'int7'; expected f32, bf16, f16, int4 or int8"),
    (["generate", "x", "--max-context", 0], "--max-context: got 0; expected at least 1 token"),
    (["generate", "x", "--max-context", 5000], "config.json: got a maximum context of 5000 tokens; expected"),
    (["generate", "x", "--print-after", "fold"], "no pass 'fold'. Known: annotate_patterns, "),
    (["generate", "x", "--print-after", "a b"], "knob print_after=a b: expected names separated by commas"),
    (["generate", "x", "--dump", DEMO_MODEL], "which is no dump; choose an empty"),
    (["generate", "x", "--dump", "/dev/null/x"], "dump: cannot use /dev/null/x: Not a directory"),
    (["generate", "x", "--model", "no/such/folder"], "no/such/folder: no such folder; expected a model"),
    (["generate", "x", "--model", "/dev/null"], "/dev/null: is a file; expected a model folder with config"),
    (["generate", "x", "--artifact", "no"], "no: no such folder; expected an artifact made by 'strata comp"),
    (["generate", "x", "--artifact", DEMO_MODEL], "manifest.json: cannot read: No such file or directory"),
    (["chat", "no/such/folder"], "no/such/folder: no such folder"),
    (["chat", "--max-tokens", 0], "max_tokens: got 0; expected an integer >= 1"),
    (["compile", DEMO_MODEL, "-o", DEMO_MODEL], "is a folder that is no artifact; it is not overwritten"),
    (["compile", DEMO_MODEL, "-o", "/dev/null"], "/dev/null: is a file; expected the name of a folder"),
    (["compile", DEMO_MODEL, "-o", "/dev/null/x"], "/dev/null/x: cannot write the artifact: Not a directory"),
    (["compile", DEMO_MODEL, "-o", "x", "--max-batch", 0], "--max-batch: got 0; expected 1 .. 4096"),
    (["compile", DEMO_MODEL, "-o", "x", "--max-batch", 9999], "--max-batch: got 9999; expected 1 .. 4096"),
    (
        ["inspect", "--stage", "ptx"],
        "--stage: got 'ptx'; expected one of graph, fused, loop, plan, llvm, asm",
    ),
    (["inspect", "--function", "embed"], "--function: got 'embed'; this model has: prefill, decode, score"),
    (["inspect", "--shape", "tiny", "--op", "conv"], "--op: nothing in decode matches 'conv'; ops: "),
    (["inspect", "--shape", "tiny", "--op", "zz", "--stage", "plan"], "nothing in decode matches 'zz'; ops:"),
    (["inspect", "--shape", "llama"], "no shape 'llama'"),
    (["inspect", "x", "--shape", "tiny"], "--shape: got tiny and the model x; expected one of them"),
    (["inspect", "--shape", "tiny", "--json"], "--json: got --stage fused; expected --stage plan"),
    (
        ["inspect", "--shape", "tiny", "--stage", "loop", "--pipeline", "dead_code"],
        "pipeline: left node model.embed_tokens alone; expected fused nodes only: end it with fuse",
    ),
    (["bench", "--prompt", 0], "--prompt: got 0; expected at least 1"),
    (["bench", "--context", -1], "--context: got -1; expected at least 1"),
    (["bench", "--decode", 0], "--decode: got 0; expected at least 1"),
    (["bench", "--repeats", 0], "--repeats: got 0; expected at least 1"),
    (
        ["bench", "--shape", "tiny", "--prompt", 513],
        "513 tokens are needed, the context is 512; lower --prompt",
    ),
    (
        ["bench", "--shape", "tiny", "--format", "q5"],
        "--format: got 'q5'; expected f32, bf16, f16, int4 or int8",
    ),
    (["bench", "--shape", "tinyllama"], "no shape 'tinyllama'; did you mean 'tinyllama-1.1b'? Known: "),
    (["bench", "x", "--shape", "tiny"], "--shape: got tiny and the model x; expected one of them"),
]


@pytest.mark.parametrize(("args", "message"), OPTIONS, ids=[" ".join(map(str, a))[:60] for a, _ in OPTIONS])
def test_options(strata, args, message):
    refused(strata(*args, stdin=""), message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fuse{", "<pipeline>:1:6: got the end; expected an option\n  fuse{\n       ^"),
        ("nope", "<pipeline>:1:5: no pass or pipeline 'nope'; known: annotate_patterns, "),
        ("fuse{max_ops=x}", "<pipeline>:1:"),
    ],
)
def test_pipeline_text_is_shown_with_the_place(strata, text, message):
    refused(strata("generate", "x", "--pipeline", text), message, lines=3)
    refused(strata("generate", "x", env={"STRATA_PIPELINE": text}), message, lines=3)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"STRATA_VERIFY": "yes"}, "STRATA_VERIFY=yes: expected an integer 0..3"),
        ({"STRATA_THREADS": "-1"}, "STRATA_THREADS=-1: expected an integer 0..4096"),
        ({"STRATA_VERFIY": "1"}, "STRATA_VERFIY: no knob 'verfiy'; did you mean 'verify'? Known: cache_dir"),
        ({"STRATA_CACHE_DIR": "/dev/null"}, "/dev/null/artifacts: cannot make the cache folder: Not a dir"),
    ],
)
def test_environment(strata, env, message):
    refused(strata("generate", "x", env=env), message)


MODELS = [
    (missing("config.json"), "has no config.json; expected a Hugging Face model folder"),
    (missing("model.safetensors"), "no weights; expected model.safetensors or model.safetensors.index.json"),
    (missing("tokenizer.json"), "has no tokenizer.json; text cannot be read or written without it"),
    (cut_off("config.json"), "config.json: not valid JSON: "),
    (cut_off("model.safetensors"), "model.safetensors: tensor 'model.norm.weight': its data ends at byte "),
    (cut_off("tokenizer.json"), "tokenizer.json: is no tokenizer: "),
    (content("model.safetensors", b"\xff" * 64), "header of 18446744073709551615 bytes in a file of 64"),
    (content("config.json", b"[1]"), "config.json: "),
    (
        edited("config.json", "architectures", value=["Mamba"]),
        "config.json: got architecture 'Mamba'; Strata",
    ),
    (edited("config.json", "dtype", value="int3"), "config.json: dtype: got 'int3' (str); expected one of"),
    (
        edited("config.json", "hidden_size", value=64),
        "'model.embed_tokens.weight': got shape (4096, 32); exp",
    ),
    (edited("config.json", "hidden_size", value="x"), "config.json: hidden_size: got 'x' (str); expected an"),
    (edited("config.json", "vocab_size", value=9), "got shape (4096, 32); expected (9, 32) by config.json"),
    (
        edited("config.json", "num_hidden_layers", value=2),
        "'model.layers.1.input_layernorm.weight' is missing",
    ),
    (
        edited("config.json", "num_hidden_layers", value=0),
        "num_hidden_layers: got 0 (int); expected an integer",
    ),
    (
        edited("config.json", "num_key_value_heads", value=3),
        "expected the first to be a multiple of the second",
    ),
]


@pytest.mark.parametrize("command", ["generate", "compile"])
@pytest.mark.parametrize(("damage", "message"), MODELS, ids=[m[:50] for _, m in MODELS])
def test_damaged_models(strata, small, tmp_path, command, damage, message):
    folder = linked_copy(small, tmp_path / "model")
    damage(folder)
    if command == "compile" and "has no tokenizer.json" in message:
        return  # an artifact without a tokenizer is good for token ids
    out = tmp_path / "out"
    args = ["generate", "x", "--model", folder] if command == "generate" else ["compile", folder, "-o", out]
    refused(strata(*args), str(folder), message)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_chat_needs_a_template(strata, small, tmp_path):
    folder = linked_copy(small, tmp_path / "model")
    edited("tokenizer_config.json", "chat_template", drop=True)(folder)
    refused(strata("chat", folder), f"{folder}: the model has no chat template", "use generate")
    edited("tokenizer_config.json", "chat_template", value="{{ x")(folder)
    refused(strata("chat", folder), f"{folder}: chat template: line 1: unexpected end of template")


ARTIFACTS = [
    (missing("manifest.json"), "manifest.json: cannot read: No such file or directory; expected an artifact"),
    (missing("code.bin"), "code.bin: cannot read: No such file or directory; compile the model again"),
    (missing("weights.safetensors"), "weights.safetensors: cannot read: No such file or directory"),
    (missing("tokenizer.json"), "has no tokenizer.json; text cannot be read or written without it"),
    (cut_off("manifest.json"), "manifest.json: is no JSON: "),
    (cut_off("code.bin"), "code.bin: got "),
    (cut_off("weights.safetensors"), "it is cut off"),
    (cut_off("tokenizer.json"), "tokenizer.json: is no tokenizer: "),
    (flipped("code.bin", 5000), "it is damaged; compile the model again"),
    (flipped("weights.safetensors", 9), "weights.safetensors: "),
    (edited("manifest.json", "version", value=99), "version: got 99; expected 2; compile the model again"),
    (
        edited("manifest.json", "machine", value="s390x"),
        "machine: got 's390x'; expected 'x86_64'; compile it",
    ),
    (
        edited("manifest.json", "program", "features", 0, value="avx1024"),
        "the code needs CPU features that this machine lacks: avx1024; compile the model on this machine",
    ),
    (
        edited("manifest.json", "program", "config", "max_context", value=1 << 20),
        "program differs from its sha256; it is damaged; compile the model again",
    ),
    (
        edited("manifest.json", "program", "cache", "num_layers", value=9),
        "program differs from its sha256; it is damaged; compile the model again",
    ),
]


@pytest.mark.parametrize(("damage", "message"), ARTIFACTS, ids=[m[:50] for _, m in ARTIFACTS])
def test_damaged_artifacts(strata, artifact, tmp_path, damage, message):
    folder = linked_copy(artifact, tmp_path / "artifact")
    damage(folder)
    refused(strata("generate", "x", "--artifact", folder), str(folder), message)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "x"], "--artifact: got also a model; expected one of them"),
        (["--format", "f32"], "--format: an artifact is compiled already; compile it again with --format"),
        (["--pipeline", "default"], "--pipeline: an artifact is compiled already"),
        (["--print-after", "all"], "--print-after: an artifact is compiled already"),
        (["--dump", "x"], "--dump: an artifact is compiled already"),
        (["--max-context", 2000], "max_context: got 2000; expected 1 .. 1024, what it was compiled for"),
        (["--max-context", 2], "context is 2; shorten the prompt"),
    ],
)
def test_options_that_an_artifact_cannot_have(strata, artifact, options, message):
    refused(strata("generate", "def f(x):", "--artifact", artifact, *options), message)


def test_python_api(artifact):
    import strata

    with pytest.raises(UserError, match=r"load: no option 'max_len'; it has format, max_context, max_batch"):
        strata.load(artifact, max_len=3)
    with pytest.raises(UserError, match=r"is compiled already; got page_size; compile it again"):
        strata.load(artifact, page_size=4)
    with pytest.raises(UserError, match=r"is compiled already; got format; compile it again"):
        strata.load(artifact, format="f32")
    assert strata.load(artifact, max_context=64).max_context == 64
    model = LanguageModel.load(artifact, num_pages=1)
    with pytest.raises(UserError, match=r"(?i)pages"):
        model.generate("def f(x):\n" * 8, max_tokens=50)
    model.cache.check_integrity()
    with pytest.raises(UserError, match="is a compiled artifact; expected the model folder"):
        stage_text(View(str(artifact)))


@pytest.mark.parametrize(
    "args",
    [
        ["bake"],
        ["generate"],
        ["generate", "x", "--nope"],
        ["generate", "x", "--max-tokens", "many"],
        ["compile", "x"],
        ["inspect", "--stage"],
    ],
)
def test_usage(strata, args):
    result = strata(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Error: " in result.stderr
