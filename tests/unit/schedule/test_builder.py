"""Schedules that people write: chaining, traces, messages."""

import pytest

import strata
from strata.core.errors import LegalityError, ParseError, UserError
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.text import canonical_text, parse_func
from strata.schedule import STEPS, Schedule, apply_trace, finalize, parse_trace
from strata.schedule.steps import Split, Unroll

COPY = """
dims n in 1..64
func @copy(x: f32[n,40]) -> (y: f32[n,40])
  for i in n:
    for j in 40:
      block "out" (a: spatial n = i, c: spatial 40 = j):
        y[a, c] = x[a, c]
"""
SUM = """
dims n in 1..64
func @sum(x: f32[n,40]) -> (y: f32[n,40])
  alloc s: f32[n]
  for s_i0 in n:
    for s_k0 in 40:
      block "s" (i0: spatial n = s_i0, k0: reduce 40 = s_k0):
        init: s[i0] = 0x0p+0
        s[i0] = s[i0] + x[i0, k0]
  for i in n:
    for j in 40:
      block "out" (i0: spatial n = i, i1: spatial 40 = j):
        y[i0, i1] = x[i0, i1] / s[i0]
"""


def test_steps_chain_and_print_what_was_done() -> None:
    func = parse_func(COPY)
    s = strata.Schedule(func)
    assert s.split("i", 4).split("j", 16).reorder("io", "jo", "ii", "ji") is s
    s.vectorize("ji").unroll("ii").parallel("io")
    assert s.loops("out") == s.loops() == ("io", "jo", "ii", "ji")
    assert s.blocks == ("out",)
    expected = (
        "split(loop=i, factor=4); split(loop=j, factor=16); reorder(loops=io|jo|ii|ji); "
        "vectorize(loop=ji); unroll(loop=ii); parallel(loop=io)"
    )
    assert s.trace_text == expected
    assert s.trace == parse_trace(expected)
    assert canonical_text(s.func) == canonical_text(apply_trace(func, s.trace))
    assert s.text.startswith("dims n in 1..64\nfunc @copy(")
    assert str(s) == "".join(f"# {step}\n" for step in s.trace) + s.text
    assert canonical_text(parse_func(str(s))) == canonical_text(s.func)
    assert repr(s) == f"<Schedule of copy: {expected}>"
    assert repr(Schedule(func)) == "<Schedule of copy: no steps>"
    check(s.finalize(), LOOP_LOWERED)
    assert canonical_text(s.finalize()) == canonical_text(finalize(s.func))


def test_replay() -> None:
    func = parse_func(COPY)
    s = Schedule(func).split("j", 8).vectorize("ji")
    for again in (Schedule.replay(func, s.trace), Schedule.replay(func, s.trace_text)):
        assert str(again) == str(s)
    lines = "\n".join(str(step) for step in s.trace)
    assert str(Schedule.replay(func, lines)) == str(s)
    with pytest.raises(ParseError, match="trace: split lacks factor"):
        Schedule.replay(func, "split(loop=i)")
    with pytest.raises(UserError, match="no schedule step 'spilt'"):
        Schedule.replay(func, "spilt(loop=i)")


def test_schedules_of_what_has_a_function() -> None:
    first = Schedule(parse_func(COPY)).split("i", 4)
    second = Schedule(first)
    assert second.trace == ()
    assert second.func is first.func
    with pytest.raises(UserError, match=r"Schedule: got str; expected a loop function or something that has"):
        Schedule("func")  # type: ignore[arg-type]


def test_copies_go_their_own_ways() -> None:
    s = Schedule(parse_func(COPY)).split("i", 4)
    other = s.copy().unroll("ii")
    assert len(s.trace) == 1
    assert len(other.trace) == 2
    assert Schedule.replay(parse_func(COPY), other.trace_text).text == other.text


def test_fuse_takes_many_loops() -> None:
    s = Schedule(parse_func(COPY)).split("j", 8).fuse("i", "jo", "ji", name="all")
    assert s.loops() == ("all",)
    assert s.trace_text.endswith("fuse(outer=i, inner=jo, name=i_jo); fuse(outer=i_jo, inner=ji, name=all)")
    assert Schedule(parse_func(COPY)).fuse("i", "j").loops() == ("i_j",)
    with pytest.raises(UserError, match="fuse: got 1 loops; expected at least 2"):
        s.fuse("all")


def test_merge() -> None:
    s = Schedule(parse_func(SUM)).merge("s_i0", "i").parallel("i")
    assert s.loops() == ("i", "s_k0", "j")
    assert s.trace_text == "merge(first=s_i0, second=i); parallel(loop=i)"


def test_stages() -> None:
    s = Schedule(parse_func(SUM)).compute_at("s", "i").decompose_reduction("s")
    assert str(s.trace[-1]) == "decompose_reduction(block=s, loop=s_k0)"
    assert s.loops("s") == ("i", "s_i0", "s_k0")
    assert s.blocks == ("s_init", "s", "out")
    with pytest.raises(LegalityError, match="decompose_reduction: no loop around block out reduces"):
        s.decompose_reduction("out")


def test_an_illegal_step_changes_nothing_and_shows_where() -> None:
    s = Schedule(parse_func(COPY)).split("j", 8).vectorize("ji")
    before = str(s)
    with pytest.raises(LegalityError) as caught:
        s.split("ji", 2)
    assert str(caught.value).split("\n") == [
        "split: loop ji is vectorize; expected a serial loop; split first",
        "  step 3 of the schedule of copy: split(loop=ji, factor=2)",
        "        for i in n:",
        "          for jo in 5:",
        "    >       vectorize ji in 8:",
        '              block "out" (a: spatial n = i, c: spatial 40 = jo * 8 + ji):',
        "                y[a, c] = x[a, c]",
    ]
    with pytest.raises(LegalityError, match="unroll: loop i needs a constant extent"):
        s.apply(Split("jo", 5), Unroll("i"))
    assert str(s) == before


def test_an_error_shows_only_what_is_around() -> None:
    s = Schedule(parse_func(SUM))
    with pytest.raises(LegalityError) as caught:
        s.compute_at("out", "s_k0")
    text = str(caught.value)
    assert '>       block "out"' in text
    assert ">     for s_k0 in 40:" in text
    assert "\n      ...\n" not in text
    with pytest.raises(LegalityError) as caught:
        s.reorder("i", "s_i0")
    assert "  ...\n" in str(caught.value)


MATMUL = """
dims n in 1..64
func @mm(x: f32[n,40], w: f32[40,64]) -> (y: f32[n,64])
  alloc c: f32[n,64]
  for m in n:
    for j in 64:
      for k in 40:
        block "mm" (i0: spatial n = m, i1: spatial 64 = j, k0: reduce 40 = k):
          init: c[i0, i1] = 0x0p+0
          c[i0, i1] = c[i0, i1] + x[i0, k0] * w[k0, i1]
  for a in n:
    for b in 64:
      block "out" (i0: spatial n = a, i1: spatial 64 = b):
        y[i0, i1] = exp(c[i0, i1])
"""
METHODS = [
    (lambda s: s.tile(a=4, b=16), "tile(loops=a|b, factors=4|16)"),
    (lambda s: s.split("k", 16, "peel"), "split(loop=k, factor=16, tail=peel)"),
    (lambda s: s.pad("a", 4), "pad(loop=a, multiple=4)"),
    (
        lambda s: s.bind("a", "block_x").bind("b", "lane"),
        "bind(loop=a, axis=block_x); bind(loop=b, axis=lane)",
    ),
    (
        lambda s: s.annotate("a", grain=4, why="example"),
        "annotate(name=a, key=grain, value=4); annotate(name=a, key=why, value=example)",
    ),
    (lambda s: s.cache_read("mm", "w"), "cache_read(block=mm, buffer=w)"),
    (lambda s: s.cache_read("mm", "w", space="local"), "cache_read(block=mm, buffer=w, space=local)"),
    (
        lambda s: s.cache_read("mm", "w", at="m", space="register"),
        "cache_read(block=mm, buffer=w); compute_at(block=mm_w, loop=m, space=register)",
    ),
    (
        lambda s: s.cache_read("mm", "w", at="j"),
        "cache_read(block=mm, buffer=w); compute_at(block=mm_w, loop=j)",
    ),
    (lambda s: s.cache_write("out"), "cache_write(block=out)"),
    (lambda s: s.reverse_compute_at("out", "m"), "reverse_compute_at(block=out, loop=m)"),
    (
        lambda s: s.reverse_compute_at("out", "m", "local"),
        "reverse_compute_at(block=out, loop=m, space=local)",
    ),
    (
        lambda s: s.cache_write("out").reverse_compute_inline("out_y"),
        "cache_write(block=out); reverse_compute_inline(block=out_y)",
    ),
    (
        lambda s: s.cache_write("out").compute_inline("out"),
        "cache_write(block=out); compute_inline(block=out)",
    ),
    (lambda s: s.split("k", 8).rfactor("mm", "ki"), "split(loop=k, factor=8); rfactor(block=mm, loop=ki)"),
    (
        lambda s: s.compute_at("mm", "a").set_scope("c", "register"),
        "compute_at(block=mm, loop=a); set_scope(buffer=c, space=register)",
    ),
]


@pytest.mark.parametrize(("method", "trace"), METHODS)
def test_every_method_is_steps(method, trace: str) -> None:
    func = parse_func(MATMUL)
    s = method(Schedule(func))
    assert s.trace_text == trace
    assert canonical_text(Schedule.replay(func, trace).func) == canonical_text(s.func)


def test_there_is_a_method_for_every_step() -> None:
    assert all(callable(getattr(Schedule, name)) for name in STEPS)
