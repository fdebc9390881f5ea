"""What goes into the matrices of a model on a few texts: second moments of their inputs, for GPTQ.

The model runs as it is, compiled without fusion, and hooks before its products add up ``X^T X``. A pass
over the texts serves as many weights as fit in memory together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from strata.core.errors import UserError
from strata.engine.generate import LanguageModel
from strata.engine.scoring import score
from strata.engine.tokenizer import Tokenizer
from strata.runtime.records import ArgKind
from strata.runtime.stepping import NodeEvent

# Every op a launch of its own, so that the inputs of products are buffers; no transposed copies of weights.
PIPELINE = "fold_transpose,fuse{max_ops=1}"
DEFAULT_TOKENS = 16384
MIN_TOKENS = 256
MAX_WINDOW_TOKENS = 2048
_FUNCTION = "score"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A model and the token sequences that it is calibrated with.

    Attributes:
        model: Compiled with :data:`PIPELINE`, with float weights.
        sequences: i32 token ids, each at most the model's context.
    """

    model: LanguageModel
    sequences: tuple[np.ndarray, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(map(len, self.sequences))

    def hessians(self, weights: Collection[str]) -> dict[str, np.ndarray]:
        """``X^T X / tokens``, f32 ``[K, K]``, of the inputs of those ``weights`` that are part of a product.

        Args:
            weights: Names of params.

        Raises:
            UserError: as ``engine.scoring.score``.
        """
        sums: dict[str, np.ndarray] = {}
        program = self.model.stepping_program
        for node in program.nodes(_FUNCTION):
            names = [o.name for o in node.inputs if o.place.kind is ArgKind.PARAM]
            if node.op != "matmul" or len(names) != 1 or names[0] not in weights:
                continue

            def add(event: NodeEvent, name: str = names[0]) -> None:
                x = event.inputs[0].astype(np.float32)  # [tokens, K]
                product = x.T @ x
                sums[name] = sums[name] + product if name in sums else product

            program.hook(node, before=add, function=_FUNCTION)
        try:
            for sequence in self.sequences:
                cache, chunk = self.model.cache, self.model.prefill_chunk
                for _ in score(program, cache, sequence, -1, chunk):
                    pass
        finally:
            program.restore(function=_FUNCTION)
        return {name: value / np.float32(self.num_tokens) for name, value in sums.items()}


def calibration_sequences(
    tokenizer: Tokenizer, texts: Iterable[str], window: int, max_tokens: int = DEFAULT_TOKENS
) -> tuple[np.ndarray, ...]:
    """Windows from all texts in turn, until there are ``max_tokens`` of them.

    Args:
        tokenizer: Of the model.
        texts: What the model should be good at.
        window: Most tokens per sequence.
        max_tokens: Most tokens in total.

    Raises:
        UserError: there is too little text.
    """
    windows = [_windows(tokenizer.encode(text), min(window, MAX_WINDOW_TOKENS)) for text in texts]
    found: list[np.ndarray] = []
    left = max_tokens
    for position in range(max(map(len, windows), default=0)):
        for own in windows:
            if position < len(own) and left > 0:
                found.append(own[position][:left])
                left -= len(found[-1])
    if max_tokens - left < min(MIN_TOKENS, max_tokens):
        raise UserError(
            f"calibration: got {max_tokens - left} tokens of text; expected at least {MIN_TOKENS}: "
            f"give more files"
        )
    return tuple(found)


def _windows(ids: Sequence[int], window: int) -> list[np.ndarray]:
    array = np.asarray(ids, np.int32)
    return [array[begin : begin + window] for begin in range(0, len(array), window)]
