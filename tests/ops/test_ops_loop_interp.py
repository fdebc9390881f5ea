"""Every op sample: NumPy reference = its loop function: naive, under every proposed schedule, finalised."""

from functools import cache

import numpy as np
import pytest
from kernel_cases import Case, cases, tiled_cases

from strata.core.dtypes import f32, f64, i8
from strata.graph.opdef import OPS
from strata.graph.samples import op_samples
from strata.graph.types import TensorType
from strata.loop.check import LOOP_LOWERED, LOOP_NAIVE, LOOP_SCHEDULED, Stage, check
from strata.loop.interp import run
from strata.loop.nodes import Func
from strata.loop.text import canonical_text
from strata.lower import LOWERINGS
from strata.schedule import apply_trace, finalize, propose
from strata.target import Target, get_target

TARGETS = [get_target(name) for name in ("zen5", "avx2", "avx512-amx")]
# What never reaches lowering: values that are there already, and groups, which are lowered by their bodies.
NOT_LOWERED = {"input", "param", "const", "create_kv_cache", "fused"}


@cache
def cases_by_op() -> dict[str, list[Case]]:
    found: dict[str, list[Case]] = {}
    for case in cases():
        found.setdefault(case.body.name, []).append(case)
    return found


def shuffled(func: Func, arrays: list[np.ndarray]) -> None:
    """Run with the iterations of PARALLEL loops in a random order."""
    run(func, arrays, parallel_seed=7)


def assert_computes(case: Case, func: Func, stage: Stage) -> None:
    check(func, stage)
    case.check(func, case.lowered.bindings, shuffled)


@pytest.mark.parametrize("op", sorted(set(OPS) - NOT_LOWERED))
def test_naive_function_computes_the_reference(op: str) -> None:
    for case in cases_by_op()[op]:
        assert_computes(case, case.lowered.func, LOOP_NAIVE)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("op", sorted(set(OPS) - NOT_LOWERED))
def test_every_schedule_computes_the_reference(op: str, target: Target) -> None:
    found = cases_by_op()[op]
    for case in found if target is TARGETS[0] else found[::3]:
        proposals = propose(case.lowered.func, target)
        assert proposals
        for proposal in proposals:
            scheduled = apply_trace(case.lowered.func, proposal.trace)
            assert_computes(case, scheduled, LOOP_SCHEDULED)
            lowered = finalize(scheduled)
            assert canonical_text(lowered) == canonical_text(proposal.func)
            assert_computes(case, lowered, LOOP_LOWERED)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_tiles_of_quantised_weights_compute_the_reference(target: Target) -> None:
    for case in tiled_cases(target)[:: 1 if target is TARGETS[0] else 4]:
        assert_computes(case, case.lowered.func, LOOP_NAIVE)
        proposals = propose(case.lowered.func, target)
        in_codes = case.body.outputs[0].attrs["activations"] is i8
        if in_codes or target.has_matrix_bf16:
            assert all(p.name.startswith("cpu.qmatmul.") for p in proposals)
        for proposal in proposals:
            assert_computes(case, apply_trace(case.lowered.func, proposal.trace), LOOP_SCHEDULED)
            assert_computes(case, proposal.func, LOOP_LOWERED)


def test_every_op_has_a_lowering() -> None:
    assert set(LOWERINGS) == set(OPS) - NOT_LOWERED


def test_samples_cover_the_dtypes() -> None:
    """Ops that compute have samples in all four float dtypes."""
    floats: dict[str, set[str]] = {}
    for _, op, sample in op_samples():
        found = floats.setdefault(op, set())
        found.update(t.dtype.name for t in sample.types if isinstance(t, TensorType) and t.dtype.is_float)
    for op in ("add", "exp", "gelu", "rms_norm", "layer_norm", "softmax", "matmul", "sum"):
        assert {"f16", "bf16", f32.name, f64.name} <= floats[op], op
