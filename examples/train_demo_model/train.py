"""Train the small demonstration model that ships with Strata.

The script does everything from nothing, on a CPU:

1. reads the Python standard library's sources and sets some files aside (a hash of the path);
2. trains a byte-level BPE tokenizer on the training files;
3. trains a small Llama-architecture model (PyTorch, Muon and AdamW, warm-up and cosine decay);
4. saves an ordinary Hugging Face folder with bf16 weights and the held-out text;
5. with ``--evaluate FOLDER``, computes the perplexity of that text under a saved folder.

Run ``python examples/train_demo_model/train.py --help`` for the options; README.md, next to this
file, gives the commands. Needs ``torch``, ``transformers`` and ``tokenizers``, which Strata itself
does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from corpus import encode_document, split_sources, train_tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result of a training run."""

    seed: int = 1234
    steps: int = 4400
    chunk_tokens: int = 1024
    chunks_per_step: int = 2
    short_tokens: int = 512
    long_fraction: float = 0.15
    muon_lr: float = 0.01
    adamw_lr: float = 3e-3
    final_lr_ratio: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.05
    beta2: float = 0.98
    clip_norm: float = 1.0
    vocab_size: int = 4096

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.chunk_tokens * self.chunks_per_step

    def lr_ratio(self, step: int) -> float:
        """Learning rate of ``step`` over its peak: linear warm-up, then cosine decay."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.final_lr_ratio + (1.0 - self.final_lr_ratio) * cosine

    def row_tokens(self, step: int) -> int:
        """Sequence length of ``step``: short first, full length in the last part."""
        is_long = step >= self.steps * (1.0 - self.long_fraction)
        return self.chunk_tokens if is_long else self.short_tokens


# --- batches -------------------------------------------------------------------------------------


def token_stream(tokenizer: PreTrainedTokenizerFast, texts: list[str], *, seed: int) -> torch.Tensor:
    """Encode the texts, in a shuffled order, each after an end-of-text token, as one stream."""
    order = np.random.default_rng(seed).permutation(len(texts))
    pieces = []
    for encoded in tokenizer.backend_tokenizer.encode_batch([texts[i] for i in order]):
        pieces.append(np.array([tokenizer.bos_token_id, *encoded.ids], dtype=np.int32))
    return torch.from_numpy(np.concatenate(pieces)).long()


def batch_at(stream: torch.Tensor, step: int, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets ``[rows, tokens]`` of one step.

    Every epoch cuts the stream into chunks at a new offset and visits them in a new order. The
    result depends on nothing but the arguments, so a resumed run sees the same batches.
    """
    size = recipe.chunk_tokens
    num_chunks = (len(stream) - 1) // size - 1
    inputs, targets = [], []
    for draw in range(step * recipe.chunks_per_step, (step + 1) * recipe.chunks_per_step):
        epoch, position = divmod(draw, num_chunks)
        rng = np.random.default_rng([recipe.seed, epoch])
        begin = int(rng.integers(size)) + int(rng.permutation(num_chunks)[position]) * size
        inputs.append(stream[begin : begin + size])
        targets.append(stream[begin + 1 : begin + 1 + size])
    shape = (-1, recipe.row_tokens(step))
    return torch.stack(inputs).reshape(shape), torch.stack(targets).reshape(shape)


# --- model and training ----------------------------------------------------------------------


def model_config(vocab_size: int, end_of_text_id: int) -> LlamaConfig:
    """Return the architecture: 7.35 M parameters, grouped-query attention, tied embeddings."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=1024,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=end_of_text_id,
        eos_token_id=end_of_text_id,
        use_cache=True,
    )


def make_optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices and AdamW for the embedding and the norms.

    In so few steps this reaches a clearly lower loss than AdamW alone, for about 20 % more time a step.
    """
    named = list(model.named_parameters())
    matrices = [p for name, p in named if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in named if p.ndim != 2 or "embed_tokens" in name]
    betas = (0.9, recipe.beta2)
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.adamw_lr, weight_decay=0.0, betas=betas, fused=True),
    ]


def scale_residual_outputs(model: LlamaForCausalLM) -> None:
    """Shrink the initial projections into the residual stream by the square root of their number."""
    scale = (2 * model.config.num_hidden_layers) ** -0.5
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                weight.mul_(scale)


def batch_loss(
    model: LlamaForCausalLM, inputs: torch.Tensor, targets: torch.Tensor, *, autocast: bool
) -> torch.Tensor:
    """Return the mean cross-entropy (nats per token) of one batch."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        logits = model(input_ids=inputs, use_cache=False).logits
    flat = logits.float().view(-1, logits.shape[-1])
    return torch.nn.functional.cross_entropy(flat, targets.reshape(-1))


def save_checkpoint(path: Path, state: dict) -> None:
    """Write a checkpoint under a temporary name, then rename it, so that it is always whole."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.rename(path)


def train(model: LlamaForCausalLM, stream: torch.Tensor, recipe: Recipe, args: argparse.Namespace) -> float:
    """Train in place, resuming from the checkpoint if there is one; return the time spent."""
    optimizers = make_optimizers(model, recipe)
    peak_lrs = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    checkpoint = args.work / "checkpoint.pt"
    first, spent_s = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first, spent_s = state["step"], state["spent_s"]
    model.train()
    recent = 0.0
    for step in range(first, recipe.steps):
        began_s = time.perf_counter()
        for optimizer, peak_lr in zip(optimizers, peak_lrs, strict=True):
            optimizer.param_groups[0]["lr"] = peak_lr * recipe.lr_ratio(step)
        loss = batch_loss(model, *batch_at(stream, step, recipe), autocast=not args.no_autocast)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        step_s = time.perf_counter() - began_s
        spent_s += step_s
        recent = loss.item() if step == first else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % args.log_every == 0:
            print(
                f"step {step + 1}/{recipe.steps} loss {recent:.4f} lr ratio {recipe.lr_ratio(step):.3f} "
                f"{recipe.tokens_per_step / step_s:.0f} token/s, {spent_s:.0f} s",
                flush=True,
            )
        if (step + 1) % args.save_every == 0 or step + 1 == recipe.steps:
            saved = [optimizer.state_dict() for optimizer in optimizers]
            state = {"model": model.state_dict(), "optimizers": saved}
            save_checkpoint(checkpoint, {**state, "step": step + 1, "spent_s": spent_s})
    return spent_s


# --- evaluation ------------------------------------------------------------------------------


def score_windows(num_tokens: int, window: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (begin, end, first scored) for windows that together score tokens 1.. once each.

    >>> list(score_windows(10, 6, 3))
    [(0, 6, 1), (3, 9, 6), (6, 10, 9)]
    """
    scored = 1
    for begin in range(0, num_tokens, stride):
        end = min(begin + window, num_tokens)
        yield begin, end, scored
        scored = end
        if end == num_tokens:
            return


@torch.no_grad()
def perplexity(
    model: LlamaForCausalLM, token_ids: list[int], *, num_bytes: int, stride: int
) -> dict[str, float]:
    """Score ``token_ids`` (the first is context only) in overlapping windows.

    Args:
        model: The model; arithmetic is that of its weights' dtype, the softmax is f32.
        token_ids: End-of-text, then the tokens of the text.
        num_bytes: UTF-8 length of the text.
        stride: How far each window moves on; a window spans the model's positions.

    Returns:
        Number of scored tokens, nats per token, perplexity per token and bits per byte.
    """
    model.eval()
    window = model.config.max_position_embeddings
    ids = torch.tensor(token_ids)
    total = 0.0
    for begin, end, scored in score_windows(len(ids), window, stride):
        logits = model(input_ids=ids[None, begin:end], use_cache=False).logits[0].float()
        log_probs = torch.log_softmax(logits[scored - begin - 1 : -1], dim=-1)
        total -= log_probs.gather(1, ids[scored:end, None]).double().sum().item()
    count = len(ids) - 1
    return {
        "tokens": count,
        "nats_per_token": total / count,
        "perplexity": math.exp(total / count),
        "bits_per_byte": total / math.log(2.0) / num_bytes,
    }


def evaluate_folder(folder: Path, *, stride: int) -> None:
    """Print the perplexity of a folder's held-out text, with f32 and with bf16 arithmetic."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = (folder / "heldout.txt").read_bytes().decode("utf-8")
    ids = encode_document(tokenizer, text)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        result = perplexity(model, ids, num_bytes=len(text.encode("utf-8")), stride=stride)
        print(f"arithmetic {dtype}: {json.dumps(result)}", flush=True)


# --- output ----------------------------------------------------------------------------------


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, heldout: str, folder: Path) -> None:
    """Save an ordinary Hugging Face folder with bf16 weights; ``model`` is left unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    (folder / "heldout.txt").write_bytes(heldout.encode("utf-8"))
    # Say the same in the words of older readers too.
    update_json(folder / "config.json", rope_theta=10000.0, torch_dtype="bfloat16")
    update_json(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def update_json(path: Path, **values: object) -> None:
    """Set keys of a JSON object file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    content.update(values)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluate", type=Path, metavar="FOLDER", help="only score a folder")
    parser.add_argument("--stride", type=int, default=512, help="of the evaluation windows")
    parser.add_argument("--out", type=Path, default=Path("demo_model"), help="folder to write")
    parser.add_argument("--work", type=Path, default=Path("/tmp/train_demo"), help="checkpoints")
    parser.add_argument("--sources", type=Path, default=Path(sysconfig.get_path("stdlib")))
    parser.add_argument("--steps", type=int, default=Recipe().steps)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--no-autocast", action="store_true", help="train in f32 throughout")
    parser.add_argument("--log-every", type=int, default=50, metavar="STEPS")
    parser.add_argument("--save-every", type=int, default=350, metavar="STEPS")
    parser.add_argument("--export-only", action="store_true", help="export the last checkpoint")
    return parser.parse_args()


def main() -> None:
    """Train and export, or evaluate."""
    args = parse_args()
    torch.set_num_threads(args.threads)
    if args.evaluate is not None:
        evaluate_folder(args.evaluate, stride=args.stride)
        return
    recipe = Recipe(steps=args.steps)
    torch.manual_seed(recipe.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    train_texts, held_texts, held_paths = split_sources(args.sources)
    heldout = "".join(held_texts)
    print(f"{len(train_texts)} training files, {sum(map(len, train_texts))} characters")
    print(f"held out, {len(heldout)} characters: {' '.join(held_paths)}", flush=True)
    tokenizer = train_tokenizer(train_texts, recipe.vocab_size)
    model = LlamaForCausalLM(model_config(recipe.vocab_size, tokenizer.bos_token_id))
    scale_residual_outputs(model)
    print(f"{model.num_parameters()} parameters", flush=True)
    if args.export_only:
        state = torch.load(args.work / "checkpoint.pt", weights_only=True)
        model.load_state_dict(state["model"])
        spent_s = state["spent_s"]
    else:
        stream = token_stream(tokenizer, train_texts, seed=recipe.seed)
        print(f"{len(stream)} training tokens", flush=True)
        spent_s = train(model, stream, recipe, args)
    ids = encode_document(tokenizer, heldout)
    result = perplexity(model, ids, num_bytes=len(heldout.encode("utf-8")), stride=args.stride)
    print(f"f32 weights after {spent_s:.0f} s: {json.dumps(result)}", flush=True)
    export(model, tokenizer, heldout, args.out)
    evaluate_folder(args.out, stride=args.stride)


if __name__ == "__main__":
    main()
