"""Knobs: defaults, environment, with-blocks, bad values."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from strata.core.errors import UserError
from strata.core.knobs import Knobs, code_key, current, describe, knobs, parse_knob


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("STRATA_")]:
        monkeypatch.delenv(name)
    assert current() == Knobs()
    assert current().verify == 1
    assert current().dump is None


def test_environment_then_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_VERIFY", "2")
    monkeypatch.setenv("STRATA_PRINT_AFTER", "fuse, canonicalize")
    assert current().verify == 2
    assert current().print_after == ("fuse", "canonicalize")
    with knobs(verify=0) as outer:
        assert outer.verify == 0
        assert outer.print_after == ("fuse", "canonicalize")
        with knobs(verify=3, dump="/tmp/d"):
            assert current().verify == 3
            assert current().dump == Path("/tmp/d")
        assert current() == outer
    assert current().verify == 2
    monkeypatch.delenv("STRATA_VERIFY")
    assert current().verify == 1


def test_with_block_ends_on_error() -> None:
    with pytest.raises(RuntimeError, match="boom"), knobs(verify=3):
        raise RuntimeError("boom")
    assert current().verify == 1


def test_other_threads_do_not_see_it() -> None:
    seen: list[int] = []
    with knobs(verify=3):
        worker = threading.Thread(target=lambda: seen.append(current().verify))
        worker.start()
        worker.join()
    assert seen == [1]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("verify", "yes", r"knob verify=yes: expected an integer 0\.\.3"),
        ("verify", 4, r"knob verify=4: expected an integer 0\.\.3"),
        ("verify", True, r"knob verify=True: expected an integer"),
        ("dump", 3, "knob dump=3: expected a path"),
        ("print_after", "a b", "knob print_after=a b: expected names separated by commas"),
        ("print_after", 1, "knob print_after=1: expected names"),
        ("log", "loud", "knob log=loud: expected one of debug, info, warning, error"),
        ("pipeline", 3, "knob pipeline=3: expected text"),
        ("verfy", "1", "no knob 'verfy'; did you mean 'verify'"),
        ("zzz", "1", r"no knob 'zzz'\. Known: cache_dir"),
    ],
)
def test_bad_values(name: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_knob(name, value)
    with pytest.raises(UserError, match=message), knobs(**{name: value}):
        pass


def test_bad_environment_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATA_VERIFY", "yes")
    with pytest.raises(UserError, match=r"STRATA_VERIFY=yes: expected an integer 0\.\.3"):
        current()
    monkeypatch.delenv("STRATA_VERIFY")
    monkeypatch.setenv("STRATA_VERFY", "1")
    with pytest.raises(UserError, match="no knob 'verfy'"):
        current()


def test_every_default_is_a_value_of_its_knob() -> None:
    for info in describe():
        assert parse_knob(info.name, info.default) == info.default, info.name
        assert info.doc
        assert info.env == "STRATA_" + info.name.upper()


def test_code_key_has_exactly_the_knobs_that_affect_code() -> None:
    base = code_key()
    other = {"verify": 3, "threads": 7, "log": "debug", "pipeline": "zero", "print_after": "fuse"}
    for info in describe():
        value = other.get(info.name, "/tmp/x")
        with knobs(**{info.name: value}):
            assert (code_key() != base) == info.affects_code, info.name
