"""Random functions under random legal steps compute the same, scheduled and finalised."""

import numpy as np
import random_blocks
import random_stages
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from random_stages import arrays, random_trace

from strata.core.errors import LegalityError, VerifyError
from strata.loop.check import LOOP_LOWERED, LOOP_NAIVE, check
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.text import canonical_text
from strata.schedule import apply_trace, finalize, parse_trace, trace_text

SEEDS = st.integers(0, 2**32 - 1)


def outputs(func: Func, seed: int) -> list[np.ndarray]:
    """Outputs on random arguments; iterations of PARALLEL loops run in a shuffled order."""
    args = arrays(func, seed)
    run(func, args, parallel_seed=seed)
    return args[-func.num_outputs :]


def assert_same(func: Func, data: st.DataObject, seed: int, attempts: int) -> None:
    """Random legal steps keep what ``func`` computes, before and after finalisation."""
    expected = outputs(func, seed)
    scheduled, trace = random_trace(data.draw, func, attempts)
    text = trace_text(trace)
    assert parse_trace(text) == trace
    assert canonical_text(apply_trace(func, trace)) == canonical_text(scheduled)
    for got, wanted in zip(outputs(scheduled, seed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=text)
    for step in trace:
        event(step.step_name())
    try:
        lowered = finalize(scheduled)
    except LegalityError as error:
        event("finalize: " + str(error).split(":")[0])
        return
    check(lowered, LOOP_LOWERED)
    for got, wanted in zip(outputs(lowered, seed), expected, strict=True):
        np.testing.assert_array_equal(got, wanted, err_msg=text)


@given(st.data(), random_stages.functions(), SEEDS)
@settings(max_examples=80)
def test_steps_keep_the_meaning_of_naive_functions(data, func, seed):
    check(func, LOOP_NAIVE)
    assert_same(func, data, seed, data.draw(st.integers(1, 14)))


@given(st.data(), random_blocks.functions(), SEEDS)
@settings(max_examples=80)
def test_steps_keep_the_meaning_of_odd_functions(data, func, seed):
    try:
        check(func, LOOP_NAIVE)
        outputs(func, seed)
    except VerifyError:  # an access outside of a buffer
        assume(False)
    assert_same(func, data, seed, data.draw(st.integers(1, 8)))
