"""What varies: lists, ranges with and without units, and what is refused."""

import pytest

from strata.core.errors import UserError
from strata.planner.explore import axes
from strata.planner.explore.axes import axis, parse_axis, values_of
from strata.target.hardware import read_machine
from strata.target.hardware.parameters import parameter

MACHINE = read_machine("lightcode")


def values(text: str) -> tuple[object, ...]:
    found = parse_axis(text)
    return values_of(found, parameter(MACHINE, found.paths[0]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("devices.phu.multiplex=1,2, 5", (1, 2, 5)),
        ("devices.phu.dac.bits=4..7,12", (4, 5, 6, 7, 12)),
        ("devices.phu.dac.bits=4..8:3", (4, 6, 8)),
        ("devices.phu.multiplex=1..16:log5", (1, 2, 4, 8, 16)),
        ("devices.phu.multiplex=3,3,2..4", (3, 2, 4)),
        ("devices.phu.clock_hz=1 GHz..4 GHz:4", (1e9, 2e9, 3e9, 4e9)),
        ("devices.phu.clock_hz= 1 GHz , 2.5e9", (1e9, 2.5e9)),
        ("devices.phu.noise_additive=0..1:3", (0.0, 0.5, 1.0)),
        ("devices.phu.noise_additive=.5...75:2", (0.5, 0.75)),
        ("devices.phu.dynamic=false", (False,)),
        ("memories.dram.capacity_bytes=inf,80 GiB", (float("inf"), 80 * 2.0**30)),
        ("profile=lightcode,physical", ("lightcode", "physical")),
    ],
)
def test_values(text, expected):
    found = values(text)
    assert found == pytest.approx(expected) if isinstance(expected[0], float) else found == expected
    assert [type(v) for v in found] == [type(v) for v in expected]


def test_ends_of_ranges_are_exact():
    found = values("devices.phu.dac.j_per_sample=1 fJ..3.17 pJ:log9")
    assert (found[0], found[-1]) == (1e-15, 3.17e-12)
    assert len(found) == 9


def test_axes_from_python():
    found = axis("devices.phu.clock_hz", [1e9, "2 GHz"])
    assert values_of(found, parameter(MACHINE, "devices.phu.clock_hz")) == (1e9, 2e9)
    assert axis("devices.phu.dac.bits, devices.phu.adc.bits", "4..6").paths == (
        "devices.phu.dac.bits",
        "devices.phu.adc.bits",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("devices.phu.multiplex", "--vary: got 'devices.phu.multiplex'; expected PATH=VALUE"),
        ("=3", "vary: got ="),
        ("devices.phu.multiplex=", "vary: got devices.phu.multiplex=.*; expected PATH=VALUE"),
        ("devices.phu.multiplex=1,,2", "expected PATH=VALUE"),
        ("devices.phu.multiplex=5..2", r"5\.\.2: the range is empty; expected LO <= HI"),
        ("devices.phu.clock_hz=1 GHz..2 GHz", "say how many: LO..HI:COUNT"),
        ("devices.phu.clock_hz=1..inf:3", "expected finite numbers"),
        ("devices.phu.clock_hz=1..2:1", r"got a count of 1; expected 2\.\."),
        ("devices.phu.noise_additive=0..1:log3", "logarithmic range from 0.0; expected one from above 0"),
        ("devices.phu.dynamic=false..true", "got a range; expected values with commas"),
        ("devices.phu.multiplex=1..4:3", "expected a whole number"),
        ("devices.phu.multiplex=x", "got 'x'; expected a whole number"),
    ],
)
def test_mistakes(text, message):
    with pytest.raises(UserError, match=message):
        values(text)


def test_no_values():
    with pytest.raises(UserError, match="got no values; expected at least one"):
        axis("devices.phu.multiplex", [])


def test_too_many_values(monkeypatch):
    monkeypatch.setattr(axes, "MAX_VALUES", 10)
    with pytest.raises(UserError, match="got too many values; expected at most 10"):
        values("devices.phu.multiplex=1..1000000000")
    with pytest.raises(UserError, match=r"got a count of 11; expected 2\.\.10"):
        values("devices.phu.clock_hz=1..2:11")
