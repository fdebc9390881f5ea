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
from strata.schedule import apply_trace, finalize, parse_trace, propose, trace_text
from strata.target import get_target

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
@settings(max_examples=100)
def test_steps_keep_the_meaning_of_naive_functions(data, func, seed):
    check(func, LOOP_NAIVE)
    assert_same(func, data, seed, data.draw(st.integers(1, 14)))


@given(st.data(), random_blocks.functions(), SEEDS)
@settings(max_examples=250)
def test_steps_keep_the_meaning_of_odd_functions(data, func, seed):
    try:
        check(func, LOOP_NAIVE)
        outputs(func, seed)
    except VerifyError:  # an access outside of a buffer
        assume(False)
    assert_same(func, data, seed, data.draw(st.integers(1, 8)))


@given(random_stages.functions(), SEEDS)
@settings(max_examples=100)
def test_what_rules_propose_keeps_the_meaning(func, seed):
    """With vectors of four elements small functions have tails, masks, horizontal sums and gathers."""
    expected = outputs(func, seed)
    proposals = propose(func, get_target("x86-64"))
    assert [p.trace for p in proposals] == [p.trace for p in propose(func, get_target("x86-64"))]
    for proposal in proposals:
        assert canonical_text(finalize(apply_trace(func, proposal.trace))) == canonical_text(proposal.func)
        check(proposal.func, LOOP_LOWERED)
        text = trace_text(proposal.trace)
        for got, wanted in zip(outputs(proposal.func, seed), expected, strict=True):
            np.testing.assert_array_equal(got, wanted, err_msg=text)
        for step in proposal.trace:
            event(step.step_name())
