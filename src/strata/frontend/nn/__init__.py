"""Models written as in PyTorch: modules, parameters, layers, and ``export`` to the graph IR.

::

    from strata.frontend import nn
    from strata.frontend.nn import op, spec

    class MLP(nn.Module):
        def __init__(self):
            self.up = nn.Linear(256, 1024)
            self.down = nn.Linear(1024, 256)

        def forward(self, x):
            return self.down(op.silu(self.up(x)))

    module, params = MLP().to("float16").export({"forward": {"x": spec.Tensor(["n", 256], "float16")}})

Modules hold no values: parameters are shapes and dtypes, and the arrays are given when the graph is compiled.
"""

from strata.graph.types import CacheType, RopeMode

from . import expr, op, spec
from .export import Exported, FunctionInfo, export
from .kv_cache import CacheDeclaration, PagedKVCache, cache_record
from .layers import GELU, Embedding, LayerNorm, Linear, ReLU, RMSNorm, SiLU
from .module import Module, ModuleList
from .rope import RopeScaling, RopeType
from .spec import ParamMode
from .tensor import Parameter, Tensor

__all__ = [
    "GELU",
    "CacheDeclaration",
    "CacheType",
    "Embedding",
    "Exported",
    "FunctionInfo",
    "LayerNorm",
    "Linear",
    "Module",
    "ModuleList",
    "PagedKVCache",
    "ParamMode",
    "Parameter",
    "RMSNorm",
    "ReLU",
    "RopeMode",
    "RopeScaling",
    "RopeType",
    "SiLU",
    "Tensor",
    "cache_record",
    "export",
    "expr",
    "op",
    "spec",
]
