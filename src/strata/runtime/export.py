"""A program out of this process and into another: three files, and back.

::

    strata.export(program, "mlp")
    program = strata.load_graph("mlp/manifest.json", "mlp/code.bin", "mlp/weights.safetensors")

They are the files of an artifact: a graph (JSON: nodes, launches, tensors, memory plan), a library of kernels
(the image) and the parameters. ``Program.load("mlp")`` and ``strata generate --artifact`` take the folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.core.errors import UserError

from .artifact import open_files, save_artifact
from .image import LoadedImage

if TYPE_CHECKING:
    from .program import Program


def export(
    program: Program | Any, folder: Path | str, extra_files: Mapping[str, bytes | Path] | None = None
) -> Path:
    """Write a program to a folder, all or nothing.

    Args:
        program: A program, or a ``LanguageModel``, whose program is taken.
        folder: The artifact to make; an artifact or an empty folder there is replaced.
        extra_files: Tokenizer files and the like: content, or a path to copy, by plain file name.

    Returns:
        The folder: ``manifest.json`` (the graph), ``code.bin`` (the kernels), ``weights.safetensors`` (the
        parameters) and ``plan.json`` (candidates and estimates; the program runs without it).

    Raises:
        UserError: kernels of the program were swapped, it calls functions of this process, or ``folder``
            cannot be written.
    """
    program = getattr(program, "stepping_program", program)
    changed = [f.name for f in program.functions.values() if f.changes]
    if changed:
        raise UserError(
            f"export: kernels or hooks of this process are in {', '.join(changed)}; call restore() first"
        )
    image = program.image
    if not isinstance(image, LoadedImage):
        raise UserError(f"export: the program runs on a {type(image).__name__}; expected a loaded image")
    plan = program.plan
    if isinstance(plan, Path):
        plan = plan.read_text(encoding="utf-8") if plan.is_file() else None
    return save_artifact(
        folder, program.record, image.blob, program.params.items(), plan or "{}", extra_files
    )


def load_graph(
    graph: Path | str, kernels: Path | str, params: Path | str, num_threads: int | None = None
) -> Program:
    """A program from its three files, which may lie anywhere.

    Args:
        graph: The manifest; a ``plan.json`` beside it is used where somebody asks for candidates.
        kernels: The image.
        params: The parameters; other ones of the same names, shapes and layouts do as well.
        num_threads: Of the thread pool; ``None`` = one per CPU.

    Raises:
        UserError: a file is missing, damaged, or does not belong to the others; names file, key, got and
            expected.
    """
    from .program import Program

    opened = open_files(graph, kernels, params)
    return Program(opened.record, opened.image, opened.params, num_threads, opened.plan)
