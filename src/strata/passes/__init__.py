"""Graph to graph: canonicalise, fold, fuse, clean up, plan memory.

Importing the package registers the passes and two pipelines: ``default``, and ``zero`` (nothing rewritten,
every op its own launch: what to compare with). :func:`run_passes` runs a pipeline with the hooks that knobs
ask for.
"""

from __future__ import annotations

from strata.core.knobs import current
from strata.graph.check import check
from strata.graph.nodes import Module
from strata.graph.text import parse_module, print_module
from strata.ir.dump import Dumper
from strata.ir.passes import Pipeline, parse_pipeline, register_pipeline
from strata.ir.runner import IRKind, Result, run_pipeline
from strata.ir.trace import Trace

from .canonicalize import Canonicalize
from .common_subexpressions import CommonSubexpressions
from .dead_code import DeadCode
from .fold_constants import FoldConstants
from .fold_transpose import FoldTranspose
from .fuse import Fuse

__all__ = [
    "GRAPH",
    "Canonicalize",
    "CommonSubexpressions",
    "DeadCode",
    "FoldConstants",
    "FoldTranspose",
    "Fuse",
    "run_passes",
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


def run_passes(
    module: Module,
    pipeline: Pipeline[Module] | str | None = None,
    *,
    dumper: Dumper | None = None,
    trace: Trace | None = None,
) -> Result[Module]:
    """Run graph passes on ``module``.

    Args:
        module: What to transform; unchanged.
        pipeline: A pipeline or its text; default: the ``pipeline`` knob.
        dumper: Where dumps go; see :func:`strata.ir.runner.run_pipeline`.
        trace: Where times go.

    Raises:
        UserError: the pipeline text is bad.
        VerifyError: a pass failed or broke the IR.
    """
    chosen = current().pipeline if pipeline is None else pipeline
    parsed = parse_pipeline(chosen) if isinstance(chosen, str) else chosen
    return run_pipeline(parsed, module, GRAPH, dumper=dumper, trace=trace)
