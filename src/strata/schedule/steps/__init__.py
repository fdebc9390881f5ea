"""Schedule steps, one file per kind."""

from .loops import Fuse, Parallel, Reorder, Split, Unroll, Vectorize
from .placement import ComputeAt, DecomposeReduction
from .tensorize import Tensorize

__all__ = [
    "ComputeAt",
    "DecomposeReduction",
    "Fuse",
    "Parallel",
    "Reorder",
    "Split",
    "Tensorize",
    "Unroll",
    "Vectorize",
]
