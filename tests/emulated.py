"""AArch64 code on this machine: a small program that runs under ``qemu-aarch64`` and does what it is told.

There is no AArch64 Python here, so the program is made by the code generator itself: :func:`runner_text` is
its LLVM text, :func:`executable` writes what the linker makes of it as a static ELF file. It reads commands
of six words from its standard input until that ends::

    ALLOC size            anonymous memory that may be read, written and executed     answers its address
    WRITE address size    followed by the bytes
    READ address size                                                                answers the bytes
    CALL function a b c d                                                            answers the result

:class:`EmulatedImage` is a loaded image of the runtime to the rest of Strata: kernels and entries are called
with tensors, whose memory is copied there and back, so that whole models run in the emulator.
"""

import ctypes
import shutil
import struct
import subprocess
import weakref
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from strata.codegen.compile import compile_object
from strata.codegen.link import link
from strata.codegen.native import NativeFunction, Value
from strata.runtime import pool
from strata.runtime.image import Image
from strata.runtime.tensors import address
from strata.target import get_target

QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="there is no qemu-aarch64 here (Debian: qemu-user)")
# Which CPU shows that code for a level uses nothing else.
CPUS = {"neon": "cortex-a72", "neon-dotprod": "neoverse-n1", "neon-i8mm": "max"}

ALLOC, WRITE, READ, CALL = range(1, 5)
COMMAND = struct.Struct("<6Q")
ARENA_BYTES = 1 << 30  # address space for arguments; takes real memory where it is touched
BASE = 0x400000
_READ, _WRITE, _MMAP, _EXIT = 63, 64, 222, 93  # asm-generic/unistd.h
_READ_WRITE_EXECUTE, _PRIVATE_ANONYMOUS = 7, 0x22
# mov x8, x0; mov x0, x1; ... mov x5, x6; svc #0; ret
_SYSCALL = (0xAA0003E8, *(0xAA0003E0 | (n + 1) << 16 | n for n in range(6)), 0xD4000001, 0xD65F03C0)


# ------------------------------------------------------------------------------------- the program


def _system(f: NativeFunction, number: int, *args: Value | int) -> Value:
    words = [f.value(a, "i64") for a in (number, *args, *[0] * (6 - len(args)))]
    return f.call("i64", f.symbol("system"), words)


def _transfer(name: str, number: int) -> NativeFunction:
    """``void name(fd, address, size)``: the system call until all is done; the program ends with the pipe."""
    f = NativeFunction(name, "void", [("i64", "fd"), ("i64", "address"), ("i64", "size")])
    done = f.local("i64", 0)
    with f.while_(lambda: done.v < f.arg("size")):
        count = _system(f, number, f.arg("fd"), f.arg("address") + done.v, f.arg("size") - done.v)
        with f.if_(count <= 0):
            _system(f, _EXIT, 0)
        done.set(done.v + count)
    f.ret()
    return f


def _set_error() -> NativeFunction:
    """What generated code calls to raise: the message goes to standard error."""
    f = NativeFunction("set_error", "void", [("ptr", "kind"), ("ptr", "message")], 'nounwind "no-builtins"')
    size = f.local("i64", 0)
    with f.while_(lambda: f.load("i8", f.arg("message"), size.v).ne(0)):
        size.set(size.v + 1)
    f.call("void", f.symbol("write_all"), [
        f.value(2, "i64"), f.arg("message").convert("ptrtoint", "i64"), size.v
    ])  # fmt: skip
    f.ret()
    return f


def _start() -> NativeFunction:
    f = NativeFunction("_start", "void", [])
    command = f.alloca(COMMAND.size)
    place = command.convert("ptrtoint", "i64")

    def transfer(name: str, fd: int, at: Value, size: Value | int) -> None:
        f.call("void", f.symbol(name), [f.value(fd, "i64"), at, f.value(size, "i64")])

    def answer(value: Value) -> None:
        f.store(value, command)
        transfer("write_all", 1, place, 8)

    with f.forever():
        transfer("read_all", 0, place, COMMAND.size)
        op, *words = [f.load("i64", command, 8 * i) for i in range(6)]
        with f.if_(op.eq(ALLOC)):
            answer(_system(f, _MMAP, 0, words[0], _READ_WRITE_EXECUTE, _PRIVATE_ANONYMOUS, -1))
        with f.if_(op.eq(WRITE)):
            transfer("read_all", 0, words[0], words[1])
        with f.if_(op.eq(READ)):
            transfer("write_all", 1, words[0], words[1])
        with f.if_(op.eq(CALL)):
            answer(f.call("i64", words[0].convert("inttoptr", "ptr"), words[1:]))
    return f


def runner_text(triple: str) -> str:
    """LLVM text of the program; ``system(number, ...)`` is given as instructions."""
    code = "".join(f"\\{byte:02X}" for word in _SYSCALL for byte in struct.pack("<I", word))
    system = f"define hidden i64 @system({', '.join(['i64'] * 7)}) noinline naked prologue [36 x i8]"
    functions = [_transfer("read_all", _READ), _transfer("write_all", _WRITE), _set_error(), _start()]
    head = f'target triple = "{triple}"\n{system} c"{code}" {{\n  unreachable\n}}\n'
    return head + "\n".join(f.text() for f in functions)


def executable(image: Image, entry: str) -> bytes:
    """A linked image as a static ELF executable at a fixed address."""
    page = 65536
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 2, image.machine, 1, BASE + image.symbols[entry],
        64, 0, 0, 64, 56, len(image.segments), 0, 0, 0,
    )  # fmt: skip
    contents = bytearray()
    for segment in image.segments:
        contents += bytes(segment.address - len(contents)) + segment.data
        start, size = BASE + segment.address, len(segment.data)
        header += struct.pack(  # PF_X, PF_W and PF_R are 1, 2 and 4
            "<IIQQQQQQ", 1, 4 | segment.protection, page + segment.address, start, start, size,
            segment.memory_bytes, page,
        )  # fmt: skip
    for place, target in image.relocs:
        struct.pack_into("<Q", contents, place, BASE + target)
    return header + bytes(page - len(header)) + contents


@cache
def _runner() -> tuple[bytes, int]:
    """The executable, and where its function is that raises errors."""
    target = get_target("neon")
    image = link([compile_object(runner_text(target.triple), target)], ["_start", "set_error"])
    return executable(image, "_start"), BASE + image.symbols["set_error"]


# ------------------------------------------------------------------------------------- its commands


class Emulator:
    """The program in a process of its own.

    Args:
        cpu: What ``qemu-aarch64 -cpu`` takes.
        folder: Where the executable is written to.
    """

    def __init__(self, cpu: str, folder: Path) -> None:
        assert QEMU is not None
        program, self.set_error = _runner()
        path, self._errors = folder / "runner", folder / f"errors-{id(self)}"
        if not path.exists():
            path.write_bytes(program)
            path.chmod(0o700)
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                [QEMU, "-cpu", cpu, str(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=1 << 16,
            )  # fmt: skip
        weakref.finalize(self, _end, self._process)
        self._place = self._first = self.alloc(ARENA_BYTES)
        self._end = self._first + ARENA_BYTES
        context = self.put(bytes(pool.CTX_BYTES))
        self.write(context + pool.CTX_POOL, struct.pack("<Q", self.put(bytes(pool.POOL_BYTES))))
        self.write(context + pool.CTX_SET_ERROR, struct.pack("<Q", self.set_error))
        self.context = context
        self.keep()

    def _command(self, op: int, *words: int, data: bytes = b"", answer: int = 0) -> bytes:
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        assert pipe_in is not None
        assert pipe_out is not None
        padded = [w % (1 << 64) for w in (op, *words, *[0] * (5 - len(words)))]
        try:
            pipe_in.write(COMMAND.pack(*padded))
            pipe_in.write(data)
            if answer:
                pipe_in.flush()
        except BrokenPipeError:
            answer = answer or 1
        got = pipe_out.read(answer) if answer else b""
        if len(got) != answer:
            status = self._process.wait(10)
            raise AssertionError(f"the emulator ended with status {status}: {self.take_errors()}")
        return got

    def alloc(self, size_bytes: int) -> int:
        """Address of new memory, on a page border."""
        return int.from_bytes(self._command(ALLOC, size_bytes, answer=8), "little")

    def write(self, at: int, data: bytes) -> None:
        """Write to its memory."""
        self._command(WRITE, at, len(data), data=data)

    def read(self, at: int, size_bytes: int) -> bytes:
        """Read from its memory."""
        return self._command(READ, at, size_bytes, answer=size_bytes)

    def call(self, function: int, *words: int) -> int:
        """Call a function of up to four integers or addresses; gives its i32 result."""
        return int.from_bytes(self._command(CALL, function, *words, answer=8)[:4], "little", signed=True)

    def take_errors(self) -> str:
        """What it has written to standard error."""
        return self._errors.read_bytes().decode()

    # ---------------------------------------------------------------- memory of one call

    def clear(self) -> None:
        """Forget what was put since the start."""
        self._place = self._first

    def keep(self) -> None:
        """Never forget what was put so far."""
        self._first = self._place

    def put(self, data: bytes) -> int:
        """Copy to fresh memory, on a border of 64 bytes; gives its address."""
        self._place = -(-self._place // 64) * 64
        at = self._place
        self._place += len(data)
        assert self._place <= self._end
        self.write(at, data)
        return at


def _end(process: subprocess.Popen) -> None:
    process.stdin.close()
    process.stdout.close()
    process.wait(10)


class EmulatedImage:
    """An image in the memory of an emulator, with one thread.

    Args:
        emulator: Where it runs.
        image: Code for AArch64.
        shared: Gives the arrays that tables in arguments of functions point to.
    """

    num_threads = 1

    def __init__(
        self, emulator: Emulator, image: Image, shared: Callable[[], Iterable[np.ndarray]] = tuple
    ) -> None:
        self.emulator, self.image, self.shared = emulator, image, shared
        self._kept: list[_Memory] = []
        self.base = emulator.alloc(image.memory_bytes)
        memory = bytearray(image.memory_bytes)
        for segment in image.segments:
            memory[segment.address : segment.address + len(segment.data)] = segment.data
        for place, target in image.relocs:
            struct.pack_into("<Q", memory, place, self.base + target)
        emulator.write(self.base, bytes(memory))
        emulator.call(self.address("strata_init"), emulator.context)

    def keep(self, arrays: Iterable[np.ndarray]) -> None:
        """Copy arrays that tables in arguments may point to, and that no function writes, once for all."""
        self.emulator.clear()
        for array in arrays:
            memory = _Memory(address(array), array.nbytes)
            memory.there = self.emulator.put(memory.bytes)
            self._kept.append(memory)
        self.emulator.keep()

    def address(self, symbol: str) -> int:
        """Where an exported symbol is."""
        return self.base + self.image.symbols[symbol]

    def function(self, symbol: str) -> Callable[..., None]:
        """A function in the tvm-ffi convention; its tensors are copied there, and back when it is done.

        The function raises RuntimeError where the code does.
        """

        def call(*args: object) -> None:
            emulator = self.emulator
            emulator.clear()
            tensors = [_Memory.of_tensor(a) for a in args if not isinstance(a, int)]
            shared = [_Memory(address(a), a.nbytes) for a in self.shared()]
            for memory in (*shared, *tensors):
                memory.there = emulator.put(memory.bytes)
            for tensor in tensors:
                if tensor.is_table:
                    emulator.write(tensor.there, _translated(tensor.bytes, [*shared, *self._kept]))
            handles = [emulator.put(t.handle(emulator)) for t in tensors]
            rest = iter(handles)
            packed = [struct.pack("<qq", *((1, a) if isinstance(a, int) else (7, next(rest)))) for a in args]
            status = emulator.call(
                self.address(symbol), 0, emulator.put(b"".join(packed)), len(args), emulator.put(bytes(16))
            )
            if status:
                raise RuntimeError(emulator.take_errors())
            for memory in (*shared, *(t for t in tensors if not (t.is_table and self._kept))):
                ctypes.memmove(memory.here, emulator.read(memory.there, memory.size), memory.size)

        return call


class _Memory:
    """Bytes of this process and where their copy is in the emulator's."""

    def __init__(self, here: int, size_bytes: int) -> None:
        self.here, self.size, self.there, self.is_table = here, size_bytes, 0, False
        self.shape: tuple[int, ...] = ()
        self.type_word = 0

    @classmethod
    def of_tensor(cls, tensor) -> "_Memory":
        """Of a tvm-ffi tensor; one-dimensional ones of i64 may hold addresses."""
        kind = tensor.dtype
        count = int(np.prod(tensor.shape)) if len(tensor.shape) else 1
        memory = cls(tensor.data_ptr(), count * kind.bits // 8)
        memory.shape = tuple(tensor.shape)
        memory.type_word = kind.type_code | kind.bits << 8 | kind.lanes << 16
        memory.is_table = kind == "int64" and len(tensor.shape) == 1
        return memory

    @property
    def bytes(self) -> bytes:
        """The contents here."""
        return ctypes.string_at(self.here, self.size)

    def handle(self, emulator: Emulator) -> bytes:
        """A ``DLTensor`` (dlpack.h) of the copy."""
        shape = emulator.put(struct.pack(f"<{len(self.shape)}q", *self.shape))
        return struct.pack("<QiiiIQQQ", self.there, 1, 0, len(self.shape), self.type_word, shape, 0, 0)


def _translated(table: bytes, shared: list[_Memory]) -> bytes:
    """Words that are addresses of shared memory, as addresses there; others stay."""
    words = list(struct.unpack(f"<{len(table) // 8}q", table))
    there = {memory.here: memory.there for memory in shared}
    return struct.pack(f"<{len(words)}q", *(there.get(word, word) for word in words))
