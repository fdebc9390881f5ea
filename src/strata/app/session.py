"""What ``generate`` and ``compile`` do once their options are parsed, and what other commands share.

Nothing of the compiler is imported before a model has to be compiled: an artifact runs without it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.assets import DEMO_MODEL
from strata.core.errors import UserError
from strata.core.knobs import current, knobs
from strata.engine.generate import Generation, LanguageModel
from strata.engine.sampling import SamplingParams
from strata.runtime.artifact import is_artifact
from strata.runtime.records import DimRange

from .progress import Report, progress_bar

if TYPE_CHECKING:
    from strata.planner.options import PlanOptions

Progress = Callable[[int, int, str, bool], None]


@dataclass(frozen=True, slots=True)
class Source:
    """Which model to run and, if it has to be compiled, how.

    Attributes:
        model: Folder or hub id; ``None`` = the demo model.
        artifact: Compiled artifact instead of a model.
        format: Dtype of weights and KV cache; ``None`` = as stored.
        threads: ``None`` = the knob, by default all cores.
        max_context: Longest sequence in tokens; ``None`` = the model's.
        pipeline: Graph passes; ``""`` = the knob.
        print_after: Passes after which the graph goes to stderr.
        dump: Directory for the graph after every pass.
        plan: How kernels are chosen; ``None`` = by cost, among those of the rules and of the user.
        ranges: Ranges of symbolic dims.
        kv_dtype: Of stored keys and values; ``None`` = as the weights.
    """

    model: str | None = None
    artifact: Path | None = None
    format: str | None = None
    threads: int | None = None
    max_context: int | None = None
    pipeline: str = ""
    print_after: str = ""
    dump: Path | None = None
    plan: PlanOptions | None = None
    ranges: tuple[DimRange, ...] = ()
    kv_dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Planning:
    """The command line's options about kernels, as they were typed.

    Attributes:
        prefer: Names of candidates, or their first parts, separated by commas.
        pin: ``NODE=CANDIDATE``.
        libraries: Names of libraries, separated by commas.
        measure: Time candidates; ``None`` = products with large weights.
        load: Python files of the user's, which register kernels, candidates, passes, ....
        ranges: ``DIM=LO..HI``, or a set of sizes that get kernels of their own: ``DIM=SIZE,SIZE,...``.
        database: Tuning records.
    """

    prefer: str = ""
    pin: Sequence[str] = ()
    libraries: str = ""
    measure: bool | None = None
    load: Sequence[Path] = ()
    ranges: Sequence[str] = ()
    database: Path | None = None

    def options(self) -> PlanOptions | None:
        """The options, if any are given; runs the user's files, which register what they define.

        Raises:
            UserError: an option is malformed, or a file cannot be run.
        """
        if self == Planning():
            return None
        from strata.compiler.artifact_cache import parse_sizes
        from strata.compiler.user_file import load_file
        from strata.planner.options import PlanOptions, parse_pin

        for file in self.load:
            load_file(file)
        return PlanOptions(
            libraries=_words(self.libraries),
            prefer=_words(self.prefer),
            pins=tuple(parse_pin(text) for text in self.pin),
            measure=self.measure,
            sizes=tuple(found for text in self.ranges if (found := parse_sizes(text))[1]),
            database=self.database,
        )

    def dim_ranges(self) -> tuple[DimRange, ...]:
        """Parsed ``--range`` options."""
        if not self.ranges:
            return ()
        from strata.compiler.artifact_cache import parse_range

        return tuple(parse_range(text) for text in self.ranges)


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def open_model(source: Source) -> LanguageModel:
    """Load an artifact, or compile a model (or take it from the cache).

    Raises:
        UserError: options contradict each other, or the model cannot be read.
    """
    artifact = source.artifact
    if artifact is None and source.model is not None and is_artifact(source.model):
        artifact = Path(source.model)
    if artifact is not None:
        _check_artifact_options(source)
        limits = {} if source.max_context is None else {"max_context": source.max_context}
        model = LanguageModel.load(artifact, source.threads, **limits)
        if model.tokenizer is None:
            raise UserError(f"{artifact}: has no tokenizer.json; text cannot be read or written without it")
        return model
    try:
        return _cached_model(source) or _compiled_model(source)
    except ModuleNotFoundError as error:
        raise UserError(
            f"cannot compile here: {error}; install all of strata-llm, or use --artifact"
        ) from None


def _cached_model(source: Source) -> LanguageModel | None:
    """The model of a folder that was compiled before, without a single import of the compiler."""
    from strata.compiler.artifact_cache import Options, artifact_path

    folder = Path(source.model or DEMO_MODEL)
    settings = current()
    if not folder.is_dir() or source.print_after or source.dump or settings.print_after or settings.dump:
        return None
    start = time.perf_counter()
    pipeline = source.pipeline or settings.pipeline
    if pipeline not in ("default", "zero") or settings.loop_pipeline != "loop_default":
        return None  # it may run code of the user's, which only the compiler can tell
    artifact = artifact_path(
        folder, Options(source.format, source.max_context, **_planning(source, pipeline))
    )
    if not is_artifact(artifact):
        return None
    model = LanguageModel.load(artifact, source.threads)
    if model.tokenizer is not None:
        model.tokenizer.where = str(folder)
    model.load_s = time.perf_counter() - start
    return model


def _compiled_model(source: Source) -> LanguageModel:
    from strata.compiler.api import load
    from strata.models import locate

    folder = locate(source.model or DEMO_MODEL)
    if (folder / "config.json").is_file() and not (folder / "tokenizer.json").is_file():
        raise UserError(f"{folder}: has no tokenizer.json; text cannot be read or written without it")
    with compile_progress() as progress, debugging(source.print_after, source.dump) as fresh:
        return load(
            folder,
            source.format,
            source.threads,
            progress=progress,
            max_context=source.max_context,
            fresh=fresh,
            **_planning(source, pipeline_text(source.pipeline)),
        )


def _planning(source: Source, pipeline: str) -> dict[str, Any]:
    """The fields of ``Options`` that say how a model becomes kernels, and what its cache stores."""
    chosen = {} if source.plan is None else {"plan": source.plan}
    return {"pipeline": pipeline, "ranges": source.ranges, "kv_dtype": source.kv_dtype, **chosen}


def _check_artifact_options(source: Source) -> None:
    if source.model is not None and source.artifact is not None:
        raise UserError("--artifact: got also a model; expected one of them")
    if source.plan is not None or source.ranges:
        raise UserError(f"{source.artifact or source.model}: is compiled already; its kernels are chosen")
    for name in ("format", "kv_dtype", "pipeline", "print_after", "dump"):
        if getattr(source, name):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option}: an artifact is compiled already; compile it again with {option}")


def pipeline_text(text: str) -> str:
    """The pipeline of a command's option; without one, that of the knob.

    Raises:
        ParseError: the text is no pipeline.
    """
    from strata.passes import named_pipeline

    chosen = text or current().pipeline
    named_pipeline(chosen)
    return chosen


@contextmanager
def debugging(print_after: str, dump: Path | None) -> Iterator[bool]:
    """Knobs of ``--print-after`` and ``--dump``; yields whether the passes have to run for that.

    Raises:
        UserError: there is no such pass.
    """
    values: dict[str, Any] = {}
    if print_after:
        values["print_after"] = print_after
    if dump is not None:
        values["dump"] = dump
    with knobs(**values) as settings:
        if settings.print_after:
            from strata.compiler.pipelines import PASSES
            from strata.ir.dump import STAGES

            for name in settings.print_after:
                if name != "all" and name not in STAGES:
                    PASSES[name]
        if settings.dump is not None:
            from strata.ir.dump import start_dump

            start_dump(settings.dump)
        yield bool(settings.print_after or settings.dump is not None)


@contextmanager
def compile_progress() -> Iterator[Progress | None]:
    """A progress bar from the first report to the end of the block; ``None`` if stderr is no terminal."""
    with progress_bar() as show:
        yield None if show is None else compile_report(show)


def compile_report(show: Report) -> Progress:
    """What the compiler reports, on a bar."""

    def report(done: int, total: int, name: str, from_cache: bool) -> None:
        show(done, total, f"{'loading' if from_cache else 'compiling'} {name}")

    return report


def compile_to(
    source: Source,
    output: Path,
    max_batch: int,
    target: str = "host",
    machine: str | None = None,
    objective: str = "time",
) -> dict[str, Any]:
    """Compile ``source.model`` to an artifact for ``target``; returns the figures to print.

    Args:
        source: What to compile, and how.
        output: Folder.
        max_batch: Sequences per forward pass.
        target: Name of the machine to compile for.
        machine: One of ``strata calibrate``, whose plan says which kernels run; ``None`` = their own costs.
        objective: Of that plan.

    Raises:
        UserError: the model cannot be read, ``output`` cannot be written, or there is no such target or
            machine.
    """
    from strata.compiler.api import Options, compile_model, planned_for
    from strata.target import get_target

    compiled_for = get_target(target)
    start = time.perf_counter()
    planning = _planning(source, pipeline_text(source.pipeline))
    options = Options(source.format, source.max_context, max_batch, **planning)
    model = source.model or DEMO_MODEL
    if machine is not None:
        options = planned_for(model, options, machine, objective)
    with compile_progress() as progress, debugging(source.print_after, source.dump) as fresh:
        folder = compile_model(model, output, options, compiled_for, progress, fresh)
    return {
        "artifact": str(folder),
        "seconds": time.perf_counter() - start,
        "weights_bytes": (folder / "weights.safetensors").stat().st_size,
        "code_bytes": (folder / "code.bin").stat().st_size,
    }


def read_prompt(text: str) -> str:
    """The prompt of the command line; ``-`` reads standard input.

    Raises:
        UserError: it is empty or no UTF-8.
    """
    try:
        if text == "-":
            text = sys.stdin.buffer.read().decode()
        text.encode()  # bytes of the command line that are no UTF-8 arrive as lone surrogates
    except UnicodeError as error:
        raise UserError(f"prompt: is no UTF-8 text: {error}") from None
    if not text:
        raise UserError("prompt: is empty; expected a text to continue")
    return text


def generate(model: LanguageModel, prompt: str, params: SamplingParams, as_json: bool) -> None:
    """Stream the continuation to stdout, then the statistics to stderr (or everything as JSON to stdout)."""
    if as_json:
        result = model.generate(prompt, params)
        sys.stdout.write(json.dumps({"prompt": prompt, **figures(model, result)}, indent=2) + "\n")
        return
    with model.stream(
        prompt, params
    ) as stream:  # checks the prompt: nothing is printed of one that cannot run
        sys.stdout.write(prompt)
        for piece in stream:
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        sys.stderr.write(f"[{stats_line(model, stream.generation)}]\n")


def stats_line(model: LanguageModel, result: Generation) -> str:
    """How the model came to be ready, speed of prefill and decode, memory, and why the text ended."""
    s = result.stats
    return (
        f"{'compiled' if model.was_compiled else 'loaded'} in {model.load_s:.2f} s · "
        f"prefill {s.prompt_tokens} tokens {s.prefill_tokens_per_s:.0f} tok/s · "
        f"decode {s.generated_tokens} tokens {s.decode_tokens_per_s:.1f} tok/s · "
        f"memory {s.peak_rss_bytes / 2**20:.0f} MiB · {result.finish_reason.value}"
    )


def figures(model: LanguageModel, result: Generation) -> dict[str, Any]:
    """A generation as JSON data."""
    s = result.stats
    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason.value,
        "stopped_by": result.stopped_by,
        "was_compiled": model.was_compiled,
        "load_s": model.load_s,
        "prompt_tokens": s.prompt_tokens,
        "generated_tokens": s.generated_tokens,
        "ttft_s": s.ttft_s,
        "prefill_tokens_per_s": s.prefill_tokens_per_s,
        "decode_tokens_per_s": s.decode_tokens_per_s,
        "peak_rss_bytes": s.peak_rss_bytes,
    }
