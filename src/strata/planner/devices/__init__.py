"""The stacked graph over devices: which device computes which op, from which length on, at what cost."""
