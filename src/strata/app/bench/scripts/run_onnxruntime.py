"""ONNX Runtime GenAI on a model of its own builder: int4, block 32, accuracy level 4 (int8 activations)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from serve import serve

OPTIONS = ("int4_block_size=32", "int4_accuracy_level=4", "prune_lm_head=true")


class OnnxRuntime:
    """A model; every measurement is a generator of its own."""

    def make(self, config: dict[str, Any], precision: str, path: str) -> None:
        """As in :class:`serve.Peer`: a random Hugging Face folder, through the model builder."""
        import transformers
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel

        architecture = config["architectures"][0]
        config_class = getattr(transformers, architecture.replace("ForCausalLM", "Config"))
        part = Path(f"{path}.part")
        with tempfile.TemporaryDirectory(dir=part.parent) as folder:
            model = getattr(transformers, architecture)(config_class(**config)).bfloat16()
            model.save_pretrained(folder)
            del model
            tokenizer = Tokenizer(WordLevel({f"<{n}>": n for n in range(config["vocab_size"])}, "<0>"))
            transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
            builder = [
                sys.executable,
                "-m",
                "onnxruntime_genai.models.builder",
                "-i",
                folder,
                "-o",
                str(part),
            ]
            builder += ["-p", precision, "-e", "cpu", "-c", f"{folder}/cache", "--extra_options", *OPTIONS]
            subprocess.run(builder, check=True)
        shutil.rmtree(path, ignore_errors=True)
        part.rename(path)

    def load(self, path: str, threads: int, tokens: int, batch: int) -> str:
        """As in :class:`serve.Peer`."""
        import onnxruntime_genai

        self.og = onnxruntime_genai
        config = onnxruntime_genai.Config(path)
        config.overlay(
            json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}})
        )
        self.model = onnxruntime_genai.Model(config)
        self.tokens, self.generator = tokens, None
        self.vocab = json.loads((Path(path) / "genai_config.json").read_text())["model"]["vocab_size"]
        self.rng = np.random.default_rng(0)
        return f"ONNX Runtime GenAI {onnxruntime_genai.__version__}"

    def prefill(self, tokens: int) -> float:
        """As in :class:`serve.Peer`."""
        self.generator = None
        return self._begin(tokens, 1)[1]

    def decode(self, context: int, tokens: int, batch: int) -> float:
        """As in :class:`serve.Peer`."""
        if self.generator is None or batch > 1 or self.generator.token_count() < context:
            self.generator = None  # two caches at once would be one too many
            self.generator, _ = self._begin(context, batch)
        generator = self.generator
        if batch > 1:
            self.generator = None
        else:
            generator.rewind_to(context - 1)
            generator.append_tokens(np.zeros(1, np.int32))
        generator.generate_next_token()  # chooses; the next one runs the model first
        start = time.perf_counter()
        for _ in range(tokens):
            generator.generate_next_token()
        return time.perf_counter() - start

    def _begin(self, tokens: int, batch: int) -> tuple[Any, float]:
        """A generator with a prompt in its cache, and the seconds that took."""
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(
            max_length=self.tokens, batch_size=batch, do_sample=False, min_length=self.tokens
        )
        generator = self.og.Generator(self.model, params)
        ids = self.rng.integers(0, self.vocab, (batch, tokens), np.int32)
        start = time.perf_counter()
        generator.append_tokens(ids if batch > 1 else ids[0])
        return generator, time.perf_counter() - start


if __name__ == "__main__":
    serve(OnnxRuntime())
