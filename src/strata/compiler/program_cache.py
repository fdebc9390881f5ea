"""Compiled programs on disk (record, image, plan; no weights): compiling a graph again is a look-up.

The key is everything that the result depends on: text of the graph, pipeline, target, engine data, knobs that
affect code, and the sources of Strata itself (size and time of every file), so that no cache survives a
change of the compiler.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from strata.core.errors import UserError
from strata.core.knobs import cache_folder, code_key
from strata.graph.text import print_module
from strata.planner.options import PlanOptions
from strata.runtime.externs import is_library
from strata.runtime.records_json import program_from_json, program_to_json

from .artifact_cache import plan_state, source_fingerprint
from .driver import Compiled, Traced

# What reading a file of any bytes may raise: zipfile raises RuntimeError for flags that it does not know.
_DAMAGED = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, MemoryError),
    *(struct.error, zlib.error, zipfile.BadZipFile, UserError),
)


def program_key(traced: Traced, pipeline: str, plan: PlanOptions) -> str:
    """Cache key of a compilation."""
    parts = (
        source_fingerprint(),
        print_module(traced.module),
        pipeline,
        str(plan),
        plan_state(plan),
        str(traced.target),
        repr(traced.cache),
        json.dumps(dict(traced.config), sort_keys=True, default=str),
        code_key(),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def load_program(key: str) -> Compiled | None:
    """The program of this key, or ``None`` if it is not there or damaged."""
    try:
        with zipfile.ZipFile(_path(key)) as file:
            record = program_from_json(json.loads(file.read("record.json")))
            names = [n for n in file.namelist() if n.startswith("constants/")]
            constants = {n.removeprefix("constants/"): _array(file.read(n)) for n in names}
            return Compiled(record, file.read("code.bin"), file.read("plan.json").decode(), constants)
    except _DAMAGED:
        return None


def store_program(key: str, compiled: Compiled) -> None:
    """Keep a program that any process can load; a cache that cannot be written is left alone."""
    if not all(is_library(extern.name) for extern in compiled.record.externs):
        return
    path = _path(key)
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(part, "w") as file:
            file.writestr("record.json", json.dumps(program_to_json(compiled.record)))
            file.writestr("code.bin", compiled.image)
            file.writestr("plan.json", compiled.plan)
            for name, value in compiled.constants.items():
                file.writestr(f"constants/{name}", _bytes(value))
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _path(key: str) -> Path:
    return cache_folder() / "programs" / f"{key}.zip"


def _bytes(value: np.ndarray) -> bytes:
    # bf16 is no type that .npy files know: bytes, dtype and shape are kept side by side.
    header = json.dumps({"dtype": value.dtype.name, "shape": value.shape})
    return header.encode() + b"\n" + np.ascontiguousarray(value).tobytes()


def _array(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    header = json.loads(stream.readline())
    return np.frombuffer(stream.read(), np.dtype(header["dtype"])).reshape(header["shape"])
