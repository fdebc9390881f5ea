"""Workloads of one op, and a term of what it costs."""

from strata.core.dims import Dim, SymDim
from strata.graph.workload import Contraction, Value, ValueKind, Work, Workload
from strata.planner.devices.types import Cause, Estimates, Term

L = SymDim("L", 1, 131072)
INPUT, WEIGHT, RESULT = ValueKind.INPUT, ValueKind.WEIGHT, ValueKind.RESULT


def product(
    m: Dim, k: Dim, n: Dim, bits: float = 16, batch: Dim = 1, skipped: Dim = 0, weights: ValueKind = WEIGHT
) -> Workload:
    """``batch`` products of m x k with k x n."""
    c = Contraction(batch, m, n, k, skipped)
    values = (
        Value("x", (batch, m, k), bits, INPUT),
        Value("w", (batch, k, n), bits, weights),
        Value("y", (batch, m, n), bits, RESULT),
    )
    work = Work("y", "matmul", (0, 1), (batch * m * k, batch * k * n), (2,), 2 * c.macs, c)
    return Workload("product", values, (work,), (L,))


def elementwise(op: str, elems: Dim, flop: Dim, bits: float = 16) -> Workload:
    values = (Value("x", (elems,), bits, INPUT), Value("y", (elems,), bits, RESULT))
    return Workload(op, values, (Work("y", op, (0,), (elems,), (1,), flop),), (L,))


def term(estimates: Estimates, place: str, cause: Cause | None = None) -> Term:
    (found,) = (t for t in estimates.terms if t.place == place and cause in (None, t.cause))
    return found
