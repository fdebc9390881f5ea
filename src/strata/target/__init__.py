"""Machines as frozen data: instruction sets, caches, bandwidths, peaks; detection of this one."""

from .detect import detect_host, host_features
from .machine import Target, parse_target
from .machines import TARGETS, get_target

__all__ = ["TARGETS", "Target", "detect_host", "get_target", "host_features", "parse_target"]
