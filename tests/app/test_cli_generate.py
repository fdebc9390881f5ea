"""``strata generate``: what goes where, and every option."""

import io
import json
import re
from pathlib import Path

import pytest

from strata.app.session import DEMO_MODEL, compile_progress, pipeline_text
from strata.core.knobs import knobs

STATS = re.compile(
    r"\[(compiled|loaded) in \d+\.\d\d s · prefill \d+ tokens \d+ tok/s · decode \d+ tokens \d+\.\d tok/s · "
    r"memory \d+ MiB · (length|stop)\]\n"
)


def test_text_to_stdout_and_one_line_of_statistics_to_stderr(strata, model):
    result = strata("generate", "def read(path):", "--max-tokens", 12)
    assert result.exit_code == 0
    assert result.stdout == f"def read(path):{model.generate('def read(path):', max_tokens=12).text}\n"
    assert STATS.fullmatch(result.stderr)
    assert "decode 12 tokens" in result.stderr


def test_a_second_start_loads_from_the_cache(strata):
    strata("generate", "x", "--max-tokens", 1)
    assert strata("generate", "x", "--max-tokens", 1).stderr.startswith("[loaded in ")


def test_json(strata, model):
    figures = json.loads(strata("generate", "import", "--max-tokens", 9, "--json").stdout)
    want = model.generate("import", max_tokens=9)
    assert figures["prompt"] == "import"
    assert (figures["text"], tuple(figures["token_ids"])) == (want.text, want.token_ids)
    assert figures["finish_reason"] == "length"
    assert (figures["prompt_tokens"], figures["generated_tokens"]) == (len(want.prompt_ids), 9)
    assert figures["prefill_tokens_per_s"] > 0
    assert figures["decode_tokens_per_s"] > 0
    assert 0 < figures["ttft_s"] < 60
    assert figures["load_s"] > 0
    assert figures["peak_rss_bytes"] > 1e7


def test_prompt_from_standard_input(strata):
    typed = strata("generate", "class A:\n", "--max-tokens", 6)
    assert strata("generate", "-", "--max-tokens", 6, stdin="class A:\n").stdout == typed.stdout
    assert strata("generate", "-", "--max-tokens", 1, stdin="é 你好\n".encode()).stdout.startswith("é 你好\n")


@pytest.mark.parametrize(
    ("options", "params"),
    [
        (["--temperature", 1.5, "--seed", 7], {"temperature": 1.5, "seed": 7}),
        (
            ["--temperature", 2, "--top-k", 3, "--seed", 1],
            {"temperature": 2.0, "top_k": 3, "seed": 1},
        ),
        (
            ["--temperature", 2, "--top-p", 0.5, "--seed", 2],
            {"temperature": 2.0, "top_p": 0.5, "seed": 2},
        ),
        (
            ["--temperature", 2, "--min-p", 0.3, "--seed", 3],
            {"temperature": 2.0, "min_p": 0.3, "seed": 3},
        ),
        (["--repetition-penalty", 1.7], {"repetition_penalty": 1.7}),
        (["--presence-penalty", 1.5], {"presence_penalty": 1.5}),
        (["--frequency-penalty", 1.5], {"frequency_penalty": 1.5}),
        (["--ignore-eos"], {"ignore_eos": True}),
    ],
)
def test_sampling_options_reach_the_sampler(strata, model, options, params):
    figures = json.loads(strata("generate", "def f(", "--max-tokens", 24, "--json", *options).stdout)
    assert figures["text"] == model.generate("def f(", max_tokens=24, **params).text


def test_stop_strings(strata, model):
    whole = model.generate("def f(", max_tokens=30, ignore_eos=True).text
    stop = whole[len(whole) // 2 :][:3]
    figures = json.loads(
        strata("generate", "def f(", "--max-tokens", 30, "--stop", "never", "--stop", stop, "--json").stdout
    )
    assert figures["text"] == whole[: whole.index(stop)]
    assert (figures["finish_reason"], figures["stopped_by"]) == ("stop", stop)


def test_artifact_gives_the_text_of_the_model(strata, artifact):
    want = strata("generate", "for i in", "--max-tokens", 10).stdout
    assert strata("generate", "for i in", "--max-tokens", 10, "--artifact", artifact).stdout == want
    assert strata("generate", "for i in", "--max-tokens", 10, "--model", artifact).stdout == want
    lowered = strata("generate", "for i in", "--max-context", 8, "--json", "-a", artifact)
    assert json.loads(lowered.stdout)["finish_reason"] == "length"


@pytest.mark.parametrize("options", [["--format", "f16"], ["--threads", 1]])
def test_formats_and_threads(strata, small, options):
    result = strata("generate", "x", "--model", small, "--max-tokens", 2, *options)
    assert result.exit_code == 0, result.stderr


def test_print_after_and_dump(strata, small, tmp_path):
    dump = tmp_path / "dump"
    common = ["generate", "x", "--model", small, "--max-tokens", 1]
    result = strata(*common, "--print-after", "dead_code,fuse", "--dump", dump)
    assert re.findall(r"// graph IR after (\w+)", result.stderr) == ["dead_code", "fuse"]
    assert "fused(" in result.stderr
    names = sorted(p.name for p in dump.iterdir())
    assert names[0] == "000_graph.input.ir"
    assert "006_fuse.after.ir" in names
    assert any(re.fullmatch(r"\d+_lower\.k\d+_matmul\.ir", n) for n in names)
    assert any(re.fullmatch(r"\d+_schedule\.k\d+_matmul.*\.ir", n) for n in names)
    assert names[-1].endswith(".ll")
    assert strata(*common, "--dump", dump).exit_code == 0  # the files of an earlier dump go
    assert sorted(p.name for p in dump.iterdir()) == names
    assert "// graph IR after fuse" in strata(*common, env={"STRATA_PRINT_AFTER": "fuse"}).stderr


def test_pipelines(strata, small):
    common = ["generate", "x = ", "--model", small, "--max-tokens", 3]
    text = "canonicalize,fold_transpose,dead_code,fuse{max_ops=2}"
    assert strata(*common, "--pipeline", text).stdout == strata(*common).stdout


def test_pipeline_of_the_environment(monkeypatch):
    chosen = []
    monkeypatch.setattr("strata.passes.named_pipeline", chosen.append)
    with knobs(pipeline="zero"):
        assert pipeline_text("") == "zero"
        assert pipeline_text("fuse") == "fuse"
    assert pipeline_text("") == "default"
    assert chosen == ["zero", "fuse", "default"]


def test_hub_ids_go_to_the_hub(strata, monkeypatch):
    monkeypatch.setattr("strata.models.hub._download", lambda name: Path(DEMO_MODEL))
    result = strata("generate", "x", "--model", "somebody/model", "--max-tokens", 2)
    assert result.exit_code == 0, result.stderr


class Terminal(io.StringIO):
    """An output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_and_only_while_something_compiles(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with compile_progress() as progress:
        assert progress is None  # stderr is captured
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with compile_progress() as progress:
        assert terminal.getvalue() == ""
        progress(1, 3, "k0_matmul", False)
        progress(3, 3, "k1_take", True)
    assert "loading k1_take" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
