"""Calls of externs: their arguments, and what follows when they fail. Conventions: :mod:`.externs`.

A tensor function takes an array of ``TVMFFIAny`` values (16 bytes each: type index, padding, payload): a
``DLTensor*`` for a buffer, a number for a scalar. They are built on the stack at every call (tvm/ffi/c_api.h,
dlpack/dlpack.h).
"""

from __future__ import annotations

from typing import assert_never

from strata.core.dims import Dim, product
from strata.loop.externs import Convention
from strata.loop.nodes import Buffer, Call

from . import emit_index as index
from .abi import dtype_word
from .emit_memory import MemoryEmitter
from .emit_values import Value
from .externs import ANY_BYTES, CALL_TENSORS, extern_of, symbol

_ANY_INT, _ANY_FLOAT, _ANY_TENSOR = 1, 3, 7  # TVMFFITypeIndex
_DL_CPU = 1  # device type 1, device 0

# Byte offsets in a DLTensor.
_DATA, _DEVICE, _NDIM, _DTYPE, _SHAPE, _STRIDES, _OFFSET, _TENSOR_BYTES = 0, 8, 16, 20, 24, 32, 40, 48

_LLVM_TYPES = {"i32": "i32", "i64": "i64", "f32": "float", "f64": "double"}


def emit_call(f: MemoryEmitter, call: Call) -> None:
    """Emit a call at the end of the innermost region."""
    extern = extern_of(call)
    b = f.b
    b.declares.setdefault(symbol(extern.name), f"{symbol(extern.name)} = external dso_local global ptr")
    callee = f"%{b.fresh('extern')}"
    b.line(f"{callee} = load ptr, ptr {symbol(extern.name)}")
    match extern.convention:
        case Convention.C:
            args = [
                f"ptr {f.slot(a).pointer}" if isinstance(a, Buffer) else _typed(f, f.value(a))
                for a in call.args
            ]
            b.line(f"call void {callee}({', '.join(args)})")
        case Convention.TENSORS:
            _call_tensors(f, call, callee)
        case _:
            assert_never(extern.convention)


def _typed(f: MemoryEmitter, value: Value) -> str:
    return f"{_LLVM_TYPES[value.dtype.name]} {f.b.use(value)}"


class _Stack:
    """Stack memory of one call, filled word by word."""

    def __init__(self, f: MemoryEmitter, num_bytes: int) -> None:
        self.f = f
        self.base = f.b.alloca(f"[{num_bytes} x i8]", 16)
        self.used = 0

    def reserve(self, num_bytes: int) -> int:
        """Offset of new memory."""
        self.used += num_bytes
        return self.used - num_bytes

    def address(self, offset: int) -> str:
        """Operand of ``base + offset``."""
        name = f"%{self.f.b.fresh('at')}"
        self.f.b.line(f"{name} = getelementptr inbounds i8, ptr {self.base}, i64 {offset}")
        return name

    def put(self, offset: int, typed: str) -> None:
        """Store ``"i64 7"`` at an offset."""
        self.f.b.line(f"store {typed}, ptr {self.address(offset)}, align 4")


def _call_tensors(f: MemoryEmitter, call: Call, callee: str) -> None:
    """Build the tensors and the argument list, call, and return where that failed."""
    b, count = f.b, len(call.args)
    tensors = [a for a in call.args if isinstance(a, Buffer)]
    stack = _Stack(f, ANY_BYTES * count + sum(_TENSOR_BYTES + 16 * len(t.shape) for t in tensors))
    start = stack.reserve(ANY_BYTES * count)
    for i, arg in enumerate(call.args):
        at = start + ANY_BYTES * i
        if isinstance(arg, Buffer):
            kind, word = _ANY_TENSOR, f"ptr {_tensor(f, stack, arg)}"
        else:
            kind, word = _number(f, f.value(arg))
        stack.put(at, f"i64 {kind}")  # the type index and its padding
        stack.put(at + 8, word)
    name = _name_text(f, call.extern)
    b.declares.setdefault(CALL_TENSORS, f"declare dso_local i32 @{CALL_TENSORS}(ptr, ptr, i32, ptr)")
    status, failed = f"%{b.fresh('status')}", f"%{b.fresh('failed')}"
    b.line(f"{status} = call i32 @{CALL_TENSORS}(ptr {callee}, ptr {stack.base}, i32 {count}, ptr {name})")
    b.line(f"{failed} = icmp ne i32 {status}, 0")
    stop, go_on = b.fresh("stop"), b.fresh("done")
    b.line(f"br i1 {failed}, label %{stop}, label %{go_on}")
    b.label(stop)
    b.line(f"ret i32 {status}")
    b.label(go_on)


def _number(f: MemoryEmitter, value: Value) -> tuple[int, str]:
    """Type index and payload of a scalar: i64 or f64."""
    text, kind = f.b.use(value), _LLVM_TYPES[value.dtype.name]
    wide, op = ("double", "fpext") if value.dtype.is_float else ("i64", "sext")
    if kind != wide:
        name = f"%{f.b.fresh('wide')}"
        f.b.line(f"{name} = {op} {kind} {text} to {wide}")
        text = name
    return (_ANY_FLOAT if value.dtype.is_float else _ANY_INT), f"{wide} {text}"


def _tensor(f: MemoryEmitter, stack: _Stack, buffer: Buffer) -> str:
    """Address of a DLTensor over a buffer."""
    rank = len(buffer.shape)
    at = stack.reserve(_TENSOR_BYTES)
    shape = stack.reserve(8 * rank)
    strides = stack.reserve(8 * rank)
    for i, dim in enumerate(buffer.shape):
        stack.put(shape + 8 * i, f"i64 {_dim(f, dim)}")
        stack.put(strides + 8 * i, f"i64 {_dim(f, product(buffer.shape[i + 1 :]))}")
    stack.put(at + _DATA, f"ptr {f.slot(buffer).pointer}")
    stack.put(at + _DEVICE, f"i64 {_DL_CPU}")
    stack.put(at + _NDIM, f"i32 {rank}")
    stack.put(at + _DTYPE, f"i32 {dtype_word(buffer.dtype)}")
    stack.put(at + _SHAPE, f"ptr {stack.address(shape)}")
    stack.put(at + _STRIDES, f"ptr {stack.address(strides)}")
    stack.put(at + _OFFSET, "i64 0")
    return stack.address(at)


def _dim(f: MemoryEmitter, dim: Dim) -> str:
    return f.b.use(index.dim_value(f.b, dim, f.dim))


def _name_text(f: MemoryEmitter, extern: str) -> str:
    """The extern's name as a C string of the module."""
    data = extern.encode() + b"\0"
    name, text = f'@"name:{extern}"', "".join(f"\\{c:02X}" for c in data)
    f.b.declares.setdefault(name, f'{name} = private unnamed_addr constant [{len(data)} x i8] c"{text}"')
    return name
