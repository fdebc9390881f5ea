"""Text to tokens and back, from the files of a Hugging Face tokenizer; streaming that never splits a
character.

Decoding works on bytes: every token is a byte string (a byte-level token spells its bytes with the GPT-2
alphabet, a ``<0xE4>`` of a sentencepiece-style one is that byte, anything else is its UTF-8), so a stream of
tokens is an incremental UTF-8 decoder and costs one table look-up per token. Decoders that are no such
mapping (WordPiece, ...) are run by the tokenizers library on a window of recent tokens instead.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from strata.core.errors import UserError

from .chat import ChatTemplate

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
_SPECIAL_KEYS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MAX_WINDOW = 16  # tokens
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class StartSpace(Enum):
    """What decoding does to spaces at the start of a text."""

    KEEP = "keep"
    DROP_ONE = "drop one"  # Strip after Fuse
    DROP_ALL = "drop all"  # Metaspace: all those of the first token


class Tokenizer:
    """Encoder, decoder, special tokens and chat template of a model.

    Args:
        backend: The tokenizer proper.
        config: Content of ``tokenizer_config.json``: special tokens, ``add_bos_token``, ``chat_template``,
            ...
        generation: Content of ``generation_config.json``: ``eos_token_id``.
        where: Folder or name, for messages.

    Attributes:
        special_tokens: Texts by role (``bos_token``, ``eos_token``, ...).
        bos_id: Id of the beginning-of-sequence token, or ``None``.
        eos_ids: Ids that end a text.
        vocab_size: Ids are below this (added tokens included).
    """

    def __init__(
        self,
        backend: Backend,
        config: dict[str, Any] | None = None,
        generation: dict[str, Any] | None = None,
        where: str = "tokenizer",
    ) -> None:
        config, generation = config or {}, generation or {}
        self.where = where
        self._backend = backend
        backend.no_truncation()
        backend.no_padding()
        self.special_tokens = {
            key: text for key in _SPECIAL_KEYS if (text := _token_text(config.get(key))) is not None
        }
        self.bos_id = self._special_id("bos_token")
        self.eos_ids = self._eos_ids(generation.get("eos_token_id"))
        self._add_bos = _flag(config, "add_bos_token")
        self._add_eos = _flag(config, "add_eos_token")
        self.vocab_size = backend.get_vocab_size(with_added_tokens=True)
        added = backend.get_added_tokens_decoder()
        self._skipped = {i for i, token in added.items() if token.special}
        decoder = json.loads(backend.to_str()).get("decoder")
        self._bytes, self._start_space = _byte_decoder(decoder)
        self._token_bytes: dict[int, bytes] = {}
        self._template_source = config.get("chat_template")

    @classmethod
    def from_folder(cls, folder: Path | str) -> Tokenizer:
        """The tokenizer in a model or artifact folder: ``tokenizer.json`` and, where they are, its
        companions.

        Raises:
            UserError: ``tokenizer.json`` is missing, or a file is malformed.
        """
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; the model needs a tokenizer.json (convert it with transformers)"
            )
        try:
            backend = Backend.from_file(str(path))
        except Exception as error:  # the library raises nothing more specific
            raise UserError(f"{path}: is no tokenizer: {error!s:.200}") from error
        config = {
            **read_json(folder / "special_tokens_map.json"),
            **read_json(folder / "tokenizer_config.json"),
        }
        template = folder / "chat_template.jinja"
        if template.is_file():
            config["chat_template"] = template.read_text(encoding="utf-8")
        else:
            config = {**config, **read_json(folder / "chat_template.json")}
        generation = read_json(folder / "generation_config.json")
        if "eos_token_id" not in generation:
            generation = read_json(folder / "config.json")
        return cls(backend, config, generation, str(folder))

    def _special_id(self, key: str) -> int | None:
        text = self.special_tokens.get(key)
        return None if text is None else self._backend.token_to_id(text)

    def _eos_ids(self, given: object) -> tuple[int, ...]:
        ids = given if isinstance(given, list) else [given]
        eos = self._special_id("eos_token")
        return tuple(dict.fromkeys(i for i in (*ids, eos) if isinstance(i, int) and not isinstance(i, bool)))

    def encode(self, text: str, *, add_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: Special tokens that are written out in it become their ids.
            add_special: Add what the tokenizer adds around a text (a BOS token, mostly).
        """
        ids = self._backend.encode(text, add_special_tokens=add_special).ids
        if add_special:
            ids = self._with_bos(text, ids)
            if self._add_eos and self.eos_ids and (not ids or ids[-1] not in self.eos_ids):
                eos = self._special_id("eos_token")
                ids = [*ids, self.eos_ids[0] if eos is None else eos]
        return ids

    def _with_bos(self, text: str, ids: list[int]) -> list[int]:
        """``add_bos_token`` of the configuration wins over the post-processor where it is given."""
        if self._add_bos is None or self.bos_id is None:
            return ids
        written = self._backend.encode(text, add_special_tokens=False).ids
        added = ids[:1] == [self.bos_id] and self._num_bos(ids) > self._num_bos(written)
        if self._add_bos and not added:
            return [self.bos_id, *ids]
        if not self._add_bos and added:
            return ids[1:]
        return ids

    def _num_bos(self, ids: list[int]) -> int:
        """BOS tokens at the start."""
        return next((i for i, token in enumerate(ids) if token != self.bos_id), len(ids))

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of token ids, as the tokenizers library decodes them."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special)

    def stream(self, *, continues: bool = True, skip_special: bool = True) -> StreamDecoder:
        """A decoder for tokens that come one by one.

        Args:
            continues: The tokens continue a text: a leading space is kept (sentencepiece-style decoders strip
                it from the start of a text).
            skip_special: Leave special tokens out.
        """
        return StreamDecoder(self, continues=continues, skip_special=skip_special)

    def is_skipped(self, token_id: int) -> bool:
        """True for special tokens, which are no part of a text."""
        return token_id in self._skipped

    def token(self, token_id: int) -> str | None:
        """How the vocabulary spells a token; ``None`` for an id that it does not have."""
        return self._backend.id_to_token(token_id)

    def token_id(self, token: str) -> int | None:
        """Inverse of :meth:`token`."""
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes | None:
        """Bytes of a token's text; ``None`` where the decoder is no byte mapping. Unknown ids have none
        (``b""``).
        """
        if self._bytes is None:
            return None
        found = self._token_bytes.get(token_id)
        if found is None:
            token = self._backend.id_to_token(token_id)
            found = self._token_bytes[token_id] = b"" if token is None else self._bytes(token)
        return found

    @property
    def start_space(self) -> StartSpace:
        """What decoding does to spaces at the start of a text."""
        return self._start_space

    def chat_template(self, *, tools: bool = False) -> ChatTemplate:
        """The model's chat template.

        Args:
            tools: Prefer the template for tool use, where the model has several.

        Raises:
            UserError: the model has none, or it is no Jinja template.
        """
        source = self._template_source
        if isinstance(source, list):  # [{"name": ..., "template": ...}, ...]
            named = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
            source = (named.get("tool_use") if tools else None) or named.get("default")
        if not isinstance(source, str):
            raise UserError(
                f"{self.where}: the model has no chat template (chat_template in tokenizer_config.json); "
                "use generate with a plain prompt"
            )
        return ChatTemplate(source, self.special_tokens, f"{self.where}: chat template")


class StreamDecoder:
    """Tokens in, text out; what is not a whole character yet is held back.

    The pieces (with the last one from :meth:`flush`) concatenate to ``Tokenizer.decode`` of all tokens; only
    bytes that are no UTF-8 at all may show as another number of replacement characters.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = StartSpace.KEEP if continues else tokenizer.start_space
        self._window: list[int] = []  # recent tokens, for decoders that are no byte mapping
        self._shown = ""  # what their text was

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that is complete now (often nothing, for parts of a character)."""
        if self._skip and self._tokenizer.is_skipped(token_id):
            return ""
        data = self._tokenizer.token_bytes(token_id)
        if data is None:
            return self._push_window(token_id)
        if self._strip is not StartSpace.KEEP and data:
            data = data.removeprefix(b" ") if self._strip is StartSpace.DROP_ONE else data.replace(b" ", b"")
            self._strip = StartSpace.KEEP
        return self._utf8.decode(data)

    def flush(self) -> str:
        """The text of what is still held back, when no more tokens will come."""
        if self._window:
            text = self._tokenizer.decode(self._window, skip_special=self._skip)[len(self._shown) :]
            self._window, self._shown = [], ""
            return text
        return self._utf8.decode(b"", final=True)

    def _push_window(self, token_id: int) -> str:
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window, skip_special=self._skip)
        if text.endswith(_REPLACEMENT) and len(self._window) < _MAX_WINDOW:
            return ""
        piece, self._shown = text[len(self._shown) :], text
        if len(self._window) >= _MAX_WINDOW:
            # Keep a few tokens: how the next one is joined on may depend on them.
            self._window = self._window[-_MAX_WINDOW // 2 :]
            self._shown = self._tokenizer.decode(self._window, skip_special=self._skip)
        return piece


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        UserError: the file holds something else.
    """
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON: {error!s:.120}") from error
    if not isinstance(data, dict):
        raise UserError(f"{path}: got {data!r:.60}; expected an object")
    return data


def _token_text(value: object) -> str | None:
    """A special token is a text or ``{"content": text, ...}``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _flag(config: dict[str, Any], key: str) -> bool | None:
    value = config.get(key)
    return value if isinstance(value, bool) else None


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: printable ones are themselves, the others follow from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(b): b for b in printable}
    others = (b for b in range(256) if b not in set(printable))
    alphabet.update({chr(0x100 + i): b for i, b in enumerate(others)})
    return alphabet


_ALPHABET = _byte_level_alphabet()


def _byte_level(token: str) -> bytes:
    """Bytes of a byte-level token; one that does not spell bytes (an added token) is its UTF-8."""
    try:
        return bytes(_ALPHABET[c] for c in token)
    except KeyError:
        return token.encode()


def _byte_decoder(decoder: dict[str, Any] | None) -> tuple[Callable[[str], bytes] | None, StartSpace]:
    """How a decoder of ``tokenizer.json`` maps a token to bytes, and what it does to spaces at the start.

    ``None`` for decoders that look at more than one token at a time.
    """
    steps = [decoder] if decoder else []
    if decoder and decoder.get("type") == "Sequence":
        steps = decoder.get("decoders", [])
    if [s.get("type") for s in steps] == ["ByteLevel"]:
        return _byte_level, StartSpace.KEEP
    replaced: list[tuple[str, str]] = []
    fallback = fused = False
    start = StartSpace.KEEP
    for step in steps:
        match step:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if not fallback:
                replaced.append((old, new))
            case {"type": "Metaspace", "replacement": str(old)} if len(steps) == 1:
                replaced.append((old, " "))
                prepends = step.get("prepend_scheme", "always") != "never" and step.get(
                    "add_prefix_space", True
                )
                start = StartSpace.DROP_ALL if prepends else StartSpace.KEEP
            case {"type": "ByteFallback"}:
                fallback = True
            case {"type": "Fuse"}:
                fused = True
            case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if fused:
                start = StartSpace.DROP_ONE
            case _:
                return None, StartSpace.KEEP
    if not replaced:
        return None, StartSpace.KEEP
    return lambda token: _plain_bytes(token, replaced, fallback), start


def _plain_bytes(token: str, replaced: Sequence[tuple[str, str]], fallback: bool) -> bytes:
    for old, new in replaced:
        token = token.replace(old, new)
    found = _BYTE_TOKEN.fullmatch(token) if fallback else None
    return bytes([int(found[1], 16)]) if found else token.encode()
