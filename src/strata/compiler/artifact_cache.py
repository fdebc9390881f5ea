"""Where compiled models are kept, and how they are compiled: what a start from the cache has to know.

Imports nothing of the compiler proper, so that running a model that is compiled already does not pay for it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from strata.core.errors import UserError
from strata.core.knobs import cache_folder, code_key
from strata.core.kv_layout import DEFAULT_PAGE_SIZE, KV_FORMATS
from strata.core.weight_format import parse_format_choice
from strata.planner.options import PlanOptions, database_state, default_path
from strata.runtime.records import DimRange
from strata.target import Target, detect_host

MAX_SIZE = 4096  # sequences, or tokens per pass or page: memory for the activations is set aside at this size


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is compiled.

    Attributes:
        format: How weights are stored: ``f32``, ``bf16``, ``int8``, ``int4``, ``mixed``, ...; see
            ``core.weight_format``; ``None`` = as in the checkpoint.
        max_context: Longest sequence in tokens; ``None`` = the model's own.
        max_batch: Sequences decoded at once.
        prefill_chunk: Tokens per prefill call.
        page_size: Tokens per KV page.
        kv_dtype: Dtype of stored keys and values: ``f32``, ``f16``, ``bf16`` or ``int8``; ``None`` = that of
            the weights, bf16 for quantised ones.
        pipeline: Text or name of the graph pipeline.
        plan: How candidates are found and chosen.
        ranges: Ranges that symbolic dims get, narrower than the model's own.

    Raises:
        UserError: no such format, or a size out of range.
    """

    format: str | None = None
    max_context: int | None = None
    max_batch: int = 8
    prefill_chunk: int = 512
    page_size: int = DEFAULT_PAGE_SIZE
    kv_dtype: str | None = None
    pipeline: str = "default"
    plan: PlanOptions = field(default_factory=PlanOptions)
    ranges: tuple[DimRange, ...] = ()

    def __post_init__(self) -> None:
        if self.format is not None:
            try:
                parse_format_choice(self.format)
            except UserError as error:
                raise UserError(f"--{error}") from None
        if self.kv_dtype is not None and self.kv_dtype not in KV_FORMATS:
            raise UserError(f"--kv-dtype: got {self.kv_dtype!r}; expected one of {', '.join(KV_FORMATS)}")
        for name in ("max_batch", "prefill_chunk", "page_size"):
            value = getattr(self, name)
            if not _is_int(value) or not 1 <= value <= MAX_SIZE:
                raise UserError(f"--{name.replace('_', '-')}: got {value}; expected 1 .. {MAX_SIZE}")
        if self.max_context is not None and (not _is_int(self.max_context) or self.max_context < 1):
            raise UserError(f"--max-context: got {self.max_context}; expected at least 1 token")

    @property
    def passes(self) -> str:
        """Text of the whole graph pipeline: ranges first."""
        ranges = [f"set_range{{dim={r.dim},lo={r.lo},hi={r.hi}}}" for r in self.ranges]
        return ",".join((*ranges, self.pipeline))


def parse_range(text: str) -> DimRange:
    """Parse ``DIM=LO..HI``, or a set of sizes: ``DIM=SIZE,SIZE,...`` is the range that they span.

    Raises:
        UserError: not of that form.
    """
    dim, sizes = parse_sizes(text)
    if sizes:
        return DimRange(dim, min(sizes), max(sizes))
    match = re.fullmatch(r"(\w+)=(\d+)\.\.(\d+)", text.strip())
    if match is None:
        raise UserError(f"--range: got {text!r}; expected DIM=LO..HI or DIM=SIZE,SIZE,..., e.g. n=1..128")
    lo, hi = int(match[2]), int(match[3])
    if not 1 <= lo <= hi:
        raise UserError(f"--range: got {text!r}; expected 1 <= LO <= HI")
    return DimRange(match[1], lo, hi)


def parse_sizes(text: str) -> tuple[str, tuple[int, ...]]:
    """Dim and sizes of ``DIM=SIZE,SIZE,...``; no sizes for any other text."""
    match = re.fullmatch(r"(\w+)=([1-9]\d*(?:,[1-9]\d*)*)", text.strip())
    return (match[1], tuple(map(int, match[2].split(",")))) if match else ("", ())


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def artifact_path(folder: Path, options: Options, target: Target | None = None) -> Path:
    """Where the artifact of a model folder is, or will be, in the cache directory.

    The name is a digest of the model's files (path, size and time), options, target, knobs that affect code,
    and the sources of Strata.
    """
    parts = (
        source_fingerprint(),
        str(options),
        str(target or detect_host()),
        code_key(),
        plan_state(options.plan),
    )
    digest = hashlib.sha256("\n".join(parts).encode())
    for file in sorted(p for p in folder.iterdir() if p.is_file()):
        status = file.stat()
        digest.update(f"{file.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    return cache_folder() / "artifacts" / digest.hexdigest()[:32]


def plan_state(options: PlanOptions) -> str:
    """What else a plan depends on: the tuning database, and the user's kernels in this process."""
    kernels = sys.modules.get("strata.planner.candidates.kernels")
    known = kernels.registry_text() if kernels is not None else ""
    return f"{database_state(options.database or default_path())} {known}"


@cache
def source_fingerprint() -> str:
    """Digest of name, size and modification time of every source file of the package."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        status = file.stat()
        digest.update(f"{file.relative_to(root)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()
