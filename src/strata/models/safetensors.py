"""A ``.safetensors`` file of a checkpoint: the run-time reader, with the checks that a file from elsewhere
needs.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from strata.core.errors import UserError
from strata.runtime.safetensors_file import SafetensorsFile

MAX_RANK = 8


class CheckpointFile(SafetensorsFile):
    """A memory-mapped file whose tensors cover its data without gaps and overlaps, as the format demands.

    Args:
        path: The file.

    Raises:
        UserError: the file is missing, cut off, or its header is malformed or contradicts itself.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        end, before = 0, "the header"
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            where = f"{path}: tensor {name!r}"
            if len(entry.shape) > MAX_RANK:
                raise UserError(f"{where}: got {len(entry.shape)} dims; expected at most {MAX_RANK}")
            if entry.begin != end:
                problem = "overlaps" if entry.begin < end else "leaves a gap after"
                raise UserError(
                    f"{where} {problem} {before}: begins at data byte {entry.begin}; expected {end}"
                )
            end, before = entry.end, f"tensor {name!r}"
        if end != len(self._data) - self._start:
            raise UserError(
                f"{path}: got {len(self._data) - self._start} bytes of data; the header says {end}"
            )

    def release(self, name: str) -> None:
        """Let the system drop the pages of this tensor; they are read again if they are used again."""
        entry = self.entries[name]
        if isinstance(self._data, mmap.mmap):
            drop_pages(self._data, self._start + entry.begin, self._start + entry.end)


def drop_pages(data: mmap.mmap, begin: int, end: int) -> None:
    """Let the system drop the whole pages inside of ``begin .. end``; what shares a page may be in use."""
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    if end > first and hasattr(mmap, "MADV_DONTNEED"):
        data.madvise(mmap.MADV_DONTNEED, first, end - first)
