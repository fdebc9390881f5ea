"""Functions that loop functions may call by name and that Strata did not generate.

A :class:`Call` statement passes buffers (the address of their first element) and scalars. What an extern
takes and what it computes is data here; where its code is found is the business of ``runtime.externs``, when
the image is loaded.

A call is opaque: no schedule step moves it or runs it several times. It stands outside of blocks and of
PARALLEL and VECTORIZE loops (it may have threads of its own), its buffers are whole and dense.

:data:`EXTERNS` is open: ``compiler.external`` registers functions of this process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from strata.core.dims import Shape, SymDim
from strata.core.dtypes import DType
from strata.core.registry import Registry

from .nodes import Buffer, Call, Expr, MemSpace


class Role(Enum):
    """What a call does with an argument."""

    READ = "read"  # a buffer that is only read
    WRITE = "write"  # a buffer that is wholly written, never read
    UPDATE = "update"  # a buffer that is read and written
    VALUE = "value"  # a scalar


class Convention(Enum):
    """How the machine code is called."""

    C = "c"  # void f(...): addresses and numbers by the C ABI, one per param
    TENSORS = "tensors"  # a tvm-ffi function of DLPack tensors and numbers; it may fail


@dataclass(frozen=True, slots=True)
class ExternParam:
    """One parameter of an extern.

    Attributes:
        name: For people.
        role: What the call does with it.
        dtype: Of the buffer's elements, or of the scalar (i32, i64, f32 or f64).
        shape: Of the buffer, ``None`` for any; a symbol stands for one size in all params of the extern.
    """

    name: str
    role: Role
    dtype: DType
    shape: Shape | None = None

    @property
    def is_buffer(self) -> bool:
        """Whether a buffer is passed."""
        return self.role is not Role.VALUE

    def __str__(self) -> str:
        if not self.is_buffer:
            return f"{self.name}: {self.dtype}"
        shape = "..." if self.shape is None else ",".join(map(str, self.shape))
        return f"{self.name}: {self.role.value} {self.dtype}[{shape}]"


@dataclass(frozen=True, slots=True)
class Extern:
    """A function that was not generated.

    Attributes:
        name: What a call says: ``"openblas.sgemm"``.
        params: In the order of the arguments.
        semantics: What the interpreter runs: takes one array per buffer (written in place) and one number per
            scalar.
        doc: One line for people.
        convention: How the machine code is called.
    """

    name: str
    params: tuple[ExternParam, ...]
    semantics: Callable[..., object]
    doc: str
    convention: Convention = Convention.C

    @property
    def signature(self) -> str:
        """``"(m: i32, a: read f32[...], c: write f32[...])"``."""
        return f"({', '.join(map(str, self.params))})"


EXTERNS: Registry[Extern] = Registry("extern")


def buffers_of(call: Call, *roles: Role) -> tuple[Buffer, ...]:
    """Buffers that ``call`` passes in one of these roles (all buffers where none is given).

    Raises:
        UserError: no such extern.
    """
    params = EXTERNS[call.extern].params
    return tuple(
        arg
        for param, arg in zip(params, call.args, strict=False)
        if isinstance(arg, Buffer) and (not roles or param.role in roles)
    )


def call_reads(call: Call) -> tuple[Buffer, ...]:
    """Buffers whose elements ``call`` reads."""
    return buffers_of(call, Role.READ, Role.UPDATE)


def call_writes(call: Call) -> tuple[Buffer, ...]:
    """Buffers whose elements ``call`` writes."""
    return buffers_of(call, Role.WRITE, Role.UPDATE)


def call_problem(call: Call) -> str | None:
    """Why the arguments do not fit the extern, as *got; expected*, or ``None``."""
    extern = EXTERNS.get(call.extern)
    if extern is None:
        return f"got the extern {call.extern!r}; known: {', '.join(EXTERNS) or 'none'}"
    if len(call.args) != len(extern.params):
        return f"got {len(call.args)} arguments; expected {len(extern.params)}: {extern.signature}"
    sizes: dict[SymDim, object] = {}
    for param, arg in zip(extern.params, call.args, strict=True):
        why = _argument_problem(param, arg, sizes)
        if why is not None:
            return f"argument {param.name}: {why}"
    passed, written = buffers_of(call), call_writes(call)
    twice = [x.name for x in written if passed.count(x) > 1]
    return f"buffer {twice[0]} is written and passed twice; expected another buffer" if twice else None


def _argument_problem(param: ExternParam, arg: Buffer | Expr, sizes: dict[SymDim, object]) -> str | None:
    if not param.is_buffer:
        if isinstance(arg, Buffer):
            return f"got buffer {arg.name}; expected a scalar of {param.dtype}"
        got = str(arg.dtype) if arg.lanes == 1 else f"{arg.dtype} x {arg.lanes} lanes"
        return None if got == str(param.dtype) else f"got {got}; expected {param.dtype}"
    if not isinstance(arg, Buffer):
        return f"got a scalar of {arg.dtype}; expected a buffer of {param.dtype}"
    if arg.dtype != param.dtype:
        return f"got {arg.dtype} in buffer {arg.name}; expected {param.dtype}"
    if arg.space is MemSpace.REGISTER:
        return f"got register buffer {arg.name}, which has no address; expected global or local memory"
    if param.shape is None:
        return None
    fits = len(param.shape) == len(arg.shape)
    for want, got in zip(param.shape, arg.shape, strict=False):
        bound = sizes.setdefault(want, got) if isinstance(want, SymDim) else want
        fits = fits and bound == got
    shown = ",".join(map(str, param.shape))
    return None if fits else f"got {arg.name}[{','.join(map(str, arg.shape))}]; expected [{shown}]"
