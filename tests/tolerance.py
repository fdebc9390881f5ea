"""The table of tolerances (``strata.graph.tolerance``) under the name that tests use."""

from strata.graph.tolerance import (
    FUNCTION_ULPS,
    SAMPLE_RMS,
    SMALLEST,
    SUM_FACTOR,
    UNIT_ROUNDOFF,
    Tolerance,
    for_,
    for_model,
    for_op,
    for_quantized_model,
)

__all__ = [
    "FUNCTION_ULPS",
    "SAMPLE_RMS",
    "SMALLEST",
    "SUM_FACTOR",
    "UNIT_ROUNDOFF",
    "Tolerance",
    "for_",
    "for_model",
    "for_op",
    "for_quantized_model",
]
