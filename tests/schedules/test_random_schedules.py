"""Random functions under random legal steps compute the same, scheduled and finalised."""

import numpy as np
import pytest
import random_blocks
import random_stages
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from random_stages import arrays
from random_steps import CANDIDATES, random_trace, targeted_trace

from strata.core.errors import LegalityError, VerifyError
from strata.loop.check import LOOP_LOWERED, LOOP_NAIVE, LOOP_SCHEDULED, check
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.text import canonical_text, parse_func, print_func
from strata.schedule import STEPS, Trace, apply_trace, finalize, parse_trace, propose, trace_text
from strata.target import get_target

SEEDS = st.integers(0, 2**32 - 1)
EXAMPLES = 14  # of every step on its own
FIRES = 4  # of them at least
FUNCTIONS = {
    "compute_at": {"stages": 2},
    "reverse_compute_at": {"stages": 2},
    "compute_inline": {"stages": 2, "reduces": False},
    "reverse_compute_inline": {"stages": 2, "reduces": False},
    "set_scope": {"stages": 2},
    "tile": {"stages": 2},
    "merge": {"stages": 3},
    "rfactor": {"reduces": True},
    "decompose_reduction": {"reduces": True},
}


def outputs(func: Func, seed: int) -> list[np.ndarray]:
    """Outputs on random arguments; iterations of PARALLEL and bound loops run in a shuffled order."""
    args = arrays(func, seed)
    run(func, args, parallel_seed=seed)
    return args[-func.num_outputs :]


def assert_same(func: Func, scheduled: Func, trace: Trace, seed: int) -> None:
    """A trace keeps what ``func`` computes, before and after finalisation, and is replayed from its text."""
    expected, text = outputs(func, seed), trace_text(trace)
    assert parse_trace(text) == trace
    assert canonical_text(apply_trace(func, trace)) == canonical_text(scheduled)
    again = parse_func(print_func(scheduled))
    assert canonical_text(again) == canonical_text(scheduled)
    check(again, LOOP_SCHEDULED)
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


@pytest.mark.parametrize("kind", CANDIDATES)
def test_a_step_keeps_the_meaning_and_is_often_legal(kind):
    fired = []

    @given(st.data(), random_stages.functions(**FUNCTIONS.get(kind, {})), SEEDS)
    @settings(max_examples=EXAMPLES, derandomize=True, database=None)
    def examples(data, func, seed):
        scheduled, trace = targeted_trace(data.draw, func, kind)
        assert_same(func, scheduled, trace, seed)
        fired.append(any(step.step_name() == kind for step in trace))

    examples()
    assert sum(fired) >= FIRES, f"{kind} was legal in {sum(fired)} of {len(fired)} functions"


def test_every_step_is_tried():
    # tensorize multiplies bf16: test_random_dots; matrix_unit needs its products: test_emit_matrix;
    # start_at_zero needs integers that start at something: test_start_at_zero; trim whole tiles: test_trim;
    # widen private numbers of 16 bits: test_step_text.
    assert set(CANDIDATES) == set(STEPS) - {"tensorize", "matrix_unit", "start_at_zero", "trim", "widen"}


@given(st.data(), random_stages.functions(), SEEDS)
@settings(max_examples=50)
def test_steps_keep_the_meaning_of_naive_functions(data, func, seed):
    check(func, LOOP_NAIVE)
    scheduled, trace = random_trace(data.draw, func, data.draw(st.integers(1, 12)))
    assert_same(func, scheduled, trace, seed)


@given(st.data(), random_blocks.functions(), SEEDS)
@settings(max_examples=150)
def test_steps_keep_the_meaning_of_odd_functions(data, func, seed):
    try:
        check(func, LOOP_NAIVE)
        outputs(func, seed)
    except VerifyError:  # an access outside of a buffer
        assume(False)
    scheduled, trace = random_trace(data.draw, func, data.draw(st.integers(1, 8)))
    assert_same(func, scheduled, trace, seed)


@given(random_stages.functions(), SEEDS)
@settings(max_examples=50)
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
