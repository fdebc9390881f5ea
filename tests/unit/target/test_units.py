"""Numbers with units: what is accepted, what exactly it means, and that texts read back as the same."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.core.errors import UserError
from strata.target.hardware.units import KINDS, kind_of, parse, text_of

NUMBERS = st.floats(min_value=1e-25, max_value=1e25, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("field", "text", "expected"),
    [
        ("clock_hz", "9.7 GHz", 9.7e9),
        ("capacity_bytes", "80 GiB", 80 * 2**30),
        ("capacity_bytes", "80GB", 80e9),
        ("buffer_bytes", "8 kbit", 1000.0),
        ("bandwidth_bytes_per_s", "3.35 TB/s", 3.35e12),
        ("bandwidth_bytes_per_s", "400 Gbit/s", 50e9),
        ("read_j_per_byte", "8 pJ/byte", 8e-12),
        ("write_j_per_byte", "1 pJ/bit", 8e-12),
        ("j_per_byte", "2.4 pJ/B", 2.4e-12),
        ("j_per_mac", "0.04 pJ/MAC", 4e-14),
        ("j_per_mac", "40 fJ", 4e-14),
        ("j_per_sample", "3.17 pJ", 3.17e-12),
        ("program_j_per_weight", "2 nJ/weight", 2e-9),
        ("samples_per_s", "14 GS/s", 14e9),
        ("program_s", "10 ns", 1e-8),
        ("delay_s", "1.5e1 µs", 15e-6),
        ("static_w", "700 W", 700.0),
        ("static_w", "-1 W", -1.0),
    ],
)
def test_texts_mean_exactly_what_they_say(field, text, expected):
    kind = kind_of(field)
    assert kind is not None
    assert parse(kind, text, field) == expected


@pytest.mark.parametrize("name", ["bits", "cores", "macs_per_cycle", "tpcs_per_gpc", "rows", "tokens_per_s"])
def test_counts_and_ratios_have_no_unit(name):
    assert kind_of(name) is None


def test_numbers_are_in_the_base_unit():
    assert parse(KINDS["hz"], 5, "clock_hz") == 5


@given(st.sampled_from(sorted(KINDS)), NUMBERS)
def test_printed_numbers_read_back_as_the_same(end, number):
    kind = KINDS[end]
    assert parse(kind, text_of(kind, number), end) == number


@given(st.sampled_from(sorted(KINDS)), NUMBERS, st.data())
def test_every_unit_is_the_size_that_it_says(end, number, data):
    kind = KINDS[end]
    unit, size = data.draw(st.sampled_from(sorted(kind.units().items())))
    assert parse(kind, f"{number!r} {unit}", end) == pytest.approx(number * float(size), rel=1e-15)


@pytest.mark.parametrize("number", [0.0, math.inf])
def test_nothing_and_infinity_need_no_unit(number):
    assert text_of(KINDS["w"], number) == number


def test_sizes_are_printed_in_powers_of_two_where_these_are_whole():
    assert text_of(KINDS["bytes"], 80 * 2.0**30) == "80 GiB"
    assert text_of(KINDS["bytes"], 80e9) == "80 GB"
    assert text_of(KINDS["bytes_per_s"], 3.35e12) == "3.35 TB/s"


@pytest.mark.parametrize(
    ("field", "text", "got"),
    [
        (
            "clock_hz",
            "9.7 GB",
            "the unit 'GB' in '9.7 GB'; expected a frequency such as '9.7 GHz' (units: Hz",
        ),
        ("clock_hz", "9.7", "the unit 'none' in '9.7'; expected a frequency"),
        ("clock_hz", "fast", "'fast'; expected a frequency"),
        ("capacity_bytes", "80 mB", "the unit 'mB' in '80 mB'; expected a size such as '80 GiB'"),
        ("capacity_bytes", "80 GB/s", "the unit 'GB/s' in '80 GB/s'; expected a size"),
        ("static_w", "3 GiW", "the unit 'GiW' in '3 GiW'; expected a power"),
        ("program_s", "3 Ms", "the unit 'Ms' in '3 Ms'; expected a time"),
        ("read_j_per_byte", "3 pJ", "the unit 'pJ' in '3 pJ'; expected an energy per byte"),
    ],
)
def test_units_that_do_not_fit_are_refused(field, text, got):
    kind = kind_of(field)
    assert kind is not None
    with pytest.raises(UserError, match=re.escape(f"x.toml: devices.d: {field}: got {got}")):
        parse(kind, text, f"x.toml: devices.d: {field}")
