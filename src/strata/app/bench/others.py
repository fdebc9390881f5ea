"""How much of the machine other programs used during a measurement."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_WORKING = (0, 1, 2, 5, 6)  # fields of the line "cpu": user, nice, system, irq, softirq


class OtherWork:
    """Processor time of everybody else, from ``/proc``.

    Args:
        pids: Processes that take part in the measurement, besides this one.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = tuple(pids)
        self._began = (time.monotonic(), self._other_s())

    def cores(self) -> float | None:
        """Cores that others kept busy since the start, on average; ``None`` where nobody counts them."""
        (began, before), after = self._began, self._other_s()
        if before is None or after is None:
            return None
        return max(after - before, 0.0) / (time.monotonic() - began)

    def _other_s(self) -> float | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        busy_s = sum(int(fields[k]) for k in _WORKING) * _TICK_S
        return busy_s - time.process_time() - sum(_process_s(pid) for pid in self._pids)


def _process_s(pid: int) -> float:
    """Processor time of a process; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) * _TICK_S
