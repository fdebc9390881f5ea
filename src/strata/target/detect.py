"""The machine that this process runs on, from ``/proc/cpuinfo`` and ``/sys`` (Linux)."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from strata.core.errors import UnsupportedError

from . import features
from .machine import Target
from .machines import TARGETS, with_nominal_peaks

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


# Flags of the first processor in /proc/cpuinfo, by platform.machine().
_FLAGS = {"x86_64": "flags", "AMD64": "flags", "aarch64": "Features"}
_LEVELS = (
    "avx512-amx",
    "avx512-fp16",
    "avx512-bf16",
    "avx512",
    "avx2-vnni",
    "avx2",
    "x86-64",
    "neon-i8mm",
    "neon-dotprod",
    "neon",
)
_OF_INTEL = ("avx512-fp16",)  # whose speeds hold for no other maker's cores with the same instructions


@cache
def detect_host() -> Target:
    """This machine as a :class:`Target` called ``"host"``; its speeds are nominal, from clock and pipes.

    Raises:
        UnsupportedError: neither x86-64 nor AArch64 Linux.
    """
    if platform.machine() not in _FLAGS or not _CPUINFO.exists():
        raise UnsupportedError(
            f"host: got {platform.system()} on {platform.machine()}; expected Linux on x86-64 or AArch64; "
            "name a target"
        )
    cpuinfo, caches, num_cores = _CPUINFO.read_text(), read_caches(_CACHES), len(os.sched_getaffinity(0))
    host = host_from(cpuinfo, caches, num_cores)
    if permitted(host.features) != host.features:
        return host_from(cpuinfo.replace("amx_tile", ""), caches, num_cores)
    return host


def host_features() -> tuple[str, ...]:
    """LLVM names of the usable instruction sets of this machine; empty where they cannot be found out."""
    if platform.machine() not in _FLAGS or not _CPUINFO.exists():
        return ()
    return permitted(_features(_cpuinfo_fields(_CPUINFO.read_text())))


def permitted(names: tuple[str, ...]) -> tuple[str, ...]:
    """``names`` without those that this process may not use."""
    if set(features.AMX).issubset(names) and not permit_matrix_unit():
        return tuple(name for name in names if name not in features.AMX)
    return names


def _features(info: Mapping[str, str]) -> tuple[str, ...]:
    flags = " ".join(info.get(name, "") for name in sorted(set(_FLAGS.values())))
    return features.usable(features.from_linux_flags(flags.split()))


@cache
def permit_matrix_unit() -> bool:
    """Ask the kernel for AMX, whose registers processes have for the asking only; whether they are ours now.

    Holds for all threads, those that exist and those that will.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    # Linux 5.16, arch/x86/include/uapi/asm/prctl.h: ARCH_REQ_XCOMP_PERM of XFEATURE_XTILE_DATA.
    arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request_permission, tile_data) == 0


def host_from(cpuinfo: str, caches: Mapping[int, int], num_cores: int) -> Target:
    """The target that a ``/proc/cpuinfo`` text describes.

    Args:
        cpuinfo: Text of ``/proc/cpuinfo``.
        caches: Bytes of the data (or unified) cache of each level 1..3; missing levels get typical sizes.
        num_cores: Cores that this process may run on.
    """
    info = _cpuinfo_fields(cpuinfo)
    names = _features(info)
    cpu, base = _cpu(info, names)
    target = replace(
        base,
        name="host",
        cpu=cpu,
        features=names,
        l1_bytes=caches.get(1, base.l1_bytes),
        l2_bytes=caches.get(2, base.l2_bytes),
        l3_bytes=caches.get(3, caches.get(2, base.l3_bytes)),
        num_cores=num_cores,
        source="nominal",
    )
    clock_hz = float(info.get("cpu MHz", "") or 2500) * 1e6
    return with_nominal_peaks(target, clock_hz, num_pipes=1 if cpu == "znver4" else 2)


def read_caches(root: Path) -> dict[int, int]:
    """Bytes of the data or unified cache of every level under ``/sys/.../cache``; empty if none."""
    found: dict[int, int] = {}
    for entry in sorted(root.glob("index*")):
        try:
            level, kind = int((entry / "level").read_text()), (entry / "type").read_text().strip()
            size = re.fullmatch(r"(\d+)([KMG]?)", (entry / "size").read_text().strip())
        except (OSError, ValueError):
            continue  # not every kernel or container shows every file
        if kind != "Instruction" and size is not None:
            found[level] = int(size[1]) * _UNITS[size[2]]
    return found


def _cpuinfo_fields(cpuinfo: str) -> dict[str, str]:
    """Fields of the first processor."""
    first = cpuinfo.strip().split("\n\n", 1)[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu(info: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, Target]:
    """LLVM CPU to schedule for, and the named target whose sizes stand in for unknown ones."""
    vendor, family = info.get("vendor_id", ""), info.get("cpu family", "")
    if vendor == "AuthenticAMD" and "avx512bf16" in names:
        if family == "25":
            return "znver4", TARGETS["zen4"]
        if family == "26":
            return "znver5", TARGETS["zen5"]
    levels = (level for level in _LEVELS if vendor == "GenuineIntel" or level not in _OF_INTEL)
    fitting = (TARGETS[level] for level in levels if set(TARGETS[level].features).issubset(names))
    base = next(fitting, TARGETS["x86-64"])
    return base.cpu, base
