"""A model as a workload, from its config alone: no weights are read, none are made."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from strata.core.dtypes import DType, dtype, f16
from strata.core.errors import UserError
from strata.core.weight_format import FormatChoice, WeightFormat
from strata.graph.nodes import Module
from strata.graph.workload import Workload
from strata.graph.works import Phase, check_batch, function_workload
from strata.passes import run_passes

from .config import MAX_CONTEXT_TOKENS, ModelConfig
from .definition import build

E = TypeVar("E", bound=Enum)


class Granularity(Enum):
    """What one work is."""

    OPS = "ops"  # an op of the graph; attention as two products and a softmax
    KERNELS = "kernels"  # a launch of the compiler: a group of fused ops


def model_workload(
    config: ModelConfig,
    phase: Phase | str = Phase.PREFILL,
    batch: int = 1,
    format: FormatChoice | WeightFormat | DType | str | None = None,
    *,
    kv_dtype: str | None = None,
    activations: DType | str | None = None,
    granularity: Granularity | str = Granularity.OPS,
    max_context: int | None = None,
    name: str = "model",
) -> Workload:
    """One run of a model as work, with sizes in ``L``; see :mod:`strata.graph.works`.

    In ``prefill`` each of ``batch`` sequences brings ``L`` tokens, and logits are made for the last one; in
    ``decode`` each brings one token to the ``L`` that are in the KV cache.

    Args:
        config: The model.
        phase: Which run.
        batch: Sequences.
        format: How weights are stored, as for ``build``; default: as the config says if it is of quantised
            weights, else f16.
        kv_dtype: Dtype of keys and values, as for ``build``.
        activations: Store results of a wider float dtype in this one; ``None`` = as the graph does: sums and
            the residual stream in f32.
        granularity: What one work is.
        max_context: Longest sequence in tokens; ``None`` = what the model allows. A larger one asks what a
            run would cost that the model was not made for.
        name: Of the model.

    Raises:
        UserError: an unknown name, or a number out of range.
    """
    phase, granularity = member(Phase, "phase", phase), member(Granularity, "granularity", granularity)
    context = config.max_context if max_context is None else max_context
    if not 1 <= context <= MAX_CONTEXT_TOKENS:
        raise UserError(f"{name}: got a context of {context} tokens; expected 1..{MAX_CONTEXT_TOKENS}")
    check_batch(name, batch)
    stored = dtype(activations) if isinstance(activations, str) else activations
    definition = build(
        config,
        format or config.format or f16,
        max_tokens=batch * context,
        max_batch=batch,
        kv_dtype=kv_dtype,
        functions=(phase.value,),
    )
    function = definition.module[phase.value]
    if granularity is Granularity.KERNELS:
        function = run_passes("default", Module((function,)))[phase.value]
    return function_workload(
        function,
        f"{name} {phase.value}",
        phase=phase,
        batch=batch,
        # A token that is decoded needs a place of its own behind the L that are there.
        max_length=context if phase is Phase.PREFILL else context - 1,
        activations=stored,
    )


def member(kind: type[E], what: str, value: E | str) -> E:
    """``value`` as one of ``kind``.

    Raises:
        UserError: there is none so called.
    """
    try:
        return kind(value)
    except ValueError:
        known = ", ".join(str(m.value) for m in kind)
        raise UserError(f"{what}: got {value!r}; expected one of {known}") from None
