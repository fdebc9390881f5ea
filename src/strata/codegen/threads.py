"""LLVM text of the run-time support that every image carries: the fork-join pool and the memory functions.

The protocol and the memory it works on are described in :mod:`strata.runtime.pool`. In short::

    parallel_for(fn, env, n, grain, even):    worker(ctx):
      few iterations, no workers, or busy?      until shutdown:
        -> fn(env, 0, n) right here               run_chunks()
      close the word (generation + 1)             spin while the generation stays the same
      write fn, env, n, units, done = 0           then sleep on it (futex)
      open the word (generation + 2, unit 0)
      wake sleepers, if any                   run_chunks():
      run_chunks()                              word -> chunk = what is left / divisor, at least one unit
      spin, then sleep, until done == units     compare-and-swap the word; fn(env, begin, end); done += chunk

Generated code sees one function, ``void strata_parallel_for(ptr fn, ptr env, i64 n, i64 grain, i64 even)``
with ``void fn(ptr env, i64 begin, i64 end)``: every iteration of ``0 .. n-1`` is in exactly one call, calls
run on any thread in any order, and all are finished (and their writes visible) when it returns.

``even`` (0 or 1) is for loops that stream memory and end within a time slice of the operating system: the
first chunk of each thread is ``EVEN_SHARE`` of an equal share. Every chunk is a new stream, and a core takes
a microsecond to see that it is one.

Sleeping cannot miss a wake-up: a sleeper counts itself, then the kernel compares the futex word; the waker
changes the word, then reads the count, both sequentially consistent.
"""

from __future__ import annotations

from dataclasses import dataclass

from strata.core.errors import UnsupportedError
from strata.runtime import pool as layout

from .native import NativeFunction, Value

CONTEXT_SYMBOL = "strata_context"
SUPPORT_EXPORTS = ("strata_init", "strata_worker", "strata_stop", "strata_spin")
FUTEX_WAIT_PRIVATE = 128
FUTEX_WAKE_PRIVATE = 129
ALL = 0x7FFFFFFF
EVEN_SHARE = (7, 8)  # the rest evens out what one thread was late or slow


@dataclass(frozen=True, slots=True)
class Platform:
    """What differs between instruction sets under Linux.

    Attributes:
        pause: LLVM instruction that tells the core it is in a spin loop.
        declaration: Declaration that ``pause`` needs.
        futex, sched_yield: System call numbers (asm/unistd.h).
    """

    pause: str
    declaration: str
    futex: int
    sched_yield: int


PLATFORMS = {
    "x86_64": Platform("call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()", 202, 24),
    "aarch64": Platform(
        "call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)", 98, 124
    ),
}


def platform(triple: str) -> Platform:
    """Platform of an LLVM target triple.

    Raises:
        UnsupportedError: no run-time support for that architecture.
    """
    arch = triple.split("-", 1)[0]
    if arch not in PLATFORMS:
        raise UnsupportedError(
            f"target {triple!r}: got architecture {arch!r}; expected {' or '.join(PLATFORMS)}"
        )
    return PLATFORMS[arch]


def _context(f: NativeFunction) -> Value:
    return f.load("ptr", f.symbol(CONTEXT_SYMBOL))


def _syscall(f: NativeFunction, context: Value, number: int, *args: Value) -> None:
    function = f.load("ptr", context, layout.CTX_SYSCALL)
    f.call("i64", function, [f.value(number, "i64"), *args], "i64 (i64, ...)")


def _futex(f: NativeFunction, context: Value, kind: Platform, address: Value, op: int, value: Value) -> None:
    _syscall(f, context, kind.futex, address, f.value(op, "i64"), value, f.value(0, "ptr"))


def _init() -> NativeFunction:
    f = NativeFunction("strata_init", "void", [("ptr", "context")])
    f.store(f.arg("context"), f.symbol(CONTEXT_SYMBOL))
    f.ret()
    return f


def _spin(kind: Platform) -> NativeFunction:
    """The spin loop alone, so that the runtime can time it."""
    f = NativeFunction("strata_spin", "void", [("i64", "rounds")])
    word = f.alloca(8)
    f.atomic_store(f.value(0, "i32"), word, 0, "monotonic")
    _spin_while(f, kind, word, 0, f.value(0, "i32"), f.arg("rounds"))
    f.ret()
    return f


def _spin_while(
    f: NativeFunction, kind: Platform, base: Value, offset: int, seen: Value, rounds: Value
) -> None:
    """Wait at most ``rounds`` rounds while the i32 at ``base + offset`` is ``seen``."""
    left = f.local("i64", rounds)
    with f.forever() as after:
        with f.if_(left.v <= 0):
            f.leave(after)
        with f.if_(f.atomic_load("i32", base, offset, "acquire").ne(seen)):
            f.leave(after)
        f.line(kind.pause)
        left.set(left.v - 1)


def _run_chunks(kind: Platform) -> NativeFunction:
    """Take chunks of the current job until none is left; returns the word that showed it."""
    f = NativeFunction("strata_run_chunks", "i64", [("ptr", "context")], "nounwind")
    pool = f.load("ptr", f.arg("context"), layout.CTX_POOL)
    with f.forever():
        word = f.atomic_load("i64", pool, layout.POOL_WORD, "acquire")
        next_unit = word & layout.CLOSED
        units = f.atomic_load("i64", pool, layout.POOL_UNITS, "acquire")
        with f.if_(next_unit >= units):
            f.ret(word)
        divisor = f.load("i64", pool, layout.POOL_DIVISOR)
        first = f.atomic_load("i64", pool, layout.POOL_FIRST, "monotonic")
        share = f.select(next_unit * 2 < first * divisor, first, (units - next_unit).udiv(divisor))
        chunk = f.select(share > 1, share, 1)
        with f.if_(f.cmpxchg(pool, layout.POOL_WORD, word, word + chunk, "acq_rel")):
            # The swap succeeded, so this job is still open and its fields stay until our chunk is counted as
            # done.
            grain = f.load("i64", pool, layout.POOL_GRAIN)
            total = f.load("i64", pool, layout.POOL_N)
            begin = next_unit * grain
            end = begin + chunk * grain
            end = f.select(end < total, end, total)
            f.call(
                "void",
                f.load("ptr", pool, layout.POOL_FN),
                [f.load("ptr", pool, layout.POOL_ENV), begin, end],
            )
            before = f.rmw("add", pool, layout.POOL_DONE, chunk.convert("trunc", "i32"), "seq_cst")
            finished = (before.convert("zext", "i64") + chunk).eq(units)
            with f.if_(finished):
                waiting = f.atomic_load("i32", pool, layout.POOL_WAITING, "seq_cst")
                with f.if_(waiting.ne(0)):
                    done = f.at(pool, layout.POOL_DONE)
                    _futex(f, f.arg("context"), kind, done, FUTEX_WAKE_PRIVATE, f.value(ALL, "i64"))
    return f


def _worker(kind: Platform) -> NativeFunction:
    f = NativeFunction("strata_worker", "void", [("ptr", "context"), ("i64", "worker")])
    context = f.arg("context")
    pool = f.load("ptr", context, layout.CTX_POOL)
    spin = f.load("i64", context, layout.CTX_SPIN)
    with f.forever():
        # The flag is set before the generation changes, and the generation read below is not older than the
        # flag.
        word = f.call("i64", f.symbol("strata_run_chunks"), [context])
        seen = (word >> 32).convert("trunc", "i32")
        with f.if_(f.atomic_load("i32", pool, layout.POOL_SHUTDOWN, "acquire").ne(0)):
            f.ret()
        _spin_while(f, kind, pool, layout.POOL_GENERATION, seen, spin)
        current = f.atomic_load("i32", pool, layout.POOL_GENERATION, "acquire")
        with f.if_(current.eq(seen)):
            f.rmw("add", pool, layout.POOL_SLEEPERS, f.value(1, "i32"), "seq_cst")
            address = f.at(pool, layout.POOL_GENERATION)
            _futex(f, context, kind, address, FUTEX_WAIT_PRIVATE, seen.convert("zext", "i64"))
            f.rmw("sub", pool, layout.POOL_SLEEPERS, f.value(1, "i32"), "seq_cst")
    return f


def _wake_sleepers(f: NativeFunction, kind: Platform, context: Value, pool: Value) -> None:
    sleepers = f.atomic_load("i32", pool, layout.POOL_SLEEPERS, "seq_cst")
    with f.if_(sleepers.ne(0)):
        _futex(f, context, kind, f.at(pool, layout.POOL_GENERATION), FUTEX_WAKE_PRIVATE, f.value(ALL, "i64"))


def _close_word(f: NativeFunction, pool: Value) -> Value:
    """Nobody can take a chunk from here on; returns the closed generation (high half, low half zero)."""
    word = f.atomic_load("i64", pool, layout.POOL_WORD, "monotonic")
    generation = ((word >> 32) + 1) << 32
    f.atomic_store(generation | layout.CLOSED, pool, layout.POOL_WORD, "seq_cst")
    return generation


def _parallel_for(kind: Platform) -> NativeFunction:
    params = [("ptr", "fn"), ("ptr", "env"), ("i64", "n"), ("i64", "grain"), ("i64", "even")]
    f = NativeFunction("strata_parallel_for", "void", params)
    fn, env, n = f.arg("fn"), f.arg("env"), f.arg("n")
    grain = f.local("i64", f.select(f.arg("grain") > 1, f.arg("grain"), 1))

    def inline() -> None:
        f.call("void", fn, [env, f.value(0, "i64"), n])
        f.ret()

    with f.if_(n <= 0):
        f.ret()
    with f.if_(n <= grain.v):
        inline()
    context = _context(f)
    with f.if_(context.eq(0)):
        inline()
    pool = f.load("ptr", context, layout.CTX_POOL)
    with f.if_(f.atomic_load("i32", pool, layout.POOL_WORKERS, "monotonic").eq(0)):
        inline()
    free = f.cmpxchg(pool, layout.POOL_BUSY, f.value(0, "i32"), f.value(1, "i32"), "acquire")
    with f.if_(free.eq(0)):
        inline()

    generation = _close_word(f, pool)
    least = (n + (layout.MAX_UNITS - 1)).udiv(layout.MAX_UNITS)
    with f.if_(grain.v < least):
        grain.set(least)
    units = (n + grain.v - 1).udiv(grain.v)
    f.store(fn, pool, layout.POOL_FN)
    f.store(env, pool, layout.POOL_ENV)
    f.store(n, pool, layout.POOL_N)
    f.store(grain.v, pool, layout.POOL_GRAIN)
    part, whole = EVEN_SHARE
    divisor = f.load("i64", pool, layout.POOL_DIVISOR)
    first = (units * f.arg("even") * (2 * part)).udiv(divisor * whole)
    f.atomic_store(first, pool, layout.POOL_FIRST, "monotonic")
    f.atomic_store(f.value(0, "i32"), pool, layout.POOL_DONE, "monotonic")
    f.atomic_store(units, pool, layout.POOL_UNITS, "release")
    f.atomic_store(generation + (1 << 32), pool, layout.POOL_WORD, "seq_cst")
    _wake_sleepers(f, kind, context, pool)
    f.call("i64", f.symbol("strata_run_chunks"), [context])
    _wait_done(f, kind, context, pool, units.convert("trunc", "i32"))
    f.atomic_store(f.value(0, "i32"), pool, layout.POOL_BUSY, "release")
    f.ret()
    return f


def _wait_done(f: NativeFunction, kind: Platform, context: Value, pool: Value, units: Value) -> None:
    """Spin, then sleep, until all ``units`` (i32) of the job are done."""
    rounds = f.load("i64", context, layout.CTX_SPIN)
    left = f.local("i64", rounds)
    with f.forever() as finished:
        done = f.atomic_load("i32", pool, layout.POOL_DONE, "acquire")
        with f.if_(done.eq(units)):
            f.leave(finished)
        with f.if_(left.v > 0):
            f.line(kind.pause)
        with f.if_(left.v.eq(0)):
            f.atomic_store(f.value(1, "i32"), pool, layout.POOL_WAITING, "seq_cst")
        with f.if_(left.v < 0):
            address = f.at(pool, layout.POOL_DONE)
            _futex(f, context, kind, address, FUTEX_WAIT_PRIVATE, done.convert("zext", "i64"))
        left.set(left.v - 1)
    f.atomic_store(f.value(0, "i32"), pool, layout.POOL_WAITING, "monotonic")


def _stop(kind: Platform) -> NativeFunction:
    """Own the pool for good and send the workers home."""
    f = NativeFunction("strata_stop", "void", [("ptr", "context")])
    context = f.arg("context")
    pool = f.load("ptr", context, layout.CTX_POOL)
    with f.forever() as owned:
        free = f.cmpxchg(pool, layout.POOL_BUSY, f.value(0, "i32"), f.value(1, "i32"), "acquire")
        with f.if_(free):
            f.leave(owned)
        _syscall(f, context, kind.sched_yield)
    f.atomic_store(f.value(0, "i32"), pool, layout.POOL_WORKERS, "monotonic")
    f.atomic_store(f.value(1, "i32"), pool, layout.POOL_SHUTDOWN, "release")
    _close_word(f, pool)
    _wake_sleepers(f, kind, context, pool)
    f.ret()
    return f


# Without "no-builtins" LLVM would recognise the loops below and turn them into calls to themselves.
_PLAIN = 'nounwind "no-builtins"'


def _copy_forward(f: NativeFunction, dst: Value, src: Value, n: Value) -> None:
    offset = f.local("i64", 0)
    with f.while_(lambda: offset.v + 8 <= n):
        f.store(f.load("i64", src, offset.v, align=1), dst, offset.v, align=1)
        offset.set(offset.v + 8)
    with f.while_(lambda: offset.v < n):
        f.store(f.load("i8", src, offset.v), dst, offset.v)
        offset.set(offset.v + 1)


def _memcpy() -> NativeFunction:
    f = NativeFunction("memcpy", "ptr", [("ptr", "dst"), ("ptr", "src"), ("i64", "n")], _PLAIN)
    _copy_forward(f, f.arg("dst"), f.arg("src"), f.arg("n"))
    f.ret(f.arg("dst"))
    return f


def _memmove() -> NativeFunction:
    f = NativeFunction("memmove", "ptr", [("ptr", "dst"), ("ptr", "src"), ("i64", "n")], _PLAIN)
    dst, src = f.arg("dst"), f.arg("src")
    with f.if_(dst.convert("ptrtoint", "i64") > src.convert("ptrtoint", "i64")):
        left = f.local("i64", f.arg("n"))
        with f.while_(lambda: left.v > 0):
            left.set(left.v - 1)
            f.store(f.load("i8", src, left.v), dst, left.v)
        f.ret(dst)
    _copy_forward(f, dst, src, f.arg("n"))
    f.ret(dst)
    return f


def _memset() -> NativeFunction:
    f = NativeFunction("memset", "ptr", [("ptr", "dst"), ("i32", "byte"), ("i64", "n")], _PLAIN)
    dst, n = f.arg("dst"), f.arg("n")
    byte = f.arg("byte").convert("trunc", "i8")
    word = byte.convert("zext", "i64") * 0x0101010101010101
    offset = f.local("i64", 0)
    with f.while_(lambda: offset.v + 8 <= n):
        f.store(word, dst, offset.v, align=1)
        offset.set(offset.v + 8)
    with f.while_(lambda: offset.v < n):
        f.store(byte, dst, offset.v)
        offset.set(offset.v + 1)
    f.ret(dst)
    return f


def _memcmp(name: str) -> NativeFunction:
    f = NativeFunction(name, "i32", [("ptr", "a"), ("ptr", "b"), ("i64", "n")], _PLAIN)
    with f.for_(f.arg("n")) as i:
        a = f.load("i8", f.arg("a"), i).convert("zext", "i32")
        b = f.load("i8", f.arg("b"), i).convert("zext", "i32")
        with f.if_(a.ne(b)):
            f.ret(a - b)
    f.ret(0)
    return f


def emit_support(triple: str) -> str:
    """LLVM text of the support functions for the target ``triple``.

    Defines ``strata_init(ptr context)``, ``strata_worker(ptr context, i64 worker)``, ``strata_stop(ptr
    context)``, ``strata_spin(i64 rounds)`` (exported), ``strata_parallel_for`` and ``memcpy``, ``memmove``,
    ``memset``, ``memcmp``, ``bcmp`` (called by generated code), and the variable ``strata_context``.

    Raises:
        UnsupportedError: no run-time support for the architecture.
    """
    kind = platform(triple)
    functions = [
        _init(),
        _spin(kind),
        _run_chunks(kind),
        _worker(kind),
        _parallel_for(kind),
        _stop(kind),
        _memcpy(),
        _memmove(),
        _memset(),
        _memcmp("memcmp"),
        _memcmp("bcmp"),
    ]
    head = [
        f'target triple = "{triple}"',
        f"@{CONTEXT_SYMBOL} = dso_local global ptr null, align 8",
        kind.declaration,
        "",
    ]
    return "\n".join(head + [f.text() for f in functions])
