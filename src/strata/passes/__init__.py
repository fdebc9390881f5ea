"""Graph to graph: canonicalise, fold, fuse, clean up, plan memory; and passes on loop functions.

Importing the package registers the passes and their pipelines: ``default``; ``zero`` (nothing rewritten,
every op its own launch: what to compare with); ``place`` (where values live), which the planner runs on what
these two give; ``loop_default``. :func:`transform` runs a pipeline with the hooks that knobs ask for.
"""

from __future__ import annotations

from collections.abc import Iterable

from strata.core.knobs import current
from strata.core.trace import Trace
from strata.graph.check import check
from strata.graph.nodes import Module
from strata.graph.text import parse_module, print_module
from strata.ir.dump import Dumper
from strata.ir.instruments import Instrument
from strata.ir.kind import IRKind
from strata.ir.passes import Pipeline, parse_pipeline, register_pipeline
from strata.ir.runner import Result, run_pipeline

from . import library_patterns, patterns  # noqa: F401  (the first registers patterns)
from .base import FunctionPass
from .canonicalize import Canonicalize
from .clear_notes import ClearNotes
from .common_subexpressions import CommonSubexpressions
from .dead_code import DeadCode
from .fold_constants import FoldConstants
from .fold_transpose import FoldTranspose
from .fuse import AnnotatePatterns, Fuse, FuseOps
from .kill_dead import KillDead
from .legalize import Legalize, legalization
from .loops import LOOP, LoopModule, LoopPass, LoopStage, for_ir, run_loop_passes, transform_loops
from .memory_plan import MemoryPlan, PlanMemory, plan_memory
from .partition import Partition
from .quantize import Quantize
from .set_range import SetRange
from .views import ReshapeToView

__all__ = [
    "GRAPH",
    "LOOP",
    "AnnotatePatterns",
    "Canonicalize",
    "ClearNotes",
    "CommonSubexpressions",
    "DeadCode",
    "FoldConstants",
    "FoldTranspose",
    "FunctionPass",
    "Fuse",
    "FuseOps",
    "KillDead",
    "Legalize",
    "LoopModule",
    "LoopPass",
    "LoopStage",
    "MemoryPlan",
    "Partition",
    "PlanMemory",
    "Quantize",
    "ReshapeToView",
    "SetRange",
    "legalization",
    "named_pipeline",
    "patterns",
    "plan_memory",
    "run_loop_passes",
    "run_passes",
    "transform",
    "transform_loops",
]


def _count(module: Module) -> int:
    return sum(len(f.nodes) for f in module.functions)


GRAPH: IRKind[Module] = IRKind("graph", print_module, parse_module, check, _count)

register_pipeline(
    "default",
    Canonicalize(),
    FoldTranspose(),
    FoldConstants(),
    CommonSubexpressions(),
    DeadCode(),
    Fuse(),
)
register_pipeline("zero", Fuse(max_ops=1))
register_pipeline("place", ReshapeToView(), KillDead(), PlanMemory())


def named_pipeline(text: str | None = None) -> Pipeline[Module]:
    """The graph pipeline of a name (``"default"``) or text (``"canonicalize,fuse{max_ops=8}"``).

    Args:
        text: Name or text; default: the ``pipeline`` knob.

    Raises:
        ParseError: the text is bad; shows the place, and what exists.
        UserError: it has a pass on loop functions.
    """
    return for_ir("graph", parse_pipeline(current().pipeline if text is None else text))


def transform(
    pipeline: Pipeline[Module] | str | None,
    module: Module,
    *,
    dumper: Dumper | None = None,
    trace: Trace | None = None,
    instruments: Iterable[Instrument] = (),
) -> Result[Module]:
    """Run graph passes on ``module`` with the hooks that the knobs ask for.

    Args:
        pipeline: A pipeline, its name or its text; ``None``: the ``pipeline`` knob.
        module: What to transform; unchanged.
        dumper: Where dumps go; see :func:`strata.ir.runner.run_pipeline`.
        trace: Where times go.
        instruments: What watches beside the knobs; see :mod:`strata.ir.instruments`.

    Returns:
        The module, and what every pass did.

    Raises:
        ParseError: the pipeline text is bad.
        VerifyError: a pass failed or broke the IR.
    """
    parsed = for_ir("graph", pipeline) if isinstance(pipeline, Pipeline) else named_pipeline(pipeline)
    return run_pipeline(parsed, module, GRAPH, dumper=dumper, trace=trace, instruments=instruments)


def run_passes(pipeline: Pipeline[Module] | str | None, module: Module) -> Module:
    """The module after ``pipeline``; see :func:`transform`."""
    return transform(pipeline, module).module
