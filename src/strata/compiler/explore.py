"""Plans for many machines, lengths, models and objectives: what ``strata.sweep`` is.

::

    rows = strata.sweep(
        "gpt2-124m", "lightcode", {"devices.phu.multiplex": [1, 5, 20]}, seq_len=[128, 1024]
    )
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import strata
from strata.core.errors import UserError
from strata.graph.workload import Workload
from strata.graph.works import Phase
from strata.planner.devices.build import Rules
from strata.planner.devices.objective import Objective, parse_objective
from strata.planner.explore import Axis, Row, Sweep, Workers, explore
from strata.planner.explore.axes import axis
from strata.planner.explore.run import Progress
from strata.planner.explore.sweep import grid_of
from strata.target.hardware import CostFunction, Machine

from .machine_plan import Lengths, machine_of, points_of, workload_options
from .user_file import costs_of_files
from .workloads import Model, read_workload

Vary = Mapping[str, str | Sequence[object]] | Sequence[Axis]


def sweep(
    models: Model | Sequence[Model],
    machine: Machine | str | Path | Sequence[Machine | str | Path],
    vary: Vary | None = None,
    *,
    seq_len: Lengths | None = None,
    objective: Objective | str | Sequence[Objective | str] = "energy",
    output: str | Path | None = None,
    phase: Phase | str = Phase.PREFILL,
    pins: Mapping[str, str] | None = None,
    allowed: Mapping[str, Sequence[str]] | None = None,
    devices: Sequence[str] | None = None,
    costs: Sequence[CostFunction] = (),
    workers: int = 1,
    ray: str = "",
    load: Sequence[str | Path] = (),
    progress: Progress | None = None,
    **options: Any,
) -> list[Row]:
    """The best plan of each model at each setting of the machines' parameters, each length and objective.

    Args:
        models: One or several, each as for :func:`strata.plan`.
        machine: One or several, each as for :func:`strata.plan`.
        vary: Values by the path of a parameter in the machine's TOML file: ``{"devices.phu.dac.bits":
            "4..10", "memories.hbm.bandwidth_bytes_per_s": ["1 TB/s", "4 TB/s"]}``. Paths with commas between
            them have the same value. Each value is combined with each of the other paths'.
        seq_len: As for :func:`strata.plan`.
        objective: One or several, each as for :func:`strata.plan`.
        output: CSV or Parquet file that the rows are written to, while they are made. Rows that it has are
            not made again: an interrupted sweep goes on, and one with more values, lengths, models, machines
            or objectives adds to the file. A file of other parameters, or whose rows are of another model or
            machine of the same name, is refused.
        phase: ``"prefill"`` or ``"decode"``.
        pins: As for :func:`strata.plan`.
        allowed: As for :func:`strata.plan`.
        devices: As for :func:`strata.plan`.
        costs: As for :func:`strata.plan`. Workers must be able to import them.
        workers: Processes of this machine. With more than one, the program that calls this must be a module
            that can be imported: ``if __name__ == "__main__":``.
        ray: Address of a Ray cluster that makes the plans instead.
        load: Python files with more of them, which all processes run.
        progress: Called with (rows that are there, rows in all, what they are).
        options: As for :func:`strata.plan`.

    Returns:
        Rows by model, machine, values (the last path's change first), length and objective: the same ones,
        whoever makes them.

    Raises:
        UserError: what :func:`strata.plan` refuses, a path that a machine has none of, a value that does not
            fit, a file that cannot be read or written, or whose rows are others.
        UnsupportedError: an architecture that Strata lacks.
        DeviceError: workers died.
    """
    files = tuple(Path(path) for path in load)
    added = (*costs, *costs_of_files(files))
    machines = [machine_of(m).with_costs(added) for m in _each(machine, Machine)]
    known, lengths = workload_options(options, machines[0]), []
    workloads = [read_workload(model, phase, known) for model in _each(models, Workload)]
    for workload in workloads:
        points = points_of(workload, seq_len, phase)
        found = [values.tolist() for values in points.values()]
        lengths.append(tuple(dict.fromkeys(found[0])) if found else (None,))
    axes = vary or ()
    if isinstance(axes, Mapping):
        axes = [axis(paths, items) for paths, items in axes.items()]
    objectives = [parse_objective(o) for o in _each(objective, Objective)]
    definition = Sweep(
        tuple(workloads),
        tuple(grid_of(m, axes) for m in machines),
        tuple(lengths),
        tuple({o.text: o for o in objectives}.values()),
        Rules(allowed or {}, pins or {}, None if devices is None else tuple(devices)),
        _made_with(files),
    )
    path = None if output is None else Path(output)
    return explore(definition, path, Workers(workers, ray, partial(costs_of_files, files)), progress)


def _made_with(files: Sequence[Path]) -> str:
    texts = b"\0".join(path.read_bytes() for path in files)
    return f"strata {strata.__version__} {hashlib.sha256(texts).hexdigest()}"


def _each(given: Any, cls: type) -> list[Any]:
    """What may be one of a class (or a text, a path, anything that is no sequence) or several."""
    if isinstance(given, cls | str | Path) or not isinstance(given, Sequence):
        return [given]
    if not given:
        raise UserError(f"sweep: got no {cls.__name__.lower()}; expected at least one")
    return list(given)
