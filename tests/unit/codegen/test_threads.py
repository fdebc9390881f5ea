"""The support code: memory functions, other architectures."""

import ctypes
from dataclasses import replace

import pytest
from hand_kernels import TARGET, support
from hypothesis import given
from hypothesis import strategies as st

from strata.codegen.compile import assembly
from strata.codegen.link import link
from strata.codegen.threads import SUPPORT_EXPORTS, emit_support, platform
from strata.core.errors import UnsupportedError
from strata.runtime.image import load_image

NAMES = ("memcpy", "memmove", "memset", "memcmp", "bcmp")
LOADED = load_image(link([support()], [*SUPPORT_EXPORTS, *NAMES]), 1)
P, INT, N = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
memcpy = ctypes.CFUNCTYPE(P, P, P, N)(LOADED.address("memcpy"))
memmove = ctypes.CFUNCTYPE(P, P, P, N)(LOADED.address("memmove"))
memset = ctypes.CFUNCTYPE(P, P, INT, N)(LOADED.address("memset"))
memcmp = ctypes.CFUNCTYPE(INT, P, P, N)(LOADED.address("memcmp"))
bcmp = ctypes.CFUNCTYPE(INT, P, P, N)(LOADED.address("bcmp"))


@given(st.binary(min_size=1, max_size=80), st.integers(0, 80), st.integers(0, 80), st.integers(0, 80))
def test_memmove(data, src, dst, n):
    n = max(0, min(n, len(data) - max(src, dst)))
    buffer = ctypes.create_string_buffer(data, len(data))
    base = ctypes.addressof(buffer)
    expected = bytearray(data)
    if n:
        expected[dst : dst + n] = data[src : src + n]
    assert memmove(base + dst, base + src, n) == base + dst
    assert buffer.raw == bytes(expected)


@given(st.binary(max_size=80), st.integers(-300, 300))
def test_memcpy_and_memset(data, byte):
    buffer = ctypes.create_string_buffer(len(data) + 2)
    base = ctypes.addressof(buffer)
    assert memcpy(base + 1, data, len(data)) == base + 1
    assert buffer.raw == b"\0" + data + b"\0"
    assert memset(base + 1, byte, len(data)) == base + 1
    assert buffer.raw == b"\0" + bytes([byte % 256]) * len(data) + b"\0"


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_memcmp(a, b):
    n = min(len(a), len(b))
    expected = (a[:n] > b[:n]) - (a[:n] < b[:n])
    got = memcmp(a, b, n)
    assert (got > 0) - (got < 0) == expected
    assert (bcmp(a, b, n) != 0) == (expected != 0)


def test_memory_functions_do_not_call_themselves():
    text = assembly(emit_support(TARGET.triple), TARGET)
    for name in NAMES:
        body = text.partition(f"\n{name}:")[2].partition(".Lfunc_end")[0]
        assert body
        assert "call" not in body


def test_aarch64():
    target = replace(TARGET, name="arm", triple="aarch64-unknown-linux-gnu", cpu="generic", features=())
    text = assembly(emit_support(target.triple), target)
    assert "yield" in text or "hint" in text
    assert "#98" in text  # the futex system call


def test_other_architectures():
    with pytest.raises(
        UnsupportedError, match=r"target 'riscv64-linux': got architecture 'riscv64'; expected x86_64 or"
    ):
        platform("riscv64-linux")
