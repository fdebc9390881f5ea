"""Plain records that describe a compiled program: what the compiler writes and the runtime reads.

They are JSON in ``manifest.json``. A *function* is one compiled model function (``prefill``, ``decode``); it
is a sequence of *launches*; a launch calls the first *choice* of kernel whose ranges hold for the sizes of
this call.

Native interface. Every exported symbol follows the tvm-ffi calling convention
``int f(void* self, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result)``:

* kernel ``K``: one tensor per parameter of its loop function, inputs first, then outputs, then one int per
  symbolic dim in sorted order of the names;
* function ``F``: one tensor per input (a cache input is the i64 *cache table* below), one tensor per output,
  the i64 *param table* (addresses of the params, in the order of ``ProgramRecord.params``), and the u8
  *arena* of ``arena_bytes`` bytes, 64-byte aligned.

Cache table of a batch view (int64, ``CACHE_HEADER + 4 * num_layers`` entries): addresses of
``CACHE_POINTERS`` in that order, the values of ``CACHE_DIMS``, zeros up to ``CACHE_HEADER``, then for layer l
the addresses of its ``core.kv_layout.LAYER_FIELDS`` from ``CACHE_HEADER + 4*l`` on (0: it has none). See
``graph.types.CacheType.fields`` for the meaning of the fields.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from strata.core.dtypes import dtype
from strata.core.kv_layout import LAYER_FIELDS

CACHE_POINTERS = ("positions", "slots", "seq_ids", "page_table", "last_rows", "rope_cos", "rope_sin")
CACHE_DIMS = ("num_seqs", "table_width", "num_pages", "max_context")
CACHE_HEADER = 16


def layer_word(layer: int, field: str) -> int:
    """Entry of the cache table with the address of a layer's buffer."""
    return CACHE_HEADER + len(LAYER_FIELDS) * layer + LAYER_FIELDS.index(field)


class ArgKind(Enum):
    """Where the buffer of a kernel argument is."""

    INPUT = "input"  # index = input number
    OUTPUT = "output"  # index = output number
    PARAM = "param"  # index = position in ProgramRecord.params
    ARENA = "arena"  # index = byte offset in the arena
    CACHE = "cache"  # index = input number of the cache; field, layer


@dataclass(frozen=True, slots=True)
class ArgRef:
    """One buffer argument of a launch."""

    kind: ArgKind
    index: int
    field: str = ""
    layer: int = 0


@dataclass(frozen=True, slots=True)
class DimRange:
    """``lo <= dim <= hi`` for the symbolic dim called ``dim``."""

    dim: str
    lo: int
    hi: int


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """A kernel and the sizes it is chosen for (all ranges must hold; none = always)."""

    kernel: str
    when: tuple[DimRange, ...] = ()


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel launch.

    Attributes:
        node: Name of the graph node, unique in its function.
        choices: Alternatives, tried in order; the last one has no ranges.
        args: Buffers in the order of the kernel's parameters.
        op: The node's heaviest op, for people.
        num_workspace: How many of the kernel's outputs (the first ones) are scratch memory, no results.
    """

    node: str
    choices: tuple[KernelChoice, ...]
    args: tuple[ArgRef, ...]
    op: str = ""
    num_workspace: int = 0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor at the boundary: dims are ints or text of symbolic dims (``"n"``, ``"2*n"``); ``cache`` inputs
    have dtype ``"cache"`` and shape ``()``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True)
class KernelRecord:
    """Signature of one exported kernel: what its loop function says about its parameters.

    Attributes:
        name: Exported symbol; :attr:`KernelChoice.kernel` refers to it.
        params: One per buffer, inputs first, then outputs; shapes over the kernel's own symbolic dims.
        num_outputs: How many of the last params are written.
        dims: Symbolic dims that are passed as integers after the tensors, sorted by name.
    """

    name: str
    params: tuple[TensorSpec, ...]
    num_outputs: int = 1
    dims: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """One compiled function.

    Attributes:
        name: Exported symbol.
        inputs: Arguments.
        outputs: Results; cache outputs alias the cache input and are not listed.
        dims: Ranges of the symbolic dims; a dim is read off the first input whose shape has it as a whole
            entry, or off the cache table (``CACHE_DIMS``).
        launches: In execution order.
        arena_bytes: Workspace needed, at the upper bounds of ``dims``.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    dims: tuple[DimRange, ...]
    launches: tuple[Launch, ...]
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class ParamRecord:
    """One stored param.

    Attributes:
        name: Key in the weights file.
        dtype: Element type.
        shape: Stored (physical) shape.
        logical_shape: Shape in the graph.
        layout: Text of ``loop.layout.Layout`` ("" = row-major as in the graph).
        within: The param in whose memory this one lies, both in stripes ("" = memory of its own): it has the
            same first byte and as many bytes, and is not in the weights file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    logical_shape: tuple[int, ...]
    layout: str = ""
    within: str = ""

    @property
    def own_bytes(self) -> int:
        """Bytes of memory of its own."""
        return 0 if self.within else math.prod(self.shape) * dtype(self.dtype).itemsize_bytes


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """The KV cache that the program's functions take (mirrors ``graph.types.CacheType`` plus rotary data).

    Attributes:
        num_layers, num_kv_heads, head_dim, dtype, page_size, rope, rotary_dim: As in ``CacheType`` (rope: its
            value).
        rope_inv_freq: ``rotary_dim / 2`` inverse frequencies (radians per position), scaling already applied.
        rope_attention_factor: Factor on cos and sin (YaRN/longrope; 1.0 otherwise).
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: str
    page_size: int
    rope: str
    rotary_dim: int
    rope_inv_freq: tuple[float, ...] = ()
    rope_attention_factor: float = 1.0


@dataclass(frozen=True, slots=True)
class ExternRecord:
    """A function that the code calls and that is found when it is loaded.

    Attributes:
        name: ``"openblas.sgemm"``: library and function, or the name of an external function of this process.
        signature: Its C type, ``"void (int, const float*, float*)"``; ``"tensors (...)"`` for one that takes
            DLPack tensors by the tvm-ffi calling convention.
    """

    name: str
    signature: str


@dataclass(frozen=True, slots=True)
class ProgramRecord:
    """A whole compiled model.

    Attributes:
        functions: Compiled functions.
        params: Stored params; positions are the indices of the param table.
        cache: KV cache description, ``None`` for a model without one.
        target: Text of the target it was compiled for (name and CPU features).
        features: CPU features that the code needs (``("avx512f", ...)``), checked on load.
        config: Free-form data for the engine: ``max_context`` (tokens), ``max_batch``, ``vocab_size``,
            ``eos_token_ids``, ``format``, ``architecture``, ``model_name``, ``prefill_chunk`` (tokens per
            prefill call).
        kernels: Signatures of the kernels that the launches name (needed to launch them one by one).
        externs: What the kernels call that is not in the image.
    """

    functions: tuple[FunctionRecord, ...]
    params: tuple[ParamRecord, ...]
    cache: CacheRecord | None
    target: str
    features: tuple[str, ...]
    config: dict[str, object]
    kernels: tuple[KernelRecord, ...] = ()
    externs: tuple[ExternRecord, ...] = ()
