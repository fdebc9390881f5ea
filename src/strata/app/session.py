"""What ``generate``, ``chat`` and ``compile`` do once their options are parsed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from strata.core.errors import UserError
from strata.core.knobs import knobs
from strata.engine.generate import Generation, LanguageModel
from strata.engine.sampling import SamplingParams

DEMO_MODEL = Path(__file__).parent.parent / "assets" / "demo_model"


@contextmanager
def compile_progress() -> Iterator[Any]:
    """A progress bar on stderr that appears with the first report; yields the callback
    ``(done, total, name, from_cache)``."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: list[Any] = []

        def report(done: int, total: int, name: str, from_cache: bool) -> None:
            if not tasks:
                tasks.append(bar.add_task("compiling", total=total))
            what = "loading" if from_cache else "compiling"
            bar.update(tasks[0], completed=done, total=total, description=f"{what} {name}")

        yield report


@contextmanager
def debugging(print_after: str, dump: Path | None) -> Iterator[None]:
    """Knobs of ``--print-after`` and ``--dump``."""
    values: dict[str, Any] = {}
    if print_after:
        values["print_after"] = print_after
    if dump is not None:
        values["dump"] = dump
    with knobs(**values):
        yield


def open_model(
    model: str | None,
    artifact: Path | None,
    format_: str | None,
    threads: int | None,
    max_context: int | None,
    pipeline: str,
    print_after: str = "",
    dump: Path | None = None,
) -> LanguageModel:
    """Load an artifact, or compile (or take from the cache) a model.

    Raises:
        UserError: both are given, or neither can be read.
    """
    if artifact is not None:
        if model is not None:
            raise UserError("--artifact and --model: got both; expected one of them")
        start = time.perf_counter()
        loaded = LanguageModel.load(artifact, threads)
        loaded.load_s = time.perf_counter() - start
        return loaded
    from strata.compiler.api import load

    with compile_progress() as progress, debugging(print_after, dump):
        return load(
            model or DEMO_MODEL,
            format_,
            threads,
            progress=progress,
            max_context=max_context,
            pipeline=pipeline,
            fresh=bool(print_after or dump),
        )


def compile_to(
    model: str,
    output: Path,
    format_: str | None,
    max_context: int | None,
    max_batch: int,
    pipeline: str,
    print_after: str = "",
    dump: Path | None = None,
) -> dict[str, Any]:
    """Compile to an artifact; returns the figures to print."""
    from strata.compiler.api import Options, compile_model

    start = time.perf_counter()
    options = Options(format_, max_context, max_batch, pipeline=pipeline)
    with compile_progress() as progress, debugging(print_after, dump):
        folder = compile_model(model, output, options, progress=progress)
    sizes = {f.name: f.stat().st_size for f in folder.iterdir() if f.is_file()}
    return {
        "artifact": str(folder),
        "seconds": time.perf_counter() - start,
        "weights_bytes": sizes.get("weights.safetensors", 0),
        "code_bytes": sizes.get("code.bin", 0),
    }


def load_text(model: LanguageModel) -> str:
    """How the model came to be ready, for the line of statistics."""
    return f"{'compiled' if model.was_compiled else 'loaded'} in {model.load_s:.2f} s"


def stats_line(model: LanguageModel, result: Generation) -> str:
    """One line: load time, prefill and decode speed, memory."""
    s = result.stats
    return (
        f"[{load_text(model)} · prefill {s.prompt_tokens} tokens {s.prefill_tokens_per_s:.0f} tok/s · "
        f"decode {s.generated_tokens} tokens {s.decode_tokens_per_s:.1f} tok/s · "
        f"memory {s.peak_rss_bytes / 2**20:.0f} MiB · {result.finish_reason.value}]"
    )


def generate(model: LanguageModel, prompt: str, params: SamplingParams, as_json: bool) -> None:
    """Stream the continuation to stdout, then the statistics to stderr (or everything as JSON)."""
    if as_json:
        result = model.generate(prompt, params)
        sys.stdout.write(json.dumps(figures(model, prompt, result), indent=2) + "\n")
        return
    sys.stdout.write(prompt)
    stream = model.stream(prompt, params)
    for piece in stream:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    sys.stderr.write(stats_line(model, stream.generation) + "\n")


def figures(model: LanguageModel, prompt: str, result: Generation) -> dict[str, Any]:
    """A generation as JSON data."""
    s = result.stats
    return {
        "prompt": prompt,
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason.value,
        "load_s": model.load_s,
        "was_compiled": model.was_compiled,
        "prompt_tokens": s.prompt_tokens,
        "generated_tokens": s.generated_tokens,
        "prefill_tokens_per_s": s.prefill_tokens_per_s,
        "decode_tokens_per_s": s.decode_tokens_per_s,
        "peak_rss_bytes": s.peak_rss_bytes,
    }


def chat(model: LanguageModel, params: SamplingParams, system: str) -> None:
    """A conversation on the terminal."""
    start = [{"role": "system", "content": system}] if system else []
    messages, last = list(start), ""
    sys.stderr.write("/reset forgets, /stats shows figures, /exit ends\n")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            sys.stderr.write("\n")
            return
        match text:
            case "":
                continue
            case "/exit" | "/quit":
                return
            case "/reset":
                messages = list(start)
                sys.stderr.write("forgotten\n")
            case "/stats":
                sys.stderr.write((last or "nothing generated yet") + "\n")
            case _ if text.startswith("/"):
                sys.stderr.write(f"unknown command {text}; there are /reset, /stats and /exit\n")
            case _:
                last = _answer(model, params, messages, text) or last


def _answer(model: LanguageModel, params: SamplingParams, messages: list[dict[str, str]], text: str) -> str | None:
    """Stream one answer and remember it; a mistake (a full context) is shown and forgotten."""
    messages.append({"role": "user", "content": text})
    try:
        stream = model.stream_chat(messages, params)
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
    except UserError as error:
        messages.pop()
        sys.stderr.write(f"strata: {error}\n")
        return None
    except KeyboardInterrupt:
        messages.pop()
        sys.stdout.write("\n")
        return None
    sys.stdout.write("\n")
    messages.append({"role": "assistant", "content": stream.generation.text})
    return stats_line(model, stream.generation)
