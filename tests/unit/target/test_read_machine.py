"""Machines as files: what a file says, what is refused, and that machines print as texts that read back."""

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.core.errors import ParseError, UnsupportedError, UserError
from strata.target.hardware import (
    CPU,
    GPU,
    PHU,
    Converter,
    Device,
    Link,
    Machine,
    Memory,
    machine_names,
    machine_text,
    parse_machine,
    read_machine,
)

SMALL = """
[memories.dram]
capacity_bytes = "16 GiB"
bandwidth_bytes_per_s = "40 GB/s"
read_j_per_byte = "20 pJ/byte"
write_j_per_byte = "20 pJ/byte"
[devices.cpu]
kind = "cpu"
clock_hz = "3 GHz"
cores = 8
source = "datasheet"
sources = { cores = "my own count" }
[devices.mesh]
kind = "phu"
clock_hz = 10e9
rows = 64
cols = 32
[devices.mesh.dac]
bits = 8
j_per_sample = "10 pJ"
"""


def test_a_file_says_what_the_machine_is():
    machine = parse_machine(SMALL, "small.toml", name="small")
    assert (machine.name, machine.profile, machine.home) == ("small", "physical", "dram")
    assert [d.name for d in machine.devices] == ["cpu", "mesh"]
    cpu, mesh = machine.devices
    assert isinstance(cpu, CPU)
    assert isinstance(mesh, PHU)
    assert (cpu.clock_hz, cpu.cores, cpu.memory) == (3e9, 8, "dram")
    assert (mesh.clock_hz, mesh.rows, mesh.cols, mesh.adc) == (10e9, 64, 32, None)
    assert mesh.dac == Converter(name="dac", bits=8, j_per_sample=10e-12)
    assert machine.memory("dram").capacity_bytes == 16 * 2**30


def test_where_numbers_come_from():
    cpu, mesh = parse_machine(SMALL, "small.toml").devices
    assert cpu.source_of("clock_hz") == "datasheet"
    assert cpu.source_of("cores") == "my own count"
    # The datasheet is not where our default comes from.
    assert cpu.source_of("j_per_mac") == "assumed: the default of CPU"
    assert mesh.source_of("clock_hz") == "assumed"


def test_reading_twice_gives_the_same():
    assert parse_machine(SMALL) == parse_machine(SMALL)
    assert read_machine("h100") == read_machine("h100")


@pytest.mark.parametrize("name", machine_names())
def test_shipped_machines_have_a_source_for_every_number_and_print_as_they_are(name):
    machine = read_machine(name)
    assert machine.name == name
    assert machine.about
    assert parse_machine(machine_text(machine), needs_sources=True) == machine


def test_a_machine_file_of_the_user_by_its_path(tmp_path):
    path = tmp_path / "desk.toml"
    path.write_text(SMALL)
    assert read_machine(path) == read_machine(str(path)) == parse_machine(SMALL, name="desk")


LIKE = """
like = "h100"
[memories.hbm]
capacity_bytes = "94 GB"
[memories.sram]
parent = "hbm"
capacity_bytes = "1 MiB"
bandwidth_bytes_per_s = "1 TB/s"
read_j_per_byte = 0
write_j_per_byte = 0
[devices.gpu]
launch_s = "1 us"
static_w = "90 W"
sources = { static_w = "my meter" }
[devices.mesh]
kind = "phu"
memory = "sram"
clock_hz = "1 GHz"
dac = { bits = 4, j_per_sample = "1 pJ" }
"""


def test_a_machine_may_start_from_another():
    machine, base = parse_machine(LIKE, name="mine"), read_machine("h100")
    assert (machine.name, machine.about, machine.home) == ("mine", "", "hbm")
    assert [m.name for m in machine.memories] == ["hbm", "l2", "sram"]
    assert [d.name for d in machine.devices] == ["gpu", "mesh"]
    hbm, gpu = machine.memory("hbm"), machine.device("gpu")
    assert (hbm.capacity_bytes, hbm.bandwidth_bytes_per_s) == (94e9, 3.35e12)
    # What is replaced has lost its source, what is not has kept it.
    assert hbm.source_of("capacity_bytes") == "assumed"
    assert hbm.source_of("bandwidth_bytes_per_s") == base.memory("hbm").source_of("bandwidth_bytes_per_s")
    assert (gpu.launch_s, gpu.source_of("launch_s")) == (1e-6, "assumed")
    assert (gpu.static_w, gpu.source_of("static_w")) == (90.0, "my meter")
    assert gpu.clock_hz == base.device("gpu").clock_hz
    with pytest.raises(UserError, match=r"x.toml: memories.hbm: capacity_bytes: got no source; expected one"):
        parse_machine(LIKE, "x.toml", needs_sources=True)


def test_converters_may_be_replaced_in_part():
    text = 'like = "lightcode-honest"\n[devices.phu.dac]\nj_per_sample = "1 pJ"'
    phu = parse_machine(text).device("phu")
    assert isinstance(phu, PHU)
    assert phu.dac is not None
    assert (phu.dac.j_per_sample, phu.dac.delay_s, phu.dac.source_of("j_per_sample")) == (
        1e-12,
        1e-8,
        "assumed",
    )


def test_a_machine_like_one_that_is_like_another():
    machine = parse_machine('like = "lightmatter-2025"\n[devices.phu]\ncores = 8', name="eight")
    assert machine.device("phu").cores == 8
    assert machine.device("gpu") == read_machine("h100").device("gpu")


# --- what is refused ------------------------------------------------------------------------------


def edit(old: str, new: str) -> str:
    assert SMALL.count(old) >= 1
    return SMALL.replace(old, new, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            edit("cores = 8", "corse = 8"),
            "devices.cpu: no key 'corse'; did you mean 'cores'? Expected any of",
        ),
        ("clock = 3\n" + SMALL, "small.toml: no key 'clock'. Expected any of like, name, profile, home"),
        (
            edit('clock_hz = "3 GHz"\n', ""),
            "devices.cpu: clock_hz is missing; expected a frequency such as '9.7 GHz'",
        ),
        (edit("bits = 8\n", ""), "devices.mesh.dac: bits is missing; expected a whole number"),
        (
            edit('"3 GHz"', '"3 GB"'),
            "devices.cpu: clock_hz: got the unit 'GB' in '3 GB'; expected a frequency",
        ),
        (edit('"3 GHz"', '"-3 GHz"'), "devices.cpu: CPU cpu: clock_hz: got -3000000000.0; expected > 0"),
        (edit('"3 GHz"', "0"), "devices.cpu: CPU cpu: clock_hz: got 0.0; expected > 0"),
        (edit('"3 GHz"', "inf"), "devices.cpu: CPU cpu: clock_hz: got inf; expected a finite number"),
        (edit('"3 GHz"', "nan"), "devices.cpu: CPU cpu: clock_hz: got nan; expected > 0"),
        (edit('"3 GHz"', "true"), "devices.cpu: clock_hz: got True; expected a frequency"),
        (
            edit('"10 pJ"', '"-10 pJ"'),
            "devices.mesh.dac: Converter dac: j_per_sample: got -1e-11; expected >= 0",
        ),
        (edit("bits = 8", "bits = 0"), "devices.mesh.dac: Converter dac: bits: got 0; expected > 0"),
        (edit("cores = 8", "cores = 8.5"), "devices.cpu: cores: got 8.5; expected a whole number"),
        (edit("cores = 8", 'cores = "8"'), "devices.cpu: cores: got '8'; expected a whole number"),
        (edit("cores = 8", "macs_per_cycle = []"), "macs_per_cycle: got []; expected a number"),
        (edit("cores = 8", "ops = 8"), 'devices.cpu: ops: got 8; expected a list of texts, ["a", ...]'),
        (edit("cores = 8", "memory = 8"), "devices.cpu: memory: got 8; expected a text"),
        (edit("cores = 8", 'memory = "hbm"'), "device cpu: no memory 'hbm'; expected one of dram"),
        (edit("cols = 32", "cols = 0"), "PHU mesh: got a tile of 64 x 0; expected both > 0"),
        (
            edit("rows = 64\ncols = 32", "dynamic = true"),
            "PHU mesh: dynamic: got no tile; expected rows and cols",
        ),
        (edit("cols = 32", "cols = 32\ndynamic = 1"), "devices.mesh: dynamic: got 1; expected true or false"),
        (edit('"16 GiB"', "0"), "memories.dram: Memory dram: capacity_bytes: got 0.0; expected > 0"),
        (
            edit('kind = "cpu"', 'kind = "fpga"'),
            "devices.cpu: kind: got 'fpga'; expected one of cpu, gpu, phu",
        ),
        (edit('kind = "cpu"\n', ""), "devices.cpu: kind: got nothing; expected one of cpu, gpu, phu"),
        (
            edit("[devices.mesh]", "[devices.cpu]"),
            "small.toml: Cannot declare ('devices', 'cpu') twice (at line 13",
        ),
        (
            edit("[devices.mesh]", "[devices.dram]").replace("devices.mesh", "devices.dram"),
            "'dram' is used twice",
        ),
        (edit('"my own count"', "7"), "devices.cpu: sources.cores: got 7; expected a text"),
        (edit("{ cores", "{ speed"), "devices.cpu: CPU cpu: sources: no field 'speed'; expected one of name"),
        (edit('"datasheet"', "7"), "devices.cpu: source: got 7; expected a text"),
        ("home = 3\n" + SMALL, "small.toml: home: got 3; expected a text"),
        ("devices = 3", "small.toml: devices: got 3; expected a table"),
        ("like = 3", "small.toml: like: got 3; expected a text"),
        ('like = "h10"', "small.toml: like: got 'h10'; expected one of h100, h200"),
        ('like = "h100"\ndevices = 3', "small.toml: devices: got 3; expected a table"),
        ('like = "h100"\ndevices.gpu = 3', "small.toml: devices.gpu: got 3; expected a table"),
        ('like = "h100"\ndevices.gpu.sources = 3', "devices.gpu: sources: got 3; expected a table"),
        ('like = "h100"\ndevices.gpu.clock = 3', "small.toml: devices.gpu: no key 'clock'"),
        ("devices.cpu = 3", "small.toml: devices.cpu: got 3; expected a table"),
        ("", "small.toml: machine custom: got no device; expected at least one"),
        (SMALL + "[devices", "small.toml: Expected ']'"),
        (
            SMALL + '[memories.sram]\nparent = "dram"\ncapacity_bytes = "1 TB"\nbandwidth_bytes_per_s = 1\n'
            "read_j_per_byte = 0\nwrite_j_per_byte = 0",
            "memory sram: capacity_bytes: got 1e+12 B; expected at most the 1.71799e+10 B of dram",
        ),
        (
            edit('capacity_bytes = "16 GiB"', 'capacity_bytes = "16 GiB"\nparent = "dram"'),
            "memory dram is behind itself; give one no parent",
        ),
        (
            SMALL + '[links.a]\nends = ["dram"]\nbandwidth_bytes_per_s = 1',
            "links.a: ends: got ['dram']; expected two memories",
        ),
        (
            SMALL + '[links.a]\nends = ["dram", "dram"]\nbandwidth_bytes_per_s = 1',
            "link a: both ends are 'dram'",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(text, message):
    with pytest.raises(UserError, match=re.escape(message)) as error:
        parse_machine(text, "small.toml")
    assert str(error.value).startswith("small.toml: ")


def test_no_toml_is_a_parse_error():
    with pytest.raises(ParseError, match=r"small\.toml: Invalid value"):
        parse_machine("a = ", "small.toml")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        (SMALL, "memories.dram: capacity_bytes"),
        (SMALL.replace("[devices", 'source = "s"\n[devices', 1), "devices.cpu: macs_per_cycle"),
    ],
)
def test_shipped_machines_may_not_lack_a_source(text, field):
    with pytest.raises(UserError, match=re.escape(f"x.toml: {field}: got no source; expected one")):
        parse_machine(text, "x.toml", needs_sources=True)


def test_unknown_names_and_files(tmp_path):
    with pytest.raises(UserError, match=r"machine: got 'h10'; did you mean 'h100'\? Expected one of h100, "):
        read_machine("h10")
    with pytest.raises(UserError, match=r"machine: got 'abacus'\. Expected one of"):
        read_machine("abacus")
    with pytest.raises(UserError, match=r"machine: cannot read .*none\.toml"):
        read_machine(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"machine: cannot read .*bytes\.toml"):
        read_machine(tmp_path / "bytes.toml")


def test_look_ups_say_what_there_is():
    machine = parse_machine(SMALL, name="small")
    with pytest.raises(UserError, match="machine small: no device 'gpu'; it has cpu, mesh"):
        machine.device("gpu")
    with pytest.raises(UserError, match="machine small: no memory 'hbm'; it has dram"):
        machine.memory("hbm")


# --- Python files ---------------------------------------------------------------------------------


def test_a_python_file_defines_machine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from strata.target.hardware import CPU, Machine\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class Abacus(CPU):\n"
        "    beads: int = 7\n"
        "machine = Machine([Abacus(clock_hz=1.0, beads=9)])\n"
    )
    (device,) = read_machine(path).devices
    assert (device.kind, device.name, device.beads) == ("abacus", "abacus", 9)  # type: ignore[attr-defined]
    assert not list(tmp_path.glob("__pycache__"))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", "mine.py: machine is missing; expected machine = strata.Machine([...])"),
        ("machine = 3", "mine.py: machine is of type int; expected"),
        ("1 / 0", "mine.py: ZeroDivisionError: division by zero"),
        ("import", "mine.py: SyntaxError: "),
        (
            "from strata.target.hardware import Machine\nMachine([])",
            "mine.py: machine custom: got no device; expected at least one",
        ),
    ],
)
def test_python_files_that_define_none(tmp_path, code, message):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(UserError, match=re.escape(message)):
        read_machine(path)


# --- text -----------------------------------------------------------------------------------------

POSITIVE = st.floats(min_value=1e-3, max_value=1e15)
ENERGY = st.floats(min_value=0, max_value=1e-6)
WORDS = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)


def sources(cls):
    names = st.sampled_from(
        ["", *(n for n in cls.__dataclass_fields__ if n not in ("name", "sources", "ops"))]
    )
    return st.dictionaries(names, WORDS, max_size=3).map(lambda d: tuple(d.items()))


@st.composite
def machines(draw):
    names = draw(st.lists(NAMES, min_size=6, max_size=6, unique=True))
    memories = [
        Memory(
            name=name,
            capacity_bytes=draw(POSITIVE | st.just(float("inf"))),
            bandwidth_bytes_per_s=draw(POSITIVE),
            read_j_per_byte=draw(ENERGY),
            write_j_per_byte=draw(ENERGY),
            sources=draw(sources(Memory)),
        )
        for name in names[:2]
    ]
    converter = st.builds(Converter, bits=st.integers(1, 16), j_per_sample=ENERGY, sources=sources(Converter))
    devices = [
        CPU(name=names[2], clock_hz=draw(POSITIVE), memory=names[1], sources=draw(sources(CPU))),
        GPU(name=names[3], clock_hz=draw(POSITIVE), j_per_op=draw(ENERGY), ops=("add", "softmax")),
        PHU(
            name=names[4],
            clock_hz=draw(POSITIVE),
            rows=8,
            cols=4,
            dynamic=draw(st.booleans()),
            dac=draw(st.none() | converter),
            adc=draw(st.none() | converter),
            sources=draw(sources(PHU)),
        ),
    ]
    links = [
        Link(name=draw(st.sampled_from(["", names[5]])), ends=(names[0], names[1]), bandwidth_bytes_per_s=1e9)
    ]
    return Machine(devices, draw(WORDS.filter(bool)), "physical", memories, links, about=draw(WORDS))


@given(machines())
def test_the_text_of_a_machine_reads_as_the_same_machine(machine):
    again = parse_machine(machine_text(machine))
    assert again == machine
    assert again.about == machine.about
    assert machine_text(again) == machine_text(machine)


def test_the_text_of_a_class_of_the_user_is_refused():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Loom(Device):
        threads: int = 1

    with pytest.raises(
        UnsupportedError, match=r"device loom: Loom is no kind that TOML has \(cpu, gpu, phu, fittedcpu\)"
    ):
        machine_text(Machine([Loom(clock_hz=1.0)]))
