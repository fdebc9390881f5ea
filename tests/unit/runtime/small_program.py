"""A program small enough to write by hand, whose "machine code" is Python behind the tvm-ffi calling
convention.

``axpy(x: f32[n, 4]) -> y: f32[n, 4] = x * scale + shift`` in two launches (``mul`` into the arena, then
``add``), with ``mul`` in a small and a large version; ``peek(ids: i32[n], cache) -> f32[num_seqs]`` reads the
first key of each page.
"""

import numpy as np
import tvm_ffi

from strata.core.errors import UserError
from strata.runtime.records import (
    ArgKind,
    ArgRef,
    CacheRecord,
    DimRange,
    FunctionRecord,
    KernelChoice,
    KernelRecord,
    Launch,
    ParamRecord,
    ProgramRecord,
    TensorSpec,
)
from strata.runtime.tensors import array_at, as_array

ROW = TensorSpec("x", "f32", ("n", 4))
SCALE = TensorSpec("scale", "bf16", (4,))
CACHE = CacheRecord(
    num_layers=1, num_kv_heads=1, head_dim=2, dtype="f32", page_size=4, rope="none", rotary_dim=0
)

AXPY = FunctionRecord(
    name="axpy",
    inputs=(ROW,),
    outputs=(TensorSpec("y", "f32", ("n", 4)),),
    dims=(DimRange("n", 1, 8),),
    launches=(
        Launch(
            "%1",
            (KernelChoice("mul_small", (DimRange("n", 1, 2),)), KernelChoice("mul_large")),
            (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.PARAM, 0), ArgRef(ArgKind.ARENA, 64)),
        ),
        Launch(
            "%2",
            (KernelChoice("add"),),
            (ArgRef(ArgKind.ARENA, 64), ArgRef(ArgKind.PARAM, 1), ArgRef(ArgKind.OUTPUT, 0)),
        ),
    ),
    arena_bytes=64 + 8 * 16,
)
PEEK = FunctionRecord(
    name="peek",
    inputs=(TensorSpec("ids", "i32", ("n",)), TensorSpec("cache", "cache", ())),
    outputs=(TensorSpec("sums", "f32", ("num_seqs",)),),
    dims=(DimRange("n", 1, 8), DimRange("num_pages", 1, 64), DimRange("num_seqs", 1, 4)),
    launches=(
        Launch(
            "%3",
            (KernelChoice("sum_keys"),),
            (
                ArgRef(ArgKind.CACHE, 1, "last_rows"),
                ArgRef(ArgKind.CACHE, 1, "k_pages", 0),
                ArgRef(ArgKind.OUTPUT, 0),
            ),
        ),
    ),
    arena_bytes=0,
)
KERNELS = (
    KernelRecord("mul_small", (ROW, SCALE, ROW), dims=("n",)),
    KernelRecord("mul_large", (ROW, SCALE, ROW), dims=("n",)),
    KernelRecord("add", (ROW, SCALE, ROW), dims=("n",)),
    KernelRecord(
        "sum_keys",
        (
            TensorSpec("last_rows", "i32", ("num_seqs",)),
            TensorSpec("k_pages", "f32", ("num_pages", 1, 2, 4)),
            TensorSpec("sums", "f32", ("num_seqs",)),
        ),
        dims=("num_pages", "num_seqs"),
    ),
)
RECORD = ProgramRecord(
    functions=(AXPY, PEEK),
    params=(ParamRecord("scale", "bf16", (4,), (4,)), ParamRecord("shift", "bf16", (4,), (2, 2), "rows")),
    cache=CACHE,
    target="test cpu",
    features=(),
    config={"max_context": 64, "name": "small", "rate": 0.5},
    kernels=KERNELS,
)


def small_params() -> dict[str, np.ndarray]:
    from strata.runtime.tensors import numpy_dtype

    bf16 = numpy_dtype("bf16")
    return {"scale": np.array([1, 2, 3, 4]).astype(bf16), "shift": np.array([0.5, 0, -1, 2]).astype(bf16)}


class FakeImage:
    """Symbols of the program as Python functions wrapped by tvm-ffi; ``calls`` logs what ran."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def function(self, symbol: str):
        if not hasattr(self, "_" + symbol):
            raise UserError(f"image: no symbol {symbol!r}")
        inner = getattr(self, "_" + symbol)

        def run(*args) -> None:
            self.calls.append(symbol)
            inner(*(as_array(a) if isinstance(a, tvm_ffi.Tensor) else a for a in args))

        return tvm_ffi.convert(run)

    def _axpy(self, x, y, table, arena) -> None:
        assert arena.ctypes.data % 64 == 0
        scale, shift = (array_at(int(a), (4,), small_params()["scale"].dtype) for a in table)
        y[...] = x * scale.astype(np.float32) + shift.astype(np.float32)

    def _peek(self, ids, table, out, params, arena) -> None:
        keys = array_at(int(table[16]), (int(table[9]), 1, 2, 4), np.dtype(np.float32))
        out[...] = keys[:, 0, 0, 0].sum()

    def _mul_small(self, x, scale, y, n) -> None:
        assert n == len(x) == len(y)
        y[...] = x * scale.astype(np.float32)

    _mul_large = _mul_small

    def _add(self, x, shift, y, n) -> None:
        y[...] = x + shift.astype(np.float32)

    def _sum_keys(self, rows, keys, out, num_pages, num_seqs) -> None:
        assert (num_pages, num_seqs) == (len(keys), len(rows))
        out[...] = keys[:, 0, 0, 0].sum()


class View:
    """A batch view made by hand."""

    def __init__(self, keys: np.ndarray, num_tokens: int, num_seqs: int) -> None:
        self.keys = keys
        self.rows = np.zeros(num_seqs, np.int32)
        self.num_tokens = num_tokens
        self.table = np.zeros(20, np.int64)
        self.table[4] = self.rows.ctypes.data
        self.table[7:11] = (num_seqs, 1, len(keys), 64)
        self.table[16] = self.table[17] = keys.ctypes.data
