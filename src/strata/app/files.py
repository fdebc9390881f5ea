"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from strata.core.errors import UserError


def write_text(path: Path, text: str) -> int:
    """Write a file in UTF-8; a file that was there stays until the new one is complete.

    Returns:
        Its size in bytes.

    Raises:
        UserError: it cannot be written.
    """
    content = text.encode("utf-8", "replace")
    part = path.with_name(f".{path.name}.part-{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise UserError(f"{path}: cannot write the file: {error.strerror}; choose another file") from error
    return len(content)
