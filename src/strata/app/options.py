"""Options that several commands take, as types of their parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

ModelArgument = Annotated[str | None, typer.Argument(help="Model folder or hub id; default: the demo model")]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Model folder or hub id; default: the demo model")
]
ArtifactOption = Annotated[
    Path | None, typer.Option("--artifact", "-a", help="Compiled artifact (of `strata compile`)")
]
ShapeOption = Annotated[
    str | None, typer.Option(help="Named architecture with random weights, e.g. tinyllama-1.1b")
]
FormatOption = Annotated[
    str | None, typer.Option(help="Weights: f32, bf16, f16, int8, int4, mixed, ...; default: as stored")
]
KvOption = Annotated[
    str | None,
    typer.Option(
        "--kv-dtype",
        help="Keys and values: f32, f16, bf16 or int8; default: as weights, bf16 for quantised ones",
    ),
]
TargetOption = Annotated[
    str, typer.Option(help="Machine to compile for, e.g. avx2 or neon-i8mm (see strata devices)")
]
ThreadsOption = Annotated[int | None, typer.Option(help="Threads; default: all cores")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON")]
ContextOption = Annotated[int | None, typer.Option(help="Longest sequence in tokens; default: the model's")]
BatchOption = Annotated[int, typer.Option(help="Most sequences per forward pass")]
PipelineOption = Annotated[
    str, typer.Option(help="Graph passes, by name or like 'canonicalize,fuse{max_ops=8}'")
]
PrintAfterOption = Annotated[
    str,
    typer.Option(
        help="Print the IR after these passes or stages (lower, schedule, llvm): with commas, or all"
    ),
]
DumpOption = Annotated[
    Path | None, typer.Option(help="Write the IR after every pass and stage into this directory, numbered")
]

TemperatureOption = Annotated[float, typer.Option(help="0 = always the most probable token")]
TopKOption = Annotated[int, typer.Option(help="Keep the k most probable tokens; 0 = all")]
TopPOption = Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability")]
MinPOption = Annotated[
    float, typer.Option(help="Drop tokens below this fraction of the best one's probability")
]
RepetitionOption = Annotated[float, typer.Option(help="Above 1 discourages tokens seen before")]
PresenceOption = Annotated[float, typer.Option(help="Subtracted once from the logits of generated tokens")]
FrequencyOption = Annotated[float, typer.Option(help="Subtracted per occurrence of generated tokens")]
SeedOption = Annotated[int | None, typer.Option(help="Random seed; default: another one each time")]
StopOption = Annotated[list[str] | None, typer.Option(help="End at this text (may be given several times)")]

PreferOption = Annotated[
    str, typer.Option(help="Candidates that win wherever they apply, e.g. openblas or user.my_dense")
]
PinOption = Annotated[
    list[str] | None,
    typer.Option(
        help="NODE=CANDIDATE, or NODE@LO..HI=CANDIDATE for so many rows: use this candidate for nodes of "
        "this name or op; with --machine: PATTERN=DEVICE"
    ),
]
LibrariesOption = Annotated[
    str, typer.Option(help="Libraries that may offer kernels, e.g. openblas,onednn (see strata devices)")
]
MeasureOption = Annotated[
    bool | None,
    typer.Option(
        "--measure/--no-measure",
        help="Time candidates here instead of modelling them; default: products with large weights",
    ),
]
LoadOption = Annotated[
    list[Path] | None,
    typer.Option("--load", help="Python file that registers kernels, candidates or passes of your own"),
]
RangeOption = Annotated[
    list[str] | None,
    typer.Option("--range", help="DIM=LO..HI or DIM=SIZE,SIZE,...: compile for these sizes"),
]
MachineOption = Annotated[
    str | None,
    typer.Option(help="Plan for this machine: a name (see strata machines), or a .toml or .py file"),
]
ObjectiveOption = Annotated[
    str, typer.Option(help="time, energy, edp, makespan, or a sum like 0.5*time+2*energy")
]
SeqLenOption = Annotated[
    str | None, typer.Option(help="Tokens per sequence: a number, LO..HI, or numbers with commas")
]
PhaseOption = Annotated[str, typer.Option(help="prefill, decode or request (both, one after the other)")]
SequencesOption = Annotated[int | None, typer.Option("--batch", help="Sequences of one run; default: 1")]
GraphOption = Annotated[
    Path | None, typer.Option(help="Graph-executor JSON (plain or gzipped) instead of a model")
]
TracedOption = Annotated[
    int | None, typer.Option("--traced-len", help="Length that --graph was traced at; default: inferred")
]
AllowOption = Annotated[
    list[str] | None, typer.Option(help="PATTERN=DEVICE,DEVICE: where ops of this name or kind may run")
]
DevicesOption = Annotated[str | None, typer.Option(help="Devices that may be used, with commas")]
ActivationsOption = Annotated[
    str | None, typer.Option(help="Dtype that results are stored in if theirs is wider, e.g. f16")
]
GranularityOption = Annotated[
    str | None, typer.Option(help="What is placed: ops, or kernels (launches of the compiler); default: ops")
]
LongestOption = Annotated[
    int | None,
    typer.Option("--max-context", help="Longest sequence; may be more than the model was made for"),
]

DatabaseOption = Annotated[Path | None, typer.Option(help="Tuning records; default: in the cache folder")]


def planning_options(
    batch: SequencesOption = None,
    traced_len: TracedOption = None,
    pin: PinOption = None,
    allow: AllowOption = None,
    devices: DevicesOption = None,
    format: FormatOption = None,
    kv_dtype: KvOption = None,
    activations: ActivationsOption = None,
    granularity: GranularityOption = None,
    load: LoadOption = None,
) -> None:
    """Options of all commands that plan for machines."""


def also_takes(shared: Callable[..., None]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the parameters of ``shared`` too; it finds their values in ``context.params``."""
    more = inspect.signature(shared, eval_str=True).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters
        parameters = [*own.values(), *more.values()]

        @wraps(command)
        def called(**given: Any) -> None:
            command(**{name: value for name, value in given.items() if name in own})

        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
        called.__annotations__ = {p.name: p.annotation for p in parameters}
        return called

    return decorate
