"""Every x86-64 instruction set that this machine has computes the same model."""

import numpy as np
import pytest
import tolerance

from strata.compiler.driver import trace
from strata.core.dtypes import dtype
from strata.core.errors import UserError
from strata.engine.kv_cache import PagedKVCache
from strata.models import build, random_params, shape_config
from strata.runtime.cpu import check_features
from strata.target import TARGETS, get_target

LEVELS = ("x86-64", "avx2", "avx512", "avx512-bf16")
IDS = np.arange(37, dtype=np.int32)


def runnable(name: str) -> bool:
    try:
        check_features(TARGETS[name].features, name)
    except UserError:
        return False
    return True


def scores(format_: str, target: str) -> np.ndarray:
    """Logits of a prompt of 37 tokens and of one decoded token."""
    definition = build(shape_config("tiny"), format_)
    compiled = trace(definition.module, get_target(target), definition.cache_record, definition.config)
    program = compiled.lower().plan().compile().program(random_params(definition), 2)
    cache = PagedKVCache(definition.cache_record, 8, 64, 1)
    cache.add_sequence(0)
    rows = []
    for function, ids in (("score", IDS), ("decode", IDS[:1])):
        rows.append(program[function](ids, cache.begin_forward([0], [len(ids)])).copy())
        cache.end_forward()
    return np.concatenate(rows)


@pytest.mark.parametrize("format_", ["f32", "bf16", "f16"])
def test_instruction_sets_agree(format_: str) -> None:
    levels = [name for name in LEVELS if runnable(name)]
    assert "x86-64" in levels
    expected = scores(format_, "x86-64")
    rms = float(np.sqrt(np.mean(expected**2)))
    for name in levels[1:]:
        limit = tolerance.for_model(dtype(format_), num_layers=2, logit_rms=rms)
        np.testing.assert_allclose(scores(format_, name), expected, **limit, err_msg=name)
