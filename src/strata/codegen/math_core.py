"""Float arithmetic on lanes, for the elementary functions: operations, bit patterns, polynomials.

Products and sums here have no ``contract`` flag: what is fused is written as ``fma`` (a fused operation
where the CPU has one, else a product and a sum), so that argument reductions do what they say.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata.core.dtypes import DType, bool_, f32, f64, i32, i64
from strata.target import Target

from .emit_values import Builder, Value, constant, splat
from .types import mangled, scalar_type, ssa_type, vector_type


class FloatOps:
    """Arithmetic on values of one float dtype (f32 or f64) and number of lanes.

    Args:
        b: Where instructions go.
        target: What instructions there are.
        dtype: f32 or f64.
        lanes: Number of lanes.
    """

    def __init__(self, b: Builder, target: Target, dtype: DType, lanes: int) -> None:
        self.b = b
        self.target = target
        self.dtype = dtype
        self.lanes = lanes
        self.kind = ssa_type(dtype, lanes)
        self.single = dtype == f32
        self.int_dtype = i32 if self.single else i64
        self.int = vector_type("i32" if self.single else "i64", lanes)
        self.bit = vector_type("i1", lanes)
        self.mantissa_bits = 23 if self.single else 52
        self.bias = 127 if self.single else 1023

    # ------------------------------------------------------------------ constants and operands

    def const(self, value: float) -> Value:
        """``value`` in every lane."""
        return splat(constant(value, self.dtype), self.lanes)

    def _operand(self, x: Value | float) -> Value:
        return x if isinstance(x, Value) else self.const(float(x))

    def _pure(self, template: str, *args: Value) -> Value:
        return self.b.pure(self.dtype, self.lanes, template, *args)

    # ------------------------------------------------------------------ arithmetic

    def _binary(self, code: str, x: Value | float, y: Value | float) -> Value:
        return self._pure(f"{code} {self.kind} {{}}, {{}}", self._operand(x), self._operand(y))

    def add(self, x: Value | float, y: Value | float) -> Value:
        """``x + y``."""
        return self._binary("fadd", x, y)

    def sub(self, x: Value | float, y: Value | float) -> Value:
        """``x - y``."""
        return self._binary("fsub", x, y)

    def mul(self, x: Value | float, y: Value | float) -> Value:
        """``x * y``."""
        return self._binary("fmul", x, y)

    def div(self, x: Value | float, y: Value | float) -> Value:
        """``x / y``."""
        return self._binary("fdiv", x, y)

    def neg(self, x: Value) -> Value:
        """``-x``."""
        return self._pure(f"fneg {self.kind} {{}}", x)

    def call(self, name: str, *args: Value | float) -> Value:
        """An LLVM intrinsic of floats, such as ``fabs``."""
        symbol = f"llvm.{name}.{mangled(self.kind)}"
        text, level = self.b.call(symbol, self.kind, [(self.kind, self._operand(a)) for a in args])
        return self.b.opaque(self.dtype, self.lanes, text, level)

    def fma(self, x: Value | float, y: Value | float, z: Value | float) -> Value:
        """``x * y + z``, with one rounding where the CPU has FMA."""
        return self.call("fmuladd", x, y, z)

    def poly(self, x: Value, coefficients: Sequence[float]) -> Value:
        """Horner's rule; the coefficient of the highest power first."""
        out = self.const(coefficients[0])
        for coefficient in coefficients[1:]:
            out = self.fma(out, x, coefficient)
        return out

    def abs(self, x: Value) -> Value:
        """``|x|``."""
        return self.call("fabs", x)

    def sqrt(self, x: Value) -> Value:
        """Correctly rounded square root."""
        return self.call("sqrt", x)

    def copysign(self, x: Value, sign: Value) -> Value:
        """``x`` with the sign of ``sign``."""
        return self.call("copysign", x, sign)

    # ------------------------------------------------------------------ comparison

    def test(self, predicate: str, x: Value | float, y: Value | float) -> Value:
        """A float comparison: ``olt``, ``oeq``, ``uno``."""
        template = f"fcmp {predicate} {self.kind} {{}}, {{}}"
        return self.b.pure(bool_, self.lanes, template, self._operand(x), self._operand(y))

    def select(self, cond: Value, x: Value | float, y: Value | float) -> Value:
        """``x`` where ``cond`` else ``y``."""
        template = f"select {self.bit} {{}}, {self.kind} {{}}, {self.kind} {{}}"
        return self._pure(template, cond, self._operand(x), self._operand(y))

    def at_most(self, x: Value, bound: float) -> Value:
        """``bound`` where ``x > bound``, else ``x`` (also a NaN)."""
        return self.select(self.test("ogt", x, bound), bound, x)

    def at_least(self, x: Value, bound: float) -> Value:
        """``bound`` where ``x < bound``, else ``x`` (also a NaN)."""
        return self.select(self.test("olt", x, bound), bound, x)

    # ------------------------------------------------------------------ bit patterns

    def int_const(self, value: int) -> Value:
        """An integer of the float's width in every lane."""
        return splat(constant(value, self.int_dtype), self.lanes)

    def bits(self, x: Value) -> Value:
        """The bit pattern."""
        return self._int_pure(f"bitcast {self.kind} {{}} to {self.int}", x)

    def from_bits(self, x: Value) -> Value:
        """The float with the bit pattern ``x``."""
        return self._pure(f"bitcast {self.int} {{}} to {self.kind}", x)

    def _int_pure(self, template: str, *args: Value) -> Value:
        return self.b.pure(self.int_dtype, self.lanes, template, *args)

    def int_op(self, code: str, x: Value, y: Value | int) -> Value:
        """``add``, ``and``, ``shl``, … on bit patterns."""
        right = y if isinstance(y, Value) else self.int_const(y)
        return self._int_pure(f"{code} {self.int} {{}}, {{}}", x, right)

    def int_test(self, predicate: str, x: Value, y: int) -> Value:
        """An integer comparison with a constant."""
        return self.b.pure(bool_, self.lanes, f"icmp {predicate} {self.int} {{}}, {{}}", x, self.int_const(y))

    def from_int(self, x: Value) -> Value:
        """A signed integer of the same width as a float."""
        return self._pure(f"sitofp {self.int} {{}} to {self.kind}", x)

    # ------------------------------------------------------------------ helpers of the functions

    def round_to_int(self, x: Value, factor: float) -> tuple[Value, Value]:
        """``n = x * factor`` rounded, as float and as integer, for ``|n| < 2**(mantissa_bits - 2)``.

        Adding ``1.5 * 2**mantissa_bits`` leaves ``n`` in the low bits of the pattern.
        """
        magic = 1.5 * 2.0**self.mantissa_bits
        shifted = self.fma(x, factor, magic)
        pattern = self.bits(shifted)
        top = (self.bias + self.mantissa_bits << self.mantissa_bits) + (1 << (self.mantissa_bits - 1))
        return self.sub(shifted, magic), self.int_op("sub", pattern, top)

    def scale(self, x: Value, n: Value) -> Value:
        """``x * 2**n`` for an integer ``n``, also where the result overflows or is subnormal."""
        if self.target.has("avx512vl"):
            exponent = vector_type("i32", self.lanes)
            if not self.single:
                n = self.b.pure(i32, self.lanes, f"trunc {self.int} {{}} to {exponent}", n)
            symbol = f"llvm.ldexp.{mangled(self.kind)}.{mangled(exponent)}"
            text, level = self.b.call(symbol, self.kind, [(self.kind, x), (exponent, n)])
            return self.b.opaque(self.dtype, self.lanes, text, level)
        first = self.int_op("ashr", n, 1)  # two factors, since 2**n itself may be out of range
        second = self.int_op("sub", n, first)
        return self.mul(self.mul(x, self.power_of_two(first)), self.power_of_two(second))

    def power_of_two(self, n: Value) -> Value:
        """``2**n`` for ``n`` in the range of normal exponents."""
        return self.from_bits(self.int_op("shl", self.int_op("add", n, self.bias), self.mantissa_bits))


def widened(b: Builder, x: Value) -> Value:
    """f32 lanes as f64."""
    return b.pure(f64, x.lanes, f"fpext {ssa_type(f32, x.lanes)} {{}} to {ssa_type(f64, x.lanes)}", x)


def narrowed(b: Builder, x: Value) -> Value:
    """f64 lanes as f32."""
    return b.pure(f32, x.lanes, f"fptrunc {ssa_type(f64, x.lanes)} {{}} to {ssa_type(f32, x.lanes)}", x)


def low_int(b: Builder, x: Value) -> Value:
    """i64 lanes as i32."""
    wide, short = vector_type("i64", x.lanes), vector_type(scalar_type(i32), x.lanes)
    return b.pure(i32, x.lanes, f"trunc {wide} {{}} to {short}", x)
