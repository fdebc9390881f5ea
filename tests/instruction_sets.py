"""The x86-64 instruction sets that have a name, and those of them that this machine can run."""

from strata.core.errors import UserError
from strata.runtime.cpu import check_features
from strata.target import TARGETS

LEVELS = ("x86-64", "avx2", "avx2-vnni", "avx512", "avx512-bf16", "avx512-fp16", "avx512-amx")


def is_runnable(name: str) -> bool:
    """Whether this machine has all instructions of a target."""
    try:
        check_features(TARGETS[name].features, name)
    except UserError:
        return False
    return True


RUNNABLE = tuple(filter(is_runnable, LEVELS))
