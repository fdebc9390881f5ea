"""Elementary functions against long double: error in units of the last place, limits, special values."""

import math

import mcjit
import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import f32, f64
from strata.loop import build as b
from strata.loop.nodes import Buffer, Func, Size, Unary, UnaryOp

TARGET_PARAMS = [pytest.param(t, id=name) for name, t in mcjit.TARGETS.items()]
KINDS = [f32, f64]
n = SymDim("n")


def _sigmoid(x):
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


# Function -> reference, largest error in ulp (those of the table in codegen.math_functions, rounded up).
REFERENCE = {
    UnaryOp.EXP: (np.exp, 1.05),
    UnaryOp.LOG: (np.log, 0.9),
    UnaryOp.TANH: (np.tanh, 2.3),
    UnaryOp.SIGMOID: (_sigmoid, 2.3),
    UnaryOp.ERF: (np.vectorize(lambda v: math.erf(float(v)), otypes=[np.longdouble]), 2.1),
    UnaryOp.SIN: (np.sin, 1.6),
    UnaryOp.COS: (np.cos, 1.6),
    UnaryOp.SQRT: (np.sqrt, 0.501),
    UnaryOp.RSQRT: (lambda x: 1 / np.sqrt(x), 1.51),
    UnaryOp.FLOOR: (np.floor, 0.0),
    UnaryOp.ROUND: (np.rint, 0.0),
}
_KERNELS: dict = {}


def kernel(op, kind, target, lanes=16):
    """``y = op(x)``; kernels are made once."""
    key = (op, kind, target.name, lanes)
    if key not in _KERNELS:
        x, y = Buffer("x", (n,), kind), Buffer("y", (n,), kind)
        at = lambda i: b.ramp(b.mul(i, lanes), lanes)  # noqa: E731
        body = b.loop(
            "i", b.floordiv(Size(n), lanes), lambda i: b.store(y, (at(i),), Unary(op, b.load(x, at(i))))
        )
        _KERNELS[key] = mcjit.Kernel(Func("f", (x, y), body), target)
    return _KERNELS[key]


def evaluate(op, kind, target, x, lanes=16):
    data = np.zeros(-(-len(x) // lanes) * lanes, kind.numpy_name)
    data[: len(x)] = x
    out = np.empty_like(data)
    kernel(op, kind, target, lanes)(data, out, n=len(data))
    return out[: len(x)]


def grid(op, kind):
    """All magnitudes, and dense where the functions bend."""
    rng = np.random.default_rng(0)
    low = -38 if kind == f32 else -300
    parts = [
        10.0 ** rng.uniform(low, 4.9, 6000) * rng.choice([-1, 1], 6000),
        rng.uniform(-10, 10, 12000),
        rng.uniform(-110, 110, 4000),
        1 + rng.uniform(-0.3, 0.3, 4000),
        np.arange(-400, 400) * (math.pi / 4),
    ]
    x = np.concatenate(parts).astype(kind.numpy_name)
    return np.abs(x) if op in (UnaryOp.LOG, UnaryOp.SQRT, UnaryOp.RSQRT) else x


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("op", list(REFERENCE), ids=lambda op: op.value)
def test_error(op, kind, target):
    reference, limit = REFERENCE[op]
    x = grid(op, kind)
    want = reference(x.astype(np.longdouble))
    got = evaluate(op, kind, target, x)
    rounded = want.astype(kind.numpy_name)
    finite = np.isfinite(rounded)
    assert (got[~finite] == rounded[~finite]).all()
    tiny = np.finfo(kind.numpy_name).tiny
    ulp = np.spacing(np.maximum(np.abs(rounded[finite]), tiny)).astype(np.longdouble)
    error = np.abs(got[finite] - want[finite]) / ulp
    worst = error.argmax()
    assert error[worst] <= limit, (
        f"{op.value}({x[finite][worst]!r}) = {got[finite][worst]!r}: {error[worst]:.2f} ulp"
    )


LIMITS = {
    UnaryOp.EXP: [(-np.inf, 0), (np.inf, np.inf), (0, 1), (-0.0, 1), (-1e30, 0), (1e30, np.inf)],
    UnaryOp.LOG: [(0, -np.inf), (-0.0, -np.inf), (1, 0), (np.inf, np.inf), (-1, np.nan), (-np.inf, np.nan)],
    UnaryOp.TANH: [(np.inf, 1), (-np.inf, -1), (100, 1), (-100, -1), (0, 0), (1e-30, 1e-30)],
    UnaryOp.SIGMOID: [(np.inf, 1), (-np.inf, 0), (0, 0.5), (200, 1), (-1000, 0)],
    UnaryOp.ERF: [(np.inf, 1), (-np.inf, -1), (7, 1), (-7, -1), (0, 0)],
    UnaryOp.SIN: [(0, 0), (np.inf, np.nan), (-np.inf, np.nan), (2e9, np.nan)],
    UnaryOp.COS: [(0, 1), (np.inf, np.nan), (-np.inf, np.nan), (-2e9, np.nan)],
    UnaryOp.SQRT: [(0, 0), (np.inf, np.inf), (-1, np.nan), (4, 2)],
    UnaryOp.RSQRT: [(0, np.inf), (np.inf, 0), (-1, np.nan), (4, 0.5)],
    UnaryOp.FLOOR: [
        (-0.5, -1),
        (0.5, 0),
        (1e30, 1e30),
        (-np.inf, -np.inf),
        (2.0**23 + 1, 2.0**23 + 1),
        (-3, -3),
    ],
    UnaryOp.ROUND: [
        (-0.5, -0.0),
        (0.5, 0),
        (1.5, 2),
        (2.5, 2),
        (-2.5, -2),
        (-3.5, -4),
        (1e30, 1e30),
        (-np.inf, -np.inf),
        (2.0**23 + 1, 2.0**23 + 1),
        (2.0**22 + 0.5, 2.0**22),
        (127.49, 127),
    ],
}


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("op", list(LIMITS), ids=lambda op: op.value)
def test_limits(op, kind, target, lanes):
    points = [*LIMITS[op], (np.nan, np.nan)]
    got = evaluate(op, kind, target, [p for p, _ in points], lanes)
    np.testing.assert_array_equal(got, np.array([q for _, q in points], kind.numpy_name))


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize(
    "op", [UnaryOp.TANH, UnaryOp.ERF, UnaryOp.FLOOR, UnaryOp.ROUND, UnaryOp.SQRT], ids=lambda op: op.value
)
def test_negative_zero_stays(op, target):
    assert np.signbit(evaluate(op, f32, target, [-0.0]))[0]


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_subnormals(kind, target):
    """Subnormal arguments of log and results of exp."""
    info = np.finfo(kind.numpy_name)
    x = info.smallest_subnormal * 2.0 ** np.arange(0, 20)
    want = np.log(x.astype(np.longdouble)).astype(kind.numpy_name)
    np.testing.assert_allclose(evaluate(UnaryOp.LOG, kind, target, x), want, rtol=3 * info.eps)
    y = np.linspace(math.log(float(info.tiny)) - 20, math.log(float(info.tiny)), 64).astype(kind.numpy_name)
    exact = np.exp(y.astype(np.longdouble))
    got = evaluate(UnaryOp.EXP, kind, target, y)
    assert (np.abs(got - exact) <= 1.01 * info.smallest_subnormal + 1.05 * info.eps * exact).all()


@pytest.mark.parametrize("target", TARGET_PARAMS)
@pytest.mark.parametrize("op", list(REFERENCE), ids=lambda op: op.value)
def test_lanes_do_not_matter(op, target):
    x = np.abs(np.random.default_rng(1).uniform(0.01, 5, 64)).astype(np.float32)
    results = [evaluate(op, f32, target, x, lanes) for lanes in (1, 4, 16, 64)]
    assert all((r == results[0]).all() for r in results)
