"""Schedule steps, one file per kind."""

from .caches import CacheRead, CacheWrite, SetScope
from .inline import ComputeInline, ReverseComputeInline
from .kinds import Annotate, Bind, Parallel, Prefetch, Unroll, Vectorize
from .loops import Fuse, Pad, Reorder, Split, Tile
from .placement import ComputeAt
from .reductions import DecomposeReduction, RFactor
from .reverse import ReverseComputeAt
from .tensorize import Tensorize

__all__ = [
    "Annotate",
    "Bind",
    "CacheRead",
    "CacheWrite",
    "ComputeAt",
    "ComputeInline",
    "DecomposeReduction",
    "Fuse",
    "Pad",
    "Parallel",
    "Prefetch",
    "RFactor",
    "Reorder",
    "ReverseComputeAt",
    "ReverseComputeInline",
    "SetScope",
    "Split",
    "Tensorize",
    "Tile",
    "Unroll",
    "Vectorize",
]
