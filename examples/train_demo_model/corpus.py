"""Text and tokenizer of the demonstration model.

The corpus is the Python standard library's sources; which files are held out depends on nothing but
their paths. The tokenizer is a byte-level BPE tokenizer made for Python code.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
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
    '{% else %}"""{{ message[\'content\'] }}"""\n\n'
    "{% endif %}{% endfor %}"
)
"""Requests become docstrings and answers the code below: the model has seen nothing but modules."""


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


def encode_document(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Return the end-of-text token, then the tokens of ``text``."""
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    return [tokenizer.bos_token_id, *encoding.ids]
