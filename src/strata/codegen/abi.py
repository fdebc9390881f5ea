"""The tvm-ffi calling convention: argument checks and wrappers around the emitted kernels.

``int f(void* self, const TVMFFIAny* args, int32_t num_args, TVMFFIAny* result)``; a ``TVMFFIAny`` is 16
bytes: an i32 type index, padding, and 8 bytes of value. An argument is a ``DLTensor*``, a tensor object (a
``DLTensor`` after a header of 24 bytes) or an integer (tvm/ffi/c_api.h, dlpack/dlpack.h).

The checks are not generated per function. A *descriptor* (a constant, built by :func:`descriptor`) says what
each argument must be, and one native function walks it::

    i32 strata_bind(ptr descriptor, ptr args, i32 num_args, ptr pointers, ptr dims)

It writes the data pointer of every tensor and the value of every symbolic dim (read off the first shape that
has the dim as a whole entry) and returns 0, or raises and returns -1. Messages are templates in the image
whose control characters stand for names, types and numbers (``codegen.bind``).

Descriptor, 8-byte words; names are the byte offsets below, texts and tables are byte offsets from its start::

    header  NAME, NUM_ARGS, NUM_DIMS, ARG_TABLE, DIM_TABLE, MIN_COUNT, MAX_COUNT, COUNT_TEXT
    arg     NAME, TYPE_TEXT, DTYPE, NDIM, SHAPE, ALIGN, AT_LEAST, TABLE_READS        (64 bytes each)
    shape   KIND, VALUE per entry                          constant, index of a dim, or offset of a polynomial
    poly    number of terms, then per term: coefficient, number of dims, their indices
    reads   number, then per read: word of the i64 tensor, index of the dim that it holds
    dim     NAME, RANGE_TEXT, LO, HI, MULTIPLE             (40 bytes each)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from strata.core.dims import Dim, DimExpr, SymDim
from strata.core.dtypes import DType, Kind
from strata.core.errors import CodegenError
from strata.loop.nodes import Func

from .externs import can_fail

BIND = "strata_bind"
IMPL_SUFFIX = ".impl"

# DLDataType codes (dlpack/dlpack.h).
_DL_CODES = {Kind.INT: 0, Kind.UINT: 1, Kind.FLOAT: 2, Kind.BOOL: 6}
_DL_BFLOAT = 4

H_NAME, H_ARGS, H_DIMS, H_ARG_TABLE, H_DIM_TABLE, H_MIN, H_MAX, H_COUNT_TEXT = range(0, 64, 8)
A_NAME, A_TYPE, A_DTYPE, A_NDIM, A_SHAPE, A_ALIGN, A_AT_LEAST, A_READS = range(0, 64, 8)
ARG_BYTES = 64
D_NAME, D_RANGE, D_LO, D_HI, D_MULTIPLE = range(0, 40, 8)
DIM_BYTES = 40
CONST, SYMBOL, POLY = 0, 1, 2


@dataclass(frozen=True, slots=True)
class ArgSpec:
    """What one tensor argument must be.

    Attributes:
        name: For messages.
        dtype: Element type.
        shape: Dims.
        align_bytes: The data pointer is a multiple of this.
        at_least: Extents are lower bounds (workspace, tables).
        reads: ``(word, dim name)``: an i64 tensor that holds values of dims.
    """

    name: str
    dtype: DType
    shape: tuple[Dim, ...]
    align_bytes: int = 1
    at_least: bool = False
    reads: tuple[tuple[int, str], ...] = ()

    @property
    def text(self) -> str:
        """``"f32[n,256]"``."""
        sign = ">=" if self.at_least else ""
        return f"{self.dtype}[{','.join(sign + str(d) for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Signature:
    """Arguments of an exported function.

    Attributes:
        name: For messages.
        args: Tensors.
        dims: Symbolic dims in the order of the native dims array.
        int_dims: Whether the dims may follow the tensors as integers (they must where a shape does not tell).
    """

    name: str
    args: tuple[ArgSpec, ...]
    dims: tuple[SymDim, ...]
    int_dims: bool


def dtype_word(dtype: DType) -> int:
    """``DLDataType`` as the u32 in memory: code, bits, one lane."""
    code = _DL_BFLOAT if dtype.name == "bf16" else _DL_CODES[dtype.kind]
    return code | dtype.bits << 8 | 1 << 16


class _Blob:
    """Bytes under construction; ``text`` and ``words`` append and return the offset."""

    def __init__(self, reserved: int) -> None:
        self.data = bytearray(reserved)

    def words(self, values: Iterable[int]) -> int:
        self.data += bytes(-len(self.data) % 8)
        start = len(self.data)
        for value in values:
            self.data += struct.pack("<q", value)
        return start

    def text(self, value: str) -> int:
        start = len(self.data)
        self.data += value.encode().replace(b"\0", b"?") + b"\0"
        return start


def _count_text(signature: Signature, least: int, most: int) -> str:
    names = ", ".join(a.name for a in signature.args)
    dims = ", ".join(d.name for d in signature.dims)
    if not signature.int_dims or not signature.dims:
        return f"{most} ({names})"
    return f"{most} ({names}; {dims})" if least == most else f"{least} ({names}), or {most} with {dims}"


def _range_text(dim: SymDim) -> str:
    multiple = f", a multiple of {dim.multiple_of}" if dim.multiple_of > 1 else ""
    return f"{dim.lo}..{dim.hi}{multiple}"


def descriptor(signature: Signature) -> bytes:
    """The constant that :data:`BIND` walks; see the module docstring.

    Raises:
        CodegenError: a dim that nothing gives a value.
    """
    index = {d.name: i for i, d in enumerate(signature.dims)}
    whole = {d.name for a in signature.args for d in a.shape if isinstance(d, SymDim)}
    whole |= {name for a in signature.args for _, name in a.reads}
    unknown = sorted(set(index) - whole)
    if unknown and not signature.int_dims:
        raise CodegenError(f"{signature.name}: no argument gives the value of {', '.join(unknown)}")
    num_args, num_dims = len(signature.args), len(signature.dims)
    least = num_args + (num_dims if unknown else 0)
    most = num_args + (num_dims if signature.int_dims else 0)
    arg_table = 64
    dim_table = arg_table + ARG_BYTES * num_args
    blob = _Blob(dim_table + DIM_BYTES * num_dims)
    header = (blob.text(signature.name), num_args, num_dims, arg_table, dim_table, least, most)
    struct.pack_into("<8q", blob.data, 0, *header, blob.text(_count_text(signature, least, most)))
    for i, arg in enumerate(signature.args):
        reads = [len(arg.reads)] + [x for word, name in arg.reads for x in (word, index[name])]
        record = (blob.text(arg.name), blob.text(arg.text), dtype_word(arg.dtype), len(arg.shape))
        tail = (_shape_words(blob, arg.shape, index), arg.align_bytes, int(arg.at_least), blob.words(reads))
        struct.pack_into("<8q", blob.data, arg_table + ARG_BYTES * i, *record, *tail)
    for i, dim in enumerate(signature.dims):
        record = (blob.text(dim.name), blob.text(_range_text(dim)), dim.lo, dim.hi, dim.multiple_of)
        struct.pack_into("<5q", blob.data, dim_table + DIM_BYTES * i, *record)
    return bytes(blob.data)


def _shape_words(blob: _Blob, shape: Sequence[Dim], index: dict[str, int]) -> int:
    entries: list[int] = []
    for dim in shape:
        match dim:
            case int():
                entries += (CONST, dim)
            case SymDim():
                entries += (SYMBOL, index[dim.name])
            case DimExpr():
                words = [len(dim.terms)]
                for coefficient, syms in dim.terms:
                    words += [coefficient, len(syms), *(index[s.name] for s in syms)]
                entries += (POLY, blob.words(words))
    return blob.words(entries)


def constant(name: str, data: bytes) -> str:
    """LLVM text of an internal byte-array constant."""
    text = "".join(f"\\{b:02X}" for b in data)
    return f'@{name} = internal unnamed_addr constant [{len(data)} x i8] c"{text}", align 8\n'


def signature_of(func: Func) -> Signature:
    """Signature of a kernel: one tensor per parameter, then its dims as optional ints."""
    args = tuple(ArgSpec(p.name, p.dtype, p.shape, p.dtype.itemsize_bytes) for p in func.params)
    return Signature(func.name, args, func.dims, int_dims=True)


def wrapper_head(name: str, num_args: int, num_dims: int) -> str:
    """Start of an exported function: binds the arguments to ``%p0 ..`` (pointers) and ``%d0 ..`` (dims)."""
    lines = [
        f"define dso_local i32 @{name}(ptr %self, ptr %args, i32 %num_args, ptr %result) nounwind {{",
        f"  %pointers = alloca [{num_args} x ptr], align 16",
        f"  %dims = alloca [{num_dims} x i64], align 16",
        f"  %rc = call i32 @{BIND}(ptr @{name}.descriptor, ptr %args, i32 %num_args, ptr %pointers,"
        " ptr %dims)",
        "  %ok = icmp eq i32 %rc, 0",
        "  br i1 %ok, label %run, label %fail",
        "fail:",
        "  ret i32 -1",
        "run:",
    ]
    for prefix, count, type_ in (("p", num_args, "ptr"), ("d", num_dims, "i64")):
        base = "pointers" if prefix == "p" else "dims"
        for i in range(count):
            lines.append(f"  %{prefix}{i}.at = getelementptr i8, ptr %{base}, i64 {8 * i}")
            lines.append(f"  %{prefix}{i} = load {type_}, ptr %{prefix}{i}.at")
    return "\n".join(lines) + "\n"


# Returns None: type index 0, zero value.
WRAPPER_TAIL = """\
  store i64 0, ptr %result
  %result.value = getelementptr i8, ptr %result, i64 8
  store i64 0, ptr %result.value
  ret i32 0
}
"""


def emit_wrapper(func: Func) -> str:
    """LLVM text of the exported ``@<name>``: checks its arguments and calls ``@<name>.impl(ptr.., i64..)``.

    The text needs declarations of the impl and of :data:`BIND` in its module (:func:`emit_wrappers` has
    them).
    """
    signature = signature_of(func)
    passed = [f"ptr %p{i}" for i in range(len(func.params))] + [f"i64 %d{i}" for i in range(len(func.dims))]
    return (
        constant(f"{func.name}.descriptor", descriptor(signature))
        + wrapper_head(func.name, len(func.params), len(func.dims))
        + "\n".join([*call_impl(func, passed, "call"), WRAPPER_TAIL])
    )


def call_impl(func: Func, args: Sequence[str], label: str) -> list[str]:
    """Lines that call ``@<name>.impl``, and return -1 where it failed; ``label`` is new in the function."""
    call = f"@{func.name}{IMPL_SUFFIX}({', '.join(args)})"
    if not can_fail(func):
        return [f"  call void {call}"]
    return [
        f"  %{label}.status = call i32 {call}",
        f"  %{label}.failed = icmp ne i32 %{label}.status, 0",
        f"  br i1 %{label}.failed, label %{label}.stop, label %{label}.done",
        f"{label}.stop:",
        f"  ret i32 %{label}.status",
        f"{label}.done:",
    ]


def declare_impl(func: Func) -> str:
    """Declaration of a kernel's ``@<name>.impl``."""
    types = ["ptr"] * len(func.params) + ["i64"] * len(func.dims)
    result = "i32" if can_fail(func) else "void"
    return f"declare dso_local {result} @{func.name}{IMPL_SUFFIX}({', '.join(types)})\n"


def declare_bind() -> str:
    """Declaration of :data:`BIND`."""
    return f"declare dso_local i32 @{BIND}(ptr, ptr, i32, ptr, ptr)\n"


def emit_wrappers(funcs: Sequence[Func], triple: str) -> str:
    """LLVM text of a module with the wrappers of ``funcs``."""
    head = f'target triple = "{triple}"\n{declare_bind()}'
    return head + "".join(declare_impl(f) for f in funcs) + "".join(emit_wrapper(f) for f in funcs)
