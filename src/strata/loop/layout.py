"""Stored layouts of matrices: how a logical ``[rows, cols]`` array lies in memory.

::

    Layout ::= tiles(rows=R, cols=C)     text form, e.g. "tiles(rows=64,cols=1)"

``tiles(rows=R, cols=C)`` stores ``w[r, c]`` at ``p[r // R, c // C, (r % R) * C + c % C]`` of a 3-d array of
shape ``[ceil(rows/R), ceil(cols/C), R * C]``, zero padded. For a weight ``[N, K]`` (one row per output),
``R = 64, C = 1`` puts the 64 outputs that a register tile computes side by side for each k; ``C = 2``
adds the pairs of a bf16 dot product.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from strata.core.dims import Dim
from strata.core.errors import ParseError

from .build import add, floordiv, floormod, mul
from .nodes import Expr


@dataclass(frozen=True, slots=True)
class Layout:
    """Tiles of ``rows x cols``; ``transposed``: of the transposed matrix (a ``[K, N]`` weight by rows)."""

    rows: int
    cols: int = 1
    transposed: bool = False

    def __str__(self) -> str:
        return f"tiles(rows={self.rows},cols={self.cols}{',transposed' if self.transposed else ''})"

    def physical_shape(self, shape: tuple[int, int]) -> tuple[int, int, int]:
        """Shape of the stored 3-d array for a logical ``shape``."""
        rows, cols = shape[::-1] if self.transposed else shape
        return (-(-rows // self.rows), -(-cols // self.cols), self.rows * self.cols)

    def physical_index(self, row: Expr, col: Expr) -> tuple[Expr, Expr, Expr]:
        """Where logical ``[row, col]`` is stored."""
        if self.transposed:
            row, col = col, row
        inner = add(mul(floormod(row, self.rows), self.cols), floormod(col, self.cols))
        return (floordiv(row, self.rows), floordiv(col, self.cols), inner)

    def pack(self, array: Any) -> Any:
        """Logical 2-d ndarray -> stored 3-d ndarray (C-contiguous, zero padded)."""
        import numpy as np

        if self.transposed:
            array = array.T
        rows, cols = array.shape
        r, c = self.rows, self.cols
        out = np.zeros((-(-rows // r), -(-cols // c), r, c), array.dtype)
        full_rows, full_cols = rows // r, cols // c
        body = array[: full_rows * r, : full_cols * c].reshape(full_rows, r, full_cols, c)
        out[:full_rows, :full_cols] = body.transpose(0, 2, 1, 3)
        if rows % r:  # the ragged last tile of rows
            rest = array[full_rows * r :, : full_cols * c].reshape(rows % r, full_cols, c)
            out[full_rows, :full_cols, : rows % r] = rest.transpose(1, 0, 2)
        if cols % c:  # the ragged last columns, tile by tile
            for tile in range(out.shape[0]):
                part = array[tile * r : (tile + 1) * r, full_cols * c :]
                out[tile, full_cols, : part.shape[0], : cols % c] = part
        return out.reshape(
            self.physical_shape((rows, cols)) if not self.transposed else self.physical_shape((cols, rows))
        )

    def unpack(self, stored: Any, shape: tuple[int, int]) -> Any:
        """Stored 3-d ndarray -> logical ndarray of ``shape``."""
        rows, cols = shape[::-1] if self.transposed else shape
        n_rows, n_cols, _ = stored.shape
        r, c = self.rows, self.cols
        tiles = stored.reshape(n_rows, n_cols, r, c)
        flat = tiles.transpose(0, 2, 1, 3).reshape(n_rows * r, n_cols * c)[:rows, :cols]
        return flat.T if self.transposed else flat


def parse_layout(text: str) -> Layout | None:
    """Parse ``str(layout)``; ``""`` is ``None`` (row-major).

    Raises:
        ParseError: not a layout.
    """
    if not text:
        return None
    match = re.fullmatch(r"tiles\(rows=(\d+),cols=(\d+)(,transposed)?\)", text)
    if match is None:
        raise ParseError(f"layout: got {text!r}; expected tiles(rows=R,cols=C[,transposed])")
    return Layout(int(match[1]), int(match[2]), bool(match[3]))


def stored_shape(shape: tuple[Dim, ...], layout: Layout | None) -> tuple[Dim, ...]:
    """Shape of the stored array of a param of constant ``shape``."""
    if layout is None:
        return shape
    rows, cols = shape
    assert isinstance(rows, int)
    assert isinstance(cols, int)
    return layout.physical_shape((rows, cols))
