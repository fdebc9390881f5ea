"""Loop passes: loop functions to loop functions, before scheduling and after it.

The ``loop_pipeline`` knob names the pipeline (``loop_default``). The driver runs it on every naive loop
function as lowering makes it, and on every finalised candidate::

    @strata.register_pass
    @dataclass(frozen=True)
    class Mine(LoopPass):
        name: ClassVar[str] = "mine"
        stages: ClassVar[tuple[LoopStage, ...]] = (LoopStage.NAIVE,)
        def run_func(self, func: Func) -> Func: ...

    with strata.knobs(loop_pipeline="loop_default,mine"): ...

A pass keeps the parameters of a function: graph values are bound to them. Text of a :class:`LoopModule`::

    LoopModule ::= "stage" ("naive" | "scheduled") NEWLINE func*            func: see ``loop.text``
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise
from typing import Any, ClassVar

from strata.core.errors import ParseError, Span, UserError, VerifyError
from strata.core.knobs import current
from strata.ir.dump import LOWER, SCHEDULE, show_stage, wants_stage
from strata.ir.instruments import Instrument
from strata.ir.kind import IRKind
from strata.ir.passes import Pass, Pipeline, parse_pipeline, register_pass, register_pipeline
from strata.ir.runner import Result, run_pipeline
from strata.loop.check import LOOP_LOWERED, LOOP_NAIVE, check
from strata.loop.nodes import Block, Func
from strata.loop.rewrite import walk_stmts
from strata.loop.simplify import simplify_func
from strata.loop.text import parse_func, print_func

LOOP_DEFAULT = "loop_default"


class LoopStage(Enum):
    """Where in the compilation loop functions are."""

    NAIVE = "naive"  # as lowering makes them: loops around blocks
    SCHEDULED = "scheduled"  # finalised: what the code generator takes


@dataclass(frozen=True, slots=True)
class LoopModule:
    """Loop functions of one stage; names are unique."""

    functions: tuple[Func, ...]
    stage: LoopStage = LoopStage.SCHEDULED

    is_excerpt: ClassVar[bool] = (
        True  # never all functions of a program: the driver hands over a few at a time
    )


@dataclass(frozen=True)
class LoopPass(Pass[LoopModule]):
    """A pass that treats each loop function on its own.

    Attributes:
        stages: At which stages it runs; at others it changes nothing.
    """

    ir: ClassVar[str] = "loop"
    stages: ClassVar[tuple[LoopStage, ...]] = (LoopStage.NAIVE, LoopStage.SCHEDULED)

    def run(self, module: LoopModule) -> LoopModule:
        """Apply :meth:`run_func` to every function."""
        if module.stage not in self.stages:
            return module
        return replace(module, functions=tuple(self.run_func(f) for f in module.functions))

    @abstractmethod
    def run_func(self, func: Func) -> Func:
        """The transformed function, with the same parameters; the argument is not changed."""


@register_pass
@dataclass(frozen=True)
class SimplifyLoops(LoopPass):
    """Brings index arithmetic to normal form, and drops conditions and loops that are decided.

    Stage: any loop functions -> the same.
    Preserves: values bit by bit; memory accesses, less those that are masked off or unused.
    """

    name: ClassVar[str] = "simplify_loops"

    def run_func(self, func: Func) -> Func:
        """Simplify the body."""
        return simplify_func(func)


def print_loops(module: LoopModule) -> str:
    """Text of loop functions, ending in a newline."""
    return "\n".join([f"stage {module.stage.value}\n", *map(print_func, module.functions)])


def parse_loops(text: str, source: str = "<text>") -> LoopModule:
    """Parse what :func:`print_loops` prints; without a ``stage`` line, functions with blocks are naive.

    Raises:
        ParseError: not the grammar; with line, column and caret.
    """
    lines = text.splitlines()
    stage: LoopStage | None = None
    starts: list[int] = []  # lines at which a function begins
    for number, line in enumerate(lines):
        word = line.split(" ", 1)[0]
        if word == "stage":
            stage = _stage(line, number, source)
            lines[number] = ""
        elif word == "dims" or (
            word == "func" and not (starts and _is_dims_only(lines[starts[-1] : number]))
        ):
            starts.append(number)
        elif not starts and line.strip() and not line.lstrip().startswith("#"):
            starts.append(number)  # whatever it is, the parser of functions will say so
    # Blank lines in front keep the line numbers of messages right.
    functions = tuple(
        parse_func("\n" * a + "\n".join(lines[a:b]) + "\n", source)
        for a, b in pairwise([*starts, len(lines)])
    )
    return LoopModule(functions, stage or _stage_of(functions))


def _stage(line: str, number: int, source: str) -> LoopStage:
    match = re.fullmatch(r"stage (\w+)\s*", line)
    known = {s.value: s for s in LoopStage}
    if match is None or match[1] not in known:
        span = Span(source, number + 1, 1)
        raise ParseError(f"got {line!r}; expected stage {' or '.join(known)}", span, line)
    return known[match[1]]


def _is_dims_only(lines: list[str]) -> bool:
    """Whether the lines hold the dims of a function that is still to come."""
    code = [x for x in lines if x.strip() and not x.lstrip().startswith("#")]
    return len(code) == 1 and code[0].startswith("dims")


def _stage_of(functions: tuple[Func, ...]) -> LoopStage:
    has_blocks = any(isinstance(s, Block) for f in functions for s in walk_stmts(f))
    return LoopStage.NAIVE if has_blocks else LoopStage.SCHEDULED


def check_loops(module: LoopModule) -> LoopModule:
    """Check every function by the rules of the stage.

    Raises:
        VerifyError: one breaks a rule, or two have one name.
    """
    names = [f.name for f in module.functions]
    for name in names:
        if names.count(name) > 1:
            raise VerifyError(f"loop check: two functions are called {name!r}; names must be unique")
    for func in module.functions:
        check(func, LOOP_NAIVE if module.stage is LoopStage.NAIVE else LOOP_LOWERED)
    return module


def _count(module: LoopModule) -> int:
    return sum(1 for f in module.functions for _ in walk_stmts(f))


LOOP: IRKind[LoopModule] = IRKind("loop", print_loops, parse_loops, check_loops, _count)

register_pipeline(LOOP_DEFAULT)


def loop_pipeline(text: str | None = None) -> Pipeline[LoopModule]:
    """The loop pipeline of a name or text; default: the ``loop_pipeline`` knob.

    Raises:
        ParseError: the text is bad; shows the place, and what exists.
        UserError: it has a pass on another IR.
    """
    return for_ir("loop", parse_pipeline(current().loop_pipeline if text is None else text))


def for_ir(ir: str, pipeline: Pipeline[Any]) -> Pipeline[Any]:
    """``pipeline``, if all its passes work on ``ir``.

    Raises:
        UserError: one does not.
    """
    for step in pipeline.passes():
        if step.ir != ir:
            knobs = {"graph": "pipeline", "loop": "loop_pipeline"}
            raise UserError(
                f"pipeline: {step} is a pass on {step.ir} IR; expected {ir} passes; it belongs into the knob "
                f"{knobs.get(step.ir, step.ir)}"
            )
    return pipeline


def transform_loops(
    pipeline: Pipeline[LoopModule] | str | None,
    module: LoopModule,
    *,
    instruments: Iterable[Instrument] = (),
) -> Result[LoopModule]:
    """Run loop passes on ``module`` with the hooks that the knobs ask for; see ``passes.transform``.

    Raises:
        ParseError: the pipeline text is bad.
        VerifyError: a pass failed or broke the IR.
    """
    parsed = for_ir("loop", pipeline) if isinstance(pipeline, Pipeline) else loop_pipeline(pipeline)
    return run_pipeline(parsed, module, LOOP, instruments=instruments)


def run_loop_passes(stage: LoopStage, functions: Iterable[Func]) -> tuple[Func, ...]:
    """What the driver calls: the functions after the loop pipeline of the knobs, dumped if they ask for it.

    Args:
        stage: Where in the compilation the functions are.
        functions: Of unlike names.

    Raises:
        VerifyError: a pass failed, broke the IR, or changed the parameters of a function.
        UserError: the ``loop_pipeline`` knob holds a graph pass.
    """
    before = tuple(functions)
    after = before
    pipeline = loop_pipeline()
    if any(True for _ in pipeline.passes()):
        after = transform_loops(pipeline, LoopModule(before, stage)).module.functions
        _check_signatures(before, after)
    label = LOWER if stage is LoopStage.NAIVE else SCHEDULE
    if wants_stage(label):
        for func in after:
            show_stage(label, func.name, print_func(func))
    return after


def _check_signatures(before: tuple[Func, ...], after: tuple[Func, ...]) -> None:
    if [f.name for f in before] != [f.name for f in after]:
        got, want = (", ".join(f.name for f in fs) for fs in (after, before))
        raise VerifyError(f"loop passes: got the functions {got}; expected {want}, in this order")
    for old, new in zip(before, after, strict=True):
        wanted, got = ([(p.shape, p.dtype) for p in f.params] for f in (old, new))
        if wanted != got or old.num_outputs != new.num_outputs:
            raise VerifyError(
                f"loop passes: {new.name}: the parameters changed; graph values are bound to them"
            )
