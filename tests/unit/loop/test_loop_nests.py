"""Nests without blocks get one where each iteration writes an element of its own."""

from __future__ import annotations

import pytest

from strata.loop.check import LOOP_SCHEDULED, check
from strata.loop.nests import with_blocks
from strata.loop.text import parse_func, print_func

HEAD = "dims n in 1..64\nfunc @f(x: f32[n,8]) -> (y: f32[n,8])\n"


def test_a_nest_becomes_a_block():
    func = parse_func(
        HEAD
        + """
  alloc t: f32[n,8]
  let s = x[0, 0]
  y[0, 0] = s
  for i in n:
    for j in 8:
      t[i, j] = x[i, j] + 0x1p+0
  for q in 8:
    for i_1 in n:
      y[i_1, q] = y[i_1, q] * t[i_1, 7 - q]
"""
    )
    made = with_blocks(func)
    check(made, LOOP_SCHEDULED)
    assert (
        print_func(made)
        == HEAD
        + """  alloc t: f32[n,8]
  let s = x[0, 0]
  y[0, 0] = s
  for i in n:
    for j in 8:
      block "t" (vi: spatial n = i, vj: spatial 8 = j):
        t[vi, vj] = x[vi, vj] + 0x1p+0
  for q in 8:
    for i_1 in n:
      block "y" (vq: spatial 8 = q, vi_1: spatial n = i_1):
        y[vi_1, vq] = y[vi_1, vq] * t[vi_1, 7 - vq]
"""
    )


@pytest.mark.parametrize(
    "body",
    [
        "for i in n:\n    y[i, 0] = x[i, 0]",
        "for i in n:\n    for j in 8:\n      y[i, j] = y[i, 7 - j]",
        "for i in n:\n    for j in i + 1:\n      y[i, j] = x[i, j]",
        "for i in n:\n    for j in 8:\n      for k in 8:\n        y[i, j] = y[i, j] + x[i, k]",
        "for i in n:\n    for j in 8:\n      y[i, j] = x[i, j] if j < 4",
        "parallel i in n:\n    for j in 8:\n      y[i, j] = x[i, j]",
        "if n > 3:\n    for i in n:\n      for j in 8:\n        y[i, j] = x[i, j]",
        'for i in n:\n    block "b" (vi: spatial n = i):\n      y[vi, 0] = 1.0'.replace("1.0", "0x1p+0"),
        "y[0, 0] = 0x1p+0",
        "let s = x[0, 0]\n  for i in n:\n    for j in 8:\n      y[i, j] = s",
    ],
)
def test_other_loops_stay(body):
    func = parse_func(f"{HEAD}  {body}\n")
    assert print_func(with_blocks(func)) == print_func(func)
