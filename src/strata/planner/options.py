"""What a person may say about planning: which sources of candidates, what to prefer, what to pin.

Imports nothing of the compiler: a start from the cache needs it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from strata.core.errors import UserError
from strata.core.knobs import cache_folder

_PIN = re.compile(r"(?P<node>[^=@]+)(@(?P<lo>\d{1,9})\.\.(?P<hi>\d{1,9}))?=(?P<candidate>.+)")


@dataclass(frozen=True, slots=True)
class Pin:
    """The candidate that a node must use, for all sizes or some.

    Text form: ``NODE=CANDIDATE`` or ``NODE@LO..HI=CANDIDATE``, names with ``*`` and ``?`` as in file names.

    Attributes:
        node: Pattern of node names or ops (``"*.mlp.*"``, ``"matmul"``).
        candidate: Pattern of candidate names (``"user.my_dense"``, ``"cpu.matmul.dot6x64"``).
        sizes: First and last number of rows that it holds for; ``None`` = all.
    """

    node: str
    candidate: str
    sizes: tuple[int, int] | None = None

    def __str__(self) -> str:
        sizes = "" if self.sizes is None else f"@{self.sizes[0]}..{self.sizes[1]}"
        return f"{self.node}{sizes}={self.candidate}"

    def holds_for(self, name: str, op: str) -> bool:
        """Whether it speaks of the node with this name and op."""
        return self.node in (name, op) or (_is_pattern(self.node) and fnmatchcase(name, self.node))

    def covers(self, size: int | None) -> bool:
        """Whether it speaks of this number of rows (``None``: of no number in particular)."""
        return self.sizes is None or (size is not None and self.sizes[0] <= size <= self.sizes[1])


def _is_pattern(text: str) -> bool:
    return any(c in "*?[" for c in text)


def parse_pin(text: str) -> Pin:
    """Parse ``NODE=CANDIDATE`` or ``NODE@LO..HI=CANDIDATE``.

    Raises:
        UserError: not of that form.
    """
    found = _PIN.fullmatch(text)
    if found is None or (found["lo"] and int(found["lo"]) > int(found["hi"])):
        raise UserError(
            f"--pin: got {text!r}; expected NODE=CANDIDATE or NODE@LO..HI=CANDIDATE, "
            "e.g. '*.mlp.*=cpu.matmul.tile4x64', '*.mlp.*@1..8=user.skinny'"
        )
    sizes = (int(found["lo"]), int(found["hi"])) if found["lo"] else None
    return Pin(found["node"], found["candidate"], sizes)


@dataclass(frozen=True, slots=True)
class PlanOptions:
    """How candidates are found and chosen.

    Attributes:
        libraries: Vendor libraries that may offer candidates (``("openblas",)``). None by default: a program
            that calls a library runs only where the library is installed.
        prefer: Prefixes of candidate names; where one of them applies it wins, whatever the estimates say. A
            library that is named here is used as if it were in ``libraries``.
        pins: Choices made by hand, first match wins; they go before ``prefer``.
        measure: Time candidates where more than one can win, instead of modelling them. ``None``: products
            with large weights only, where they run on this machine; that takes a second or two, once.
        verify_kernels: Check user kernels against the reference of their op on first use.
        database: Tuning records; ``None`` = the user's own file.
        sizes: Values of symbolic dims that get kernels of their own: ``(("n", (1, 16)),)``.
        join_gates: Run the pass ``join_gates`` where no source may offer candidates that read matrices row by
            row. Without it, launches are the works of a plan for a machine.
    """

    libraries: tuple[str, ...] = ()
    prefer: tuple[str, ...] = ()
    pins: tuple[Pin, ...] = ()
    measure: bool | None = None
    verify_kernels: bool = True
    database: Path | None = None
    sizes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    join_gates: bool = True

    def pins_of(self, name: str, op: str) -> tuple[Pin, ...]:
        """The pins that speak of a node, in order."""
        return tuple(p for p in self.pins if p.holds_for(name, op))

    def prefers(self, candidate: str) -> bool:
        """Whether a candidate's name starts with something preferred."""
        return any(candidate == p or candidate.startswith(p + ".") for p in self.prefer)

    def wants(self, name: str) -> bool:
        """Whether a pin or preference asks for candidates whose names start with ``name.``."""
        asked = (*self.prefer, *(p.candidate for p in self.pins))
        return any(a == name or a.startswith(name + ".") for a in asked)


def default_path() -> Path:
    """Where tuning records are kept if nobody says otherwise: ``tuning.jsonl`` in the cache folder."""
    return cache_folder() / "tuning.jsonl"


def database_state(path: Path) -> tuple[int, int]:
    """Size and modification time of a tuning database's file, for cache keys; zeros if there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
