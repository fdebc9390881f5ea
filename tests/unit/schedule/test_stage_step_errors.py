"""Every reason for which steps on stages, memory and reductions are refused; tails, axes and notes."""

import changed_text
import pytest

from strata.core.errors import LegalityError
from strata.loop.nodes import Func
from strata.loop.text import parse_func
from strata.schedule import apply_trace, parse_trace

# t = x * 2, then y = t + v; u is something else in between.
TWO = """
dims n in 1..64
func @f(x: i32[n,8], v: i32[8], q: i64[n]) -> (y: i32[n,8], z: i32[n,8])
  alloc t: i32[n,8]
  for t_i0 in n:
    for t_i1 in 8:
      block "t" (i0: spatial n = t_i0, i1: spatial 8 = t_i1):
        t[i0, i1] = x[i0, i1] * 2_i32
  for w in n:
    block "w" (i0: spatial n = w):
      z[i0, 0] = 1_i32
  for i in n:
    for j in 8:
      block "out" (i0: spatial n = i, i1: spatial 8 = j):
        y[i0, i1] = t[i0, i1] + v[i1]
"""
T = "t[i0, i1] = x[i0, i1] * 2_i32"
W = "z[i0, 0] = 1_i32"
OUT = "y[i0, i1] = t[i0, i1] + v[i1]"
SUM = """
dims n in 1..64
func @f(x: i32[n,8], z: i32[64]) -> (s: i32[n], u: i32[n])
  for i in n:
    for k in 8:
      block "s" (i0: spatial n = i, k0: reduce 8 = k):
        init: s[i0] = 0_i32
        s[i0] = s[i0] + x[i0, k0]
"""
HEAD = "dims n in 1..64\nfunc @f(x: i32[n,8], t: i64[8]) -> (y: i32[n,8])\n"

Changes = list[tuple[str, str]]


def changed(text: str, changes: Changes) -> Func:
    """The function with some of its text replaced."""
    return parse_func(changed_text.changed(text, changes))


def refused(func: Func, trace: str, message: str) -> None:
    *before, last = parse_trace(trace)
    func = apply_trace(func, tuple(before))
    with pytest.raises(LegalityError, match=message):
        last.apply(func)


LOOPS = [
    (
        "for j in 5:\n    y[0, j] = 1_i32",
        "split(loop=j, factor=2, tail=cut)",
        "got tail 'cut'; expected one of",
    ),
    (
        "for j in 8:\n    y[0, j] = 1_i32",
        "split(loop=j, factor=3, tail=exact)",
        "factor 3 does not divide loop j of 8 iterations; use tail=guard or tail=peel, or a factor of 2, 4",
    ),
    (
        "for j in 7:\n    y[0, j] = 1_i32",
        "split(loop=j, factor=3, tail=exact)",
        "factor 3 does not divide loop j of 7 iterations; use tail=guard or tail=peel$",
    ),
    (
        "for j in n:\n    y[j, 0] = 1_i32",
        "split(loop=j, factor=3, tail=exact)",
        "factor 3 may not divide the extent of loop j; use tail=guard or tail=peel",
    ),
    (
        "for j in t[0]:\n    y[0, j] = 1_i32",
        "split(loop=j, factor=3, tail=peel)",
        "split: extent of j comes from memory; use tail=guard",
    ),
    (
        "for j in n - 2:\n    y[0, j] = 1_i32",
        "split(loop=j, factor=3, tail=peel)",
        "split: extent of j may be negative; use tail=guard",
    ),
    (
        "for jt in 2:\n    for j in 7:\n      y[jt, j] = 1_i32",
        "split(loop=j, factor=3, tail=peel)",
        "split: the name jt is taken",
    ),
    (
        "for j in 5:\n    y[0, j] = 1_i32",
        "tile(loops=j, factors=2|2)",
        "got 1 loops and 2 factors; expected one per",
    ),
    (
        "for j in 5:\n    y[0, j] = 1_i32",
        "tile(loops=j, factors=2)",
        "tile: split: factor 2 may not divide loop j",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "tile(loops=j, factors=2)",
        "tile: reorder: loops jo, ji are not perfectly",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "pad(loop=j, multiple=0)",
        "pad: got multiple 0; expected at least 1",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "pad(loop=j, multiple=3)",
        "pad: loop j cannot be guarded: it stores outside",
    ),
    (
        "parallel j in 4:\n    y[0, j] = 1_i32",
        "pad(loop=j, multiple=3)",
        "pad: loop j is parallel; expected a serial",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "bind(loop=j, axis=warp)",
        "got axis 'warp'; expected one of block_x, .*lane",
    ),
    (
        "unroll j in 4:\n    y[0, j] = 1_i32",
        "bind(loop=j, axis=lane)",
        "bind: loop j is unroll; expected a serial loop",
    ),
    (
        "for j in 4:\n    y[0, 0] = 1_i32",
        "bind(loop=j, axis=lane)",
        "bind: iterations of j write the same elements",
    ),
    (
        "for i in 4:\n    for j in 4:\n      y[i, j] = 1_i32",
        "bind(loop=j, axis=block_x); bind(loop=i, axis=block_x)",
        "bind: block_x is taken by loop j; expected another axis",
    ),
    (
        "for i in 4:\n    for j in 4:\n      y[i, j] = 1_i32",
        "bind(loop=i, axis=lane); bind(loop=j, axis=lane)",
        "bind: lane is taken by loop i; expected another axis",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "annotate(name=q, key=a, value=1)",
        "'q' names 0 loops and blocks; expected",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "annotate(name=j, key=a b, value=1)",
        "got key 'a b'; expected an identifier",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "annotate(name=j, key=a, value=a b)",
        "got value 'a b'; expected an integer, or",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "annotate(name=j, key=a, value=+3)",
        r"got value '\+3'; expected an integer, or",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "annotate(name=j, key=grain, value=0)",
        "got grain 0; expected a positive integer",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "annotate(name=j, key=grain, value=a)",
        "got grain 'a'; expected a positive",
    ),
    (
        'for j in 4:\n    block "b" (a: spatial 4 = j):\n      y[0, a] = 1_i32',
        "annotate(name=b, key=grain, value=1)",
        "got grain 1; expected a positive integer, on a loop",
    ),
    (
        "for j in 4:\n    y[0, j] = 1_i32",
        "annotate(name=j, key=even, value=-1)",
        "got even -1; expected 0 or a positive integer, on a loop",
    ),
]
MEMORY = [
    (
        [],
        "cache_read(block=out, buffer=t, space=shared)",
        "got space 'shared'; expected one of global, local, register",
    ),
    (
        [],
        "cache_read(block=out, buffer=x)",
        "block out reads 0 buffers called 'x'; expected exactly one; it reads t, v",
    ),
    (
        [(OUT, "y[i0, i1] = y[i0, i1] + t[i0, i1]")],
        "cache_read(block=out, buffer=y)",
        "y is written in the loops around",
    ),
    (
        [],
        "cache_read(block=out, buffer=t, space=local)",
        r"cache_read: t takes 32\*n bytes of stack; expected at most",
    ),
    (
        [],
        "cache_read(block=out, buffer=t); cache_read(block=out, buffer=t)",
        "block out reads 0 buffers called 't'; expected exactly one; it reads out_t, v",
    ),
    (
        [("for w in", "for out_t in"), ("= w)", "= out_t)")],
        "cache_read(block=out, buffer=t)",
        "the name out_t is taken",
    ),
    ([], "cache_write(block=out, space=heap)", "cache_write: got space 'heap'; expected one of"),
    (
        [],
        "split(loop=j, factor=4); cache_write(block=out)",
        "loops of block out are not one per axis any more",
    ),
    (
        [(OUT, "y[i0, i1] = y[i0, i1] + v[i1]")],
        "cache_write(block=out)",
        "block out adds to what y has before",
    ),
    (
        [(OUT, "if i1 < 3:\n          " + OUT)],
        "cache_write(block=out)",
        "block out may leave elements of y as they are",
    ),
    ([], "cache_write(block=out, space=register)", r"cache_write: y takes 32\*n bytes of stack"),
    (
        [("for w in", "for out_y in"), ("= w)", "= out_y)")],
        "cache_write(block=out)",
        "the name out_y is taken",
    ),
    (
        [],
        "set_scope(buffer=t, space=far)",
        "set_scope: got space 'far'; expected one of global, local, register",
    ),
    ([], "set_scope(buffer=y, space=local)", "0 buffers called 'y' are allocated; expected one; known: t"),
    ([], "set_scope(buffer=t, space=local)", r"set_scope: t takes 32\*n bytes of stack"),
    (
        [],
        "compute_at(block=t, loop=i); set_scope(buffer=t, space=global)",
        "t is allocated in a loop; expected local or",
    ),
]
INLINE = [
    (
        [],
        "split(loop=t_i1, factor=4); compute_inline(block=t)",
        "loops of block t are not one per axis any more",
    ),
    (
        [(T, "t[i0, i1] = t[i0, i1] * 2_i32")],
        "compute_inline(block=t)",
        "block t is no single store of a formula",
    ),
    (
        [(T, "init: t[i0, i1] = 0_i32\n        " + T)],
        "compute_inline(block=t)",
        "block t is no single store of a formula",
    ),
    ([], "compute_inline(block=out)", "y is a parameter; only intermediates can be left out"),
    ([(W, "t[i0, 0] = 1_i32")], "compute_inline(block=t)", "t is also written outside of block t"),
    ([(T, "t[i0, i1] = z[i0, i1]")], "compute_inline(block=t)", "what block t reads is written after it"),
    (
        [("  for t_i0", "  for e in n:\n    y[e, 0] = t[e, 0]\n  for t_i0")],
        "compute_inline(block=t)",
        "t is read before block t",
    ),
    (
        [("+ v[i1]", "+ (t[i0, 0] if i1 < 3)")],
        "compute_inline(block=t)",
        "t is read in vectors or under a mask",
    ),
    (
        [
            ("  for t_i0 in n:", "  alloc a: i32[8]:\n   for t_i0 in n:"),
            (T, "t[i0, i1] = a[i1]"),
            ("    for t_i1", "      for t_i1"),
            ('      block "t"', '        block "t"'),
            ("        t[i0", "          t[i0"),
        ],
        "compute_inline(block=t)",
        "a buffer that block t reads is not allocated where t is read",
    ),
    (
        [(OUT, "y[i0, i1] = t[i1, i0]")],
        "reverse_compute_inline(block=out)",
        "out reads no whole intermediate buffer",
    ),
    (
        [(OUT, "y[i0, i1] = t[i0, i1] + t[i0, 0]")],
        "reverse_compute_inline(block=out)",
        "out reads no whole intermediate",
    ),
    (
        [(OUT, "y[i0, i1] = (t[i0, i1] if i1 < 3)")],
        "reverse_compute_inline(block=out)",
        "out reads no whole intermediate",
    ),
    (
        [(W, "t[i0, 0] = 1_i32")],
        "reverse_compute_inline(block=out)",
        "t is not filled by one store without a mask",
    ),
    (
        [(T, T + " if i1 < 3")],
        "reverse_compute_inline(block=out)",
        "t is not filled by one store without a mask",
    ),
    ([(W, "z[i0, 0] = t[i0, 0]")], "reverse_compute_inline(block=out)", "t is read outside of block out"),
    ([(W, "y[i0, 0] = 1_i32")], "reverse_compute_inline(block=out)", "y is touched before block out"),
    ([(W, "z[i0, 0] = y[i0, 0]")], "reverse_compute_inline(block=out)", "y is touched before"),
    (
        [(OUT, "y[i0, i1] = t[i0, i1] + z[i0, i1]")],
        "reverse_compute_inline(block=out)",
        "what block out reads is written",
    ),
    (
        [(OUT, "y[i0, i1] = v[i1]")],
        "reverse_compute_inline(block=out)",
        "out reads no whole intermediate buffer",
    ),
    (
        [("  for i in n:", "  alloc c: i32[n,8]\n  for i in n:"), (OUT, "c[i0, i1] = t[i0, i1]")],
        "reverse_compute_inline(block=out)",
        "a buffer of block out is not allocated where t is filled",
    ),
]
REVERSE = [
    (
        [],
        "reverse_compute_at(block=out, loop=t_i0, space=global)",
        "got space 'global'; expected one of local, register",
    ),
    (
        [],
        "split(loop=j, factor=4); reverse_compute_at(block=out, loop=t_i0)",
        "loops of block out are not one per axis",
    ),
    (
        [],
        "split(loop=t_i1, factor=4); vectorize(loop=t_i1i); reverse_compute_at(block=out, loop=t_i1i)",
        "in a vector loop",
    ),
    (
        [("    for t_i1 in 8:", "    let e = t_i0\n    for t_i1 in 8:")],
        "reverse_compute_at(block=out, loop=t_i1)",
        "or in something else than loops",
    ),
    ([], "reverse_compute_at(block=out, loop=i)", "block out is inside loop i already"),
    (
        [],
        "reverse_compute_at(block=out, loop=w)",
        "block out reads 0 buffers that loop w fills; expected exactly one",
    ),
    (
        [(OUT, "y[i0, i1] = z[i0, i1]")],
        "reverse_compute_at(block=out, loop=w)",
        "z is a parameter; only intermediates",
    ),
    (
        [(W, "t[i0, 0] = 1_i32")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "t is also written outside of blocks in loop",
    ),
    (
        [
            (
                OUT,
                OUT
                + "\n  for e in n:\n    for e1 in 8:\n"
                + '      block "e" (i0: spatial n = e, i1: spatial 8 = e1):\n        t[i0, i1] = x[i0, i1]',
            ),
            ("        " + T, "        z[i0, i1] = 1_i32"),
        ],
        "reverse_compute_at(block=out, loop=e)",
        "loop e runs after block out",
    ),
    (
        [("  for i in n:", "  alloc c: i32[n,8]\n  for i in n:"), (OUT, "c[i0, i1] = t[i0, i1]")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "a buffer of block out is not allocated at t_i0",
    ),
    (
        [(OUT, "y[i0, i1] = t[i0, i1] + z[i0, i1]")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "what block out reads is written",
    ),
    ([(W, "y[i0, 0] = 1_i32")], "reverse_compute_at(block=out, loop=t_i0)", "y is touched before block out"),
    (
        [(T, "t[i0, q[i1]] = x[i0, i1]")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "extent of t dim 1 made in t_i0 is not constant",
    ),
    (
        [
            (
                T,
                T
                + "\n"
                + '      block "t2" (i0: spatial n = t_i0, i1: spatial 8 = t_i1):\n'
                + "        t[(i0 + 1) % n, i1] = 1_i32",
            )
        ],
        "reverse_compute_at(block=out, loop=t_i0)",
        "t dim 0 is made at several places in t_i0",
    ),
    (
        [(OUT, "y[i0, i1] = t[i0, 7 - i1]")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "block out reads t at other places",
    ),
    (
        [(OUT, "y[i0, i1] = t[i0, i1] + t[i0, 0]")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "block out reads t at other places",
    ),
    (
        [("for j in 8", "for j in 4"), ("i1: spatial 8 = j", "i1: spatial 4 = j")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "block out reads only a part of t",
    ),
    (
        [(T, "t[i0 % 4, i1] = x[i0, i1]")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "tiles of t at t_i0 may not cover it",
    ),
    (
        [("i0: spatial n = t_i0", "i0: spatial 999 = t_i0 * 2")],
        "split(loop=t_i0, factor=4); reverse_compute_at(block=out, loop=t_i0o)",
        "tiles of t at t_i0o may overlap",
    ),
    (
        [("for t_i0 in n", "for t_i0 in n * 2"), ("i0: spatial n = t_i0", "i0: spatial n = t_i0 // 2")],
        "reverse_compute_at(block=out, loop=t_i0)",
        "elements of t are made in several iterations of t_i0",
    ),
    (
        [(W, "z[i0, 0] = t[i0, 0]")],
        "reverse_compute_at(block=out, loop=t_i0, space=local)",
        "t is also used elsewhere than in blocks",
    ),
    (
        [("i1: spatial 8 = j", "i1: reduce 8 = j"), (OUT, "y[i0, 0] = y[i0, 0] + t[i0, i1]")],
        "split(loop=t_i1, factor=4); reverse_compute_at(block=out, loop=t_i1o)",
        "block out touches y at other places than its spatial axes",
    ),
]
FACTOR = [
    (
        [("for k in 8", "for k in n - 1"), ("reduce 8", "reduce n - 1")],
        "cache_write(block=s)",
        "s may reduce over nothing",
    ),
    (
        [
            ("for k in 8", "for h in n - 1:\n     for k in 8"),
            ("reduce 8 = k)", "reduce 8 = k, h0: reduce n - 1 = h)"),
        ],
        "rfactor(block=s, loop=k)",
        "rfactor: loop h may run no iteration",
    ),
    ([], "rfactor(block=s, loop=q)", "loop 'q': found 0"),
    (
        [("    for k in 8:", "    u[i] = 1_i32\n    for k in 8:")],
        "rfactor(block=s, loop=i)",
        "block s is not alone inside loop i",
    ),
    (
        [("        init: s[i0] = 0_i32\n", "")],
        "rfactor(block=s, loop=k)",
        "block s is no reduction x = x op f with an init",
    ),
    (
        [("s[i0] + x", "s[i0] - x")],
        "rfactor(block=s, loop=k)",
        "block s is no reduction x = x op f with an init",
    ),
    (
        [("s[i0] = s[i0] + x[i0, k0]", "if k0 < 3:\n          s[i0] = s[i0] + x[i0, k0]")],
        "rfactor(block=s, loop=k)",
        "block s is no reduction",
    ),
    ([], "rfactor(block=s, loop=i)", "loop i is not used by exactly one axis that reduces"),
    (
        [("reduce 8 = k)", "reduce 8 = k, k1: reduce 8 = k)")],
        "rfactor(block=s, loop=k)",
        "loop k is not used by exactly one axis",
    ),
    (
        [("  for i in n:", "  let e = 0\n  for i in n:"), ("8 = k", "8 = k + e")],
        "rfactor(block=s, loop=k)",
        "axis k0 uses more than loops that reduce",
    ),
    (
        [
            ("    for k in 8:", "    for h in 2:\n     u[i] = 1_i32\n     for k in 8:"),
            ("reduce 8 = k)", "reduce 8 = k, h0: reduce 2 = h)"),
        ],
        "rfactor(block=s, loop=k)",
        "a reduction loop of s has other things inside",
    ),
    (
        [("  for i in n:\n    for k in 8:", "  for k in 8:\n    for i in k + 1:")],
        "rfactor(block=s, loop=k)",
        "extent of i depends on a reduction loop",
    ),
    (
        [("for k in 8", "for k in i + 1")],
        "rfactor(block=s, loop=k)",
        "extent of k is neither a constant nor a dim; split the loop",
    ),
    (
        [("    for k in 8:", "    u[i] = 1_i32\n    for k in 8:")],
        "rfactor(block=s, loop=k)",
        "partial results of s would be global memory",
    ),
    (
        [("= k):", "= k) where 2 <= k:")],
        "rfactor(block=s, loop=k)",
        "the predicate of block s may skip the start of the reduction",
    ),
    (
        [("= 0_i32", "= i32(k0)")],
        "rfactor(block=s, loop=k)",
        "rfactor: init of block s depends on a loop that it reduces",
    ),
    (
        [("for i in n", "for k_f in n"), ("= i,", "= k_f,")],
        "rfactor(block=s, loop=k)",
        "rfactor: the name k_f is taken",
    ),
]


@pytest.mark.parametrize(("body", "trace", "message"), LOOPS)
def test_loops(body: str, trace: str, message: str) -> None:
    refused(parse_func(f"{HEAD}  {body}\n"), trace, message)


@pytest.mark.parametrize(("changes", "trace", "message"), MEMORY + INLINE + REVERSE)
def test_stages(changes: Changes, trace: str, message: str) -> None:
    refused(changed(TWO, changes), trace, message)


@pytest.mark.parametrize(("changes", "trace", "message"), FACTOR)
def test_rfactor(changes: Changes, trace: str, message: str) -> None:
    refused(changed(SUM, changes), trace, message)
