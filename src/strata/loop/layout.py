"""Stored layouts of matrices: how a logical ``[rows, cols]`` array lies in memory.

::

    Layout ::= tiles(rows=R, cols=C)     text form, e.g. "tiles(rows=64,cols=1)"

``tiles(rows=R, cols=C)`` stores ``w[r, c]`` at ``p[r // R, c // C, r % R, c % C]`` of a 4-d array of shape
``[ceil(rows/R), ceil(cols/C), R, C]``, zero padded. For a weight ``[N, K]`` (one row per output), ``R = 64, C = 1`` puts the
64 outputs that a register tile computes side by side for each k; ``C = 2`` adds the pairs of a bf16 dot product.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from strata.core.dims import Dim
from strata.core.errors import ParseError

from .nodes import Binary, BinaryOp, Expr, index


@dataclass(frozen=True, slots=True)
class Layout:
    """Tiles of ``rows x cols``; ``transposed`` tiles the transposed matrix (a ``[K, N]`` weight stored by outputs)."""

    rows: int
    cols: int = 1
    transposed: bool = False

    def __str__(self) -> str:
        return f"tiles(rows={self.rows},cols={self.cols}{',transposed' if self.transposed else ''})"

    def physical_shape(self, shape: tuple[int, int]) -> tuple[int, int, int, int]:
        """Shape of the stored 4-d array for a logical ``shape``."""
        rows, cols = shape[::-1] if self.transposed else shape
        return (-(-rows // self.rows), -(-cols // self.cols), self.rows, self.cols)

    def physical_index(self, row: Expr, col: Expr) -> tuple[Expr, Expr, Expr, Expr]:
        """Where logical ``[row, col]`` is stored."""
        if self.transposed:
            row, col = col, row

        def div(a: Expr, b: int) -> Expr:
            return Binary(BinaryOp.FLOORDIV, a, index(b))

        def mod(a: Expr, b: int) -> Expr:
            return Binary(BinaryOp.FLOORMOD, a, index(b))

        return (div(row, self.rows), div(col, self.cols), mod(row, self.rows), mod(col, self.cols))

    def pack(self, array: Any) -> Any:
        """Logical 2-d ndarray -> stored 4-d ndarray (C-contiguous, zero padded)."""
        import numpy as np

        if self.transposed:
            array = array.T
        n_rows, n_cols, r, c = self.physical_shape(array.shape) if not self.transposed else (
            -(-array.shape[0] // self.rows), -(-array.shape[1] // self.cols), self.rows, self.cols
        )
        out = np.zeros((n_rows, n_cols, r, c), array.dtype)
        full = array.shape[0] // r
        whole_cols = array.shape[1] // c
        if full and whole_cols:
            body = array[: full * r, : whole_cols * c].reshape(full, r, whole_cols, c)
            out[:full, :whole_cols] = body.transpose(0, 2, 1, 3)
        for row in range(full * r, array.shape[0]):  # the ragged last tile
            for_cols = array[row, : whole_cols * c].reshape(whole_cols, c)
            out[full, :whole_cols, row - full * r] = for_cols
        for col in range(whole_cols * c, array.shape[1]):
            for tile in range(n_rows):
                part = array[tile * r : (tile + 1) * r, col]
                out[tile, whole_cols, : len(part), col - whole_cols * c] = part
        return out

    def unpack(self, stored: Any, shape: tuple[int, int]) -> Any:
        """Stored 4-d ndarray -> logical ndarray of ``shape``."""
        rows, cols = shape[::-1] if self.transposed else shape
        n_rows, n_cols, r, c = stored.shape
        flat = stored.transpose(0, 2, 1, 3).reshape(n_rows * r, n_cols * c)[:rows, :cols]
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
