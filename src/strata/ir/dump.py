"""A directory of numbered IR texts, one per stage: ``000_input.ir``, ``001_canonicalize.after.ir``, ..."""

from __future__ import annotations

import re
from pathlib import Path

from strata.core.errors import UserError

_OURS = re.compile(r"\d{3,}_[A-Za-z0-9_.-]+")


class Dumper:
    """Writes numbered files into a directory of its own.

    Files of an earlier dump are removed; one ``Dumper`` serves a whole compilation, so numbers go on from
    stage to stage.

    Args:
        directory: Made if missing.

    Raises:
        UserError: the directory holds files that no dump wrote, or cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._next = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            present = sorted(directory.iterdir())
        except OSError as error:
            raise UserError(
                f"dump: cannot use {directory}: {error.strerror}; choose another directory"
            ) from None
        for path in present:
            if not path.is_file() or not _OURS.fullmatch(path.name):
                raise UserError(
                    f"dump: {directory} holds {path.name!r}, which is no dump; choose an empty directory"
                )
        for path in present:
            path.unlink()

    def write(self, label: str, text: str, suffix: str = "ir") -> Path:
        """Write ``text`` as ``NNN_<label>.<suffix>``; odd characters become ``_``."""
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", label)
        path = self.directory / f"{self._next:03d}_{name}.{suffix}"
        path.write_text(text)
        self._next += 1
        return path
