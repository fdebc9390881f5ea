"""``crash-<hash>/``: what a failed pass was given, and how to run it again."""

from __future__ import annotations

import hashlib
import platform
import tempfile
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from strata.core.knobs import Knobs

from .passes import Pass


def write_reproducer(step: Pass[Any], before: str, settings: Knobs) -> Path:
    """Write ``crash-<hash>/{before.ir,pipeline.txt,knobs.txt,env.txt}``; returns the folder.

    The folder is in the ``crash_dir`` knob's directory, or the system's temporary one; the hash is that of
    the IR and the pass, so one failure has one folder.
    """
    digest = hashlib.sha256(f"{step}\n{before}".encode()).hexdigest()[:12]
    parent = settings.crash_dir if settings.crash_dir is not None else Path(tempfile.gettempdir())
    folder = parent / f"crash-{digest}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "before.ir").write_text(before)
    (folder / "pipeline.txt").write_text(f"{step}\n")
    (folder / "knobs.txt").write_text("".join(f"{k}={v}\n" for k, v in asdict(settings).items()))
    (folder / "env.txt").write_text(_environment())
    return folder


def _environment() -> str:
    lines = [f"python {platform.python_version()}", f"platform {platform.platform()}"]
    for package in ("strata-llm", "numpy", "ml_dtypes", "llvmlite"):
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} not installed")
    return "\n".join(lines) + "\n"
