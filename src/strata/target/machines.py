"""The registry of named machines.

Speeds of the generic levels are *assumed* (a 3 GHz core with two vector pipes, 25 GB/s): they rank
candidates, they claim nothing. Speeds of ``zen4`` and ``zen5`` are measured on two-core virtual machines.
"""

from __future__ import annotations

from dataclasses import replace

from strata.core.errors import UserError
from strata.core.registry import Registry

from . import features
from .machine import Target, parse_target

TARGETS: Registry[Target] = Registry("target")

_X86, _ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


def _generic(
    name: str,
    triple: str,
    cpu: str,
    feature_names: tuple[str, ...],
    vector_bytes: int,
    registers: int,
    fetch_ahead_bytes: int = 1024,
) -> None:
    target = Target(
        name=name,
        triple=triple,
        cpu=cpu,
        features=tuple(sorted(feature_names)),
        vector_bytes=vector_bytes,
        num_vector_registers=registers,
        l1_bytes=32 * 1024,
        l2_bytes=512 * 1024,
        l3_bytes=8 * 1024 * 1024,
        num_cores=2,
        peak_f32_flop_per_s=1.0,
        peak_bf16_flop_per_s=1.0,
        peak_int8_op_per_s=1.0,
        bandwidth_bytes_per_s=25e9,
        fetch_ahead_bytes=fetch_ahead_bytes,
        source="assumed",
    )
    # Two pipes of one vector each, 2 flop per lane where there is FMA.
    TARGETS.add(name, with_nominal_peaks(target, 3.0e9, num_pipes=2))


def with_nominal_peaks(target: Target, clock_hz: float, num_pipes: int) -> Target:
    """``target`` with the peaks of cores that start a multiply-add of a whole vector in each pipe and cycle.

    A bf16 dot product does twice the work of an f32 multiply-add, one of bytes four times; without it, or
    where it is slow, the work of an f32 multiply-add takes as long. A matrix unit multiplies tiles of 16 rows
    of 64 bytes in 16 cycles (Intel's optimisation manual, "TDPBF16PS").
    """
    flop = target.num_cores * clock_hz * num_pipes * target.lanes_f32 * (2 if target.has_fma else 1)
    tiles = target.num_cores * clock_hz * 2 * 16 * 64 / 4  # of 32-bit elements
    return replace(
        target,
        peak_f32_flop_per_s=flop,
        peak_bf16_flop_per_s=2 * tiles
        if target.has_matrix_bf16
        else flop * (2 if target.prefers_bf16_dot else 1),
        peak_int8_op_per_s=4 * tiles if target.has_matrix_int8 else flop * (4 if target.has_int8_dot else 1),
    )


_generic("x86-64", _X86, "x86-64", features.SSE2, 16, 16)
_generic("avx2", _X86, "x86-64-v3", features.V3, 32, 16)
_generic("avx2-vnni", _X86, "x86-64-v3", features.V3_VNNI, 32, 16)
_generic("avx512", _X86, "x86-64-v4", features.V4, 64, 32)
_generic("avx512-bf16", _X86, "x86-64-v4", features.V4_BF16, 64, 32)
# Memory of Intel's large servers answers late: docs/performance.md has the speeds by distance. Not every
# virtual machine on them has AMX.
_generic("avx512-fp16", _X86, "sapphirerapids", features.V4_FP16, 64, 32, fetch_ahead_bytes=4096)
_generic("avx512-amx", _X86, "sapphirerapids", features.V4_AMX, 64, 32, fetch_ahead_bytes=4096)
_generic("neon", _ARM, "cortex-a72", features.NEON, 16, 32)
_generic("neon-dotprod", _ARM, "neoverse-n1", features.NEON_DOTPROD, 16, 32)
_generic("neon-i8mm", _ARM, "neoverse-v1", features.NEON_I8MM, 16, 32)

TARGETS.add(
    "zen4",
    replace(
        TARGETS["avx512-bf16"],
        name="zen4",
        cpu="znver4",
        features=tuple(sorted(features.ZEN4)),
        l2_bytes=1024 * 1024,
        l3_bytes=32 * 1024 * 1024,
        # One 512-bit FMA per cycle and core (two 256-bit pipes) at 3.7 GHz.
        peak_f32_flop_per_s=2 * 3.7e9 * 32,
        peak_bf16_flop_per_s=2 * 3.7e9 * 64,
        peak_int8_op_per_s=2 * 3.7e9 * 128,
        bandwidth_bytes_per_s=40e9,
        source="nominal",
    ),
)
TARGETS.add(
    "zen5",
    replace(
        TARGETS["avx512-bf16"],
        name="zen5",
        cpu="znver5",
        features=tuple(sorted(features.ZEN5)),
        l1_bytes=48 * 1024,
        l2_bytes=1024 * 1024,
        l3_bytes=32 * 1024 * 1024,
        # Register-resident loops and reads of 2 GiB on a two-core EPYC virtual machine.
        peak_f32_flop_per_s=538e9,
        peak_bf16_flop_per_s=1078e9,
        peak_int8_op_per_s=2166e9,
        bandwidth_bytes_per_s=50e9,
        source="measured",
    ),
)


def get_target(name: str) -> Target:
    """The target called ``name``: ``"host"``, a registered name, or the text of a target (``"zen4{...}"``).

    Raises:
        UserError: no such target; lists those that exist.
        ParseError: the text of a target that does not parse.
    """
    if "{" in name:
        return parse_target(name)
    if name == "host":
        from .detect import detect_host

        return detect_host()
    if name not in TARGETS:
        known = ", ".join(["host", *sorted(TARGETS)])
        raise UserError(f"target: got {name!r}; expected one of {known}, or the text of a target")
    return TARGETS[name]
