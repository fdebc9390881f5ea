"""Nests without blocks get one where each iteration writes an element of its own."""

from __future__ import annotations

import pytest

from strata.loop.check import LOOP_SCHEDULED, check
from strata.loop.nests import as_matmul, with_blocks
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


MATMUL = """dims n in 1..64
func @f(x: f32[n,8], w: bf16[8,5]) -> (y: f32[n,5])
  for k in 8:
    for i in n:
      for j in 5:
        block "b" (vk: reduce 8 = k, vi: spatial n = i, vj: spatial 5 = j):
          init: y[vi, vj] = 0x1p+0
          y[vi, vj] = y[vi, vj] + x[vi, vk] * f32(w[vk, vj])
"""


def test_a_sum_of_products_becomes_two_stages():
    made = as_matmul(parse_func(MATMUL))
    assert made is not None
    check(made, LOOP_SCHEDULED)
    assert (
        print_func(made)
        == """dims n in 1..64
func @f(x: f32[n,8], w: bf16[8,5]) -> (y: f32[n,5])
  alloc matmul_buf: f32[n,5]
  for matmul_i0 in n:
    for matmul_i1 in 5:
      for matmul_k0 in 8:
        block "matmul" (i0: spatial n = matmul_i0, i1: spatial 5 = matmul_i1, k0: reduce 8 = matmul_k0):
          init: matmul_buf[i0, i1] = 0x1p+0
          matmul_buf[i0, i1] = matmul_buf[i0, i1] + x[i0, k0] * f32(w[k0, i1])
  for out_i0 in n:
    for out_i1 in 5:
      block "out" (i0_1: spatial n = out_i0, i1_1: spatial 5 = out_i1):
        y[i0_1, i1_1] = matmul_buf[i0_1, i1_1]
"""
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x[vi, vk] * f32(w[vk, vj])", "x[vi, vk]"),
        ("x[vi, vk] * f32(w[vk, vj])", "y[vi, vj] * f32(w[vk, vj])"),
        ("y[vi, vj] + x", "y[vi, vj] - x"),
        ("y[vi, vj] + x", "y[vi, 0] + x"),
        ("init: y[vi, vj] = 0x1p+0", "init: y[vi, vj] = x[vi, 0]"),
        ("init: y[vi, vj]", "init: y[vi, 0]"),
        ("          init: y[vi, vj] = 0x1p+0\n", ""),
        ("spatial 5 = j", "spatial 5 = 4 - j"),
        ("spatial 5 = j", "spatial 5 = i"),
        ("spatial 5 = j", "reduce 5 = j"),
        ("reduce 8 = k", "spatial 8 = k"),
        (" = j):", " = j) where j < 4:"),
        ("for j in 5", "parallel j in 5"),
        ("vj: spatial 5 = j", "vj: spatial 4 = j"),
    ],
)
def test_other_blocks_are_no_sums_of_products(old, new):
    assert old in MATMUL
    assert as_matmul(parse_func(MATMUL.replace(old, new))) is None
