"""The machine that this process runs on, from ``/proc/cpuinfo`` and ``/sys`` (Linux)."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from strata.core.errors import UnsupportedError

from . import features
from .machine import Target
from .machines import TARGETS

_CPUINFO = Path("/proc/cpuinfo")
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


@cache
def detect_host() -> Target:
    """This machine as a :class:`Target` called ``"host"``; its speeds are nominal, from clock and pipes.

    Raises:
        UnsupportedError: not an x86-64 Linux machine.
    """
    if platform.machine() not in ("x86_64", "AMD64") or not _CPUINFO.exists():
        raise UnsupportedError(
            f"host: got {platform.system()} on {platform.machine()}; expected Linux on x86-64; name a target"
        )
    return host_from(_CPUINFO.read_text(), read_caches(_CACHES), len(os.sched_getaffinity(0)))


def host_features() -> tuple[str, ...]:
    """LLVM names of the usable instruction sets of this machine; empty off x86-64 Linux."""
    if platform.machine() not in ("x86_64", "AMD64") or not _CPUINFO.exists():
        return ()
    return features.usable(features.from_linux_flags(_cpuinfo_fields(_CPUINFO.read_text())["flags"].split()))


def host_from(cpuinfo: str, caches: Mapping[int, int], num_cores: int) -> Target:
    """The target that a ``/proc/cpuinfo`` text describes.

    Args:
        cpuinfo: Text of ``/proc/cpuinfo``.
        caches: Bytes of the data (or unified) cache of each level 1..3; missing levels get typical sizes.
        num_cores: Cores that this process may run on.
    """
    info = _cpuinfo_fields(cpuinfo)
    names = features.usable(features.from_linux_flags(info["flags"].split()))
    cpu, base = _cpu(info, names)
    vector_bytes = 64 if "avx512f" in names else 32 if "avx2" in names else 16
    hz = float(info.get("cpu MHz", "") or 2500) * 1e6
    flop = hz * num_cores * (vector_bytes // 4) * 2 * (1 if cpu == "znver4" else 2)
    return Target(
        name="host",
        triple=base.triple,
        cpu=cpu,
        features=names,
        vector_bytes=vector_bytes,
        num_vector_registers=32 if vector_bytes == 64 else 16,
        l1_bytes=caches.get(1, base.l1_bytes),
        l2_bytes=caches.get(2, base.l2_bytes),
        l3_bytes=caches.get(3, caches.get(2, base.l3_bytes)),
        num_cores=num_cores,
        peak_f32_flop_per_s=flop if "fma" in names else flop / 2,
        peak_bf16_flop_per_s=flop * (2 if "avx512bf16" in names else 1),
        bandwidth_bytes_per_s=base.bandwidth_bytes_per_s,
        source="nominal",
    )


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
    return {"flags": "", **{key.strip(): value.strip() for key, _, value in pairs}}


def _cpu(info: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, Target]:
    """LLVM CPU to schedule for, and the named target whose sizes stand in for unknown ones."""
    vendor, family = info.get("vendor_id", ""), info.get("cpu family", "")
    if vendor == "AuthenticAMD" and "avx512bf16" in names:
        if family == "25":
            return "znver4", TARGETS["zen4"]
        if family == "26":
            return "znver5", TARGETS["zen5"]
    level = "avx512-bf16" if "avx512bf16" in names else "avx512" if "avx512f" in names else "avx2"
    base = TARGETS[level if "avx2" in names else "x86-64"]
    return base.cpu, base
