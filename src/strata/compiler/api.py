"""What people call: compile a graph, compile a model folder, load a model ready to generate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.assets import DEMO_MODEL
from strata.codegen.object_cache import Progress
from strata.core.dtypes import DType, bf16, f16, f32
from strata.core.errors import UserError
from strata.core.knobs import current
from strata.core.weight_format import FormatChoice, WeightFormat
from strata.engine.generate import LanguageModel
from strata.engine.tokenizer import Tokenizer
from strata.frontend.nn import Exported
from strata.graph.nodes import Module
from strata.ir.passes import Pipeline
from strata.models import Checkpoint, ModelConfig, ModelDefinition, build, locate, read_config
from strata.planner.options import PlanOptions, parse_pin
from strata.runtime.artifact import is_artifact
from strata.runtime.program import Program
from strata.target import Target, detect_host

from .artifact_cache import Options, artifact_path
from .driver import Compiled, Params, trace
from .pipelines import has_own_code
from .program_cache import load_program, program_key, store_program

if TYPE_CHECKING:
    from strata.planner.tuning.tuner import TuneReport
    from strata.target.hardware import Machine

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "config.json",
)


def compile(
    source: Module | Exported,
    params: Params | Mapping[str, np.ndarray] = (),
    target: Target | None = None,
    *,
    pipeline: Pipeline | str = "default",
    num_threads: int | None = None,
    prefer: str | Iterable[str] = (),
    pins: Mapping[str, str] | None = None,
    options: PlanOptions | None = None,
) -> Program:
    """Compile a graph module and load it into this process.

    Args:
        source: A graph module, or what ``nn.Module.export`` gives.
        params: Arrays by name, or (name, array) pairs.
        target: Machine to compile for; default: this one.
        pipeline: Graph passes: a pipeline, or the name of one.
        num_threads: Threads to run on; default: all cores.
        prefer: Candidates that win wherever they apply, by name or first part of it: ``"openblas"``,
            ``"user.my_dense"``.
        pins: Candidate by node, both as patterns, or by node and number of rows:
            ``{"*.mlp.*": "cpu.matmul.tile4x64"}``, ``{"*.mlp.*@1..8": "user.skinny"}``.
        options: All there is to say about planning; ``prefer`` and ``pins`` are added to it.

    Returns:
        The program: ``program["decode"](...)``.

    Raises:
        UserError: params do not fit the module, or a preference fits nothing.
        UnsupportedError: an op cannot be compiled.
    """
    module, cache = (source.module, source.cache) if isinstance(source, Exported) else (source, None)
    planning = plan_options(prefer, pins, options)
    return trace(module, target, cache).lower(pipeline).plan(planning).compile().program(params, num_threads)


def plan_options(
    prefer: str | Iterable[str] = (),
    pins: Mapping[str, str] | None = None,
    base: PlanOptions | None = None,
) -> PlanOptions:
    """``base`` with preferences and pins added in front."""
    base = base or PlanOptions()
    names = (prefer,) if isinstance(prefer, str) else tuple(prefer)
    added = tuple(parse_pin(f"{node}={candidate}") for node, candidate in (pins or {}).items())
    return replace(base, prefer=(*names, *base.prefer), pins=(*added, *base.pins))


def format_of(config: ModelConfig, options: Options) -> FormatChoice | WeightFormat | DType | str:
    """How weights are stored: as the options say, or as in the checkpoint."""
    stored = config.dtype if config.dtype in (f32, f16, bf16) else f32
    return options.format or config.format or stored


def define(config: ModelConfig, options: Options, name: str = "") -> ModelDefinition:
    """The graph of a model under these options."""
    return build(
        config,
        format_of(config, options),
        max_tokens=max(options.prefill_chunk, options.max_batch),
        max_batch=options.max_batch,
        page_size=options.page_size,
        kv_dtype=options.kv_dtype,
        model_name=name,
    )


def compile_definition(
    definition: ModelDefinition,
    options: Options,
    target: Target | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
) -> Compiled:
    """Compile a model's graph (no weights are touched), or take it from the cache unless ``fresh``."""
    traced = trace(definition.module, target, definition.cache_record, definition.config)
    key = program_key(traced, options.passes, options.plan)
    found = None if fresh or _runs_own_code(options) else load_program(key)
    if found is not None:
        return found

    def measuring(name: str) -> None:
        if progress is not None:
            progress(0, 1, f"(measuring {name})", False)

    compiled = traced.lower(options.passes).plan(options.plan, measuring).compile(progress)
    store_program(key, compiled)
    return compiled


def _runs_own_code(options: Options) -> bool:
    """Whether passes of the user's own take part: what they do is no part of any key."""
    return has_own_code(options.passes) or has_own_code(current().loop_pipeline)


def compile_model(
    model: str | Path,
    output: str | Path,
    options: Options | None = None,
    target: Target | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
) -> Path:
    """Compile a model folder or hub id to an artifact folder.

    Returns:
        ``output``.

    Raises:
        UserError: the model cannot be read, or ``output`` cannot be written.
    """
    options = options or Options()
    folder = locate(model)
    definition = define(read_config(folder, options.max_context), options, folder.name)
    params = definition.load(Checkpoint(folder))  # names and shapes are checked before any work
    if (folder / "tokenizer.json").is_file():
        Tokenizer.from_folder(folder)  # a damaged one is found before the work
    compiled = compile_definition(definition, options, target, progress, fresh)
    files = {name: folder / name for name in TOKENIZER_FILES if (folder / name).is_file()}
    compiled.save(output, _reported(params, len(compiled.record.params), progress), files)
    return Path(output)


def _reported(params: Params, count: int, progress: Progress | None) -> Iterator[tuple[str, np.ndarray]]:
    """``params``, of which there are ``count``, with a report of each when somebody takes it."""
    for number, (name, array) in enumerate(params):
        if progress is not None:
            progress(number, count, "(weights)", False)
        yield name, array
        del array  # it may be large
    if progress is not None:
        progress(count, count, "(weights)", False)


def planned_for(
    model: str | Path, options: Options, machine: Machine | str | Path, objective: str = "time"
) -> Options:
    """``options`` of a model folder or hub id with the kernels that a plan for ``machine`` chooses.

    Raises:
        UserError: what :func:`~strata.compiler.machine_kernels.for_machine` refuses.
    """
    from .machine_kernels import for_machine

    folder = locate(model)
    return for_machine(read_config(folder, options.max_context), options, machine, objective, folder.name)


def cached_artifact(
    model: str | Path,
    options: Options,
    target: Target | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
) -> tuple[Path, bool]:
    """The artifact of a model in the cache directory, compiled if it is not there yet (or ``fresh``).

    Returns:
        Folder, and whether it had to be compiled.
    """
    target = target or detect_host()
    folder = locate(model)
    path = artifact_path(folder, options, target)
    if is_artifact(path) and not fresh and not _runs_own_code(options):
        return path, False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path.parent}: cannot make the cache folder: {error.strerror}; set STRATA_CACHE_DIR"
        ) from error
    return compile_model(folder, path, options, target, progress, fresh), True


def load(
    path: str | Path = DEMO_MODEL,
    format: str | None = None,
    threads: int | None = None,
    *,
    prefer: str | Iterable[str] = (),
    pins: Mapping[str, str] | None = None,
    machine: Machine | str | Path | None = None,
    progress: Progress | None = None,
    fresh: bool = False,
    **options: Any,
) -> LanguageModel:
    """Load a model ready to generate: a Hugging Face folder, a hub id, or a compiled artifact.

    Args:
        path: Where the model is; default: the demo model. Folders and hub ids are compiled on first use and
            cached.
        format: Dtype of weights and KV cache; default: as stored.
        threads: Threads to run on; default: all cores.
        prefer: Candidates that win wherever they apply, as for :func:`compile`.
        pins: Candidate by node, as for :func:`compile`.
        machine: Kernels are those of the fastest plan for this machine of ``strata calibrate``, by number of
            rows: ``"this"``.
        progress: Called while compiling.
        fresh: Compile even if the cache has it.
        options: Other fields of :class:`Options` by name; of an artifact they can only lower the limits
            ``max_context``, ``max_batch`` and ``prefill_chunk``.

    Raises:
        UserError: the model cannot be read or does not fit this machine, or an option is bad.
    """
    names = [f.name for f in fields(Options) if f.name != "format"]
    for name in options:
        if name not in names:
            raise UserError(f"load: no option {name!r}; it has format, {', '.join(names)}")
    if is_artifact(path):
        fixed = [name for name in ("page_size", "kv_dtype", "pipeline", "plan", "ranges") if name in options]
        fixed += [n for n, given in (("prefer", prefer), ("pins", pins), ("machine", machine)) if given]
        if format is not None or fixed:
            raise UserError(
                f"load: {path} is compiled already; got {', '.join(fixed) or 'format'}; compile it again"
            )
        return LanguageModel.load(path, threads, **options)
    start = time.perf_counter()
    chosen = replace(Options(format), **options)
    chosen = replace(chosen, plan=plan_options(prefer, pins, chosen.plan))
    if machine is not None:
        chosen = planned_for(path, chosen, machine)
    artifact, compiled = cached_artifact(path, chosen, None, progress, fresh)
    model = LanguageModel.load(artifact, threads)
    if model.tokenizer is not None:
        model.tokenizer.where = str(path)  # messages name the model, not its place in the cache
    model.load_s, model.was_compiled = time.perf_counter() - start, compiled
    return model


def tune(
    source: Module | Exported,
    trials: int = 200,
    time_s: float | None = None,
    *,
    database: str | Path | None = None,
    target: Target | None = None,
    pipeline: Pipeline | str = "default",
    progress: Callable[..., None] | None = None,
) -> TuneReport:
    """Search for faster schedules of a module's kernels on this machine; later compilations use them.

    Args:
        source: A graph module, or what ``nn.Module.export`` gives.
        trials: Schedules to measure, over all kernels.
        time_s: Seconds after which no new ones are begun; ``None`` = no limit.
        database: File of records; default: ``tuning.jsonl`` in the cache folder.
        target: Machine to tune for, which must be like this one.
        pipeline: Graph passes.
        progress: Called after every trial.

    Returns:
        What was found, per kernel and size: ``report.results``.
    """
    from strata.planner.tuning import tuner
    from strata.planner.tuning.database import Database
    from strata.planner.tuning.tasks import model_tasks
    from strata.planner.tuning.workers import LocalWorkers

    module, cache = (source.module, source.cache) if isinstance(source, Exported) else (source, None)
    traced = trace(module, target, cache)
    tasks = model_tasks(traced.lower(pipeline).module, traced.target)
    with LocalWorkers() as workers:
        options = tuner.TuneOptions(trials, time_s)
        return tuner.tune(tasks, Database(database), workers, options, progress)
