"""OpenVINO GenAI on a GGUF file, which its own reader turns into a graph."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import openvino
import openvino_genai
from serve import serve


class OpenVino:
    """A pipeline; every measurement is a generation of its own, timed by its first token and its end."""

    def make(self, config: dict[str, Any], precision: str, path: str) -> None:
        """As in :class:`serve.Peer`."""
        from make_gguf import write

        write(config, precision, Path(path))

    def load(self, path: str, threads: int, tokens: int, batch: int) -> str:
        """As in :class:`serve.Peer`."""
        self.pipeline = openvino_genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
        self.vocab = int(gguf.GGUFReader(path).get_tensor(0).shape[-1])  # of the embedding
        self.rng = np.random.default_rng(0)
        return f"OpenVINO GenAI {openvino_genai.__version__}"

    def prefill(self, tokens: int) -> float:
        """As in :class:`serve.Peer`: to the first token, whose choice takes no time to speak of."""
        return self._generate(tokens, 1, 1)[0]

    def decode(self, context: int, tokens: int, batch: int) -> float:
        """As in :class:`serve.Peer`."""
        seconds, first_s = self._generate(context, tokens + 1, batch)
        return seconds - first_s

    def _generate(self, prompt: int, tokens: int, batch: int) -> tuple[float, float]:
        """Seconds of a generation, and seconds to its first token."""
        ids = self.rng.integers(0, self.vocab, (batch, prompt), np.int64)
        inputs = openvino_genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        start = time.perf_counter()
        result = self.pipeline.generate(inputs, max_new_tokens=tokens, ignore_eos=True, do_sample=False)
        seconds = time.perf_counter() - start
        if [len(t) for t in result.tokens] != [tokens] * batch:
            raise SystemExit(
                f"OpenVINO generated {[len(t) for t in result.tokens]} tokens, not {tokens} each"
            )
        return seconds, result.perf_metrics.get_ttft().mean / 1e3


if __name__ == "__main__":
    serve(OpenVino())
