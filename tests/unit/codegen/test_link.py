"""The linker: resolution across objects, sections, relocations, and what it refuses."""

import ctypes
import struct

import llvmlite.binding as llvm
import pytest
from hand_kernels import TARGET, compiled, support

from strata.codegen.compile import compile_object
from strata.codegen.link import link
from strata.codegen.relocations import Field, fill
from strata.codegen.threads import SUPPORT_EXPORTS, emit_support
from strata.core.errors import CodegenError
from strata.runtime.image import Protection, load_image
from strata.target import get_target

READ_COUNTER = """
@counter = external global i64
@limit = external hidden global i64
declare i64 @step(i64)
define i64 @read() {
  %a = load i64, ptr @counter
  %b = load i64, ptr @limit
  %c = call i64 @step(i64 %a)
  %d = add i64 %b, %c
  ret i64 %d
}
"""
COUNTER = """
@counter = global i64 5
@limit = hidden global i64 100
@zeros = hidden global [9000 x i8] zeroinitializer, align 64
@shared = common global i64 0
define i64 @step(i64 %x) {
  %old = atomicrmw add ptr @counter, i64 1 monotonic
  %z = getelementptr i8, ptr @zeros, i64 8999
  %v = load i8, ptr %z
  %w = zext i8 %v to i64
  %s = load i64, ptr @shared
  %r = add i64 %x, %w
  %t = add i64 %r, %s
  ret i64 %t
}
"""


def run(texts, symbol, *args):
    """Link the texts and call ``i64 symbol(i64...)``."""
    built = link([support(), *(compiled(t) for t in texts)], [*SUPPORT_EXPORTS, symbol])
    loaded = load_image(built, 1)
    return ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(args))(loaded.address(symbol))(*args)


def test_symbols_across_objects():
    assert run([READ_COUNTER, COUNTER], "read") == 105


def test_order_of_objects_does_not_matter():
    assert run([COUNTER, READ_COUNTER], "read") == 105


def test_internal_names_may_repeat():
    text = """
@value = internal constant i64 {value}
define internal i64 @helper(i64 %x) noinline {{
  %v = load volatile i64, ptr @value
  %r = add i64 %x, %v
  ret i64 %r
}}
define i64 @{name}(i64 %x) {{
  %r = call i64 @helper(i64 %x)
  ret i64 %r
}}
"""
    texts = [text.format(name="one", value=1), text.format(name="two", value=2)]
    assert run(texts, "one", 10) == 11
    assert run(texts, "two", 10) == 12


def test_strong_definitions_win_over_weak_ones():
    weak = "define weak i64 @pick() {\n ret i64 1\n}"
    strong = "define i64 @pick() {\n ret i64 2\n}"
    assert run([weak, strong], "pick") == 2
    assert run([strong, weak], "pick") == 2
    assert run([weak, weak], "pick") == 1


def test_differences_of_addresses():
    there = "@there = hidden constant i64 77, align 8"
    text = """
@there = external hidden constant i64
@delta = hidden constant i64 sub (i64 ptrtoint (ptr @there to i64), i64 ptrtoint (ptr @delta to i64)), align 8
define i64 @follow() {
  %d = load volatile i64, ptr @delta
  %at = ptrtoint ptr @delta to i64
  %sum = add i64 %at, %d
  %p = inttoptr i64 %sum to ptr
  %v = load volatile i64, ptr %p
  ret i64 %v
}
"""
    assert run([text, there], "follow") == 77


def test_jump_tables():
    cases = "\n".join(f"    i64 {i}, label %l{i}" for i in range(12))
    blocks = "\n".join(f"l{i}:\n  %v{i} = call i64 @f{i}()\n  ret i64 %v{i}" for i in range(12))
    functions = "\n".join(
        f"define hidden i64 @f{i}() noinline {{\n ret i64 {i * i + 1}\n}}" for i in range(12)
    )
    body = f"  switch i64 %x, label %no [\n{cases}\n  ]\n{blocks}\nno:\n  ret i64 -1\n"
    text = f"{functions}\ndefine i64 @jump(i64 %x) {{\n{body}}}"
    assert [run([text], "jump", x) for x in (0, 3, 11, 12)] == [1, 10, 122, -1]


def test_segments():
    built = link([support(), compiled(COUNTER)], [*SUPPORT_EXPORTS, "step"])
    assert [s.protection for s in built.segments][:1] == [Protection.READ_EXECUTE]
    data = built.segments[-1]
    assert data.protection is Protection.READ_WRITE
    assert data.memory_bytes >= 9000 + 16
    assert len(data.data) < 200  # the zeros are not in the file
    assert built.symbols["strata_init"] % 16 == 0


def test_undefined_symbols_are_all_listed():
    text = "declare double @sin(double)\ndeclare double @cos(double)\ndefine double @f(double %x) {\n"
    text += "  %a = call double @sin(double %x)\n  %b = call double @cos(double %a)\n  ret double %b\n}"
    with pytest.raises(
        CodegenError, match=r"link: undefined symbols: cos, missing, sin; generated code may only"
    ):
        link([compiled(text)], ["f", "missing"])


def test_symbols_defined_twice():
    text = "define i64 @twice() {\n ret i64 1\n}"
    with pytest.raises(
        CodegenError, match=r"link: symbol twice is defined twice; names of kernels must be unique"
    ):
        link([compiled(text), compiled(text)], ["twice"])


def test_thread_local_variables():
    text = "@t = thread_local(localexec) global i64 0\ndefine ptr @f() {\n ret ptr @t\n}"
    with pytest.raises(CodegenError, match=r"object 0: got thread-local section \.t"):
        link([compiled(text)], ["f"])


def test_position_dependent_code():
    text = f'target triple = "{TARGET.triple}"\n@v = global i64 7\ndefine ptr @f() {{\n ret ptr @v\n}}'
    compiled(text)  # initialises LLVM
    machine = llvm.Target.from_triple(TARGET.triple).create_target_machine(reloc="static", codemodel="large")
    data = machine.emit_object(llvm.parse_assembly(text))
    with pytest.raises(
        CodegenError, match=r"link: relocation type 1 against v in \.l?text; expected position-ind"
    ):
        link([data], ["f"])


def test_too_far():
    text = """
@big = hidden global [2200000000 x i8] zeroinitializer
@far = hidden global i8 0
define ptr @f() {
  ret ptr @far
}
"""
    with pytest.raises(CodegenError, match=r"link: far is \d+ bytes away, which does not fit into pc32; "):
        link([compiled(text)], ["f"])


def test_absolute_symbols():
    data = bytearray(compiled("@a = external hidden global i8\ndefine ptr @f() {\n ret ptr @a\n}"))
    # mark the undefined symbol as absolute in the symbol table
    shoff = struct.unpack_from("<Q", data, 40)[0]
    count = struct.unpack_from("<H", data, 60)[0]
    for i in range(count):
        header = struct.unpack_from("<IIQQQQIIQQ", data, shoff + 64 * i)
        if header[1] == 2:
            strings = struct.unpack_from("<IIQQQQIIQQ", data, shoff + 64 * header[6])[4]
            for entry in range(header[4], header[4] + header[5], 24):
                name = struct.unpack_from("<I", data, entry)[0]
                if data[strings + name : strings + name + 2] == b"a\0":
                    struct.pack_into("<H", data, entry + 6, 0xFFF1)
    with pytest.raises(CodegenError, match=r"link: symbol a is absolute; expected an address in the image"):
        link([bytes(data)], ["f"])


def test_objects_of_two_machines():
    objects = [
        compile_object(emit_support(target.triple), target) for target in map(get_target, ("avx2", "neon"))
    ]
    with pytest.raises(CodegenError, match="link: got objects of x86-64 and AArch64; expected one machine"):
        link(objects, ["strata_init"])
    with pytest.raises(CodegenError, match="link: got objects of no machine; expected one machine"):
        link([], ["strata_init"])


@pytest.mark.parametrize(
    ("field", "size", "address", "bits"),
    [
        (Field.PC32, 0, 2**31, 0),
        (Field.BRANCH, 0, 2**27, 0),
        (Field.BRANCH, 0, 6, 0),
        (Field.PAGE, 0, 2**32, 0),
        (Field.LOW12, 3, 0x1004, 0),
        (Field.PC32, 0, -8, 0xFFFFFFF8),
        (Field.BRANCH, 0, -8, 0x03FFFFFE),
        (Field.PAGE, 0, 0x5000, 1 << 29 | 1 << 5),
        (Field.LOW12, 3, 0x1008, 1 << 10),
    ],
)
def test_fields(field, size, address, bits):
    """Values that fit, and those that do not: then nothing is written."""
    data = bytearray(8)
    assert fill(data, 4, field, size, address, 0) == bool(bits)
    assert data == bytes(4) + bits.to_bytes(4, "little")


@pytest.mark.parametrize("cut", [0, 10, 63, 64, 300, -1, -200])
def test_truncated_objects(cut):
    with pytest.raises(CodegenError, match=r"link: object 0: the object file is truncated or malformed"):
        link([compiled(COUNTER)[:cut]], ["step"])


def test_other_files():
    with pytest.raises(CodegenError, match=r"object 0: got no ELF relocatable object of x86-64 or AArch64"):
        link([b"\x7fELF" + bytes(200)], [])
