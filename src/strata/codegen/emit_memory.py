"""Loads and stores: addresses, masks, gathers.

Addresses are linear forms over the row-major strides. They are added level by level, outermost first, so
that every ``getelementptr`` sits in the outermost loop in which its operand is known, and the constant part
comes last, where it becomes a displacement of the access.
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.dims import product
from strata.core.dtypes import DType, Kind, bool_, i32, i64
from strata.core.errors import CodegenError
from strata.loop.nodes import Buffer, Expr, Load, MemSpace, Store

from . import emit_index as index
from .emit_expr import ExprEmitter
from .emit_values import Lanes, Linear, Value, constant, splat, uniform
from .types import mangled, memory_type, ssa_type, vector_type

UNORDERED_FLUSH = "llvm.x86.clflushopt"  # every CPU with AVX-512 has it


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a buffer is: pointer operand and the level at which it is known."""

    buffer: Buffer
    pointer: str
    level: int


@dataclass(frozen=True, slots=True)
class Place:
    """Address of an access: a pointer, and for a gather the vector of element offsets from it.

    ``start`` is the element of the buffer that the pointer is at, where that is a constant.
    """

    pointer: str
    level: int
    lanes: int
    offsets: Value | None = None
    same: bool = False
    start: int | None = None


def _int_range(dtype: DType) -> tuple[int | None, int | None]:
    """Range of a loaded integer; that of i64 says nothing."""
    if dtype.kind is Kind.INT and dtype.bits < 64:
        return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1
    if dtype.kind is Kind.UINT and dtype.bits < 64:
        return 0, (1 << dtype.bits) - 1
    return None, None


def _is_register_vector(buffer: Buffer, place: Place) -> bool:
    """Whether a masked access may touch all of its lanes: they are all in a buffer that nobody else sees.

    Then it is a plain one and a select, which LLVM keeps in registers.
    """
    if buffer.space is not MemSpace.REGISTER or place.offsets is not None or place.start is None:
        return False
    size = product(buffer.shape)
    assert isinstance(size, int)
    return 0 <= place.start <= size - (1 if place.same else place.lanes)


class MemoryEmitter(ExprEmitter):
    """Loads and stores of one LLVM function."""

    def slot(self, buffer: Buffer) -> Slot:
        """Where ``buffer`` is."""
        raise NotImplementedError

    # ------------------------------------------------------------------ addresses

    def place(self, buffer: Buffer, indices: tuple[Expr, ...], masked: bool) -> Place:
        """Address of ``buffer[indices]``."""
        offset: Value = constant(0, i64)
        lanes, vector, same = 1, None, False
        for position, expr in enumerate(indices):
            at = self.expr(expr)
            stride = index.dim_value(self.b, product(buffer.shape[position + 1 :]), self.dim)
            if at.lanes > 1:
                if position != len(indices) - 1:
                    raise CodegenError(
                        f"{self.where}: {buffer.name}: index {position} has {at.lanes} lanes; "
                        "expected a scalar: only the last index may be a vector"
                    )
                lanes = at.lanes
                at, vector, same = self._vector_index(at)
            if at is not None:
                offset = index.add(self.b, offset, index.mul(self.b, at, stride))
        pointer, level = self._pointer(self.slot(buffer), offset, masked or vector is not None)
        start = offset.offset if isinstance(offset, Linear) and not offset.terms else None
        return Place(pointer, level, lanes, vector, same, start)

    @staticmethod
    def _vector_index(at: Value) -> tuple[Value | None, Value | None, bool]:
        """Scalar part, vector of offsets (``None``: contiguous lanes), and whether all lanes are the same."""
        if isinstance(at, Lanes) and at.base is not None and at.stride in (0, 1):
            return at.base, None, at.stride == 0
        return None, at, False

    def _pointer(self, slot: Slot, offset: Value, may_be_outside: bool) -> tuple[str, int]:
        b, element = self.b, memory_type(slot.buffer.dtype)
        text, level = slot.pointer, slot.level
        # An access that a mask switches off may have an address outside the buffer: no "inbounds" then.
        code = "getelementptr" if may_be_outside else "getelementptr inbounds"
        assert isinstance(offset, Linear)
        for at in sorted({t.atom.level for t in offset.terms}):
            part = index.linear([t for t in offset.terms if t.atom.level == at], 0, None, None)
            level = max(level, at)
            text = b.pure_text(f"{code} {element}, ptr {text}, i64 {b.use(part)}", level)
        if offset.offset:
            text = b.pure_text(f"{code} {element}, ptr {text}, i64 {offset.offset}", level)
        return text, level

    def _lane_pointers(self, place: Place, dtype: DType, lanes: int) -> Value:
        """A vector of addresses."""
        b, element, kind = self.b, memory_type(dtype), f"<{lanes} x ptr>"
        if place.offsets is None:
            one = b.pure_text(f"insertelement {kind} poison, ptr {place.pointer}, i64 0", place.level)
            zeros = f"<{lanes} x i32> zeroinitializer"
            text = b.pure_text(f"shufflevector {kind} {one}, {kind} poison, {zeros}", place.level)
            return Value(i64, lanes, text, place.level)
        offsets = self.b.use(place.offsets)
        level = max(place.level, place.offsets.level)
        code = f"getelementptr {element}, ptr {place.pointer}, <{lanes} x i64> {offsets}"
        return Value(i64, lanes, b.pure_text(code, level), level)

    # ------------------------------------------------------------------ masks

    def _mask(self, expr: Expr | None, lanes: int) -> Value | None:
        """The mask of an access; ``None`` if it is true."""
        if expr is None:
            return None
        mask = self.expr(expr)
        one = uniform(mask)
        if one is not None and one.const is True:
            return None
        return splat(mask, lanes) if mask.lanes == 1 else mask

    # ------------------------------------------------------------------ loads

    def load(self, load: Load) -> Value:
        """``buffer[indices]``; lanes that the mask switches off are 0."""
        buffer = load.buffer
        lanes = load.lanes
        mask = self._mask(load.mask, lanes)
        one = None if mask is None else uniform(mask)
        if one is not None and one.const is False:
            return splat(constant(False if buffer.dtype == bool_ else 0, buffer.dtype), lanes)
        place = self.place(buffer, load.indices, mask is not None)
        if mask is not None and _is_register_vector(buffer, place):
            zero = splat(constant(0, buffer.dtype), lanes)
            return self.select(mask, self._plain_load(place, buffer.dtype, lanes), zero)
        if place.same and (mask is None or one is not None):
            scalar = Place(place.pointer, place.level, 1)
            return splat(self._load_at(scalar, buffer.dtype, 1, one), lanes)
        return self._load_at(place, buffer.dtype, lanes, mask)

    def prefetch(self, load: Load, level: int) -> Value:
        """Bring what a load would read into the cache of level 1 or 2; 0."""
        self.fetch(self.place(load.buffer, load.indices, masked=True).pointer, level)
        return constant(0, i32)

    def fetch(self, pointer: str, level: int) -> None:
        """Bring a cache line into the cache of level 1 or 2."""
        self.b.declares["llvm.prefetch.p0"] = "declare void @llvm.prefetch.p0(ptr, i32, i32, i32)"
        locality = 4 - level  # 3 for level 1
        self.b.line(f"call void @llvm.prefetch.p0(ptr {pointer}, i32 0, i32 {locality}, i32 1)")  # read, data

    def evict(self, load: Load) -> Value:
        """Take the cache line of what a load would read out of all caches; 0."""
        if self.target.arch != "x86_64":
            return constant(0, i32)
        place = self.place(load.buffer, load.indices, masked=False)
        symbol = UNORDERED_FLUSH if self.target.has("avx512f") else "llvm.x86.sse2.clflush"
        self.b.declare(symbol, "void", ("ptr",))
        self.b.line(f"call void @{symbol}(ptr {place.pointer})")
        return constant(0, i32)

    def _load_at(self, place: Place, dtype: DType, lanes: int, mask: Value | None) -> Value:
        if lanes == 1:
            return (
                self._plain_load(place, dtype, 1) if mask is None else self._guarded_load(place, dtype, mask)
            )
        if place.offsets is not None or place.same:
            return self._gather(place, dtype, lanes, mask)
        if mask is None:
            return self._plain_load(place, dtype, lanes)
        kind, bits = memory_type(dtype, lanes), self.b.use(mask)
        symbol = f"llvm.masked.load.{mangled(kind)}.p0"
        self.b.declare(symbol, kind, ("ptr", f"<{lanes} x i1>", kind))
        pointer = f"ptr align {dtype.itemsize_bytes} {place.pointer}"
        code = f"call {kind} @{symbol}({pointer}, <{lanes} x i1> {bits}, {kind} zeroinitializer)"
        return self._loaded(code, dtype, lanes)

    def _loaded(self, code: str, dtype: DType, lanes: int) -> Value:
        """Result of the load instruction ``code`` as an SSA value (bool: a byte that is not 0)."""
        if dtype != bool_:
            return self.b.effect(dtype, lanes, code, *_int_range(dtype))
        byte = self.b.effect(bool_, lanes, code)
        kind = memory_type(bool_, lanes)
        zero = "0" if lanes == 1 else "zeroinitializer"
        return self.b.pure(bool_, lanes, f"icmp ne {kind} {{}}, {zero}", byte)

    def _plain_load(self, place: Place, dtype: DType, lanes: int) -> Value:
        if place.same or place.offsets is not None:
            return self._load_at(place, dtype, lanes, None)
        code = f"load {memory_type(dtype, lanes)}, ptr {place.pointer}, align {dtype.itemsize_bytes}"
        return self._loaded(code, dtype, lanes)

    def _guarded_load(self, place: Place, dtype: DType, mask: Value) -> Value:
        """A scalar load behind a branch."""
        b, kind = self.b, memory_type(dtype)
        test = b.use(mask)
        before, inside, after = b.region.block, b.fresh("load"), b.fresh("after")
        b.line(f"br i1 {test}, label %{inside}, label %{after}")
        b.label(inside)
        name = f"%{b.fresh()}"
        b.line(f"{name} = load {kind}, ptr {place.pointer}, align {dtype.itemsize_bytes}")
        b.line(f"br label %{after}")
        b.label(after)
        zero = "0x0000000000000000" if kind in ("float", "double") else "0xH0000" if kind == "half" else "0"
        return self._loaded(f"phi {kind} [ {name}, %{inside} ], [ {zero}, %{before} ]", dtype, 1)

    def _gather(self, place: Place, dtype: DType, lanes: int, mask: Value | None) -> Value:
        kind, pointers = memory_type(dtype, lanes), self._lane_pointers(place, dtype, lanes)
        bits = "splat (i1 true)" if mask is None else self.b.use(mask)
        symbol = f"llvm.masked.gather.{mangled(kind)}.v{lanes}p0"
        self.b.declare(symbol, kind, (f"<{lanes} x ptr>", f"<{lanes} x i1>", kind))
        where = f"<{lanes} x ptr> align {dtype.itemsize_bytes} {pointers.text}"
        return self._loaded(
            f"call {kind} @{symbol}({where}, <{lanes} x i1> {bits}, {kind} zeroinitializer)", dtype, lanes
        )

    # ------------------------------------------------------------------ stores

    def store(self, store: Store) -> None:
        """``buffer[indices] = value`` in the lanes that the mask lets through."""
        self._memo.clear()
        buffer = store.buffer
        value = self.expr(store.value)
        lanes = store.indices[-1].lanes if store.indices else 1
        mask = self._mask(store.mask, lanes)
        one = None if mask is None else uniform(mask)
        if one is not None and one.const is False:
            return
        place = self.place(buffer, store.indices, mask is not None)
        if mask is not None and _is_register_vector(buffer, place):
            value, mask = self.select(mask, value, self._plain_load(place, buffer.dtype, lanes)), None
        self._store_at(place, buffer.dtype, value, mask)

    def _store_at(self, place: Place, dtype: DType, value: Value, mask: Value | None) -> None:
        b, lanes, kind = self.b, value.lanes, memory_type(dtype, value.lanes)
        text = b.use(value)
        if dtype == bool_:
            text = b.pure_text(f"zext {ssa_type(bool_, lanes)} {text} to {kind}", value.level)
        align = dtype.itemsize_bytes
        if place.offsets is not None or place.same:
            self._scatter(place, dtype, text, lanes, mask)
        elif mask is None:
            b.line(f"store {kind} {text}, ptr {place.pointer}, align {align}")
        elif lanes == 1:
            inside, after, test = b.fresh("store"), b.fresh("after"), b.use(mask)
            b.line(f"br i1 {test}, label %{inside}, label %{after}")
            b.label(inside)
            b.line(f"store {kind} {text}, ptr {place.pointer}, align {align}")
            b.line(f"br label %{after}")
            b.label(after)
        else:
            symbol, bits = f"llvm.masked.store.{mangled(kind)}.p0", f"<{lanes} x i1>"
            b.declare(symbol, "void", (kind, "ptr", bits))
            where = f"ptr align {align} {place.pointer}"
            b.line(f"call void @{symbol}({kind} {text}, {where}, {bits} {b.use(mask)})")

    def _scatter(self, place: Place, dtype: DType, text: str, lanes: int, mask: Value | None) -> None:
        kind, pointers = memory_type(dtype, lanes), self._lane_pointers(place, dtype, lanes)
        bits = "splat (i1 true)" if mask is None else self.b.use(mask)
        symbol = f"llvm.masked.scatter.{mangled(kind)}.v{lanes}p0"
        many = vector_type("ptr", lanes)
        self.b.declare(symbol, "void", (kind, many, f"<{lanes} x i1>"))
        where = f"{many} align {dtype.itemsize_bytes} {pointers.text}"
        self.b.line(f"call void @{symbol}({kind} {text}, {where}, <{lanes} x i1> {bits})")
