"""The native argument check: ``strata_bind`` and the routines that write its messages.

``strata_bind`` walks the descriptor of a function (:mod:`strata.codegen.abi`) over the arguments of a call.
What does not fit is raised through tvm-ffi with a message built from a template; the control characters of a
template stand for names, types and numbers.
"""

from __future__ import annotations

from strata.runtime import pool as layout
from strata.runtime.image import ERROR_KIND

from .abi import (
    A_ALIGN,
    A_AT_LEAST,
    A_DTYPE,
    A_NAME,
    A_NDIM,
    A_READS,
    A_SHAPE,
    A_TYPE,
    ARG_BYTES,
    BIND,
    CONST,
    D_HI,
    D_LO,
    D_MULTIPLE,
    D_NAME,
    D_RANGE,
    DIM_BYTES,
    H_ARG_TABLE,
    H_ARGS,
    H_COUNT_TEXT,
    H_DIM_TABLE,
    H_DIMS,
    H_MAX,
    H_MIN,
    H_NAME,
    POLY,
    SYMBOL,
    constant,
)
from .native import NativeFunction, Value

# TVMFFIAny and type indices (tvm/ffi/c_api.h), DLTensor byte offsets and device (dlpack/dlpack.h).
_ANY_BYTES, _ANY_VALUE = 16, 8
_FFI_INT, _FFI_DLTENSOR, _FFI_TENSOR, _OBJECT_HEADER = 1, 7, 70, 24
_DL_DATA, _DL_DEVICE, _DL_NDIM, _DL_DTYPE, _DL_SHAPE, _DL_STRIDES, _DL_OFFSET = 0, 8, 16, 20, 24, 32, 40
_DL_CPU = 1
_UNBOUND = -1
_MESSAGE_BYTES = 1024
# Control characters of the templates.
_KERNEL, _INDEX, _ARG, _GOT, _EXPECTED, _NUMBER, _WHERE, _DIM, _RANGE, _COUNT = (chr(c) for c in range(1, 11))
_AT = f"{_KERNEL}: argument {_INDEX} ({_ARG}): "
_TEMPLATES = {
    "count": f"{_KERNEL}: got {_NUMBER} arguments; expected {_COUNT}",
    "kind": f"{_AT}got a value of tvm-ffi type {_NUMBER}; expected a tensor {_EXPECTED}",
    "device": f"{_AT}got a tensor on device type {_NUMBER}; expected CPU memory (device type 1)",
    "type": f"{_AT}got {_GOT}; expected {_EXPECTED}{_WHERE}",
    "strides": f"{_AT}got a strided {_GOT}; expected {_EXPECTED}, dense and row-major; make it contiguous",
    "null": f"{_AT}got {_GOT} with a null data pointer; expected data",
    "align": f"{_AT}got {_GOT} at an address that is no multiple of {_NUMBER}; copy it to aligned memory",
    "table": f"{_AT}got {_DIM} = {_NUMBER} in the table; expected the size of the other arguments{_WHERE}",
    "int": f"{_KERNEL}: argument {_INDEX} ({_DIM}): got a value of tvm-ffi type {_NUMBER}; expected an int",
    "dim": f"{_KERNEL}: argument {_INDEX} ({_DIM}): got {_NUMBER}; expected the size in the shapes{_WHERE}",
    "range": f"{_KERNEL}: got {_DIM} = {_NUMBER}; expected {_RANGE}",
}


def _put_text() -> NativeFunction:
    """``i64 strata_put_text(out, at, text)``: append a C string; returns the new end."""
    f = NativeFunction("strata_put_text", "i64", [("ptr", "out"), ("i64", "start"), ("ptr", "text")])
    at = f.local("i64", f.arg("start"))
    i = f.local("i64", 0)
    with f.forever():
        byte = f.load("i8", f.arg("text"), i.v)
        with f.if_(byte.eq(0)):
            f.ret(at.v)
        with f.if_(at.v >= _MESSAGE_BYTES - 1):
            f.ret(at.v)
        f.store(byte, f.arg("out"), at.v)
        at.set(at.v + 1)
        i.set(i.v + 1)
    return f


def _put_int() -> NativeFunction:
    """``i64 strata_put_int(out, at, value)``: append a decimal number; returns the new end."""
    f = NativeFunction("strata_put_int", "i64", [("ptr", "out"), ("i64", "start"), ("i64", "value")])
    digits = f.alloca(24)
    at = f.local("i64", 23)
    f.store(f.value(0, "i8"), digits, 23)
    negative = f.arg("value") < 0
    rest = f.local("i64", f.select(negative, f.value(0, "i64") - f.arg("value"), f.arg("value")))
    with f.forever() as done:
        at.set(at.v - 1)
        f.store((rest.v.urem(10) + ord("0")).convert("trunc", "i8"), digits, at.v)
        rest.set(rest.v.udiv(10))
        with f.if_(rest.v.eq(0)):
            f.leave(done)
    with f.if_(negative):
        at.set(at.v - 1)
        f.store(f.value(ord("-"), "i8"), digits, at.v)
    f.ret(_put(f, f.arg("out"), f.arg("start"), f.at(digits, at.v)))
    return f


def _put(f: NativeFunction, out: Value, at: Value, text: Value) -> Value:
    return f.call("i64", f.symbol("strata_put_text"), [out, at, text])


def _put_number(f: NativeFunction, out: Value, at: Value, number: Value) -> Value:
    return f.call("i64", f.symbol("strata_put_int"), [out, at, number])


# Names of DLPack type codes, 8 bytes each; the bits follow (not for bool).
_CODE_NAMES = b"".join(n.ljust(8, b"\0") for n in (b"i", b"u", b"f", b"handle", b"bf", b"complex", b"bool"))


def _put_type() -> NativeFunction:
    """``i64 strata_put_type(out, at, tensor)``: append ``f32[3,4]``; returns the new end."""
    f = NativeFunction("strata_put_type", "i64", [("ptr", "out"), ("i64", "start"), ("ptr", "tensor")])
    out, tensor = f.arg("out"), f.arg("tensor")
    at = f.local("i64", f.arg("start"))
    dtype = f.load("i32", tensor, _DL_DTYPE).convert("zext", "i64")
    code = dtype & 0xFF
    with f.if_(code < 7):
        at.set(_put(f, out, at.v, f.at(f.symbol("strata.codes"), code * 8)))
    with f.if_(code >= 7):
        at.set(_put(f, out, at.v, f.symbol("strata.code")))
        at.set(_put_number(f, out, at.v, code))
        at.set(_put(f, out, at.v, f.symbol("strata.times")))
    with f.if_(code.ne(6)):
        at.set(_put_number(f, out, at.v, (dtype >> 8) & 0xFF))
    with f.if_((dtype >> 16).ne(1)):
        at.set(_put(f, out, at.v, f.symbol("strata.times")))
        at.set(_put_number(f, out, at.v, dtype >> 16))
    at.set(_put(f, out, at.v, f.symbol("strata.open")))
    shape = f.load("ptr", tensor, _DL_SHAPE)
    with f.for_(f.load("i32", tensor, _DL_NDIM).convert("sext", "i64")) as i:
        with f.if_(i.ne(0)):
            at.set(_put(f, out, at.v, f.symbol("strata.comma")))
        at.set(_put_number(f, out, at.v, f.load("i64", shape, i * 8)))
    f.ret(_put(f, out, at.v, f.symbol("strata.close")))
    return f


def _put_where() -> NativeFunction:
    """``i64 strata_put_where(out, at, descriptor, dims)``: append `` where n = 4, k = 7``."""
    params = [("ptr", "out"), ("i64", "start"), ("ptr", "descriptor"), ("ptr", "dims")]
    f = NativeFunction("strata_put_where", "i64", params)
    out, desc = f.arg("out"), f.arg("descriptor")
    at = f.local("i64", f.arg("start"))
    first = f.local("i64", 1)
    records = f.at(desc, f.load("i64", desc, H_DIM_TABLE))
    with f.for_(f.load("i64", desc, H_DIMS)) as i:
        value = f.load("i64", f.arg("dims"), i * 8)
        with f.if_(value.ne(_UNBOUND)):
            lead = f.select(first.v.ne(0), f.symbol("strata.where"), f.symbol("strata.and"), "ptr")
            first.set(0)
            at.set(_put(f, out, at.v, lead))
            at.set(_put(f, out, at.v, f.at(desc, f.load("i64", f.at(records, i * DIM_BYTES), D_NAME))))
            at.set(_put(f, out, at.v, f.symbol("strata.equals")))
            at.set(_put_number(f, out, at.v, value))
    f.ret(at.v)
    return f


_FAIL_PARAMS = (
    ("ptr", "template"),
    ("ptr", "descriptor"),
    ("i64", "index"),  # of the argument
    ("ptr", "tensor"),
    ("i64", "number"),
    ("i64", "dim"),  # index of the dim
    ("ptr", "dims"),
)


def _fail() -> NativeFunction:
    """Fill in a template and raise it as an error; returns -1."""
    f = NativeFunction("strata_fail", "i32", _FAIL_PARAMS, "nounwind cold noinline")
    desc, template = f.arg("descriptor"), f.arg("template")
    out = f.alloca(_MESSAGE_BYTES)
    at = f.local("i64", 0)
    i = f.local("i64", 0)
    arg = f.at(desc, f.load("i64", desc, H_ARG_TABLE) + f.arg("index") * ARG_BYTES)
    dim = f.at(desc, f.load("i64", desc, H_DIM_TABLE) + f.arg("dim") * DIM_BYTES)
    sources = {_KERNEL: (desc, H_NAME), _COUNT: (desc, H_COUNT_TEXT), _ARG: (arg, A_NAME)}
    sources |= {_EXPECTED: (arg, A_TYPE), _DIM: (dim, D_NAME), _RANGE: (dim, D_RANGE)}
    with f.forever() as done:
        byte = f.load("i8", template, i.v)
        i.set(i.v + 1)
        with f.if_(byte.eq(0)):
            f.leave(done)
        for code, (base, field_at) in sources.items():
            with f.if_(byte.eq(ord(code))):
                at.set(_put(f, out, at.v, f.at(desc, f.load("i64", base, field_at))))
        for code, number in ((_INDEX, f.arg("index")), (_NUMBER, f.arg("number"))):
            with f.if_(byte.eq(ord(code))):
                at.set(_put_number(f, out, at.v, number))
        with f.if_(byte.eq(ord(_GOT))):
            at.set(f.call("i64", f.symbol("strata_put_type"), [out, at.v, f.arg("tensor")]))
        with f.if_(byte.eq(ord(_WHERE))):
            at.set(f.call("i64", f.symbol("strata_put_where"), [out, at.v, desc, f.arg("dims")]))
        with f.if_(byte >= 32), f.if_(at.v < _MESSAGE_BYTES - 1):
            f.store(byte, out, at.v)
            at.set(at.v + 1)
    f.store(f.value(0, "i8"), out, at.v)
    context = f.load("ptr", f.symbol("strata_context"))
    with f.if_(context.ne(0)):
        set_error = f.load("ptr", context, layout.CTX_SET_ERROR)
        f.call("void", set_error, [f.symbol("strata.error_kind"), out])
    f.ret(-1)
    return f


class _Binder:
    """Emits ``strata_bind``; the methods are its steps."""

    def __init__(self) -> None:
        params = [
            ("ptr", "descriptor"),
            ("ptr", "args"),
            ("i32", "num_args"),
            ("ptr", "pointers"),
            ("ptr", "dims"),
        ]
        self.f = f = NativeFunction(BIND, "i32", params)
        self.desc, self.dims = f.arg("descriptor"), f.arg("dims")
        self.zero, self.null = f.value(0, "i64"), f.value(0, "ptr")

    def fail_if(
        self,
        cond: Value,
        template: str,
        index: Value,
        tensor: Value | None = None,
        number: Value | None = None,
        dim: Value | None = None,
    ) -> None:
        """Raise ``template`` and return -1 where ``cond`` holds."""
        f = self.f
        with f.if_(cond):
            rest = [index, tensor or self.null, number or self.zero, dim or self.zero, self.dims]
            text = f.symbol(f"strata.message.{template}")
            f.ret(f.call("i32", f.symbol("strata_fail"), [text, self.desc, *rest]))

    def dim_slot(self, index: Value) -> Value:
        return self.f.at(self.dims, index * 8)

    def emit(self) -> NativeFunction:
        f, desc = self.f, self.desc
        num_args = f.load("i64", desc, H_ARGS)
        num_dims = f.load("i64", desc, H_DIMS)
        given = f.arg("num_args").convert("sext", "i64")
        with f.for_(num_dims) as i:
            f.store(f.value(_UNBOUND, "i64"), self.dim_slot(i))
        with f.if_(given.ne(f.load("i64", desc, H_MIN))):
            self.fail_if(given.ne(f.load("i64", desc, H_MAX)), "count", self.zero, number=given)
        arg_table = f.at(desc, f.load("i64", desc, H_ARG_TABLE))
        with f.for_(num_args) as i:
            self.bind_tensor(i, f.at(arg_table, i * ARG_BYTES))
        with f.if_(given > num_args), f.for_(num_dims) as i:
            self.bind_int(i, num_args + i)
        self.check_ranges(num_dims)
        with f.for_(num_args) as i:
            self.check_polynomials(i, f.at(arg_table, i * ARG_BYTES))
        f.ret(0)
        return f

    def tensor_at(self, i: Value) -> tuple[Value, Value]:
        """Type index (i64) and ``DLTensor*`` of argument i (garbage where it is no tensor)."""
        f = self.f
        any_ = f.at(f.arg("args"), i * _ANY_BYTES)
        kind = f.load("i32", any_).convert("sext", "i64")
        pointer = f.load("ptr", any_, _ANY_VALUE)
        return kind, f.select(kind.eq(_FFI_TENSOR), f.at(pointer, _OBJECT_HEADER), pointer, "ptr")

    def bind_tensor(self, i: Value, record: Value) -> None:
        f = self.f
        kind, tensor = self.tensor_at(i)
        with f.if_(kind.ne(_FFI_TENSOR)):
            self.fail_if(kind.ne(_FFI_DLTENSOR), "kind", i, number=kind)
        device = f.load("i32", tensor, _DL_DEVICE).convert("sext", "i64")
        self.fail_if(device.ne(_DL_CPU), "device", i, number=device)
        dtype = f.load("i32", tensor, _DL_DTYPE).convert("zext", "i64")
        ndim = f.load("i32", tensor, _DL_NDIM).convert("sext", "i64")
        self.fail_if(dtype.ne(f.load("i64", record, A_DTYPE)), "type", i, tensor)
        self.fail_if(ndim.ne(f.load("i64", record, A_NDIM)), "type", i, tensor)
        self.bind_shape(i, record, tensor, ndim)
        self.check_memory(i, record, tensor, ndim)

    def bind_shape(self, i: Value, record: Value, tensor: Value, ndim: Value) -> None:
        f = self.f
        entries = f.at(self.desc, f.load("i64", record, A_SHAPE))
        shape = f.load("ptr", tensor, _DL_SHAPE)
        at_least = f.load("i64", record, A_AT_LEAST)
        with f.for_(ndim) as d:
            extent = f.load("i64", shape, d * 8)
            kind = f.load("i64", entries, d * 16)
            value = f.load("i64", f.at(entries, d * 16), 8)
            with f.if_(kind.eq(CONST)):
                self.fail_if(extent < value, "type", i, tensor)
                with f.if_(at_least.eq(0)):
                    self.fail_if(extent.ne(value), "type", i, tensor)
            with f.if_(kind.eq(SYMBOL)):
                slot = self.dim_slot(value)
                with f.if_(f.load("i64", slot).eq(_UNBOUND)):
                    f.store(extent, slot)
                self.fail_if(f.load("i64", slot).ne(extent), "type", i, tensor)

    def check_memory(self, i: Value, record: Value, tensor: Value, ndim: Value) -> None:
        """Dense, not null, aligned; writes the pointer and reads the dims that the tensor holds."""
        f = self.f
        shape, strides = f.load("ptr", tensor, _DL_SHAPE), f.load("ptr", tensor, _DL_STRIDES)
        size, dense = f.local("i64", 1), f.local("i64", 1)
        left = f.local("i64", ndim)
        with f.while_(lambda: left.v > 0):
            left.set(left.v - 1)
            extent = f.load("i64", shape, left.v * 8)
            with f.if_(strides.ne(0)), f.if_(f.load("i64", strides, left.v * 8).ne(size.v)):
                dense.set(f.select(extent.eq(1), dense.v, 0))
            size.set(size.v * extent)
        data = f.at(f.load("ptr", tensor, _DL_DATA), f.load("i64", tensor, _DL_OFFSET))
        with f.if_(size.v.ne(0)):  # no element, nothing to read: strides and pointer do not matter
            self.fail_if(dense.v.eq(0), "strides", i, tensor)
            self.fail_if(data.eq(0), "null", i, tensor)
            align = f.load("i64", record, A_ALIGN)
            misplaced = data.convert("ptrtoint", "i64") & (align - 1)
            self.fail_if(misplaced.ne(0), "align", i, tensor, align)
        f.store(data, f.at(f.arg("pointers"), i * 8))
        reads = f.at(self.desc, f.load("i64", record, A_READS))
        with f.for_(f.load("i64", reads)) as k:
            pair = f.at(reads, k * 16 + 8)
            dim = f.load("i64", pair, 8)
            value = f.load("i64", data, f.load("i64", pair) * 8)
            slot = self.dim_slot(dim)
            with f.if_(f.load("i64", slot).eq(_UNBOUND)):
                f.store(value, slot)
            self.fail_if(f.load("i64", slot).ne(value), "table", i, tensor, value, dim)

    def bind_int(self, dim: Value, i: Value) -> None:
        f = self.f
        any_ = f.at(f.arg("args"), i * _ANY_BYTES)
        kind = f.load("i32", any_).convert("sext", "i64")
        self.fail_if(kind.ne(_FFI_INT), "int", i, number=kind, dim=dim)
        value = f.load("i64", any_, _ANY_VALUE)
        slot = self.dim_slot(dim)
        with f.if_(f.load("i64", slot).eq(_UNBOUND)):
            f.store(value, slot)
        self.fail_if(f.load("i64", slot).ne(value), "dim", i, number=value, dim=dim)

    def check_ranges(self, num_dims: Value) -> None:
        f = self.f
        records = f.at(self.desc, f.load("i64", self.desc, H_DIM_TABLE))
        with f.for_(num_dims) as i:
            record = f.at(records, i * DIM_BYTES)
            value = f.load("i64", self.dim_slot(i))
            self.fail_if(value < f.load("i64", record, D_LO), "range", self.zero, number=value, dim=i)
            self.fail_if(value > f.load("i64", record, D_HI), "range", self.zero, number=value, dim=i)
            rest = value.urem(f.load("i64", record, D_MULTIPLE))
            self.fail_if(rest.ne(0), "range", self.zero, number=value, dim=i)

    def check_polynomials(self, i: Value, record: Value) -> None:
        f = self.f
        entries = f.at(self.desc, f.load("i64", record, A_SHAPE))
        _, tensor = self.tensor_at(i)
        shape = f.load("ptr", tensor, _DL_SHAPE)
        at_least = f.load("i64", record, A_AT_LEAST)
        with f.for_(f.load("i64", record, A_NDIM)) as d:
            entry = f.at(entries, d * 16)
            with f.if_(f.load("i64", entry).eq(POLY)):
                want = self.polynomial(f.at(self.desc, f.load("i64", entry, 8)))
                extent = f.load("i64", shape, d * 8)
                self.fail_if(extent < want, "type", i, tensor)
                with f.if_(at_least.eq(0)):
                    self.fail_if(extent.ne(want), "type", i, tensor)

    def polynomial(self, words: Value) -> Value:
        f = self.f
        total, at = f.local("i64", 0), f.local("i64", 8)
        with f.for_(f.load("i64", words)):
            product = f.local("i64", f.load("i64", words, at.v))
            count = f.load("i64", words, at.v + 8)
            at.set(at.v + 16)
            with f.for_(count):
                product.set(product.v * f.load("i64", self.dim_slot(f.load("i64", words, at.v))))
                at.set(at.v + 8)
            total.set(total.v + product.v)
        return total.v


def emit_bind() -> str:
    """LLVM text of ``strata_bind`` and what it calls; needs ``@strata_context`` (``codegen.threads``)."""
    words = {"code": "code", "times": "x", "open": "[", "comma": ",", "close": "]", "where": " where "}
    words |= {"and": ", ", "equals": " = ", "error_kind": ERROR_KIND}
    words |= {f"message.{name}": text for name, text in _TEMPLATES.items()}
    constants = [constant(f"strata.{name}", text.encode() + b"\0") for name, text in words.items()]
    constants.append(constant("strata.codes", _CODE_NAMES))
    functions = [_put_text(), _put_int(), _put_type(), _put_where(), _fail(), _Binder().emit()]
    return "\n".join(constants + [f.text() for f in functions])
