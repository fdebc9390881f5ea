"""Values and the text builder of one LLVM function.

A :class:`Value` is an SSA operand with the *level* at which it becomes available: level 0 is the function's
entry, every loop or branch adds one. Pure operations are written at the deepest level of their operands,
once: that moves everything that does not change in a loop in front of it (index arithmetic, splats, scalar
functions) without an analysis, and makes equal operations one. Loads, stores and control flow stay where
they are.

Scalar i64 values are kept as linear forms ``sum(coefficient * atom) + offset`` with a range, so that
offsets of unrolled copies become constants and address terms are added from the outermost level inwards
(:mod:`strata.codegen.emit_index`). ``base + lane`` vectors and splats stay symbolic until someone needs the
vector.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from strata.core.dtypes import DType, bool_, i64

from .types import constant_text, scalar_type, splat_text, ssa_type

Bound = int | None


@dataclass(slots=True)
class Value:
    """An operand.

    Attributes:
        dtype: Element dtype.
        lanes: Number of lanes.
        text: LLVM operand without its type (``%v3``, ``42``).
        level: Region level at which it is available; 0 for constants.
        const: Its value, if it is a scalar constant.
        lo: Smallest value of an integer, if known.
        hi: Largest value of an integer, if known.
    """

    dtype: DType
    lanes: int
    text: str
    level: int = 0
    const: int | float | bool | None = None
    lo: Bound = None
    hi: Bound = None


@dataclass(slots=True)
class Term:
    """``coefficient * atom``; the atom is a materialised scalar i64."""

    atom: Value
    coefficient: int


@dataclass(slots=True)
class Linear(Value):
    """A scalar i64 ``sum(terms) + offset``; ``text`` is filled in when it is materialised."""

    terms: tuple[Term, ...] = ()
    offset: int = 0


@dataclass(slots=True)
class Lanes(Value):
    """``base + stride * lane``; stride 0 is a splat of any dtype, others are i64. ``text`` comes lazily."""

    base: Value | None = None
    stride: int = 0


def constant(value: int | float | bool, dtype: DType) -> Value:
    """A scalar constant."""
    if dtype == i64:
        return Linear(
            i64, 1, str(int(value)), const=int(value), lo=int(value), hi=int(value), offset=int(value)
        )
    known = value if dtype.is_int else None
    return Value(dtype, 1, constant_text(value, dtype), const=value, lo=known, hi=known)  # type: ignore[arg-type]


@dataclass(slots=True)
class Region:
    """Lines of a loop body or branch, in one or more basic blocks; ``block`` is the label of the last one."""

    block: str
    lines: list[str] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)


class Builder:
    """Writes the body of one function.

    Args:
        declares: Declarations of the module, by symbol, shared by its functions.
    """

    def __init__(self, declares: dict[str, str]) -> None:
        self.declares = declares
        self.regions = [Region("entry")]
        self.allocas: list[str] = []
        self._count = 0

    # ------------------------------------------------------------------ names, regions

    @property
    def level(self) -> int:
        """Level of the innermost open region."""
        return len(self.regions) - 1

    @property
    def region(self) -> Region:
        """The innermost open region."""
        return self.regions[-1]

    def fresh(self, hint: str = "v") -> str:
        """A new name, without ``%``."""
        self._count += 1
        return f"{hint}{self._count}"

    def open(self, block: str) -> None:
        """Open a region that starts in the basic block called ``block``."""
        self.regions.append(Region(block))

    def close(self) -> Region:
        """Close the innermost region."""
        return self.regions.pop()

    def line(self, text: str) -> None:
        """Add a line at the end of the innermost region."""
        self.region.lines.append(f"  {text}")

    def label(self, name: str) -> None:
        """Start the basic block ``name`` in the innermost region."""
        self.region.lines.append(f"{name}:")
        self.region.block = name

    def alloca(self, type_text: str, align: int) -> str:
        """A stack slot in the entry block; returns its operand."""
        name = f"%{self.fresh('slot')}"
        self.allocas.append(f"  {name} = alloca {type_text}, align {align}")
        return name

    def declare(self, symbol: str, result: str, args: tuple[str, ...]) -> None:
        """Declare an external function or intrinsic."""
        self.declares.setdefault(symbol, f"declare {result} @{symbol}({', '.join(args)})")

    # ------------------------------------------------------------------ operations

    def pure_text(self, code: str, level: int) -> str:
        """Operand of a pure instruction ``code``, written once at ``level``."""
        region = self.regions[level]
        name = region.known.get(code)
        if name is None:
            name = region.known[code] = f"%{self.fresh()}"
            region.lines.append(f"  {name} = {code}")
        return name

    def pure(
        self,
        dtype: DType,
        lanes: int,
        template: str,
        *args: Value,
        lo: Bound = None,
        hi: Bound = None,
    ) -> Value:
        """A pure instruction; ``template`` has one ``{}`` per operand of ``args`` (without types)."""
        texts = [self.use(a) for a in args]
        level = max((a.level for a in args), default=0)
        name = self.pure_text(template.format(*texts), level)
        if dtype == i64 and lanes == 1:
            atom = Value(i64, 1, name, level, None, lo, hi)
            return Linear(i64, 1, name, level, None, lo, hi, terms=(Term(atom, 1),))
        return Value(dtype, lanes, name, level, None, lo, hi)

    def effect(self, dtype: DType, lanes: int, code: str, lo: Bound = None, hi: Bound = None) -> Value:
        """An instruction with a result that stays where it is: a load."""
        name = f"%{self.fresh()}"
        self.line(f"{name} = {code}")
        return self.opaque(dtype, lanes, name, self.level, lo, hi)

    def opaque(
        self, dtype: DType, lanes: int, text: str, level: int, lo: Bound = None, hi: Bound = None
    ) -> Value:
        """A value that exists already, such as a parameter."""
        atom = Value(dtype, lanes, text, level, None, lo, hi)
        if dtype == i64 and lanes == 1:
            return Linear(i64, 1, text, level, None, lo, hi, terms=(Term(atom, 1),))
        return atom

    def call(self, symbol: str, result: str, args: list[tuple[str, Value]]) -> tuple[str, int]:
        """A call of a pure function; returns operand and level."""
        self.declare(symbol, result, tuple(t for t, _ in args))
        texts = [f"{t} {self.use(v)}" for t, v in args]
        level = max((v.level for _, v in args), default=0)
        return self.pure_text(f"call {result} @{symbol}({', '.join(texts)})", level), level

    # ------------------------------------------------------------------ materialisation

    def use(self, value: Value) -> str:
        """LLVM operand of ``value``, written out now if it was still symbolic."""
        if not value.text:
            if isinstance(value, Linear):
                self._materialise_linear(value)
            elif isinstance(value, Lanes):
                self._materialise_lanes(value)
        return value.text

    def typed(self, value: Value) -> str:
        """Type and operand."""
        text = self.use(value)
        return f"{ssa_type(value.dtype, value.lanes)} {text}"

    def _materialise_linear(self, value: Linear) -> None:
        text, level = "", 0
        for term in sorted(value.terms, key=lambda t: (t.atom.level, t.atom.text)):
            part, at = term.atom.text, term.atom.level
            if term.coefficient != 1:
                part = self.pure_text(f"mul nsw i64 {part}, {term.coefficient}", at)
            level = max(level, at)
            text = part if not text else self.pure_text(f"add nsw i64 {text}, {part}", level)
        if value.offset:
            text = self.pure_text(f"add nsw i64 {text}, {value.offset}", level)
        value.text, value.level = text, level

    def _materialise_lanes(self, value: Lanes) -> None:
        base = value.base
        assert base is not None
        element = scalar_type(value.dtype)
        if base.const is not None:
            text = splat_text(element, self.use(base), value.lanes)
            level = 0
        else:
            kind = ssa_type(value.dtype, value.lanes)
            scalar = self.use(base)
            level = base.level
            one = self.pure_text(f"insertelement {kind} poison, {element} {scalar}, i64 0", level)
            zeros = f"<{value.lanes} x i32> zeroinitializer"
            text = self.pure_text(f"shufflevector {kind} {one}, {kind} poison, {zeros}", level)
        if value.stride:
            steps = ", ".join(f"i64 {value.stride * lane}" for lane in range(value.lanes))
            kind = ssa_type(i64, value.lanes)
            text = self.pure_text(f"add nsw {kind} {text}, <{steps}>", level)
        value.text, value.level = text, level


def splat(value: Value, lanes: int) -> Value:
    """``value`` in every lane (itself for one lane)."""
    if lanes == 1:
        return value
    return Lanes(value.dtype, lanes, "", value.level, None, value.lo, value.hi, base=value)


def ramp(base: Value, lanes: int, stride: int = 1) -> Value:
    """``base + stride * lane``, i64."""
    last = stride * (lanes - 1)
    lo = None if base.lo is None else base.lo + min(0, last)
    hi = None if base.hi is None else base.hi + max(0, last)
    return Lanes(i64, lanes, "", base.level, None, lo, hi, base=base, stride=stride)


def uniform(value: Value) -> Value | None:
    """The scalar that every lane of ``value`` holds, if it is known to be one."""
    if value.lanes == 1:
        return value
    return value.base if isinstance(value, Lanes) and value.stride == 0 else None


TRUE = constant(True, bool_)
FALSE = constant(False, bool_)
