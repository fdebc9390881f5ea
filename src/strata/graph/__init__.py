"""Graph IR: typed SSA over tensors, its op table, text, checker and interpreter."""

# Fills the op table: an op is known as soon as any module of this package is imported.
from . import ops as ops
