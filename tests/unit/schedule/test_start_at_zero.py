"""start_at_zero: sums of integers, their readers, and what is refused."""

import numpy as np
import pytest
from changed_text import changed

from strata.core.errors import LegalityError
from strata.loop.interp import run
from strata.loop.text import parse_func
from strata.schedule import Schedule, apply_trace, parse_trace

TEXT = """
func @f(a: i32[4,8], s: i32[4]) -> (y: i32[4], z: i32[4])
  alloc t: i32[4]
  for p_i0 in 4:
    for p_k0 in 8:
      block "p" (i0: spatial 4 = p_i0, k0: reduce 8 = p_k0):
        init: t[i0] = s[i0] * 3_i32
        t[i0] = t[i0] + a[i0, k0]
  for q_i0 in 4:
    block "q" (i0_1: spatial 4 = q_i0):
      y[i0_1] = t[i0_1] - t[3 - i0_1]
  for r_i0 in 4:
    block "r" (i0_2: spatial 4 = r_i0):
      z[i0_2] = t[i0_2]
"""


def test_every_reader_adds_the_start():
    rng = np.random.default_rng(0)
    a, s = rng.integers(-(2**31), 2**31, (4, 8)).astype(np.int32), np.array([5, -7, 2**30, 0], np.int32)
    func = parse_func(TEXT)
    wants, gots = ([np.zeros(4, np.int32), np.zeros(4, np.int32)] for _ in range(2))
    with np.errstate(over="ignore"):  # sums are exact modulo 2**32
        run(func, [a, s, *wants])
        run(Schedule(func).start_at_zero("p").func, [a, s, *gots])
    for got, want in zip(gots, wants, strict=True):
        np.testing.assert_array_equal(got, want)


WRONG = [
    ([("s[i0] * 3_i32", "0_i32")], "starts at nothing but a constant"),
    ([("i32", "f32"), ("3_f32", "0x1.8p+1")], "is no sum of integers"),
    ([("t[i0] + a", "t[i0] * a")], "is no sum of integers"),
    (
        [("z[i0_2] = t[i0_2]", "s[i0_2] = t[i0_2]")],
        "what it starts at, or its result, is written elsewhere",
    ),
    ([("  alloc t: i32[4]\n", ""), ("z: i32[4])", "t: i32[4])"), ("z[i0_2] = t[i0_2]", "y[i0_2] = t[i0_2]")],
     "fills t, a parameter"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_refused(changes, message):
    text = changed(TEXT, changes)
    with pytest.raises(LegalityError, match=f"start_at_zero: block p.* {message}"):
        apply_trace(parse_func(text), parse_trace("start_at_zero(block=p)"))
