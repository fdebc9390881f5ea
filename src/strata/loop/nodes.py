"""Loop IR: functions over buffers, as loops, blocks and scalar or vector expressions.

::

    Func  ::= Func(name, params: Buffer*, body: Stmt)            dims: symbols of the params' shapes, by name
    Stmt  ::= For(var, extent, kind, body, notes)                var runs 0 .. extent-1
            | Block(name, axes: BlockAxis*, predicate?, init?, body, notes)
            | Store(buffer, indices, value, mask?)
            | Let(var, value, body) | If(cond, then, orelse?) | Alloc(buffer, body) | Seq(stmts)
            | Call(extern, args: (Buffer | Expr)*)                  code that was not generated here
    Expr  ::= Const(value, dtype) | Var(name, dtype) | Size(dim)
            | Binary(op, a, b) | Unary(op, a) | Cast(dtype, a) | Select(cond, a, b)
            | Load(buffer, indices, mask?)
            | Ramp(base, lanes) | Splat(a, lanes) | Reduce(op, a)
            | Intrinsic(name, args, dtype, lanes)
    BlockAxis ::= (var, SPATIAL | REDUCTION, extent, value)    value: expression of the loops around the block
    notes ::= (key, value: int | str)*                         what ``annotate`` says about a loop or block

A **block** is the unit that schedule steps move: its axes are bound to expressions of the surrounding loop
variables, its body uses its own axis variables only. ``init`` runs when all reduction axes are 0,
``predicate`` (over the loop variables) skips the instance. Blocks and VECTORIZE loops are gone after
``schedule.finalize`` (stage LOOP_LOWERED); what remains is what the code generator takes.

Rules that ``loop.check`` enforces:

* indices are i64; all loop variables are i64; a buffer is indexed with one expression per dim, of which only
  the last may have lanes (and then the access touches lanes whose addresses differ in the last dim only);
  inside one access, a ``Ramp`` index is contiguous, any other vector index is a gather;
* arithmetic is on f32, f64, i32, i64 and bool only; f16 and bf16 are loaded, stored, selected and cast;
* both operands of a Binary have one dtype and one number of lanes (``Splat`` makes lanes explicit);
* loops inside of one another are bound to different hardware axes;
* a mask is a bool expression with the access' lanes; masked-off lanes load 0 and store nothing;
* Div on floats only, FloorDiv/FloorMod on ints only; no access outside the buffer's shape where unmasked;
* a Call fits its extern (``loop.externs``), stands outside of blocks and of PARALLEL and VECTORIZE loops; a
  buffer that it writes is passed once; register buffers have no address to pass;
* REGISTER buffers have constant shapes and after unrolling only constant indices (they become SSA values).

Variables and buffers have identity (two variables called ``i`` are different); statements and expressions are
immutable values.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from enum import Enum
from typing import get_args

from strata.core.dims import Dim, Shape, SymDim, shape_symbols
from strata.core.dtypes import DType, bool_, i64
from strata.core.errors import ShapeError

_ids = itertools.count()


class ForKind(Enum):
    """How a loop is executed."""

    SERIAL = "serial"
    PARALLEL = "parallel"  # iterations may run on several threads, in any order
    UNROLL = "unroll"  # constant extent; expanded by the code generator
    VECTORIZE = "vectorize"  # constant extent; becomes lanes in schedule.finalize
    # Bound to a hardware axis: iterations may run in any order; a CPU runs blocks on several threads and the
    # others one after the other.
    BLOCK_X = "block_x"  # thread blocks of a grid
    BLOCK_Y = "block_y"
    BLOCK_Z = "block_z"
    THREAD_X = "thread_x"  # threads of a block
    THREAD_Y = "thread_y"
    THREAD_Z = "thread_z"
    LANE = "lane"  # lanes of a warp


BLOCK_KINDS = frozenset({ForKind.BLOCK_X, ForKind.BLOCK_Y, ForKind.BLOCK_Z})
BOUND_KINDS = BLOCK_KINDS | {ForKind.THREAD_X, ForKind.THREAD_Y, ForKind.THREAD_Z, ForKind.LANE}
Notes = tuple[tuple[str, int | str], ...]
GRAIN = "grain"  # note of a PARALLEL loop: iterations that a thread takes at a time
# Note of a PARALLEL loop, n: threads begin with equal shares, long runs of memory for each, where no loop of
# variable extent inside runs more than n times.
EVEN = "even"
MATRIX = "matrix"  # note of a loop, 1: products of tiles, for a matrix unit (loop.matrix)
# Notes of a loop, + name of a buffer: iterations ahead of which it is fetched, by the level of the cache.
PREFETCH = {1: "prefetch1_", 2: "prefetch_"}


class AxisKind(Enum):
    """What a block axis does."""

    SPATIAL = "spatial"
    REDUCTION = "reduce"


class MemSpace(Enum):
    """Where a buffer lives."""

    GLOBAL = "global"  # a parameter, or workspace memory of the step (planned arena)
    LOCAL = "local"  # private to the executing thread, on its stack; constant size
    REGISTER = "register"  # private, constant shape, constant indices: SSA values


class _Op(Enum):
    """Hashed as the objects that they are; an enum's own hash is that of its name, in Python."""

    __hash__ = object.__hash__


class BinaryOp(_Op):
    """Two-operand operations; the value is the text form."""

    ADD = "+"
    SUB = "-"
    MUL = "*"
    DIV = "/"
    FLOORDIV = "//"
    FLOORMOD = "%"
    MIN = "min"
    MAX = "max"
    LT = "<"
    LE = "<="
    GT = ">"
    GE = ">="
    EQ = "=="
    NE = "!="
    AND = "and"
    OR = "or"


COMPARISONS = frozenset({BinaryOp.LT, BinaryOp.LE, BinaryOp.GT, BinaryOp.GE, BinaryOp.EQ, BinaryOp.NE})


class UnaryOp(_Op):
    """One-operand operations. The transcendental ones are f32/f64 only."""

    NEG = "neg"
    NOT = "not"
    ABS = "abs"
    EXP = "exp"
    LOG = "log"
    SQRT = "sqrt"
    RSQRT = "rsqrt"
    TANH = "tanh"
    ERF = "erf"
    SIN = "sin"
    COS = "cos"
    FLOOR = "floor"
    ROUND = "round"  # to the nearest whole number, halves to the even one
    SIGMOID = "sigmoid"


class ReduceOp(_Op):
    """Horizontal reductions of a vector to a scalar."""

    ADD = "sum"
    MAX = "max"
    MIN = "min"


@dataclass(frozen=True, slots=True)
class Const:
    """A constant: int for integer dtypes, float for floats, bool for bool."""

    value: int | float | bool
    dtype: DType
    lanes: int = field(default=1, init=False)


@dataclass(frozen=True, slots=True, eq=False)
class Var:
    """A variable with identity: a loop variable (i64), a block axis (i64) or a ``Let`` name (any dtype)."""

    name: str
    dtype: DType = i64
    lanes: int = 1
    uid: int = field(default_factory=lambda: next(_ids), repr=False)


@dataclass(frozen=True, slots=True)
class Size:
    """The run-time value of a symbolic dim (or polynomial of them), as i64."""

    dim: Dim
    dtype: DType = field(default=i64, init=False)
    lanes: int = field(default=1, init=False)


@dataclass(frozen=True, slots=True)
class Binary:
    """``a op b``; comparisons, AND and OR give bool."""

    op: BinaryOp
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        """Result dtype."""
        return bool_ if self.op in COMPARISONS else self.a.dtype

    @property
    def lanes(self) -> int:
        """Lanes of the operands."""
        return self.a.lanes


@dataclass(frozen=True, slots=True)
class Unary:
    """``op(a)``, dtype and lanes of ``a``."""

    op: UnaryOp
    a: Expr

    @property
    def dtype(self) -> DType:
        """Result dtype."""
        return self.a.dtype

    @property
    def lanes(self) -> int:
        """Lanes of the operand."""
        return self.a.lanes


@dataclass(frozen=True, slots=True)
class Cast:
    """``a`` converted to ``dtype`` (floats round to nearest even; float to int truncates)."""

    dtype: DType
    a: Expr

    @property
    def lanes(self) -> int:
        """Lanes of the operand."""
        return self.a.lanes


@dataclass(frozen=True, slots=True)
class Select:
    """``a`` where ``cond`` else ``b``; both are evaluated."""

    cond: Expr
    a: Expr
    b: Expr

    @property
    def dtype(self) -> DType:
        """Result dtype."""
        return self.a.dtype

    @property
    def lanes(self) -> int:
        """Lanes of the alternatives."""
        return self.a.lanes


@dataclass(frozen=True, slots=True)
class Load:
    """``buffer[indices]``; lanes of the last index; masked-off lanes give 0 and are not read."""

    buffer: Buffer
    indices: tuple[Expr, ...]
    mask: Expr | None = None

    @property
    def dtype(self) -> DType:
        """The buffer's dtype."""
        return self.buffer.dtype

    @property
    def lanes(self) -> int:
        """Lanes of the last index (1 for a 0-d buffer)."""
        return self.indices[-1].lanes if self.indices else 1


@dataclass(frozen=True, slots=True)
class Ramp:
    """``[base, base+1, ..., base+lanes-1]`` (i64)."""

    base: Expr
    lanes: int
    dtype: DType = field(default=i64, init=False)


@dataclass(frozen=True, slots=True)
class Splat:
    """A scalar ``a`` in every lane."""

    a: Expr
    lanes: int

    @property
    def dtype(self) -> DType:
        """Dtype of the scalar."""
        return self.a.dtype


@dataclass(frozen=True, slots=True)
class Reduce:
    """Horizontal reduction of vector ``a`` to a scalar (pairwise order for ADD)."""

    op: ReduceOp
    a: Expr
    lanes: int = field(default=1, init=False)

    @property
    def dtype(self) -> DType:
        """Dtype of the vector's elements."""
        return self.a.dtype


@dataclass(frozen=True, slots=True)
class Intrinsic:
    """A hardware operation by name; semantics and emission are in ``loop.intrinsics`` and ``codegen``."""

    name: str
    args: tuple[Expr, ...]
    dtype: DType
    lanes: int


Expr = Const | Var | Size | Binary | Unary | Cast | Select | Load | Ramp | Splat | Reduce | Intrinsic
EXPR_TYPES = frozenset(get_args(Expr))


@dataclass(frozen=True, slots=True, eq=False)
class Buffer:
    """A typed multi-dim array with identity, row-major and dense.

    Attributes:
        name: Name for people; identity is the object.
        shape: Dims (int or symbolic).
        dtype: Element type.
        space: Where it lives.
    """

    name: str
    shape: Shape
    dtype: DType
    space: MemSpace = MemSpace.GLOBAL
    uid: int = field(default_factory=lambda: next(_ids), repr=False)


@dataclass(frozen=True, slots=True)
class BlockAxis:
    """One axis of a block: ``var`` (used in the body) ranges over ``extent`` and is bound to ``value``."""

    var: Var
    kind: AxisKind
    extent: Expr
    value: Expr


@dataclass(frozen=True, slots=True)
class For:
    """``for var in 0 .. extent-1: body``."""

    var: Var
    extent: Expr
    kind: ForKind
    body: Stmt
    notes: Notes = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A computation instance; see the module docstring."""

    name: str
    axes: tuple[BlockAxis, ...]
    body: Stmt
    init: Stmt | None = None
    predicate: Expr | None = None
    notes: Notes = ()


@dataclass(frozen=True, slots=True)
class Store:
    """``buffer[indices] = value`` (where ``mask``)."""

    buffer: Buffer
    indices: tuple[Expr, ...]
    value: Expr
    mask: Expr | None = None


@dataclass(frozen=True, slots=True)
class Let:
    """``var = value`` within ``body``."""

    var: Var
    value: Expr
    body: Stmt


@dataclass(frozen=True, slots=True)
class If:
    """Scalar branch (a vector condition becomes masks in ``schedule.finalize``)."""

    cond: Expr
    then: Stmt
    orelse: Stmt | None = None


@dataclass(frozen=True, slots=True)
class Alloc:
    """``buffer`` exists within ``body``; contents start undefined."""

    buffer: Buffer
    body: Stmt


@dataclass(frozen=True, slots=True)
class Seq:
    """Statements in order; ``Seq(())`` does nothing."""

    stmts: tuple[Stmt, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """Calls the extern of that name (:mod:`.externs`) with addresses of whole buffers and scalar values."""

    extern: str
    args: tuple[Buffer | Expr, ...]


Stmt = For | Block | Store | Let | If | Alloc | Seq | Call


@dataclass(frozen=True, slots=True)
class Func:
    """A loop function.

    Attributes:
        name: Identifier, unique within an artifact.
        params: Buffers handed in by the caller: inputs first, then outputs.
        body: What it does.
        num_outputs: How many of the last params are outputs (written).
    """

    name: str
    params: tuple[Buffer, ...]
    body: Stmt
    num_outputs: int = 1

    @property
    def dims(self) -> tuple[SymDim, ...]:
        """Symbolic dims of the parameters, sorted by name: the hidden integer arguments, in this order."""
        return shape_symbols(d for p in self.params for d in p.shape)


def size(dim: Dim) -> Expr:
    """``dim`` as an expression."""
    return Const(dim, i64) if isinstance(dim, int) else Size(dim)


def seq(*stmts: Stmt) -> Stmt:
    """``Seq`` that flattens nested ones; a single statement stays itself."""
    flat: list[Stmt] = []
    for stmt in stmts:
        flat.extend(stmt.stmts if isinstance(stmt, Seq) else (stmt,))
    return flat[0] if len(flat) == 1 else Seq(tuple(flat))


def index(value: int) -> Const:
    """An i64 constant."""
    if not isinstance(value, int):
        raise ShapeError(f"index: got {value!r}; expected an int")
    return Const(value, i64)
