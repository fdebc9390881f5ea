"""From logits to the next token: penalties, temperature, filters, one random number.

The order is that of Hugging Face transformers, with the two OpenAI penalties of vLLM after its repetition
penalty::

    logits -> repetition penalty -> frequency and presence penalty -> [greedy: largest]
           -> / temperature -> top-k -> top-p -> min-p -> softmax -> inverse of the cumulative sum at u in [0,
           1)

Each sequence has its own generator: what a sequence draws does not depend on the batch that it runs in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from strata.core.errors import UserError

_FEW = 1024
_BLOCK = 512  # weights that are added up before their sums are: about the root of a large vocabulary


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one request is sampled and when it stops.

    Attributes:
        max_tokens: Most tokens to generate, >= 1; ``None`` = until the context is full.
        temperature: Divisor of the logits, >= 0; 0 = greedy (the filters and the seed are then without
            effect).
        top_k: Keep the k most probable tokens; 0 = all. Equal logits at the border all stay.
        top_p: Keep the smallest set of most probable tokens whose probability reaches this, in (0, 1].
        min_p: Drop tokens less probable than this fraction of the most probable one, in [0, 1).
        repetition_penalty: Logits of tokens in prompt or output are divided (if positive) or multiplied (if
            negative) by this, > 0; 1 = off.
        presence_penalty: Subtracted from the logits of tokens in the output, in [-2, 2].
        frequency_penalty: Subtracted once per occurrence in the output, in [-2, 2].
        seed: Of the sequence's generator, >= 0; ``None`` = from the system.
        stop: Texts that end the output (they are not part of it).
        stop_token_ids: Tokens that end the output, besides the model's end-of-sequence tokens.
        ignore_eos: Go on after end-of-sequence tokens.

    Raises:
        UserError: a value outside of its range; names it and the range.
    """

    max_tokens: int | None = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        self._check("max_tokens", self.max_tokens is None or _int(self.max_tokens, 1), "an integer >= 1")
        self._check("temperature", _real(self.temperature) and self.temperature >= 0, "a number >= 0")
        self._check("top_k", _int(self.top_k, 0), "an integer >= 0 (0 = off)")
        self._check("top_p", _real(self.top_p) and 0 < self.top_p <= 1, "a number in (0, 1]")
        self._check("min_p", _real(self.min_p) and 0 <= self.min_p < 1, "a number in [0, 1)")
        penalty = self.repetition_penalty
        self._check("repetition_penalty", _real(penalty) and penalty > 0, "a number > 0 (1 = off)")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            self._check(name, _real(value) and -2 <= value <= 2, "a number in [-2, 2]")
        self._check("seed", self.seed is None or _int(self.seed, 0), "an integer >= 0")
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        self._check(
            "stop", _all(self.stop, lambda s: isinstance(s, str) and s != ""), "texts that are not empty"
        )
        object.__setattr__(self, "stop", tuple(self.stop))
        self._check("stop_token_ids", _all(self.stop_token_ids, lambda i: _int(i, 0)), "token ids >= 0")
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))

    def _check(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise UserError(f"sampling: {name}: got {getattr(self, name)!r:.60}; expected {expected}")


def _int(value: object, least: int) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least


def _real(value: object) -> bool:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and math.isfinite(value)  # type: ignore[arg-type]


def _all(values: object, good) -> bool:
    return isinstance(values, (tuple, list, set, frozenset)) and all(good(v) for v in values)


def sampling_params(base: SamplingParams | None, options: dict[str, object]) -> SamplingParams:
    """``base`` (the defaults for ``None``) with ``options`` changed.

    Raises:
        UserError: an unknown option (lists those that exist), or a value outside of its range.
    """
    names = [f.name for f in fields(SamplingParams)]
    for name in options:
        if name not in names:
            raise UserError(f"sampling: no option {name!r}; it has {', '.join(names)}")
    start = {} if base is None else {name: getattr(base, name) for name in names}
    return SamplingParams(**{**start, **options})  # type: ignore[arg-type]


class Sampler:
    """Draws the tokens of one sequence; remembers what the penalties need.

    Args:
        params: How.
        prompt_ids: The prompt, for the repetition penalty.
        vocab_size: Columns of the logits.
    """

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int], vocab_size: int) -> None:
        self.params = params
        self.vocab_size = vocab_size
        self._random = np.random.default_rng(params.seed)
        self._penalises = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (
            1,
            0,
            0,
        )
        self._counts = np.zeros(vocab_size if self._penalises else 0, np.int32)  # in the output
        self._seen = np.zeros(len(self._counts), bool)  # in prompt or output
        if self._penalises:
            self._seen[np.asarray(prompt_ids, np.int64)] = True

    def sample(self, logits: np.ndarray, best: int | None = None) -> int:
        """The next token.

        Args:
            logits: f32 ``[vocab]``; not changed.
            best: ``logits.argmax()``, where it is known.

        Raises:
            UserError: the largest logit is not finite.
        """
        if self.params.temperature == 0:
            scores = self._penalised(logits) if self._penalises else logits
            known = None if self._penalises else best
            token = int(scores.argmax()) if known is None else known  # NaN wins
            _check_score(float(scores[token]))
        else:
            tokens, probabilities = self._filtered(logits)
            token = int(tokens[_drawn(probabilities, self._random.random())])
        if self._penalises:
            self._counts[token] += 1
            self._seen[token] = True
        return token

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The distribution that :meth:`sample` would draw from now: f64 ``[vocab]``, sums to 1."""
        out = np.zeros(self.vocab_size)
        if self.params.temperature == 0:
            out[int(self._penalised(logits).argmax())] = 1
        else:
            tokens, probabilities = self._filtered(logits)
            out[tokens] = probabilities / probabilities.sum()
        return out

    def _penalised(self, logits: np.ndarray) -> np.ndarray:
        """A copy of the logits with the penalties applied, f32."""
        scores = logits.astype(np.float32)
        if not self._penalises:
            return scores
        params = self.params
        if params.repetition_penalty != 1:
            seen = scores[self._seen]
            factor = np.float32(params.repetition_penalty)
            scores[self._seen] = np.where(seen > 0, seen / factor, seen * factor)
        if params.presence_penalty or params.frequency_penalty:
            counts = self._counts
            scores -= np.float32(params.frequency_penalty) * counts
            scores -= np.float32(params.presence_penalty) * (counts > 0)
        return scores

    def _filtered(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens that are left and their weights (f64, not normalised, the largest is 1)."""
        params = self.params
        scores = self._penalised(logits)
        top = float(scores.max())  # NaN is the maximum of what it is in
        _check_score(top)
        if 0 < params.top_k < len(scores):
            border = np.partition(scores, len(scores) - params.top_k)[len(scores) - params.top_k]
            tokens = np.flatnonzero(scores >= border)
            kept = scores[tokens]
        else:
            tokens, kept = np.arange(len(scores)), scores
        with np.errstate(over="ignore"):  # a tiny temperature: all but the largest become 0
            weights = kept.astype(np.float64)  # one array for all steps: new pages cost more than arithmetic
            weights -= top
            weights /= params.temperature
            np.exp(weights, out=weights)
        if params.top_p < 1:
            chosen = _nucleus(weights, params.top_p)
            tokens, weights = tokens[chosen], weights[chosen]
        if params.min_p > 0:
            likely = weights >= params.min_p
            tokens, weights = tokens[likely], weights[likely]
        return tokens, weights


def _drawn(weights: np.ndarray, part: float) -> int:
    """The first index up to which (inclusive) the weights add up to more than ``part`` of the total.

    Sums of blocks come first, then those within one: of a running sum, every addition waits for the last.

    Args:
        weights: f64, at least 0, not all 0.
        part: In ``[0, 1)``.
    """
    total = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), _BLOCK)))
    goal = part * total[-1]
    block = int(np.searchsorted(total, goal, side="right"))
    inside = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK])
    rest = goal - (total[block - 1] if block else 0.0)
    # A running sum may be rounded otherwise than the sum; an index without weight is never drawn.
    rest = min(rest, np.nextafter(inside[-1], 0.0))
    return block * _BLOCK + int(np.searchsorted(inside, rest, side="right"))


def _nucleus(weights: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the largest weights whose sum reaches ``top_p`` of the total, largest first."""
    target = top_p * weights.sum()
    if len(weights) > 2 * _FEW:  # a whole vocabulary is slow to sort, and its head is nearly always enough
        head = np.argpartition(-weights, _FEW)[:_FEW]
        if weights[head].sum() < target:
            head = np.arange(len(weights))
    else:
        head = np.arange(len(weights))
    order = head[np.argsort(-weights[head], kind="stable")]
    before = np.cumsum(weights[order]) - weights[order]  # weight of all more probable tokens
    return order[: max(1, int(np.count_nonzero(before < target)))]


def _check_score(best: float) -> None:
    if not math.isfinite(best):
        raise UserError(
            f"sampling: the best logit is {best}; the model's weights are damaged or overflow; "
            "try format bf16 or f32"
        )
