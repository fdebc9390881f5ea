"""Operands of a kernel that is measured: random values, and a consistent view of a KV cache.

The weights come in several copies that together exceed the last-level cache; calls take turns. In a model,
all other weights are read between two uses of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from strata.core.dims import evaluate
from strata.core.errors import UserError
from strata.loop.nodes import Buffer, Func
from strata.loop.text import parse_func
from strata.runtime.tensors import address, array_at, numpy_dtype
from strata.target import Target

CACHES = 4  # the copies of the weights take this many times the last-level cache
MAX_COPIES = 64
PERIOD = 1_000_003  # random values repeat after a prime number: no row is like the one before it
CANARY_BYTES = 4096  # behind every result: a kernel must not touch them
CANARY = 0xA5
TABLE_MODULUS = 7  # pages of a sequence are not in the order of memory
# Takes all cache lines of a buffer out of all caches, on all threads: 1024 lines at a time.
EVICT = parse_func("""
dims n in 1..1099511627776
func @evict(x: u8[n]) -> ()
  parallel block in (n + 65535) // 65536:
    alloc nothing: i32[1] local
    for line in 1024:
      nothing[0] = @evict<i32>(x[min(block * 65536 + line * 64, n - 1)])
""")
_INDICES = ("positions", "slots", "seq_ids", "page_table", "last_rows")


def inputs(
    func: Func,
    sizes: Mapping[str, int],
    fields: Mapping[str, str],
    weights: Sequence[str],
    within: Mapping[str, str],
    target: Target,
    seed: int = 1,
    caches: float = CACHES,
) -> list[list[np.ndarray]]:
    """Values of the inputs of ``func``: per parameter one array, or several equal ones for a weight.

    Args:
        func: Naive function; its inputs come first.
        sizes: Value of every symbolic dim.
        fields: Cache field by parameter name.
        weights: Names of the parameters that are weights.
        within: By parameter of floats: the one before it in whose memory it lies. Any bytes are codes.
        target: Its caches decide on the number of copies.
        seed: Of the random values.
        caches: The copies of the weights take this many times the last-level cache.
    """
    params = func.params[: len(func.params) - func.num_outputs]
    total = sum(_num_bytes(p, sizes) for p in params if p.name in weights and p.name not in within)
    copies = min(MAX_COPIES, math.ceil(caches * target.l3_bytes / total)) if total else 1
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(PERIOD, dtype=np.float32)
    found: dict[str, np.ndarray] = {}
    for param in params:
        shape = _shape(param, sizes)
        name = fields.get(param.name, "")
        owner = found.get(within.get(param.name, ""))
        array = guarded(shape, param.dtype.numpy_name) if owner is None else _viewed(owner, param, shape)
        if name in _INDICES:
            array[...] = _index_field(name, shape, sizes)
        elif param.dtype.is_float:
            _repeat(noise, array)
        else:
            _repeat(rng.integers(0, 2 if param.dtype.name == "bool" else 100, PERIOD), array)
        found[param.name] = array
    all_copies = {
        name: [array, *(_copy(array) for _ in range(copies - 1 if name in weights else 0))]
        for name, array in found.items()
        if name not in within
    }
    for param in (p for p in params if p.name in within):
        shape = found[param.name].shape
        all_copies[param.name] = [_viewed(array, param, shape) for array in all_copies[within[param.name]]]
    return [all_copies[p.name] for p in params]


def _viewed(array: np.ndarray, param: Buffer, shape: tuple[int, ...]) -> np.ndarray:
    """The memory of another array as that of ``param``."""
    return array.view(numpy_dtype(param.dtype.name)).reshape(shape)


def results(func: Func, sizes: Mapping[str, int], count: int) -> list[np.ndarray]:
    """Memory for the last ``count`` parameters of ``func``, filled so that what is never written shows."""
    found = []
    for param in func.params[len(func.params) - count :]:
        array = guarded(_shape(param, sizes), param.dtype.numpy_name)
        array.view(np.uint8).fill(0xFF)  # NaN or -1
        found.append(array)
    return found


def _shape(param: Buffer, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(d, dict(sizes)) for d in param.shape)


def _num_bytes(param: Buffer, sizes: Mapping[str, int]) -> int:
    return math.prod(_shape(param, sizes)) * param.dtype.itemsize_bytes


def guarded(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An array on a 64-byte border with a canary right behind its last element."""
    kind = np.dtype(dtype)
    num_bytes = math.prod(shape) * kind.itemsize
    raw = np.empty(num_bytes + CANARY_BYTES + 64, np.uint8)
    start = -address(raw) % 64
    raw[start + num_bytes :] = CANARY
    return raw[start : start + num_bytes].view(kind).reshape(shape)


def is_intact(array: np.ndarray) -> bool:
    """Whether the canary behind an array of :func:`guarded` is as it was."""
    behind = array_at(address(array) + array.nbytes, (CANARY_BYTES - 64,), numpy_dtype("u8"), keep=array)
    return bool((behind == CANARY).all())


def _repeat(values: np.ndarray, array: np.ndarray) -> None:
    """Fill an array with ``values`` over and over."""
    flat, values = array.reshape(-1), values.astype(array.dtype)
    for begin in range(0, flat.size, values.size):
        part = flat[begin : begin + values.size]
        part[:] = values[: part.size]


def _copy(array: np.ndarray) -> np.ndarray:
    other = guarded(array.shape, array.dtype.name)
    other[...] = array
    return other


def _index_field(name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> np.ndarray:
    """One index field of a batch view: the tokens are the last ones of sequences of equal length."""
    num_seqs = sizes.get("num_seqs", 1)
    if name == "last_rows":
        n = max(sizes.get("n", num_seqs), num_seqs)
        return np.minimum((np.arange(1, num_seqs + 1) * n) // num_seqs - 1, n - 1)
    if name == "page_table":
        rows, width = shape
        pages = max(sizes.get("num_pages", rows * width), 1)
        return (np.arange(rows * width) * TABLE_MODULUS % pages).reshape(shape)
    (n,) = shape
    token = np.arange(n)
    sequence = np.minimum(token * num_seqs // n, num_seqs - 1)
    match name:
        case "seq_ids":
            return sequence
        case "positions":
            context = sizes.get("max_context", n)
            first = np.searchsorted(sequence, sequence)  # index of the first token of the same sequence
            count = np.bincount(sequence, minlength=num_seqs)[sequence]
            return np.maximum(context - count + token - first, 0)
        case "slots":
            return token
        case _:
            raise UserError(f"tuning: got cache field {name!r}; expected one of {', '.join(_INDICES)}")
