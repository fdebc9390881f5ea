"""From a config to a plan on a machine with a photonic unit, as its users write it."""

import pytest

import strata
from strata import CPU, GPU, PHU, Machine


@pytest.mark.parametrize(("model", "length"), [("llama-2-7b", 1400), ("gpt2-124m", 1000)])
def test_plan_of_a_config_on_a_machine_of_three_devices(model, length):
    machine = Machine(
        [CPU(clock_hz=3.208e9, cores=1), PHU(clock_hz=9.7e9, cores=1, multiplex=20), GPU(clock_hz=1.98e9)],
        profile="lightcode",
    )
    plan = strata.plan(model, machine, objective="energy", seq_len=length)
    assert 0 < plan.energy_j == plan.lower_bound
    assert plan.devices["phu"].matmuls > 0
    again = strata.plan(model, machine, objective="energy", seq_len=length)
    assert (again.energy_j, again.time_s) == (plan.energy_j, plan.time_s)
