"""``strata inspect``: a model at any stage of compilation, highlighted."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from pygments import highlight
from pygments.formatters import TerminalFormatter
from pygments.lexer import RegexLexer
from pygments.lexers import GasLexer, JsonLexer, LlvmLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Text

from strata.assets import DEMO_MODEL
from strata.codegen.compile import assembly, emit_module
from strata.compiler.api import Options, define
from strata.compiler.driver import Planned, Traced, trace
from strata.core.errors import UserError
from strata.graph.nodes import Function, Node
from strata.graph.text import print_function
from strata.loop.nodes import Func
from strata.loop.text import print_func
from strata.models import ModelDefinition, locate, read_config
from strata.models.shapes import shape_config
from strata.passes import named_pipeline
from strata.planner.assemble import PlannedFunction, PlannedLaunch
from strata.planner.options import PlanOptions
from strata.planner.report import plan_json
from strata.runtime.artifact import is_artifact
from strata.runtime.records import DimRange
from strata.target import Target

from .session import pipeline_text


class Stage(Enum):
    """What can be looked at, in the order of compilation."""

    GRAPH = "graph"
    FUSED = "fused"
    LOOP = "loop"
    PLAN = "plan"
    LLVM = "llvm"
    ASM = "asm"


@dataclass(frozen=True, slots=True)
class View:
    """What to show of which model.

    Attributes:
        model: Folder or hub id; ``None`` = the demo model (if there is no shape).
        shape: Named architecture instead of a model.
        stage: Value of a :class:`Stage`.
        function: ``prefill``, ``decode`` or ``score``.
        op: Only nodes or launches whose op or name contains this.
        format: Dtype of weights and KV cache.
        pipeline: Graph passes; ``""`` = the knob.
    """

    model: str | None = None
    shape: str | None = None
    stage: str = "fused"
    function: str = "decode"
    op: str | None = None
    format: str | None = None
    pipeline: str = ""


class IRLexer(RegexLexer):
    """Graph IR, loop IR and plans, for highlighting."""

    name = "Strata IR"
    _keywords = (
        "func|module|return|dims|for|in|parallel|unroll|vectorize|serial|block|alloc|let|if|else|where|init|"
        "stack|select|when|otherwise|and|multiple|of|register"
    )
    tokens = {  # noqa: RUF012  (the base class's form)
        "root": [
            (r"(#|//).*$", Comment),
            (r"[%@](\"[^\"\n]*\"|[\w.]+)", Name.Variable),
            (r"\"[^\"\n]*\"", String),
            (r"\b(f64|f32|f16|bf16|i64|i32|i16|i8|u8|u16|u32|bool|cache)\b(?=[\[<(\s,}])", Keyword.Type),
            (rf"\b({_keywords})\b", Keyword),
            (r"-?0x[\da-f.]+p[+-]?\d+", Number.Hex),
            (r"-?\b\d+(\.\d+)?", Number),
            (r"[A-Za-z_][\w.]*(?=[({])", Name.Function),
            (r"[A-Za-z_][\w.]*", Name),
            (r"[-+*/%<>=!]+", Operator),
            (r"\s+", Text.Whitespace),
            (r".", Text),
        ]
    }


_LEXERS = {Stage.LLVM: LlvmLexer, Stage.ASM: GasLexer}


def show(view: View, color: bool | None = None, as_json: bool = False) -> None:
    """Print ``view`` to stdout, highlighted if ``color`` (``None``: on a terminal).

    Raises:
        UserError: no such stage, function, op, shape or model; JSON of something else than the plan.
    """
    stage = _stage(view.stage)
    if as_json and stage is not Stage.PLAN:
        raise UserError(f"--json: got --stage {stage.value}; expected --stage plan, whose text is figures")
    text = stage_text(view, as_json).rstrip("\n") + "\n"
    if sys.stdout.isatty() if color is None else color:
        lexer = JsonLexer if as_json else _LEXERS.get(stage, IRLexer)
        text = highlight(text, lexer(stripnl=False), TerminalFormatter())
    sys.stdout.write(text)


def _stage(name: str) -> Stage:
    try:
        return Stage(name)
    except ValueError:
        known = ", ".join(s.value for s in Stage)
        raise UserError(f"--stage: got {name!r}; expected one of {known}") from None


def define_model(model: str | None, shape: str | None, options: Options) -> ModelDefinition:
    """The graph of a model folder, of a named shape, or of the demo model.

    Raises:
        UserError: both or an unknown one is given, or the folder holds no model.
    """
    if shape is not None:
        if model is not None:
            raise UserError(f"--shape: got {shape} and the model {model}; expected one of them")
        return define(shape_config(shape, options.max_context), options, shape)
    folder = locate(model or DEMO_MODEL)
    if is_artifact(folder):
        raise UserError(
            f"{folder}: is a compiled artifact; expected the model folder that it was compiled from"
        )
    return define(read_config(folder, options.max_context), options, folder.name)


def stage_text(view: View, as_json: bool = False) -> str:
    """Text of the stage, function and op of ``view``.

    Raises:
        UserError: see :func:`show`.
    """
    stage = _stage(view.stage)
    options = Options(view.format, pipeline=pipeline_text(view.pipeline))
    traced = _traced(view, options)
    if stage is Stage.GRAPH:
        return _graph_text(traced.module[view.function], view.op)
    lowered = traced.lower(options.pipeline)
    if stage is Stage.FUSED:
        passes = f"// {named_pipeline(options.pipeline)}\n" if view.op is None else ""
        return passes + _graph_text(lowered.module[view.function], view.op)
    part = _planned_function(lowered.plan(), view.function)
    launches = _matching(part, view.op)
    if stage is Stage.PLAN:
        return _plan_text(part, launches, as_json)
    return _code_text(_kernels(launches), stage, traced.target)


def _traced(view: View, options: Options) -> Traced:
    definition = define_model(view.model, view.shape, options)
    if view.function not in (f.name for f in definition.module.functions):
        known = ", ".join(f.name for f in definition.module.functions)
        raise UserError(f"--function: got {view.function!r}; this model has: {known}")
    return trace(definition.module, None, definition.cache_record, definition.config)


def planned_launches(
    view: View,
    plan: PlanOptions | None,
    ranges: tuple[DimRange, ...] = (),
    measuring: Callable[[str], None] | None = None,
) -> Sequence[PlannedLaunch]:
    """Launches of the view's function and op, planned under these options.

    Raises:
        UserError: see :func:`show`.
    """
    options = Options(
        view.format, pipeline=pipeline_text(view.pipeline), plan=plan or PlanOptions(), ranges=ranges
    )
    planned = _traced(view, options).lower(options.passes).plan(options.plan, measuring)
    return _matching(_planned_function(planned, view.function), view.op)


def _graph_text(function: Function, op: str | None) -> str:
    """Text of a function; with ``op`` only the nodes whose op or name contains it."""
    lines = print_function(function).splitlines()
    if op is None:
        return "\n".join(lines)
    chunks: list[list[str]] = []
    for line in lines:
        if re.match(r"  [^\s}]", line):  # a node of the function itself begins
            chunks.append([])
        if chunks:
            chunks[-1].append(line)
    found = [c for c in chunks if op in _label("\n".join(c))]
    if not found:
        ops = sorted({_op(n) for n in function.nodes})
        raise UserError(f"--op: nothing in {function.name} matches {op!r}; ops: {', '.join(ops)}")
    return "\n".join(line for chunk in found for line in chunk)


def _op(node: Node) -> str:
    return node.attrs["body"].name if node.op == "fused" else node.op


def _label(text: str) -> str:
    """What ``--op`` is looked for in, from a node's text: op, or name of the fused body; name of the node."""
    op = re.search(r"body=func @([\w.]+)", text) or re.search(r" = @?([\w.]+)", text)
    return f"{op[1] if op else ''} {text.partition('  # ')[2]}"


def _planned_function(planned: Planned, name: str) -> PlannedFunction:
    return next(p for p in planned.functions if p.record.name == name)


def _matching(part: PlannedFunction, op: str | None) -> list[PlannedLaunch]:
    found = [x for x in part.launches if op is None or op in x.op or op in x.node]
    if not found:
        ops = sorted({x.op for x in part.launches})
        raise UserError(f"--op: nothing in {part.record.name} matches {op!r}; ops: {', '.join(ops)}")
    return found


def _kernels(launches: Iterable[PlannedLaunch]) -> list[Func]:
    """Chosen loop functions of the launches, each once."""
    found: dict[str, Func] = {}
    for launch in launches:
        for choice in launch.choices:
            func = launch.stack.candidates[choice.candidate].func
            found.setdefault(func.name, func)
    return list(found.values())


def _code_text(funcs: Sequence[Func], stage: Stage, target: Target) -> str:
    if stage is Stage.LOOP:
        return "\n\n".join(print_func(f).strip("\n") for f in funcs)
    modules = [emit_module(f, target) for f in funcs]
    return "\n\n".join(modules if stage is Stage.LLVM else [assembly(m, target) for m in modules])


def _plan_text(part: PlannedFunction, launches: Sequence[PlannedLaunch], as_json: bool) -> str:
    if as_json:
        whole = plan_json([part])[part.record.name]
        wanted = {(x.node, x.op) for x in launches}
        kept = [x for x in whole["launches"] if (x["node"], x["op"]) in wanted]
        return json.dumps({part.record.name: {**whole, "launches": kept}}, indent=2)
    return "\n".join(_launch_text(x) for x in launches)


def _launch_text(launch: PlannedLaunch) -> str:
    """One stack: candidates with traces and estimates, and the choice per range of sizes."""
    lines = [f"stack {launch.node}: {launch.op}"]
    for k, c in enumerate(launch.stack.candidates):
        shown = c.estimates[:: max(len(c.estimates) // 4, 1)]
        costs = ", ".join(f"{e.time_s * 1e6:.1f} us at {size}" for size, e in shown)
        source = f" ({c.estimates[0][1].source})" if c.estimates else ""
        lines += [f"  [{k}] {c.name}: {costs}{source}", f"      {{{c.trace}}}"]
    for choice in launch.choices:
        when = " and ".join(f"{r.lo} <= {r.dim} <= {r.hi}" for r in choice.when)
        lines.append(f"  select [{choice.candidate}] " + (f"when {when}" if when else "otherwise"))
    return "\n".join(lines)
