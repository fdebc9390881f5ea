"""Candidates of one product with a weight, as the compiler sees it."""

from strata.core.dims import SymDim
from strata.core.dtypes import DType, f32
from strata.core.weight_format import FormatChoice, parse_format
from strata.graph import builder
from strata.graph.nodes import Function, Module
from strata.graph.types import TensorType
from strata.passes import run_passes
from strata.passes.quantize import quantize_weights
from strata.planner.layouts import choose_layouts
from strata.planner.options import PlanOptions
from strata.planner.stacks import Kernels, StackBuilder
from strata.target import Target


def kernels_of(target: Target, format: str, outputs: int, contracted: int, rows: SymDim) -> Kernels:
    """Of ``[rows, contracted] x [outputs, contracted]``, the weight in ``format``."""
    parsed = parse_format(format)
    dtype = parsed if isinstance(parsed, DType) else f32
    x = builder.input("x", TensorType((rows, contracted), dtype))
    w = builder.param("w", TensorType((outputs, contracted), dtype))
    module = Module((Function("product", (x,), (builder.matmul(x, w, transpose_b=True, out_dtype=f32),)),))
    if not isinstance(parsed, DType):
        module = quantize_weights(module, FormatChoice(parsed))
    module = run_passes("default", module)
    (node,) = [n for n in module.functions[0].nodes if n.op == "fused"]
    stacks = StackBuilder(choose_layouts(module, target), target, PlanOptions(measure=False))
    return stacks.kernels_of(node)
