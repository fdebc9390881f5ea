"""How much a benchmark runs."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from strata.core.errors import UserError


class Phase(Enum):
    """What is timed."""

    PREFILL = "prefill"
    DECODE = "decode"
    BATCH = "batch"  # decode of several sequences


@dataclass(frozen=True, slots=True)
class Amounts:
    """Amounts, in tokens.

    Attributes:
        prompt: Of the prefill.
        context: In the cache when decode begins.
        decode: Steps of decode per repetition.
        repeats: Repetitions of each phase.
        batch: Sequences of a further decode; 1 = none.

    Raises:
        UserError: one of them is below 1.
    """

    prompt: int = 512
    context: int = 128
    decode: int = 32
    repeats: int = 5
    batch: int = 1

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise UserError(f"--{name}: got {getattr(self, name)}; expected at least 1")

    @property
    def max_tokens(self) -> int:
        """Longest sequence that occurs."""
        return max(self.prompt, self.context + self.decode)

    @property
    def rounds(self) -> tuple[tuple[Phase, ...], ...]:
        """What is timed; phases that are compared with each other together."""
        decode = (Phase.DECODE, Phase.BATCH) if self.batch > 1 else (Phase.DECODE,)
        return ((Phase.PREFILL,), decode)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """What is timed."""
        return tuple(phase for phases in self.rounds for phase in phases)

    def tokens(self, phase: Phase) -> int:
        """Tokens that one repetition computes."""
        match phase:
            case Phase.PREFILL:
                return self.prompt
            case Phase.DECODE:
                return self.decode
            case Phase.BATCH:
                return self.decode * self.batch
