"""Lowering of quantised weights.

``quantized_matmul`` becomes a chain of stages; those before ``dot`` quantise the activations::

    largest[m, g]   max |a[m, k]| over the group: its bits                  i32
    codes[m, k]     round(a[m, k] * 127 / largest)                          i8
    steps[m, g]     largest / 127: what a code of 1 is worth                f32
    starts[m, g]    -zero * sum of the group's codes                        i32
    dot[m, g, n]    starts[m, g] + sum of codes[m, k] * w[n, k]             i32, exact
    matmul[m, n]    sum over g of dot * (steps[m, g] * scale of w)          f32

With ``powers``, what a code is worth is a power of two times ``top[m] / 127``, and sums are added to the bits
of a float whose last bit is worth that power: ``dot`` needs neither conversion nor another multiplication::

    top[m]          max of largest[m, g]: its bits                          i32
    offsets[m, g]   1.5 * 2**23 * power: its bits                           i32
    codes[m, k]     round(a[m, k] * 127 / top / power)                      i8
    starts[m, g]    bits of the offset - zero * sum of the group's codes    i32
    dot[m, g, n]    starts[m, g] + sum of codes[m, k] * w[n, k]             i32, bits of an exact f32
    matmul[m, n]    sum over g of (dot - offsets[m, g]) * scale of w        f32, in units of top[m] / 127

The sum of a group runs over (tile, element) where the weight is stored in tiles of four columns (eight
nibbles): that is the shape of the hardware's 8-bit dot product, which ``tensorize`` looks for. Codes of the
weight are unsigned and those of the activations signed, as that instruction wants them; ``starts`` makes up
for the offset (where every group of the weight has a zero of its own, ``dot`` multiplies by it). Floats
that are not negative are in the order of their bits, NaN above infinity: maxima of bits are one instruction.

Where the context ``unpacks``, codes of 4 bits become bytes first, in another stage before ``dot``::

    unpacked[k / 4, n * 4]  codes of 4 bits, fours of an output side by side      u8

With ``activations = bf16`` both operands are rounded, the weight in the layout of a matrix unit: 16 columns
side by side, pairs of k together (``Layout(16, 2)``)::

    activations[m, k / 32, 32]      a (:mod:`.matrix_unit`)                 bf16
    weights[n / 16, k / 2, 32]      (code - zero) * scale                   bf16
    matmul[m, n]                    sum over k                              f32
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from strata.core.dims import Dim
from strata.core.dtypes import DType, bf16, f32, i8, i32, u8
from strata.graph.nodes import Node
from strata.graph.ops.quantized import CODE_MAX, LEAST_POWER, SMALLEST, group_size
from strata.loop import build as b
from strata.loop.layout import Layout
from strata.loop.matrix import ROW_BYTES
from strata.loop.nodes import Buffer, Expr, Intrinsic, Load

from .context import LOWERINGS, Access, Context, Index, widened
from .matmul import MATMUL_BLOCK
from .matrix_unit import staged_activations

DOT_BLOCK = "dot"
LARGEST_BLOCK, CODES_BLOCK, STEPS_BLOCK, STARTS_BLOCK = "largest", "codes", "steps", "starts"
TOP_BLOCK, OFFSETS_BLOCK = "top", "offsets"
UNPACKED_BLOCK = "unpacked"
WEIGHTS_BLOCK = "weights"
WEIGHT_TILES = Layout(16, 2)
FOUR = 4  # elements of k that an 8-bit dot product takes at once
MANTISSA_BITS = 23  # of f32
# Its last bit is worth 1, and whatever below 2**22 is added to its bits or subtracted from them.
OFFSET = 1.5 * 2.0**MANTISSA_BITS


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

    def element(self, group: Index, k: Expr) -> Index:
        """Row and column of element ``k`` of a group ``(m, g)``."""
        return group[0], b.add(b.mul(group[1], self.size), k)


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
    quantize = _quantize_by_powers if node.attrs["powers"] else _quantize
    of_a = quantize(ctx, widened(ctx.access(a)), rows, groups, None if zeros else node.attrs["zero"])

    zero_of = _zero(ctx.by_stored_rows, node, tuple(zeros))

    def start(i: Index) -> Expr:
        m, g, n = i
        return of_a.start((m, g), zero_of((n, groups.of_weight(g))) if zeros else b.const(1, i32))

    dot = _dots(ctx, (rows, columns), groups, of_a.codes, start, codes)
    scale = widened(ctx.by_stored_rows(scales))

    def term(spatial: Index, reduction: Index) -> Expr:
        (m, n), (g,) = spatial, reduction
        return of_a.term((m, g), dot((m, g, n)), scale((n, groups.of_weight(g))))

    zero = b.const(0.0, f32)
    total = ctx.reduce(MATMUL_BLOCK, (rows, columns), f32, (groups.count,), zero, b.add, term)
    return _result(ctx, node, lambda i: of_a.of_row(i[0], total(i)))


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
    """Quantised activations.

    Attributes:
        codes: ``[m, k]``.
        start: Where a sum of products starts, by ``(m, g)``, and the zero point of the weight's group where
            each has one of its own.
        term: What a sum of products is worth, by ``(m, g)``, the sum, and the weight's scale.
        of_row: What a sum over the groups of row ``m`` is worth, by ``m`` and the sum.
    """

    codes: Access
    start: Callable[[Index, Expr], Expr]
    term: Callable[[Index, Expr, Expr], Expr]
    of_row: Callable[[Expr, Expr], Expr]


def _quantize(ctx: Context, value: Access, rows: Dim, groups: _Groups, zero: int | None) -> _Quantized:
    """Quantise activations, each group with a scale of its own, for weights whose code ``zero`` means 0."""
    largest = _largest(ctx, value, rows, groups)
    codes = _codes(ctx, value, rows, groups, lambda i: _inverse(_as_f32(largest(i))))
    steps = ctx.stage(STEPS_BLOCK, (rows, groups.count), f32, lambda i: _step(largest(i)))
    starts = _starts(ctx, codes, rows, groups, zero, _nothing)
    return _Quantized(
        codes,
        lambda i, own_zero: b.mul(own_zero, starts(i)),
        lambda i, total, scale: b.mul(b.cast(f32, total), b.mul(steps(i), scale)),
        lambda m, total: total,
    )


def _quantize_by_powers(
    ctx: Context, value: Access, rows: Dim, groups: _Groups, zero: int | None
) -> _Quantized:
    """The same, with scales of a row that are one number times powers of two."""
    largest = _largest(ctx, value, rows, groups)
    top = ctx.reduce(
        TOP_BLOCK, (rows,), i32, (groups.count,), b.const(0, i32), b.maximum, lambda i, r: largest((*i, *r))
    )

    def offset(i: Index) -> Expr:
        ratio = _bits(b.div(_as_f32(largest(i)), _as_f32(top(i[:1]))))
        ratio = b.maximum(b.minimum(ratio, _bits_of(1.0)), _bits_of(LEAST_POWER))  # NaN is above 1
        one = 1 << MANTISSA_BITS
        power = b.mul(b.floordiv(b.add(ratio, one - 1), one), one)
        return b.add(power, b.sub(_bits_of(OFFSET), _bits_of(1.0)))

    offsets = ctx.stage(OFFSETS_BLOCK, (rows, groups.count), i32, offset)

    def inverse(i: Index) -> Expr:
        return b.mul(_inverse(_as_f32(top(i[:1]))), b.div(b.const(OFFSET, f32), _as_f32(offsets(i))))

    codes = _codes(ctx, value, rows, groups, inverse)
    starts = _starts(ctx, codes, rows, groups, zero, _nothing if zero is None else offsets)

    def start(i: Index, own_zero: Expr) -> Expr:
        return starts(i) if zero is not None else b.add(offsets(i), b.mul(own_zero, starts(i)))

    return _Quantized(
        codes,
        start,
        lambda i, total, scale: b.mul(b.sub(_as_f32(total), _as_f32(offsets(i))), scale),
        lambda m, total: b.mul(total, _step(top((m,)))),
    )


def _largest(ctx: Context, value: Access, rows: Dim, groups: _Groups) -> Access:
    """Bits of the largest magnitude of each group."""
    return ctx.reduce(
        LARGEST_BLOCK, (rows, groups.count), i32, (groups.size,), b.const(0, i32), b.maximum,
        lambda i, r: _bits(b.abs_(value(groups.element(i, r[0])))),
    )  # fmt: skip


def _codes(ctx: Context, value: Access, rows: Dim, groups: _Groups, inverse: Access) -> Access:
    """``[m, k]``: each element times ``inverse`` of its group, rounded."""
    # Rows are a cache line longer than need be, for the reason that :mod:`.matrix_unit` gives.
    stored = ctx.buffer(CODES_BLOCK + "_buf", (rows, groups.count * groups.size + ROW_BYTES), i8)

    def code(i: Index) -> Expr:
        return Intrinsic("nearest8", (b.mul(value(groups.element(i[:2], i[2])), inverse(i[:2])),), i8, 1)

    shape = (rows, groups.count, groups.size)
    ctx.stage(CODES_BLOCK, shape, i8, code, lambda i: (stored, groups.element(i[:2], i[2])))
    return lambda i: Load(stored, i)


def _starts(
    ctx: Context, codes: Access, rows: Dim, groups: _Groups, zero: int | None, init: Access
) -> Access:
    """``[m, g]``: ``init`` minus ``zero`` (1 if groups have zeros of their own) times the sum of codes."""
    if zero == 0:
        return init
    factor = 1 if zero is None else zero
    return ctx.reduce(
        STARTS_BLOCK, (rows, groups.count), i32, (groups.size,), init, b.add,
        lambda i, r: b.mul(b.cast(i32, codes(groups.element(i, r[0]))), b.const(-factor, i32)),
    )  # fmt: skip


def _nothing(_: Index) -> Expr:
    return b.const(0, i32)


def _inverse(top: Expr) -> Expr:
    """Codes per 1 where ``top`` is 127 of them."""
    codes = b.div(b.const(float(CODE_MAX), f32), top)
    return b.select(b.ge(top, b.const(SMALLEST, f32)), codes, b.const(0.0, f32))


def _step(top: Expr) -> Expr:
    """What a code of 1 is worth where 127 are the float with the bits ``top``."""
    return b.mul(_as_f32(top), b.const(1 / CODE_MAX, f32))


def _bits(x: Expr) -> Expr:
    return Intrinsic("bits", (x,), i32, 1)


def _as_f32(bits: Expr) -> Expr:
    return Intrinsic("from_bits", (bits,), f32, 1)


def _bits_of(x: float) -> Expr:
    return b.const(int(np.float32(x).view(np.int32)), i32)


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

    def by_four(i: Index, r: Index) -> Expr:
        (m, g, n), (number, j) = i, r
        four = b.add(b.mul(g, groups.size // FOUR), number)
        return product(m, b.add(b.mul(four, FOUR), j), unpacked((four, b.add(b.mul(n, FOUR), j))))

    extents, value = (groups.size,), by_element
    if buffer is not None and layout is not None and _has_fours(layout, groups):
        if ctx.unpacks and layout.nibbles:
            unpacked = _unpacked(ctx, codes, buffer, layout)
            extents, value = (groups.size // FOUR, FOUR), by_four
        else:
            extents, value = (groups.size // layout.cols, FOUR), by_tile
    return ctx.reduce(DOT_BLOCK, (shape[0], groups.count, shape[1]), i32, extents, start, b.add, value)


def _unpacked(ctx: Context, codes: Node, buffer: Buffer, layout: Layout) -> Access:
    """``[k / 4, n * 4]``: codes of 4 bits as bytes, fours of an output side by side."""
    rows, k = codes.tensor.shape
    assert isinstance(rows, int)
    assert isinstance(k, int)
    width = layout.rows * FOUR

    def code(i: Index) -> Expr:
        four, place = i
        tile, inner = b.floordiv(four, 2), b.floormod(place, width)
        index: Index = (tile, inner)
        if layout.stripes is not None:
            tiles = layout.stripes.tiles
            index = b.floordiv(tile, tiles), layout.in_piece(b.floormod(tile, tiles), inner)
        byte = Load(buffer, (b.floordiv(place, width), *index))
        low, high = (Intrinsic(name, (byte,), u8, 1) for name in ("low4", "high4"))
        return b.select(b.eq(b.floormod(four, 2), 0), low, high)

    return ctx.stage(UNPACKED_BLOCK, (k // FOUR, rows * FOUR), u8, code)


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
