"""Stored layouts: packing, unpacking, and the index that reads a packed array."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.core.dtypes import i32, u4, u8
from strata.core.errors import ParseError
from strata.loop.interp import run
from strata.loop.layout import _LARGE_BYTES, Layout, Stripes, parse_layout, stored_dtype, stored_shape
from strata.loop.nodes import Buffer, For, ForKind, Func, Load, Store, Var, index

SIZES = st.integers(1, 20)


@given(SIZES, SIZES, st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_pack_unpack_and_index_agree(rows, cols, tile_rows, tile_cols, transposed):
    layout = Layout(tile_rows, tile_cols, transposed)
    logical = np.arange(1, rows * cols + 1, dtype=np.int32).reshape(rows, cols)
    stored = layout.pack(logical)
    assert stored.shape == layout.physical_shape((rows, cols)) == stored_shape((rows, cols), layout)
    assert stored.flags.c_contiguous
    assert np.count_nonzero(stored) == rows * cols  # the rest is padding
    np.testing.assert_array_equal(layout.unpack(stored, (rows, cols)), logical)
    row, col = Var("row"), Var("col")
    packed, out = Buffer("packed", stored.shape, i32), Buffer("out", (rows, cols), i32)
    body = Store(out, (row, col), Load(packed, layout.physical_index(row, col)))
    body = For(row, index(rows), ForKind.SERIAL, For(col, index(cols), ForKind.SERIAL, body))
    result = np.zeros((rows, cols), np.int32)
    run(Func("read", (packed, out), body), [stored, result])
    np.testing.assert_array_equal(result, logical)


@given(
    SIZES, SIZES, st.integers(1, 8), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.booleans()
)
def test_two_arrays_share_stripes_of_memory(rows, pieces, tile_rows, half, tiles, spare, nibbles):
    cols = 2 * half * tiles * pieces
    codes = (
        (np.arange(rows * cols) * 7 % 16).astype(ml_dtypes.uint4 if nibbles else np.uint8).reshape(rows, -1)
    )
    scales = np.arange(1, rows * pieces + 1, dtype=np.uint16).reshape(rows, -1)
    taken = tiles * tile_rows * half * (1 if nibbles else 2)
    begin = -(-taken // 2)  # of the scales, in their elements
    size = begin + tile_rows + spare
    of_codes = Layout(tile_rows, 2 * half, nibbles=nibbles, stripes=Stripes(tiles, 0, 2 * size))
    of_scales = Layout(tile_rows, stripes=Stripes(1, begin, size))
    memory = np.full(of_codes.physical_shape(codes.shape), 0xEE, np.uint8)
    shared = memory.view(np.uint16).reshape(of_scales.physical_shape(scales.shape))
    of_scales.pack(scales, shared)
    of_codes.pack(codes, memory)
    np.testing.assert_array_equal(of_scales.unpack(shared, scales.shape), scales)
    np.testing.assert_array_equal(of_codes.unpack(memory, codes.shape), codes)
    gap = memory[:, :, taken : 2 * begin]
    assert (gap == 0xEE).all()  # what belongs to neither stays
    row, col = Var("row"), Var("col")
    packed, out = Buffer("packed", memory.shape, u8), Buffer("out", codes.shape, u8)
    body = Store(out, (row, col), of_codes.load(packed, row, col))
    body = For(row, index(rows), ForKind.SERIAL, For(col, index(cols), ForKind.SERIAL, body))
    result = np.zeros(codes.shape, np.uint8)
    run(Func("read", (packed, out), body), [memory, result])
    np.testing.assert_array_equal(result, codes.astype(np.uint8))


@given(
    st.integers(1, 4),
    st.integers(1, 5),
    SIZES,
    st.integers(1, 4),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
def test_parts_side_by_side(tiles, cols, own, parts, half, transposed, nibbles):
    layout = Layout(parts * own, 2 * half, transposed, nibbles, parts=parts)
    shape = (tiles * parts * own, cols)
    logical = (np.arange(shape[0] * cols) * 7 % 16).astype(ml_dtypes.uint4 if nibbles else np.uint8)
    logical = logical.reshape(shape[::-1] if transposed else shape)
    stored = layout.pack(logical)
    assert stored.shape == layout.physical_shape(logical.shape)
    np.testing.assert_array_equal(layout.unpack(stored, logical.shape), logical)
    row, col = Var("row"), Var("col")
    packed, out = Buffer("packed", stored.shape, u8), Buffer("out", logical.shape, u8)
    body = Store(out, (row, col), layout.load(packed, row, col))
    inner = For(col, index(logical.shape[1]), ForKind.SERIAL, body)
    result = np.zeros(logical.shape, np.uint8)
    run(Func("read", (packed, out), For(row, index(len(logical)), ForKind.SERIAL, inner)), [stored, result])
    np.testing.assert_array_equal(result, logical.astype(np.uint8))


def test_parts_need_whole_tiles():
    with pytest.raises(ValueError, match=r"parts=2.*got 24 rows; expected a multiple of 16"):
        Layout(16, parts=2).pack(np.zeros((24, 4), np.float32))


@pytest.mark.parametrize("rows", [2048, 2049, 64])
def test_large_matrices_are_packed_by_all_cores(rows):
    layout = Layout(64, 2)
    logical = np.arange(rows * 20_000, dtype=np.int32).reshape(rows, -1)
    assert logical.nbytes >= _LARGE_BYTES
    np.testing.assert_array_equal(layout.unpack(layout.pack(logical), logical.shape), logical)


@given(SIZES, SIZES, st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_nibbles_share_bytes(rows, cols, tile_rows, half, transposed):
    layout = Layout(tile_rows, 2 * half, transposed, nibbles=True)
    logical = (np.arange(rows * cols) * 7 % 16).astype(ml_dtypes.uint4).reshape(rows, cols)
    stored = layout.pack(logical)
    assert stored.dtype == np.uint8
    assert stored.shape == layout.physical_shape((rows, cols))
    assert stored_dtype(u4) is u8
    unpacked = layout.unpack(stored, (rows, cols))
    assert unpacked.dtype == ml_dtypes.uint4
    np.testing.assert_array_equal(unpacked, logical)
    row, col = Var("row"), Var("col")
    packed, out = Buffer("packed", stored.shape, u8), Buffer("out", (rows, cols), u8)
    body = Store(out, (row, col), layout.load(packed, row, col))
    body = For(row, index(rows), ForKind.SERIAL, For(col, index(cols), ForKind.SERIAL, body))
    result = np.zeros((rows, cols), np.uint8)
    run(Func("read", (packed, out), body), [stored, result])
    np.testing.assert_array_equal(result, logical.astype(np.uint8))


@pytest.mark.parametrize(
    "layout",
    [
        Layout(64),
        Layout(16, 2),
        Layout(64, 2, transposed=True),
        Layout(64, 8, nibbles=True),
        Layout(64, 8, nibbles=True, stripes=Stripes(4, 0, 1152)),
        Layout(64, stripes=Stripes(1, 512, 576)),
        Layout(64, 8, nibbles=True, stripes=Stripes(4, 0, 1152), parts=2),
    ],
)
def test_text(layout):
    assert parse_layout(str(layout)) == layout
    assert str(Layout(64, 1, True)) == "tiles(rows=64,cols=1,transposed)"
    assert str(Layout(64, stripes=Stripes(1, 512, 576))) == "tiles(rows=64,cols=1,stripes=1@512/576)"


def test_row_major_is_no_layout():
    assert parse_layout("") is None
    assert stored_shape((3, 5), None) == (3, 5)


@pytest.mark.parametrize(
    "text",
    [
        "tile(rows=1,cols=1)",
        "tiles(rows=a,cols=1)",
        "tiles(rows=1)",
        " ",
        "tiles(rows=1,cols=3,nibbles)",
        "tiles(rows=64,cols=1,stripes=1@512)",
        "tiles(rows=64,cols=1,parts=3)",
        "tiles(rows=64,cols=1,parts=0)",
    ],
)
def test_bad_text(text):
    with pytest.raises(ParseError, match=r"layout: got '.*'; expected tiles\(rows=R,cols=C\[,parts=P\]"):
        parse_layout(text)


@pytest.mark.parametrize("stripes", ["1@513/576", "2@512/576", "0@512/576"])
def test_stripes_have_room(stripes):
    with pytest.raises(ParseError, match=r"layout: got '.*'; expected stripes with room for \d tiles"):
        parse_layout(f"tiles(rows=64,cols=1,stripes={stripes})")
