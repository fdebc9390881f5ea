"""Graph op or fused group to loop function."""

from . import attention, elementwise, formula, matmul, quantized, reduce, shape  # noqa: F401  (fill the table of lowerings)
from .blocked import has_blocks
from .context import LOWERINGS, Binding
from .group import Emit, Lowered, lower_group
from .matrix_unit import multiplies_pieces

__all__ = [
    "LOWERINGS",
    "Binding",
    "Emit",
    "Lowered",
    "has_blocks",
    "lower_group",
    "multiplies_pieces",
]
