"""Machines that plans are made for: this one, others, and ones that exist only on paper."""

from .costs import CostFunction, op_cost
from .machine import CPU, GPU, PHU, Converter, Device, Link, Machine, Memory, Part
from .read import machine_names, machine_text, parse_machine, read_machine

__all__ = [
    "CPU",
    "GPU",
    "PHU",
    "Converter",
    "CostFunction",
    "Device",
    "Link",
    "Machine",
    "Memory",
    "Part",
    "machine_names",
    "machine_text",
    "op_cost",
    "parse_machine",
    "read_machine",
]
