"""A small network for tests of whole programs."""

import numpy as np

from strata.core.dims import SymDim
from strata.graph import builder as b
from strata.graph.nodes import Function, Module

N = SymDim("n", 1, 64)


def mlp(width: int = 32) -> Module:
    """``forward(x: f32[n, 24]) = gelu(norm(x) @ up.T) @ down.T + x``: a few launches, with memory between."""
    x = b.input("x", b.tensor_type((N, 24), "f32"))
    norm = b.rms_norm(x, b.param("norm", b.tensor_type((24,), "f32")), eps=1e-5)
    up = b.matmul(norm, b.param("up", b.tensor_type((width, 24), "f32")), transpose_b=True)
    down = b.matmul(b.gelu(up), b.param("down", b.tensor_type((24, width), "f32")), transpose_b=True)
    return Module((Function("forward", (x,), (b.add(down, x),)),))


def mlp_params(width: int = 32) -> dict[str, np.ndarray]:
    """Parameters of :func:`mlp`."""
    rng = np.random.default_rng(0)
    shapes = {"norm": (24,), "up": (width, 24), "down": (24, width)}
    return {name: rng.normal(size=shape, scale=0.3).astype(np.float32) for name, shape in shapes.items()}
