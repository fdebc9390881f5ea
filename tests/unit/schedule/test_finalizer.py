"""Versions of one function, finalised one after the other: the result is that of finalising each alone."""

from strata.loop.nodes import Alloc, Func, Seq, Stmt
from strata.loop.text import parse_func, print_func
from strata.schedule import apply_trace, finalize, parse_trace
from strata.schedule.finalize import Finalizer

TEXT = """
dims n in 1..64
func @f(x: f32[n,32]) -> (y: f32[n,32])
  alloc t: f32[n,32]
  alloc unused: f32[n,32]
  for i in n:
    for j in 32:
      block "a" (i0: spatial n = i, j0: spatial 32 = j):
        t[i0, j0] = x[i0, j0] * 0x1p+1
  for p in n:
    for q in 32:
      block "b" (p0: spatial n = p, q0: spatial 32 = q):
        y[p0, q0] = t[p0, q0] + 0x1p+0
"""
TRACES = ("", "split(loop=q, factor=8)", "vectorize(loop=qi)", "split(loop=j, factor=4); vectorize(loop=ji)")


def parts(func: Func) -> tuple[Stmt, ...]:
    """Statements below the buffers."""
    body = func.body
    while isinstance(body, Alloc):
        body = body.body
    assert isinstance(body, Seq)
    return body.stmts


def test_unchanged_parts_are_kept():
    func, finalizer, before = parse_func(TEXT), Finalizer(), None
    for text in TRACES:
        func = apply_trace(func, parse_trace(text))
        got = finalizer.finalize(func)
        assert print_func(got) == print_func(finalize(func))
        assert "unused" not in print_func(got)
        if before is not None:
            same = [a is b for a, b in zip(parts(before), parts(got), strict=True)]
            assert same == ([False, True] if "loop=j" in text else [True, False])
        before = got
