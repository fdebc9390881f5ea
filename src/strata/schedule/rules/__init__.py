"""Schedule rules, one file per op family.

A rule says ``None`` (not mine) or proposes one or several schedules; the first family that proposes something
has the function, and what generic rules propose joins it where that is a sensible alternative. The last rule
takes everything: every function that finalises can be compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from strata.core.errors import LegalityError
from strata.loop.nodes import MATRIX, Alloc, Binary, BinaryOp, Block, Cast, Func, Load, MemSpace, Store
from strata.loop.rewrite import walk_stmts
from strata.schedule.step import find_block, loops_around
from strata.schedule.steps import Tensorize, Widen
from strata.target import Target

from . import blocked, columns, fallback, matmul, matrix, parts, quantized, rows, transpose  # noqa: F401  (fill the table)
from .base import RULES, Draft, Proposal, Rule

ORDER = (
    "lowered",
    "quantized",
    "matrix",
    "blocked",
    "matmul",
    "columns",
    "transpose",
    "parts",
    "rows",
    "fallback",
)
PAIRS, HALVES = "dot2_bf16", "every2"  # products of pairs of bf16, and of f32 by the halves of pairs
# What else is worth an estimate: few columns are better reduced row by row, on all threads.
ALTERNATIVES = {"columns": ("rows",)}


def propose(func: Func, target: Target) -> Sequence[Proposal]:
    """Schedules for ``func``: of the first family that claims it, and of its alternatives. Never empty.

    Raises:
        LegalityError: not even the function as it is can be finalised.
    """
    draft = Draft(func)
    for block, intrinsic in marked_blocks(func).items():
        loops = loops_around(draft.func, block)
        by_pairs = target.multiplies_bf16_pairs or any(dict(x.notes).get(MATRIX) for x in loops)
        if intrinsic == PAIRS and not by_pairs and _widen_shared(draft, block):
            intrinsic = HALVES
        draft.do(Tensorize(loops[-2].var.name, intrinsic))
    before = tuple(draft.steps)
    return tuple(replace(p, trace=(*before, *p.trace)) for p in _propose(draft.func, target))


def _propose(func: Func, target: Target) -> Sequence[Proposal]:
    for name in ORDER[:-1]:
        proposals = _ask(name, func, target)
        if proposals:
            others = [p for other in ALTERNATIVES.get(name, ()) for p in _ask(other, func, target)]
            return (*proposals, *(p for p in others if not _needs_workspace(p.func)))
    return RULES[ORDER[-1]](func, target) or ()


def marked_blocks(func: Func) -> dict[str, str]:
    """Blocks that lowering has made to be one instruction each, and its name (their note ``tensorize``)."""
    found = {s.name: dict(s.notes).get("tensorize") for s in walk_stmts(func) if isinstance(s, Block)}
    return {block: str(intrinsic) for block, intrinsic in found.items() if intrinsic is not None}


def _widen_shared(draft: Draft, block: str) -> bool:
    """Have in f32 what all lanes of a marked block multiply by: it is read once per vector of the others."""
    match find_block(draft.func, block).body:
        case Store(value=Binary(BinaryOp.ADD, _, Binary(BinaryOp.MUL, Cast(_, Load() as shared), _))):
            try:
                draft.do(Widen(shared.buffer.name))
            except LegalityError:
                return False
            return True
        case _:
            return False


def _needs_workspace(func: Func) -> bool:
    """Whether there are intermediates in global memory: no alternative is worth that."""
    return any(isinstance(s, Alloc) and s.buffer.space is MemSpace.GLOBAL for s in walk_stmts(func))


def _ask(name: str, func: Func, target: Target) -> Sequence[Proposal]:
    """What a rule proposes; nothing if it trips over a step that is not legal."""
    try:
        return RULES[name](func, target) or ()
    except LegalityError:
        return ()


__all__ = ["RULES", "Proposal", "Rule", "propose"]
