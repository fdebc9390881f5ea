"""Perplexity of held-out text under our formats, and under llama.cpp's, from the same windows of token ids.

    strata bench --install-peers
    python benchmarks/perplexity.py [--formats f32,bf16,int8,int4] [--peers-env DIR]

The text is the demo model's own held-out text (examples/train_demo_model), the windows are those of its card:
1024 tokens, moving on by 512; every token but the first is predicted once, by the first window that holds it.
llama.cpp makes q8_0 and q4_0 itself from the exact weights: as usual (with an embedding, here also the head,
of more bits), and "pure" (every matrix in the format).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import strata
from strata.app.bench.peers import PeerProcess, Place, default_environment
from strata.assets import DEMO_MODEL
from strata.engine.scoring import negative_log_likelihood

Window = tuple[int, int, int]  # first token of the context, first row that counts, end
WEIGHTS = (
    ("f16", False),
    ("q8_0", False),
    ("q8_0", True),
    ("q4_0", False),
    ("q4_0", True),
    ("q4_k_m", False),
)


def windows(num_tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Windows whose rows predict every token but the first once."""
    first = 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + window, num_tokens) - 1  # the last token of a window is only predicted
        if end > first:
            yield begin, first, end
        first = end


def ours(format_: str, ids: np.ndarray, parts: list[Window]) -> float:
    """Nats of the whole text."""
    model = strata.load(DEMO_MODEL, format=format_)
    total = 0.0
    for begin, first, end in parts:
        logits = model.logits(ids[begin:end])
        total += negative_log_likelihood([logits], ids[begin + 1 : end + 1], first - begin)
    return total


def theirs(place: Place, ids: np.ndarray, parts: list[Window], folder: Path) -> Iterator[tuple[str, float]]:
    """Nats by format of llama.cpp."""
    exact = folder / "exact.gguf"

    def process(name: str) -> PeerProcess:
        return PeerProcess(place.python, "run_llama.py", folder / f"{name}.log", place.limit_s)

    with process("convert") as peer:
        peer.ask("convert", folder=str(DEMO_MODEL), path=str(exact))
    for precision, is_pure in (("f32", False), *WEIGHTS):
        name = f"{precision}{' pure' if is_pure else ''}"
        path = exact if precision == "f32" else folder / f"{name}.gguf"
        with process(name) as peer:
            if path != exact:
                peer.ask("quantize", source=str(exact), path=str(path), precision=precision, is_pure=is_pure)
            peer.ask("load", path=str(path), threads=2, tokens=1024, batch=1)
            answer = peer.ask("score", ids=ids.tolist(), windows=parts)
        yield f"llama.cpp {name}", answer["nats"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--formats", default="f32,bf16,int8,int4")
    parser.add_argument("--peers-env", type=Path, default=None)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    tokenizer = strata.load(DEMO_MODEL).tokenizer
    assert tokenizer is not None
    text = (DEMO_MODEL / "heldout.txt").read_bytes().decode()
    ids = np.array([0, *tokenizer.encode(text)], np.int32)  # 0: <|endoftext|>, which begins every document
    parts = list(windows(len(ids), args.window, args.stride))
    count, reference = len(ids) - 1, None
    print(f"{count} tokens in {len(parts)} windows")
    print(f"{'format':<22} {'nats/token':>11} {'perplexity':>11} {'over f32':>9}", flush=True)

    def show(name: str, nats: float, base: float) -> None:
        perplexity = math.exp(nats / count)
        over = perplexity / math.exp(base / count) - 1
        print(f"{name:<22} {nats / count:>11.5f} {perplexity:>11.4f} {over:>+9.3%}", flush=True)

    for format_ in args.formats.split(","):
        nats = ours(format_, ids, parts)
        reference = nats if reference is None else reference
        show(format_, nats, reference)
    if not args.no_peers:
        with tempfile.TemporaryDirectory() as folder:
            place, base = Place(args.peers_env or default_environment()), None
            for name, nats in theirs(place, ids, parts, Path(folder)):
                base = nats if base is None else base
                show(name, nats, base)


if __name__ == "__main__":
    main()
