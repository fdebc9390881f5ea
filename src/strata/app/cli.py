"""The ``strata`` command.

Each command is a thin layer over the Python API: parse, call, print. Mistakes of the user end in one clear line and exit
code 2; every command that prints figures also takes ``--json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .errors import reported

app = typer.Typer(
    help="Compile a language model to machine code for this machine, and run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ModelOption = Annotated[str | None, typer.Option("--model", "-m", help="Model folder or hub id; default: the demo model")]
ArtifactOption = Annotated[Path | None, typer.Option(help="Compiled artifact (from `strata compile`)")]
FormatOption = Annotated[str | None, typer.Option(help="Dtype of weights and KV cache: f32, f16, bf16; default: as stored")]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads; default: all cores")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON")]
ContextOption = Annotated[int | None, typer.Option(help="Longest sequence in tokens; default: the model's")]
PipelineOption = Annotated[str, typer.Option(help="Graph passes: a name or a list like canonicalize,fuse{max_ops=8}")]
PrintAfterOption = Annotated[str, typer.Option(help="Print the graph after these passes (comma separated, or all)")]
DumpOption = Annotated[Path | None, typer.Option(help="Write the graph after every pass into this directory")]


def main() -> None:
    """Entry point."""
    app()


@app.callback()
def _root() -> None:
    """Compile a language model to machine code for this machine, and run it."""


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input")],
    model: ModelOption = None,
    artifact: ArtifactOption = None,
    format: FormatOption = None,  # noqa: A002
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most")] = 128,
    temperature: Annotated[float, typer.Option(help="0 = greedy")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Keep the k most probable tokens; 0 = all")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set with this probability")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Drop tokens below this fraction of the best one's probability")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="> 1 discourages tokens seen before")] = 1.0,
    presence_penalty: Annotated[float, typer.Option(help="Subtracted once from logits of generated tokens")] = 0.0,
    frequency_penalty: Annotated[float, typer.Option(help="Subtracted per occurrence of generated tokens")] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Random seed")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop at this text (repeatable)")] = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    pipeline: PipelineOption = "default",
    print_after: PrintAfterOption = "",
    dump: DumpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a text."""
    from strata.engine.sampling import SamplingParams

    from . import session

    with reported():
        if prompt == "-":
            prompt = sys.stdin.read()
        params = SamplingParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            max_tokens=max_tokens,
            stop=tuple(stop or ()),
        )
        language_model = session.open_model(
            model, artifact, format, threads, max_context, pipeline, print_after=print_after, dump=dump
        )
        session.generate(language_model, prompt, params, as_json)


@app.command()
def chat(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub id; default: the demo model")] = None,
    artifact: ArtifactOption = None,
    format: FormatOption = None,  # noqa: A002
    system: Annotated[str, typer.Option(help="System message")] = "",
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer at most")] = 512,
    temperature: Annotated[float, typer.Option(help="0 = greedy")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set with this probability")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="Random seed")] = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
) -> None:
    """Talk to a model: /reset forgets, /stats shows figures, /exit ends."""
    from strata.engine.sampling import SamplingParams

    from . import session

    with reported():
        params = SamplingParams(temperature=temperature, top_p=top_p, seed=seed, max_tokens=max_tokens)
        language_model = session.open_model(model, artifact, format, threads, max_context, "default")
        session.chat(language_model, params, system)


@app.command("compile")
def compile_(
    model: Annotated[str, typer.Argument(help="Model folder or hub id")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the artifact to")],
    format: FormatOption = None,  # noqa: A002
    max_context: ContextOption = None,
    max_batch: Annotated[int, typer.Option(help="Sequences decoded at once")] = 8,
    pipeline: PipelineOption = "default",
    print_after: PrintAfterOption = "",
    dump: DumpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a model to an artifact folder that runs without the compiler."""
    from . import session

    with reported():
        figures = session.compile_to(
            model, output, format, max_context, max_batch, pipeline, print_after=print_after, dump=dump
        )
        _print_figures(figures, as_json)


@app.command()
def inspect(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub id; default: the demo model")] = None,
    stage: Annotated[str, typer.Option(help="graph, fused, loop, plan, llvm or asm")] = "fused",
    function: Annotated[str, typer.Option(help="Function to show")] = "decode",
    op: Annotated[str | None, typer.Option(help="Only launches whose op or node name contains this")] = None,
    format: FormatOption = None,  # noqa: A002
    color: Annotated[bool | None, typer.Option("--color/--no-color", help="Highlight; default: on a terminal")] = None,
) -> None:
    """Show a model at any stage of compilation."""
    from .inspect import show

    with reported():
        show(model, stage, function, op, format, color)


@app.command()
def bench(
    model: Annotated[str | None, typer.Argument(help="Model folder or hub id")] = None,
    shape: Annotated[str | None, typer.Option(help="Named architecture with random weights, e.g. tinyllama-1.1b")] = None,
    format: FormatOption = None,  # noqa: A002
    prompt: Annotated[int, typer.Option(help="Tokens of the prefill that is timed")] = 512,
    context: Annotated[int, typer.Option(help="Tokens in the cache when decode is timed")] = 128,
    decode: Annotated[int, typer.Option(help="Tokens decoded per repetition")] = 64,
    repeats: Annotated[int, typer.Option(help="Repetitions")] = 5,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure prefill and decode speed beside the machine's bandwidth and instruction peak."""
    from .bench import run, table

    with reported():
        figures = run(model, shape, format, prompt, context, decode, repeats, threads)
        if as_json:
            _print_figures(figures, True)
        else:
            table(figures)


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(figures, indent=2) + "\n")
        return
    width = max(len(k) for k in figures)
    for key, value in figures.items():
        shown = f"{value:.4g}" if isinstance(value, float) else value
        sys.stdout.write(f"{key:<{width}}  {shown}\n")
