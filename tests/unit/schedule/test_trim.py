"""trim: tiles of rows that nobody reads are not made, and what is refused."""

import numpy as np
import pytest
from changed_text import changed

from strata.core.errors import LegalityError
from strata.loop.interp import run
from strata.loop.text import parse_func, print_func
from strata.schedule import Schedule, apply_trace, parse_trace

TEXT = """
dims n in 1..64
func @f(x: f32[n]) -> (y: f32[n])
  for b in (n + 11) // 12:
    alloc t: f32[12] local
    for z in 12:
      block "zero" (l0: spatial 12 = z):
        t[l0] = 0x0p+0
    for g in 5:
      for o in 4:
        for i in 3:
          block "p" (l1: spatial 12 = o * 3 + i, r: spatial n + 12 = b * 12 + o * 3 + i, k0: reduce 5 = g):
            t[l1] = t[l1] + x[min(r, n - 1)]
    for j in 12:
      block "c" (l2: spatial 12 = j, s: spatial n = b * 12 + j) where b * 12 + j < n:
        y[s] = t[l2]
"""


@pytest.mark.parametrize("n", [1, 3, 4, 11, 12, 13, 24, 40])
def test_the_same_is_made_in_fewer_iterations(n):
    func = parse_func(TEXT)
    trimmed = Schedule(func).trim("o").func
    assert "for o in min(4, (n + 2) // 3 - b * 4)" in print_func(trimmed)
    x = np.arange(n, dtype=np.float32)
    results = []
    for f in (func, trimmed):
        y = np.full(n, -1, np.float32)
        run(f, [x, y])
        results.append(y)
    np.testing.assert_array_equal(results[0], 5 * x)
    np.testing.assert_array_equal(results[1], results[0])


OTHER_READER = """\
    for q in 12:
      block "d" (l3: spatial 12 = q):
        y[0] = t[l3]
"""
WRONG = [
    ([(" where b * 12 + j < n", "")], "nothing says up to where t is read"),
    ([("b * 12 + j < n", "j * 2 < n")], "nothing says up to where t is read"),
    ([("for o in 4", "for o in n")], "is not serial, or its extent is not constant"),
    ([("12 = o * 3 + i,", "12 = i * 3 + o * o,")], "are not a constant distance apart"),
    ([("12 = o * 3 + i,", "12 = 9 - o * 3 + i,")], "are not a constant distance apart"),
    ([("12 = o * 3 + i,", "12 = o * 3 + i - 1,")], "may begin before the first element"),
    ([("t[l1] = t[l1] + x", "t[l1] = t[11 - l1] + x")], "touches t at several places"),
    ([("    alloc t: f32[12] local\n", ""), ("-> (y: f32[n])", "-> (y: f32[n], t: f32[12])")],
     "t is a parameter"),
    ([("y[s] = t[l2]\n", "y[s] = t[l2]\n" + OTHER_READER)], "nothing says up to where t is read"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_refused(changes, message):
    with pytest.raises(LegalityError, match=f"trim: .*{message}"):
        apply_trace(parse_func(changed(TEXT, changes)), parse_trace("trim(loop=o)"))
