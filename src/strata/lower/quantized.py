"""Lowering of quantised weights.

``quantized_matmul`` becomes a chain of stages, of which the first four quantise the activations::

    largest[m, g]   max |a[m, k]| over the group: its bits                  i32
    codes[m, k]     round(a[m, k] * 127 / largest)                          i8
    steps[m, g]     largest / 127: what a code of 1 is worth                f32
    starts[m, g]    -zero * sum of the group's codes                        i32
    dot[m, g, n]    starts[m, g] + sum of codes[m, k] * w[n, k]             i32, exact
    matmul[m, n]    sum over g of dot * (steps[m, g] * scale of w)          f32

The sum of a group runs over (tile, element) where the weight is stored in tiles of four columns (eight
nibbles): that is the shape of the hardware's 8-bit dot product, which ``tensorize`` looks for. Codes of the
weight are unsigned and those of the activations signed, as that instruction wants them; ``starts`` makes up
for the offset (where every group of the weight has a zero of its own, ``dot`` multiplies by it). Floats
that are not negative are in the order of their bits, NaN above infinity: maxima of bits are one instruction.

With ``activations = bf16`` both operands are rounded, the weight in the layout of a matrix unit: 16 columns
side by side, pairs of k together (``Layout(16, 2)``)::

    activations[m, k / 32, 32]      a (:mod:`.matrix_unit`)                 bf16
    weights[n / 16, k / 2, 32]      (code - zero) * scale                   bf16
    matmul[m, n]                    sum over k                              f32
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from strata.core.dims import Dim
from strata.core.dtypes import DType, bf16, f32, i8, i32, u8
from strata.graph.nodes import Node
from strata.graph.ops.quantized import CODE_MAX, SMALLEST, group_size
from strata.loop import build as b
from strata.loop.layout import Layout
from strata.loop.matrix import ROW_BYTES
from strata.loop.nodes import Buffer, Expr, Intrinsic, Load

from .context import LOWERINGS, Access, Context, Index, widened
from .matmul import MATMUL_BLOCK
from .matrix_unit import staged_activations

DOT_BLOCK = "dot"
LARGEST_BLOCK, CODES_BLOCK, STEPS_BLOCK, STARTS_BLOCK = "largest", "codes", "steps", "starts"
WEIGHTS_BLOCK = "weights"
WEIGHT_TILES = Layout(16, 2)
FOUR = 4  # elements of k that an 8-bit dot product takes at once


@LOWERINGS.register("dequantize")
def lower_dequantize(ctx: Context, node: Node) -> Access:
    """``(code - zero) * scale``, element by element."""
    return _dequantized(ctx.access, node, node.inputs, node.tensor.dtype)


def _dequantized(
    access: Callable[[Node], Access], node: Node, weight: tuple[Node, ...], dtype: DType
) -> Access:
    """Elements of a weight that is an operand of ``node``, by (row, k), rows as ``access`` counts them."""
    codes, scales = weight[:2]
    group = group_size(codes.tensor, scales.tensor)
    code, scale = access(codes), widened(access(scales))
    zero = _zero(access, node, weight[2:])

    def element(i: Index) -> Expr:
        row, k = i
        g = b.floordiv(k, group)
        centred = b.sub(b.cast(i32, code((row, k))), zero((row, g)))
        return b.cast(dtype, b.mul(b.cast(f32, centred), scale((row, g))))

    return element


def _zero(access: Callable[[Node], Access], node: Node, zeros: tuple[Node, ...]) -> Access:
    """The code that means 0, i32, by (row, group of the weight)."""
    if not zeros:
        return lambda i: b.const(node.attrs["zero"], i32)
    stored = access(zeros[0])
    return lambda i: b.cast(i32, stored(i))


@dataclass(frozen=True, slots=True)
class _Groups:
    """``count`` groups of ``size`` elements; ``shared`` of them lie in one of the weight's groups."""

    count: int
    size: int
    shared: int

    def of_weight(self, g: Expr) -> Expr:
        """Group of the weight that group ``g`` lies in."""
        return g if self.shared == 1 else b.floordiv(g, self.shared)


@LOWERINGS.register("quantized_matmul")
def lower_quantized_matmul(ctx: Context, node: Node) -> Access:
    """See the module docstring."""
    if node.attrs["activations"] is bf16:
        return _lower_rounded(ctx, node)
    a, codes, scales, *zeros = node.inputs
    rows, columns = node.tensor.shape
    of_weight, size = group_size(codes.tensor, scales.tensor), node.attrs["group"]
    k = a.tensor.shape[1]
    assert isinstance(k, int)
    groups = _Groups(k // size, size, of_weight // size)
    of_a = _quantize(ctx, widened(ctx.access(a)), rows, groups, zero=1 if zeros else node.attrs["zero"])

    zero_of = _zero(ctx.by_stored_rows, node, tuple(zeros))

    def start(i: Index) -> Expr:
        m, g, n = i
        value = of_a.starts((m, g))
        return b.mul(zero_of((n, groups.of_weight(g))), value) if zeros else value

    dot = _dots(ctx, (rows, columns), groups, of_a.codes, start, codes)
    scale = widened(ctx.by_stored_rows(scales))

    def term(spatial: Index, reduction: Index) -> Expr:
        (m, n), (g,) = spatial, reduction
        step = b.mul(of_a.steps((m, g)), scale((n, groups.of_weight(g))))
        return b.mul(b.cast(f32, dot((m, g, n))), step)

    zero = b.const(0.0, f32)
    total = ctx.reduce(MATMUL_BLOCK, (rows, columns), f32, (groups.count,), zero, b.add, term)
    return _result(ctx, node, total)


def _result(ctx: Context, node: Node, total: Access) -> Access:
    """Sums, staged in the order in which the weight stores its rows, where the graph has them."""
    codes = node.inputs[1]
    return lambda i: b.cast(node.tensor.dtype, total((i[0], ctx.stored_row(codes, i[1]))))


def _lower_rounded(ctx: Context, node: Node) -> Access:
    """Both operands in bf16, each in a stage of its own."""
    a, *weight = node.inputs
    (rows, columns), k = node.tensor.shape, a.tensor.shape[1]
    assert isinstance(columns, int)
    assert isinstance(k, int)
    given = widened(ctx.access(a))
    element = _dequantized(ctx.by_stored_rows, node, tuple(weight), bf16)
    left = staged_activations(ctx, given, rows, k)
    _, layout = ctx.operands.get(id(weight[0]), (None, None))
    # Rows that the stored weight is padded with are read like others, and never used.
    padded = columns if layout is None else -(-columns // layout.rows) * layout.rows
    tiles, pairs, width = WEIGHT_TILES.physical_shape((padded, k))

    def stored(i: Index) -> Expr:
        tile, pair, c = i
        row = b.add(b.mul(tile, WEIGHT_TILES.rows), b.floordiv(c, WEIGHT_TILES.cols))
        column = b.add(b.mul(pair, WEIGHT_TILES.cols), b.floormod(c, WEIGHT_TILES.cols))
        row = row if padded % WEIGHT_TILES.rows == 0 else b.minimum(row, padded - 1)
        column = column if k % WEIGHT_TILES.cols == 0 else b.minimum(column, k - 1)
        return element((row, column))

    right = ctx.stage(WEIGHTS_BLOCK, (tiles, pairs, width), bf16, stored)

    def product(spatial: Index, reduction: Index) -> Expr:
        (m, n), (kk,) = spatial, reduction
        return b.mul(b.cast(f32, left((m, kk))), b.cast(f32, right(WEIGHT_TILES.physical_index(n, kk))))

    zero = b.const(0.0, f32)
    total = ctx.reduce(MATMUL_BLOCK, (rows, columns), f32, (k,), zero, b.add, product)
    return _result(ctx, node, total)


@dataclass(frozen=True, slots=True)
class _Quantized:
    """Activations in codes ``[m, k]``, what codes are worth and where sums start, both ``[m, g]``."""

    codes: Access
    steps: Access
    starts: Access


def _quantize(ctx: Context, value: Access, rows: Dim, groups: _Groups, zero: int) -> _Quantized:
    """Quantise activations for weights whose code ``zero`` means 0."""
    per_group = (rows, groups.count)

    def at(i: Index, kk: Expr) -> Index:
        return (i[0], b.add(b.mul(i[1], groups.size), kk))

    largest = ctx.reduce(
        LARGEST_BLOCK, per_group, i32, (groups.size,), b.const(0, i32), b.maximum,
        lambda i, r: Intrinsic("bits", (b.abs_(value(at(i, r[0]))),), i32, 1),
    )  # fmt: skip

    def top(i: Index) -> Expr:
        return Intrinsic("from_bits", (largest(i),), f32, 1)

    def code(i: Index) -> Expr:
        m, g, kk = i
        inverse = b.div(b.const(float(CODE_MAX), f32), top((m, g)))
        inverse = b.select(b.ge(top((m, g)), b.const(SMALLEST, f32)), inverse, b.const(0.0, f32))
        return Intrinsic("nearest8", (b.mul(value(at((m, g), kk)), inverse),), i8, 1)

    # Rows are a cache line longer than need be, for the reason that :mod:`.matrix_unit` gives.
    stored = ctx.buffer(CODES_BLOCK + "_buf", (rows, groups.count * groups.size + ROW_BYTES), i8)
    ctx.stage(CODES_BLOCK, (*per_group, groups.size), i8, code, lambda i: (stored, at(i[:2], i[2])))
    steps = ctx.stage(STEPS_BLOCK, per_group, f32, lambda i: b.mul(top(i), b.const(1 / CODE_MAX, f32)))
    starts = ctx.reduce(
        STARTS_BLOCK, per_group, i32, (groups.size,), b.const(0, i32), b.add,
        lambda i, r: b.mul(b.cast(i32, Load(stored, at(i, r[0]))), b.const(-zero, i32)),
    )  # fmt: skip
    return _Quantized(lambda i: Load(stored, i), steps, starts)


def _dots(
    ctx: Context, shape: tuple[Dim, Dim], groups: _Groups, x: Access, start: Access, codes: Node
) -> Access:
    """``[m, g, n]``: exact sums of products in each group, from ``start`` on."""
    buffer, layout = ctx.operands.get(id(codes), (None, None))
    plain = ctx.by_stored_rows(codes)

    def product(m: Expr, k: Expr, code: Expr) -> Expr:
        return b.mul(b.cast(i32, x((m, k))), b.cast(i32, code))

    def by_element(i: Index, r: Index) -> Expr:
        m, g, n = i
        k = b.add(b.mul(g, groups.size), r[0])
        return product(m, k, plain((n, k)))

    def by_tile(i: Index, r: Index) -> Expr:
        assert buffer is not None
        assert layout is not None
        (m, g, n), (tile, j) = i, r
        first = b.add(b.mul(b.add(b.mul(g, groups.size // layout.cols), tile), layout.cols), j)
        parts = _tile_elements(buffer, layout, n, groups, (g, tile), j)
        terms = [product(m, b.add(first, FOUR * half), part) for half, part in enumerate(parts)]
        return terms[0] if len(terms) == 1 else b.add(terms[0], terms[1])

    extents: tuple[int, ...] = (groups.size,)
    if layout is not None and _has_fours(layout, groups):
        extents = groups.size // layout.cols, FOUR
    value = by_element if len(extents) == 1 else by_tile
    return ctx.reduce(DOT_BLOCK, (shape[0], groups.count, shape[1]), i32, extents, start, b.add, value)


def _has_fours(layout: Layout, groups: _Groups) -> bool:
    """Whether fours of k lie side by side, and a group is whole tiles (in stripes: a whole piece)."""
    if layout.bytes_wide != FOUR or groups.size % layout.cols:
        return False
    return layout.stripes is None or layout.stripes.tiles * layout.cols == groups.size * groups.shared


def _tile_elements(
    buffer: Buffer, layout: Layout, row: Expr, groups: _Groups, place: Index, j: Expr
) -> list[Expr]:
    """Elements ``j`` (and, of nibbles, ``4 + j``) of a row, in a tile: by group, and number in the group."""
    g, tile = place
    per_group = groups.size // layout.cols
    inner = b.add(b.mul(b.floormod(row, layout.rows), FOUR), j)
    if layout.stripes is None:
        index = b.add(b.mul(g, per_group), tile), inner
    else:
        before = b.mul(b.floormod(g, groups.shared), per_group)
        index = groups.of_weight(g), layout.in_piece(b.add(before, tile), inner)
    byte = Load(buffer, (b.floordiv(row, layout.rows), *index))
    if not layout.nibbles:
        return [byte]
    return [Intrinsic(name, (byte,), u8, 1) for name in ("low4", "high4")]
