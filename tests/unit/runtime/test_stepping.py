"""The stepping executor on a program whose kernels are Python: order, hooks, values, other kernels."""

import dataclasses
import gc
import weakref

import numpy as np
import pytest
import tvm_ffi
from small_program import AXPY, KERNELS, PEEK, RECORD, FakeImage, View, small_params

from strata.core.errors import DeviceError, ExternError, ShapeError, UserError, VerifyError
from strata.runtime.program import Program
from strata.runtime.records import ArgKind, ArgRef
from strata.runtime.stepping import NodeEvent


@pytest.fixture
def program() -> Program:
    return Program(RECORD, FakeImage(), small_params())


def rows(n: int) -> np.ndarray:
    return np.arange(n * 4, dtype=np.float32).reshape(n, 4)


PARAMS = {k: v.astype(np.float32) for k, v in small_params().items()}


def expected(x: np.ndarray) -> np.ndarray:
    return x * PARAMS["scale"] + PARAMS["shift"]


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_a_run_makes_the_entrys_launches(program, n):
    x = rows(n) - 3
    whole = program["axpy"](x).copy()
    run = program.step("axpy", x)
    assert run.upcoming.name == "%1"
    assert [node.name for node in run] == ["%1", "%2"]
    np.testing.assert_array_equal(run.outputs, whole)
    assert run.upcoming is None
    assert program.image.calls == ["axpy", "mul_small" if n <= 2 else "mul_large", "add"]


def test_next_run_to_and_finish(program):
    run = program.step("axpy", rows(3), out=(out := np.empty((3, 4), np.float32)))
    assert run.next().index == 0
    assert program.image.calls == ["mul_large"]
    assert run.run_to("%2", before=True).name == "%2"
    assert run.position == 1
    assert run.run_to(1).name == "%2"
    assert run.finish() is out
    np.testing.assert_array_equal(out, expected(rows(3)))
    with pytest.raises(UserError, match="axpy: all 2 nodes have run; begin another run"):
        run.next()
    with pytest.raises(StopIteration):
        next(run)
    with pytest.raises(UserError, match="axpy: node %1 has run already"):
        run.run_to("%1")


def test_outputs_are_there_at_the_end_only(program):
    run = program.step("axpy", rows(1))
    run.next()
    with pytest.raises(UserError, match=r"axpy: 1 of 2 nodes have not run; call finish\(\)"):
        _ = run.outputs


def test_runs_of_all_sizes_and_places(program):
    """Arguments in other places, sizes seen before: nothing of an earlier call is left."""
    for n in (3, 2, 3, 8, 2):
        x = rows(n) * n
        np.testing.assert_array_equal(program.step("axpy", x).finish(), expected(x))
        out = np.empty_like(x)
        program.step("axpy", x[::-1].copy(), out=out).finish()
        np.testing.assert_array_equal(out, expected(x[::-1]))
        strided = np.repeat(x, 2, axis=0)[::2]
        np.testing.assert_array_equal(program.step("axpy", strided).finish(), expected(x))


def test_cache_views_may_change_between_runs(program):
    for seed, num_seqs in ((1, 2), (2, 2), (3, 4)):
        keys = np.full((5, 1, 2, 4), seed, np.float32)
        run = program.step("peek", np.zeros(3, np.int32), View(keys, 3, num_seqs))
        np.testing.assert_array_equal(run.finish(), np.full(num_seqs, 5 * seed))


def test_values_and_inputs(program):
    x = rows(3)
    run = program.step("axpy", x)
    run.run_to("%1")
    np.testing.assert_array_equal(run.value("%1"), x * PARAMS["scale"])
    read, scale = run.inputs("%1")
    np.testing.assert_array_equal(read, x)
    assert not scale.flags.writeable
    assert scale.dtype == small_params()["scale"].dtype
    np.testing.assert_array_equal(run.inputs("%2")[0], x * PARAMS["scale"])
    run.finish()
    np.testing.assert_array_equal(run.value(run.nodes[1]), expected(x))
    np.testing.assert_array_equal(run.value("%1"), x * PARAMS["scale"])  # nobody used its memory again


def test_values_that_are_not_there(program):
    run = program.step("axpy", rows(3))
    with pytest.raises(UserError, match=r"axpy: node %1 has not run yet; use run_to\(\)"):
        run.value("%1")
    with pytest.raises(UserError, match=r"what %2 reads is not there yet; use run_to\(..., before=True\)"):
        run.inputs("%2")
    run.next()
    program["axpy"](rows(1))
    with pytest.raises(UserError, match="another call of the program has used its memory since node 1"):
        run.value("%1")
    with pytest.raises(UserError, match="axpy: another call of the program has used its memory since node 1"):
        run.next()


def overlapping() -> Program:
    """The second launch writes where the first one did; its result is the output all the same."""
    second = dataclasses.replace(
        AXPY.launches[1], args=(ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.PARAM, 1), ArgRef(ArgKind.ARENA, 96))
    )
    function = dataclasses.replace(AXPY, launches=(AXPY.launches[0], second))
    return Program(dataclasses.replace(RECORD, functions=(function, PEEK)), FakeImage(), small_params())


def test_values_whose_memory_was_used_again():
    program, x = overlapping(), rows(3)
    run = program.step("axpy", x)
    run.finish()
    with pytest.raises(
        UserError, match=r"memory of %1 was used again by %2; keep its value: step\(..., keep='%1'"
    ):
        run.value("%1")
    kept = program.step("axpy", x, keep="%1")
    kept.finish()
    np.testing.assert_array_equal(kept.value("%1"), x * PARAMS["scale"])
    every = program.step("axpy", x, keep=True)
    every.finish()
    np.testing.assert_array_equal(every.value("%1"), x * PARAMS["scale"])
    np.testing.assert_array_equal(every.value("%2"), x + PARAMS["shift"])
    program["axpy"](x)
    np.testing.assert_array_equal(every.value("%1"), x * PARAMS["scale"])  # copies outlive other calls


def test_several_results(program):
    add = dataclasses.replace(KERNELS[2], num_outputs=2)
    program = Program(
        dataclasses.replace(RECORD, kernels=(*KERNELS[:2], add, KERNELS[3])), FakeImage(), small_params()
    )
    run = program.step("axpy", rows(2))
    run.finish()
    assert len(run.values("%2")) == 2
    with pytest.raises(UserError, match=r"node %2 has 2 results; use values\(\)"):
        run.value("%2")


def test_workspace_is_no_result(program):
    """The first of two outputs is scratch memory: hooks and other kernels do not see it."""
    add = dataclasses.replace(KERNELS[2], num_outputs=2)
    launch = dataclasses.replace(AXPY.launches[1], num_workspace=1)
    function = dataclasses.replace(AXPY, launches=(AXPY.launches[0], launch))
    record = dataclasses.replace(RECORD, functions=(function, PEEK), kernels=(*KERNELS[:2], add, KERNELS[3]))
    program = Program(record, FakeImage(), small_params())
    node = program.nodes("axpy")[1]
    assert [len(x) for x in (node.inputs, node.workspace, node.outputs)] == [1, 1, 1]
    np.testing.assert_array_equal(program.step("axpy", rows(2)).finish(), expected(rows(2)))
    program.swap("%2", lambda x, y: np.copyto(y, -x))
    np.testing.assert_array_equal(program["axpy"](rows(2)), -rows(2) * PARAMS["scale"])


# --- hooks ----------------------------------------------------------------------------------------------


def test_hooks_see_each_launch(program):
    x, seen = rows(3), []
    run = program.step("axpy", x)
    run.before("*", lambda e: seen.append(("before", e.node.name, e.time_ns)))
    run.after("%1", lambda e: seen.append(("after", e.kernel, e.value.copy())))
    run.after("*", lambda e: seen.append(("took", e.node.name, e.time_ns > 0)))
    run.finish()
    assert [s[:2] for s in seen] == [
        ("before", "%1"),
        ("after", "mul_large"),
        ("took", "%1"),
        ("before", "%2"),
        ("took", "%2"),
    ]
    assert seen[0][2] == 0
    np.testing.assert_array_equal(seen[1][2], x * PARAMS["scale"])
    assert seen[2][2]
    assert seen[4][2]


def test_a_hook_changes_an_operand_or_a_result(program):
    run = program.step("axpy", rows(2))
    run.before("%2", lambda e: e.inputs[0].fill(0))
    np.testing.assert_array_equal(run.finish(), expected(np.zeros((2, 4), np.float32)))
    run = program.step("axpy", rows(2))

    def double(event: NodeEvent) -> None:
        assert event.dims == {"n": 2}
        event.value = event.value * 2

    run.after("%1", double)
    np.testing.assert_array_equal(run.finish(), expected(2 * rows(2)))


def test_skipped_nodes_are_not_launched(program):
    run = program.step("axpy", rows(2))
    run.skip("%1")
    run.before("%1", lambda e: e.outputs[0].fill(7))
    run.after("%1", lambda e: pytest.fail("it ran") if e.time_ns or not e.is_skipped else None)
    np.testing.assert_array_equal(run.finish(), np.broadcast_to(7 + PARAMS["shift"], (2, 4)))
    assert program.image.calls == ["add"]


def test_errors_of_hooks_are_their_own(program):
    run = program.step("axpy", rows(2))
    run.after("%1", lambda e: setattr(e, "value", np.zeros(3)))
    with pytest.raises(ValueError, match="could not broadcast"):
        run.finish()
    with pytest.raises(UserError, match="no node 'mul' in axpy; there are %1, %2"):
        run.before("mul", print)


def test_hooks_of_a_program(program):
    seen = []
    (node,) = program.hook("%1", after=lambda e: seen.append(e.value.sum()))
    assert (node.function, node.index) == ("axpy", 0)
    program["axpy"](rows(2))
    program.step("axpy", rows(2)).finish()
    assert seen == [(rows(2) * PARAMS["scale"]).sum()] * 2
    program.restore()
    program["axpy"](rows(2))
    assert len(seen) == 2
    assert program.image.calls == ["mul_small", "add"] * 2 + ["axpy"]


# --- other kernels --------------------------------------------------------------------------------------


def subtract(x: np.ndarray, shift: np.ndarray, y: np.ndarray) -> None:
    y[...] = x - shift.astype(np.float32)


def test_replace_holds_for_one_run(program):
    x, kernels = rows(2), []
    run = program.step("axpy", x)
    run.replace("%2", subtract)
    run.after("%2", lambda e: kernels.append(e.kernel))
    np.testing.assert_array_equal(run.finish(), x * PARAMS["scale"] - PARAMS["shift"])
    assert kernels == ["subtract"]
    np.testing.assert_array_equal(program["axpy"](x), expected(x))
    np.testing.assert_array_equal(program.step("axpy", x).finish(), expected(x))


def test_replace_by_another_compiled_kernel(program):
    run = program.step("axpy", rows(1))
    run.replace("%1", "mul_large")
    np.testing.assert_array_equal(run.finish(), expected(rows(1)))
    assert program.image.calls == ["mul_large", "add"]


def test_replace_by_a_tvm_ffi_function(program):
    calls = []
    ffi = tvm_ffi.convert(lambda *tensors: calls.append([tuple(t.shape) for t in tensors]))
    run = program.step("axpy", rows(2))
    run.replace("%2", ffi)
    run.finish()
    assert calls == [[(2, 4), (4,), (2, 4)]]


def test_swap_holds_for_all_later_calls(program):
    out = np.empty((3, 4), np.float32)
    swapped = program.swap("%2", subtract)
    assert [n.name for n in swapped] == ["%2"]
    for n in (1, 3, 8):
        np.testing.assert_array_equal(program["axpy"](rows(n)), rows(n) * PARAMS["scale"] - PARAMS["shift"])
    assert program["axpy"](rows(3), out=out) is out
    np.testing.assert_array_equal(program.step("axpy", rows(3)).finish(), out)
    assert "axpy" not in program.image.calls
    program.restore("%1")
    np.testing.assert_array_equal(program["axpy"](rows(3)), out)
    program.restore("%2", "axpy")
    np.testing.assert_array_equal(program["axpy"](rows(3)), expected(rows(3)))
    assert program.image.calls[-1] == "axpy"


def test_a_run_keeps_the_kernels_that_it_began_with(program):
    run = program.step("axpy", rows(2))
    program.swap("%2", subtract)
    np.testing.assert_array_equal(run.finish(), expected(rows(2)))


def test_which_nodes_swap_takes(program):
    assert len(program.swap("*", lambda *arrays: None)) == 3
    program.restore()
    assert len(program.swap("%?", lambda *arrays: None, function="axpy")) == 2
    program.restore()
    (node,) = program.swap(program.nodes("peek")[0], lambda *arrays: None)
    assert node.function == "peek"
    with pytest.raises(UserError, match="no node '%9' in axpy"):
        program.swap("%9", subtract)
    with pytest.raises(UserError, match="no node '%3' in axpy"):
        program.swap("%3", subtract, function="axpy")
    with pytest.raises(UserError, match="no node '%9' in axpy"):
        program.swap(["%2", "%9"], subtract)
    assert [n.name for n in program.swap(["%2", "%3", "%?"], lambda *arrays: None)] == ["%2", "%3", "%1"]


def test_kernels_that_do_not_fit(program):
    run = program.step("axpy", rows(2))
    with pytest.raises(
        UserError, match="program: no kernel 'mul'; it has add, mul_large, mul_small, sum_keys"
    ):
        run.replace("%1", "mul")
    with pytest.raises(UserError, match="%1: sum_keys takes other parameters than mul_large"):
        run.replace("%1", "sum_keys")
    with pytest.raises(UserError, match="%1: got int as a kernel; expected a name or a callable"):
        run.replace("%1", 7)
    run.replace("%1", lambda x, scale, y: x * 2)
    with pytest.raises(UserError, match="%1: its kernel returned a new ndarray; expected that it writes"):
        run.next()


def test_a_kernel_may_return_what_it_wrote(program):
    run = program.step("axpy", rows(2))
    run.replace("%2", lambda x, shift, y: np.negative(x, out=y))
    np.testing.assert_array_equal(run.finish(), -rows(2) * PARAMS["scale"])


def test_errors_of_kernels(program):
    def broken(*arrays: np.ndarray) -> None:
        raise ValueError("no idea")

    run = program.step("axpy", rows(2))
    run.replace("%1", broken)
    with pytest.raises(ValueError, match="no idea") as caught:
        run.next()
    assert caught.value.__notes__ == ["in the kernel that was put in the place of node %1"]
    for watched in (False, True):
        run = program.step("axpy", rows(2))
        run.replace("%1", tvm_ffi.convert(broken))
        if watched:
            run.before("%1", lambda e: None)
        with pytest.raises(DeviceError, match=r"%1 \(Function\): the native call failed: no idea"):
            run.next()


def test_errors_of_externs(program):
    def refuse() -> None:
        raise ExternError("my.gelu failed")

    run = program.step("axpy", rows(2))
    run._calls[0] = refuse
    with pytest.raises(ExternError, match=r"%1 \(mul_small\): my.gelu failed"):
        run.next()


# --- limits ---------------------------------------------------------------------------------------------


def test_nodes_of_another_function(program):
    run = program.step("axpy", rows(1))
    with pytest.raises(UserError, match="node '%3' is of peek; expected one of axpy"):
        run.run_to(program.nodes("peek")[0])
    with pytest.raises(UserError, match="node 2: axpy has 2 nodes"):
        run.run_to(2)
    with pytest.raises(UserError, match=r"node '%\*' in axpy: got 2 nodes \(%1, %2\); expected one"):
        run.run_to("%*")


def test_arguments_are_checked(program):
    with pytest.raises(ShapeError, match="axpy: n = 9; it was compiled for n in"):
        program.step("axpy", rows(9))


def test_records_that_are_wrong():
    program = Program(dataclasses.replace(RECORD, kernels=KERNELS[1:]), FakeImage(), small_params())
    with pytest.raises(UserError, match="axpy: the record has no signature of kernel 'mul_small'"):
        program.step("axpy", rows(1))
    args = (ArgRef(ArgKind.INPUT, 0), ArgRef(ArgKind.PARAM, 0), ArgRef(ArgKind.ARENA, 150))
    small = dataclasses.replace(
        AXPY, launches=(dataclasses.replace(AXPY.launches[0], args=args), AXPY.launches[1])
    )
    program = Program(dataclasses.replace(RECORD, functions=(small, PEEK)), FakeImage(), small_params())
    with pytest.raises(
        VerifyError, match=r"mul_large parameter x takes 128 bytes; its buffer \(arena 150\) has 42"
    ):
        program.step("axpy", rows(8))


def test_what_is_remembered_is_bounded(program, monkeypatch):
    monkeypatch.setattr("strata.runtime.launches._MAX_BOUND", 2)
    monkeypatch.setattr("strata.runtime.launches._MAX_TENSORS", 4)
    for n in (*range(1, 9), *range(1, 9)):
        np.testing.assert_array_equal(program.step("axpy", rows(n)).finish(), expected(rows(n)))
        launches = program["axpy"].launches
        assert len(launches._bound) <= 2
        assert len(launches.fixed._tensors) <= 4


def test_a_dropped_program_with_runs_is_freed_at_once(program):
    local = Program(program.record, program.image, small_params())
    local.swap("%2", subtract)
    local["axpy"](rows(2))
    run = local.step("axpy", rows(2))
    dropped, kept = weakref.ref(local), weakref.ref(local.params["scale"])
    gc.disable()
    try:
        del local
        assert dropped() is None
        assert kept() is not None
        run.finish()
        del run
        assert kept() is None
    finally:
        gc.enable()
