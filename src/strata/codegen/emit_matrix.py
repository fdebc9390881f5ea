"""Loops that the machine's matrix unit runs (note ``matrix``): Intel's AMX.

A tile register holds 16 rows of 64 bytes; ``tdpbf16ps`` and ``tdpbsud`` add the product of two of them to a
third one. Around the loop the sums go from their buffer into tile registers and back; in it every nest of
``rows x groups`` dot products is one instruction, and operands that several nests share are loaded once::

    for k in K with matrix=1:                            tileloadd sums            4 of 16 x 16
      nest(0, 0); nest(0, 1); nest(1, 0); nest(1, 1)     for k in K:
                                                           tileloadd x0; tileloadd w0; tdpbf16ps ...
                                                         tilestored sums

Where rows of an operand are clamped, so that they may not be a constant distance apart (the last tile of a
matrix), they are copied into a tile in memory first: the loop is emitted twice, behind a test.
``loop.matrix`` says what the nests look like; without a matrix unit they run as the loops that they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from strata.core.dims import product
from strata.core.dtypes import DType, f32, i64
from strata.loop.build import add
from strata.loop.matrix import ROW_BYTES, ROWS, Nest, begins_at_zero, nests_of, row_distance
from strata.loop.nodes import PREFETCH, Alloc, Const, Expr, For, Load, Var
from strata.loop.nodes import index as const_index
from strata.loop.rewrite import free_vars, substitute
from strata.target import Target

from . import emit_index as index
from .emit_values import TRUE, Value, constant

if TYPE_CHECKING:
    from .emit import FuncEmitter

# Tile registers: four of sums, two of rows of x, two of groups of w.
OPERANDS = {"x": (4, 5), "w": (6, 7)}
# Palette 1; 64 bytes and 16 rows for each of the eight registers (Intel SDM, "TILECFG"), as words.
_CONFIG = (1, 0, 0x0040004000400040, 0x0040004000400040, 0, 0, 0x1010101010101010, 0)


def has_matrix_unit(target: Target, sums: DType) -> bool:
    """Whether the target multiplies tiles whose products have sums of this dtype."""
    return target.has_matrix_bf16 if sums is f32 else target.has_matrix_int8


def emit_matrix(f: FuncEmitter, loop: For, extent: Value) -> bool:
    """Emit the loop at the end of the innermost region; ``False`` if the target has no unit for it."""
    nests = nests_of(loop)
    if not has_matrix_unit(f.target, nests[0].acc.dtype):
        return False
    _configure(f)
    unclamped = TRUE
    for nest in nests:
        unclamped = _both(f, unclamped, _rows_in_line(f, nest))
    if unclamped.const is not None:
        _Loop(f, loop, nests).emit(extent, copies=not unclamped.const)
        return True
    b = f.b
    test = b.use(unclamped)
    then, orelse, after = (b.fresh(n) for n in ("inline", "clamped", "after"))
    parts = []
    for name, copies in ((then, False), (orelse, True)):
        b.open(name)
        b.label(name)
        _Loop(f, loop, nests).emit(extent, copies)
        b.line(f"br label %{after}")
        parts.append(b.close())
    b.line(f"br i1 {test}, label %{then}, label %{orelse}")
    for part in parts:
        b.region.lines.extend(part.lines)
    b.label(after)
    return True


def note_zeros(f: FuncEmitter, alloc: Alloc) -> None:
    """Tile registers are zeroed by an instruction: nobody needs to store zeros and to load them."""
    found = begins_at_zero(alloc)
    if found is not None and has_matrix_unit(f.target, alloc.buffer.dtype):
        loop, before = found
        f.zeroed.add(id(loop))
        f.needless.update(map(id, before))


def _configure(f: FuncEmitter) -> None:
    """Shapes of the tile registers, once per function, at its entry; at its end they are given up."""
    if f.uses_matrix_unit:
        return
    f.uses_matrix_unit = True
    slot = f.b.alloca("[8 x i64]", 64)
    for k, word in enumerate(_CONFIG):
        place = f"{slot}.{k}"
        f.b.allocas.append(f"  {place} = getelementptr inbounds i64, ptr {slot}, i64 {k}")
        f.b.allocas.append(f"  store i64 {word}, ptr {place}, align 8")
    f.b.declare("llvm.x86.ldtilecfg", "void", ("ptr",))
    f.b.allocas.append(f"  call void @llvm.x86.ldtilecfg(ptr {slot})")


def release(f: FuncEmitter) -> None:
    """Give the tile registers up, so that switching threads need not save them."""
    f.b.declare("llvm.x86.tilerelease", "void", ())
    f.b.line("call void @llvm.x86.tilerelease()")


def _both(f: FuncEmitter, x: Value, y: Value) -> Value:
    for this, other in ((x, y), (y, x)):
        if this.const is not None:
            return other if this.const else this
    return f.b.pure(x.dtype, 1, "and i1 {}, {}", x, y)


def _rows_in_line(f: FuncEmitter, nest: Nest) -> Value:
    """Whether the last row of the shared operand is as far from the first as its number says."""
    row = next((i for i in nest.x.indices if nest.row in free_vars(i)), None)
    if row is None:
        return constant(False, TRUE.dtype)
    first, last = (f.value(substitute(row, {nest.row: const_index(r)})) for r in (0, ROWS - 1))
    distance = index.add(f.b, last, index.scale(f.b, first, -1))
    if distance.const is not None:
        return constant(distance.const == ROWS - 1, TRUE.dtype)
    return f.b.pure(TRUE.dtype, 1, f"icmp eq i64 {{}}, {ROWS - 1}", distance)


@dataclass
class _Loop:
    """The loop, with or without copies of clamped rows.

    Attributes:
        f: Where it goes.
        loop: The loop.
        nests: Its nests.
        sums: Tile register of the sums at an address.
        held: Register of an operand, the least recently loaded first, by kind (:data:`OPERANDS`) and address.
    """

    f: FuncEmitter
    loop: For
    nests: list[Nest]
    sums: dict[str, int] = field(default_factory=dict)
    held: dict[tuple[str, str], int] = field(default_factory=dict)

    def emit(self, extent: Value, copies: bool) -> None:
        """Load the sums, loop, store the sums."""
        f = self.f
        strides = {}
        for nest in self.nests:
            place, stride = self._address(nest.acc, nest, nest.row)
            if place not in self.sums:
                self.sums[place] = len(self.sums)
                strides[place] = stride
                if id(self.loop) in f.zeroed:
                    f.b.declare("llvm.x86.tilezero", "void", ("i8 immarg",))
                    f.b.line(f"call void @llvm.x86.tilezero(i8 {self.sums[place]})")
                else:
                    self._tile("tileloadd64", self.sums[place], place, stride)
        stay = not copies and self._operands_stay()
        f.counted(self.loop, constant(0, i64), extent, lambda: self._body(copies, stay))
        for place, register in self.sums.items():
            self._tile("tilestored64", register, place, strides[place])

    def _operands_stay(self) -> bool:
        """Whether operands are the same in every iteration and fit into registers; they are loaded then."""
        loads = [("x", n, n.x, n.row) for n in self.nests] + [("w", n, n.w, n.group) for n in self.nests]
        if any(self.loop.var in free_vars(i) for _, _, load, _ in loads for i in load.indices):
            return False
        places = {(kind, self._address(load, n, rows)[0]) for kind, n, load, rows in loads}
        if any(sum(k == kind for k, _ in places) > len(OPERANDS[kind]) for kind in OPERANDS):
            return False
        for kind, nest, load, rows in loads:
            self._operand(kind, nest, load, rows)
        return True

    def _body(self, copies: bool, stay: bool) -> None:
        if not stay:
            self.held.clear()
        ahead = [(place, level) for level in PREFETCH for place in self._ahead(level, copies)]
        share = -(-len(ahead) // len(self.nests))
        for number, nest in enumerate(self.nests):
            acc, _ = self._address(nest.acc, nest, nest.row)
            x = self._copied(nest) if copies else self._operand("x", nest, nest.x, nest.row)
            w = self._operand("w", nest, nest.w, nest.group)
            code = "llvm.x86.tdpbf16ps" if nest.acc.dtype is f32 else "llvm.x86.tdpbsud"
            self.f.b.declares.setdefault(code, f"declare void @{code}(i8 immarg, i8 immarg, i8 immarg)")
            self.f.b.line(f"call void @{code}(i8 {self.sums[acc]}, i8 {x}, i8 {w})")
            for place, level in ahead[number * share : (number + 1) * share]:
                self.f.fetch(place, level)

    def _ahead(self, level: int, copies: bool) -> list[str]:
        """Addresses of the rows of tiles that the loop's notes want in the cache of this level."""
        notes, found = dict(self.loop.notes), dict[str, list[str]]()
        for nest in self.nests:
            for load, rows in ((nest.x, nest.row), (nest.w, nest.group)):
                distance = notes.get(PREFETCH[level] + load.buffer.name)
                if isinstance(distance, int) and not (copies and load is nest.x):
                    place, stride = self._address(load, nest, rows, ahead=distance)
                    found.setdefault(place, [self._row(place, r, stride) for r in range(ROWS)])
        return [row for tile in found.values() for row in tile]

    def _row(self, place: str, number: int, stride: str) -> str:
        """Address of a row of the tile at ``place``."""
        b = self.f.b
        offset = b.pure_text(f"mul i64 {stride}, {number}", b.level)
        return b.pure_text(f"getelementptr i8, ptr {place}, i64 {offset}", b.level)

    def _operand(self, kind: str, nest: Nest, load: Load, rows: Var) -> int:
        """Register that holds an operand; ``rows``: the loop whose iterations are its rows."""
        place, stride = self._address(load, nest, rows)
        if (kind, place) not in self.held:
            self._tile("tileloadd64", self._register(kind, place), place, stride)
        return self.held[kind, place]

    def _copied(self, nest: Nest) -> int:
        """The same for a shared operand whose rows are clamped, by way of a copy."""
        b = self.f.b
        places = [self._address(nest.x, nest, nest.row, r)[0] for r in range(ROWS)]
        key = " ".join(places)
        if ("x", key) not in self.held:
            copy = b.alloca(f"[{ROWS * ROW_BYTES} x i8]", ROW_BYTES)
            for r, place in enumerate(places):
                row, offset = f"%{b.fresh()}", r * ROW_BYTES
                to = b.pure_text(f"getelementptr i8, ptr {copy}, i64 {offset}", 0)
                b.line(f"{row} = load <16 x i32>, ptr {place}, align 1")
                b.line(f"store <16 x i32> {row}, ptr {to}, align {ROW_BYTES}")
            self._tile("tileloadd64", self._register("x", key), copy, str(ROW_BYTES))
        return self.held["x", key]

    def _register(self, kind: str, place: str) -> int:
        """A register for another operand: a free one, or the one that was loaded first."""
        mine = [key for key in self.held if key[0] == kind]
        free = set(OPERANDS[kind]) - {self.held[key] for key in mine}
        register = min(free) if free else self.held.pop(mine[0])
        self.held[kind, place] = register
        return register

    def _tile(self, code: str, register: int, place: str, stride: str) -> None:
        symbol = f"llvm.x86.{code}"
        self.f.b.declares.setdefault(symbol, f"declare void @{symbol}(i8 immarg, ptr, i64)")
        self.f.b.line(f"call void @{symbol}(i8 {register}, ptr {place}, i64 {stride})")

    def _address(self, load: Load, nest: Nest, rows: Var, first: int = 0, ahead: int = 0) -> tuple[str, str]:
        """Address of a tile's row ``first``, so many iterations ahead, and the distance of rows in bytes."""
        f, var = self.f, self.loop.var
        at: dict[Var, Expr] = {nest.row: const_index(first), nest.group: const_index(0)}
        *outer, last = load.indices
        pieces = 0
        if outer and row_distance(load, rows) and isinstance(self.loop.extent, Const):
            # Rows of a piece of memory: behind its end comes another array, and then the next piece.
            pieces, ahead = divmod(ahead, int(self.loop.extent.value))
            outer[-1] = add(outer[-1], pieces)
        if ahead:
            at[var] = add(var, ahead)
        f.forget()
        # What is fetched ahead may lie outside of the buffer.
        is_outside = pieces + ahead > 0
        place = f.place(load.buffer, tuple(substitute(i, at) for i in (*outer, last)), masked=is_outside)
        dim = next((k for k, i in enumerate(load.indices) if rows in free_vars(i)), -1)
        if dim < 0:
            return place.pointer, "0"
        if dim == len(load.indices) - 1:
            return place.pointer, str(row_distance(load, rows) * load.dtype.itemsize_bytes)
        inner = index.dim_value(f.b, product(load.buffer.shape[dim + 1 :]), f.dim)
        return place.pointer, f.b.use(index.scale(f.b, inner, load.dtype.itemsize_bytes))
