"""Machines as frozen data, and detection of this one."""
