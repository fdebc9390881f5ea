"""Strata: an LLM compiler in Python.

::

    import strata

    model = strata.load("path/to/model", format="bf16")
    print(model.generate("def read_lines(path):").text)

Names are imported on first use: running a compiled artifact needs ``runtime`` and ``engine`` only.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strata.compiler.api import compile, compile_model, load, tune
    from strata.compiler.explore import sweep
    from strata.compiler.external import external
    from strata.compiler.kernel import Kernel, candidate, kernel
    from strata.compiler.machine_plan import plan, thresholds
    from strata.compiler.pipelines import pipeline, register_pass, register_pipeline
    from strata.compiler.quantize import quantize
    from strata.engine.generate import LanguageModel
    from strata.engine.sampling import SamplingParams
    from strata.frontend import nn
    from strata.loop.script.language import dim
    from strata.passes import patterns
    from strata.planner.options import PlanOptions
    from strata.runtime.export import export, load_graph
    from strata.schedule.builder import Schedule
    from strata.target.hardware import CPU, GPU, PHU, Converter, Device, Link, Machine, Memory, op_cost

__version__ = "0.1.0"

_WHERE = {
    "nn": "strata.frontend",
    **dict.fromkeys(
        ("CPU", "GPU", "PHU", "Converter", "Device", "Link", "Machine", "Memory", "op_cost"),
        "strata.target.hardware",
    ),
    "candidate": "strata.compiler.kernel",
    "compile": "strata.compiler.api",
    "compile_model": "strata.compiler.api",
    "dim": "strata.loop.script.language",
    "export": "strata.runtime.export",
    "external": "strata.compiler.external",
    "kernel": "strata.compiler.kernel",
    "load": "strata.compiler.api",
    "load_graph": "strata.runtime.export",
    "Kernel": "strata.compiler.kernel",
    "LanguageModel": "strata.engine.generate",
    "SamplingParams": "strata.engine.sampling",
    "PlanOptions": "strata.planner.options",
    "Schedule": "strata.schedule.builder",
    "patterns": "strata.passes",
    "plan": "strata.compiler.machine_plan",
    "pipeline": "strata.compiler.pipelines",
    "quantize": "strata.compiler.quantize",
    "sweep": "strata.compiler.explore",
    "thresholds": "strata.compiler.machine_plan",
    "register_pass": "strata.compiler.pipelines",
    "register_pipeline": "strata.compiler.pipelines",
    "tune": "strata.compiler.api",
}

__all__ = [
    "CPU",
    "GPU",
    "PHU",
    "Converter",
    "Device",
    "Kernel",
    "LanguageModel",
    "Link",
    "Machine",
    "Memory",
    "PlanOptions",
    "SamplingParams",
    "Schedule",
    "candidate",
    "compile",
    "compile_model",
    "dim",
    "export",
    "external",
    "kernel",
    "load",
    "load_graph",
    "nn",
    "op_cost",
    "patterns",
    "pipeline",
    "plan",
    "quantize",
    "register_pass",
    "register_pipeline",
    "sweep",
    "thresholds",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'strata' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
