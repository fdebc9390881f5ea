"""Elementary functions of f32 and f64 lanes, branch-free, without library calls.

Largest error over dense grids of all magnitudes, in units of the last place (measured against long double;
the tests hold these functions to it):

========  ===  ===========================================================================
function  ulp  method, the same for f32 and f64
========  ===  ===========================================================================
exp       1.0  Cody-Waite by ln 2, minimax polynomial; subnormal results are exact to 1 ulp
log       0.8  minimax polynomial on [sqrt(1/2), sqrt(2)]; f64 as fdlibm e_log.c
tanh      2.2  expm1(2|x|) / (expm1(2|x|) + 2)
sigmoid   2.2  e = exp(-|x|): 1 / (1 + e) or e / (1 + e)
erf       2.0  odd minimax polynomial below, 1 - erfc above
sin, cos  1.5  for |x| <= 1e5: Cody-Waite by pi/2 in f64, Cephes polynomials
rsqrt     1.5  1 / sqrt(x), both correctly rounded
========  ===  ===========================================================================

Limits: exp(-inf) = 0, exp(large) = inf, log(0) = -inf, log(negative) = NaN, tanh and erf saturate at +-1,
sin and cos are NaN beyond 1e9 (their error grows from 1e6 on); NaN gives NaN. Coefficients without another
source are minimax (Remez exchange in 50 digits, of the relative error of the function), rounded to the
dtype.
"""

from __future__ import annotations

from strata.core.dtypes import f32, f64
from strata.core.errors import CodegenError
from strata.loop.nodes import UnaryOp
from strata.target import Target

from .emit_values import Builder, Value
from .math_core import FloatOps, low_int, narrowed, widened

LOG2_E = 1.4426950408889634
TWO_OVER_PI = 0.6366197723675814

# exp(r) = 1 + r + r*r*Q(r) for |r| <= ln(2)/2; relative error 3.1e-9 and 3.7e-18.
EXP_F32 = (
    0.001381447771564126,
    0.008368780836462975,
    0.04166839271783829,
    0.1666651964187622,
    0.4999999403953552,
)
EXP_F64 = (
    2.4999981133462938e-08, 2.763038349618233e-07, 2.755758754725543e-06, 2.480149275210704e-05,
    0.00019841269504159426, 0.001388888894392859, 0.00833333333349614, 0.0416666666665292,
    0.16666666666666408, 0.5000000000000011,
)  # fmt: skip
# ln 2 in two parts, the first with enough trailing zeros that n times it is exact (Cephes expf.c; fdlibm
# e_exp.c).
LN2_F32 = (0.693359375, -2.12194440e-4)
LN2_F64 = (6.93147180369123816490e-01, 1.90821492927058770002e-10)

# log(1 + f) = f - f*f/2 + f*f*f*P(f) for sqrt(1/2) <= 1 + f <= sqrt(2); relative error 7.5e-10.
LOG_F32 = (
    0.06746921688318253, -0.11675745993852615, 0.11888084560632706, -0.12405567616224289,
    0.14219559729099274, -0.1666799783706665, 0.2000211775302887, -0.25000008940696716,
    0.3333331346511841,
)  # fmt: skip
# fdlibm e_log.c, Lg7 .. Lg1: log(1 + f) = 2s + s*z*R(z), s = f / (2 + f), z = s*s.
LOG_F64 = (
    1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01,
    2.222219843214978396e-01, 2.857142874366239149e-01, 3.999999999940941908e-01,
    6.666666666666735130e-01,
)  # fmt: skip

# erf(x) = x + x*P(x*x) for |x| <= 0.921875 (relative error 4.1e-10);
# log(erfc(t)) = Q(t) above, up to 4 (error 1.5e-9 of erf).
ERF_F32_SMALL = (
    8.370102295884863e-05, -0.0008142704609781504, 0.005201032385230064, -0.026859398931264877,
    0.11283695697784424, -0.37612634897232056, 0.12837916612625122,
)  # fmt: skip
ERF_F32_TAIL = (
    0.0001947297714650631, -0.0030315571930259466, 0.022181237116456032, -0.10383859276771545,
    -0.6372860670089722, -1.1276153326034546, -0.00020995523664169014,
)  # fmt: skip
# erf(x) = x*P(x*x) for |x| <= 1 (1.3e-19);
# erfc(t) = exp(-t*t) / (1 + 2t) * Q((t - 2) / (t + 2)) for 1 <= t <= 6 (1.4e-19).
ERF_F64_SMALL = (
    5.945262897141199e-11, -1.1365666702331508e-09, 1.4657880052504528e-08, -1.6350025257252502e-07,
    1.6460972820674074e-06, -1.4925593507147635e-05, 0.00012055331036911902, -0.0008548326978742597,
    0.005223977624780875, -0.026866170645072896, 0.11283791670954857, -0.3761263890318375,
    1.1283791670955126,
)  # fmt: skip
ERF_F64_TAIL = (
    -1.8513526873946903e-05, 5.149545392076312e-06, 0.00015055677974896048, 0.000205490881207526,
    -0.00045449098454379506, -0.001456792417625953, 0.0012713474391655504, 0.00872265421185486,
    -0.008034015205204963, -0.05422000100402007, 0.16405128003374772, -0.16603039761522917,
    -0.09276382658574525, 1.2769783815525286,
)  # fmt: skip

# pi/2 in three parts with 33 bits each (fdlibm e_rem_pio2.c): n times the first two is exact for n < 2**20.
PIO2 = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
SIN_COS_LIMIT = 1e9  # the reduction has no correct bit left soon after
# Cephes sinf.c, sin.c: sin(r) = r + r*z*S(z), cos(r) = 1 - z/2 + z*z*C(z), z = r*r, |r| <= pi/4.
SIN_F32 = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS_F32 = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
SIN_F64 = (
    1.58962301576546568060e-10, -2.50507477628578072866e-8, 2.75573136213857245213e-6,
    -1.98412698295895385996e-4, 8.33333333332211858878e-3, -1.66666666666666307295e-1,
)  # fmt: skip
COS_F64 = (
    -1.13585365213876817300e-11, 2.08757008419747316778e-9, -2.75573141792967388112e-7,
    2.48015872888517045348e-5, -1.38888888888730564116e-3, 4.16666666666665929218e-2,
)  # fmt: skip


def emit_math(b: Builder, target: Target, op: UnaryOp, x: Value) -> Value:
    """``op(x)`` of f32 or f64 lanes.

    Raises:
        CodegenError: another dtype.
    """
    if x.dtype not in (f32, f64):
        raise CodegenError(f"{op.value}: got an operand of {x.dtype}; expected f32 or f64")
    m = FloatOps(b, target, x.dtype, x.lanes)
    match op:
        case UnaryOp.ABS:
            return m.abs(x)
        case UnaryOp.SQRT:
            return m.sqrt(x)
        case UnaryOp.RSQRT:
            return m.div(1.0, m.sqrt(x))
        case UnaryOp.FLOOR:
            return m.call("floor", x) if target.has_float_rounding else _floor(m, x)
        case UnaryOp.ROUND:
            return m.call("roundeven", x) if target.has_float_rounding else _round(m, x)
        case UnaryOp.EXP:
            return _exp(m, x)
        case UnaryOp.LOG:
            return _log(m, x)
        case UnaryOp.TANH:
            return _tanh(m, x)
        case UnaryOp.SIGMOID:
            return _sigmoid(m, x)
        case UnaryOp.ERF:
            return _erf_f32(m, x) if m.single else _erf_f64(m, x)
        case UnaryOp.SIN | UnaryOp.COS:
            return _sin_cos(m, x, op is UnaryOp.COS)
    raise CodegenError(f"{op.value}: no float function of that name")


def _floor(m: FloatOps, x: Value) -> Value:
    """Without SSE4.1: add and take away ``2**mantissa_bits`` to round, correct by one."""
    big = 2.0**m.mantissa_bits
    size = m.abs(x)
    near = m.copysign(m.sub(m.add(size, big), big), x)
    below = m.sub(near, m.select(m.test("ogt", near, x), 1.0, 0.0))
    # Values of 2**mantissa_bits and more, infinities and NaN are their own floor; so is -0.0.
    return m.select(m.test("olt", size, big), m.copysign(below, x), x)


def _round(m: FloatOps, x: Value) -> Value:
    """Without SSE4.1: adding and taking away ``2**mantissa_bits`` rounds as the FPU does."""
    big = 2.0**m.mantissa_bits
    size = m.abs(x)
    near = m.sub(m.add(size, big), big)
    return m.select(m.test("olt", size, big), m.copysign(near, x), x)


# ----------------------------------------------------------------------------- exp and its relatives


def _reduce_exp(m: FloatOps, x: Value) -> tuple[Value, Value, Value]:
    """``x = n*ln(2) + r``, ``|r| <= ln(2)/2``: ``r``, ``exp(r) - 1 - r`` and the integer ``n``."""
    n_float, n = m.round_to_int(x, LOG2_E)
    high, low = LN2_F32 if m.single else LN2_F64
    r = m.fma(n_float, -low, m.fma(n_float, -high, x))
    q = m.mul(m.mul(r, r), m.poly(r, EXP_F32 if m.single else EXP_F64))
    return r, q, n


def _exp(m: FloatOps, x: Value) -> Value:
    # Beyond these bounds the result is 0 or inf; a NaN passes both tests unchanged.
    least, most = (-104.0, 89.0) if m.single else (-746.0, 710.0)
    r, q, n = _reduce_exp(m, m.at_least(m.at_most(x, most), least))
    return m.scale(m.add(m.add(r, q), 1.0), n)


def _tanh(m: FloatOps, x: Value) -> Value:
    """``e = exp(2|x|) - 1 = 2**n * (r + q) + (2**n - 1)``, without cancellation for small ``x``."""
    size = m.at_most(m.abs(x), 9.1 if m.single else 19.1)
    r, q, n = _reduce_exp(m, m.add(size, size))
    power = m.power_of_two(n)
    e = m.fma(power, m.add(r, q), m.sub(power, 1.0))
    return m.copysign(m.div(e, m.add(e, 2.0)), x)


def _sigmoid(m: FloatOps, x: Value) -> Value:
    e = _exp(m, m.neg(m.abs(x)))
    denominator = m.add(e, 1.0)
    return m.div(m.select(m.test("olt", x, 0.0), e, 1.0), denominator)


# ----------------------------------------------------------------------------- log


def _log(m: FloatOps, x: Value) -> Value:
    """``x = 2**k * (1 + f)`` with ``sqrt(1/2) <= 1 + f < sqrt(2)``; ``log x = k*ln(2) + log(1 + f)``."""
    least_normal = 2.0**-126 if m.single else 2.0**-1022
    tiny = m.test("olt", x, least_normal)
    normal = m.select(tiny, m.mul(x, 2.0**m.mantissa_bits), x)
    # Subtract the pattern of sqrt(1/2): its exponent field is k, and the mantissa goes back on top of
    # sqrt(1/2).
    base = 0x3F3504F3 if m.single else 0x3FE6A09E667F3BCD
    moved = m.int_op("sub", m.bits(normal), base)
    k = m.from_int(m.int_op("ashr", moved, m.mantissa_bits))
    k = m.sub(k, m.select(tiny, float(m.mantissa_bits), 0.0))
    mantissa = m.int_op("and", moved, (1 << m.mantissa_bits) - 1)
    f = m.sub(m.from_bits(m.int_op("add", mantissa, base)), 1.0)
    out = _log1p_f32(m, f, k) if m.single else _log1p_f64(m, f, k)
    out = m.select(m.test("olt", x, float("inf")), out, x)  # inf and NaN are their own logarithms
    out = m.select(m.test("oeq", x, 0.0), float("-inf"), out)
    return m.select(m.test("olt", x, 0.0), float("nan"), out)


def _log1p_f32(m: FloatOps, f: Value, k: Value) -> Value:
    square = m.mul(f, f)
    tail = m.mul(m.mul(square, f), m.poly(f, LOG_F32))
    tail = m.fma(k, LN2_F32[1], tail)
    tail = m.fma(square, -0.5, tail)
    return m.fma(k, LN2_F32[0], m.add(f, tail))


def _log1p_f64(m: FloatOps, f: Value, k: Value) -> Value:
    s = m.div(f, m.add(f, 2.0))
    z = m.mul(s, s)
    remainder = m.mul(z, m.poly(z, LOG_F64))
    half = m.mul(m.mul(f, f), 0.5)
    inner = m.fma(k, LN2_F64[1], m.mul(s, m.add(half, remainder)))
    return m.fma(k, LN2_F64[0], m.sub(f, m.sub(half, inner)))


# ----------------------------------------------------------------------------- erf


def _erf_f32(m: FloatOps, x: Value) -> Value:
    size = m.at_most(m.abs(x), 4.0)
    z = m.mul(x, x)
    small = m.fma(m.poly(z, ERF_F32_SMALL), x, x)
    log_erfc = m.poly(size, ERF_F32_TAIL)
    large = m.copysign(m.sub(1.0, _exp(m, log_erfc)), x)
    return m.select(m.test("ogt", size, 0.921875), large, small)


def _erf_f64(m: FloatOps, x: Value) -> Value:
    size = m.at_most(m.abs(x), 6.0)
    small = m.mul(m.poly(m.mul(x, x), ERF_F64_SMALL), x)
    u = m.div(m.sub(size, 2.0), m.add(size, 2.0))
    decay = m.div(_exp(m, m.neg(m.mul(size, size))), m.fma(size, 2.0, 1.0))
    large = m.copysign(m.sub(1.0, m.mul(decay, m.poly(u, ERF_F64_TAIL))), x)
    return m.select(m.test("ogt", size, 1.0), large, small)


# ----------------------------------------------------------------------------- sin, cos


def _sin_cos(m: FloatOps, x: Value, is_cos: bool) -> Value:
    """Quadrant and remainder by ``n = round(x * 2/pi)``, in f64 for both dtypes."""
    b = m.b
    wide = FloatOps(b, m.target, f64, m.lanes)
    x64 = widened(b, x) if m.single else x
    n_float, n = wide.round_to_int(x64, TWO_OVER_PI)
    r = wide.fma(n_float, -PIO2[0], x64)
    r = wide.fma(n_float, -PIO2[1], r)
    if m.single:
        r, n = narrowed(b, r), low_int(b, n)
    else:
        r = wide.fma(n_float, -PIO2[2], r)
    z = m.mul(r, r)
    sine = m.fma(m.mul(r, z), m.poly(z, SIN_F32 if m.single else SIN_F64), r)
    cosine = m.mul(m.mul(z, z), m.poly(z, COS_F32 if m.single else COS_F64))
    cosine = m.add(m.fma(z, -0.5, cosine), 1.0) if m.single else m.add(m.sub(cosine, m.mul(z, 0.5)), 1.0)
    if is_cos:
        n = m.int_op("add", n, 1)
    odd = m.int_test("ne", m.int_op("and", n, 1), 0)
    out = m.select(m.test("ole", m.abs(x), SIN_COS_LIMIT), m.select(odd, cosine, sine), float("nan"))
    sign = m.int_op("shl", m.int_op("and", n, 2), 30 if m.single else 62)
    return m.from_bits(m.int_op("xor", m.bits(out), sign))
