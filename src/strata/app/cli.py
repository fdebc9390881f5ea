"""The ``strata`` command.

Each command is a thin layer over the Python API: parse, call, print. Mistakes of the user end in one clear
line and exit code 2 (``errors``); every command that prints figures also takes ``--json``. Imports that cost
time happen in the commands.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import strata
from strata.core.knobs import current

from . import commands
from .errors import reported
from .options import (
    ArtifactOption,
    BatchOption,
    ContextOption,
    DatabaseOption,
    DumpOption,
    FormatOption,
    FrequencyOption,
    JsonOption,
    KvOption,
    LibrariesOption,
    LoadOption,
    MeasureOption,
    MinPOption,
    ModelArgument,
    ModelOption,
    PinOption,
    PipelineOption,
    PreferOption,
    PresenceOption,
    PrintAfterOption,
    RangeOption,
    RepetitionOption,
    SeedOption,
    ShapeOption,
    StopOption,
    TargetOption,
    TemperatureOption,
    ThreadsOption,
    TopKOption,
    TopPOption,
)

app = typer.Typer(
    help="Compile a language model to machine code for this machine, and run it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the program."""
    # tvm-ffi imports PyTorch where it is installed: seconds and hundreds of MB that no command has a use for.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]
    _prepare_streams()
    app()


def _prepare_streams() -> None:
    """Closed streams become empty ones; characters that a terminal lacks are no reason to stop."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (it stays open)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"strata {strata.__version__}\n")
        raise typer.Exit


@app.callback()
@reported()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit")
    ] = False,
) -> None:
    """Compile a language model to machine code for this machine, and run it."""
    current()  # a bad STRATA_ variable is reported before any work


@app.command()
@reported()
def generate(
    prompt: Annotated[str, typer.Argument(help="Text to continue; - reads standard input")],
    model: ModelOption = None,
    artifact: ArtifactOption = None,
    format: FormatOption = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens to generate at most")] = 128,
    temperature: TemperatureOption = 0.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    presence_penalty: PresenceOption = 0.0,
    frequency_penalty: FrequencyOption = 0.0,
    seed: SeedOption = None,
    stop: StopOption = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the end-of-text token")
    ] = False,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    kv_dtype: KvOption = None,
    pipeline: PipelineOption = "",
    prefer: PreferOption = "",
    pin: PinOption = None,
    libraries: LibrariesOption = "",
    measure: MeasureOption = None,
    load: LoadOption = None,
    ranges: RangeOption = None,
    database: DatabaseOption = None,
    print_after: PrintAfterOption = "",
    dump: DumpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a text."""
    from strata.engine.sampling import SamplingParams

    from . import session

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        ignore_eos=ignore_eos,
    )
    text = session.read_prompt(prompt)
    planning = session.Planning(prefer, pin or (), libraries, measure, load or (), ranges or (), database)
    source = session.Source(
        *(model, artifact, format, threads, max_context, pipeline, print_after, dump),
        plan=planning.options(),
        ranges=planning.dim_ranges(),
        kv_dtype=kv_dtype,
    )
    session.generate(session.open_model(source), text, params, as_json)


@app.command()
@reported()
def chat(
    model: ModelArgument = None,
    artifact: ArtifactOption = None,
    format: FormatOption = None,
    system: Annotated[str, typer.Option(help="System message")] = "",
    max_tokens: Annotated[int, typer.Option(help="Tokens per answer at most")] = 512,
    temperature: TemperatureOption = 0.7,
    top_k: TopKOption = 0,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    seed: SeedOption = None,
    threads: ThreadsOption = None,
    max_context: ContextOption = None,
    kv_dtype: KvOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as a line of JSON")] = False,
) -> None:
    """Talk to a model.

    /reset forgets the conversation, /stats shows figures of the last answer, /exit or Ctrl-D ends, Ctrl-C
    stops an answer. Through a pipe, each line is a message.
    """
    from strata.engine.sampling import SamplingParams

    from . import session
    from .chat import Chat

    params = SamplingParams(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    source = session.Source(model, artifact, format, threads, max_context, kv_dtype=kv_dtype)
    Chat(session.open_model(source), params, system, as_json).run()


@app.command("compile")
@reported()
def compile_(
    model: Annotated[str, typer.Argument(help="Model folder or hub id")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the artifact to")],
    format: FormatOption = None,
    target: TargetOption = "host",
    max_context: ContextOption = None,
    kv_dtype: KvOption = None,
    max_batch: BatchOption = 8,
    pipeline: PipelineOption = "",
    prefer: PreferOption = "",
    pin: PinOption = None,
    libraries: LibrariesOption = "",
    measure: MeasureOption = None,
    load: LoadOption = None,
    ranges: RangeOption = None,
    database: DatabaseOption = None,
    machine: Annotated[
        str | None,
        typer.Option(help="Use the kernels of the best plan for this machine of strata calibrate: this"),
    ] = None,
    objective: Annotated[str, typer.Option(help="Of that plan: time, or a sum of time and energy")] = "time",
    print_after: PrintAfterOption = "",
    dump: DumpOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compile a model to an artifact folder.

    The folder holds machine code, weights and tokenizer, and runs without the compiler: strata generate
    PROMPT --artifact DIR.
    """
    from . import session

    planning = session.Planning(prefer, pin or (), libraries, measure, load or (), ranges or (), database)
    source = session.Source(
        *(model, None, format, None, max_context, pipeline, print_after, dump),
        plan=planning.options(),
        ranges=planning.dim_ranges(),
        kv_dtype=kv_dtype,
    )
    figures = session.compile_to(source, output, max_batch, target, machine, objective)
    if as_json:
        _print_json(figures)
    else:
        sizes = f"weights {figures['weights_bytes'] / 1e6:.1f} MB, code {figures['code_bytes'] / 1e6:.2f} MB"
        sys.stdout.write(f"{figures['artifact']}: {sizes}, written in {figures['seconds']:.2f} s\n")


@app.command()
@reported()
def inspect(
    model: ModelArgument = None,
    shape: ShapeOption = None,
    stage: Annotated[str, typer.Option(help="graph, fused, loop, plan, llvm or asm")] = "fused",
    function: Annotated[str, typer.Option(help="Function to show: prefill, decode or score")] = "decode",
    op: Annotated[
        str | None, typer.Option(help="Only nodes or launches whose op or name contains this")
    ] = None,
    format: FormatOption = None,
    pipeline: PipelineOption = "",
    color: Annotated[
        bool | None, typer.Option("--color/--no-color", help="Highlight; default: on a terminal")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON (--stage plan)")] = False,
) -> None:
    """Show a model at any stage of compilation."""
    from .inspect import View, show

    show(View(model, shape, stage, function, op, format, pipeline), color, as_json)


commands.add_to(app)


def _print_json(figures: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
