"""Train the small demonstration model that ships with Strata.

The script does everything from nothing, on a CPU:

1. reads the Python standard library's sources and sets some files aside (a hash of the path);
2. trains a byte-level BPE tokenizer on the training files;
3. trains a small Llama-architecture model (PyTorch, AdamW, warm-up and cosine decay);
4. saves an ordinary Hugging Face folder with bf16 weights and the held-out text;
5. with ``--evaluate FOLDER``, computes the perplexity of that text under a saved folder.

Run ``python examples/train_demo_model/train.py --help`` for the options; README.md, next to this
file, gives the commands. Needs ``torch``, ``transformers`` and ``tokenizers``, which Strata itself
does not.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import os
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"

EXCLUDED_FOLDERS = frozenset(
    {"site-packages", "__pycache__", "lib2to3", "idlelib", "encodings", "ensurepip", "turtledemo"}
)

MAX_FILE_BYTES = 400_000
"""Larger files are generated tables."""

HELDOUT_MODULUS = 150
"""One file in this many is set aside: those whose path's SHA-256 is 0 modulo this number."""

SPLIT_PATTERN = "|".join(
    (
        r"\s*[\r\n]+[^\S\r\n]*",  # line ends with the indentation that follows
        r"[^\r\n\p{L}\p{N}]?\p{L}+",  # a word with one leading space, dot, underscore, ...
        r"\p{N}",  # single digits
        r" ?[^\s\p{L}\p{N}]+",  # punctuation
        r"\s+(?!\S)|\s+",  # other white space
    )
)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ message['content'] }}\n"
    "{% else %}# {{ message['content'] }}\n"
    "{% endif %}{% endfor %}"
)
"""Requests become comments and answers become code, because the model has seen only code."""


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the result of a training run."""

    seed: int = 1234
    steps: int = 5000
    chunk_tokens: int = 1024
    chunks_per_step: int = 2
    short_tokens: int = 512
    long_fraction: float = 0.15
    peak_lr: float = 2e-3
    final_lr_ratio: float = 0.02
    warmup_steps: int = 300
    weight_decay: float = 0.1
    beta2: float = 0.98
    clip_norm: float = 1.0
    vocab_size: int = 4096

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step sees."""
        return self.chunk_tokens * self.chunks_per_step

    def lr(self, step: int) -> float:
        """Learning rate of ``step``: linear warm-up, then cosine decay to the last step."""
        if step < self.warmup_steps:
            return self.peak_lr * (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
        return self.peak_lr * (self.final_lr_ratio + (1.0 - self.final_lr_ratio) * cosine)

    def row_tokens(self, step: int) -> int:
        """Sequence length of ``step``: short first, full length in the last part."""
        is_long = step >= self.steps * (1.0 - self.long_fraction)
        return self.chunk_tokens if is_long else self.short_tokens


# --- data ------------------------------------------------------------------------------------


def read_sources(root: Path) -> dict[str, str]:
    """Return path (relative, with ``/``) to text of each usable source file under ``root``."""
    sources: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if EXCLUDED_FOLDERS.intersection(relative.parts):
            continue
        data = path.read_bytes()
        if not 64 <= len(data) <= MAX_FILE_BYTES:
            continue
        try:
            sources[relative.as_posix()] = data.decode("utf-8")
        except UnicodeDecodeError:
            continue
    return sources


def is_held_out(relative_path: str) -> bool:
    """Tell whether a file is set aside; depends on nothing but its path."""
    digest = hashlib.sha256(relative_path.encode("utf-8")).digest()
    return int.from_bytes(digest[:8], "big") % HELDOUT_MODULUS == 0


def split_sources(root: Path) -> tuple[list[str], list[str], list[str]]:
    """Return the training texts, the held-out texts and the held-out paths."""
    sources = read_sources(root)
    held_paths = [path for path in sources if is_held_out(path)]
    held_texts = [sources[path] for path in held_paths]
    seen = set(held_texts)
    train_texts = []
    for path, text in sources.items():
        if not is_held_out(path) and text not in seen:
            train_texts.append(text)
            seen.add(text)
    return train_texts, held_texts, held_paths


def train_tokenizer(texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer, lossless for every string."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def token_stream(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], *, seed: int
) -> torch.Tensor:
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


def make_optimizer(model: torch.nn.Module, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, recipe.beta2), fused=True)


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


def train(
    model: LlamaForCausalLM, stream: torch.Tensor, recipe: Recipe, args: argparse.Namespace
) -> float:
    """Train in place, resuming from the checkpoint if there is one; return the time spent."""
    optimizer = make_optimizer(model, recipe)
    checkpoint = args.work / "checkpoint.pt"
    first, spent_s = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, spent_s = state["step"], state["spent_s"]
    model.train()
    recent = 0.0
    for step in range(first, recipe.steps):
        began_s = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr(step)
        loss = batch_loss(model, *batch_at(stream, step, recipe), autocast=not args.no_autocast)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step_s = time.perf_counter() - began_s
        spent_s += step_s
        recent = loss.item() if step == first else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % args.log_every == 0:
            print(
                f"step {step + 1}/{recipe.steps} loss {recent:.4f} lr {recipe.lr(step):.2e} "
                f"{recipe.tokens_per_step / step_s:.0f} token/s, {spent_s:.0f} s",
                flush=True,
            )
        if (step + 1) % args.save_every == 0 or step + 1 == recipe.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
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
    ids = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        result = perplexity(model, ids, num_bytes=len(text.encode("utf-8")), stride=stride)
        print(f"arithmetic {dtype}: {json.dumps(result)}", flush=True)


# --- output ----------------------------------------------------------------------------------


def export(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, heldout: str, folder: Path
) -> None:
    """Save an ordinary Hugging Face folder with bf16 weights; ``model`` is left unchanged."""
    folder.mkdir(parents=True, exist_ok=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    (folder / "heldout.txt").write_bytes(heldout.encode("utf-8"))


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
    parser.add_argument("--save-every", type=int, default=400, metavar="STEPS")
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
        export(model, tokenizer, heldout, args.out)
        return
    stream = token_stream(tokenizer, train_texts, seed=recipe.seed)
    print(f"{len(stream)} training tokens", flush=True)
    spent_s = train(model, stream, recipe, args)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(heldout, add_special_tokens=False)]
    num_bytes = len(heldout.encode("utf-8"))
    result = perplexity(model, ids, num_bytes=num_bytes, stride=args.stride)
    print(f"f32 weights after {spent_s:.0f} s: {json.dumps(result)}", flush=True)
    export(model, tokenizer, heldout, args.out)
    evaluate_folder(args.out, stride=args.stride)


if __name__ == "__main__":
    main()
