"""Whether a user's kernel computes its op: it runs on random operands, beside the op's NumPy reference.

The kernel is compiled alone, for this machine, and runs at the lower border of each symbolic dim, at an
upper one that is cheap, and at an odd size between the two. Every buffer lies between guard zones that have
to stay as they are, as have the operands; guard zones and results start as NaN, so that reading outside of a
buffer, or not writing an element, shows in the result. Small sizes run in the loop interpreter first, which
checks every access.

What came out is remembered in a small file per kernel, node type and machine, so that it is paid once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from strata.codegen.build import build_image
from strata.codegen.compile import CODEGEN_VERSION
from strata.core.dims import Dim, SymDim, evaluate, product, shape_symbols
from strata.core.dtypes import DType, Kind, f64
from strata.core.errors import UserError, VerifyError
from strata.core.knobs import cache_folder
from strata.graph.interp import concrete_attrs
from strata.graph.nodes import Node
from strata.loop import interp
from strata.loop.nodes import Buffer, Func
from strata.loop.text import print_func
from strata.loop.values import numpy_dtype
from strata.planner.workspace import hoist_workspace
from strata.runtime.image import LoadedImage, load_image
from strata.runtime.tensors import aligned_empty, as_tensor
from strata.schedule import finalize
from strata.target import detect_host

from .kernels import Instance

VERSION = 1  # of this check: raise it to check everything again
GUARD_BYTES = (1 << 16, 1 << 22)  # least and most around a buffer; between the two as large as the buffer
CHEAP_SIZE = 131  # of a symbolic dim
CHEAP_ELEMS = 1 << 22  # of all buffers together
CHEAP_FLOP = 1 << 28
INTERPRETED_FLOP = 20_000
SEED = 20
_GUARD = 0xFF  # bytes of 1 bits: NaN in every float dtype

Array = np.ndarray[Any, Any]


class Verdict(Enum):
    """What a check found."""

    RIGHT = "right"
    OTHER_ATTRS = "other attrs"  # it computes the op with other attributes than the node's
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class _Found:
    verdict: Verdict
    why: str = ""


def verify_kernel(instance: Instance) -> bool:
    """Compare a kernel with the reference of its op.

    Args:
        instance: The kernel for a node.

    Returns:
        Whether it computes the node; ``False`` if it computes the op with other attributes (the same
        matrices, but not transposed).

    Raises:
        UserError: it computes something else, writes outside of its result, or fails; names the kernel, the
            sizes, and the first element that differs.
    """
    func = _alone(instance)
    path = _path(instance, func)
    # The code of a function of this process is not in the digest: what it does is known until it ends.
    of_process = instance.kernel.func is None
    found = _of_process.get(path) if of_process else _load(path)
    if found is None:
        found = _check(instance, func)
        if of_process:
            _of_process[path] = found
        else:
            _save(path, found)
    if found.verdict is Verdict.WRONG:
        raise UserError(f"candidate {instance.kernel.name}: {found.why}")
    return found.verdict is Verdict.RIGHT


_of_process: dict[Path, _Found] = {}


def _alone(instance: Instance) -> Func:
    """A function that computes the node and nothing else."""
    node = instance.node
    operands = tuple(Buffer(f"x{k}", x.tensor.shape, x.tensor.dtype) for k, x in enumerate(node.inputs))
    result = Buffer("y", node.tensor.shape, node.tensor.dtype)
    return finalize(Func(instance.kernel.name, (*operands, result), instance.emit(operands, result)))


# ------------------------------------------------------------------------------------------------- memory


def _path(instance: Instance, func: Func) -> Path:
    node = instance.node
    parts = (
        str(VERSION),
        str(CODEGEN_VERSION),
        print_func(func),
        node.op,
        repr(dict(node.attrs)),
        repr(instance.when),
        str(detect_host()),
    )
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    return cache_folder() / "verified" / f"{digest[:32]}.json"


def _load(path: Path) -> _Found | None:
    try:
        record = json.loads(path.read_text())
        return _Found(Verdict(record["verdict"]), str(record["why"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _save(path: Path, found: _Found) -> None:
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    with contextlib.suppress(OSError):  # a cache that cannot be written is none
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({"verdict": found.verdict.value, "why": found.why}))
        part.replace(path)


# -------------------------------------------------------------------------------------------------- check


def _check(instance: Instance, func: Func) -> _Found:
    hoisted = hoist_workspace(func)
    image = load_image(build_image([hoisted.func], [], detect_host()))
    try:
        matches_other = bool(instance.open_attrs)
        for env in sample_sizes(instance):
            why, got, operands = _run(instance, func, hoisted.buffers, image, env)
            if why is not None:
                return _Found(Verdict.WRONG, f"{why}{_at(env)}")
            expected = _reference(instance.node, operands, env, instance.node.attrs)
            difference = _difference(instance.node, got, expected, env)
            others = (_reference(instance.node, operands, env, a) for a in instance.open_attrs)
            matches_other &= any(_difference(instance.node, got, o, env) is None for o in others)
            if difference is not None:
                if matches_other:
                    return _Found(Verdict.OTHER_ATTRS)
                return _Found(
                    Verdict.WRONG,
                    f"computes something else than {_op(instance.node)}{_at(env)}: {difference}",
                )
    finally:
        image.close()
    return _Found(Verdict.RIGHT)


def sample_sizes(instance: Instance) -> list[dict[str, int]]:
    """Values of the node's symbolic dims at which it is run."""
    types = [x.tensor for x in (*instance.node.inputs, instance.node)]
    symbols = shape_symbols(d for t in types for d in t.shape)
    limits = {r.dim: (r.lo, r.hi) for r in instance.when}
    elems: Dim = 0
    for type_ in types:
        elems = elems + product(type_.shape)

    def sizes(choose: Callable[..., int], cap: int) -> dict[str, int]:
        return {s.name: choose(s, *limits.get(s.name, (s.lo, s.hi)), cap) for s in symbols}

    least = sizes(_lowest, 1)  # large constant shapes are what they are
    most_elems = max(CHEAP_ELEMS, 2 * evaluate(elems, least))
    most_flop = max(CHEAP_FLOP, 2 * _flop(instance.node, least))
    out = [least]
    for choose in (_middle, _highest):
        cap = CHEAP_SIZE
        env = sizes(choose, cap)
        while cap > 1 and (evaluate(elems, env) > most_elems or _flop(instance.node, env) > most_flop):
            cap //= 2
            env = sizes(choose, cap)
        if env not in out:
            out.append(env)
    return out


def _lowest(dim: SymDim, lo: int, hi: int, cap: int) -> int:
    """The smallest size that is not 0."""
    step = dim.multiple_of
    return max(step, -(-lo // step) * step)


def _highest(dim: SymDim, lo: int, hi: int, cap: int) -> int:
    """The largest cheap size."""
    low = _lowest(dim, lo, hi, cap)
    return max(low, min(hi, max(cap, low)) // dim.multiple_of * dim.multiple_of)


def _middle(dim: SymDim, lo: int, hi: int, cap: int) -> int:
    """A size between the borders, odd if it may be."""
    low, high = _lowest(dim, lo, hi, cap), _highest(dim, lo, hi, cap)
    steps = (high - low) // dim.multiple_of // 3
    value = low + steps * dim.multiple_of
    return value + 1 if value % 2 == 0 and dim.multiple_of == 1 and value < high else value


class _Guarded:
    """An array between guard zones; everything starts as NaN."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: DType) -> None:
        self.name = name
        size_bytes = math.prod(shape) * dtype.itemsize_bytes
        least, most = GUARD_BYTES
        self.guard = max(least, min(size_bytes, most) // least * least)
        self.memory = aligned_empty((size_bytes + 2 * self.guard,), "u1")
        self.memory.fill(_GUARD)
        inside = self.memory[self.guard : self.guard + size_bytes]
        self.array = inside.view(numpy_dtype(dtype)).reshape(shape)

    def fault(self) -> str | None:
        """Where something was written outside of the array."""
        before, after = self.memory[: self.guard], self.memory[self.guard + self.array.nbytes :]
        for side, zone in (("before", before), ("after", after)):
            touched = np.flatnonzero(zone != _GUARD)
            if len(touched):
                distance = self.guard - int(touched[-1]) if side == "before" else int(touched[0]) + 1
                return f"writes outside of {self.name}: {distance} byte(s) {side} it"
        return None


def _run(
    instance: Instance, func: Func, workspace: Sequence[Buffer], image: LoadedImage, env: Mapping[str, int]
) -> tuple[str | None, Array, list[Array]]:
    """Run once: what went wrong, the result, the operands."""
    guarded = [
        _Guarded(p.name, tuple(evaluate(d, env) for d in p.shape), p.dtype)
        for p in (*func.params, *workspace)
    ]
    params, memory = guarded[: len(func.params)], guarded[len(func.params) :]
    operands = _operands([p.array for p in params[:-1]])
    result = params[-1].array
    for param, operand in zip(params, operands, strict=False):
        param.array[...] = operand
    why = _interpreted(instance, func, operands, result, env)
    if why is not None:
        return why, result, operands
    arrays = [*(p.array for p in params[:-1]), *(m.array for m in memory), result]
    try:
        image.function(func.name)(*map(as_tensor, arrays), *(env[d.name] for d in func.dims))
    except Exception as error:  # noqa: BLE001  (a function of the user, which may raise anything)
        return f"fails with {type(error).__name__}: {error}", result, operands
    why = next((fault for g in guarded if (fault := g.fault()) is not None), None)
    for param, operand in zip(params, operands, strict=False):
        if why is None and param.array.tobytes() != operand.tobytes():
            why = f"changes its operand {param.name}"
    return why, result, operands


def _interpreted(
    instance: Instance, func: Func, operands: list[Array], result: Array, env: Mapping[str, int]
) -> str | None:
    """What the loop interpreter, which checks every access, says about a small run."""
    if instance.kernel.func is None or _flop(instance.node, env) > INTERPRETED_FLOP:
        return None
    try:
        interp.run(func, [*operands, result.copy()], env)
    except VerifyError as error:
        return str(error)
    return None


def _operands(arrays: Sequence[Array]) -> list[Array]:
    """Random operands of the shapes and dtypes of ``arrays``; integers are valid indices of every dim."""
    rng = np.random.default_rng(SEED)
    smallest = min((d for a in arrays for d in a.shape), default=1)
    out: list[Array] = []
    for array in arrays:
        match array.dtype.kind:
            case "b":
                values = rng.integers(0, 2, array.shape)
            case "i" | "u":
                values = rng.integers(0, max(smallest, 1), array.shape)
            case _:
                values = rng.standard_normal(array.shape)
        out.append(np.asarray(values).astype(array.dtype))
    return out


def _reference(node: Node, operands: list[Array], env: Mapping[str, int], attrs: Mapping[str, Any]) -> Array:
    concrete = concrete_attrs(Node(node.op, node.inputs, attrs, node.type), env)
    return node.opdef.reference(operands, concrete)


def _flop(node: Node, env: Mapping[str, int]) -> float:
    elements = math.prod(evaluate(d, env) for d in node.tensor.shape)
    if node.opdef.flop is None:
        return float(elements)
    return float(evaluate(node.opdef.flop(tuple(x.type for x in node.inputs), node.attrs), env))


# Unit roundoff 2**-p, p = bits of the significand with the hidden one (IEEE 754; bf16: 8).
_ROUNDOFF = {"f64": 2.0**-53, "f32": 2.0**-24, "f16": 2.0**-11, "bf16": 2.0**-8}
_FUNCTION_ULPS = 16  # of two implementations of exp, tanh, ... together
_SUM_FACTOR = 8  # six standard deviations of the error of a sum, for two programs


def _difference(node: Node, got: Array, expected: Array, env: Mapping[str, int]) -> str | None:
    """The first element that differs by more than rounding, in words.

    Both compute in f32 (f64 for f64) and round once: relative to the value they differ by the rounding of
    the result and of functions; a sum of K terms differs by another ``K`` roundoffs of its terms (Higham &
    Mary 2019).
    """
    dtype = node.tensor.dtype
    a, e = got.astype(np.float64), np.asarray(expected).astype(np.float64)
    if dtype.kind is Kind.FLOAT:
        inner = _ROUNDOFF["f64" if dtype is f64 else "f32"]
        terms = max(1.0, _flop(node, env) / max(e.size, 1) / 2)
        finite = e[np.isfinite(e)]
        size = float(np.sqrt(np.mean(finite * finite))) if finite.size else 0.0
        scale = max(1.0, size / math.sqrt(terms))
        rtol = 2 * _ROUNDOFF[dtype.name] + _FUNCTION_ULPS * inner
        atol = _SUM_FACTOR * inner * terms * scale
    else:
        rtol = atol = 0.0
    with np.errstate(all="ignore"):
        same = (np.abs(a - e) <= atol + rtol * np.abs(e)) | (a == e) | (np.isnan(a) & np.isnan(e))
    if same.all():
        return None
    where = tuple(int(i) for i in np.argwhere(~same)[0])
    index = ", ".join(map(str, where))
    wrong = int((~same).sum())
    return f"element [{index}] is {a[where]:.8g}, expected {e[where]:.8g} ({wrong} of {e.size} differ)"


def _op(node: Node) -> str:
    attrs = [f"{k}={v}" for k, v in node.attrs.items() if v not in (None, False)]
    types = ", ".join(str(x.type) for x in node.inputs)
    return f"{node.op}({', '.join([types, *attrs])})"


def _at(env: Mapping[str, int]) -> str:
    return f" at {', '.join(f'{k} = {v}' for k, v in env.items())}" if env else ""
