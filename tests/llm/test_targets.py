"""Every x86-64 instruction set that this machine has computes the same model."""

from functools import cache

import numpy as np
import pytest
import tolerance
from instruction_sets import RUNNABLE

from strata.compiler.driver import trace
from strata.core.dtypes import bf16, f16, f32
from strata.engine.kv_cache import PagedKVCache
from strata.models import build, random_params, shape_config
from strata.target import TARGETS, detect_host, get_target

IDS = np.arange(37, dtype=np.int32)


def scores(format_: str, target: str) -> np.ndarray:
    """Logits of a prompt of 37 tokens and of one decoded token."""
    definition = build(shape_config("tiny"), format_)
    compiled = trace(definition.module, get_target(target), definition.cache_record, definition.config)
    program = compiled.lower().plan().compile().program(random_params(definition), 2)
    cache = PagedKVCache(definition.cache_record, 8, 64, 1)
    cache.add_sequence(0)
    rows = []
    for function, ids in (("score", IDS), ("decode", IDS[:1])):
        outputs = program[function](ids, cache.begin_forward([0], [len(ids)]))
        rows.append((outputs if function == "score" else outputs[0]).copy())
        cache.end_forward()
    return np.concatenate(rows)


# Of quantised models, an activation may fall to the other side between two codes: an error of one in 127,
# which is less than that of rounding all of them to bf16.
PRECISION = {"f32": f32, "bf16": bf16, "f16": f16, "int8": bf16, "int4": bf16}


@cache
def expected_scores(format_: str) -> np.ndarray:
    return scores(format_, "x86-64")


@pytest.mark.parametrize("level", RUNNABLE[1:])
@pytest.mark.parametrize("format_", list(PRECISION))
def test_instruction_sets_agree(format_: str, level: str) -> None:
    expected = expected_scores(format_)
    rms = float(np.sqrt(np.mean(expected**2)))
    limit = tolerance.for_model(PRECISION[format_], num_layers=2, logit_rms=rms)
    np.testing.assert_allclose(scores(format_, level), expected, **limit)


def test_levels() -> None:
    """The oldest runs everywhere; what this machine detects is made of the levels."""
    assert RUNNABLE[0] == "x86-64"
    host = detect_host()
    assert {f for name in RUNNABLE for f in TARGETS[name].features} <= set(host.features)
