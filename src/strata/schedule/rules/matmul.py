"""Matmul: register tiles of ``rows x columns``, with vectors along the outputs or along k.

=============================== ========================================================================
``cpu.matmul.dot6x64``          weight in tiles of its outputs with pairs of k: bf16 dot products
``cpu.matmul.tile6x64``         weight in tiles, or ``[K, N]`` by rows: vectors along the outputs
``cpu.matmul.depth4x4``         weight ``[N, K]`` by rows: vectors along k, added up in the end
``cpu.gemv.depth8``             the same for a single row
``cpu.gemv.tile256``            weight ``[K, N]`` by rows, a single row: long pieces of each row of the weight
``cpu.gemv.masked64``           the same where rows of the weight are no whole vectors
=============================== ========================================================================

Batch dims are outer loops, fused with those over the tiles of columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strata.core.dims import Dim
from strata.core.dtypes import DType, bf16
from strata.core.errors import LegalityError
from strata.loop.layout import Layout
from strata.loop.nodes import AxisKind, Func, Load
from strata.loop.rewrite import free_vars, walk
from strata.schedule.step import find_block, loops_around
from strata.schedule.steps import (
    ComputeAt,
    DecomposeReduction,
    Parallel,
    Reorder,
    ReverseComputeAt,
    RFactor,
    Split,
    Tensorize,
    Unroll,
    Vectorize,
)
from strata.target import Target

from .base import RULES, Draft, Proposal, gathers, stage_names

STAGE = "matmul"
ROW_TILES = (1, 4, 6)
DEPTH_TILES = ((1, 8), (4, 4))  # rows and columns whose sums are vectors along k: they stay in 16 registers
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


@dataclass(frozen=True, slots=True)
class _Loops:
    """Names of the loops of ``out[batch.., m, n] = f(sum_k a[.., m, k] * b[.., k, n])``."""

    batch: tuple[str, ...]
    m: str
    n: str
    tile_m: str  # of the stage inside a tile
    tile_n: str

    @staticmethod
    def of(func: Func) -> _Loops | None:
        """The loops, or ``None`` if the function is no such matmul."""
        if stage_names(func) != [STAGE, "out"]:
            return None
        rank = len(loops_around(func, "out"))
        names = [x.var.name for x in loops_around(func, "out")]
        if rank < 2 or len(loops_around(func, STAGE)) != rank + 1:
            return None
        if names != [f"out_i{k}" for k in range(rank)]:
            return None
        *batch, m, n = names
        return _Loops(tuple(batch), m, n, f"{STAGE}_i{rank - 2}", f"{STAGE}_i{rank - 1}")

    def run_parallel(self, draft: Draft) -> None:
        """Batches and tiles of columns on all threads."""
        outer = [*self.batch, self.n + "o"]
        loop = draft.fuse_outer(outer, "tile") if self.batch else outer[0]
        draft.do(Parallel(loop))


@RULES.register("matmul")
def matmul_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """Traces for a product of two matrices, or of two batches of them."""
    loops = _Loops.of(func)
    if loops is None:
        return None
    if _outputs_are_contiguous(func):
        for dot in (True, False) if target.has_bf16_dot else (False,):
            for columns, lanes in _widths(Draft(func).extent(loops.n), target, dot):
                found = (_columns(func, loops, lanes, rows, columns, dot) for rows in ROW_TILES[1:])
                proposals = [p for p in found if p is not None]
                if proposals:
                    single = _long_rows(func, loops, target) or _columns(func, loops, lanes, 1, columns, dot)
                    return [*([single] if single is not None else []), *proposals]
        found = [_masked(func, loops, target)]
    else:
        tiles = DEPTH_TILES if target.num_vector_registers >= 32 else DEPTH_TILES[:1]
        found = [_depth(func, loops, target, rows, columns) for rows, columns in tiles]
    return [p for p in found if p is not None] or None


def _outputs_are_contiguous(func: Func) -> bool:
    """Whether everything that depends on the output is read along it: in the last dim of a buffer."""
    output = [a.var for a in find_block(func, STAGE).axes if a.kind is AxisKind.SPATIAL][-1]
    loads = [e for e in walk(find_block(func, STAGE).body) if isinstance(e, Load)]
    return all(
        output in free_vars(e.indices[-1]) for e in loads if any(output in free_vars(i) for i in e.indices)
    )


# ----------------------------------------------------------------------------- vectors along the outputs


def _widths(extent: int | None, target: Target, dot: bool) -> Iterator[tuple[int, int]]:
    """Columns of a tile and lanes of its vectors: the full tile, or fewer that leave nothing over."""
    full, lanes = column_tile(target), target.lanes_f32
    yield full, lanes
    if extent is not None and not dot:
        yield from ((k, lanes) for k in range(full - lanes, 0, -lanes) if extent % k == 0)
        yield from ((k, lanes // 2) for k in range(full, 0, -lanes // 2) if extent % k == 0)


def _columns(
    func: Func, loops: _Loops, lanes: int, rows: int, columns: int, dot: bool, name: str = ""
) -> Proposal | None:
    """The tile with ``rows`` rows, by bf16 dot products if ``dot``; ``None`` if not legal or it gathers."""
    draft = Draft(func)
    name = name or f"cpu.matmul.{'dot' if dot else 'tile'}{rows}x{columns}"
    try:
        _tile_columns(draft, loops, rows, columns, lanes, dot)
        made = draft.proposal(name, rows, dot)
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


def _tile_columns(draft: Draft, loops: _Loops, rows: int, columns: int, lanes: int, dot: bool) -> None:
    m, n, tile_m, tile_n = loops.m, loops.n, loops.tile_m, loops.tile_n
    draft.do(
        Split(m, rows),
        Split(n, columns),
        Reorder((*loops.batch, n + "o", m + "o", m + "i", n + "i")),
        ComputeAt(STAGE, m + "o", "register"),
    )
    if dot:
        draft.do(Split("matmul_k0", PAIR), Reorder(("matmul_k0o", tile_m, tile_n, "matmul_k0i")))
        draft.do(DecomposeReduction(STAGE, "matmul_k0o"))
        draft.do(Split(tile_n, lanes), Unroll(tile_n + "o"), Tensorize(tile_n + "i"))
    else:
        draft.do(Reorder(("matmul_k0", tile_m, tile_n)), DecomposeReduction(STAGE, "matmul_k0"))
        draft.do(Split(tile_n, lanes), Unroll(tile_n + "o"), Vectorize(tile_n + "i"))
    for loop in (tile_n + "_init", n + "i"):
        draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
    draft.do(Unroll(tile_m), Unroll(tile_m + "_init"), Unroll(m + "i"))
    loops.run_parallel(draft)


def _long_rows(func: Func, loops: _Loops, target: Target) -> Proposal | None:
    """One row, and so many columns that the pieces of a row-major weight's rows are worth a prefetch."""
    output = [a.var for a in find_block(func, STAGE).axes if a.kind is AxisKind.SPATIAL][-1]
    by_rows = any(isinstance(e, Load) and e.indices[-1] == output for e in walk(find_block(func, STAGE).body))
    columns, extent = 4 * column_tile(target), Draft(func).extent(loops.n)
    if not by_rows or extent is None or extent % columns:
        return None
    return _columns(func, loops, target.lanes_f32, 1, columns, False, f"cpu.gemv.tile{columns}")


def _masked(func: Func, loops: _Loops, target: Target) -> Proposal | None:
    """One row, tiles of columns under a mask: for ``[K, N]`` weights whose rows are no whole vectors."""
    draft, lanes, n = Draft(func), target.lanes_f32, loops.tile_n
    extent = draft.extent(n)
    columns = column_tile(target) if extent is None else min(column_tile(target), -(-extent // lanes) * lanes)
    others = [x.var.name for x in loops_around(func, STAGE) if x.var.name not in (n, "matmul_k0")]
    try:
        draft.do(Split(n, columns), Reorder((*others, n + "o", "matmul_k0", n + "i")))
        draft.do(ReverseComputeAt("out", n + "o", "register"), DecomposeReduction(STAGE, "matmul_k0"))
        for loop in (n + "i", n + "i_init", f"out_i{len(others)}"):
            draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
        # Quotients of a fused loop by a dim would hide that operands are in bounds.
        draft.parallel(others[0] if loops.batch else draft.fuse_outer([*others, n + "o"], "tile"))
        made = draft.proposal(f"cpu.gemv.masked{columns}")
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


# -------------------------------------------------------------------------------------- vectors along k


def _depth(func: Func, loops: _Loops, target: Target, rows: int, columns: int) -> Proposal | None:
    """Sums of ``rows x columns`` outputs as vectors along k, added up in the end; ``None`` if not legal."""
    draft = Draft(func)
    try:
        _tile_depth(draft, loops, rows, columns, target.lanes_f32)
        name = f"cpu.gemv.depth{columns}" if rows == 1 else f"cpu.matmul.depth{rows}x{columns}"
        made = draft.proposal(name)
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


def _tile_depth(draft: Draft, loops: _Loops, rows: int, columns: int, lanes: int) -> None:
    m, n, tile_m, tile_n = loops.m, loops.n, loops.tile_m, loops.tile_n
    k = "matmul_k0"
    draft.do(
        Split(m, rows),
        Split(n, columns),
        Reorder((*loops.batch, n + "o", m + "o", m + "i", n + "i")),
        ComputeAt(STAGE, m + "o", "register"),
        Split(k, lanes),
        RFactor(STAGE, k + "i"),
        Reorder((k + "o", tile_m, tile_n, k + "i")),
        Vectorize(k + "i"),
        Vectorize(k + "i_rf_init"),
        DecomposeReduction(STAGE, k + "i_f"),
        Vectorize(k + "i_f"),
        Unroll(m + "i"),
        Unroll(n + "i"),
    )
    for loop in (tile_m, tile_n):
        draft.do(Unroll(loop), Unroll(loop + "_rf_init"), Unroll(loop + "_f"))
    loops.run_parallel(draft)
