"""The table of steps: what every step says about itself, and drafts of traces."""

import inspect
from dataclasses import fields

import pytest

from strata.core.errors import LegalityError
from strata.loop.text import parse_func, print_func
from strata.schedule import STEPS
from strata.schedule.rules.base import Draft, gathers, innermost_loop, stage_names
from strata.schedule.steps import Parallel, Split, Unroll, Vectorize

TEXT = """
dims n in 1..64
func @f(x: f32[n,40], t: i64[40]) -> (y: f32[n,40])
  for i in n:
    for j in 40:
      block "out" (a: spatial n = i, c: spatial 40 = j):
        y[a, c] = x[a, c]
"""


@pytest.mark.parametrize("step", [cls for _, cls in STEPS.items()], ids=lambda cls: cls.step_name())
def test_steps_say_what_they_rewrite_and_when(step: type) -> None:
    text = inspect.getdoc(step) or ""
    assert "Rewrite" in text
    assert "->" in text
    assert "Legal when:" in text


def test_names_are_those_of_the_table() -> None:
    for name, step in STEPS.items():
        assert step.step_name() == name
        types = ("str", "int", "int | str", "tuple[str, ...]", "tuple[int, ...]")
        assert all(str(f.type) in types for f in fields(step))


def test_a_draft_keeps_what_works() -> None:
    draft = Draft(parse_func(TEXT))
    before = print_func(draft.func)
    assert not draft.attempt(Split("j", 8), Unroll("i"))
    assert not draft.attempt(Vectorize("i"))
    assert (print_func(draft.func), draft.steps) == (before, [])
    assert draft.vectorize("j", 16)
    assert [str(s) for s in draft.steps] == ["split(loop=j, factor=16)", "vectorize(loop=ji)"]
    draft.parallel("i")
    assert draft.steps[-1] == Parallel("i")
    assert draft.proposal("cpu.test").trace == tuple(draft.steps)
    with pytest.raises(LegalityError, match="loop 'j': found 0"):
        draft.do(Unroll("j"))


def test_a_draft_adds_no_gathers() -> None:
    draft = Draft(parse_func(TEXT.replace("x[a, c]", "x[a, t[c]]")))
    assert not draft.vectorize("j", 16)
    assert draft.steps == []
    assert gathers(draft.func) == 0


def test_rotated_halves_are_contiguous() -> None:
    draft = Draft(parse_func(TEXT.replace("x[a, c]", "x[a, (c + 20) % 40]")))
    assert not draft.vectorize("j", 16)  # 20 is no multiple of 16
    text = TEXT.replace("40", "32").replace("x[a, c]", "x[a, (c + 16) % 32]")
    draft = Draft(parse_func(text))
    assert draft.vectorize("j", 16)
    assert gathers(draft.proposal("cpu.test").func) == 0


def test_loops_that_must_not_are_not_parallel() -> None:
    draft = Draft(parse_func(TEXT.replace("y[a, c] =", "y[0, c] =")))
    draft.parallel("i")
    assert draft.steps == []
    assert stage_names(draft.func) == ["out"]
    assert innermost_loop(draft.func, "out") == "j"
