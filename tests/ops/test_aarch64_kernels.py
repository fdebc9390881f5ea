"""Kernels of every family on the AArch64 levels, in an emulator: NumPy reference = machine code."""

import pytest
from emulated import CPUS, EmulatedImage, Emulator, needs_qemu
from kernel_cases import Case, make_case, scheduled

from strata.codegen.build import build_image
from strata.graph.samples import op_samples
from strata.lower import LOWERINGS
from strata.runtime.tensors import as_tensor
from strata.target import get_target

# What decides the speed of a model, and what the levels compute by different instructions.
HEAVY = (
    "matmul",
    "quantized_matmul",
    "paged_attention",
    "rms_norm",
    "layer_norm",
    "softmax",
    "rope",
    "kv_append",
)
DIFFERENT = ("matmul", "quantized_matmul", "cast")
MOST_HEAVY, MOST_OTHERS = 8, 2


def samples_of(ops: tuple[str, ...]) -> list[Case]:
    """Cases of each op, evenly picked of all of its samples."""
    found: dict[str, list[Case]] = {}
    for name, op, sample in op_samples():
        if op in ops:
            found.setdefault(op, []).append((name, op, sample))
    out = []
    for op, samples in found.items():
        step = max(1, len(samples) // (MOST_HEAVY if op in HEAVY else MOST_OTHERS))
        out += [make_case(name.replace("-", "_"), op, sample) for name, op, sample in samples[::step]]
    return out


@needs_qemu
@pytest.mark.parametrize("level", list(CPUS))
def test_kernels_compute_the_reference(level, tmp_path):
    target = get_target(level)
    cases = samples_of(tuple(LOWERINGS) if level == "neon" else DIFFERENT)
    items = [(case, func, bindings) for case in cases for func, bindings in scheduled(case, target)]
    image = EmulatedImage(
        Emulator(CPUS[level], tmp_path), build_image([func for _, func, _ in items], [], target)
    )
    failed = []
    for case, func, bindings in items:

        def run(func, arrays):
            image.function(func.name)(*[as_tensor(a) for a in arrays])

        try:
            case.check(func, bindings, run)
        except AssertionError as error:
            failed.append(f"{func.name}: {error}")
    assert not failed, f"{len(failed)} of {len(items)} kernels differ, e.g.\n" + "\n".join(failed[:3])
    assert len(items) > (150 if level == "neon" else 20)
