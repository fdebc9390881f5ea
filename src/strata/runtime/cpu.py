"""What this machine's CPU can do, and which of the features that some code needs it lacks.

Names are LLVM's (``avx512bf16``, ``sse4.2``); ``/proc/cpuinfo`` spells some of them differently.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from strata.core.errors import UserError

# LLVM name -> kernel name, where dropping "_", "-" and "." does not make them equal.
_ALIASES = {
    "lzcnt": "abm", "bmi": "bmi1", "sse3": "pni", "prfchw": "3dnowprefetch", "sha": "shani", "crc32": "sse42",
    "pclmul": "pclmulqdq", "rdrnd": "rdrand", "sahf": "lahflm", "64bit": "lm",
    "neon": "asimd", "dotprod": "asimddp", "fullfp16": "asimdhp", "lse": "atomics",
}  # fmt: skip


def _plain(name: str) -> str:
    return re.sub(r"[_.\-]", "", name.lower())


def parse_cpuinfo(text: str) -> frozenset[str]:
    """Feature names (plain spelling) in the text of ``/proc/cpuinfo``: the ``flags`` or ``Features`` line."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)
    return frozenset(_plain(name) for name in found[1].split()) if found else frozenset()


@cache
def machine_features(path: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """Features of this machine, or the empty set where the system does not tell."""
    try:
        return parse_cpuinfo(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return frozenset()


def missing_features(needed: Iterable[str], have: frozenset[str]) -> list[str]:
    """The names in ``needed`` (LLVM's; a leading ``+`` is dropped) that ``have`` lacks, in order."""
    missing = []
    for name in needed:
        name = name.removeprefix("+")
        plain = _plain(name)
        if plain not in have and _plain(_ALIASES.get(name, plain)) not in have:
            missing.append(name)
    return missing


def check_features(needed: tuple[str, ...], where: str) -> None:
    """Refuse code that this CPU cannot run.

    Args:
        needed: Features (LLVM's names) that the code uses.
        where: What holds the code, for the message.

    Raises:
        UserError: a feature is missing; lists all of them.
    """
    missing = missing_features(needed, machine_features())
    if missing:
        raise UserError(
            f"{where}: the code needs CPU features that this machine lacks: {', '.join(missing)}; "
            "compile the model on this machine"
        )
