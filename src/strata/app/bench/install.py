"""Installs the peers into an environment of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

from strata.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Library:
    """What one peer needs.

    Attributes:
        name: For people.
        requirements: For pip. Versions are those that were compared; others may read models differently.
        environment: Variables for its build.
    """

    name: str
    requirements: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()


_TORCH = ("torch==2.13.0", "transformers==5.23.0")
_GGUF = "gguf==0.19.0"
LIBRARIES: tuple[Library, ...] = (
    Library("PyTorch", _TORCH),
    Library("OpenVINO GenAI", ("openvino-genai==2026.4.1.0", _GGUF)),
    Library("ONNX Runtime GenAI", ("onnxruntime-genai==0.18.0", "onnx==1.23.2", "onnx-ir==1.1.0", *_TORCH)),
    Library(
        "llama.cpp",
        ("llama-cpp-python==0.3.36", _GGUF),
        # Built here, for this CPU. GCC 12 takes `_tile_loadconfig` for a reader of 8 bytes, not 64, and would
        # remove the stores of the others: llama.cpp then ends with an illegal instruction where there is AMX.
        (("CMAKE_ARGS", "-DGGML_NATIVE=ON"), ("CXXFLAGS", "-fno-tree-dse -fno-dse")),
    ),
)


def install_peers(environment: Path) -> dict[str, str]:
    """Make the environment and install every library; pip's output goes to ``install.log`` in it.

    Returns:
        By library: ``""``, or why it is missing: the others are of use without it.

    Raises:
        UserError: the environment cannot be made.
    """
    python = environment / "bin" / "python"
    try:
        if not python.is_file():
            venv.create(environment, with_pip=True)
        with (environment / "install.log").open("ab") as log:
            return {library.name: _install(library, python, log.fileno()) for library in LIBRARIES}
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{environment}: cannot make an environment of peers: {error}") from error


def _install(library: Library, python: Path, log: int) -> str:
    sys.stderr.write(f"installing {library.name}: {' '.join(library.requirements)}\n")
    done = subprocess.run(
        [str(python), "-m", "pip", "install", *library.requirements],
        stdout=log,
        stderr=log,
        env={**os.environ, **dict(library.environment)},
        check=False,
    )
    return f"pip ended with status {done.returncode}" if done.returncode else ""
