"""Every reason for which a schedule step is refused."""

import pytest

from strata.core.errors import LegalityError, ParseError, UserError
from strata.loop.nodes import Func
from strata.loop.text import parse_func
from strata.schedule import apply_trace, parse_trace, trace_text
from strata.schedule.steps import Annotate, Reorder, Tile


def nest(body: str, params: str = "x: i32[16], t: i64[16]", outputs: str = "y: i32[16], z: i32[16]") -> Func:
    """A function of one body, indented by two."""
    lines = "\n".join("  " + line for line in body.strip("\n").split("\n"))
    return parse_func(f"dims n in 1..16\nfunc @f({params}, dims: i32[n]) -> ({outputs})\n{lines}\n")


SERIAL = """
for i in 4:
  for j in 4:
    block "b" (a: spatial 4 = i, c: spatial 4 = j):
      y[a * 4 + c] = x[a]
"""
TWO = """
for i in 4:
  for j in 4:
    block "b" (a: spatial 4 = i, c: spatial 4 = j):
      y[a * 4 + c] = x[a]
    block "c" (a: spatial 4 = i, c: spatial 4 = j):
      z[a * 4 + c] = x[a]
"""
NEXT = """
for i in 4:
  block "b" (a: spatial 4 = i):
    y[a] = x[a]
for j in 4:
  block "c" (a: spatial 4 = j):
    z[a] = y[a] + 1_i32
"""
SUM = """
for i in 4:
  for k in 4:
    block "b" (a: spatial 4 = i, r: reduce 4 = k):
      init: y[a] = 0_i32
      y[a] = y[a] + x[r]
"""
LOOPS = [
    (SERIAL, "vectorize(loop=j); prefetch(loop=j, buffer=x, distance=1)", "prefetch: loop j is vectorize"),
    (SERIAL, "prefetch(loop=i, buffer=y, distance=1)", "prefetch: got buffer 'y'; loop i reads x"),
    (SERIAL, "prefetch(loop=i, buffer=x, distance=0)", "prefetch: got a distance of 0; expected 1 or more"),
    (SERIAL, "prefetch(loop=i, buffer=x, distance=1, level=3)", "prefetch: got level 3 of the cache"),
    (SERIAL, "split(loop=q, factor=2)", r"loop 'q': found 0; expected exactly one; known: i, j"),
    (SERIAL + SERIAL.replace("j", "l").replace('"b"', '"d"'), "split(loop=i, factor=2)", "loop 'i': found 2"),
    (SERIAL, "split(loop=i, factor=0)", "split: got factor 0; expected at least 1"),
    (
        SERIAL,
        "parallel(loop=i); split(loop=i, factor=2)",
        "split: loop i is parallel; expected a serial loop",
    ),
    (SERIAL.replace("j", "io"), "split(loop=i, factor=2)", "split: the name io is taken"),
    (
        "for i in 5:\n  y[i] = x[i]",
        "split(loop=i, factor=2)",
        "may not divide loop i, .*it reads memory outside",
    ),
    (
        "for i in 5:\n  y[i] = 1_i32",
        "split(loop=i, factor=2)",
        "cannot be guarded: it stores outside of blocks",
    ),
    (
        'for i in 5:\n  for j in t[i]:\n    block "b" (a: spatial 5 = i):\n      y[a] = 1_i32',
        "split(loop=i, factor=2)",
        "cannot be guarded: it reads memory outside of blocks",
    ),
    (
        SERIAL,
        "parallel(loop=j); fuse(outer=i, inner=j, name=f)",
        "fuse: loop j is parallel; expected a serial",
    ),
    (NEXT, "parallel(loop=j); merge(first=i, second=j)", "merge: loop j is parallel; expected a serial"),
    (NEXT, "merge(first=j, second=i)", "merge: loop i does not follow loop j directly"),
    (SERIAL, "merge(first=i, second=j)", "merge: loop j does not follow loop i directly"),
    (
        NEXT.replace("j in 4", "j in 3"),
        "merge(first=i, second=j)",
        "merge: extents of i and j may differ",
    ),
    (
        NEXT.replace("y[a] +", "y[3 - a] +"),
        "merge(first=i, second=j)",
        "merge: iterations of j may read elements",
    ),
    (NEXT.replace("y[a] = x[a]", "y[0] = x[a]"), "merge(first=i, second=j)", "write the same elements of y"),
    (SERIAL, "fuse(outer=j, inner=i, name=f)", "fuse: loop i is not the whole body of loop j"),
    (
        "for i in 4:\n  for j in i:\n    y[j] = x[i]",
        "fuse(outer=i, inner=j, name=f)",
        "extent of j depends on i",
    ),
    ("for i in 4:\n  for j in t[0]:\n    y[j] = x[i]", "fuse(outer=i, inner=j, name=f)", "comes from memory"),
    (
        "for h in 4:\n  for i in h - 2:\n    for j in h - 3:\n      y[h] = x[h]",
        "fuse(outer=i, inner=j, name=f)",
        "extents of i and j may both be negative",
    ),
    (SERIAL, "fuse(outer=i, inner=j, name=b)", "fuse: the name b is taken by another loop or block"),
    (SERIAL, "reorder(loops=i|i)", r"reorder: got loops 'i\|i'; expected distinct loops"),
    (SERIAL, "reorder(loops=)", "reorder: got loops ''; expected distinct loops"),
    (SERIAL, "parallel(loop=i); reorder(loops=j|i)", "reorder: loop i is parallel already; reorder first"),
    (SERIAL, "vectorize(loop=j); reorder(loops=j|i)", "reorder: loop j is vectorize already"),
    (TWO, "reorder(loops=j|i)", "loops j, i are not perfectly nested around one block"),
    (
        SERIAL + SUM.replace("for i", "for h").replace("i,", "h,").replace('"b"', '"s"'),
        "reorder(loops=k|j)",
        "loops k, j are not perfectly nested",
    ),
    (
        SERIAL.replace("j in 4", "j in i + 1"),
        "reorder(loops=j|i)",
        "extent of j depends on a loop of the nest",
    ),
    (SERIAL.replace("j in 4", "j in t[0]"), "reorder(loops=j|i)", "depends on a loop of the nest or memory"),
    (SERIAL, "unroll(loop=i); split(loop=j, factor=2); unroll(loop=jx)", "loop 'jx': found 0"),
    ("for i in n:\n  y[i] = 1_i32", "unroll(loop=i)", "unroll: loop i needs a constant extent of 1..64"),
    ("for i in 65:\n  y[0] = 1_i32", "unroll(loop=i)", "unroll: loop i needs a constant extent of 1..64"),
    (
        "for i in n:\n  y[i] = 1_i32",
        "vectorize(loop=i)",
        "vectorize: loop i needs a constant extent of 1..64",
    ),
]
ORDER = [
    ("y[a] = y[a // 2] + x[c]", "block b touches several elements of y at once"),
    ("y[(a * 4 + c) // 2] = x[a]", "several iterations write one element of y"),
    ("y[(a + c) % 16] = x[a]", "several iterations write one element of y"),
    ("t2[i64(t2[a * 4 + c])] = i64(x[a])", "block b touches several elements of t2 at once"),
    ("t2[a * 4 + c] = 1\n      y[t2[a * 4 + c]] = x[a]", "block b indexes y by memory that it writes"),
]
REDUCTIONS = [
    ("a: spatial 4 = i, r: reduce 4 = j", "y[a] = x[r]", "block b has reduction axes but is no reduction"),
    (
        "a: spatial 4 = i, r: reduce 4 = j",
        "y[a] = x[r] - y[a]",
        "block b has reduction axes but is no reduction",
    ),
    (
        "a: spatial 4 = i, r: reduce 4 = j",
        "init: y[a] = i32(r)\n      y[a] = y[a] + x[r]",
        "init of block b depends on a loop that it reduces over",
    ),
    (
        "a: spatial 4 = i, r: reduce 9 = j + 1",
        "init: y[a] = 0_i32\n      y[a] = y[a] + x[r]",
        "axis r of block b does not start at 0",
    ),
    (
        "a: spatial 4 = i, r: reduce 4 = j // 2",
        "init: y[a] = 0_i32\n      y[a] = y[a] + x[r]",
        "init of block b runs in several iterations",
    ),
    (
        "a: spatial 4 = i // 2, r: reduce 4 = j",
        "init: y[a] = 0_i32\n      y[a] = y[a] + x[r]",
        "several iterations write one element of y",
    ),
]
CARRIED = [
    ("y[0] = x[i]", "iterations of i write the same elements of y"),
    ("y[i // 2] = x[i]", "iterations of i write the same elements of y"),
    ("y[i + 1] = y[i] + x[i]", "iterations of i may read elements of y that others write"),
    ("y[i] = 1_i32\ny[7 - i] = x[i]", "iterations of i may write elements of y that others write"),
    ("y[i] = 1_i32\nz[i] = y[0]", "iterations of i may read elements of y that others write"),
    ("u[i64(u[i])] = x[i]", "u is indexed by memory that the loop writes"),
    ("y[i64(x[i])] = 1_i32", "iterations of i write the same elements of y"),
    ("y[i] = 1_i32\nfor j in 2:\n  z[i] = y[j]", "iterations of i may read elements of y"),
]


@pytest.mark.parametrize(("body", "trace", "message"), LOOPS)
def test_loop_steps(body: str, trace: str, message: str) -> None:
    with pytest.raises(LegalityError, match=message):
        apply_trace(nest(body), parse_trace(trace))


@pytest.mark.parametrize(("store", "message"), ORDER)
def test_reorder_of_elements_that_overlap(store: str, message: str) -> None:
    body = SERIAL.replace("y[a * 4 + c] = x[a]", store)
    func = nest(body, outputs="y: i32[16], t2: i64[16]")
    with pytest.raises(LegalityError, match=f"reorder: .*{message}"):
        Reorder(("j", "i")).apply(func)


@pytest.mark.parametrize(("axes", "body", "message"), REDUCTIONS)
def test_reorder_of_reductions(axes: str, body: str, message: str) -> None:
    func = nest(f'for i in 4:\n  for j in 4:\n    block "b" ({axes}):\n      {body}')
    with pytest.raises(LegalityError, match=f"reorder: {message}"):
        Reorder(("j", "i")).apply(func)


@pytest.mark.parametrize("step", ["parallel", "vectorize"])
@pytest.mark.parametrize(("body", "message"), CARRIED)
def test_iterations_that_depend_on_each_other(step: str, body: str, message: str) -> None:
    lines = "\n".join("  " + line for line in body.split("\n"))
    func = nest(f"for i in 4:\n{lines}", outputs="y: i32[16], z: i32[16], u: i32[16]")
    with pytest.raises(LegalityError, match=f"{step}: {message}"):
        apply_trace(func, parse_trace(f"{step}(loop=i)"))


def test_parallel_loops_do_not_reduce() -> None:
    with pytest.raises(LegalityError, match="parallel: iterations of k write the same elements of y"):
        apply_trace(nest(SUM), parse_trace("parallel(loop=k)"))
    apply_trace(nest(SUM), parse_trace("parallel(loop=i)"))


def test_vector_loops_reduce_but_nobody_else_may_look() -> None:
    apply_trace(nest("for i in 4:\n  y[0] = y[0] + x[i]"), parse_trace("vectorize(loop=i)"))
    for body in ("y[0] = y[0] + x[i]\n  z[i] = y[0]", "y[0] = y[0] - x[i]", "y[0] = y[0] + y[i]"):
        with pytest.raises(LegalityError, match="vectorize: iterations of i write the same elements of y"):
            apply_trace(nest(f"for i in 4:\n  {body}"), parse_trace("vectorize(loop=i)"))


def test_a_block_promises_that_looked_up_elements_differ() -> None:
    """Rows of a page table: nothing but the SPATIAL axis says that they differ."""
    text = 'for i in 4:\n  block "b" (a: {} 4 = i):\n    y[t[a]] = x[a]'
    apply_trace(nest(text.format("spatial")), parse_trace("parallel(loop=i)"))
    with pytest.raises(LegalityError, match="write the same elements of y"):
        apply_trace(nest(text.format("reduce")), parse_trace("parallel(loop=i)"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "split(loop=i, factor=2",
            r"trace: got 'split\(loop=i, factor=2'; expected name\(option=value, ...\)",
        ),
        ("split(loop=i)", r"trace: split lacks factor; got 'split\(loop=i\)'"),
        (
            "split(loop=i, factor=2, tails=3)",
            "trace: split: got 'tails=3'; expected each of loop, factor, tail",
        ),
        (
            "split(loop=i, loop=j, factor=2)",
            "trace: split: got 'loop=j'; expected each of loop, factor, tail",
        ),
        ("split(i, 2)", "trace: split: got 'i'; expected each of loop, factor, tail"),
        ("split(loop=i, factor=two)", "trace: split: got factor=two; expected an integer"),
        ("tile(loops=i, factors=4|x)", "trace: tile: got factors=x; expected an integer"),
    ],
)
def test_malformed_traces(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_trace(text)


def test_unknown_step() -> None:
    with pytest.raises(UserError, match="no schedule step 'spilt'; did you mean 'split'"):
        parse_trace("spilt(loop=i, factor=2)")


def test_options_with_a_default_may_be_left_out() -> None:
    (step,) = parse_trace("compute_at(block=s, loop=y_i0, space=local)")
    assert str(step) == "compute_at(block=s, loop=y_i0)"
    assert parse_trace(str(step)) == (step,)


def test_options_of_every_type() -> None:
    text = (
        "tile(loops=i|j, factors=4|16); annotate(name=i, key=a, value=-3); annotate(name=i, key=a, value=b.1)"
    )
    tile, number, word = parse_trace(text)
    assert tile == Tile(("i", "j"), (4, 16))
    assert number == Annotate("i", "a", -3)
    assert word == Annotate("i", "a", "b.1")
    assert trace_text((tile, number, word)) == text
