"""Schedule steps, one file per kind."""

from .caches import CacheRead, CacheWrite, SetScope, Widen
from .inline import ComputeInline, ReverseComputeInline
from .kinds import Annotate, Bind, Parallel, Prefetch, Unroll, Vectorize
from .loops import Fuse, Merge, Pad, Reorder, Split, Tile
from .placement import ComputeAt
from .reductions import DecomposeReduction, RFactor, StartAtZero
from .reverse import ReverseComputeAt
from .tensorize import MatrixUnit, Tensorize
from .trim import Trim

__all__ = [
    "Annotate",
    "Bind",
    "CacheRead",
    "CacheWrite",
    "ComputeAt",
    "ComputeInline",
    "DecomposeReduction",
    "Fuse",
    "MatrixUnit",
    "Merge",
    "Pad",
    "Parallel",
    "Prefetch",
    "RFactor",
    "Reorder",
    "ReverseComputeAt",
    "ReverseComputeInline",
    "SetScope",
    "Split",
    "StartAtZero",
    "Tensorize",
    "Tile",
    "Trim",
    "Unroll",
    "Vectorize",
    "Widen",
]
