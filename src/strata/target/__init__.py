"""Machines as frozen data: instruction sets, caches, bandwidths, peaks; detection of this one."""

from .detect import detect_host, host_features, permit_matrix_unit
from .machine import CACHE_LINE_BYTES, Target, parse_target
from .machines import TARGETS, get_target

__all__ = [
    "CACHE_LINE_BYTES",
    "TARGETS",
    "Target",
    "detect_host",
    "get_target",
    "host_features",
    "parse_target",
    "permit_matrix_unit",
]
