"""How loop-IR dtypes and constants are written in LLVM.

Two types per dtype: the SSA type that values have (bool is ``i1``, bf16 is ``i16`` with the bf16 bit
pattern, since LLVM's ``bfloat`` has libcalls on most CPUs) and the memory type that buffers have (bool is
``i8``).
"""

from __future__ import annotations

import struct

from strata.core.dtypes import DType, bf16, bool_, f16, f32, f64

_SSA = {"f64": "double", "f32": "float", "f16": "half", "bf16": "i16", "bool": "i1"}


def scalar_type(dtype: DType) -> str:
    """SSA type of one element."""
    return _SSA.get(dtype.name) or f"i{dtype.bits}"


def vector_type(element: str, lanes: int) -> str:
    """``<lanes x element>``, or ``element`` for one lane."""
    return element if lanes == 1 else f"<{lanes} x {element}>"


def ssa_type(dtype: DType, lanes: int = 1) -> str:
    """SSA type of a value with ``lanes`` lanes."""
    return vector_type(scalar_type(dtype), lanes)


def memory_type(dtype: DType, lanes: int = 1) -> str:
    """Type that is loaded and stored."""
    return vector_type("i8" if dtype == bool_ else scalar_type(dtype), lanes)


def mangled(type_text: str) -> str:
    """Suffix of an overloaded intrinsic: ``<16 x float>`` -> ``v16f32``."""
    names = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16", "ptr": "p0"}
    if not type_text.startswith("<"):
        return names.get(type_text, type_text)
    lanes, _, element = type_text[1:-1].partition(" x ")
    return f"v{lanes}{names.get(element, element)}"


def float_text(value: float, dtype: DType) -> str:
    """An LLVM constant of a float dtype; rounds to nearest even first (bf16 gives an integer)."""
    if dtype == f64:
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    if dtype == f16:
        return f"0xH{struct.unpack('<H', _packed('<e', value))[0]:04X}"
    single = struct.unpack("<f", _packed("<f", value))[0]
    if dtype == f32:
        return f"0x{struct.unpack('<Q', struct.pack('<d', single))[0]:016X}"
    assert dtype == bf16
    return str(_bf16_bits(single))


def _packed(code: str, value: float) -> bytes:
    try:
        return struct.pack(code, value)
    except OverflowError:  # rounds beyond the largest finite value
        return struct.pack(code, float("inf") if value > 0 else float("-inf"))


def _bf16_bits(value: float) -> int:
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    if value != value:
        return (bits >> 16) | 0x40
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def constant_text(value: float | int | bool, dtype: DType) -> str:
    """An LLVM scalar constant of any dtype."""
    if dtype.is_float:
        return float_text(float(value), dtype)
    if dtype == bool_:
        return "true" if value else "false"
    return str(int(value))


def splat_text(element: str, text: str, lanes: int) -> str:
    """A constant with ``text`` in every lane."""
    return text if lanes == 1 else f"splat ({element} {text})"
