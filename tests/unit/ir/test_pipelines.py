"""Passes and pipelines: text form, editing, registries."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.core.errors import ParseError, UserError
from strata.ir.passes import (
    Pass,
    Pipeline,
    parse_pipeline,
    register_pass,
    register_pipeline,
)

Words = tuple[str, ...]


class Mode(Enum):
    FAST = "fast"
    SLOW = "very slow"


@register_pass
@dataclass(frozen=True)
class Say(Pass[Words]):
    """Appends a word; has an option of every kind."""

    name: ClassVar[str] = "test-say"
    word: str = "hello"
    times: int = 1
    scale: float = 0.5
    loud: bool = False
    mode: Mode = Mode.FAST
    sizes: tuple[int, ...] = ()
    limit: int | None = None

    def run(self, module: Words) -> Words:
        return (*module, *[self.word] * self.times)


@register_pass
@dataclass(frozen=True)
class Reverse(Pass[Words]):
    name: ClassVar[str] = "test-reverse"

    def run(self, module: Words) -> Words:
        return module[::-1]


NAMED = register_pipeline("test-both", Say(), Reverse())


def test_text_shows_only_what_differs() -> None:
    assert str(Say()) == "test-say"
    assert str(Say(times=3, loud=True, limit=4)) == "test-say{times=3,loud=true,limit=4}"
    assert str(Say(word="a b", mode=Mode.SLOW, sizes=(1, 2))) == (
        'test-say{word="a b",mode="very slow",sizes=[1,2]}'
    )
    assert str(NAMED) == "test-both(test-say,test-reverse)"


says = st.builds(
    Say,
    word=st.text(max_size=8),
    times=st.integers(),
    scale=st.floats(allow_nan=False),
    loud=st.booleans(),
    mode=st.sampled_from(Mode),
    sizes=st.lists(st.integers(), max_size=3).map(tuple),
    limit=st.none() | st.integers(),
)
labels = st.sampled_from(["", "a", "test-both", "b.c"])
pipelines: st.SearchStrategy[Pipeline[Any]] = st.recursive(
    st.builds(Pipeline, st.just(()), labels),
    lambda inner: st.builds(
        Pipeline,
        st.lists(says | st.just(Reverse()) | inner, max_size=3).map(tuple),
        labels,
    ),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(pipelines)
def test_parse_of_print_is_the_same(pipeline: Pipeline[Any]) -> None:
    assert parse_pipeline(str(pipeline)) == pipeline


def test_parse() -> None:
    assert parse_pipeline("") == Pipeline(())
    assert parse_pipeline("test-reverse") == Pipeline((Reverse(),))
    assert parse_pipeline("test-both") is NAMED
    assert parse_pipeline(" test-both , test-say { times = 2 , scale = 1 } ") == Pipeline(
        (NAMED, Say(times=2, scale=1.0))
    )
    assert parse_pipeline("x(test-both,(test-say))") == Pipeline((NAMED, Pipeline((Say(),))), "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no pass or pipeline 'nothing'; known: .*test-both"),
        ("test-say{volume=3}", "test-say: no option 'volume'; it has: word, times"),
        ("test-reverse{a=3}", "test-reverse: no option 'a'; it has: none"),
        ("test-say{times=3,times=4}", "option 'times' is given twice"),
        ("test-say{times=x}", "test-say: option times is x; expected an integer"),
        ("test-say{times=true}", "option times is true; expected an integer"),
        ("test-say{scale=fast}", "option scale is fast; expected a number"),
        ("test-say{loud=1}", "option loud is 1; expected true or false"),
        ("test-say{word=1}", "option word is 1; expected a word or string"),
        ("test-say{mode=lazy}", "option mode is lazy; expected one of fast, very slow"),
        ("test-say{sizes=3}", r"option sizes is 3; expected a list \[..\] of an integer"),
        ("test-say{sizes=[1,b]}", r"option sizes is \[1,b\]; expected a list"),
        ("test-say{limit=b}", "option limit is b; expected an integer or none"),
        ("test-say{times 3}", r"1:16: got '3'; expected '='"),
        ("test-say{times=3", "got the end; expected ',' or '}'"),
        ("test-say{times=}", "got '}'; expected a value"),
        ("test-say{sizes=[1 2]}", r"got '2'; expected ',' or '\]'"),
        ("test-say test-say", "got 't'; expected ',' or the end"),
        ("(test-say", r"got the end; expected ',' or '\)'"),
        (",", "got ','; expected the name of a pass or pipeline"),
        ("test-say{3}", "got '3'; expected an option"),
    ],
)
def test_bad_text(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_pipeline(text)


def test_error_points_at_the_place() -> None:
    with pytest.raises(ParseError, match=r"<pipeline>:1:19: .*\n  test-say,test-say\(\n {20}\^"):
        parse_pipeline("test-say,test-say(")


def test_edit_at_any_point() -> None:
    base = Pipeline((Say(), Pipeline((Reverse(), Say(word="in")), "inner")), "p")
    extra = Say(word="x")
    assert str(base.append(extra)) == "p(test-say,inner(test-reverse,test-say{word=in}),test-say{word=x})"
    assert str(base.prepend(extra)) == "p(test-say{word=x},test-say,inner(test-reverse,test-say{word=in}))"
    assert str(base.insert_before("test-reverse", extra)) == (
        "p(test-say,inner(test-say{word=x},test-reverse,test-say{word=in}))"
    )
    assert str(base.insert_after("inner", extra)) == (
        "p(test-say,inner(test-reverse,test-say{word=in}),test-say{word=x})"
    )
    assert str(base.replace("test-say", Reverse())) == "p(test-reverse,inner(test-reverse,test-reverse))"
    assert str(base.replace("inner")) == "p(test-say)"
    with pytest.raises(UserError, match=r"no pass 'fuse' in p\(test-say"):
        base.insert_after("fuse", extra)
    with pytest.raises(UserError, match="no pass 'fuse' in the empty pipeline"):
        Pipeline(()).replace("fuse")


def test_run_goes_through_nested_pipelines() -> None:
    pipeline = parse_pipeline("test-say{word=a},(test-say{word=b},test-reverse),test-say{word=c}")
    assert pipeline.run(()) == ("b", "a", "c")


def test_registration_errors() -> None:
    with pytest.raises(UserError, match="pass or pipeline 'test-say' is registered already"):
        register_pass(Say)
    with pytest.raises(UserError, match="pass or pipeline 'test-say' is registered already"):
        register_pipeline("test-say")

    @dataclass(frozen=True)
    class NoDefault(Pass[Words]):
        name: ClassVar[str] = "test-no-default"
        size: int

        def run(self, module: Words) -> Words:
            return module

    @dataclass(frozen=True)
    class NoText(Pass[Words]):
        name: ClassVar[str] = "test-no-text"
        size: dict[str, int] | None = None

        def run(self, module: Words) -> Words:
            return module

    with pytest.raises(UserError, match="option 'size' has no default"):
        register_pass(NoDefault)
    with pytest.raises(UserError, match=r"option 'size' has type .*; expected int, float"):
        register_pass(NoText)
    with pytest.raises(UserError, match="got label 'a b'; expected a name"):
        Pipeline((), "a b")
