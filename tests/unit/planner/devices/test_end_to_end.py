"""From a config to a plan on a machine with a photonic unit, as its users write it."""

import strata
from strata import CPU, GPU, PHU, Machine


def test_plan_of_a_config_on_a_machine_of_three_devices(tmp_path):
    machine = Machine(
        [CPU(clock_hz=3.208e9, cores=1), PHU(clock_hz=9.7e9, cores=1, multiplex=20), GPU(clock_hz=1.98e9)],
        profile="lightcode",
    )
    plan = strata.plan("gpt2-124m", machine, objective="energy", seq_len=1400)
    assert 0 < plan.energy_j == plan.lower_bound
    assert plan.devices["phu"].matmuls > 0
    again = strata.plan("gpt2-124m", machine, objective="energy", seq_len=1400)
    assert (again.energy_j, again.time_s) == (plan.energy_j, plan.time_s)
