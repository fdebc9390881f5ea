"""Targets: text form, registry, detection from canned and real system files."""

from dataclasses import replace

import pytest

from strata.core.errors import ParseError, UnsupportedError, UserError
from strata.target import TARGETS, detect_host, features, get_target, host_features, parse_target
from strata.target import detect as detection

ZEN4_FLAGS = (
    "fpu sse sse2 pni ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt avx f16c abm bmi1 avx2 bmi2 avx512f avx512dq "
    "avx512ifma avx512cd avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vbmi2 gfni avx512_vnni "
    "avx512_bitalg avx512_vpopcntdq"
)


def cpuinfo(flags, vendor="AuthenticAMD", family="25"):
    text = f"processor : 0\nvendor_id : {vendor}\ncpu family : {family}\ncpu MHz : 2000.0\nflags : {flags}\n"
    return text + "\n" + text.replace("processor : 0", "processor : 1")


@pytest.mark.parametrize("name", list(TARGETS))
def test_text_round_trip(name):
    target = TARGETS[name]
    assert parse_target(str(target)) == target
    assert get_target(str(target)) == target
    assert target.name == name
    assert list(target.features) == sorted(target.features)


def test_names():
    assert get_target("zen4").has_bf16_dot
    assert not get_target("avx512").has_bf16_dot
    assert get_target("avx2").lanes_f32 == 8
    assert get_target("x86-64").feature_string == "+sse,+sse2"
    assert get_target("zen5").arch == "x86_64"
    assert get_target("zen5").has("avxvnni")


def test_unknown_name():
    with pytest.raises(UserError, match=r"target: got 'zen3'; expected one of host, avx2, avx2-vnni, avx512"):
        get_target("zen3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("zen4", "expected name"),
        ("a{b=1}", "got 'b=1'; expected each of triple"),
        ("a{cpu}", "got 'cpu'"),
        ("a{cpu=x,cpu=y}", "got 'cpu=y'"),
        ("a{num_cores=two}", "got num_cores=two; expected an integer"),
        ("a{bandwidth_bytes_per_s=1.5z}", "expected a hexadecimal float"),
        ("a{cpu=x}", "no value for triple, features"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ParseError, match=message):
        parse_target(text)


def test_bad_values():
    with pytest.raises(UserError, match="got vector_bytes=48; expected 16, 32 or 64"):
        replace(TARGETS["avx2"], vector_bytes=48)
    with pytest.raises(UserError, match="got 'a,b'; expected letters"):
        replace(TARGETS["avx2"], cpu="a,b")


def test_zen4_from_cpuinfo():
    target = detection.host_from(cpuinfo(ZEN4_FLAGS), {1: 32768, 2: 1 << 20, 3: 32 << 20}, 2)
    assert target.cpu == "znver4"
    assert target.features == TARGETS["zen4"].features
    assert (target.vector_bytes, target.num_vector_registers, target.num_cores) == (64, 32, 2)
    assert target.peak_f32_flop_per_s == 2 * 2e9 * 32
    assert target.peak_bf16_flop_per_s == 2 * target.peak_f32_flop_per_s
    assert (target.l1_bytes, target.l2_bytes, target.l3_bytes) == (32768, 1 << 20, 32 << 20)


@pytest.mark.parametrize(
    ("flags", "family", "cpu", "vector_bytes"),
    [
        (ZEN4_FLAGS + " avx_vnni", "26", "znver5", 64),
        (ZEN4_FLAGS.replace("avx512_bf16", ""), "25", "x86-64-v4", 64),
        (ZEN4_FLAGS.replace("avx512vl", ""), "25", "x86-64-v3", 32),
        (ZEN4_FLAGS.replace("avx512f ", "") + " avx_vnni", "6", "x86-64-v3", 32),
        (ZEN4_FLAGS.replace(" avx2", ""), "23", "x86-64", 16),
        ("sse sse2", "15", "x86-64", 16),
    ],
)
def test_levels(flags, family, cpu, vector_bytes):
    target = detection.host_from(cpuinfo(flags, family=family), {}, 4)
    assert (target.cpu, target.vector_bytes) == (cpu, vector_bytes)
    assert parse_target(str(target)) == target
    assert target.has_int8_dot == (vector_bytes == 64 or "avx_vnni" in flags)
    if vector_bytes < 64:
        assert not [f for f in target.features if f.startswith("avx512")]


def test_features_that_must_not_be_mixed_in_are_dropped():
    assert "amx-tile" not in features.usable([*features.V4, "amx-tile"])
    assert set(features.AMX) <= set(features.usable(features.V4_AMX))
    assert features.usable(["sse", "sse2", "avx"]) == ("sse", "sse2")


def test_matrix_unit_needs_a_permission(monkeypatch):
    """The kernel gives the registers of AMX to processes that ask for them, if at all."""
    flags = ZEN4_FLAGS + " avx512_vnni avx512_bf16 amx_tile amx_bf16 amx_int8"
    target = detection.host_from(cpuinfo(flags, family="6"), {}, 4)
    assert (target.cpu, target.has_matrix_bf16, target.has_matrix_int8) == ("sapphirerapids", True, True)
    assert target.peak_bf16_flop_per_s == 4 * 2e9 * 2 * 16 * 16 * 32 / 16
    assert target.peak_int8_op_per_s == 2 * target.peak_bf16_flop_per_s
    monkeypatch.setattr(detection, "permit_matrix_unit", lambda: False)
    assert detection.permitted(target.features) == tuple(sorted({*target.features} - {*features.AMX}))
    if detect_host().has_matrix_bf16:
        without = detection.detect_host.__wrapped__()
        assert not without.has_matrix_bf16
        assert without.peak_bf16_flop_per_s == without.peak_f32_flop_per_s
    monkeypatch.setattr(detection, "permit_matrix_unit", lambda: True)
    assert detection.permitted(target.features) == target.features


def test_bf16_dot_products_that_are_slow_are_not_used():
    """Intel's servers have them, on virtual machines without AMX, too: f32 multiply-adds are faster there."""
    flags = ZEN4_FLAGS + " avx512_vnni avx512_bf16 avx512_fp16"
    target = detection.host_from(cpuinfo(flags, "GenuineIntel", "6"), {}, 4)
    assert (target.cpu, target.has_bf16_dot, target.multiplies_bf16_pairs) == ("sapphirerapids", True, False)
    assert target.peak_bf16_flop_per_s == target.peak_f32_flop_per_s
    assert target.fetch_ahead_bytes == TARGETS["avx512-amx"].fetch_ahead_bytes
    other = detection.host_from(cpuinfo(flags, "AuthenticAMD", "27"), {}, 4)
    assert (other.cpu, other.multiplies_bf16_pairs) == ("x86-64-v4", True)


def test_caches(tmp_path):
    for i, (level, kind, size) in enumerate(
        [(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "1M")]
    ):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, value in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "index9").mkdir()
    assert detection.read_caches(tmp_path) == {1: 48 * 1024, 2: 1 << 20}
    assert detection.read_caches(tmp_path / "none") == {}


def test_host():
    host = detect_host()
    assert get_target("host") is host
    assert host_features() == host.features
    assert host.num_cores >= 1
    assert parse_target(str(host)) == host


def test_other_machines(monkeypatch):
    monkeypatch.setattr(detection.platform, "machine", lambda: "riscv64")
    with pytest.raises(UnsupportedError, match="on riscv64; expected Linux on x86-64 or AArch64"):
        detection.detect_host.__wrapped__()
    assert host_features() == ()


def test_arm_from_cpuinfo():
    flags = "fp asimd evtstrm aes crc32 atomics fphp asimdhp asimdrdm asimddp i8mm bf16 sve"
    text = f"processor : 0\nBogoMIPS : 50.00\nFeatures : {flags}\nCPU implementer : 0x41\n"
    target = detection.host_from(text + "\n" + text, {1: 65536}, 4)
    assert target.features == ("bf16", "dotprod", "fp-armv8", "i8mm", "neon")
    assert (target.arch, target.vector_bytes, target.num_vector_registers) == ("aarch64", 16, 32)
    assert (target.cpu, target.l1_bytes, target.num_cores) == ("neoverse-v1", 65536, 4)
    assert target.peak_int8_op_per_s == 4 * target.peak_f32_flop_per_s == 2 * target.peak_bf16_flop_per_s
    old = detection.host_from(text.replace(" asimddp i8mm bf16", ""), {}, 4)
    assert (old.cpu, old.features) == ("cortex-a72", ("fp-armv8", "neon"))
    assert not old.has_bf16_dot
    assert not old.has_int8_dot
    assert old.has_f16_conversion


def test_dot_products_of_bytes():
    have = {name for name, target in TARGETS.items() if target.has_int8_dot}
    levels = {"avx2-vnni", "avx512-bf16", "avx512-fp16", "avx512-amx", "neon-dotprod", "neon-i8mm"}
    assert have == {*levels, "zen4", "zen5"}
    assert get_target("neon-i8mm").register_lanes == (4,)
    assert get_target("avx512").register_lanes == (16, 8, 4)
