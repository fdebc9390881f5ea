"""Named pipelines of the user's: text, and that no cache stands in for their code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest

import strata
from strata.compiler import api
from strata.compiler.pipelines import has_own_code
from strata.core.errors import ParseError
from strata.core.knobs import knobs
from strata.graph.nodes import Module
from strata.ir.passes import PASSES, PIPELINES, Pass, Pipeline
from strata.passes import Fuse


@dataclass(frozen=True)
class Mine(Pass[Module]):
    name: ClassVar[str] = "test_mine"

    def run(self, module: Module) -> Module:
        return module


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    strata.register_pass(Mine)
    yield
    PASSES._items.pop("test_mine")
    PIPELINES._items.pop("test_opt", None)


def test_a_lone_pipeline_gets_the_name() -> None:
    made = strata.register_pipeline("test_opt", strata.pipeline("zero").append(Mine()))
    assert str(made) == "test_opt(fuse{max_ops=1},test_mine)"
    assert strata.pipeline("test_opt") is made
    assert strata.pipeline("test_opt{functions=[f]}") == made.on("f")
    assert strata.pipeline() == strata.pipeline("default")
    PIPELINES._items.pop("test_opt")
    two = strata.register_pipeline("test_opt", strata.pipeline("zero"), Mine())
    assert str(two) == "test_opt(zero(fuse{max_ops=1}),test_mine)"
    with pytest.raises(ParseError, match=r"no pass or pipeline 'opt_llm'; known: .*test_opt"):
        strata.pipeline("opt_llm")


def test_own_code_is_found_wherever_it_is() -> None:
    strata.register_pipeline("test_opt", Fuse())
    assert has_own_code("test_mine")
    assert has_own_code("canonicalize,(fuse,only{functions=[f]}(test_mine))")
    assert has_own_code("test_opt"), "its passes are Strata's, but what it holds is said nowhere"
    assert has_own_code("default,test_opt")
    for text in ("default", "zero", "canonicalize,x(fuse{max_ops=3})", "", "loop_default"):
        assert not has_own_code(text)


def test_a_cache_does_not_stand_in_for_own_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(api, "load_program", lambda key: loaded.append(key))
    monkeypatch.setattr(api, "store_program", lambda key, compiled: None)
    from strata.assets import DEMO_MODEL
    from strata.models import read_config

    options = api.Options(pipeline="zero,test_mine")
    definition = api.define(read_config(DEMO_MODEL), options)

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    monkeypatch.setattr("strata.compiler.driver.Traced.lower", stop)
    with pytest.raises(Stop):
        api.compile_definition(definition, options)
    assert loaded == []
    with pytest.raises(Stop):
        api.compile_definition(definition, api.Options())
    assert len(loaded) == 1
    with knobs(loop_pipeline="simplify_loops"), pytest.raises(Stop):
        api.compile_definition(definition, api.Options())
    assert len(set(loaded)) == 2


def test_pipelines_are_data() -> None:
    pipeline: Pipeline = strata.pipeline("default").insert_before("fuse", Mine()).on("decode")
    assert strata.pipeline(str(pipeline)) == pipeline
