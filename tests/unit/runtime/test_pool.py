"""The fork-join pool: every iteration once, from several threads, after sleeping, forking and closing."""

import gc
import os
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from hand_kernels import image

from strata.core.errors import UserError
from strata.runtime.image import load_image

_before: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _other_pools():
    """Workers of programs that other tests of this process keep are not counted."""
    gc.collect()
    _before.clear()
    _before.update(threading.enumerate())


def workers() -> int:
    return sum(t.name.startswith("strata-worker") for t in threading.enumerate() if t not in _before)


@pytest.fixture
def loaded():
    with load_image(image("mark", "pieces", "span"), 2) as result:
        yield result


def mark(function, n: int, grain: int) -> np.ndarray:
    """Run the mark kernel; returns ``who`` after checking that every iteration ran once."""
    counts, who = np.zeros(n, np.int32), np.zeros(n, np.int64)
    function(counts, who, np.array([grain]))
    np.testing.assert_array_equal(counts, np.ones(n, np.int32))
    return who


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_iteration_runs_once(loaded, threads):
    loaded.set_num_threads(threads)
    assert loaded.num_threads == threads
    assert workers() == threads - 1
    function = loaded.function("mark")
    for n in (0, 1, 2, 7, 64, 1000, 50_021):
        for grain in (-1, 0, 1, 3, 64, 10**6):
            mark(function, n, grain)


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 5, 32, 1000])
def test_even_shares_come_first(loaded, threads, n):
    """A chunk each of 7/8 of an equal share, then small ones."""
    loaded.set_num_threads(threads)
    function, sizes = loaded.function("pieces"), np.zeros(n, np.int64)
    function(sizes, np.array([1]))
    assert sizes.sum() == n
    chunks = sizes[sizes > 0].tolist()
    if threads == 1 or n == 1:
        assert chunks == [n]
        return
    first = max(1, n * 7 // (8 * threads))
    assert chunks[: min(threads, n)] == [first] * min(threads, n)
    assert max([0, *chunks[threads:]]) <= max(1, (n - first * threads) // (2 * threads))


def test_shares_get_smaller_as_work_goes_on(loaded):
    sizes = np.zeros(32, np.int64)
    loaded.function("pieces")(sizes, np.array([0]))
    assert sizes[sizes > 0].tolist() == [8, 6, 4, 3, 2, 2, 1, 1, 1, 1, 1, 1, 1]


def test_one_chunk_runs_on_the_caller(loaded):
    function = loaded.function("mark")
    assert len(np.unique(mark(function, 100, 100))) == 1


def test_workers_take_part(loaded):
    function = loaded.function("mark")
    for _ in range(2000):
        if len(np.unique(mark(function, 200_000, 16) >> 16)) > 1:
            return
    pytest.fail("no worker took a chunk in 2000 loops")


def test_many_tiny_loops(loaded):
    loaded.set_num_threads(3)
    function = loaded.function("mark")
    counts, who, grain = np.zeros(5, np.int32), np.zeros(5, np.int64), np.array([1])
    for _ in range(20_000):
        function(counts, who, grain)
    np.testing.assert_array_equal(counts, np.full(5, 20_000))


def test_several_callers_share_the_pool(loaded):
    loaded.set_num_threads(3)
    function = loaded.function("mark")
    failures = []

    def call(size: int) -> None:
        try:
            for _ in range(1000):
                mark(function, size, 2)
        except AssertionError as error:
            failures.append(error)

    callers = [threading.Thread(target=call, args=(size,)) for size in (50, 333, 1001)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not failures


def test_nested_loops_and_more_units_than_a_word_holds(loaded):
    total, n = np.zeros(1, np.int64), np.array([3 << 32])
    loaded.function("span")(total, n)
    assert total[0] == 9 * n[0]  # once by itself, eight times from inside a parallel loop


def test_idle_workers_sleep_and_wake(loaded):
    loaded.set_num_threads(4)
    function = loaded.function("mark")
    mark(function, 1000, 1)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1  # spinning would take 0.4 s on each core
    for _ in range(20):
        time.sleep(0.002)
        mark(function, 1000, 1)


def test_closing_stops_the_workers_and_keeps_functions_callable():
    loaded = load_image(image("mark"), 3)
    function = loaded.function("mark")
    assert workers() == 2
    loaded.close()
    loaded.close()
    assert workers() == 0
    assert loaded.num_threads == 1
    mark(function, 1000, 1)
    loaded.set_num_threads(2)
    mark(function, 1000, 1)
    loaded.close()


def test_the_number_of_threads_changes_while_others_call(loaded):
    function = loaded.function("mark")
    failures = []

    def call() -> None:
        try:
            for _ in range(2000):
                mark(function, 300, 1)
        except AssertionError as error:
            failures.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    while caller.is_alive():
        for threads in (1, 3, 2, 4):
            loaded.set_num_threads(threads)
    caller.join()
    assert not failures


def test_workers_go_with_the_last_reference():
    loaded = load_image(image("mark"), 2)
    function = loaded.function("mark")
    del loaded
    gc.collect()
    assert workers() == 1  # the function keeps the image
    mark(function, 100, 1)
    del function
    gc.collect()
    assert workers() == 0


@pytest.mark.parametrize("threads", [0, -1, 257, 1.5, True, "2"])
def test_bad_number_of_threads(loaded, threads):
    with pytest.raises(UserError, match=r"threads: got .*; expected an integer from 1 to 256"):
        loaded.set_num_threads(threads)


def test_a_forked_child_runs_inline_and_can_start_its_own_workers(loaded):
    function = loaded.function("mark")
    mark(function, 1000, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: forking with threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            mark(function, 1000, 1)
            inline = loaded.num_threads == 1
            loaded.set_num_threads(2)
            mark(function, 1000, 1)
            loaded.close()
            code = 0 if inline else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    mark(function, 1000, 1)
    assert loaded.num_threads == 2


def test_the_process_exits_with_workers_alive(tmp_path):
    path = tmp_path / "code.image"
    path.write_bytes(image("mark").blob)
    script = (
        "import sys, numpy as np\n"
        "from strata.runtime.image import load_image\n"
        "loaded = load_image(sys.argv[1], 4)\n"
        "counts = np.zeros(1000, np.int32)\n"
        "loaded.function('mark')(counts, np.zeros(1000, np.int64), np.array([1]))\n"
        "print(counts.sum())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1000\n", "")
