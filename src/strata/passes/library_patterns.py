"""Patterns of what the vendor libraries compute: ``partition{patterns=["openblas."]}``.

The library multiplies; what follows in the pattern is computed in the same launch by generated loops. Larger
patterns come first, so that they win.
"""

from __future__ import annotations

from strata.core.dtypes import DType, bf16, f32

from .patterns import NodePattern, any_, is_op, register_pattern


def _product(*dtypes: DType) -> NodePattern:
    """``x @ w`` or ``x @ transpose(w)`` of these dtypes."""
    x, w = any_("x").has_dtype(*dtypes), any_("w").has_dtype(*dtypes)
    return is_op("matmul")(x, w) | is_op("matmul")(x, w.T)


_ACTIVATION = is_op("relu", "gelu", "silu")

register_pattern("openblas.matmul_bias_act", _product(f32).has_dtype(f32) + any_("bias") >> _ACTIVATION)
register_pattern("openblas.matmul_bias", _product(f32).has_dtype(f32) + any_("bias"))
register_pattern("openblas.matmul", _product(f32).has_dtype(f32))
register_pattern("onednn.matmul_bias_act", _product(f32, bf16) + any_("bias") >> _ACTIVATION)
register_pattern("onednn.matmul_bias", _product(f32, bf16) + any_("bias"))
register_pattern("onednn.matmul", _product(f32, bf16))
