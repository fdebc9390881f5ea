"""Kernels: loop functions that people write, look at, run and schedule.

::

    @strata.kernel
    def add_one(a: f32[8], b: Out[f32[8]]):
        for i in grid(8):
            b[i] = a[i] + 1.0

    print(add_one)                    # loop IR
    add_one.interpret(a)              # by the slow definition
    add_one(a)                        # as machine code of this CPU, compiled at the first call
    fast = add_one.schedule(lambda s: s.vectorize("i"))
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np
import tvm_ffi

from strata.codegen.build import build_image
from strata.codegen.compile import assembly, emit_module, optimized
from strata.core.dims import SymDim, evaluate
from strata.core.errors import ShapeError, UserError
from strata.graph.nodes import Node
from strata.loop import interp
from strata.loop.check import LOOP_LOWERED, LOOP_SCHEDULED, check
from strata.loop.interp_support import fresh_array
from strata.loop.nodes import Buffer, For, ForKind, Func
from strata.loop.rewrite import walk_stmts
from strata.loop.script import script
from strata.loop.text import print_func
from strata.loop.values import numpy_dtype
from strata.planner.candidates.kernels import PREFIX, UserKernel, When, adopt, best_schedule, register
from strata.planner.workspace import hoist_workspace
from strata.runtime.image import load_image
from strata.runtime.tensors import as_array, as_tensor
from strata.schedule import Trace
from strata.schedule.builder import Schedule
from strata.schedule.finalize import finalize
from strata.target import Target, detect_host

from .external import external

K = TypeVar("K")
_numbers = itertools.count()  # names of externs are unique in a process


class Kernel:
    """A loop function that can be looked at, run and scheduled.

    Args:
        func: The function as it was written.
        scheduled: The same function after a schedule; ``None`` leaves that to the rules.
        target: The machine to compile for; default: this one.

    Attributes:
        func: The function, scheduled if it was.
    """

    def __init__(self, func: Func, scheduled: Schedule | None = None, target: Target | None = None) -> None:
        self.func = func if scheduled is None else scheduled.func
        self._written = func
        self._schedule = scheduled
        self._target = target

    @property
    def name(self) -> str:
        """Name of the function."""
        return self.func.name

    @property
    def text(self) -> str:
        """Loop IR; ``loop.text.parse_func`` reads it."""
        return print_func(self.func)

    @property
    def trace(self) -> Trace:
        """The steps of its schedule; none where it has none."""
        return () if self._schedule is None else self._schedule.trace

    @property
    def is_scheduled(self) -> bool:
        """Whether a person has scheduled it; if not, the rules schedule its blocks."""
        return self._schedule is not None

    @property
    def target(self) -> Target:
        """The machine that it is compiled for."""
        return self._target if self._target is not None else detect_host()

    def __str__(self) -> str:
        return self.text.rstrip("\n")

    def __repr__(self) -> str:
        return f"<Kernel {signature_text(self.func)}>"

    # ------------------------------------------------------------------------------------------ schedules

    def schedule(self, how: Schedule | Trace | str | Callable[[Schedule], object]) -> Kernel:
        """This kernel under a schedule.

        Args:
            how: A ``Schedule`` of it, a trace or the text of one, or a function that is given a ``Schedule``
                and applies steps to it.

        Raises:
            LegalityError: a step does not apply, or the result has no form for the code generator.
            UserError: ``how`` is none of these, or is a schedule of another function.
        """
        match how:
            case Schedule():
                made = how
            case str() | tuple():
                made = Schedule.replay(self.func, how)
            case _ if callable(how):
                made = Schedule(self.func)
                how(made)
            case _:
                raise UserError(
                    f"{self.name}.schedule: got {how!r}; expected a Schedule, a trace, or a function "
                    "that takes a Schedule"
                )
        if made.func.params != self.func.params:
            raise UserError(
                f"{self.name}.schedule: got a schedule of {made.func.name}; expected one of this kernel"
            )
        made.finalize()
        return Kernel(self._written, made, self._target)

    @cached_property
    def lowered(self) -> Func:
        """The function in the form that the code generator takes (stage LOOP_LOWERED).

        Blocks that nobody scheduled are scheduled by the rules for the target.
        """
        lowered = finalize(self.func) if self.is_scheduled else best_schedule(self.func, self.target)
        check(lowered, LOOP_LOWERED)
        return lowered

    # ------------------------------------------------------------------------------------------ running

    def interpret(self, *arrays: Any) -> Any:
        """Run in the loop interpreter, the slow definition; arguments and result as for a call.

        Raises:
            ShapeError: dtypes or shapes do not fit.
            VerifyError: the kernel accesses a buffer outside of its shape.
        """
        self._check_arrays(arrays)
        count = len(self.func.params) - self.func.num_outputs
        if len(arrays) == count:
            dims = self._dims(arrays)
            arrays = (*arrays, *(fresh_array(p.dtype)(_shape(p, dims)) for p in self._outputs))
        interp.run(self.func, [_as_numpy(a) for a in arrays])
        return arrays[-1] if self.func.num_outputs == 1 else arrays[count:]

    def __call__(self, *arrays: Any) -> Any:
        """Run as machine code; the first call compiles it, unless the cache has it.

        Args:
            arrays: NumPy arrays or PyTorch tensors (anything with ``__dlpack__``) for the inputs, and for the
                outputs or none of them. They are used in place; outputs that are left out are allocated.

        Returns:
            The output, or a tuple of them.

        Raises:
            ShapeError: number, dtypes or shapes do not fit.
        """
        loaded = self._loaded
        count = loaded.num_inputs
        if len(arrays) == count:
            self._check_arrays(arrays)
            dims = self._dims(arrays)
            arrays = (*arrays, *(_empty_like(arrays, p, _shape(p, dims)) for p in self._outputs))
        elif len(arrays) != count + self.func.num_outputs:
            self._check_arrays(arrays)
        loaded.run([_as_tensor(a) for a in arrays])
        return arrays[-1] if self.func.num_outputs == 1 else arrays[count:]

    @cached_property
    def _dim_names(self) -> tuple[str, ...]:
        return tuple(d.name for d in self.func.dims)

    @cached_property
    def _outputs(self) -> tuple[Buffer, ...]:
        return self.func.params[len(self.func.params) - self.func.num_outputs :]

    def _check_arrays(self, arrays: Sequence[Any]) -> None:
        """Number and kind of the arguments; what they are like is checked by the machine code."""
        count = len(self.func.params) - self.func.num_outputs
        if len(arrays) not in (count, len(self.func.params)):
            raise ShapeError(
                f"{self.name}: got {len(arrays)} arrays; expected {count} inputs"
                f"{f' or {len(self.func.params)} with the outputs'}: {signature_text(self.func)}"
            )
        for number, (array, param) in enumerate(zip(arrays, self.func.params, strict=False)):
            if not hasattr(array, "__dlpack__") or not hasattr(array, "shape"):
                raise ShapeError(
                    f"{self.name}: argument {number} ({param.name}): got {type(array).__name__}; expected "
                    f"an array {_type_text(param)}"
                )

    def _dims(self, arrays: Sequence[Any]) -> dict[str, int]:
        """Values of the dims, read off the inputs."""
        dims: dict[str, int] = {}
        if not self._dim_names:
            return dims
        for param, array in zip(self.func.params, arrays, strict=False):
            for dim, extent in zip(param.shape, array.shape, strict=False):
                if isinstance(dim, SymDim):
                    dims.setdefault(dim.name, int(extent))
        missing = [name for name in self._dim_names if name not in dims]
        if missing:
            raise ShapeError(
                f"{self.name}: no input says what {', '.join(missing)} is; pass the outputs as well: "
                f"{signature_text(self.func)}"
            )
        return dims

    # --------------------------------------------------------------------------------------- machine code

    def llvm(self, optimize: bool = False) -> str:
        """LLVM text of the kernel, as generated or after LLVM's passes."""
        text = emit_module(hoist_workspace(self.lowered).func, self.target)
        return optimized(text, self.target) if optimize else text

    def asm(self) -> str:
        """Assembly of the kernel."""
        return assembly(self.llvm(), self.target)

    @cached_property
    def _loaded(self) -> _Loaded:
        return _Loaded(self.lowered, self.target)


class _Loaded:
    """A kernel's machine code in this process."""

    def __init__(self, func: Func, target: Target) -> None:
        hoisted = hoist_workspace(func)
        self.func = func
        self.num_inputs = len(func.params) - func.num_outputs
        self.workspace = hoisted.buffers
        threads = None if _has_parallel(func) else 1
        self.image = load_image(build_image([hoisted.func], [], target), threads)
        self.function = self.image.function(func.name)

    def run(self, tensors: list[tvm_ffi.Tensor]) -> None:
        """Call it with tensors for all parameters."""
        if self.workspace:
            dims: dict[str, int] = {}
            for param, tensor in zip(self.func.params, tensors, strict=True):
                for dim, extent in zip(param.shape, tensor.shape, strict=False):
                    if isinstance(dim, SymDim):
                        dims[dim.name] = int(extent)
            shapes = [(_shape(b, dims), numpy_dtype(b.dtype)) for b in self.workspace]
            tensors[self.num_inputs : self.num_inputs] = [as_tensor(np.empty(*x)) for x in shapes]
        self.function(*tensors)


def _as_tensor(array: Any) -> tvm_ffi.Tensor:
    return as_tensor(array) if isinstance(array, np.ndarray) else tvm_ffi.from_dlpack(array)


def _as_numpy(array: Any) -> np.ndarray:
    return array if isinstance(array, np.ndarray) else as_array(tvm_ffi.from_dlpack(array))


def _empty_like(arrays: Sequence[Any], param: Buffer, shape: tuple[int, ...]) -> Any:
    """A new array of the library of the first argument."""
    first = arrays[0] if arrays else None
    if first is not None and type(first).__module__.partition(".")[0] == "torch":
        import torch

        return torch.empty(shape, dtype=getattr(torch, param.dtype.numpy_name))
    return np.empty(shape, numpy_dtype(param.dtype))


def _shape(buffer: Buffer, dims: dict[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(d, dims) for d in buffer.shape)


def _type_text(buffer: Buffer) -> str:
    return f"{buffer.dtype}[{', '.join(map(str, buffer.shape))}]"


def signature_text(func: Func) -> str:
    """``"dense(x: f32[n, 256], w: f32[512, 256]) -> (y: f32[n, 512])"``."""
    texts = [f"{p.name}: {_type_text(p)}" for p in func.params]
    count = len(texts) - func.num_outputs
    return f"{func.name}({', '.join(texts[:count])}) -> ({', '.join(texts[count:])})"


def _has_parallel(func: Func) -> bool:
    return any(isinstance(s, For) and s.kind is ForKind.PARALLEL for s in walk_stmts(func))


@overload
def kernel(function: Callable[..., Any], /) -> Kernel: ...
@overload
def kernel(*, target: Target | None = None) -> Callable[[Callable[..., Any]], Kernel]: ...
def kernel(function: Any = None, /, *, target: Target | None = None) -> Any:
    """Read a Python function as a kernel; a decorator, ``@strata.kernel``.

    Args:
        function: Defined with ``def`` and annotated, in the language of ``strata.script``; or a loop
            function.
        target: The machine to compile for; default: this one.

    Raises:
        ParseError: the function is not of the language, or breaks a rule; with file, line and caret.
        UserError: its source text cannot be found.
    """
    names = sys._getframe(1).f_locals
    if function is None:
        return lambda f: _kernel(f, target, names)
    return _kernel(function, target, names)


def _kernel(function: Any, target: Target | None, names: dict[str, Any]) -> Kernel:
    if isinstance(function, Func):
        check(function, LOOP_SCHEDULED)
        return Kernel(function, None, target)
    made = Kernel(script(function, names), None, target)
    adopt(function, made)
    return made


# ---------------------------------------------------------------------------------------------- candidates


def candidate(
    op: str,
    *,
    when: When | None = None,
    name: str | None = None,
    check: bool = True,
    attrs: Mapping[str, Any] | None = None,
) -> Callable[[K], K]:
    """Declare that something computes an op: from then on it is a candidate wherever its types fit.

    A decorator above or below ``@strata.kernel``, or called with any function of this process::

        @strata.candidate(op="matmul", when={"n": (1, 16)})
        @strata.kernel
        def skinny(x: f32[n, 256], w: f32[512, 256], y: Out[f32[n, 512]]): ...

        strata.candidate(op="matmul", name="torch")(torch.mm)

    A function is given one tensor per operand and returns the result (a ``tvm_ffi.Function`` is given that
    too, and fills it). See ``planner.candidates.kernels`` for what fits.

    Args:
        op: The op (``docs/ops.md``).
        when: Which nodes it is for: a predicate, or ranges of symbolic dims (of the kernel; of the node for a
            function), for a choice at run time.
        name: The candidate is called ``user.<name>``; default: the name of the kernel or function.
        check: Compare it with the op's reference before its first use.
        attrs: Attributes of the op for which it was written: ``{"eps": 1e-5}``.

    Returns:
        A decorator that gives back what it gets.

    Raises:
        UserError: no such op or attribute, or ``when`` does not make sense.
    """

    def declare(given: K) -> K:
        implementation: object = given
        chosen = name or getattr(implementation, "name", None) or getattr(implementation, "__name__", None)
        if not callable(implementation) or not isinstance(chosen, str):
            raise UserError(
                f"candidate: got {implementation!r}; expected a kernel or a function, or a name for it"
            )
        found = implementation if isinstance(implementation, Kernel) else _externs_of(chosen, implementation)
        register(UserKernel(chosen, op, found, when, check, dict(attrs or {}), implementation))
        return given

    return declare


def _externs_of(name: str, function: Callable[..., Any]) -> Callable[[Node], str]:
    """The function as an extern for any node: one per signature."""
    made: dict[str, str] = {}

    def extern_of(node: Node) -> str:
        types = [*(x.type for x in node.inputs), node.type]
        texts = [f"x{k}: {t}" for k, t in enumerate(types)]
        signature = f"({', '.join(texts[:-1])}) -> ({texts[-1]})"
        if signature not in made:
            fills = isinstance(function, tvm_ffi.Function)
            prefix = f"{PREFIX}.{name}".replace("-", "_")
            extern = external(f"{prefix}.{next(_numbers)}", function, signature, returns=not fills)
            made[signature] = extern.name
        return made[signature]

    return extern_of
