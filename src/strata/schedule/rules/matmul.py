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

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from strata.core.dims import Dim, bounds
from strata.core.dtypes import DType, bf16
from strata.core.errors import LegalityError
from strata.loop.layout import Layout
from strata.loop.matrix import ROWS
from strata.loop.nodes import EVEN, AxisKind, Binary, BinaryOp, Buffer, Const, Func, Load, Store, Var
from strata.loop.rewrite import buffers_written, free_vars, walk
from strata.schedule.step import Step, find_block, loops_around
from strata.schedule.steps import (
    Annotate,
    CacheWrite,
    ComputeAt,
    DecomposeReduction,
    Parallel,
    Prefetch,
    Reorder,
    ReverseComputeAt,
    RFactor,
    Split,
    Tensorize,
    Unroll,
    Vectorize,
)
from strata.target import Target

from .base import RULES, Draft, Proposal, gathers, loops_over, stage_names

STAGE = "matmul"
ROW_TILES = (1, 4, 6)
DEPTH_TILES = ((1, 8), (4, 4))  # rows and columns whose sums are vectors along k: they stay in 16 registers
PAIR = 2  # elements of k that a bf16 dot product takes at once
FAR_BYTES = 4096  # ahead that a core asks whose memory takes long to answer
EVEN_BYTES = 16 << 20  # of a weight that a machine reads well within a millisecond
EVEN_ROWS = 16  # that it multiplies by such a weight within a millisecond or two


def weight_layout(dtype: DType, contracted: Dim, transposed: bool, target: Target) -> Layout:
    """How a weight is stored for these kernels: tiles of outputs; pairs of k together for bf16 dot products.

    A matrix unit takes two tiles of 16 outputs side by side, which then lie in one stream.

    Args:
        dtype: Of the weight.
        contracted: Extent of k.
        transposed: The weight is ``[K, N]`` instead of ``[N, K]``.
        target: The machine.
    """
    in_pairs = isinstance(contracted, int) and contracted % PAIR == 0
    pairs = target.multiplies_bf16_pairs and dtype is bf16 and in_pairs
    outputs = 2 * ROWS if pairs and target.has_matrix_bf16 else column_tile(target)
    return Layout(outputs, PAIR if pairs else 1, transposed)


def column_tile(target: Target) -> int:
    """Outputs that one register tile computes side by side: four vectors (two if there are 16 registers)."""
    lanes = target.vector_bytes // 4
    return lanes * (4 if target.num_vector_registers >= 32 else 2)


@dataclass(frozen=True, slots=True)
class Product:
    """``out[batch.., m, n] = f(sum_k a[.., m, k] * b[.., k, n])`` as a stage that sums and one that stores.

    Attributes:
        target: The machine.
        source: The function as it was handed in.
        first: Steps that make two stages of it.
        func: The function after them.
        stage: Block that sums.
        out: Block that stores.
        loops: Loops around ``out``, outermost first.
    """

    target: Target
    source: Func
    first: tuple[Step, ...]
    func: Func
    stage: str
    out: str
    loops: tuple[str, ...]

    @staticmethod
    def of(func: Func, target: Target, before: Sequence[str] = ()) -> Product | None:
        """The product, or ``None`` if the function is none; ``before``: stages that prepare its operands."""
        stages, first, made = stage_names(func)[len(before) :], (), func
        if len(stages) == 1 and _multiplies(func, stages[0]):
            first = (CacheWrite(stages[0]),)
            try:
                made = first[0].apply(func)
            except LegalityError:
                return None
            stages = stage_names(made)[len(before) :]
        elif stages != [STAGE, "out"]:
            return None
        names = tuple(x.var.name for x in loops_around(made, stages[1]))
        sums = loops_around(made, stages[0])
        if len(names) < 2 or len(sums) != len(names) + 1:
            return None
        if names != tuple(f"{stages[1]}_i{k}" for k in range(len(names))):
            return None
        return Product(target, func, first, made, stages[0], stages[1], names)

    @property
    def batch(self) -> tuple[str, ...]:
        """Loops over batches."""
        return self.loops[:-2]

    @property
    def m(self) -> str:
        """The loop over rows."""
        return self.loops[-2]

    @property
    def n(self) -> str:
        """The loop over columns."""
        return self.loops[-1]

    @property
    def tile(self) -> tuple[str, str, str]:
        """Loops over rows, columns and k of the stage inside of a tile."""
        rank = len(self.loops)
        return f"{self.stage}_i{rank - 2}", f"{self.stage}_i{rank - 1}", f"{self.stage}_k0"

    @property
    def output(self) -> Var:
        """The axis of the stage over columns."""
        return [a.var for a in find_block(self.func, self.stage).axes if a.kind is AxisKind.SPATIAL][-1]

    @property
    def operands(self) -> list[Load]:
        """Where the stage loads elements of the matrices."""
        body = find_block(self.func, self.stage).body
        sums = buffers_written(body)
        return [e for e in walk(body) if isinstance(e, Load) and e.buffer not in sums]

    @property
    def weights(self) -> list[Load]:
        """The operands that depend on the output."""
        return [e for e in self.operands if any(self.output in free_vars(i) for i in e.indices)]

    def draft(self) -> Draft:
        """The beginning of a schedule."""
        draft = Draft(self.source)
        draft.do(*self.first)
        return draft

    def begin_tiles(self, draft: Draft, rows: int, columns: int) -> None:
        """Tiles of sums in registers, columns outermost; ``columns`` of sums may make fewer results."""
        m, n = self.m, self.n
        draft.do(
            Split(m, rows),
            Split(n, columns // parts_of(self.func, self.out, self.stage)),
            Reorder((*self.batch, n + "o", m + "o", m + "i", n + "i")),
            ComputeAt(self.stage, m + "o", "register"),
        )

    def run_parallel(self, draft: Draft) -> str:
        """Batches and tiles of columns on all threads: the loop over them."""
        outer = [*self.batch, self.n + "o"]
        loop = draft.fuse_outer(outer, "tile") if self.batch else outer[0]
        draft.do(Parallel(loop))
        return loop


def parts_of(func: Func, result: str, sums: str) -> int:
    """How many sums side by side make one result (a gate, and what it is multiplied by), as blocks say."""
    extents = [
        [a.extent for a in find_block(func, block).axes if a.kind is AxisKind.SPATIAL][-1]
        for block in (result, sums)
    ]
    of_results, of_sums = (int(x.value) if isinstance(x, Const) else 0 for x in extents)
    return of_sums // of_results if of_sums and of_results else 1


def _multiplies(func: Func, stage: str) -> bool:
    """Whether a block adds up products over one axis."""
    block = find_block(func, stage)
    match block.body:
        case Store(value=Binary(op=BinaryOp.ADD, a=Load(), b=Binary(op=BinaryOp.MUL))):
            pass
        case _:
            return False
    return block.init is not None and sum(a.kind is AxisKind.REDUCTION for a in block.axes) == 1


@RULES.register("matmul")
def matmul_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """Traces for a product of two matrices, or of two batches of them."""
    product = Product.of(func, target)
    if product is None:
        return None
    if _outputs_are_contiguous(product):
        for dot in (True, False) if target.multiplies_bf16_pairs else (False,):
            for columns, lanes in _widths(product.draft().extent(product.n), target, dot):
                found = (_columns(product, lanes, rows, columns, dot) for rows in ROW_TILES[1:])
                proposals = [p for p in found if p is not None]
                if proposals:
                    single = _long_rows(product, target) or _columns(product, lanes, 1, columns, dot)
                    return [*([single] if single is not None else []), *proposals]
        found = [_masked(product, target)]
    else:
        tiles = DEPTH_TILES if target.num_vector_registers >= 32 else DEPTH_TILES[:1]
        found = [_depth(product, target, rows, columns) for rows, columns in tiles]
    return [p for p in found if p is not None] or None


def _outputs_are_contiguous(product: Product) -> bool:
    """Whether everything that depends on the output is read along it: in the last dim of a buffer."""
    return all(product.output in free_vars(e.indices[-1]) for e in product.weights)


# ----------------------------------------------------------------------------- vectors along the outputs


def _widths(extent: int | None, target: Target, dot: bool) -> Iterator[tuple[int, int]]:
    """Columns of a tile and lanes of its vectors: the full tile, or fewer that leave nothing over."""
    full, lanes = column_tile(target), target.lanes_f32
    yield full, lanes
    if extent is not None and not dot:
        yield from ((k, lanes) for k in range(full - lanes, 0, -lanes) if extent % k == 0)
        yield from ((k, lanes // 2) for k in range(full, 0, -lanes // 2) if extent % k == 0)


def _columns(
    product: Product, lanes: int, rows: int, columns: int, dot: bool, name: str = ""
) -> Proposal | None:
    """The tile with ``rows`` rows, by bf16 dot products if ``dot``; ``None`` if not legal or it gathers."""
    draft = product.draft()
    name = name or f"cpu.matmul.{'dot' if dot else 'tile'}{rows}x{columns}"
    try:
        _tile_columns(draft, product, rows, columns, lanes, dot)
        made = draft.proposal(name, rows, dot)
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


def _tile_columns(draft: Draft, product: Product, rows: int, columns: int, lanes: int, dot: bool) -> None:
    tile_m, tile_n, k = product.tile
    product.begin_tiles(draft, rows, columns)
    if dot:
        draft.do(Split(k, PAIR), Reorder((k + "o", tile_m, tile_n, k + "i")))
        draft.do(DecomposeReduction(product.stage, k + "o"))
        draft.do(Split(tile_n, lanes), Unroll(tile_n + "o"), Tensorize(tile_n + "i"))
    else:
        draft.do(Reorder((k, tile_m, tile_n)), DecomposeReduction(product.stage, k))
        draft.do(Split(tile_n, lanes), Unroll(tile_n + "o"), Vectorize(tile_n + "i"))
    for loop in (tile_n + "_init", product.n + "i"):
        draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
    draft.do(Unroll(tile_m), Unroll(tile_m + "_init"), Unroll(product.m + "i"))
    tiles = product.run_parallel(draft)
    stream_evenly(draft, tiles, rows)
    if rows == 1 or product.target.fetch_ahead_bytes >= FAR_BYTES:
        element = PAIR if dot else 1
        for weight in product.weights:
            row_bytes = columns * element * weight.dtype.itemsize_bytes
            # Most rows of a prompt find the weight in the level-2 cache: it should be in level 1.
            level = 1 if rows == ROW_TILES[-1] else 2
            loop, name = k + "o" if dot else k, weight.buffer.name
            fetch_ahead(draft, product.target, loop, name, row_bytes, level)


def fetch_ahead(
    draft: Draft, target: Target, loop: str, buffer: str, bytes_per_iteration: int, level: int = 2
) -> None:
    """Prefetch a weight that is read once: waiting for memory, a core looks ahead less far than pays."""
    distance = max(1, target.fetch_ahead_bytes // bytes_per_iteration)
    draft.attempt(Prefetch(loop, buffer, distance, level))


def stream_evenly(draft: Draft, loop: str, rows: int) -> None:
    """Equal shares of a weight for few rows, in tiles of ``rows``: each thread has one long run of it.

    A loop that may take longer than a thread runs undisturbed is dealt out as it goes, like any other.
    """
    weights = [p for p in draft.func.params if all(isinstance(d, int) for d in p.shape)]
    if param_bytes(weights) <= EVEN_BYTES:
        draft.do(Annotate(loop, EVEN, 1 if rows == 1 else -(-EVEN_ROWS // rows)))


def param_bytes(params: Sequence[Buffer]) -> int:
    """Memory that params take, at most (bytes).

    Parts of a weight in one memory (stripes of ``loop.layout``) are two dtypes of one size: they count once.
    """
    found: dict[int, Counter[DType]] = {}
    for param in params:
        size = math.prod(bounds(d)[1] for d in param.shape) * param.dtype.itemsize_bytes
        found.setdefault(size, Counter())[param.dtype] += 1
    return sum(size * max(count.values()) for size, count in found.items())


def _long_rows(product: Product, target: Target) -> Proposal | None:
    """One row, and so many columns that the pieces of a row-major weight's rows are worth a prefetch."""
    by_rows = any(e.indices[-1] == product.output for e in product.operands if e.indices)
    columns, extent = 4 * column_tile(target), product.draft().extent(product.n)
    if not by_rows or extent is None or extent % columns:
        return None
    return _columns(product, target.lanes_f32, 1, columns, False, f"cpu.gemv.tile{columns}")


def _masked(product: Product, target: Target) -> Proposal | None:
    """One row, tiles of columns under a mask: for ``[K, N]`` weights whose rows are no whole vectors."""
    draft, lanes = product.draft(), target.lanes_f32
    *others, n = loops_over(draft.func, product.stage, AxisKind.SPATIAL)
    (k,) = loops_over(draft.func, product.stage, AxisKind.REDUCTION)
    extent = draft.extent(n)
    columns = column_tile(target) if extent is None else min(column_tile(target), -(-extent // lanes) * lanes)
    try:
        draft.do(Split(n, columns), Reorder((*others, n + "o", k, n + "i")))
        draft.do(ReverseComputeAt(product.out, n + "o", "register"), DecomposeReduction(product.stage, k))
        for loop in (n + "i", n + "i_init", product.n):
            draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))
        # Quotients of a fused loop by a dim would hide that operands are in bounds.
        draft.parallel(others[0] if product.batch else draft.fuse_outer([*others, n + "o"], "tile"))
        made = draft.proposal(f"cpu.gemv.masked{columns}")
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


# -------------------------------------------------------------------------------------- vectors along k


def _depth(product: Product, target: Target, rows: int, columns: int) -> Proposal | None:
    """Sums of ``rows x columns`` outputs as vectors along k, added up in the end; ``None`` if not legal."""
    draft = product.draft()
    try:
        _tile_depth(draft, product, rows, columns, target.lanes_f32)
        name = f"cpu.gemv.depth{columns}" if rows == 1 else f"cpu.matmul.depth{rows}x{columns}"
        made = draft.proposal(name)
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


def _tile_depth(draft: Draft, product: Product, rows: int, columns: int, lanes: int) -> None:
    tile_m, tile_n, k = product.tile
    product.begin_tiles(draft, rows, columns)
    draft.do(
        Split(k, lanes),
        RFactor(product.stage, k + "i"),
        Reorder((k + "o", tile_m, tile_n, k + "i")),
        Vectorize(k + "i"),
        Vectorize(k + "i_rf_init"),
        DecomposeReduction(product.stage, k + "i_f"),
        Vectorize(k + "i_f"),
        Unroll(product.m + "i"),
        Unroll(product.n + "i"),
    )
    for loop in (tile_m, tile_n):
        draft.do(Unroll(loop), Unroll(loop + "_rf_init"), Unroll(loop + "_f"))
    product.run_parallel(draft)
