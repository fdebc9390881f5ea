"""Ways into the graph IR: the `nn` modules and readers of other formats."""

from . import nn

__all__ = ["nn"]
