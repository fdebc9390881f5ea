"""The ops, one module per family; importing this package fills the op table (``graph.opdef.OPS``)."""

from . import attention, elementwise, fused, leaf, matmul, quantized, reduce, shape, tensor_expr

__all__ = [
    "attention",
    "elementwise",
    "fused",
    "leaf",
    "matmul",
    "quantized",
    "reduce",
    "shape",
    "tensor_expr",
]
