import dataclasses
import gc
import threading
import weakref

import numpy as np
import pytest
from small_program import RECORD, FakeImage, View, small_params

from strata.core.errors import DeviceError, ShapeError, UserError
from strata.runtime.program import Program


@pytest.fixture
def program() -> Program:
    return Program(RECORD, FakeImage(), small_params())


def rows(n: int) -> np.ndarray:
    return np.arange(n * 4, dtype=np.float32).reshape(n, 4)


def expected(x: np.ndarray) -> np.ndarray:
    params = {k: v.astype(np.float32) for k, v in small_params().items()}
    return x * params["scale"] + params["shift"]


def test_call_computes_and_reuses_its_output_buffer(program):
    first = program["axpy"](rows(3))
    np.testing.assert_array_equal(first, expected(rows(3)))
    assert first.ctypes.data % 64 == 0
    again = program["axpy"](-rows(3))
    assert again is first
    np.testing.assert_array_equal(program["axpy"](rows(2)), expected(rows(2)))
    np.testing.assert_array_equal(program["axpy"](rows(8)), expected(rows(8)))


def test_call_writes_to_out_and_takes_strided_and_foreign_inputs(program):
    out = np.empty((2, 4), np.float32)
    assert program["axpy"](rows(2), out=out) is out
    np.testing.assert_array_equal(out, expected(rows(2)))
    np.testing.assert_array_equal(program["axpy"](rows(4)[::2]), expected(rows(4)[::2]))

    class Foreign:
        def __dlpack__(self, **options):
            return rows(2).__dlpack__(**options)

        def __dlpack_device__(self):
            return (1, 0)

    np.testing.assert_array_equal(program["axpy"](Foreign()), expected(rows(2)))


def test_cache_argument(program):
    keys = np.arange(5 * 8, dtype=np.float32).reshape(5, 1, 2, 4)
    view = View(keys, 3, 2)
    result = program["peek"](np.zeros(3, np.int32), view)
    np.testing.assert_array_equal(result, np.full(2, keys[:, 0, 0, 0].sum()))
    stepped = program.step("peek", np.zeros(3, np.int32), view).finish()
    np.testing.assert_array_equal(stepped, np.full(2, keys[:, 0, 0, 0].sum()))


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((), r"axpy: got 0 arguments; expected 1: x"),
        (([1.0],), r"axpy: input x: got list; expected f32\[n,4\]"),
        ((np.zeros((2, 4)),), r"axpy: input x: got f64\[2,4\]; expected f32\[n,4\]"),
        ((np.zeros(4, np.float32),), r"got f32\[4\]; expected f32\[n,4\]"),
        ((np.zeros((2, 4), np.complex64),), r"got complex64\[2,4\]"),
        ((np.zeros((2, 5), np.float32),), r"axpy: input x: got f32\[2,5\]; expected f32\[n,4\] where n = 2"),
        ((np.zeros((9, 4), np.float32),), r"axpy: n = 9; it was compiled for n in 1 \.\. 8"),
        ((np.zeros((0, 4), np.float32),), r"axpy: n = 0; it was compiled for n in 1 \.\. 8"),
    ],
)
def test_bad_arguments(program, args, match):
    with pytest.raises(ShapeError, match=match):
        program["axpy"](*args)


def test_bad_cache_arguments(program):
    ids, keys = np.zeros(3, np.int32), np.zeros((5, 1, 2, 4), np.float32)
    with pytest.raises(ShapeError, match="input cache: got int; expected a batch view"):
        program["peek"](ids, 3)
    view = View(keys, 3, 2)
    view.table = view.table[:17]
    with pytest.raises(ShapeError, match=r"got a table i64\[17\]; expected i64\[20\]"):
        program["peek"](ids, view)
    with pytest.raises(ShapeError, match=r"the batch view is for 4 tokens; the inputs are i32\[3\]"):
        program["peek"](ids, View(keys, 4, 2))
    with pytest.raises(ShapeError, match=r"num_seqs = 5; it was compiled for num_seqs in 1 \.\. 4"):
        program["peek"](ids, View(keys, 3, 5))


def test_bad_outputs(program):
    with pytest.raises(ShapeError, match="got 2 output arrays; expected 1"):
        program["axpy"](rows(2), out=(rows(2), rows(2)))
    with pytest.raises(
        ShapeError, match=r"output y: got f32\[3,4\]; expected a writable C-contiguous f32\[2, 4\]"
    ):
        program["axpy"](rows(2), out=rows(3))


def test_bad_programs():
    params = small_params()
    with pytest.raises(UserError, match=r"param 'shift' is missing; expected bf16\[4\]"):
        Program(RECORD, FakeImage(), {"scale": params["scale"]})
    with pytest.raises(UserError, match=r"param 'shift': got bf16\[2\]; expected C-contiguous bf16\[4\]"):
        Program(RECORD, FakeImage(), {**params, "shift": params["shift"][:2]})
    with pytest.raises(UserError, match="peek takes a KV cache, but the record describes none"):
        Program(dataclasses.replace(RECORD, cache=None), FakeImage(), params)


def test_look_ups(program):
    assert "axpy" in program
    assert "axpz" not in program
    assert program["axpy"].name == "axpy"
    assert program["axpy"].dim_range("n") == (1, 8)
    assert program.cache is RECORD.cache
    with pytest.raises(UserError, match="no function 'axpz'; it has axpy, peek"):
        program["axpz"]
    with pytest.raises(UserError, match="axpy: no dim 'm'; it has n"):
        program["axpy"].dim_range("m")
    with pytest.raises(UserError, match="no kernel 'mul'; it has add, mul_large, mul_small"):
        program.kernel("mul")
    out = np.empty((1, 4), np.float32)
    program.kernel("mul_small")(rows(1), np.ones(4, np.float32), out, 1)
    np.testing.assert_array_equal(out, rows(1))


def test_native_failure_names_the_function(program):
    def refuse(*args):
        raise ValueError("wrong arena")

    program["axpy"]._entry = refuse
    with pytest.raises(DeviceError, match="axpy: the native call failed: wrong arena"):
        program["axpy"](rows(1))


def test_remembered_sizes_are_bounded(program, monkeypatch):
    monkeypatch.setattr("strata.runtime.program._MAX_SIZES", 3)
    for n in (*range(1, 9), *range(1, 9)):
        np.testing.assert_array_equal(program["axpy"](rows(n)), expected(rows(n)))
        assert len(program["axpy"]._sizes) <= 3


def test_a_dropped_program_is_freed_at_once(program):
    record, image = program.record, weakref.ref(program.image)
    local = Program(record, program.image, small_params())
    dropped = weakref.ref(local)
    gc.disable()
    try:
        del local
        assert dropped() is None
        assert image() is not None
    finally:
        gc.enable()


def test_a_function_outlives_its_program():
    program = Program(RECORD, FakeImage(), {k: v.copy() for k, v in small_params().items()})
    function, scale = program["axpy"], weakref.ref(program.params["scale"])
    del program
    assert scale() is not None  # native code reads it by its address
    np.testing.assert_array_equal(function(rows(3)), expected(rows(3)))


def test_threads_take_turns(program):
    results = []

    def work(value: int) -> None:
        out = np.empty((2, 4), np.float32)
        for _ in range(20):
            program["axpy"](rows(2) * value, out=out)
        results.append((value, out))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for value, out in results:
        np.testing.assert_array_equal(out, expected(rows(2) * value))
