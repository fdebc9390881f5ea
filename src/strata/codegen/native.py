"""A small structured builder of LLVM text, for the run-time support code that no loop function describes.

Loop functions go through the emitter; the thread pool, argument checking and the like are written here in
Python, statement by statement, and come out as readable LLVM text::

    f = NativeFunction("clamp", "i64", [("i64", "x")])
    with f.if_(f.arg("x") > 9):
        f.ret(9)
    f.ret(f.arg("x"))

A :class:`Value` is an SSA value with arithmetic operators (comparisons of pointers and integers are signed
unless the method name says otherwise); a :class:`Local` is a mutable variable (an ``alloca``; ``mem2reg``
removes it). Python integers stand for constants of the other operand's type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from strata.core.errors import CodegenError

ACCESS_ALIGN = {"i8": 1, "i16": 2, "i32": 4, "i64": 8, "ptr": 8}


class Value:
    """An SSA value of ``function``: ``text`` is how LLVM writes it, ``type`` its LLVM type."""

    __slots__ = ("function", "text", "type")

    def __init__(self, function: NativeFunction, text: str, type_: str) -> None:
        self.function = function
        self.text = text
        self.type = type_

    def _binary(self, op: str, other: Value | int) -> Value:
        right = self.function.value(other, self.type)
        return self.function.emit(f"{op} {self.type} {self.text}, {right.text}", self.type)

    def _compare(self, predicate: str, other: Value | int) -> Value:
        right = self.function.value(other, self.type)
        return self.function.emit(f"icmp {predicate} {self.type} {self.text}, {right.text}", "i1")

    def __add__(self, other: Value | int) -> Value:
        return self._binary("add", other)

    def __sub__(self, other: Value | int) -> Value:
        return self._binary("sub", other)

    def __mul__(self, other: Value | int) -> Value:
        return self._binary("mul", other)

    def __and__(self, other: Value | int) -> Value:
        return self._binary("and", other)

    def __or__(self, other: Value | int) -> Value:
        return self._binary("or", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._binary("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        """Logical shift right."""
        return self._binary("lshr", other)

    def udiv(self, other: Value | int) -> Value:
        """Unsigned quotient."""
        return self._binary("udiv", other)

    def urem(self, other: Value | int) -> Value:
        """Unsigned remainder."""
        return self._binary("urem", other)

    def eq(self, other: Value | int) -> Value:
        """``self == other``."""
        return self._compare("eq", other)

    def ne(self, other: Value | int) -> Value:
        """``self != other``."""
        return self._compare("ne", other)

    def __lt__(self, other: Value | int) -> Value:
        return self._compare("slt", other)

    def __le__(self, other: Value | int) -> Value:
        return self._compare("sle", other)

    def __gt__(self, other: Value | int) -> Value:
        return self._compare("sgt", other)

    def __ge__(self, other: Value | int) -> Value:
        return self._compare("sge", other)

    def convert(self, op: str, type_: str) -> Value:
        """``zext``, ``sext``, ``trunc``, ``ptrtoint`` or ``inttoptr`` to ``type_``."""
        return self.function.emit(f"{op} {self.type} {self.text} to {type_}", type_)


class Local:
    """A mutable variable of a :class:`NativeFunction`."""

    __slots__ = ("function", "slot", "type")

    def __init__(self, function: NativeFunction, slot: str, type_: str) -> None:
        self.function = function
        self.slot = slot
        self.type = type_

    @property
    def v(self) -> Value:
        """The current value."""
        return self.function.emit(f"load {self.type}, ptr {self.slot}", self.type)

    def set(self, value: Value | int) -> None:
        """Assign."""
        right = self.function.value(value, self.type)
        self.function.line(f"store {self.type} {right.text}, ptr {self.slot}")


class NativeFunction:
    """One LLVM function under construction.

    Args:
        name: Symbol.
        result: LLVM type of the result, ``"void"`` for none.
        params: ``(type, name)`` pairs.
        attributes: Function attributes, ``"nounwind"``.
    """

    def __init__(
        self, name: str, result: str, params: Sequence[tuple[str, str]], attributes: str = "nounwind"
    ) -> None:
        self.name = name
        self.result = result
        self.attributes = attributes
        self._params = tuple(params)
        self._args = {n: Value(self, f"%{n}", t) for t, n in params}
        self._entry: list[str] = []
        self._lines: list[str] = []
        self._count = 0
        self._terminated = False

    def arg(self, name: str) -> Value:
        """The parameter called ``name``."""
        return self._args[name]

    def value(self, value: Value | int, type_: str) -> Value:
        """A constant, or ``value`` itself."""
        if isinstance(value, int):
            text = "null" if type_ == "ptr" and value == 0 else str(value)
            return Value(self, text, type_)
        if value.type != type_:
            raise CodegenError(f"{self.name}: got a value of type {value.type}; expected {type_}")
        return value

    def symbol(self, name: str) -> Value:
        """Address of a global or function."""
        return Value(self, f"@{name}", "ptr")

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    def line(self, text: str) -> None:
        """Append an instruction (dropped after a terminator, where nothing can run)."""
        if not self._terminated:
            self._lines.append(f"  {text}")

    def emit(self, text: str, type_: str) -> Value:
        """Append an instruction that gives a value."""
        name = f"%{self._fresh('t')}"
        self.line(f"{name} = {text}")
        return Value(self, name, type_)

    def local(self, type_: str, value: Value | int) -> Local:
        """A mutable variable, assigned here."""
        slot = f"%{self._fresh('local')}"
        self._entry.append(f"  {slot} = alloca {type_}")
        variable = Local(self, slot, type_)
        variable.set(value)
        return variable

    def alloca(self, num_bytes: int, align: int = 16) -> Value:
        """Stack memory, alive until the function returns."""
        slot = f"%{self._fresh('stack')}"
        self._entry.append(f"  {slot} = alloca [{num_bytes} x i8], align {align}")
        return Value(self, slot, "ptr")

    def at(self, base: Value, offset: Value | int) -> Value:
        """``base + offset`` bytes."""
        if isinstance(offset, int) and offset == 0:
            return base
        amount = self.value(offset, "i64")
        return self.emit(f"getelementptr i8, ptr {base.text}, i64 {amount.text}", "ptr")

    def load(self, type_: str, base: Value, offset: Value | int = 0, align: int = 0) -> Value:
        """The ``type_`` at ``base + offset`` bytes (``align`` 0: its natural alignment)."""
        address = self.at(base, offset)
        return self.emit(f"load {type_}, ptr {address.text}, align {align or ACCESS_ALIGN[type_]}", type_)

    def store(self, value: Value, base: Value, offset: Value | int = 0, align: int = 0) -> None:
        """Store ``value`` at ``base + offset`` bytes (``align`` 0: its natural alignment)."""
        address = self.at(base, offset)
        self.line(
            f"store {value.type} {value.text}, ptr {address.text}, align {align or ACCESS_ALIGN[value.type]}"
        )

    def atomic_load(self, type_: str, base: Value, offset: int, order: str) -> Value:
        """Atomic load with memory order ``order``."""
        address = self.at(base, offset)
        return self.emit(
            f"load atomic {type_}, ptr {address.text} {order}, align {ACCESS_ALIGN[type_]}", type_
        )

    def atomic_store(self, value: Value, base: Value, offset: int, order: str) -> None:
        """Atomic store with memory order ``order``."""
        address = self.at(base, offset)
        align = ACCESS_ALIGN[value.type]
        self.line(f"store atomic {value.type} {value.text}, ptr {address.text} {order}, align {align}")

    def rmw(self, op: str, base: Value, offset: int, value: Value, order: str) -> Value:
        """Atomic read-modify-write; gives the old value."""
        address = self.at(base, offset)
        return self.emit(f"atomicrmw {op} ptr {address.text}, {value.type} {value.text} {order}", value.type)

    def cmpxchg(self, base: Value, offset: int, old: Value, new: Value, order: str) -> Value:
        """Atomic compare and exchange; gives an i1, true where ``old`` was there and ``new`` is now."""
        address = self.at(base, offset)
        pair = self.emit(
            f"cmpxchg ptr {address.text}, {old.type} {old.text}, {new.type} {new.text} {order} monotonic",
            "pair",
        )
        return self.emit(f"extractvalue {{ {old.type}, i1 }} {pair.text}, 1", "i1")

    def select(self, cond: Value, a: Value | int, b: Value | int, type_: str = "i64") -> Value:
        """``a`` where ``cond`` else ``b``."""
        x, y = self.value(a, type_), self.value(b, type_)
        return self.emit(f"select i1 {cond.text}, {type_} {x.text}, {type_} {y.text}", type_)

    def call(self, result: str, callee: Value, args: Sequence[Value], signature: str = "") -> Value:
        """Call; ``signature`` is needed for variadic callees (``"i64 (i64, ...)"``)."""
        listed = ", ".join(f"{a.type} {a.text}" for a in args)
        text = f"call {signature or result} {callee.text}({listed})"
        if result == "void":
            self.line(text)
            return Value(self, "undef", "void")
        return self.emit(text, result)

    def _label(self, name: str) -> None:
        self._lines.append(f"{name}:")
        self._terminated = False

    def _branch(self, text: str) -> None:
        self.line(text)
        self._terminated = True

    @contextmanager
    def if_(self, cond: Value) -> Iterator[None]:
        """``with f.if_(cond): ...``."""
        then, after = self._fresh("then"), self._fresh("after")
        self._branch(f"br i1 {cond.text}, label %{then}, label %{after}")
        self._label(then)
        yield
        self._branch(f"br label %{after}")
        self._label(after)

    @contextmanager
    def while_(self, cond: Callable[[], Value]) -> Iterator[None]:
        """``with f.while_(lambda: i.v < n): ...``; the condition is evaluated before every round."""
        head, body, after = self._fresh("head"), self._fresh("body"), self._fresh("after")
        self._branch(f"br label %{head}")
        self._label(head)
        value = cond()
        self._branch(f"br i1 {value.text}, label %{body}, label %{after}")
        self._label(body)
        yield
        self._branch(f"br label %{head}")
        self._label(after)

    @contextmanager
    def forever(self) -> Iterator[str]:
        """A loop left with ``f.leave(label)`` or ``f.ret``; yields the label after the loop."""
        body, after = self._fresh("body"), self._fresh("after")
        self._branch(f"br label %{body}")
        self._label(body)
        yield after
        self._branch(f"br label %{body}")
        self._label(after)

    @contextmanager
    def for_(self, count: Value | int) -> Iterator[Value]:
        """``with f.for_(n) as i: ...``; i is an i64 from 0 to n - 1."""
        limit = self.value(count, "i64")
        index = self.local("i64", 0)
        with self.while_(lambda: index.v < limit):
            current = index.v
            yield current
            index.set(current + 1)

    def leave(self, label: str) -> None:
        """Jump to a label that :meth:`forever` gave."""
        self._branch(f"br label %{label}")

    def ret(self, value: Value | int | None = None) -> None:
        """Return."""
        if value is None:
            self._branch("ret void")
        else:
            self._branch(f"ret {self.result} {self.value(value, self.result).text}")

    def text(self) -> str:
        """The whole definition."""
        params = ", ".join(f"{t} %{n}" for t, n in self._params)
        body = list(self._lines)
        if not self._terminated:  # only reachable text ends without a terminator in void functions
            body.append("  ret void" if self.result == "void" else "  unreachable")
        head = f"define dso_local {self.result} @{self.name}({params}) {self.attributes} {{\nentry:"
        return "\n".join([head, *self._entry, *body, "}", ""])
