"""What there is to compile for and to compute with: this machine, vendor libraries, other machines."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from strata.core.errors import UnsupportedError
from strata.runtime.libraries import LIBRARIES, Library
from strata.target import TARGETS, Target, detect_host

_CPUINFO = Path("/proc/cpuinfo")


def devices() -> dict[str, Any]:
    """Figures for people and programs.

    Returns:
        ``host``: this machine with its ``model``, or ``None`` where no code can be generated for it (then
        ``host_problem`` says why); ``libraries``: one entry per library that programs
        may call; ``targets``: the machines that can be compiled for by name.
    """
    try:
        host: dict[str, Any] | None = {"model": _cpu_model(), **_target_figures(detect_host())}
        problem = None
    except UnsupportedError as error:
        host, problem = None, str(error)
    return {
        "host": host,
        "host_problem": problem,
        "libraries": [_library_figures(library) for library in LIBRARIES.values()],
        "targets": [_target_figures(TARGETS[name]) for name in TARGETS],
    }


def _cpu_model(path: Path = _CPUINFO) -> str:
    """What the processor calls itself."""
    lines: Iterable[str] = path.read_text().splitlines() if path.exists() else ()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "unknown")


def _target_figures(target: Target) -> dict[str, Any]:
    return {
        "name": target.name,
        "cpu": target.cpu,
        "cores": target.num_cores,
        "features": list(target.features),
        "vector_bytes": target.vector_bytes,
        "l1_bytes": target.l1_bytes,
        "l2_bytes": target.l2_bytes,
        "l3_bytes": target.l3_bytes,
        "peak_f32_flop_per_s": target.peak_f32_flop_per_s,
        "peak_bf16_flop_per_s": target.peak_bf16_flop_per_s,
        "peak_int8_op_per_s": target.peak_int8_op_per_s,
        "bandwidth_bytes_per_s": target.bandwidth_bytes_per_s,
        "source": target.source,
    }


def _library_figures(library: Library) -> dict[str, Any]:
    path = library.find()
    return {
        "name": library.name,
        "found": path is not None,
        "version": library.version() if path is not None else None,
        "path": str(path) if path is not None else None,
        "package": library.package,
        "licence": library.licence,
        "functions": sorted(library.functions),
        "install": library.install,
    }
