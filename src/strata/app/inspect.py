"""``strata inspect``: a model at any stage of compilation, highlighted."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from pygments import highlight
from pygments.formatters import TerminalFormatter
from pygments.lexer import Lexer, RegexLexer
from pygments.lexers import LlvmLexer, NasmLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, Text

from strata.codegen.compile import assembly, emit_module
from strata.compiler.api import Options, define
from strata.compiler.driver import Planned, trace
from strata.core.errors import UserError
from strata.graph.nodes import Module
from strata.graph.text import print_module
from strata.loop.nodes import Func
from strata.loop.text import print_func
from strata.models import locate, read_config
from strata.models.shapes import SHAPES, shape_config
from strata.plan.assemble import PlannedFunction, PlannedLaunch

from .session import DEMO_MODEL

STAGES = ("graph", "fused", "loop", "plan", "llvm", "asm")


class StrataLexer(RegexLexer):
    """Graph IR and loop IR."""

    name = "Strata IR"
    tokens = {  # noqa: RUF012  (the base class's form)
        "root": [
            (r"#.*$", Comment),
            (r"\b(func|module|return|dims|for|in|parallel|unroll|vectorize|serial|block|alloc|let|if|else|where|init)\b", Keyword),
            (r"\b(f64|f32|f16|bf16|i64|i32|i16|i8|u8|u16|u32|bool|cache)\b(?=[\[<])", Keyword.Type),
            (r"[%@][\w.]+", Name.Variable),
            (r"\"[^\"]*\"", String),
            (r"-?0x[\da-f.]+p[+-]?\d+|\b\d+(\.\d+)?\b", Number),
            (r"[A-Za-z_]\w*(?=\()", Name.Function),
            (r"[-+*/%<>=!]+", Operator),
            (r"\s+|.", Text),
        ]
    }


def show(
    model: str | None, stage: str, function: str, op: str | None, format_: str | None, color: bool | None
) -> None:
    """Print one stage of one function to stdout.

    Raises:
        UserError: no such stage, function or op.
    """
    if stage not in STAGES:
        raise UserError(f"--stage: got {stage!r}; expected one of {', '.join(STAGES)}")
    text, lexer = stage_text(model, stage, function, op, format_)
    if color if color is not None else sys.stdout.isatty():
        text = highlight(text, lexer, TerminalFormatter())
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def stage_text(model: str | None, stage: str, function: str, op: str | None, format_: str | None) -> tuple[str, Lexer]:
    """Text of a stage, and the lexer that highlights it."""
    options = Options(format_)
    config = shape_config(model) if model in SHAPES else read_config(locate(model or DEMO_MODEL))
    definition = define(config, options)
    traced = trace(definition.module, None, definition.cache_record, definition.config)
    if stage == "graph":
        return print_module(Module((definition.module[function],))), StrataLexer()
    lowered = traced.lower(options.pipeline)
    if stage == "fused":
        return print_module(Module((lowered.module[function],))), StrataLexer()
    planned = lowered.plan()
    part = _function(planned, function)
    if stage == "plan":
        return "\n".join(_launch_text(x) for x in _matching(part, op)), StrataLexer()
    funcs = _kernels(_matching(part, op))
    if stage == "loop":
        return "\n\n".join(print_func(f) for f in funcs), StrataLexer()
    modules = [emit_module(f, traced.target) for f in funcs]
    if stage == "llvm":
        return "\n\n".join(modules), LlvmLexer()
    return "\n\n".join(assembly(m, traced.target) for m in modules), NasmLexer()


def _function(planned: Planned, name: str) -> PlannedFunction:
    for part in planned.functions:
        if part.record.name == name:
            return part
    known = ", ".join(p.record.name for p in planned.functions)
    raise UserError(f"--function: got {name!r}; this model has: {known}")


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


def _launch_text(launch: PlannedLaunch) -> str:
    """One stack: candidates with traces and estimates, and the choice per range of sizes."""
    lines = [f"stack {launch.node}: {launch.op}"]
    for k, c in enumerate(launch.stack.candidates):
        costs = ", ".join(f"{e.time_s * 1e6:.1f}us at {size}" for size, e in c.estimates[:: max(len(c.estimates) // 4, 1)])
        source = c.estimates[0][1].source if c.estimates else "none"
        lines.append(f"  [{k}] {c.name} {{{c.trace}}}  {costs} {source}")
    for choice in launch.choices:
        when = " and ".join(f"{r.lo} <= {r.dim} <= {r.hi}" for r in choice.when) or "otherwise"
        lines.append(f"  select [{choice.candidate}] when {when}")
    return "\n".join(lines)
