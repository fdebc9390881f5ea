"""Every reason for which a function cannot be finalised."""

import pytest

from strata.core.errors import LegalityError
from strata.loop.text import parse_func
from strata.schedule import finalize

HEAD = """dims n in 1..64
func @f(x: f32[n,16], t: i64[16]) -> (y: f32[n,16], s: f32[16])
  for i in n:
"""
CASES = [
    ("vectorize j in n:\n  y[i, j % 16] = 0x1p+0", "vectorize: loop j has no constant extent"),
    (
        "vectorize j in 4:\n  vectorize k in 4:\n    y[i, j * 4 + k] = 0x1p+0",
        "loop j has vectors inside already",
    ),
    ("vectorize j in 4:\n  y[i, 0] = x[i, j]", "iterations of j write the same elements of y"),
    (
        "vectorize j in 4:\n  y[i, j + 1] = y[i, j]",
        "iterations of j may read elements of y that others write",
    ),
    ("vectorize j in 4:\n  for k in j:\n    y[i, j] = x[i, k]", "extent of loop k depends on j"),
    ("vectorize j in 4:\n  alloc q: f32[4] local\n  q[j] = 0x1p+0\n  y[i, j] = q[j]", "alloc inside loop j"),
    ("vectorize j in 4:\n  y[i, j] = x[i, j] if j < 3", "masked store inside loop j"),
    ("vectorize j in 4:\n  y[i, j] = (x[i, j] if j < 3)", "masked load inside loop j"),
    ("vectorize j in 4:\n  y[j, i] = x[i, j]", "y is indexed by loop j in a dim that is not its last"),
    ("vectorize j in 4:\n  y[i, j] = x[j, i]", "x is indexed by loop j in a dim that is not its last"),
    (
        "for k in 9:\n  vectorize j in 4:\n    if k * 4 + j < n:\n      s[k * 4] = s[k * 4] + x[i, j]",
        "s may be outside where no lane is on",
    ),
    (
        "vectorize j in 4:\n  s[0] = s[0] + x[i, 0]",
        "vectorize: store to s does not depend on loop j",
    ),
    (
        "alloc r: f32[4] register\nfor k in 4:\n  r[k] = x[i, k]\ny[i, 0] = r[0]",
        "finalize: index k of register buffer r varies at run time; unroll the loops that it depends on",
    ),
    (
        "alloc r: f32[4] register\nr[0] = x[i, 0]\ny[i, 0] = r[t[0]]",
        r"finalize: index t\[0\] of register buffer r varies at run time",
    ),
    (
        "alloc r: f32[64] register\nr[0] = x[i, 0]\ny[i, 0] = r[n - 1]",
        "finalize: index n - 1 of register buffer r varies at run time",
    ),
    (
        "for k in 4 with prefetch_x=1:\n  for j in 4:\n    y[i, j] = x[i, t[k]]",
        "prefetch: loop k reads nothing of x where it can tell",
    ),
    (
        "for k in 4 with prefetch_x=1:\n  let q = t[k]\n  for j in 4:\n    y[i, j] = x[i, q]",
        "prefetch: loop k reads nothing of x where it can tell",
    ),
    (
        'for k in 4 with prefetch_x="far":\n  y[i, k] = x[i, k]',
        "prefetch: loop k: got a distance of 'far'; expected a positive integer",
    ),
]


@pytest.mark.parametrize(("body", "message"), CASES)
def test_finalize_refuses(body: str, message: str) -> None:
    lines = "\n".join("    " + line for line in body.split("\n"))
    with pytest.raises(LegalityError, match=message):
        finalize(parse_func(HEAD + lines + "\n"))


def test_registers_take_indices_of_unrolled_loops() -> None:
    text = """
func @f(x: f32[16]) -> (y: f32[16])
  alloc r: f32[8] register
  unroll k in 4:
    let at = k * 2
    r[at] = x[k]
  unroll h in 4:
    y[h] = r[h * 2]
"""
    finalize(parse_func(text))
