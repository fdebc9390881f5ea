"""One forward pass over a KV cache of its own, for looking at: step through it, time it, compare it.

Nothing of a model in use is disturbed: the pass has its own pool of pages, as large as its sequence needs. It
may be run again and again; every time it writes the same keys and values to the same slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from strata.core.errors import UserError

from .kv_cache import BatchView, PagedKVCache

if TYPE_CHECKING:
    from strata.runtime.program import Program
    from strata.runtime.stepping import Run


@dataclass(frozen=True, slots=True)
class ForwardPass:
    """A call of a model function, ready to be made.

    Attributes:
        program: Compiled model.
        function: ``prefill``, ``decode`` or ``score``.
        ids: i32 ``[n]``: tokens of this pass, the last ones of ``all_ids``, for each sequence.
        all_ids: i32: the whole sequence.
        cache: Pool that only this pass uses.
        view: Where the tokens of the pass go.
    """

    program: Program
    function: str
    ids: np.ndarray
    all_ids: np.ndarray
    cache: PagedKVCache
    view: BatchView

    def __call__(self) -> np.ndarray:
        """Logits by the native entry; valid until the next call."""
        outputs = self.program[self.function](self.ids, self.view)
        return outputs[0] if isinstance(outputs, tuple) else outputs

    def step(self, keep: Any = ()) -> Run:
        """A run that launches node by node; see ``Program.step``."""
        return self.program.step(self.function, self.ids, self.view, keep=keep)

    @property
    def past_tokens(self) -> int:
        """Tokens of a sequence before those of the pass, which the cache holds."""
        return len(self.all_ids) - len(self.ids) // len(self.cache.sequences)

    @property
    def dims(self) -> dict[str, int]:
        """Values of the symbolic dims of this pass."""
        return self.program[self.function].bind((self.ids, self.view)).sizes.dims

    @property
    def work_dims(self) -> dict[str, int]:
        """The same for counting work: the context is what the sequence has, not what it could have."""
        return {**self.dims, "max_context": len(self.all_ids)}


def forward_pass(
    program: Program,
    function: str,
    token_ids: Sequence[int] | np.ndarray,
    *,
    computes_past: bool = True,
    sequences: int = 1,
) -> ForwardPass:
    """Prepare the last forward pass over a sequence.

    Args:
        program: Compiled language model.
        function: ``decode`` runs the last token, any other function as many as fit in one pass.
        token_ids: The sequence.
        computes_past: Compute keys and values of what comes before; else they are 0, which is as good for
            sizes and times.
        sequences: So many of the same sequence at once.

    Raises:
        UserError: no such function, it takes no KV cache, there are no tokens, or too many for one pass.
    """
    ids = np.array(token_ids, np.int32)
    if ids.ndim != 1 or not len(ids):
        raise UserError(f"{function}: got {ids.shape} tokens; expected a list of at least one")
    compiled = program[function]
    record = program.record.cache
    if record is None or all(spec.dtype != "cache" for spec in compiled.record.inputs):
        raise UserError(f"{function}: takes no KV cache; step it with Program.step")
    cache = PagedKVCache(record, sequences * -(-len(ids) // record.page_size), len(ids), sequences)
    all_of_them = list(range(sequences))
    for number in all_of_them:
        cache.add_sequence(number)
    chunk = program["prefill"].dim_range("n")[1]
    mine = 1 if function == "decode" else (len(ids) - 1) % compiled.dim_range("n")[1] + 1
    past = len(ids) - mine
    for begin in range(0, past, chunk):
        part = ids[begin : min(begin + chunk, past)]
        for number in all_of_them:
            view = cache.begin_forward([number], [len(part)])
            if computes_past:
                program["prefill"](part, view)
            cache.end_forward()
    most = compiled.dim_range("n")[1]
    if sequences * mine > most:
        raise UserError(f"{function}: got {sequences * mine} tokens for one pass; expected at most {most}")
    view = cache.begin_forward(all_of_them, [mine] * sequences)
    return ForwardPass(program, function, np.tile(ids[past:], sequences), ids, cache, view)
