"""PyTorch through transformers: scaled-dot-product attention, eager or compiled."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from serve import serve
from torch._inductor import config as inductor

_DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Torch:
    """A model made from its config; the file holds only that. Precision ``bf16-compiled`` compiles it."""

    def make(self, config: dict[str, Any], precision: str, path: str) -> None:
        """As in :class:`serve.Peer`."""
        Path(path).write_text(json.dumps({"config": config, "precision": precision}))

    def load(self, path: str, threads: int, tokens: int, batch: int) -> str:
        """As in :class:`serve.Peer`."""
        made = json.loads(Path(path).read_text())
        config, (precision, *compiled) = made["config"], made["precision"].split("-")
        torch.set_num_threads(threads)
        architecture = config["architectures"][0]
        name = architecture.replace("ForCausalLM", "Config").replace("LMHeadModel", "Config")
        config = getattr(transformers, name)(**config, attn_implementation="sdpa")
        torch.set_default_dtype(_DTYPES[precision])
        self.model = getattr(transformers, architecture)(config).eval()
        torch.set_default_dtype(torch.float32)
        self.compiled = self.model
        self.static: dict[int, Any] = {}  # by batch
        self.kept: Any = None  # the cache of the last decode
        self.kept_batch = 0
        self.vocab, self.tokens, self.is_compiled = config.vocab_size, tokens, bool(compiled)
        if self.is_compiled:
            inductor.freezing = True  # constant weights: packed, folded
            self.compiled = torch.compile(self.model, dynamic=False)
        how = "torch.compile" if self.is_compiled else "eager, sdpa"
        return f"PyTorch {torch.__version__}, transformers {transformers.__version__} ({how})"

    def prefill(self, tokens: int) -> float:
        """As in :class:`serve.Peer`."""
        return self._fill(tokens, 1, self.compiled)[0]

    @torch.inference_mode()
    def decode(self, context: int, tokens: int, batch: int) -> float:
        """As in :class:`serve.Peer`."""
        cache = self._filled(context, batch)
        token = torch.zeros((batch, 1), dtype=torch.long)
        start = time.perf_counter()
        for step in range(tokens):
            token = self._run(self.compiled, token, cache, context + step).argmax(-1)
        return time.perf_counter() - start

    @torch.inference_mode()
    def _fill(self, tokens: int, batch: int, model: Any) -> tuple[float, Any]:
        """Seconds to read a prompt, and the cache that it fills."""
        cache = self._cache(batch)
        ids = torch.randint(0, self.vocab, (batch, tokens))
        start = time.perf_counter()
        self._run(model, ids, cache, 0)
        return time.perf_counter() - start, cache

    def _filled(self, context: int, batch: int) -> Any:
        """A cache with ``context`` tokens of each sequence: that of the last decode, or a new one."""
        if self.is_compiled:
            return self._fill(context, batch, self.model)[1]
        if batch != self.kept_batch or self.kept.get_seq_length() < context:
            self.kept = None  # two caches at once would be one too many
            self.kept, self.kept_batch = self._fill(context, batch, self.model)[1], batch
        if self.kept.get_seq_length() > context:
            self.kept.crop(context - self.kept.get_seq_length())
        return self.kept

    def _cache(self, batch: int) -> Any:
        if not self.is_compiled:
            return transformers.DynamicCache(config=self.model.config)
        if batch not in self.static:  # of one size, so that a step is always the same
            cache = transformers.StaticCache(self.model.config, max_cache_len=self.tokens)
            self._run(self.model, torch.zeros((batch, 1), dtype=torch.long), cache, 0)  # takes its memory
            self.static[batch] = cache
        self.static[batch].reset()
        return self.static[batch]

    def _run(self, model: Any, ids: torch.Tensor, cache: Any, past: int) -> torch.Tensor:
        """Logits ``[batch, 1, vocab]`` of the last position."""
        positions = torch.arange(past, past + ids.shape[1])
        out = model(
            ids,
            past_key_values=cache,
            cache_position=positions,
            position_ids=positions[None].expand(len(ids), -1),
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits


if __name__ == "__main__":
    serve(Torch())
