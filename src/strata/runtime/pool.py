"""The fork-join thread pool of a loaded image: its memory layout, its threads and its context table.

The native side (``codegen.threads``) does the work: ``strata_parallel_for`` publishes a job, every thread
takes chunks of it with compare-and-swap, ``strata_worker`` is the loop of a worker. This module owns what
they work on and runs the workers: daemon Python threads that call ``strata_worker`` with the GIL released
and come back at shutdown.

Two pieces of memory, both written here once and then only by native code:

* the **context table** (``CTX_*`` byte offsets): addresses of the pool and of the few outside functions that
  generated code calls, and the number of ``pause`` instructions to spin before sleeping;
* the **pool memory** (``POOL_*`` byte offsets), where each field that several threads write has cache lines
  of its own. A hook zeroes it in a forked child, which hence sees no workers and runs everything inline.

A job is identified by the 64-bit word at ``POOL_WORD``: generation in the high half, next free unit in the
low half (``CLOSED`` while the other fields are being written). Taking a chunk is one compare-and-swap of
that word, so a worker that wakes late cannot touch a newer job, and nobody waits for a worker that took
nothing.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
import weakref
from dataclasses import dataclass

from strata.core.errors import UserError

from .externs import name_failed_call

# Context table, byte offsets; all entries are 8 bytes.
CTX_POOL = 0  # address of the pool memory
CTX_SYSCALL = 8  # libc's syscall(long number, ...)
CTX_SET_ERROR = 16  # TVMFFIErrorSetRaisedFromCStr(const char* kind, const char* message)
CTX_SPIN = 24  # rounds to spin before sleeping
CTX_EXTERN_FAILED = 32  # void f(const char* extern, int32_t status): names a failed call in its error
CTX_RELEASE = 40  # TVMFFIObjectDecRef(object)
CTX_BYTES = 64

# Pool page, byte offsets.
POOL_WORKERS = 0  # i32: worker threads that exist (the caller is not counted)
POOL_SHUTDOWN = 4  # i32: 1 = workers return
POOL_DIVISOR = 8  # i64: a chunk is 1/divisor of what is left; twice the threads
POOL_BUSY = 128  # i32: 1 while a caller owns the pool
POOL_WORD = 256  # i64: generation << 32 | next unit
POOL_GENERATION = 260  # i32: high half of the word (little endian), the workers' futex
POOL_SLEEPERS = 384  # i32: workers asleep or about to be
POOL_DONE = 512  # i32: units finished, the caller's futex
POOL_WAITING = 516  # i32: 1 while the caller sleeps on POOL_DONE
POOL_FN = 640  # ptr: void fn(ptr env, i64 begin, i64 end)
POOL_ENV = 648  # ptr
POOL_N = 656  # i64: iterations
POOL_GRAIN = 664  # i64: iterations per unit
POOL_UNITS = 672  # i64: ceil(n / grain) <= MAX_UNITS
POOL_FIRST = 680  # i64: units in the first chunk of each thread; 0 = as many as in any other
POOL_BYTES = 768
POOL_ALIGN = 128  # two cache lines: prefetchers fetch pairs
CLOSED = 0xFFFFFFFF
MAX_UNITS = 1 << 30

MAX_THREADS = 256
SPIN_SECONDS = 50e-6  # how long a waiting thread burns its core before it sleeps
_WORKER_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64)
_CONTEXT_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_SPIN_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64)


@dataclass(frozen=True, slots=True)
class PoolSymbols:
    """Addresses of the native functions in a mapped image."""

    worker: int
    stop: int
    spin: int


def _callbacks() -> dict[int, int]:
    """Addresses of outside functions, by their place in the context table."""
    from tvm_ffi import libinfo

    libc = ctypes.CDLL(None)
    ffi = ctypes.CDLL(libinfo.find_libtvm_ffi())

    def address(function: object) -> int:
        return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]

    return {
        CTX_SYSCALL: address(libc.syscall),
        CTX_SET_ERROR: address(ffi.TVMFFIErrorSetRaisedFromCStr),
        CTX_EXTERN_FAILED: address(name_failed_call),
        CTX_RELEASE: address(ffi.TVMFFIObjectDecRef),
    }


def _calibrate(spin_address: int) -> int:
    """Rounds of the spin loop that take ``SPIN_SECONDS``: by the fastest of a few tries."""
    spin, rounds = _SPIN_TYPE(spin_address), 500
    best_s = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        spin(rounds)
        best_s = min(best_s, time.perf_counter() - start)
    return max(50, min(1_000_000, int(SPIN_SECONDS / max(best_s, 1e-7) * rounds)))


class Pool:
    """Worker threads and shared memory of one image.

    Args:
        symbols: Where the native functions are. The memory must outlive the pool.
        num_threads: Threads that work on a parallel loop, the caller included.

    Raises:
        UserError: ``num_threads`` out of range.
    """

    def __init__(self, symbols: PoolSymbols, num_threads: int) -> None:
        self._symbols = symbols
        self._threads: list[threading.Thread] = []
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._context = (ctypes.c_uint64 * (CTX_BYTES // 8))()
        self._page = (ctypes.c_char * (POOL_BYTES + POOL_ALIGN))()
        self._base = -(-ctypes.addressof(self._page) // POOL_ALIGN) * POOL_ALIGN
        self._context[CTX_POOL // 8] = self._base
        for place, function in _callbacks().items():
            self._context[place // 8] = function
        self._context[CTX_SPIN // 8] = _calibrate(symbols.spin)
        self.set_num_threads(num_threads)
        _live_pools.add(self)

    @property
    def context_address(self) -> int:
        """Address of the context table, for ``strata_init``."""
        return ctypes.addressof(self._context)

    @property
    def num_threads(self) -> int:
        """Threads that work on a parallel loop, the caller included."""
        return self._read_i32(POOL_WORKERS) + 1

    def forget_workers(self) -> None:
        """In a forked child, which has no workers: zero the pool memory, so that loops run inline."""
        ctypes.memset(self._base, 0, POOL_BYTES)
        self._lock = threading.Lock()  # the parent may have held it at the fork

    def _field(self, offset: int) -> ctypes.c_int32:
        return ctypes.c_int32.from_address(self._base + offset)

    def _read_i32(self, offset: int) -> int:
        return self._field(offset).value

    def set_num_threads(self, num_threads: int) -> None:
        """Stop the workers and start ``num_threads - 1`` new ones (in a forked child too).

        Raises:
            UserError: not an int in 1..256.
        """
        if (
            isinstance(num_threads, bool)
            or not isinstance(num_threads, int)
            or not 1 <= num_threads <= MAX_THREADS
        ):
            raise UserError(f"threads: got {num_threads!r}; expected an integer from 1 to {MAX_THREADS}")
        with self._lock:
            if self.num_threads == num_threads and self._pid == os.getpid():
                return
            self._stop()
            self._start(num_threads - 1)

    def _start(self, num_workers: int) -> None:
        self._field(POOL_SHUTDOWN).value = 0
        ctypes.c_int64.from_address(self._base + POOL_DIVISOR).value = 2 * (num_workers + 1)
        for worker in range(1, num_workers + 1):
            # The thread holds addresses only: a reference to the pool would keep it, and the image, alive
            # for ever.
            thread = threading.Thread(
                target=_WORKER_TYPE(self._symbols.worker),
                args=(self._context, worker),
                name=f"strata-worker-{worker}",
                daemon=True,
            )
            thread.start()
            self._threads.append(thread)
        self._field(POOL_WORKERS).value = num_workers
        self._field(POOL_BUSY).value = 0  # last: from here on a caller may own the pool

    def _stop(self) -> None:
        if self._pid != os.getpid():  # a forked child: the threads stayed in the parent
            self._pid = os.getpid()
            self._threads.clear()
        if not self._threads:
            return
        _CONTEXT_TYPE(self._symbols.stop)(self._context)  # waits for a running loop, then keeps the pool busy
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def close(self) -> None:
        """Stop the workers; parallel loops then run on the calling thread alone. May be called again."""
        with self._lock:
            self._stop()


def _forget_workers_in_child() -> None:
    for pool in list(_live_pools):
        pool.forget_workers()


_live_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
os.register_at_fork(after_in_child=_forget_workers_in_child)
