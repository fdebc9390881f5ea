"""Stored layouts of matrices: how a logical ``[rows, cols]`` array lies in memory.

::

    Layout ::= tiles(rows=R, cols=C[, parts=P][, transposed][, nibbles][, stripes=T@B/S])

e.g. "tiles(rows=64,cols=1)".

``tiles(rows=R, cols=C)`` stores ``w[r, c]`` at ``p[r // R, c // C, (r % R) * C + c % C]`` of a 3-d array of
shape ``[ceil(rows/R), ceil(cols/C), R * C]``, zero padded. For a weight ``[N, K]`` (one row per output),
``R = 64, C = 1`` puts the 64 outputs that a register tile computes side by side for each k; ``C = 2``
adds the pairs of a bf16 dot product, ``C = 4`` the fours of an 8-bit one.

With ``parts=P``, a tile has ``R / P`` rows of each P-th of the matrix: ``gate`` and ``up``, one below the
other in a matrix, side by side in each tile. So the *stored order* of the rows is another one::

    w[p * N/P + q * R/P + r]  is row  q * R + p * R/P + r  in stored order      (0 <= r < R/P)

With ``nibbles``, two elements of 4 bits share a byte: the first half of a tile's columns are the low halves
of the bytes, the second half the high ones, so that ``R = 64, C = 8`` holds two operands of an 8-bit dot
product in the place of one. ``w[r, c]`` is in the byte ``p[r // R, c // C, (r % R) * C/2 + c % (C/2)]``.

With ``stripes=T@B/S``, T tiles at a time lie at element B of every S elements: ``p`` has the shape
``[ceil(rows/R), ceil(cols/(C T)), S]``. What is left out is for another array, in the same memory, that is
read together with this one: a core then reads one stream instead of two.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from strata.core.dims import Dim
from strata.core.dtypes import DType, u8
from strata.core.errors import ParseError
from strata.core.knobs import default_threads

from .build import add, floordiv, floormod, lt, mul, select
from .nodes import Buffer, Expr, Intrinsic, Load

_SPARE_BYTES = 64  # a cache line
_LARGE_BYTES = 4 << 20  # worth the time that threads take to start
_PATTERN = (
    r"tiles\(rows=(\d+),cols=(\d+)(?:,parts=(\d+))?(,transposed)?(,nibbles)?"
    r"(?:,stripes=(\d+)@(\d+)/(\d+))?\)"
)


@dataclass(frozen=True, slots=True)
class Stripes:
    """The part of each piece of memory that an array takes; the rest is another array's.

    Attributes:
        tiles: How many lie in one piece.
        begin: The first of their stored elements.
        size: Stored elements that fit into a piece.
    """

    tiles: int
    begin: int
    size: int

    def __str__(self) -> str:
        return f"{self.tiles}@{self.begin}/{self.size}"


@dataclass(frozen=True, slots=True)
class Layout:
    """Tiles of ``rows x cols``.

    Attributes:
        rows, cols: Size of a tile.
        transposed: Tiles of the transposed matrix (a ``[K, N]`` weight by rows).
        nibbles: Elements have 4 bits, two in a byte; ``cols`` is even.
        stripes: Where tiles lie in memory that two arrays share; ``None`` = one after the other.
        parts: Parts of the matrix, one below the other, of which each tile has as many rows; ``rows`` is a
            multiple of it, and the rows of a part one of ``rows / parts``.
    """

    rows: int
    cols: int = 1
    transposed: bool = False
    nibbles: bool = False
    stripes: Stripes | None = None
    parts: int = 1

    def __str__(self) -> str:
        flags = f",parts={self.parts}" if self.parts > 1 else ""
        flags += (",transposed" if self.transposed else "") + (",nibbles" if self.nibbles else "")
        stripes = f",stripes={self.stripes}" if self.stripes else ""
        return f"tiles(rows={self.rows},cols={self.cols}{flags}{stripes})"

    @property
    def bytes_wide(self) -> int:
        """Stored elements side by side in one row of a tile."""
        return self.cols // 2 if self.nibbles else self.cols

    @property
    def stripe(self) -> int:
        """Stored elements of this array in one piece of memory."""
        return self.stripes.tiles * self.rows * self.bytes_wide if self.stripes else 0

    def physical_shape(self, shape: tuple[int, int]) -> tuple[int, int, int]:
        """Shape of the stored 3-d array for a logical ``shape``."""
        rows, cols = shape[::-1] if self.transposed else shape
        tiles, width = -(-cols // self.cols), self.rows * self.bytes_wide
        if self.stripes:
            tiles, width = -(-tiles // self.stripes.tiles), self.stripes.size
        return (-(-rows // self.rows), tiles, width)

    def stored_row(self, row: Expr, rows: Dim) -> Expr:
        """Place of a row, of all ``rows`` of the matrix that has tiles of them, in stored order."""
        if self.parts == 1:
            return row
        assert isinstance(rows, int)
        part, inner = floordiv(row, rows // self.parts), floormod(row, rows // self.parts)
        own = self.rows // self.parts
        return add(add(mul(floordiv(inner, own), self.rows), mul(part, own)), floormod(inner, own))

    def physical_index(self, row: Expr, col: Expr) -> tuple[Expr, Expr, Expr]:
        """Where ``[row, col]`` is stored, rows in stored order; of nibbles: the byte."""
        if self.transposed:
            row, col = col, row
        wide = self.bytes_wide
        inner = add(mul(floormod(row, self.rows), wide), floormod(col, wide))
        if self.stripes:
            cols = self.stripes.tiles * self.cols
            tile = floordiv(floormod(col, cols), self.cols)
            return (floordiv(row, self.rows), floordiv(col, cols), self.in_piece(tile, inner))
        return (floordiv(row, self.rows), floordiv(col, self.cols), inner)

    def in_piece(self, tile: Expr, inner: Expr) -> Expr:
        """Where element ``inner`` of a piece's ``tile`` is stored, from the beginning of the piece."""
        assert self.stripes is not None
        return add(add(mul(tile, self.rows * self.bytes_wide), inner), self.stripes.begin)

    def load(self, buffer: Buffer, row: Expr, col: Expr) -> Expr:
        """Logical element ``[row, col]`` of a stored array: for nibbles the half of its byte, as u8."""
        if self.parts > 1:
            rows = buffer.shape[0] * self.rows
            place = self.stored_row(col if self.transposed else row, rows)
            row, col = (row, place) if self.transposed else (place, col)
        byte = Load(buffer, self.physical_index(row, col))
        if not self.nibbles:
            return byte
        column = row if self.transposed else col
        is_low = lt(floormod(column, self.cols), self.bytes_wide)
        return select(is_low, Intrinsic("low4", (byte,), u8, 1), Intrinsic("high4", (byte,), u8, 1))

    def pack(self, array: Any, place: Any = None) -> Any:
        """Logical 2-d ndarray -> stored 3-d ndarray (C-contiguous, zero padded): ``place``, or a new one."""
        import numpy as np

        if self.transposed:
            array = array.T
        rows, cols = array.shape
        tile_rows, pieces, width = replace(self, transposed=False).physical_shape((rows, cols))
        own, part_rows = self.rows // self.parts, rows // self.parts
        if self.parts > 1 and rows % self.rows:
            raise ValueError(f"layout {self}: got {rows} rows; expected a multiple of {self.rows}")
        dtype = np.dtype(np.uint8) if self.nibbles else array.dtype
        word_bytes = self.bytes_wide * dtype.itemsize  # neighbours in a tile, moved as one
        if place is None:
            place = (np.zeros if self.stripes else np.empty)((tile_rows, pieces, width), dtype)
        out = self._tiles(place).view(f"V{word_bytes}")
        tile_cols = pieces * out.shape[2]
        # A row of tiles is turned from a copy, whose rows are not a power of two apart: the places of a cache
        # that can hold the same column of all rows would be few.
        spare = -(-_SPARE_BYTES // word_bytes)

        def fill(tiles: range) -> None:
            copy = np.zeros((self.rows, (tile_cols + spare) * self.cols), dtype)
            for tile in tiles:
                for number in range(self.parts):
                    begin = number * part_rows + tile * own
                    some, place = array[begin : begin + own], number * own
                    copy[place : place + len(some), :cols] = some
                    copy[place + len(some) : place + own] = 0
                words = self._halves_joined(copy) if self.nibbles else copy
                out[tile] = words.view(out.dtype)[:, :tile_cols].T.reshape(out.shape[1:])

        _on_all_threads(fill, tile_rows, place.nbytes)
        return place

    def _tiles(self, stored: Any) -> Any:
        """Stored 3-d ndarray -> its tiles ``[rows of tiles, pieces, tiles of a piece, elements]``, a view."""
        if self.stripes is None:
            return stored.reshape(*stored.shape[:2], 1, -1)
        own = stored[:, :, self.stripes.begin : self.stripes.begin + self.stripe]
        return own.reshape(*own.shape[:2], self.stripes.tiles, -1)

    def _halves_joined(self, rows: Any) -> Any:
        """Bytes ``[rows, n / 2]`` of elements of 4 bits ``[rows, n]`` u8, several at a time."""
        import numpy as np

        unit = np.dtype(f"u{math.gcd(self.bytes_wide, 8)}")
        halves = rows.view(unit).reshape(len(rows), -1, 2, self.bytes_wide // unit.itemsize)
        return (halves[:, :, 0] | halves[:, :, 1] << 4).reshape(len(rows), -1)

    def unpack(self, stored: Any, shape: tuple[int, int]) -> Any:
        """Stored 3-d ndarray -> logical ndarray of ``shape``; nibbles become ``uint4``."""
        if self.nibbles:
            import ml_dtypes
            import numpy as np

            tiles = self._tiles(stored)
            bytes_ = tiles.reshape(len(tiles), -1, self.rows, 1, self.bytes_wide)
            whole = np.concatenate([bytes_ & 15, bytes_ >> 4], axis=3).reshape(*bytes_.shape[:2], -1)
            plain = replace(self, nibbles=False, stripes=None).unpack(whole, shape)
            return plain.astype(ml_dtypes.uint4)
        rows, cols = shape[::-1] if self.transposed else shape
        r, c = self.rows, self.cols
        tiles = self._tiles(stored).reshape(len(stored), -1, r, c)
        flat = tiles.transpose(0, 2, 1, 3).reshape(len(stored), self.parts, r // self.parts, -1)
        flat = flat.swapaxes(0, 1).reshape(len(stored) * r, -1)[:rows, :cols]
        return flat.T if self.transposed else flat


def _on_all_threads(work: Callable[[range], None], count: int, num_bytes: int) -> None:
    """``work`` on ``0 .. count-1``: in a part per thread, as NumPy lets go of the GIL, if it makes much."""
    threads = min(count, default_threads()) if num_bytes >= _LARGE_BYTES else 1
    if threads == 1:
        work(range(count))
        return
    bounds = [count * k // threads for k in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, map(range, bounds, bounds[1:])))


def parse_layout(text: str) -> Layout | None:
    """Parse ``str(layout)``; ``""`` is ``None`` (row-major).

    Raises:
        ParseError: not a layout.
    """
    if not text:
        return None
    match = re.fullmatch(_PATTERN, text)
    rows, cols, parts = (int(match[k] or 1) for k in (1, 2, 3)) if match else (1, 1, 1)
    if match is None or (match[5] and cols % 2) or not 1 <= parts <= rows or rows % parts:
        form = "tiles(rows=R,cols=C[,parts=P][,transposed][,nibbles][,stripes=T@B/S])"
        raise ParseError(f"layout: got {text!r}; expected {form}")
    stripes = Stripes(int(match[6]), int(match[7]), int(match[8])) if match[6] else None
    layout = Layout(rows, cols, bool(match[4]), bool(match[5]), stripes, parts)
    if stripes and not 1 <= layout.stripe <= stripes.size - stripes.begin:
        raise ParseError(f"layout: got {text!r}; expected stripes with room for {stripes.tiles} tiles")
    return layout


def stored_dtype(dtype: DType) -> DType:
    """Element type of the stored array of a tensor: bytes for elements of 4 bits, packed or not."""
    return u8 if dtype.bits < 8 else dtype


def stored_shape(shape: tuple[Dim, ...], layout: Layout | None) -> tuple[Dim, ...]:
    """Shape of the stored array of a param of constant ``shape``."""
    if layout is None:
        return shape
    rows, cols = shape
    assert isinstance(rows, int)
    assert isinstance(cols, int)
    return layout.physical_shape((rows, cols))
