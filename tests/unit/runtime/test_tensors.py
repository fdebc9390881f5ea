import gc
import re
import weakref
from pathlib import Path

import numpy as np
import pytest

from strata.core.dtypes import ALL_DTYPES
from strata.core.errors import ShapeError, UserError
from strata.runtime.tensors import (
    ALIGNMENT_BYTES,
    HUGE_PAGE_BYTES,
    address,
    aligned_empty,
    aligned_zeros,
    array_at,
    as_array,
    as_tensor,
    dtype_name,
    numpy_dtype,
    type_text,
)


def test_elements_of_4_bits_are_bytes():
    array = np.arange(6).reshape(2, 3).astype(numpy_dtype("u4"))
    back = as_array(as_tensor(array))
    assert back.dtype == np.uint8
    assert address(back) == address(array)
    np.testing.assert_array_equal(back, array.astype(np.uint8))


@pytest.mark.parametrize("name", [name for name in ALL_DTYPES if name != "u4"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 0)])
def test_array_to_tensor_and_back(name, shape):
    array = np.arange(int(np.prod(shape))).reshape(shape).astype(numpy_dtype(name))
    tensor = as_tensor(array)
    assert str(tensor.dtype) == ALL_DTYPES[name].numpy_name
    assert tuple(tensor.shape) == shape
    back = as_array(tensor)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back.astype(np.float64), array.astype(np.float64))
    if array.size:
        assert address(back) == address(array)


@pytest.mark.parametrize("name", ["f32", "bf16"])
def test_read_only_arrays_pass_and_stay_alive(name):
    array = np.ones(1000, numpy_dtype(name))
    array.flags.writeable = False
    owner = weakref.ref(array)
    tensor = as_tensor(array)
    del array
    gc.collect()
    assert owner() is not None
    assert (as_array(tensor) == 1).all()
    del tensor
    gc.collect()
    assert owner() is None


def test_as_tensor_errors():
    with pytest.raises(ShapeError, match=r"strided array f32\[2,2\]; expected C-contiguous"):
        as_tensor(np.zeros((2, 4), np.float32)[:, ::2])
    with pytest.raises(ShapeError, match=r"dtype datetime64.* has no DLPack code"):
        as_tensor(np.zeros(2, "datetime64[s]"))
    with pytest.raises(UserError, match="dtype: got 'f8'"):
        numpy_dtype("f8")


@pytest.mark.parametrize("rows", [HUGE_PAGE_BYTES // 32, HUGE_PAGE_BYTES // 32 + 1, HUGE_PAGE_BYTES])
def test_large_arrays_ask_for_huge_pages(rows):
    array = aligned_empty((rows, 8), "f4")
    assert array.shape == (rows, 8)
    assert address(array) % ALIGNMENT_BYTES == 0
    array[...] = 3
    assert (array == 3).all()
    has_them = Path("/sys/kernel/mm/transparent_hugepage").exists()
    for byte in (0, array.nbytes - 1):
        assert ("hg" in _flags_of_mapping(address(array) + byte)) == has_them


def _flags_of_mapping(where: int) -> list[str]:
    """``VmFlags`` of proc(5) smaps; "hg": ``madvise(MADV_HUGEPAGE)``."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if match := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(match[1], 16) <= where < int(match[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping has {where:#x}")


@pytest.mark.parametrize("make", [aligned_empty, aligned_zeros])
def test_aligned(make):
    for shape in [(1,), (3, 5), (100, 100)]:
        array = make(shape, "bfloat16" if len(shape) == 1 else np.dtype(np.float32))
        assert array.shape == shape
        assert address(array) % 64 == 0
        assert array.flags.c_contiguous
    assert not aligned_zeros((7, 9), "f4").any()


def test_array_at_is_a_writable_alias():
    array = np.zeros(6, np.int32)
    alias = array_at(address(array), (2, 3), np.dtype(np.int32), keep=array)
    alias[1, 2] = 7
    assert array[5] == 7
    assert array_at(0, (0,), np.dtype(np.int32)).shape == (0,)


def test_names():
    assert dtype_name(np.dtype("float16")) == "f16"
    assert dtype_name(np.dtype("complex64")) is None
    assert type_text(np.zeros((2, 3), numpy_dtype("bf16"))) == "bf16[2,3]"
    assert type_text(np.zeros((), "complex64")) == "complex64[]"
