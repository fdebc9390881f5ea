"""Anything that Strata reads a model from, as a workload."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from strata.core.dtypes import DType, dtype
from strata.core.errors import UserError
from strata.core.weight_format import FormatChoice, WeightFormat
from strata.frontend.nn import Exported
from strata.frontend.nn import Module as NnModule
from strata.graph.nodes import Function, Module
from strata.graph.workload import Workload
from strata.graph.works import Phase, function_workload
from strata.models import SHAPES, ModelConfig, locate, read_config, shape_config
from strata.models.fields import CONFIG_NAME, read_object
from strata.models.registry import ReadOptions, parse_config
from strata.models.workload import Granularity, member, model_workload

if TYPE_CHECKING:
    from collections.abc import Iterable

Model = str | Path | Workload | ModelConfig | Exported | Module | Function


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """What a model is run with. ``None`` is what the model itself says.

    Attributes:
        batch: Sequences of one run.
        format: How weights are stored: ``"f16"`` (usual), ``"int4"``, ``"mixed"``, ...
        kv_dtype: Dtype of keys and values.
        activations: Store results of a wider float dtype in this one.
        granularity: ``"ops"``, or ``"kernels"``: the launches of the compiler.
        max_context: Longest sequence in tokens; more than the model allows asks what that would cost.
        traced_len: Length that a graph-executor JSON was traced at; ``None`` = inferred.
    """

    batch: int = 1
    format: FormatChoice | WeightFormat | DType | str | None = None
    kv_dtype: str | None = None
    activations: DType | str | None = None
    granularity: Granularity | str = Granularity.OPS
    max_context: int | None = None
    traced_len: int | None = None


def read_workload(
    model: Model, phase: Phase | str = Phase.PREFILL, options: WorkloadOptions | None = None
) -> Workload:
    """One run of a model as work; weights are not needed.

    Args:
        model: A model folder or its ``config.json``, a hub id, the name of a shape (``"llama-2-7b"``), a file
            of graph-executor JSON, a config, what ``nn.Module.export`` gives, a graph, or a workload itself.
        phase: ``"prefill"`` or ``"decode"``; a graph without these functions, a graph-executor JSON and a
            workload are one run of their own, ``"prefill"`` by name.
        options: What it is run with.

    Raises:
        UserError: the model cannot be read, or an option has no meaning for it.
        UnsupportedError: it is of an architecture that Strata lacks.
    """
    options = options or WorkloadOptions()
    match model:
        case Workload():
            _one_run(model.name, phase)
            _refuse(model.name, options, ())
            return model
        case ModelConfig():
            return _of_config(model, "model", phase, options)
        case Exported() | Module() | Function():
            return _of_graph(model, phase, options)
        case str() | Path():
            return _of_name(model, phase, options)
        case NnModule():
            raise UserError(
                f"model: got the module {type(model).__name__}; expected what its export(...) gives, which "
                f"says the shapes of its inputs"
            )
    raise UserError(f"model: got {type(model).__name__}; expected a path, a name, a graph or a workload")


def _of_name(model: str | Path, phase: Phase | str, options: WorkloadOptions) -> Workload:
    path, name = Path(model).expanduser(), str(model)
    if path.is_file():
        if path.name != CONFIG_NAME:
            return _of_relay(path, phase, options)
        config = parse_config(read_object(path), str(path), ReadOptions(path.parent))
        return _of_config(config, path.parent.name or "model", phase, options)
    if name in SHAPES and not path.is_dir():
        return _of_config(shape_config(name), name, phase, options)
    if not path.is_dir() and (isinstance(model, Path) or name.count("/") != 1 or name[0] in "./~"):
        raise UserError(
            f"model: got {name!r}; expected a folder with {CONFIG_NAME}, that file, a file of graph-executor "
            f"JSON, a hub id, or one of the shapes {', '.join(n for n, _ in SHAPES.items())}"
        )
    folder = locate(model, weights=False)
    return _of_config(read_config(folder), folder.name, phase, options)


def _of_config(config: ModelConfig, name: str, phase: Phase | str, options: WorkloadOptions) -> Workload:
    _refuse(name, options, ("batch", "format", "kv_dtype", "activations", "granularity", "max_context"))
    return model_workload(
        config,
        phase,
        options.batch,
        options.format,
        kv_dtype=options.kv_dtype,
        activations=options.activations,
        granularity=options.granularity,
        max_context=options.max_context,
        name=name,
    )


def _of_relay(path: Path, phase: Phase | str, options: WorkloadOptions) -> Workload:
    from strata.frontend.relay import read_relay

    _one_run(str(path), phase)
    _refuse(str(path), options, ("traced_len",))
    return read_relay(path, options.traced_len)


def _of_graph(model: Exported | Module | Function, phase: Phase | str, options: WorkloadOptions) -> Workload:
    phase = member(Phase, "phase", phase)
    if isinstance(model, Exported):
        model = model.module
    if isinstance(model, Module):
        names = [f.name for f in model.functions]
        model = model[phase.value] if phase.value in names or len(names) > 1 else model.functions[0]
    _refuse(f"@{model.name}", options, ("batch", "activations", "max_context"))
    stored = options.activations
    return function_workload(
        model,
        model.name,
        phase=phase,
        batch=options.batch,
        max_length=options.max_context or 1 << 20,
        activations=dtype(stored) if isinstance(stored, str) else stored,
    )


def _refuse(name: str, options: WorkloadOptions, known: Iterable[str]) -> None:
    """Refuse options that nothing here obeys."""
    if "granularity" not in known:
        if member(Granularity, "granularity", options.granularity) is Granularity.KERNELS:
            raise UserError(
                f"{name}: got granularity kernels, which 'this' and other machines of profile fitted have "
                "costs of; expected ops, which a graph is of: add --granularity ops (in Python "
                "granularity='ops') to cost each op as a kernel of its own, or choose another machine"
            )
        options = replace(options, granularity=Granularity.OPS)
    default = WorkloadOptions()
    given = [f.name for f in fields(options) if getattr(options, f.name) != getattr(default, f.name)]
    if unknown := [n for n in given if n not in known]:
        raise UserError(
            f"{name}: got {', '.join(unknown)}, which has no meaning for this model; leave it out"
        )


def _one_run(name: str, phase: Phase | str) -> None:
    """Refuse phases of what is one run of its own."""
    found = member(Phase, "phase", phase)
    if found is not Phase.PREFILL:
        raise UserError(f"{name}: got phase {found.value}; it is one run of its own: leave the phase out")
