"""Every op: NumPy reference = machine code, for every schedule that the rules propose on this machine."""

import numpy as np
import pytest
from kernel_cases import Case, cases, scheduled, tiled_cases

from strata.codegen.build import build_image
from strata.loop.nodes import Func
from strata.lower import Binding
from strata.runtime.image import LoadedImage, load_image
from strata.runtime.tensors import as_tensor
from strata.target import detect_host

Item = tuple[Case, Func, tuple[Binding, ...]]


@pytest.fixture(scope="module")
def items() -> list[Item]:
    target = detect_host()
    found = [*cases(), *tiled_cases(target)]
    return [(case, func, bindings) for case in found for func, bindings in scheduled(case, target)]


@pytest.fixture(scope="module")
def image(items: list[Item]) -> LoadedImage:
    return load_image(build_image([func for _, func, _ in items], [], detect_host()).blob, 2)


@pytest.mark.timeout(300)
def test_machine_code_computes_the_reference(items: list[Item], image: LoadedImage) -> None:
    failed = []
    for case, func, bindings in items:

        def run(func: Func, arrays: list[np.ndarray]) -> None:
            image.function(func.name)(*[as_tensor(a) for a in arrays])

        try:
            case.check(func, bindings, run)
        except AssertionError as error:
            failed.append(f"{func.name}: {error}")
    assert not failed, f"{len(failed)} of {len(items)} kernels differ, e.g.\n" + "\n".join(failed[:3])
    assert len(items) > 500
