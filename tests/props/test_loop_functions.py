"""Random loop functions: text round trip, checker, and rewrites that keep the meaning."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_functions import arrays, function

from strata.loop.check import LOOP_SCHEDULED, check
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.rewrite import map_stmt, refresh
from strata.loop.simplify import simplify_func
from strata.loop.text import canonical_text, parse_func, print_func

SEEDS = st.integers(0, 2**32 - 1)


def results(func: Func, seed: int) -> list[np.ndarray]:
    """Outputs of ``func`` on arguments made from ``seed``."""
    args = arrays(seed)
    run(func, args)
    return args[-2:]


def assert_same(a: Func, b: Func, seed: int) -> None:
    for x, y in zip(results(a, seed), results(b, seed), strict=True):
        np.testing.assert_array_equal(x, y)


@given(SEEDS)
@settings(max_examples=150)
def test_text_round_trip(seed):
    func = function(seed)
    text = print_func(func)
    parsed = parse_func(text)
    assert print_func(parsed) == text
    assert canonical_text(parsed) == canonical_text(func)
    assert_same(func, parsed, seed)


@given(SEEDS)
@settings(max_examples=150)
def test_functions_are_well_formed_and_stay_so(seed):
    func = function(seed)
    check(func, LOOP_SCHEDULED)
    check(parse_func(print_func(func)), LOOP_SCHEDULED)
    check(simplify_func(func), LOOP_SCHEDULED)
    check(Func(func.name, func.params, refresh(func.body), 2), LOOP_SCHEDULED)


@given(SEEDS)
@settings(max_examples=250)
def test_simplify_keeps_the_meaning(seed):
    func = function(seed)
    assert_same(func, simplify_func(func), seed)


@given(SEEDS)
@settings(max_examples=100)
def test_refresh_and_identity_rewrites(seed):
    func = function(seed)
    assert map_stmt(func.body, lambda e: e, lambda s: s) is func.body
    fresh = Func(func.name, func.params, refresh(func.body), 2)
    assert canonical_text(fresh) == canonical_text(func)
    assert_same(func, fresh, seed)
