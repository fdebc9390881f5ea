"""Matrix loops: products of tiles, clamped rows, sums of several loops; with a matrix unit and without."""

import functools
import re

import mcjit
import numpy as np
import pytest
from changed_text import changed

from strata.core.dims import evaluate
from strata.core.dtypes import bf16, i8
from strata.core.errors import LegalityError, VerifyError
from strata.loop.interp import run
from strata.loop.matrix import has_matrix_loop, nests_of
from strata.loop.nodes import PREFETCH, Func
from strata.loop.rewrite import find_loop
from strata.loop.text import parse_func
from strata.loop.values import numpy_dtype
from strata.schedule import apply_trace, finalize, parse_trace
from strata.target import get_target

PAIRS = """
dims n in 1..128
func @pairs(x: bf16[n,96], w: bf16[3,48,128]) -> (y: f32[n,192])
  parallel j in 3:
    for m in (n + 31) // 32:
      for h in 2:
        alloc acc: f32[32,32] local
        for i in 32:
          unroll c in 2:
            acc[i, ramp(c * 16, 16)] = splat(0x1p+0, 16)
        for k in 3 with matrix=1:
          unroll a in 2:
            unroll c in 2:
              for r in 16:
                for g in 16:
                  acc[a * 16 + r, ramp(c * 16, 16)] = @dot2_bf16<f32x16>(acc[a * 16 + r, ramp(c * 16, 16)], x[min(m * 32 + a * 16 + r, n - 1), ramp(k * 32 + g * 2, 2)], w[j, k * 16 + g, ramp(h * 64 + c * 32, 32)])
        for i in 32:
          if m * 32 + i < n:
            unroll c in 2:
              y[m * 32 + i, ramp(j * 64 + h * 32 + c * 16, 16)] = acc[i, ramp(c * 16, 16)]
"""  # noqa: E501
FOURS = """
dims n in 1..128
func @fours(x: i8[n,256], w: u8[2,64,128]) -> (y: i32[n,64])
  parallel j in 2:
    for m in (n + 15) // 16:
      alloc acc: i32[16,1,32] local
      for i in 16:
        unroll c in 2:
          acc[i, 0, ramp(c * 16, 16)] = splat(-7_i32, 16)
      for half in 2:
        for k in 2 with matrix=1:
          unroll c in 2:
            for r in 16:
              for g in 16:
                acc[r, 0, ramp(c * 16, 16)] = @dot4_u8i8<i32x16>(acc[r, 0, ramp(c * 16, 16)], w[j, half * 32 + k * 16 + g, ramp(c * 64, 64)], x[min(m * 16 + r, n - 1), ramp(half * 128 + k * 64 + g * 4, 4)])
      for i in 16:
        if m * 16 + i < n:
          unroll c in 2:
            y[m * 16 + i, ramp(j * 32 + c * 16, 16)] = acc[i, 0, ramp(c * 16, 16)]
"""  # noqa: E501
FUNCS = {
    "pairs": parse_func(PAIRS),
    "fours": parse_func(FOURS),
    # What is left of clamped rows where a dim is known to be small.
    "one_row": parse_func(FOURS.replace("min(m * 16 + r, n - 1)", "n - 1")),
}
AMX = get_target("avx512-amx")


def arguments(func: Func, rows: int) -> list[np.ndarray]:
    """Operands with every code of a byte; of bf16 small whole numbers, whose sums are exact in any order."""
    rng, arrays = np.random.default_rng(rows), []
    for p in func.params:
        shape = tuple(evaluate(d, {"n": rows}) for d in p.shape)
        lo, hi = (-9, 10) if p.dtype == bf16 else (-128, 128) if p.dtype == i8 else (0, 256)
        arrays.append(rng.integers(lo, hi, shape).astype(numpy_dtype(p.dtype)))
    return arrays


@functools.cache
def interpreted(name: str, rows: int) -> np.ndarray:
    """What the interpreter computes of :func:`arguments`."""
    func = FUNCS[name]
    x, w, out = arguments(func, rows)
    run(func, [x, w, result := np.full_like(out, 99)])
    return result


@pytest.mark.parametrize("name", list(FUNCS))
@pytest.mark.parametrize("target", list(mcjit.TARGETS))
def test_every_instruction_set_adds_the_same_products(name, target):
    func = FUNCS[name]
    kernel = mcjit.Kernel(func, mcjit.TARGETS[target])
    for rows in (1, 15, 16, 17, 31, 32, 33, 48, 50, 64, 65):
        x, w, out = arguments(func, rows)
        kernel(x, w, got := np.full_like(out, 99), n=rows)
        np.testing.assert_array_equal(got, interpreted(name, rows), err_msg=f"{rows} rows")


@pytest.mark.parametrize(
    ("name", "instruction", "count"), [("pairs", "tdpbf16ps", 4), ("fours", "tdpbsud", 2)]
)
def test_one_instruction_per_product_of_tiles(name, instruction, count):
    kernel = mcjit.codegen.assembly(mcjit.codegen.emit_module(FUNCS[name], AMX), AMX)
    body = kernel.split(".par0.body:")[1].split("\n\n")[0]
    found = re.findall(r"\b(tdp\w+|tileload\w+|tilestored|ldtilecfg|tilerelease)\b", body)
    # Twice: rows in line, and clamped ones; sums are the same. Operands that products share are loaded once.
    assert found.count(instruction) == 2 * count
    operands = 4 if name == "pairs" else 3
    assert found.count("tileloadd") == count + 2 * operands
    assert found.count("tilestored") == count
    assert (found[0], found[-1]) == ("ldtilecfg", "tilerelease")
    assert found.count("ldtilecfg") == found.count("tilerelease") == 1
    assert not re.search(r"\bvdpbf16ps|\bvpdpbusd", body)


def test_operands_that_stay_are_loaded_before_the_loop():
    text = PAIRS.replace("ramp(k * 32 + g * 2, 2)", "ramp(g * 2, 2)").replace("k * 16 + g", "g")
    text = text.replace("min(m * 32 + a * 16 + r, n - 1)", "a * 16 + r").replace(
        "dims n in 1..128", "dims n in 32..128"
    )
    kernel = mcjit.codegen.assembly(mcjit.codegen.emit_module(parse_func(text), AMX), AMX)
    body = kernel.split(".par0.body:")[1].split("\n\n")[0]
    found = re.findall(r"\b(tdp\w+|tileload\w+)\b", body)
    assert found == ["tileloadd"] * 8 + ["tdpbf16ps"] * 4


@pytest.mark.parametrize(("level", "hint"), [(1, "prefetcht0"), (2, "prefetcht1")])
def test_tiles_are_fetched_ahead(level, hint):
    """16 lines of each, as far ahead as the note says; not rows that are clamped."""
    note = PREFETCH[level]
    text = PAIRS.replace("with matrix=1", f"with matrix=1, {note}x=2, {note}w=3")
    fetching = parse_func(text)
    assert find_loop(finalize(fetching), "k").notes == find_loop(fetching, "k").notes
    body = mcjit.codegen.assembly(mcjit.codegen.emit_module(fetching, AMX), AMX).split(".par0.body:")[1]
    assert set(re.findall(r"\b(prefetch\w+)\b", body)) == {hint}
    # Two tiles of x and two of w where rows are in line; two of w where they are not.
    assert len(re.findall(rf"\b{hint}\b", body)) == (4 + 2) * 16
    for rows in (17, 64):
        x, w, out = arguments(fetching, rows)
        mcjit.Kernel(fetching)(x, w, got := np.full_like(out, 99), n=rows)
        np.testing.assert_array_equal(got, interpreted("pairs", rows))


def test_only_tiles_that_are_multiplied_are_fetched_ahead():
    text = PAIRS.replace("with matrix=1", "with matrix=1, prefetch1_y=2")
    with pytest.raises(LegalityError, match="prefetch: loop k multiplies no tiles of y"):
        finalize(parse_func(text))


WRONG = [
    ([("for r in 16", "for r in 8")], "are not 16 rows and 16 groups of dot products"),
    ([("g * 2, 2", "g * 4, 2")], "operands are not tiles of rows in line"),
    ([("k * 16 + g,", "k * 16 + g * 2,")], "operands are not tiles of rows in line"),
    ([("min(m * 32 + a * 16 + r, n - 1)", "min(m * 32 + a * 16 + r * 2, n - 1)")], "operands are not tiles"),
    ([("min(m * 32 + a * 16 + r, n - 1)", "max(m * 32 + a * 16 + r, n - 1)")], "operands are not tiles"),
    ([("acc[a * 16 + r,", "acc[a * 16 + k,")], "operands are not tiles of rows in line"),
    (
        [("unroll c in 2:\n              for r", "for c in 2:\n              for r")],
        "got for; expected loops around",
    ),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_what_is_no_matrix_loop(changes, message):
    text = changed(PAIRS, changes)
    func = parse_func(text)
    with pytest.raises(VerifyError, match=message):
        nests_of(find_loop(func, "k"))
    with pytest.raises(LegalityError, match=f"matrix_unit: .*{message}"):
        apply_trace(func, parse_trace("matrix_unit(loop=k)"))


def test_sums_must_be_in_memory():
    func = parse_func(PAIRS.replace("local", "register"))
    with pytest.raises(LegalityError, match="sums of loop k are in registers; expected local memory"):
        apply_trace(func, parse_trace("matrix_unit(loop=k)"))
    assert has_matrix_loop(finalize(FUNCS["pairs"]))
    assert not has_matrix_loop(parse_func(PAIRS.replace(" with matrix=1", "")))
