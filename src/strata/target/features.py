"""CPU feature names: those that Linux prints in ``/proc/cpuinfo``, and LLVM's.

Only features that change generated code are kept. A *level* is a set of features that exist together on
real CPUs: the x86-64 micro-architecture levels of the System V ABI, plus dot products of bf16 and bytes;
versions of the Arm architecture (8.0: NEON; 8.2 with dot products; 8.6: mixed signs, bf16).
"""

from __future__ import annotations

from collections.abc import Iterable

# Linux flag -> LLVM feature, where the names differ.
_RENAMED = {
    "pni": "sse3",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "abm": "lzcnt",
    "bmi1": "bmi",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_vbmi2": "avx512vbmi2",
    "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq",
    "avx512_fp16": "avx512fp16",
    "avx_vnni": "avxvnni",
    "amx_tile": "amx-tile",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "fp": "fp-armv8",
    "asimd": "neon",
    "asimddp": "dotprod",
}

SSE2 = ("sse", "sse2")
V2 = (*SSE2, "cx16", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3")
V3 = (*V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
V3_VNNI = (*V3, "avxvnni")
V4 = (*V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
V4_BF16 = (*V4, "avx512bf16", "avx512vnni")
V4_FP16 = (*V4_BF16, "avx512fp16")
# Without gfni, which LLVM would shift nibbles with: on the two pipes that multiply, where a plain shift has
# others to go to (Zen 4: 4-bit matmul 10 % slower with it).
ZEN4 = (*V4_BF16, "avx512bitalg", "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vpopcntdq")
ZEN5 = (*ZEN4, "avxvnni")
AMX = ("amx-bf16", "amx-int8", "amx-tile")
V4_AMX = (*V4_BF16, *AMX)

NEON = ("fp-armv8", "neon")
NEON_DOTPROD = (*NEON, "dotprod")
NEON_I8MM = (*NEON_DOTPROD, "bf16", "i8mm")

KNOWN = frozenset(ZEN5) | frozenset(NEON_I8MM) | frozenset(("avx512fp16", *AMX))


def from_linux_flags(flags: Iterable[str]) -> tuple[str, ...]:
    """LLVM feature names, sorted, for the flags that Linux prints; unknown flags are dropped."""
    return tuple(sorted({_RENAMED.get(f, f) for f in flags} & KNOWN))


def usable(features: Iterable[str]) -> tuple[str, ...]:
    """``features`` without those that the code generator must not mix in.

    AVX-512 comes with 512-bit registers only where F, VL, BW, DQ and CD exist together (all CPUs but the
    first, Knights Landing): without them every AVX-512 feature is dropped, and so are parts of AMX where not
    all three are there. Names of Arm features are kept as they are.
    """
    found = set(features)
    if not found.issuperset(V4_AMX):
        found -= set(AMX)
    if "neon" in found:
        return tuple(sorted(found))
    if not found.issuperset(V4):
        found = {f for f in found if not f.startswith("avx512")}
    if not found.issuperset(V3):
        found = {f for f in found if not f.startswith(("avx", "fma", "f16c"))}
    return tuple(sorted(found))
