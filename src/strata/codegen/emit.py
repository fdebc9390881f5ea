"""From a finalised loop function to LLVM text.

``emit_func(func, target)`` gives a module that defines::

    void @<name>.impl(ptr %p0, ..., ptr %pN, i64 %dim0, ..., i64 %dimM)    data pointers, then dims by name
    (i32, 0 when done, if it calls functions that can fail: :mod:`.externs`)
    void @<name>.par<k>(ptr %env, i64 %begin, i64 %end)                    the k-th PARALLEL loop, internal

and calls ``void @strata_parallel_for(ptr fn, ptr env, i64 n, i64 grain, i64 even)``. A PARALLEL loop becomes
a function of the values that it uses from outside (found while its body is emitted); ``.par<k>`` loads them
from the environment and calls it, so that inside they are ``noalias`` parameters like any other. PARALLEL
loops within PARALLEL loops run serially. Loops over thread blocks are PARALLEL ones here, loops over threads
and lanes serial.

UNROLL loops are expanded here, with the variable as a constant. REGISTER buffers are stack slots with
constant offsets, which LLVM's SROA pass turns into values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import assert_never

from strata.core.dims import SymDim
from strata.core.dtypes import i64
from strata.core.errors import CodegenError
from strata.loop import build
from strata.loop.nodes import (
    BLOCK_KINDS,
    EVEN,
    GRAIN,
    MATRIX,
    Alloc,
    Block,
    Buffer,
    Call,
    Const,
    Expr,
    For,
    ForKind,
    Func,
    If,
    Let,
    MemSpace,
    Seq,
    Stmt,
    Store,
    Var,
    index,
)
from strata.loop.rewrite import free_vars, has_load, walk_stmts
from strata.target import Target

from .emit_call import emit_call
from .emit_matrix import emit_matrix, note_zeros, release
from .emit_memory import UNORDERED_FLUSH, MemoryEmitter, Slot
from .emit_values import Builder, Linear, Value, constant, uniform
from .externs import can_fail
from .types import memory_type, ssa_type

PARALLEL_FOR = "strata_parallel_for"
_ON_THREADS = BLOCK_KINDS | {ForKind.PARALLEL}
LOCAL_ALIGN = 64


@dataclass(slots=True)
class ModuleText:
    """What the functions of one module share."""

    name: str
    target: Target
    declares: dict[str, str] = field(default_factory=dict)
    functions: list[str] = field(default_factory=list)
    num_parallel: int = 0


@dataclass(frozen=True, slots=True)
class Capture:
    """A value that a PARALLEL body takes from the function around it."""

    type: str
    outer: str
    inner: str
    attributes: str = ""


class FuncEmitter(MemoryEmitter):
    """Statements of one LLVM function.

    Args:
        module: The module that it belongs to.
        parent: For the body of a PARALLEL loop: the function that it was taken from.
    """

    def __init__(self, module: ModuleText, parent: FuncEmitter | None = None) -> None:
        super().__init__(module.name, Builder(module.declares), module.target)
        self.module = module
        self.parent = parent
        self.captures: list[Capture] = []
        self.uses_matrix_unit = False
        self.zeroed: set[int] = set()  # by identity: matrix loops whose sums begin at zero
        self.needless: set[int] = set()  # and statements that would store those zeros
        self._vars: dict[int, Value] = {}
        self._dims: dict[str, Value] = {}
        self._slots: dict[int, Slot] = {}

    # ------------------------------------------------------------------ names in scope

    def variable(self, var: Var) -> Value:
        """Value of a variable; one of an outer function is captured."""
        found = self._vars.get(var.uid)
        if found is None:
            if self.parent is None:
                raise CodegenError(f"{self.where}: variable {var.name} is used outside its scope")
            found = self._vars[var.uid] = self._capture(self.parent.variable(var))
        return found

    def dim(self, sym: SymDim) -> Value:
        """Value of a symbolic dim."""
        found = self._dims.get(sym.name)
        if found is None:
            if self.parent is None:
                known = ", ".join(self._dims) or "none"
                raise CodegenError(f"{self.where}: dim {sym.name} is in no parameter's shape; known: {known}")
            found = self._dims[sym.name] = self._capture(self.parent.dim(sym))
        return found

    def slot(self, buffer: Buffer) -> Slot:
        """Where a buffer is."""
        found = self._slots.get(buffer.uid)
        if found is None:
            if self.parent is None:
                raise CodegenError(f"{self.where}: buffer {buffer.name} is neither a parameter nor allocated")
            outer = self.parent.slot(buffer)
            name = self._captured("ptr", outer.pointer, " noalias")
            found = self._slots[buffer.uid] = Slot(buffer, name, 0)
        return found

    def _captured(self, type_text: str, outer: str, attributes: str = "") -> str:
        for known in self.captures:
            if known.outer == outer:
                return known.inner
        inner = f"%c{len(self.captures)}"
        self.captures.append(Capture(type_text, outer, inner, attributes))
        return inner

    def _capture(self, value: Value) -> Value:
        """A value of the parent as a value of this function (constants stay constants)."""
        assert self.parent is not None
        if value.const is not None:
            return constant(value.const, value.dtype)
        text = self.parent.b.use(value)
        inner = self._captured(ssa_type(value.dtype, value.lanes), text)
        return self.b.opaque(value.dtype, value.lanes, inner, 0, value.lo, value.hi)

    def bind_dim(self, sym: SymDim, text: str) -> None:
        """Bring a dim into scope."""
        self._dims[sym.name] = self.b.opaque(i64, 1, text, 0, sym.lo, sym.hi)

    def bind_buffer(self, buffer: Buffer, pointer: str) -> None:
        """Bring a buffer into scope."""
        self._slots[buffer.uid] = Slot(buffer, pointer, 0)

    # ------------------------------------------------------------------ statements

    def stmt(self, stmt: Stmt) -> None:
        """Emit a statement."""
        match stmt:
            case Seq():
                for inner in stmt.stmts:
                    if id(inner) not in self.needless:
                        self.stmt(inner)
            case Store():
                self.store(stmt)
            case Let():
                self._vars[stmt.var.uid] = self.value(stmt.value)
                self.stmt(stmt.body)
            case Alloc():
                self._alloc(stmt.buffer)
                note_zeros(self, stmt)
                self.stmt(stmt.body)
            case For():
                self._for(stmt)
            case If():
                self._if(stmt)
            case Call():
                if self.parent is not None:
                    raise CodegenError(f"{self.where}: call @{stmt.extern} is inside a parallel loop")
                emit_call(self, stmt)
            case Block():
                raise CodegenError(f"{self.where}: block {stmt.name} is left; finalize the schedule first")
            case _:
                assert_never(stmt)

    def _alloc(self, buffer: Buffer) -> None:
        """A stack slot in the entry block, one per buffer however often its loop body is unrolled."""
        if buffer.uid in self._slots:
            return
        elements = 1
        for dim in buffer.shape:
            if not isinstance(dim, int):
                raise CodegenError(
                    f"{self.where}: {buffer.space.value} {buffer.name}: got dim {dim}; expected constants"
                )
            elements *= dim
        if buffer.space is MemSpace.GLOBAL:
            raise CodegenError(
                f"{self.where}: buffer {buffer.name} is allocated as global; expected local or register"
            )
        pointer = self.b.alloca(f"[{max(1, elements)} x {memory_type(buffer.dtype)}]", LOCAL_ALIGN)
        self._slots[buffer.uid] = Slot(buffer, pointer, 0)

    def _if(self, stmt: If) -> None:
        cond = self.value(stmt.cond)
        one = uniform(cond)
        if one is None:
            raise CodegenError(f"{self.where}: if with a condition of {cond.lanes} lanes; expected a scalar")
        if one.const is not None:
            chosen = stmt.then if one.const else stmt.orelse
            if chosen is not None:
                self.stmt(chosen)
            return
        b = self.b
        test, names = b.use(one), [b.fresh(n) for n in ("then", "else", "after")]
        parts = []
        for name, body in ((names[0], stmt.then), (names[1], stmt.orelse)):
            b.open(name)
            b.label(name)
            if body is not None:
                self.stmt(body)
            b.line(f"br label %{names[2]}")
            parts.append(b.close())
        b.line(f"br i1 {test}, label %{names[0]}, label %{names[1]}")
        for part in parts:
            b.region.lines.extend(part.lines)
        b.label(names[2])

    # ------------------------------------------------------------------ loops

    def _for(self, loop: For) -> None:
        extent = self.value(loop.extent)
        if dict(loop.notes).get(MATRIX) and emit_matrix(self, loop, extent):
            return
        if extent.const is not None and extent.const <= 0:
            return
        if extent.const == 1:
            self._vars[loop.var.uid] = constant(0, i64)
            self.stmt(loop.body)
            return
        match loop.kind:
            case ForKind.UNROLL:
                if not isinstance(extent.const, int):
                    raise CodegenError(
                        f"{self.where}: unrolled loop {loop.var.name} has no constant extent; use serial"
                    )
                for k in range(extent.const):
                    self._vars[loop.var.uid] = constant(k, i64)
                    self.stmt(loop.body)
            case ForKind.VECTORIZE:
                raise CodegenError(
                    f"{self.where}: vectorized loop {loop.var.name} is left; finalize the schedule first"
                )
            case _ if self.parent is None and loop.kind in _ON_THREADS:
                self._parallel(loop, extent)
            case _:
                self.counted(loop, constant(0, i64), extent)

    def counted(self, loop: For, begin: Value, end: Value, body_of: Callable[[], None] | None = None) -> None:
        """``for var in begin .. end-1``: tested at the bottom, with a guard unless it surely runs.

        Args:
            loop: The loop.
            begin: First value of its variable.
            end: One past the last.
            body_of: Emits the body, if that is not the loop's own.
        """
        b = self.b
        first, last = b.use(begin), b.use(end)
        guard = ""
        if end.lo is None or begin.hi is None or end.lo <= begin.hi:
            level = max(begin.level, end.level)
            guard = b.pure_text(f"icmp slt i64 {first}, {last}", level)
        head, latch, after = (b.fresh(n) for n in ("loop", "latch", "after"))
        before, counter = b.region.block, f"%{b.fresh('i')}"
        b.open(head)
        hi = None if end.hi is None else end.hi - 1
        self._vars[loop.var.uid] = b.opaque(i64, 1, counter, b.level, begin.lo, hi)
        if body_of is None:
            self.stmt(loop.body)
        else:
            body_of()
        b.line(f"br label %{latch}")
        body = b.close()
        b.line(f"br i1 {guard}, label %{head}, label %{after}" if guard else f"br label %{head}")
        lines = b.region.lines
        lines.append(f"{head}:")
        lines.append(f"  {counter} = phi i64 [ {first}, %{before} ], [ {counter}.next, %{latch} ]")
        lines.extend(body.lines)
        lines.append(f"{latch}:")
        lines.append(f"  {counter}.next = add nuw nsw i64 {counter}, 1")
        lines.append(f"  {counter}.more = icmp slt i64 {counter}.next, {last}")
        lines.append(f"  br i1 {counter}.more, label %{head}, label %{after}")
        b.label(after)

    def _parallel(self, loop: For, extent: Value) -> None:
        """Outline the loop, fill the environment, launch."""
        name = f"{self.module.name}.par{self.module.num_parallel}"
        self.module.num_parallel += 1
        inner = FuncEmitter(self.module, self)
        begin = inner.b.opaque(i64, 1, "%begin", 0, 0, None)
        end = inner.b.opaque(i64, 1, "%end", 0, None, extent.hi)
        inner.counted(loop, begin, end)
        self.module.functions.extend(_outlined_text(name, inner))
        b = self.b
        kind = _env_type(inner.captures)
        env = b.alloca(kind, 8)
        for i, capture in enumerate(inner.captures):
            b.line(f"{env}.{i}.{b.level} = getelementptr inbounds {kind}, ptr {env}, i64 0, i32 {i}")
            b.line(f"store {capture.type} {capture.outer}, ptr {env}.{i}.{b.level}")
        types = "ptr, ptr, i64, i64, i64"
        b.declares.setdefault(PARALLEL_FOR, f"declare dso_local void @{PARALLEL_FOR}({types})")
        grain = dict(loop.notes).get(GRAIN, 1)
        pieces = f"i64 {b.use(extent)}, i64 {grain}, i64 {b.use(self.value(_begins_evenly(loop)))}"
        b.line(f"call void @{PARALLEL_FOR}(ptr @{name}, ptr {env}, {pieces})")

    def body_text(self, end: str = "ret void") -> str:
        """Basic blocks of the function, after its last statement."""
        if self.uses_matrix_unit:
            release(self)
        lines = [*self.b.allocas, *self.b.regions[0].lines, f"  {end}"]
        return "entry:\n" + "\n".join(lines) + "\n}\n"


def _begins_evenly(loop: For) -> Expr:
    """Whether threads begin with equal shares of a parallel loop: 1 or 0."""
    most = dict(loop.notes).get(EVEN, 0)
    inside = [s for s in walk_stmts(loop.body) if isinstance(s, For)]
    bound = {loop.var, *(s.var for s in walk_stmts(loop.body) if isinstance(s, For | Let))}
    extents = dict.fromkeys(s.extent for s in inside if not isinstance(s.extent, Const))
    if (
        not isinstance(most, int)
        or most == 0
        or any(has_load(e) or bound & set(free_vars(e)) for e in extents)
    ):
        return index(0)
    few = [build.le(e, most) for e in extents]
    return build.select(build.and_(*few), index(1), index(0)) if few else index(1)


def _env_type(captures: list[Capture]) -> str:
    return "{ " + ", ".join(c.type for c in captures) + " }" if captures else "{ i8 }"


def _outlined_text(name: str, inner: FuncEmitter) -> list[str]:
    """The function that the thread pool calls, and the one with the captured values as parameters."""
    captures = inner.captures
    params = "".join(f", {c.type}{c.attributes} {c.inner}" for c in captures)
    body = f"define internal void @{name}.body(i64 %begin, i64 %end{params}) #1 {{\n{inner.body_text()}"
    kind = _env_type(captures)
    lines = [f"define internal void @{name}(ptr %env, i64 %begin, i64 %end) #0 {{", "entry:"]
    for i, c in enumerate(captures):
        lines.append(f"  %a{i} = getelementptr inbounds {kind}, ptr %env, i64 0, i32 {i}")
        lines.append(f"  {c.inner} = load {c.type}, ptr %a{i}")
    passed = "".join(f", {c.type} {c.inner}" for c in captures)
    lines += [f"  call void @{name}.body(i64 %begin, i64 %end{passed})", "  ret void", "}", ""]
    return [body, "\n".join(lines)]


def attributes(target: Target) -> str:
    """Attributes of every emitted function.

    Instructions come from the feature list alone ("x86-64" has only SSE2 itself); the CPU name is for
    scheduling. ``no-builtins`` keeps LLVM from turning loops into calls of memset and memcpy. With
    ``stackrealign``, vectors that registers have no room for lie on borders of their size: otherwise the
    stack of the caller decides how many of them cross cache lines, and so how fast a large tile is.
    """
    width = target.vector_bytes * 8
    cpu = "x86-64" if target.arch == "x86_64" else "generic"
    return (
        f'nounwind "stackrealign" "no-builtins" "target-cpu"="{cpu}" "tune-cpu"="{target.cpu}" '
        f'"target-features"="{target.feature_string}" '
        f'"prefer-vector-width"="{width}" "min-legal-vector-width"="{width}"'
    )


def emit_func(func: Func, target: Target, data_layout: str) -> str:
    """LLVM text of a module with ``@<name>.impl`` and its outlined loops.

    Args:
        func: A function of stage LOOP_LOWERED: no blocks, no vectorized loops.
        target: What it may use.
        data_layout: LLVM's data layout string for the target's triple.

    Raises:
        CodegenError: the function is not of that stage, or uses names that are not in scope.
    """
    module = ModuleText(func.name, target)
    emitter = FuncEmitter(module)
    params = []
    for i, buffer in enumerate(func.params):
        emitter.bind_buffer(buffer, f"%p{i}")
        params.append(f"ptr noalias noundef %p{i}")
    for i, sym in enumerate(func.dims):
        emitter.bind_dim(sym, f"%dim{i}")
        params.append(f"i64 noundef %dim{i}")
    emitter.stmt(func.body)
    result, end = ("i32", "ret i32 0") if can_fail(func) else ("void", "ret void")
    head = f"define dso_local {result} @{func.name}.impl({', '.join(params)}) #0 {{"
    impl = f"{head}\n{emitter.body_text(end)}"
    common = attributes(target)
    if UNORDERED_FLUSH in module.declares:
        common = common.replace('"target-features"="', '"target-features"="+clflushopt,')
    return "\n".join(
        [
            f'target datalayout = "{data_layout}"',
            f'target triple = "{target.triple}"',
            "",
            impl,
            *module.functions,
            *(module.declares[name] for name in sorted(module.declares)),
            f"\nattributes #0 = {{ {common} }}",
            f"attributes #1 = {{ noinline {common} }}",
            "",
        ]
    )


__all__ = ["FuncEmitter", "Linear", "attributes", "emit_func"]
