import pytest

from strata.core.errors import UserError
from strata.runtime import cpu

INFO = "processor : 0\nflags\t\t: fpu lm sse4_1 pni abm sha_ni avx512_vnni\nbugs : x\n"


def test_names_are_matched_across_spellings():
    have = cpu.parse_cpuinfo(INFO)
    needed = ("64bit", "sse4.1", "+sse3", "lzcnt", "sha", "avx512vnni", "+avx512bf16", "amx-tile")
    assert cpu.missing_features(needed, have) == ["avx512bf16", "amx-tile"]
    assert cpu.parse_cpuinfo("Features : asimd") == {"asimd"}
    assert cpu.parse_cpuinfo("nothing") == frozenset()


def test_this_machine(tmp_path):
    assert cpu.machine_features(tmp_path / "none") == frozenset()
    assert cpu.missing_features([], cpu.machine_features()) == []


def test_check_lists_all_that_is_missing(monkeypatch):
    monkeypatch.setattr(cpu, "machine_features", lambda: cpu.parse_cpuinfo(INFO))
    cpu.check_features(("avx512vnni",), "m.json")
    with pytest.raises(
        UserError, match=r"m\.json: the code needs CPU features .*: avx2, fma; compile the model on"
    ):
        cpu.check_features(("avx2", "fma"), "m.json")
