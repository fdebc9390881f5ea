"""Matmul: register tiles of ``rows x columns`` over a weight stored in tiles of its outputs."""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.errors import LegalityError
from strata.loop.nodes import Func
from strata.target import Target

from ..step import loops_around
from ..steps.loops import Parallel, Reorder, Split, Unroll, Vectorize
from ..steps.placement import ComputeAt, DecomposeReduction
from .base import RULES, Draft, Proposal, stage_names

STAGE = "matmul"
ROW_TILES = (1, 4, 6)


def column_tile(target: Target) -> int:
    """Outputs that one register tile computes side by side: four vectors (two where there are 16 registers)."""
    lanes = target.vector_bytes // 4
    return lanes * (4 if target.num_vector_registers >= 32 else 2)


@RULES.register("matmul")
def matmul_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """Traces for ``out[m, n] = epilogue(sum_k a[m, k] * b[n, k])`` with 2-d results."""
    if stage_names(func) != [STAGE, "out"] or len(loops_around(func, "out")) != 2:
        return None
    if len(loops_around(func, STAGE)) != 3:
        return None
    proposals = []
    for rows in ROW_TILES:
        draft = Draft(func)
        try:
            _tile(draft, rows, column_tile(target), target.vector_bytes // 4)
            proposals.append(draft.proposal(f"cpu.matmul.tile{rows}x{column_tile(target)}", rows))
        except LegalityError:
            continue
    return proposals or None


def _tile(draft: Draft, rows: int, columns: int, lanes: int) -> None:
    draft.do(
        Split("out_i0", rows),
        Split("out_i1", columns),
        Reorder(("out_i1o", "out_i0o", "out_i0i", "out_i1i")),
        ComputeAt(STAGE, "out_i0o", "register"),
        Reorder(("matmul_k0", "matmul_i0", "matmul_i1")),
        DecomposeReduction(STAGE, "matmul_k0"),
    )
    for loop in ("matmul_i1", "matmul_i1_init", "out_i1i"):
        draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
    draft.do(Unroll("matmul_i0"), Unroll("matmul_i0_init"), Unroll("out_i0i"), Parallel("out_i1o"))
