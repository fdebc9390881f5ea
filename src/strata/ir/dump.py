"""A directory of numbered texts, one per stage: ``000_graph.input.ir``, ``001_canonicalize.after.ir``, ..."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from strata.core.errors import UserError
from strata.core.knobs import current

_OURS = re.compile(r"\d{3,}_[A-Za-z0-9_.-]+")

# What --print-after knows beside the names of passes: naive loop functions, scheduled ones, LLVM text.
LOWER, SCHEDULE, LLVM = "lower", "schedule", "llvm"
STAGES = (LOWER, SCHEDULE, LLVM)


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
        """Write ``text`` as ``NNN_<label>.<suffix>``; odd characters become ``_``.

        Raises:
            UserError: the file cannot be written.
        """
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", label)
        path = self.directory / f"{self._next:03d}_{name}.{suffix}"
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"dump: cannot write {path}: {error.strerror}; choose another directory"
            ) from None
        self._next += 1
        return path


_open: dict[Path, Dumper] = {}  # a directory is one dump of this process, whichever stages write into it


def dumper_for(directory: Path) -> Dumper:
    """The dumper of a directory: a new one when this process uses it first, later the same one.

    Raises:
        UserError: see :class:`Dumper`.
    """
    place = directory.absolute()
    if place not in _open or not place.is_dir():
        _open[place] = Dumper(directory)
    return _open[place]


def start_dump(directory: Path) -> Dumper:
    """Begin anew in a directory that this process may have used before; later stages go on from there.

    Raises:
        UserError: see :class:`Dumper`.
    """
    _open[directory.absolute()] = Dumper(directory)
    return _open[directory.absolute()]


def wants_stage(stage: str) -> bool:
    """Whether the knobs ``dump`` or ``print_after`` ask for the texts of a stage in :data:`STAGES`."""
    settings = current()
    return settings.dump is not None or stage in settings.print_after or "all" in settings.print_after


def show_stage(stage: str, name: str, text: str, suffix: str = "ir") -> None:
    """Dump or print the text of one function at ``stage``, as the knobs ``dump`` and ``print_after`` say.

    Raises:
        UserError: the dump directory cannot be used.
    """
    settings = current()
    if settings.dump is not None:
        dumper_for(settings.dump).write(f"{stage}.{name}", text, suffix)
    if stage in settings.print_after or "all" in settings.print_after:
        sys.stderr.write(f"// {stage} {name}\n{text.rstrip()}\n")
