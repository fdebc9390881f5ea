"""Native entries: where buffers are, which kernel is chosen, and records that do not fit."""

from dataclasses import replace

import numpy as np
import pytest
from hand_kernels import KERNELS, TEXTS, declared, image

from strata.codegen.entry import emit_entry
from strata.core.dims import SymDim
from strata.core.dtypes import f32, i32
from strata.core.errors import CodegenError, ShapeError
from strata.loop.nodes import Buffer
from strata.runtime.image import load_image
from strata.runtime.records import (
    CACHE_DIMS,
    CACHE_HEADER,
    CACHE_POINTERS,
    ArgKind,
    ArgRef,
    DimRange,
    FunctionRecord,
    KernelChoice,
    Launch,
    TensorSpec,
)

X = ArgRef(ArgKind.INPUT, 0)
Y = ArgRef(ArgKind.OUTPUT, 0)
SPECS = ((TensorSpec("x", "f32", ("n", 4)),), (TensorSpec("y", "f32", ("n", 4)),))


def record(*launches: Launch, arena_bytes: int = 1024) -> FunctionRecord:
    return FunctionRecord("step", *SPECS, (DimRange("n", 1, 16),), launches, arena_bytes)


def launch(*args: ArgRef, kernel: str = "double", when: tuple[DimRange, ...] = ()) -> Launch:
    return Launch("node", (KernelChoice(kernel, when),), args)


def aligned(num_bytes: int) -> np.ndarray:
    raw = np.zeros(num_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + num_bytes]


def run(function: FunctionRecord, n: int, params: tuple[np.ndarray, ...] = ()) -> np.ndarray:
    loaded = load_image(image("double", "bias", "bias_small", functions=(function,)), 1)
    x, y = np.ones((n, 4), np.float32), np.zeros((n, 4), np.float32)
    table = np.array([p.ctypes.data for p in params], np.int64)
    loaded.function("step")(x, y, table, aligned(function.arena_bytes))
    return y


def test_launches_run_in_order_through_the_arena():
    a, b = ArgRef(ArgKind.ARENA, 0), ArgRef(ArgKind.ARENA, 256)
    y = run(record(launch(X, a), launch(a, b), launch(b, a), launch(a, Y)), 3)
    np.testing.assert_array_equal(y, np.full((3, 4), 16))


def test_kernels_are_chosen_by_size_in_order():
    choices = (
        KernelChoice("bias_small", (DimRange("n", 2, 3),)),
        KernelChoice("double_rows", (DimRange("n", 1, 4), DimRange("n", 4, 16))),
        KernelChoice("bias"),
    )
    choices = tuple(replace(c, kernel="bias_small") if c.kernel == "double_rows" else c for c in choices)
    function = record(Launch("node", choices, (X, ArgRef(ArgKind.PARAM, 0), Y)))
    bias = np.zeros(4, np.float32)
    assert [run(function, n, (bias,))[0, 0] for n in (1, 2, 3, 4, 5, 16)] == [1, 2, 2, 2, 1, 1]


def test_params_by_index():
    params = tuple(np.full(4, i, np.float32) for i in range(3))
    assert run(record(launch(X, ArgRef(ArgKind.PARAM, 2), Y, kernel="bias")), 1, params)[0, 0] == 3


def test_a_function_without_launches_returns():
    np.testing.assert_array_equal(run(record(arena_bytes=0), 2), np.zeros((2, 4)))


# out[0] = what the entry passes for the fields and dims of a cache
FIELDS = declared(
    "fields",
    Buffer("ids", (SymDim("n"),), i32),
    Buffer("slots", (SymDim("n"),), i32),
    Buffer("rope_sin", (SymDim("max_context"), 1), f32),
    Buffer("v", (SymDim("num_pages"), 1), f32),
    Buffer("out", (SymDim("num_seqs"), 4), f32),
)
# dims in the order of their names: max_context, n, num_pages, num_seqs
FIELDS_TEXT = """
define hidden void @fields.impl(ptr %ids, ptr %slots, ptr %sin, ptr %v, ptr %out,
                                i64 %c, i64 %n, i64 %p, i64 %s) {
  %slot = load i32, ptr %slots
  %a = sitofp i32 %slot to float
  store float %a, ptr %out
  %b = load float, ptr %sin
  %out1 = getelementptr float, ptr %out, i64 1
  store float %b, ptr %out1
  %d = load float, ptr %v
  %out2 = getelementptr float, ptr %out, i64 2
  store float %d, ptr %out2
  %hundred = mul i64 %c, 100
  %sum = add i64 %hundred, %p
  %e = sitofp i64 %sum to float
  %out3 = getelementptr float, ptr %out, i64 3
  store float %e, ptr %out3
  ret void
}
"""


@pytest.fixture
def cached(monkeypatch):
    monkeypatch.setitem(KERNELS, "fields", FIELDS)
    monkeypatch.setitem(TEXTS, "fields", FIELDS_TEXT)
    refs = (
        ArgRef(ArgKind.INPUT, 0),
        ArgRef(ArgKind.CACHE, 1, "slots"),
        ArgRef(ArgKind.CACHE, 1, "rope_sin"),
        ArgRef(ArgKind.CACHE, 1, "v_pages", layer=1),
        Y,
    )
    function = FunctionRecord(
        "decode",
        (TensorSpec("ids", "i32", ("n",)), TensorSpec("kv", "cache", ())),
        (TensorSpec("logits", "f32", ("num_seqs", 4)),),
        (DimRange("n", 1, 16), DimRange("num_seqs", 1, 8)),
        (launch(*refs, kernel="fields"),),
        0,
    )
    return load_image(image("fields", functions=(function,)), 1).function("decode")


def cache_table(num_layers: int = 2, num_seqs: int = 3):
    """A cache table, and the arrays that it points to."""
    arrays = {name: np.zeros(4, np.float32 if "rope" in name else np.int32) for name in CACHE_POINTERS}
    arrays["slots"][0], arrays["rope_sin"][0] = 7, 0.5
    pages = [np.full(4, 10 + i, np.float32) for i in range(4 * num_layers)]
    table = np.zeros(CACHE_HEADER + 4 * num_layers, np.int64)
    table[: len(CACHE_POINTERS)] = [arrays[name].ctypes.data for name in CACHE_POINTERS]
    sizes = {"num_seqs": num_seqs, "table_width": 2, "num_pages": 5, "max_context": 6}
    table[len(CACHE_POINTERS) : len(CACHE_POINTERS) + len(CACHE_DIMS)] = [sizes[name] for name in CACHE_DIMS]
    table[CACHE_HEADER:] = [p.ctypes.data for p in pages]
    return table, (arrays, pages)


def test_cache_fields_and_dims(cached):
    table, _keep = cache_table()
    ids, logits, empty = np.zeros(3, np.int32), np.zeros((3, 4), np.float32), np.zeros(0, np.int64)
    cached(ids, table, logits, empty, aligned(0))
    np.testing.assert_array_equal(logits[0], [7, 0.5, 15, 605])


def test_wrong_cache_tables(cached):
    table, _keep = cache_table(num_layers=1)
    ids, logits, empty = np.zeros(3, np.int32), np.zeros((3, 4), np.float32), np.zeros(0, np.int64)
    message = r"decode: argument 1 \(kv\): got i64\[20\]; expected i64\[>=24\]"
    with pytest.raises(ShapeError, match=message):
        cached(ids, table, logits, empty, aligned(0))
    table, _keep = cache_table(num_seqs=2)
    message = (
        r"decode: argument 2 \(logits\): got f32\[3,4\]; expected f32\[num_seqs,4\] where .*num_seqs = 2"
    )
    with pytest.raises(ShapeError, match=message):
        cached(ids, table, logits, empty, aligned(0))
    table, _keep = cache_table(num_seqs=9)
    with pytest.raises(ShapeError, match=r"decode: got num_seqs = 9; expected 1\.\.8"):
        cached(ids, table, np.zeros((9, 4), np.float32), empty, aligned(0))


def test_a_table_that_contradicts_a_shape(monkeypatch):
    inputs = (TensorSpec("rows", "f32", ("num_seqs",)), TensorSpec("kv", "cache", ()))
    function = FunctionRecord("count", inputs, (), (), (), 0)
    entry = load_image(image(functions=(function,)), 1).function("count")
    table, _keep = cache_table(num_seqs=2)
    rest = (np.zeros(0, np.int64), aligned(0))
    entry(np.zeros(2, np.float32), table, *rest)
    message = r"argument 1 \(kv\): got num_seqs = 2 in the table; expected the size of the other arguments"
    with pytest.raises(ShapeError, match=message):
        entry(np.zeros(3, np.float32), table, *rest)


def test_wrong_arguments_of_an_entry():
    function = record(launch(X, ArgRef(ArgKind.PARAM, 1), Y, kernel="bias"))
    entry = load_image(image("bias", functions=(function,)), 1).function("step")
    x, y, table = np.zeros((2, 4), np.float32), np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
    wrong = {
        r"step: got 3 arguments; expected 4 \(x, y, params, arena\)": (x, y, table),
        r"argument 2 \(params\): got i64\[1\]; expected i64\[>=2\]": (x, y, table[:1], aligned(1024)),
        r"argument 3 \(arena\): got u8\[1023\]; expected u8\[>=1024\]": (x, y, table, aligned(1023)),
        r"argument 3 \(arena\): got u8\[1087\] at an address that is no mul": (
            x,
            y,
            table,
            aligned(1088)[1:],
        ),
        r"argument 1 \(y\): got f32\[1,4\]; expected f32\[n,4\] where n = 2": (
            x,
            y[:1],
            table,
            aligned(1024),
        ),
        r"step: got n = 17; expected 1..16": (np.zeros((17, 4), np.float32),) * 2 + (table, aligned(1024)),
    }
    for message, args in wrong.items():
        with pytest.raises(ShapeError, match=message):
            entry(*args)


BAD = {
    r"step: launch node: no kernel 'triple'": launch(X, Y, kernel="triple"),
    r"step: launch node: got 1 buffers; double takes 2": launch(X),
    r"launch node: span2 needs k; no input of the function gives it": launch(X, Y, kernel="span2"),
    r"launch node: got input 1; expected 0\.\.0": launch(ArgRef(ArgKind.INPUT, 1), Y),
    r"launch node: got output 2; expected 0\.\.0": launch(X, ArgRef(ArgKind.OUTPUT, 2)),
    r"launch node: got arena 1024; expected 0\.\.1023": launch(X, ArgRef(ArgKind.ARENA, 1024)),
    r"launch node: got param -1; expected 0 or more": launch(X, ArgRef(ArgKind.PARAM, -1)),
    r"launch node: got input 'x' as a cache; it is a tensor": launch(ArgRef(ArgKind.CACHE, 0, "slots"), Y),
    r"launch node: the last choice must have no ranges": launch(X, Y, when=(DimRange("n", 1, 2),)),
    r"launch node: the last choice must have no ranges; got \(\)": Launch("node", (), ()),
    r"launch node: got a choice by dim 'm'; expected one of n": Launch(
        "node", (KernelChoice("double", (DimRange("m", 1, 2),)), KernelChoice("double")), (X, Y)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_records_that_do_not_fit(message):
    k = SymDim("k")
    kernels = KERNELS | {"span2": declared("span2", Buffer("x", (k,), f32), Buffer("y", (k,), f32))}
    with pytest.raises(CodegenError, match=message):
        emit_entry(record(BAD[message]), kernels)


def test_unknown_cache_fields():
    function = FunctionRecord(
        "f", (TensorSpec("kv", "cache", ()),), (), (), (launch(ArgRef(ArgKind.CACHE, 0, "ages"), X),), 0
    )
    with pytest.raises(
        CodegenError, match=r"f: launch node: got cache field 'ages'; expected one of positions, slots"
    ):
        emit_entry(function, KERNELS)


def test_the_text_of_a_large_function_is_straight_line_code():
    a = ArgRef(ArgKind.ARENA, 0)
    text = emit_entry(record(*[launch(a, a)] * 220), KERNELS)
    assert text.count("call void @double.impl") == 220
    assert text.count("getelementptr i8, ptr %p3, i64 0") == 1  # an address is computed once
    assert text.count("br i1") == 1
