import pytest

from strata.core.errors import UserError
from strata.runtime import cpu
from strata.target import host_features


def test_code_for_this_machine_is_accepted():
    cpu.check_features(host_features(), "m.json")


def test_check_lists_all_that_is_missing(monkeypatch):
    monkeypatch.setattr(cpu, "host_features", lambda: ("avx512vnni", "sse2"))
    cpu.check_features(("avx512vnni",), "m.json")
    with pytest.raises(
        UserError, match=r"m\.json: the code needs CPU features .*: avx2, fma; compile the model on"
    ):
        cpu.check_features(("avx2", "fma"), "m.json")
