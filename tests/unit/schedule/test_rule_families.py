"""Rules on functions that no lowering made: kernels of one block, and what they must leave alone."""

import numpy as np
import pytest

from strata.loop.check import LOOP_LOWERED, check
from strata.loop.interp import run
from strata.loop.text import parse_func
from strata.schedule import propose
from strata.target import get_target

TARGET = get_target("zen5")
DENSE = """
dims n in 1..64
func @dense(x: f32[n,32], w: f32[{shape}]) -> (y: f32[n,48])
  for i in n:
    for j in 48:
      for k in 32:
        block "dense" (vi: spatial n = i, vj: spatial 48 = j, vk: reduce 32 = k):
          init: y[vi, vj] = 0x0p+0
          y[vi, vj] = y[vi, vj] + x[vi, vk] * w[{index}]
"""


@pytest.mark.parametrize(
    ("shape", "index", "names"),
    [
        ("48,32", "vj, vk", ["cpu.gemv.depth8", "cpu.matmul.depth4x4"]),
        ("32,48", "vk, vj", ["cpu.matmul.tile1x48", "cpu.matmul.tile4x48", "cpu.matmul.tile6x48"]),
    ],
)
def test_a_product_in_one_block_is_a_matmul(shape: str, index: str, names: list[str]) -> None:
    func = parse_func(DENSE.format(shape=shape, index=index))
    proposals = propose(func, TARGET)
    assert [p.name for p in proposals] == names
    assert all(str(p.trace[0]) == "cache_write(block=dense)" for p in proposals)
    rng = np.random.default_rng(0)
    shapes = [(5, 32), tuple(map(int, shape.split(","))), (5, 48)]
    args = [rng.integers(-4, 5, s).astype(np.float32) for s in shapes]
    run(func, args)
    for proposal in proposals:
        check(proposal.func, LOOP_LOWERED)
        again = [*args[:2], np.zeros((5, 48), np.float32)]
        run(proposal.func, again, parallel_seed=1)
        np.testing.assert_array_equal(again[-1], args[-1])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("          init: y[vi, vj] = 0x0p+0\n", ""),  # adds to what is there
        (" * w[vj, vk]", " + w[vj, vk]"),  # no product
        ("for i in n:", "for h in 1:\n   for i in n:"),  # a loop that no axis has
        ("k: reduce 32 = k", "k: reduce 32 = k // 2 + k % 2 + k // 2"),
    ],
)
def test_other_blocks_are_no_matmul(old: str, new: str) -> None:
    text = DENSE.format(shape="48,32", index="vj, vk")
    assert old in text
    func = parse_func(text.replace(old, new))
    assert {p.name for p in propose(func, TARGET)} <= {"cpu.rows", "cpu.fallback"}


def test_a_long_vector_is_cut_into_large_pieces() -> None:
    text = (
        'func @f(x: f32[4096]) -> (y: f32[4096])\n  for i in 4096:\n    block "out" (v: spatial 4096 = i):\n'
    )
    (proposal,) = propose(parse_func(text + "      y[v] = x[v] * 0x1p+1\n"), TARGET)
    assert [str(s) for s in proposal.trace] == [
        "split(loop=i, factor=16)",
        "vectorize(loop=ii)",
        "parallel(loop=io)",
        "annotate(name=io, key=grain, value=1024)",
    ]
    assert proposal.func.body.notes == (("grain", 1024),)  # type: ignore[union-attr]


def test_a_finished_function_stays_as_it_is() -> None:
    func = parse_func("func @f(x: f32[8]) -> (y: f32[8])\n  parallel i in 8:\n    y[i] = x[i]\n")
    (proposal,) = propose(func, TARGET)
    assert (proposal.name, proposal.trace) == ("cpu.lowered", ())
