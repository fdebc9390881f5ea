"""Machines that plans are made for: this one, others, and ones that exist only on paper."""

from .machine import CPU, GPU, PHU, Converter, Device, Link, Machine, Memory

__all__ = ["CPU", "GPU", "PHU", "Converter", "Device", "Link", "Machine", "Memory"]
