"""Parameters of machines: each number of a file has a path; machines with others are checked as files are."""

import pytest

from strata.core.errors import UserError
from strata.target.hardware import CPU, GPU, Machine, machine_names, parse_machine, read_machine
from strata.target.hardware.parameters import parameter, parameters, value_of, with_parameters

FITTED = """
[memories.dram]
capacity_bytes = inf
bandwidth_bytes_per_s = "10 GB/s"
read_j_per_byte = 0
write_j_per_byte = 0
[devices.cpu]
kind = "fittedcpu"
clock_hz = 1e9
[[devices.cpu.families]]
op = "*"
weight_bits = 16
knots = [
  { rows = 1, launch_s = 1e-6, weight_reads = 1, s_per_byte = 1e-10, s_per_flop = 1e-10 },
  { rows = 64, launch_s = 1e-6, weight_reads = 1, s_per_byte = 1e-10, s_per_flop = 1e-11 },
]
"""


def changed(machine: Machine, **texts: str) -> Machine:
    found = {path.replace("__", "."): text for path, text in texts.items()}
    own = {path: parameter(machine, path) for path in found}
    return with_parameters(machine, {own[p].steps: value_of(own[p], text) for p, text in found.items()})


@pytest.mark.parametrize("name", machine_names())
def test_every_parameter_can_be_set_to_what_it_is(name):
    machine = read_machine(name)
    known = parameters(machine)
    assert len(known) > 20
    for path, found in known.items():
        if found.value is not None and found.value != ():
            same = with_parameters(machine, {found.steps: value_of(found, found.value)})
            assert parameter(same, path).value == found.value
            assert {p: f.value for p, f in parameters(same).items()} == {p: f.value for p, f in known.items()}


def test_values_have_units_and_become_assumed():
    machine = read_machine("lightcode")
    other = changed(
        machine,
        devices__phu__multiplex="5",
        devices__phu__dac__j_per_sample="2 fJ",
        devices__phu__dynamic="false",
        memories__sram__bandwidth_bytes_per_s="3.35 TB/s",
        links__stage__latency_s="2 ns",
        home="hbm",
    )
    phu = other.device("phu")
    assert (phu.multiplex, phu.dac.j_per_sample, phu.dac.bits) == (5, 2e-15, 8)
    assert other.memory("sram").bandwidth_bytes_per_s == 3.35e12
    assert other.links[1].latency_s == 2e-9
    assert other.home == "hbm"
    assert phu.source_of("multiplex") == phu.dac.source_of("j_per_sample") == "assumed"
    assert phu.source_of("clock_hz").startswith("LightCode")
    assert machine == read_machine("lightcode")
    assert other.devices[0] == machine.devices[0]


def test_members_of_lists_have_numbers():
    machine = parse_machine(FITTED)
    found = parameter(machine, "devices.cpu.families[0].knots[1].s_per_flop")
    assert found.value == 1e-11
    other = with_parameters(machine, {found.steps: 5e-12})
    (family,) = other.devices[0].families
    assert [k.s_per_flop for k in family.knots] == [1e-10, 5e-12]


def test_several_fields_of_a_part_change_together():
    machine = Machine([CPU(clock_hz=1e9), parse_phu()])
    with pytest.raises(UserError, match="got a tile of 4 x 0"):
        changed(machine, devices__phu__rows="4")
    assert changed(machine, devices__phu__rows="4", devices__phu__cols="8").device("phu").cols == 8


def parse_phu():
    return read_machine("lightcode").device("phu").__class__(clock_hz=1e9)


def test_an_unknown_path_names_the_near_one():
    machine = read_machine("lightcode")
    with pytest.raises(
        UserError, match=r"no parameter 'devices.phu.multplex'; did you mean devices.phu.mult"
    ):
        parameter(machine, "devices.phu.multplex")
    with pytest.raises(
        UserError, match=r"no parameter 'nonsense'\. Its parts are devices.cpu, devices.phu, dev"
    ):
        parameter(machine, "nonsense")
    for path in ("devices.phu", "devices.cpu.dac.bits", "devices.phu.name", "devices.phu.sources", "name"):
        with pytest.raises(UserError, match="no parameter"):
            parameter(machine, path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("devices.phu.multiplex", "many", "multiplex: got 'many'; expected a whole number"),
        ("devices.phu.multiplex", "2.5", "multiplex: got 2.5; expected a whole number"),
        ("devices.phu.clock_hz", "3 J", "the unit 'J' in '3 J'; expected a frequency"),
        ("devices.phu.dynamic", "1", "dynamic: got 1; expected true or false"),
        ("devices.phu.noise_additive", "1 GHz", "expected a number"),
        ("home", 3, "home: got 3; expected a text"),
    ],
)
def test_values_that_do_not_fit(path, value, message):
    with pytest.raises(UserError, match=message):
        value_of(parameter(read_machine("lightcode"), path), value)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"devices__phu__multiplex": "0"}, "multiplex: got 0; expected > 0"),
        ({"devices__phu__clock_hz": "nan"}, "clock_hz: got nan"),
        ({"home": "nowhere"}, "no memory 'nowhere'"),
    ],
)
def test_machines_that_cannot_be(texts, message):
    with pytest.raises(UserError, match=message):
        changed(read_machine("lightcode"), **texts)


def test_machines_made_in_python_have_parameters_too():
    machine = Machine([GPU(clock_hz=1e9), GPU(clock_hz=2e9)])
    assert changed(machine, devices__gpu2__gpcs="3").device("gpu2").gpcs == 3
    assert changed(machine, devices__gpu__ops=("add", "mul")).device("gpu").ops == ("add", "mul")
