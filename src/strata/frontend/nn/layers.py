"""The layers that models are made of."""

from __future__ import annotations

from strata.core.dtypes import DType
from strata.core.dtypes import dtype as _dtype
from strata.core.errors import ShapeError

from . import op, trace
from .module import Module
from .tensor import Parameter, Tensor


class Linear(Module):
    """``x @ weight.T + bias``.

    Sums are in f32. An input of another dtype than the weight is rounded to the weight's; the result has the
    dtype of the input, or ``out_dtype``. So f32 activations stay f32 between 16-bit weights, and f16
    activations stay f16.

    Args:
        in_features: Last dim of the input.
        out_features: Last dim of the result.
        bias: Whether to add a bias.
        dtype: Dtype of the weight; f32 by default.
        out_dtype: Dtype of the result; that of the input by default.
        bias_dtype: Dtype of the bias; that of the weight by default.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: DType | str | None = None,
        out_dtype: DType | str | None = None,
        bias_dtype: DType | str | None = None,
    ) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self.out_dtype = None if out_dtype is None else _dtype(out_dtype)
        self.weight = Parameter((out_features, in_features), dtype)
        self.bias = Parameter((out_features,), bias_dtype or dtype) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """``x[..., in_features]`` to ``[..., out_features]``."""
        _check_last("Linear", x, self.in_features, "in_features")
        out = self.out_dtype or x.dtype
        y = op.matmul(op.astype(x, self.weight.dtype), op.permute_dims(self.weight), out_dtype=out)
        return y if self.bias is None else op.add(y, op.astype(self.bias, out))


class Embedding(Module):
    """Rows of a table by token id.

    Args:
        num_embeddings: Rows.
        embedding_dim: Elements of a row.
        dtype: Dtype of the table; f32 by default.
        out_dtype: Dtype of the result; that of the table by default.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        dtype: DType | str | None = None,
        out_dtype: DType | str | None = None,
    ) -> None:
        self.out_dtype = None if out_dtype is None else _dtype(out_dtype)
        self.weight = Parameter((num_embeddings, embedding_dim), dtype)

    def forward(self, ids: Tensor) -> Tensor:
        """``ids[...]`` (i32 or i64) to ``[..., embedding_dim]``."""
        rows = op.take(self.weight, ids)
        return op.astype(rows, self.out_dtype or rows.dtype)

    def as_head(self, x: Tensor, out_dtype: DType | str | None = None, path: str = "") -> Tensor:
        """``x @ weight.T``: the table used as the output projection (tied embeddings).

        Args:
            x: ``[..., embedding_dim]``.
            out_dtype: Dtype of the result; that of ``x`` by default.
            path: What the product is called in graphs and plans; by default, as the table.
        """
        active = trace.require("Embedding")
        own = active.paths.get(id(self), trace.path())
        with trace.scope(own):
            _check_last("Embedding.as_head", x, self.weight.shape[1], "embedding_dim")
        with trace.scope(path or own):
            return op.matmul(
                op.astype(x, self.weight.dtype), op.permute_dims(self.weight), out_dtype or x.dtype
            )


class RMSNorm(Module):
    """``x / sqrt(mean(x^2) + eps) * weight`` over the last axis, in f32.

    Args:
        size: Last dim of the input.
        eps: Added to the mean square.
        dtype: Dtype of the weight; f32 by default.
    """

    def __init__(self, size: int, eps: float = 1e-5, dtype: DType | str | None = None) -> None:
        self.size = size
        self.eps = eps
        self.weight = Parameter((size,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x[..., size]`` to the same shape and dtype."""
        _check_last("RMSNorm", x, self.size, "size")
        return op.rms_norm(x, self.weight, self.eps)


class LayerNorm(Module):
    """``(x - mean) / sqrt(variance + eps) * weight + bias`` over the last axis, in f32.

    Args:
        size: Last dim of the input.
        eps: Added to the variance.
        dtype: Dtype of weight and bias; f32 by default.
    """

    def __init__(self, size: int, eps: float = 1e-5, dtype: DType | str | None = None) -> None:
        self.size = size
        self.eps = eps
        self.weight = Parameter((size,), dtype)
        self.bias = Parameter((size,), dtype)

    def forward(self, x: Tensor) -> Tensor:
        """``x[..., size]`` to the same shape and dtype."""
        _check_last("LayerNorm", x, self.size, "size")
        return op.layer_norm(x, self.weight, self.bias, self.eps)


class SiLU(Module):
    """``x * sigmoid(x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return op.silu(x)


class GELU(Module):
    """``x`` times the normal distribution function.

    Args:
        approximate: ``"none"`` or ``"tanh"``.
    """

    def __init__(self, approximate: str = "none") -> None:
        self.approximate = approximate

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return op.gelu(x, self.approximate)


class ReLU(Module):
    """``max(x, 0)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return op.relu(x)


def _check_last(layer: str, x: Tensor, size: int, what: str) -> None:
    if x.ndim == 0 or x.shape[-1] != size:
        raise trace.fail(
            ShapeError, f"{layer}: input {x.node.type} has last dim {_last(x)}; expected {what} {size}"
        )


def _last(x: Tensor) -> object:
    return x.shape[-1] if x.ndim else "none"
