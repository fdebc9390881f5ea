"""Small tokenizers of the three families, made with the tokenizers library."""

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.trainers import BpeTrainer

TEXTS = [
    "hello world, hello there",
    "the quick brown fox",
    "naïve café 你好 🎉🎉",
    "def f(x):\n    return x\n",
]


def byte_level() -> Backend:
    """GPT-2 style: every byte has a token."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    backend.add_tokens([AddedToken("<tool call>", normalized=False)])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return backend


def llama(strip: bool = True) -> Backend:
    """Llama 2 style: a space is "▁", characters without a token are written as ``<0x..>`` bytes."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for text in [
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz,.",
        "▁h",
        "he",
        "lo",
    ]:
        vocab.setdefault(text, len(vocab))
    merges = [("▁", "h"), ("h", "e"), ("l", "o")]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def metaspace() -> Backend:
    """Unigram with a Metaspace decoder."""
    pieces = ["<unk>", "▁", "▁he", "llo", "▁wor", "ld", "é", "你", *"abcdefghijklmnopqrstuvwxyz,."]
    backend = Backend(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return backend


def word_piece() -> Backend:
    """BERT style: no byte mapping."""
    pieces = ["[UNK]", "hello", "##ing", "world", "the", *"abcdefghijklmnopqrstuvwxyz,."]
    pieces += ["##" + c for c in "abcdefghijklmnopqrstuvwxyz"]
    backend = Backend(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    backend.decoder = decoders.WordPiece()
    return backend
