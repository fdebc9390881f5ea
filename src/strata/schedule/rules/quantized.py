"""Products with quantised weights: register tiles of exact integer dot products, scaled group by group.

``cpu.qmatmul.dot3x64``: 3 rows and 64 outputs per tile. For each group of k the tile adds products of 8-bit
codes up in i32 registers, by the hardware's dot product of four, and then adds the scaled sums to f32
registers; both sets of sums have to fit. The stages before quantise the activations: vectors along k, rows on
all threads, or serially where there is but one row: then waking the threads costs more than the work.

``cpu.qmatmul.dot8x64``: tiles of four rows take turns, group by group, with sums in the level-1 cache. Codes
come from memory while the second tile computes: for machines whose memory answers late. There ``dot6x64`` has
its f32 sums in the level-1 cache, too: more rows for each code that comes from level 2. It is for prompts,
whose codes are there already: asking for them ahead of time would only cost instructions.
``unpacked6x64`` is the same with codes of 4 bits that a stage made bytes, once for all rows.

``cpu.qmatmul.matrix32x32``: codes of 8 bits by a matrix unit (``loop.matrix``), both sets of sums in memory.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

from strata.core.dtypes import DType, u8
from strata.core.errors import LegalityError
from strata.loop.layout import Layout, Stripes
from strata.loop.matrix import ROWS
from strata.loop.nodes import AxisKind, Buffer, Func, Intrinsic, Load
from strata.loop.rewrite import free_vars, walk
from strata.schedule.step import find_block
from strata.schedule.steps import (
    CacheWrite,
    ComputeAt,
    DecomposeReduction,
    MatrixUnit,
    Merge,
    Parallel,
    Prefetch,
    Reorder,
    RFactor,
    Split,
    StartAtZero,
    Tensorize,
    Unroll,
    Vectorize,
)
from strata.target import Target

from .base import RULES, Draft, Proposal, gathers, loops_over, stage_names
from .matmul import (
    FAR_BYTES,
    column_tile,
    fetch_ahead,
    param_bytes,
    parts_of,
    stream_evenly,
)
from .matrix import columns_in_cache, fetch_tiles

UNPACKED, DOT, SUM, OUT = "unpacked", "dot", "matmul", "out"
FOUR = 4
UNROLLED_STEPS = 8  # dot products of an output that follow each other without a loop
# Rows of a tile, and rows whose integer sums are in registers where others are in memory.
ROW_TILES: tuple[tuple[int, int | None], ...] = ((1, None), (3, None), (4, None))
MANY_ROWS = (6, 6)
LATE_ROW_TILES: tuple[tuple[int, int | None], ...] = ((1, None), (4, None), MANY_ROWS, (8, 4))


def quantized_layouts(
    codes: DType, scales: DType, group: int, target: Target
) -> tuple[Layout, Layout, Layout]:
    """How the parts of a quantised weight are stored: tiles of outputs, fours (or eights) of codes along k.

    Codes of a group and their scales lie behind each other: a core gets less from two streams than from one.

    Args:
        codes: Dtype of the codes.
        scales: Dtype of the scales.
        group: Codes of an output that share a scale.
        target: The machine.

    Returns:
        For codes, scales, and zero points, which are a stream of their own.
    """
    outputs, nibbles = column_tile(target), codes.bits < 8
    cols = 2 * FOUR if nibbles else FOUR
    own, step = Layout(outputs, cols, nibbles=nibbles), scales.itemsize_bytes
    code_bytes = group // cols * outputs * FOUR
    if group % cols or code_bytes % step:
        return own, Layout(outputs), Layout(outputs)
    size = code_bytes + outputs * step
    of_scales = Stripes(1, code_bytes // step, size // step)
    return (
        replace(own, stripes=Stripes(group // cols, 0, size)),
        Layout(outputs, stripes=of_scales),
        Layout(outputs),
    )


@RULES.register("quantized")
def quantized_rule(func: Func, target: Target) -> Sequence[Proposal] | None:
    """Tiles of several rows, where the weight is stored for them."""
    stages = stage_names(func)
    if stages[-3:] != [DOT, SUM, OUT]:
        return None
    single = Draft(func)
    row_loops = [_quantize(single, stage, target.lanes_f32) for stage in stages[:-3] if stage != UNPACKED]
    several = single.copy()
    for first, second in itertools.pairwise(row_loops):
        several.do(Merge(first, second))
    several.parallel(row_loops[-1])
    tiles = LATE_ROW_TILES if target.fetch_ahead_bytes >= FAR_BYTES else ROW_TILES
    if UNPACKED in stages:
        tiles = (MANY_ROWS,)
    found = [_tiles(several if rows > 1 else single, target, rows, at_once) for rows, at_once in tiles]
    if target.has_matrix_int8 and _instruction(func) == "dot4_u8i8":
        found.append(_matrix(several, target))
    return [p for p in found if p is not None] or None


def _tiles(quantized: Draft, target: Target, rows: int, at_once: int | None) -> Proposal | None:
    """The tile with ``rows`` rows; ``None`` if it is not legal or gathers.

    Args:
        quantized: Stages that quantise the activations are scheduled.
        target: The machine.
        rows: Rows of the tile.
        at_once: Rows whose integer sums are in registers, where f32 sums are in memory; ``None``: all
            sums are in registers.
    """
    draft, columns, lanes = quantized.copy(), column_tile(target), target.lanes_f32
    unpacks = UNPACKED in stage_names(draft.func)
    try:
        _tile_sums(draft, rows, columns, lanes, at_once)
        if unpacks:
            _unpack(draft, lanes)
        steps = _tile_dots(draft, lanes)
        draft.do(Parallel(f"{OUT}_i1o"))
        if at_once is None:
            draft.do(Unroll(f"{OUT}_i0i"))
        stream_evenly(draft, f"{OUT}_i1o", rows)
        if at_once != rows:
            _fetch(draft, target, quantized.func, rows, steps, columns)
        kind = "unpacked" if unpacks else "dot"
        made = draft.proposal(f"cpu.qmatmul.{kind}{rows}x{columns}", rows, dot=True)
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


def _unpack(draft: Draft, lanes: int) -> None:
    """All codes of a tile of outputs as bytes; low and high halves are neighbouring fours."""
    fours = f"{UNPACKED}_i0"
    draft.do(ComputeAt(UNPACKED, f"{OUT}_i1o"), Split(fours, 2), Unroll(fours + "i"))
    _vectors(draft, f"{UNPACKED}_i1", lanes * FOUR)


def _matrix(quantized: Draft, target: Target) -> Proposal | None:
    """Tiles of 32 x 32 by a matrix unit; ``None`` if the groups are none of its tiles."""
    draft = quantized.copy()
    try:
        _matrix_sums(draft, target)
        _matrix_dots(draft)
        draft.do(Parallel(f"{OUT}_i1o"))
        made = draft.proposal("cpu.qmatmul.matrix32x32", 2 * ROWS, dot=True)
    except LegalityError:
        return None
    return made if gathers(made.func) == 0 else None


def _matrix_sums(draft: Draft, target: Target) -> None:
    """f32 sums of a tile in memory, groups one after the other; from there on integers start at zero."""
    m, n, tile_m, tile_n, g = f"{OUT}_i0", f"{OUT}_i1", f"{SUM}_i0", f"{SUM}_i1", f"{SUM}_k0"
    reduced = [draft.extent(loop) for loop in (g, *loops_over(draft.func, DOT, AxisKind.REDUCTION))]
    outputs = draft.extent(n)
    if outputs is None or None in reduced:
        raise LegalityError("extents of the weight are not constant")
    contracted = math.prod(x for x in reduced if x is not None)
    draft.do(
        StartAtZero(DOT),
        Split(m, 2 * ROWS),
        Split(n, columns_in_cache(target, outputs, contracted, 1)),
        Split(n + "i", 2 * ROWS),
        Reorder((n + "o", m + "o", n + "io", m + "i", n + "ii")),
        ComputeAt(SUM, n + "io"),
        Reorder((g, tile_m, tile_n)),
        DecomposeReduction(SUM, g),
        ComputeAt(DOT, g),
    )
    for loop in (tile_n, tile_n + "_init", n + "ii"):
        _vectors(draft, loop, ROWS)


def _matrix_dots(draft: Draft) -> None:
    """i32 sums of a group in memory, by tiles of 16 fours."""
    reduction = loops_over(draft.func, DOT, AxisKind.REDUCTION)
    steps = reduction[0]
    if draft.extent(reduction[-1]) != FOUR or len(reduction) != 2 or (draft.extent(steps) or 1) % ROWS:
        raise LegalityError(f"block {DOT} does not add up tiles of a matrix unit")
    rows, outputs, group = f"{DOT}_i0", f"{DOT}_i2", f"{DOT}_i1"
    draft.do(Split(steps, ROWS), Split(rows, ROWS), Split(outputs, ROWS))
    tiles = (rows + "o", outputs + "o")
    draft.do(Reorder((group, steps + "o", *tiles, rows + "i", steps + "i", outputs + "i", reduction[1])))
    draft.do(DecomposeReduction(DOT, steps + "o"), Tensorize(outputs + "i", "dot4_u8i8"))
    draft.do(*(Unroll(loop) for loop in tiles), MatrixUnit(steps + "o"))
    fetch_tiles(draft, steps + "o")
    draft.do(Vectorize(outputs + "i_init"))


def _vectors(draft: Draft, loop: str, lanes: int) -> None:
    draft.do(Split(loop, lanes), Unroll(loop + "o"), Vectorize(loop + "i"))


def _tile_sums(draft: Draft, rows: int, columns: int, lanes: int, at_once: int | None) -> None:
    """f32 sums of a tile, in registers or in memory, groups one after the other.

    Integer sums are in registers: of all rows, or of ``at_once`` after each other.
    """
    space = "register" if at_once is None else "local"
    m, n, tile_m, tile_n, g = f"{OUT}_i0", f"{OUT}_i1", f"{SUM}_i0", f"{SUM}_i1", f"{SUM}_k0"
    draft.do(
        Split(m, rows),
        Split(n, columns // parts_of(draft.func, OUT, SUM)),
        Reorder((n + "o", m + "o", m + "i", n + "i")),
        ComputeAt(SUM, m + "o", space),
        Reorder((g, tile_m, tile_n)),
        DecomposeReduction(SUM, g),
    )
    if at_once is None:
        draft.do(ComputeAt(DOT, g, "register"), Unroll(tile_m), Unroll(tile_m + "_init"))
    else:
        draft.do(Split(tile_m, at_once), ComputeAt(DOT, tile_m + "o", "register"), Unroll(tile_m + "i"))
    for loop in (tile_n, tile_n + "_init", n + "i"):
        _vectors(draft, loop, lanes)


def _tile_dots(draft: Draft, lanes: int) -> str:
    """i32 sums of a group in registers, by dot products of four.

    Returns:
        The unrolled loop over those of an output.
    """
    reduction = loops_over(draft.func, DOT, AxisKind.REDUCTION)
    if len(reduction) != 2 or draft.extent(reduction[1]) != FOUR:
        raise LegalityError(f"block {DOT} does not add up fours")
    rows, outputs, group = f"{DOT}_i0", f"{DOT}_i2", f"{DOT}_i1"
    steps, four = reduction
    draft.do(Reorder((group, steps, rows, outputs, four)), DecomposeReduction(DOT, steps))
    draft.do(Split(outputs, lanes), Unroll(outputs + "o"), Tensorize(outputs + "i", _instruction(draft.func)))
    _vectors(draft, outputs + "_init", lanes)
    draft.do(Unroll(rows), Unroll(rows + "_init"))
    if (draft.extent(steps) or 0) > UNROLLED_STEPS:
        draft.do(Split(steps, UNROLLED_STEPS))
        steps += "i"
    draft.do(Unroll(steps))
    return steps


def _fetch(draft: Draft, target: Target, source: Func, rows: int, steps: str, columns: int) -> None:
    """Codes ahead of time; what is computed more slowly than read gains nothing by a short distance.

    That is codes of 4 bits, which are unpacked first, and tiles of several rows.

    Args:
        draft: The finished tiles.
        target: The machine.
        source: The function before it was tiled.
        rows: Rows of a tile.
        steps: The loop over the dot products of an output.
        columns: Outputs of a tile.
    """
    parts, is_packed = _weight_parts(source), _instruction(source) == "dot4_u4i8"
    if (rows == 1 and not is_packed) or target.fetch_ahead_bytes >= FAR_BYTES:
        fetch_ahead(draft, target, steps, next(x.name for x in parts if x.dtype is u8), columns * FOUR)
    elif rows > 1 and is_packed:
        _fetch_next(draft, target, parts)


def _fetch_next(draft: Draft, target: Target, parts: Sequence[Buffer]) -> None:
    """The next outputs' part of the weight comes while two tiles of rows compute, if there is room for both.

    Without it memory waits while the second tile computes, and computing for memory before.
    """
    if 2 * param_bytes([replace(x, shape=x.shape[1:]) for x in parts]) <= target.l2_bytes:
        draft.do(*(Prefetch(f"{OUT}_i1o", x.name, 1) for x in parts))


def _weight_parts(func: Func) -> list[Buffer]:
    """Codes and scales: what sums read by the output."""
    params, found = set(func.params), dict[str, Buffer]()
    for block in (find_block(func, DOT), find_block(func, SUM)):
        output = [a.var for a in block.axes if a.kind is AxisKind.SPATIAL][-1]
        for e in walk(block.body):
            if isinstance(e, Load) and e.buffer in params and any(output in free_vars(i) for i in e.indices):
                found[e.buffer.name] = e.buffer
    return list(found.values())


def _instruction(func: Func) -> str:
    """Products of two nibbles have an easier instruction on some machines."""
    packed = any(isinstance(e, Intrinsic) for e in walk(find_block(func, DOT).body))
    return "dot4_u4i8" if packed else "dot4_u8i8"


def _quantize(draft: Draft, stage: str, lanes: int) -> str:
    """A stage over rows and what else there is in a row: vectors, those of a reduction added up in the end.

    Returns:
        The loop over rows.
    """
    spatial = loops_over(draft.func, stage, AxisKind.SPATIAL)
    reduced = loops_over(draft.func, stage, AxisKind.REDUCTION)
    if not reduced:
        draft.vectorize(spatial[-1], lanes)
        return spatial[0]
    lanes = math.gcd(draft.extent(reduced[0]) or 1, lanes)
    before = stage_names(draft.func)
    draft.do(CacheWrite(stage))
    (result,) = set(stage_names(draft.func)) - set(before)
    rows, *groups = loops_over(draft.func, result, AxisKind.SPATIAL)
    draft.do(ComputeAt(stage, (rows, *groups)[-1], "register"))
    (k,) = loops_over(draft.func, stage, AxisKind.REDUCTION)
    draft.do(Split(k, lanes), RFactor(stage, k + "i"), DecomposeReduction(stage, k + "i_f"))
    for loop in (k + "i", k + "i_rf_init", k + "i_f"):
        draft.do(Vectorize(loop))
    return rows
