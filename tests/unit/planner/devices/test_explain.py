"""Explanations of a plan: terms that add up, moves that are made, and plans that the other choices make."""

import numpy as np
import pytest

import strata
from strata.core.errors import UserError
from strata.planner.devices.explain import explain
from strata.planner.devices.result import MachinePlan, totals


@pytest.fixture(scope="module")
def plan() -> MachinePlan:
    found = strata.plan("tiny", "lightcode", objective="time+10*energy", seq_len=[4, 40])
    assert isinstance(found, MachinePlan)
    return found


@pytest.mark.parametrize("point", [0, 1])
def test_every_candidate_with_the_plan_that_it_makes(plan, point):
    (found,) = explain(plan, "model.layers.1.mlp.gate_up_proj", point)
    number = plan.graph.workload.works.index(found.work)
    assert [o.candidate.name for o in found.offers] == [c.name for c in plan.graph.stacks[number]]
    assert found.chosen.candidate.device == plan.device_of(number, point)
    for k, offer in enumerate(found.offers):
        choices = plan.choices.copy()
        choices[number] = k
        time_s, energy_j = totals(plan.graph, choices)
        assert offer.time_s == pytest.approx(time_s[point], rel=1e-12)
        assert offer.energy_j == pytest.approx(energy_j[point], rel=1e-12)
        assert offer.value == pytest.approx(time_s[point] + 10 * energy_j[point], rel=1e-12)
        assert offer.value >= found.chosen.value * (1 - 1e-12)
        terms = sum(t.energy_j[0] for t in offer.candidate.estimates.terms)
        assert terms == pytest.approx(offer.candidate.estimates.energy_j[0], rel=1e-12)
        assert all(np.size(t.amount) == 1 and t.unit for t in offer.candidate.estimates.terms)
    assert found.chosen.value == pytest.approx(plan.values[point], rel=1e-12)


def test_moves_in_and_out(plan):
    (found,) = explain(plan, "model.layers.1.mlp.gate_up_proj", 1)
    values = plan.graph.workload.values
    moved = {values[m.transfer.value].name for o in found.offers for m in o.moves}
    assert "model.layers.1.mlp.gate_up_proj.weight" in moved
    assert "model.layers.1.mlp.gate_up_proj" in moved


def test_equal_layers_are_explained_once(plan):
    (found,) = explain(plan, "*.mlp.gate_up_proj")
    assert [w.layer for w in found.alike] == [0, 1]
    assert len(explain(plan, "softmax")) == 1  # by op


def test_patterns_that_fit_nothing(plan):
    with pytest.raises(UserError, match="explain: 'nope' fits no op of tiny prefill; it has"):
        explain(plan, "nope")
