"""A compiled model on disk.

::

    folder/
      manifest.json        format, version, machine, the program record, sizes and hashes of files and record
      code.bin             position-independent image of the machine code
      weights.safetensors  params in their stored layouts, 64-byte aligned, memory-mapped on load
      plan.json            every choice of the compiler with its estimate
      tokenizer.json, ...  copied from the source model

The first three are the whole program, and may lie anywhere (:func:`open_files`): the graph of launches with
its tensors and memory plan, the library of kernels, the parameters. ``docs/artifact.md`` describes them.

Saving goes to a hidden folder beside the target, which takes the target's name as the last step: a crash
leaves no half artifact. Loading reads the manifest strictly, checks the code against its hash, the weights
against their size and header, and the CPU against the features that the code needs. It imports nothing of the
compiler.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from strata.core.errors import UserError

from .cpu import check_features
from .externs import check_externs, check_portable
from .records import ProgramRecord
from .records_json import program_from_json, program_to_json
from .safetensors_file import SafetensorsFile, TensorShape, write_safetensors
from .tensors import type_text

FORMAT = "strata-artifact"
VERSION = 2
MANIFEST = "manifest.json"
CODE = "code.bin"
WEIGHTS = "weights.safetensors"
PLAN = "plan.json"
_OWN_FILES = frozenset((MANIFEST, CODE, WEIGHTS, PLAN))


@dataclass(frozen=True, slots=True)
class Artifact:
    """An opened artifact.

    Attributes:
        folder: Where it is.
        record: The program.
        image: The machine code, checked against its hash.
        params: Params by name, in their stored shapes: read-only views of the mapped weights file.
        plan: Where the plan is; not read, and it need not be there.
    """

    folder: Path
    record: ProgramRecord
    image: bytes
    params: dict[str, np.ndarray]
    plan: Path


def is_artifact(folder: Path | str) -> bool:
    """True where ``folder`` has a manifest of this format (of any version)."""
    try:
        data = json.loads((Path(folder) / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def save_artifact(
    folder: Path | str,
    record: ProgramRecord,
    image: bytes,
    params: Iterable[tuple[str, np.ndarray]],
    plan_json: str,
    extra_files: Mapping[str, bytes | Path] | None = None,
) -> Path:
    """Write an artifact folder, all or nothing.

    Args:
        folder: The artifact to make; an artifact or an empty folder there is replaced.
        record: Its program; ``record.params`` is the order of the tensors in the weights file.
        image: Machine code as the code generator linked it.
        params: ``(name, array)`` of each param with memory of its own once (others are left
            out), in any order; consumed one at a time,
            on a thread of its own.
        plan_json: Text of ``plan.json``.
        extra_files: Tokenizer files and the like: content, or a path to copy, by plain file name.

    Returns:
        The folder.

    Raises:
        UserError: ``folder`` holds something else, cannot be written, params do not fit the record, or the
            program calls functions of this process.
    """
    target = Path(folder)
    check_portable(record.externs, str(target))
    _check_target(target)
    part = target.with_name(f".{target.name}.part-{os.getpid()}")
    try:
        part.mkdir(parents=True)
        shapes = [TensorShape(p.name, p.dtype, p.shape) for p in record.params if not p.within]
        within = {p.name for p in record.params if p.within}
        own = (pair for pair in params if pair[0] not in within)
        weights_bytes = write_safetensors(part / WEIGHTS, shapes, _ahead(own), {"format": FORMAT})
        (part / CODE).write_bytes(image)
        (part / PLAN).write_text(plan_json, encoding="utf-8")
        for name, content in (extra_files or {}).items():
            _write_extra(part, name, content)
        manifest = _manifest(record, image, weights_bytes)
        (part / MANIFEST).write_text(json.dumps(manifest, separators=(",", ":")), encoding="utf-8")
        _take_place(part, target)
    except OSError as error:
        raise UserError(f"{target}: cannot write the artifact: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _ahead(params: Iterable[tuple[str, np.ndarray]]) -> Iterator[tuple[str, np.ndarray]]:
    """The same params; the next one is made while the last one is written, under the same knobs."""
    left, context = iter(params), copy_context()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(context.run, next, left, None)
        while (param := coming.result()) is not None:
            coming = thread.submit(context.run, next, left, None)
            yield param
            del param  # it may be large


def _check_target(target: Path) -> None:
    if target.is_dir():
        if is_artifact(target) or not any(target.iterdir()):
            return
        raise UserError(
            f"{target}: is a folder that is no artifact; it is not overwritten; choose another name"
        )
    if target.exists() or target.is_symlink():
        raise UserError(f"{target}: is a file; expected the name of a folder to make")


def _write_extra(part: Path, name: str, content: bytes | Path) -> None:
    if name in _OWN_FILES or name != Path(name).name:
        raise UserError(
            f"artifact: extra file {name!r}; expected a plain file name, "
            f"none of {', '.join(sorted(_OWN_FILES))}"
        )
    if isinstance(content, Path):
        shutil.copyfile(content, part / name)
    else:
        (part / name).write_bytes(content)


def _manifest(record: ProgramRecord, image: bytes, weights_bytes: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "machine": _machine(record),
        "code": {"bytes": len(image), "sha256": hashlib.sha256(image).hexdigest()},
        "weights": {"bytes": weights_bytes},
        "program": (program := program_to_json(record)),
        "program_sha256": _digest(program),
    }


def _machine(record: ProgramRecord) -> str:
    """``platform.machine()`` of where the code runs: of its target, if the record says more than a name."""
    triple = re.search(r"\btriple=([^-,}]+)", record.target)
    return triple[1] if triple else platform.machine()


def _digest(program: dict[str, Any]) -> str:
    """Hash of the record: native code trusts it (orders of params, sizes), so a damaged one must not run."""
    return hashlib.sha256(json.dumps(program, sort_keys=True).encode()).hexdigest()


def _take_place(part: Path, target: Path) -> None:
    """Give ``part`` the name ``target``; an artifact that is there moves aside first and is then deleted."""
    old = part.with_name(part.name + ".old")
    if target.exists():
        target.rename(old)
    try:
        part.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def open_artifact(folder: Path | str) -> Artifact:
    """Read and check an artifact; the weights are mapped, not read.

    Raises:
        UserError: missing or cut-off files, a malformed manifest, another format version or machine, code
            that differs from its hash, CPU features that this machine lacks; names file, key, got and
            expected.
    """
    folder = Path(folder)
    _check_folder(folder)
    return open_files(folder / MANIFEST, folder / CODE, folder / WEIGHTS)


def open_files(graph: Path | str, kernels: Path | str, params: Path | str) -> Artifact:
    """Read and check the three files of a program, wherever they are; the weights are mapped, not read.

    Args:
        graph: The manifest.
        kernels: The image of the machine code.
        params: The weights.

    Raises:
        UserError: as :func:`open_artifact`; also when the files do not belong together.
    """
    graph = Path(graph)
    manifest = _read_manifest(graph)
    where = str(graph)
    record = program_from_json(manifest["program"], where)
    if manifest["machine"] != platform.machine():
        raise UserError(
            f"{where}: machine: got {manifest['machine']!r}; expected {platform.machine()!r}; compile it here"
        )
    check_features(record.features, where)
    check_externs(record.externs, where)
    code = _read_code(Path(kernels), manifest)
    arrays = _map_params(Path(params), record, manifest, graph.name)
    artifact = Artifact(graph.parent, record, code, arrays, graph.with_name(PLAN))
    if manifest.get("program_sha256") != _digest(manifest["program"]):
        raise UserError(f"{where}: program differs from its sha256; it is damaged; compile the model again")
    return artifact


def read_record(folder: Path | str) -> ProgramRecord:
    """The program record of an artifact, without touching code or weights (also for other machines'
    artifacts).

    Raises:
        UserError: as :func:`open_artifact`, for the manifest alone.
    """
    folder = Path(folder)
    _check_folder(folder)
    manifest = _read_manifest(folder / MANIFEST)
    return program_from_json(manifest["program"], str(folder / MANIFEST))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected an artifact made by 'strata compile'")


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes(), parse_constant=_no_constant)
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}; expected an artifact") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error!s:.120}; compile the model again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        got = data.get("format") if isinstance(data, dict) else data
        raise UserError(f"{path}: format: got {got!r:.60}; expected {FORMAT!r}; is it a Strata artifact?")
    if data.get("version") != VERSION:
        raise UserError(
            f"{path}: version: got {data.get('version')!r:.60}; expected {VERSION}; compile the model again"
        )
    for key, kind in (("machine", str), ("code", dict), ("weights", dict), ("program", dict)):
        if not isinstance(data.get(key), kind):
            expected = "a text" if kind is str else "an object"
            raise UserError(f"{path}: {key}: got {data.get(key)!r:.60}; expected {expected}")
    return data


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is no JSON number")


def _read_code(path: Path, manifest: dict[str, Any]) -> bytes:
    try:
        image = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}; compile the model again") from error
    if len(image) != manifest["code"].get("bytes"):
        raise UserError(
            f"{path}: got {len(image)} bytes; expected {manifest['code'].get('bytes')!r:.40}; it is cut off"
        )
    digest = hashlib.sha256(image).hexdigest()
    if digest != manifest["code"].get("sha256"):
        raise UserError(
            f"{path}: got sha256 {digest[:16]}...; expected {manifest['code'].get('sha256')!r:.20}; "
            "it is damaged; compile the model again"
        )
    return image


def _map_params(
    path: Path, record: ProgramRecord, manifest: dict[str, Any], graph: str
) -> dict[str, np.ndarray]:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}; compile the model again") from error
    if size != manifest["weights"].get("bytes"):
        raise UserError(
            f"{path}: got {size} bytes; expected {manifest['weights'].get('bytes')!r:.40}; it is cut off"
        )
    file = SafetensorsFile(path)
    params = {}
    for param in (p for p in record.params if not p.within):
        array = file[param.name]
        if array.shape != param.shape or file.entries[param.name].dtype.name != param.dtype:
            want = f"{param.dtype}[{','.join(map(str, param.shape))}]"
            raise UserError(
                f"{path}: tensor {param.name!r}: got {type_text(array)}; expected {want} as in {graph}"
            )
        params[param.name] = array
    return params
