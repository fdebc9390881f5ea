"""How weights are stored in few bits: the format of one matrix, and which matrix gets which format.

A quantised matrix ``w`` ``[N, K]`` consists of unsigned codes and of one scale per group of neighbours along
K (the last dim)::

    w[n, k] = (codes[n, k] - zero) * scales[n, k // group]

``zero`` is a constant (8 for 4 bits, 128 for 8) in symmetric formats, and a code of its own per group,
``zeros[n, k // group]``, in asymmetric ones. Grammar of the texts::

    choice  ::= format (";" pattern "=" format)* | name of a choice ("int4", "mixed")
    format  ::= weight | float dtype ("f32", "bf16", "f16")
    weight  ::= ("int4" | "int8" | "q4" | "q8") [":" option ("," option)*]
    option  ::= "group=" (elements | "channel") | "asymmetric"
    pattern ::= glob ("|" glob)*             any of them
    glob    ::= name of a weight with or without ".weight", with the wildcards * ? [...]

The last pattern that fits a weight decides. ``int4``, ``int8:group=128``, ``int4:group=64,asymmetric`` are
formats; ``int4;lm_head|*embed_tokens=int8;*.down_proj=bf16`` is a choice. As a choice, ``int4`` alone is the
name of one that gives what makes the logits zero points; ``int4:group=32`` is that format for all weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from .dtypes import DType, bf16, dtype, f16, f32
from .errors import UserError

PER_CHANNEL = 0
# By bits, the first that fits. 8 bits are precise enough for long groups, with fewer scales to multiply by.
USUAL_GROUPS = {4: (32,), 8: (128, 64, 32)}
# Activations are quantised in groups of 32 to 128 at run time; a group of weights is made of whole ones.
GROUP_MULTIPLE = 32
MAX_GROUP = 1 << 20
SCALE_BYTES = 2  # f16
ZERO_BYTES = 1  # u8, of 4 bits as well

_BITS_OF = {"int4": 4, "int8": 8, "q4": 4, "q8": 8}
_EXPECTED = "int4 or int8, alone or like int4:group=64, int8:group=channel, int4:asymmetric"
_FLOATS = {d.name: d for d in (f32, bf16, f16)}


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """Codes of few bits with a 16-bit scale per group.

    Attributes:
        bits: Of a code: 4 or 8.
        group: Elements along K that share a scale, a multiple of 32; ``PER_CHANNEL`` (0) = all of an output.
            ``None`` is the usual one: 32 with 4 bits, and with 8 the largest of 128, 64 and 32 that the rows
            are a multiple of.
        is_asymmetric: Each group has a zero point of its own.

    Raises:
        UserError: other bits, or an impossible group.
    """

    bits: int
    group: int | None = None
    is_asymmetric: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise UserError(f"weight format: got {self.bits} bits; expected 4 or 8")
        if USUAL_GROUPS[self.bits] == (self.group,):
            object.__setattr__(self, "group", None)  # one format, one text
        if self.group is None or self.group == PER_CHANNEL:
            return
        if not 0 < self.group <= MAX_GROUP or self.group % GROUP_MULTIPLE:
            raise UserError(
                f"weight format: got a group of {self.group}; expected a multiple of {GROUP_MULTIPLE}, "
                f"or channel"
            )

    @property
    def zero(self) -> int:
        """The code that means 0 in symmetric formats: 8 or 128."""
        return 1 << (self.bits - 1)

    @property
    def max_code(self) -> int:
        """The largest code: 15 or 255."""
        return (1 << self.bits) - 1

    @property
    def min_code(self) -> int:
        """The smallest code in use: symmetric 8 bits leave out 0, so that values are -127 to 127 steps."""
        return 1 if self.bits == 8 and not self.is_asymmetric else 0

    @property
    def codes_dtype(self) -> str:
        """Name of the dtype of codes and zeros: ``u4`` or ``u8``."""
        return f"u{self.bits}"

    @property
    def bytes_per_weight(self) -> float:
        """Memory per element with its share of scale and zero (those of a whole channel count nothing)."""
        zero_bytes = ZERO_BYTES if self.is_asymmetric else 0
        group = USUAL_GROUPS[self.bits][0] if self.group is None else self.group
        return self.bits / 8 + ((SCALE_BYTES + zero_bytes) / group if group else 0.0)

    def num_groups(self, k: int, name: str = "weight") -> int:
        """Groups in a row of ``k`` elements of the matrix ``name``.

        Raises:
            UserError: ``k`` is no multiple of the group, or odd with 4 bits (codes are stored in pairs).
        """
        if self.group == PER_CHANNEL:
            if k < 1 or (k % 2 and self.bits == 4):
                raise UserError(
                    f"{name}: got rows of {k} elements; {self} stores pairs: expected an even number"
                )
            return 1
        groups = USUAL_GROUPS[self.bits] if self.group is None else (self.group,)
        size = next((g for g in groups if k > 0 and k % g == 0), None)
        if size is None:
            raise UserError(
                f"{name}: got rows of {k} elements; expected a multiple of the group of {groups[-1]}: choose "
                f"another group, group=channel, or a float format for this weight"
            )
        return k // size

    def num_bytes(self, n: int, k: int) -> int:
        """Memory of a matrix ``[n, k]``: packed codes, scales and zeros.

        Raises:
            UserError: as :meth:`num_groups`.
        """
        zero_bytes = ZERO_BYTES if self.is_asymmetric else 0
        return n * (k * self.bits // 8 + self.num_groups(k) * (SCALE_BYTES + zero_bytes))

    def __str__(self) -> str:
        options = []
        if self.group is not None:
            options.append(f"group={self.group or 'channel'}")
        if self.is_asymmetric:
            options.append("asymmetric")
        return f"int{self.bits}" + (":" + ",".join(options) if options else "")


INT4 = WeightFormat(4)
INT8 = WeightFormat(8)


def parse_weight_format(text: str) -> WeightFormat:
    """The format called ``text``: ``"int4"``, ``"int8:group=channel"``, ``"int4:group=64,asymmetric"``.

    Raises:
        UserError: the text names no format.
    """
    head, colon, tail = text.strip().partition(":")
    if head not in _BITS_OF or (colon and not tail):
        raise UserError(f"format: got {text!r:.80}; expected {_EXPECTED}")
    group: int | None = None
    is_asymmetric = False
    seen: set[str] = set()
    for option in tail.split(",") if tail else ():
        key, _, value = option.strip().partition("=")
        if key in seen:
            raise UserError(f"format {text!r:.80}: got {key} twice; expected it once")
        seen.add(key)
        if key == "group" and (
            value == "channel" or (value.isascii() and value.isdigit() and len(value) < 10)
        ):
            # A group of 0 is no way to write a channel: `group=0` in a file is a mistake more often than not.
            group = PER_CHANNEL if value == "channel" else int(value) or -1
        elif option.strip() == "asymmetric":
            is_asymmetric = True
        else:
            raise UserError(
                f"format {text!r:.80}: got option {option!r:.40}; "
                f"expected group=32, group=channel or asymmetric"
            )
    return WeightFormat(_BITS_OF[head], group, is_asymmetric)


AnyFormat = WeightFormat | DType


def parse_format(text: str) -> AnyFormat:
    """A weight format or a float dtype (f32, bf16, f16).

    Raises:
        UserError: neither.
    """
    name = text.strip()
    if name.partition(":")[0] in _BITS_OF:
        return parse_weight_format(name)
    try:
        found = dtype(name)
    except UserError:
        found = None
    if found is None or found.name not in _FLOATS:
        raise UserError(f"format: got {text!r:.80}; expected {', '.join(_FLOATS)}, {_EXPECTED}")
    return found


# By architecture families: projections to q, k, v; what makes logits (and its table of the inputs).
_QKV = "*qkv_proj|*c_attn"
_HEAD = "lm_head|*embed_tokens|*wte"
# The weights whose rounding costs most perplexity per byte saved, measured: docs/howto/quantize.md.
NAMED_CHOICES: dict[str, str] = {
    "int4": f"int4;{_HEAD}=int4:asymmetric",
    "q4": f"int4;{_HEAD}=int4:asymmetric",
    "mixed": f"int4;{_HEAD}|{_QKV}=int8",
}
# Models of other families may have no weights of these names.
_NAMED_PATTERNS = frozenset((_HEAD, f"{_HEAD}|{_QKV}"))


@dataclass(frozen=True, slots=True)
class FormatChoice:
    """Which format each weight gets. ``parse_format_choice(str(choice)) == choice``.

    Attributes:
        default: Format of all weights that no rule names.
        rules: ``(pattern, format)``; the last pattern that fits a weight's name decides.
    """

    default: AnyFormat
    rules: tuple[tuple[str, AnyFormat], ...] = ()

    def of(self, name: str) -> AnyFormat:
        """Format of the weight ``name`` (``"model.layers.0.mlp.down_proj.weight"``)."""
        chosen = self.default
        for pattern, format in self.rules:
            if _fits(pattern, name):
                chosen = format
        return chosen

    def unused_patterns(self, names: Iterable[str]) -> tuple[str, ...]:
        """Patterns that fit none of the weights ``names``, other than those of named choices."""
        known, patterns = tuple(names), (p for p, _ in self.rules if p not in _NAMED_PATTERNS)
        return tuple(p for p in patterns if not any(_fits(p, name) for name in known))

    @property
    def formats(self) -> tuple[AnyFormat, ...]:
        """All formats that occur, the default first, each once."""
        return tuple(dict.fromkeys((self.default, *(format for _, format in self.rules))))

    @property
    def is_quantized(self) -> bool:
        """Whether any weight may get codes."""
        return any(isinstance(format, WeightFormat) for format in self.formats)

    @property
    def explicit(self) -> str:
        """Its text without the names of choices: ``int4`` is the format. Folders say this."""
        return ";".join([str(self.default), *(f"{pattern}={format}" for pattern, format in self.rules)])

    def __str__(self) -> str:
        text = self.explicit
        if text in NAMED_CHOICES:
            return f"{text}:group={USUAL_GROUPS[4][0]}"
        return next((name for name, meant in NAMED_CHOICES.items() if meant == text), text)


def _fits(pattern: str, name: str) -> bool:
    short = name.removesuffix(".weight")
    return any(fnmatchcase(name, glob) or fnmatchcase(short, glob) for glob in pattern.split("|"))


def parse_format_choice(text: str | AnyFormat | FormatChoice, *, has_names: bool = True) -> FormatChoice:
    """The choice that ``text`` describes: a format, formats by weight, or the name of a choice ("mixed").

    Args:
        text: As people write it, or as a choice prints; anything else is the choice already.
        has_names: Whether names of choices are known; without them, it is an ``explicit`` text.

    Raises:
        UserError: the text is no choice.
    """
    if isinstance(text, FormatChoice):
        return text
    if isinstance(text, WeightFormat | DType):
        return FormatChoice(text)
    first, *rest = (NAMED_CHOICES.get(text.strip(), text) if has_names else text).split(";")
    rules: list[tuple[str, AnyFormat]] = []
    for item in rest:
        pattern, equals, format = item.partition("=")
        if not pattern.strip() or not equals:
            raise UserError(
                f"format {text!r:.80}: got {item!r:.60}; expected PATTERN=FORMAT, like lm_head=int8"
            )
        rules.append((pattern.strip(), parse_format(format)))
    return FormatChoice(parse_format(first), tuple(rules))
