"""The forward pass that ``nodes``, ``profile`` and ``debug`` look at."""

from __future__ import annotations

import numpy as np

from strata.core.errors import UserError
from strata.engine.forward import ForwardPass, forward_pass
from strata.engine.generate import LanguageModel

DEFAULT_TOKENS = 128


def example_pass(model: LanguageModel, function: str, tokens: int | None) -> ForwardPass:
    """A pass over a sequence of random tokens: right for sizes and times.

    Args:
        model: Whose.
        function: ``decode`` runs the last token of the sequence, ``prefill`` and ``score`` all of them.
        tokens: Length of the sequence; default 128, or what the context holds.

    Raises:
        UserError: no such function, or ``tokens`` out of range.
    """
    count = min(DEFAULT_TOKENS, model.max_context) if tokens is None else tokens
    if not 1 <= count <= model.max_context:
        raise UserError(f"--tokens: got {count}; expected 1 .. {model.max_context}, the context")
    ids = np.random.default_rng(0).integers(0, model.vocab_size, count, dtype=np.int32)
    return forward_pass(model.stepping_program, function, ids, computes_past=False)


def sizes_text(dims: dict[str, int]) -> str:
    """``"n = 1, num_seqs = 1"``: the sizes that choices may depend on."""
    return ", ".join(f"{name} = {value}" for name, value in dims.items() if name in ("n", "num_seqs"))
