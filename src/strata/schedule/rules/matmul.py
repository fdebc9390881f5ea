"""Matmul: register tiles of ``rows x columns`` over a weight stored in tiles of its outputs."""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.dims import Dim
from strata.core.dtypes import DType, bf16
from strata.core.errors import LegalityError
from strata.loop.layout import Layout
from strata.loop.nodes import Func
from strata.schedule.step import loops_around
from strata.schedule.steps import (
    ComputeAt,
    DecomposeReduction,
    Parallel,
    Reorder,
    Split,
    Tensorize,
    Unroll,
    Vectorize,
)
from strata.target import Target

from .base import RULES, Draft, Proposal, stage_names

STAGE = "matmul"
ROW_TILES = (1, 4, 6)
PAIR = 2  # elements of k that a bf16 dot product takes at once


def weight_layout(dtype: DType, contracted: Dim, transposed: bool, target: Target) -> Layout:
    """How a weight is stored for these kernels: tiles of outputs; pairs of k together for bf16 dot products.

    Args:
        dtype: Of the weight.
        contracted: Extent of k.
        transposed: The weight is ``[K, N]`` instead of ``[N, K]``.
        target: The machine.
    """
    pairs = target.has_bf16_dot and dtype is bf16 and isinstance(contracted, int) and contracted % PAIR == 0
    return Layout(column_tile(target), PAIR if pairs else 1, transposed)


def column_tile(target: Target) -> int:
    """Outputs that one register tile computes side by side: four vectors (two if there are 16 registers)."""
    lanes = target.vector_bytes // 4
    return lanes * (4 if target.num_vector_registers >= 32 else 2)


@RULES.register("matmul")
def matmul_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """Traces for ``out[m, n] = epilogue(sum_k a[m, k] * b[n, k])`` with 2-d results."""
    if stage_names(func) != [STAGE, "out"] or len(loops_around(func, "out")) != 2:
        return None
    if len(loops_around(func, STAGE)) != 3:
        return None
    for dot in (True, False) if target.has_bf16_dot else (False,):
        proposals = [p for rows in ROW_TILES if (p := _proposal(func, target, rows, dot)) is not None]
        if proposals:
            return proposals
    return None


def _proposal(func: Func, target: Target, rows: int, dot: bool) -> Proposal | None:
    """The tile with ``rows`` rows, by bf16 dot products if ``dot``; ``None`` if it is not legal."""
    columns = column_tile(target)
    draft = Draft(func)
    try:
        _tile(draft, rows, columns, target.lanes_f32, dot)
        return draft.proposal(f"cpu.matmul.{'dot' if dot else 'tile'}{rows}x{columns}", rows, dot)
    except LegalityError:
        return None


def _tile(draft: Draft, rows: int, columns: int, lanes: int, dot: bool) -> None:
    draft.do(
        Split("out_i0", rows),
        Split("out_i1", columns),
        Reorder(("out_i1o", "out_i0o", "out_i0i", "out_i1i")),
        ComputeAt(STAGE, "out_i0o", "register"),
    )
    if dot:
        draft.do(Split("matmul_k0", PAIR), Reorder(("matmul_k0o", "matmul_i0", "matmul_i1", "matmul_k0i")))
        draft.do(DecomposeReduction(STAGE, "matmul_k0o"))
        draft.do(Split("matmul_i1", lanes), Unroll("matmul_i1o"), Tensorize("matmul_i1i"))
    else:
        draft.do(Reorder(("matmul_k0", "matmul_i0", "matmul_i1")), DecomposeReduction(STAGE, "matmul_k0"))
        draft.do(Split("matmul_i1", lanes), Unroll("matmul_i1o"), Vectorize("matmul_i1i"))
    for loop in ("matmul_i1_init", "out_i1i"):
        draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
    draft.do(Unroll("matmul_i0"), Unroll("matmul_i0_init"), Unroll("out_i0i"), Parallel("out_i1o"))
