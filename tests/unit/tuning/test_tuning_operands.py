"""Operands of measured kernels: consistent cache views, copies of weights, guarded memory."""

from dataclasses import replace

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, bool_, f16, f32, i32, u8
from strata.core.errors import UserError
from strata.loop.nodes import Buffer, Func, Seq
from strata.planner.tuning.operands import CACHES, _index_field, guarded, inputs, is_intact, results
from strata.runtime.tensors import address
from strata.target.machines import TARGETS

N, SEQS, WIDTH, PAGES = (SymDim(k, 1, 1 << 20) for k in ("n", "num_seqs", "table_width", "num_pages"))
TARGET = replace(TARGETS["zen4"], l3_bytes=1 << 16)
SIZES = {"n": 10, "num_seqs": 2, "table_width": 4, "num_pages": 8, "max_context": 64}


def func(*params: Buffer) -> Func:
    return Func("f", (*params, Buffer("y", (N,), f32)), Seq(()))


def values(name: str, shape: tuple, sizes=SIZES) -> np.ndarray:
    fields = {"p": name}
    ((array,),) = inputs(func(Buffer("p", shape, i32)), sizes, fields, (), {}, TARGET)
    return array


def test_tokens_are_the_last_ones_of_sequences_of_equal_length():
    assert values("seq_ids", (N,)).tolist() == [0] * 5 + [1] * 5
    assert values("positions", (N,)).tolist() == [59, 60, 61, 62, 63] * 2
    assert values("last_rows", (SEQS,)).tolist() == [4, 9]


def test_pages_are_inside_the_pool_and_slots_are_distinct():
    table = values("page_table", (SEQS, WIDTH))
    assert table.shape == (2, 4)
    assert sorted(table.reshape(-1)) == list(range(8))
    slots = values("slots", (N,))
    assert len(set(slots.tolist())) == 10
    assert slots.max() < 8 * 16


def test_one_token_of_one_sequence():
    sizes = SIZES | {"n": 1, "num_seqs": 1}
    assert values("positions", (N,), sizes).tolist() == [63]
    assert values("last_rows", (SEQS,), sizes).tolist() == [0]


def test_weights_come_in_copies_that_exceed_the_cache():
    x, w = Buffer("x", (N, 64), f32), Buffer("w", (32, 64), bf16)
    activations, weights = inputs(func(x, w), SIZES, {}, ("w",), {}, TARGET)
    assert len(activations) == 1
    assert len(weights) * 32 * 64 * 2 >= CACHES * TARGET.l3_bytes
    assert all(np.array_equal(weights[0], other) for other in weights)
    assert len({a.__array_interface__["data"][0] for a in weights}) == len(weights)
    assert activations[0].shape == (10, 64)
    assert np.isfinite(activations[0]).all()


def test_other_integers_are_small_and_bools_are_bools():
    ids, flags = inputs(func(Buffer("a", (N,), i32), Buffer("b", (N,), bool_)), SIZES, {}, (), {}, TARGET)
    assert 0 <= ids[0].min() <= ids[0].max() < 100
    assert set(flags[0].view(np.uint8).tolist()) <= {0, 1}


def test_results_start_as_what_nobody_computes():
    (y,) = results(func(), SIZES, 1)
    assert np.isnan(y).all()
    assert is_intact(y)


def test_a_write_behind_the_end_shows():
    array = guarded((3, 5), "float32")
    assert is_intact(array)
    start = array.__array_interface__["data"][0]
    assert start % 64 == 0
    array.base[array.base.size - 4000] = 0
    assert not is_intact(array)


def test_a_field_that_nobody_knows_is_an_error():
    with pytest.raises(UserError, match="got cache field 'colour'; expected one of positions"):
        _index_field("colour", (3,), SIZES)


def test_parts_of_a_weight_share_memory():
    codes, scales = Buffer("c", (2, 3, 96), u8), Buffer("s", (2, 3, 48), f16)
    found = inputs(func(codes, scales), {}, {}, ("c", "s"), {"s": "c"}, TARGET)
    assert len(found[0]) == len(found[1]) > 1
    for one, other in zip(*found, strict=True):
        assert (one.shape, other.shape) == (codes.shape, scales.shape)
        assert address(one) == address(other)
    assert np.isfinite(found[1][0].astype(np.float32)).all()
    assert found[1][0].std() == pytest.approx(1, abs=0.3)  # scales as they are, any bytes for codes
    assert len({address(copy) for copy in found[0]}) == len(found[0])
