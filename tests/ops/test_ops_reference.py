"""The NumPy reference of every op against an independent formulation, over all samples of the op table."""

from typing import Any

import independent
import numpy as np
import pytest
import tolerance
import torch

from strata.core.dtypes import bf16, f16
from strata.core.kv_layout import LAYER_FIELDS
from strata.graph import builder as b
from strata.graph.cache_value import CacheValue
from strata.graph.interp import run
from strata.graph.nodes import Function
from strata.graph.opdef import OPS, Sample
from strata.graph.ops.common import np_dtype
from strata.graph.samples import op_samples, sample_function, sample_operands
from strata.graph.types import TensorType

# Ops whose meaning is another program, tested by name below, and leaves.
BY_NAME = {"tensor_expr", "fused", "cast", "const", "create_kv_cache", "input", "param"}
CASES = [pytest.param(op, sample, id=id_) for id_, op, sample in op_samples() if op not in BY_NAME]
TORCH = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TORCH |= {"i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8, "u8": torch.uint8}
TORCH |= {"bool": torch.bool}


def widest(value: Any) -> Any:
    """Operand as a float64, int64 or bool tensor; caches as they are."""
    if isinstance(value, CacheValue):
        return value
    kind = {"i": np.int64, "u": np.int64, "b": np.bool_}.get(value.dtype.kind, np.float64)
    return torch.from_numpy(value.astype(kind))


def close(got: np.ndarray, want: Any, op: str, operands: list[Any], attrs: Any, type_: TensorType) -> None:
    with np.errstate(all="ignore"):
        rounded = np.asarray(want).astype(np_dtype(type_.dtype))
        limits = tolerance.for_op(op, operands, attrs, type_.dtype)
        np.testing.assert_allclose(got.astype(np.float64), rounded.astype(np.float64), **limits)


def test_every_op_has_an_independent_formulation() -> None:
    assert set(OPS) - BY_NAME == set(independent.RESULTS)


def test_every_op_has_samples_and_a_doc_line() -> None:
    assert {op for _, op, _ in op_samples()} == set(OPS) - {"input", "param"}
    assert all(d.doc.endswith(".") and "\n" not in d.doc for _, d in OPS.items())


def test_every_op_has_a_builder_function() -> None:
    assert [op for op in OPS if not callable(getattr(b, op, None))] == []


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_reference_equals_independent(op: str, sample: Sample) -> None:
    function, operands = sample_function(op, sample), sample_operands(op, sample)
    (got,) = run(function, operands)
    attrs = function.outputs[0].attrs
    want = independent.RESULTS[op]([widest(x) for x in operands], attrs)
    if isinstance(got, CacheValue):
        layer = attrs["layer"]
        fields = [got[name][layer] for name in LAYER_FIELDS if got[name]]
        assert len(fields) == len(want)
        for a, c in zip(fields, want, strict=True):
            np.testing.assert_array_equal(a, c)
        return
    assert isinstance(got, np.ndarray)
    close(got, want, op, operands, attrs, function.outputs[0].tensor)


CASTS = [pytest.param(sample, id=id_) for id_, op, sample in op_samples() if op == "cast"]


@pytest.mark.parametrize("sample", CASTS)
def test_cast_equals_torch_exactly(sample: Sample) -> None:
    (x,) = sample_operands("cast", sample)
    assert isinstance(x, np.ndarray)
    (got,) = run(sample_function("cast", sample), [x])
    source, target = sample.types[0].dtype, sample.attrs["dtype"]  # type: ignore[union-attr]
    # torch has no conversion of 16-bit NumPy arrays of its own; to float64 is exact.
    tensor = torch.from_numpy(x.astype(np.float64 if source.is_float else x.dtype)).to(TORCH[source.name])
    want = tensor.to(TORCH[target.name])
    want = want.to(torch.float64).numpy() if target in (f16, bf16) else want.numpy()
    np.testing.assert_array_equal(np.asarray(got).astype(want.dtype), want)


def _formulas() -> dict[str, Any]:
    """Plain Python for the formulas of the samples: element at an index, from float64 operands."""

    def silu(x: float) -> float:
        return x / (1 + np.exp(-x))

    return {
        "a0[i0, i1] * 2.0 + exp(a1[i1])": lambda a, i: a[0][i] * 2.0 + np.exp(a[1][i[1]]),
        "sum(k < 16, a0[i0, k] * a1[k, i1])": lambda a, i: a[0][i[0]] @ a[1][:, i[1]],
        "a0[i1, i0]": lambda a, i: a[0][i[1], i[0]],
        "select(i0 >= i1, 0.0, -1e9)": lambda a, i: 0.0 if i[0] >= i[1] else -1e9,
        "a0[max(i0 - 1, 0), i1] + a0[min(i0 + 1, 4), i1]": lambda a, i: (
            a[0][max(i[0] - 1, 0), i[1]] + a[0][min(i[0] + 1, 4), i[1]]
        ),
        "a0[a1[i0], i1 // 2] * (i1 % 2 + 1)": lambda a, i: a[0][int(a[1][i[0]]), i[1] // 2] * (i[1] % 2 + 1),
        "i0 * 10 + i1": lambda a, i: i[0] * 10 + i[1],
        "a0[i0] > 0 and not (a0[i0] > 1)": lambda a, i: 0 < a[0][i] <= 1,
        "a0[i0, i1] / sum(k < 4, sum(l < 3, abs(a0[k, l]) + 1))": lambda a, i: (
            a[0][i] / (np.abs(a[0]).sum() + a[0].size)
        ),
        "reduce_max(k < 5, a0[i0, k]) - reduce_min(k < 5, a0[i0, k])": lambda a, i: (
            a[0][i[0]].max() - a[0][i[0]].min()
        ),
        "-a0[()] * silu(a1[i0]) ** 2": lambda a, i: -a[0][()] * silu(a[1][i]) ** 2,
        "sum(k < 3, 1.5)": lambda a, i: 4.5,
    }


FORMULAS = [pytest.param(sample, id=id_) for id_, op, sample in op_samples() if op == "tensor_expr"]


@pytest.mark.parametrize("sample", FORMULAS)
def test_tensor_expr_equals_a_loop(sample: Sample) -> None:
    operands = sample_operands("tensor_expr", sample)
    function = sample_function("tensor_expr", sample)
    (got,) = run(function, operands)
    element = _formulas()[sample.attrs["formula"]]
    wide = [np.asarray(x).astype(np.float64) for x in operands]
    want = np.array([element(wide, i) for i in np.ndindex(sample.attrs["shape"])]).reshape(
        sample.attrs["shape"]
    )
    close(np.asarray(got), want, "tensor_expr", operands, sample.attrs, function.outputs[0].tensor)


FUSED = [pytest.param(sample, id=id_) for id_, op, sample in op_samples() if op == "fused"]


@pytest.mark.parametrize("sample", FUSED)
def test_fused_equals_its_body_inlined(sample: Sample) -> None:
    operands = sample_operands("fused", sample)
    body: Function = sample.attrs["body"]
    (inlined,) = run(body, operands)
    (called,) = run(sample_function("fused", sample), operands)
    definition = OPS["fused"]
    direct = definition.reference(operands, definition.complete_attrs(sample.attrs))
    np.testing.assert_array_equal(np.asarray(called), np.asarray(inlined))
    np.testing.assert_array_equal(np.asarray(direct), np.asarray(inlined))


@pytest.mark.parametrize("sample", list(OPS["const"].samples()))
def test_const_is_its_value(sample: Sample) -> None:
    (got,) = run(sample_function("const", sample), [])
    assert got is sample.attrs["value"]


def test_create_kv_cache() -> None:
    (sample,) = OPS["create_kv_cache"].samples()
    (cache,) = run(sample_function("create_kv_cache", sample), [])
    assert isinstance(cache, CacheValue)
    cache.check()
    assert cache.num_pages == 3
    assert cache.num_tokens == 0
    position, frequency = 5, 10000.0 ** (-2 * 1 / 4)
    np.testing.assert_allclose(
        cache.rope_cos[position, 1], np.cos(position * frequency), **tolerance.for_(f16)
    )


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_reference_leaves_operands_alone(op: str, sample: Sample) -> None:
    operands = sample_operands(op, sample)
    before = [x.copy() if isinstance(x, np.ndarray) else [p.copy() for p in x.k_pages] for x in operands]
    run(sample_function(op, sample), operands)
    for old, x in zip(before, operands, strict=True):
        np.testing.assert_array_equal(old, x if isinstance(x, np.ndarray) else x.k_pages)
