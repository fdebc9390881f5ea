"""What photonic units compute: few bits and noise, as code that runs."""

from .photonic import PhotonicNumerics, RangeOf, analog_range, photonic_matmul, quantize
from .precision import with_bits, with_precision
from .products import Product, product_names, run_with_products

__all__ = [
    "PhotonicNumerics",
    "Product",
    "RangeOf",
    "analog_range",
    "photonic_matmul",
    "product_names",
    "quantize",
    "run_with_products",
    "with_bits",
    "with_precision",
]
