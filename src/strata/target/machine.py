"""A machine as frozen data: instruction set, registers, caches, cores and nominal speeds.

Text form, one line; it parses back to the same target::

    Target ::= name "{" key "=" value ("," key "=" value)* "}"     keys: the fields of Target
    value  ::= integer | float.hex() | word | word ("+" word)*     lists are joined by "+"; "-" is empty

A target says what the code generator may use (``features``) and what the cost estimates assume (the rest).
"""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, fields

from strata.core.errors import ParseError, UserError

CACHE_LINE_BYTES = 64  # of every CPU that we make code for
_WORD = re.compile(r"[A-Za-z0-9_.\-]+")


@dataclass(frozen=True, slots=True)
class Target:
    """A machine that code is generated for.

    Attributes:
        name: Registry name (``"zen4"``) or ``"host"``.
        triple: LLVM target triple.
        cpu: CPU whose pipeline LLVM schedules for (``"znver4"``); instructions come from ``features`` only.
        features: Instruction sets that the code may use, LLVM names, sorted (``("avx2", "fma")``).
        vector_bytes: Width of one vector register.
        num_vector_registers: Vector registers that the instruction set names.
        l1_bytes: Level-1 data cache of one core.
        l2_bytes: Level-2 cache of one core.
        l3_bytes: Last-level cache that the cores share.
        num_cores: Cores to run on.
        peak_f32_flop_per_s: f32 multiply-adds of all cores, two flop each; nominal.
        peak_bf16_flop_per_s: The same for bf16 inputs with f32 sums, by the fastest instructions for it.
        peak_int8_op_per_s: The same for 8-bit integers with i32 sums, two operations each.
        bandwidth_bytes_per_s: Main memory read bandwidth of all cores; nominal.
        fetch_ahead_bytes: How far ahead of its use one core best asks for what it streams from memory.
        source: Where the speeds come from: ``"nominal"``, ``"measured"`` or ``"assumed"``.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bytes: int
    num_vector_registers: int
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    num_cores: int
    peak_f32_flop_per_s: float
    peak_bf16_flop_per_s: float
    peak_int8_op_per_s: float
    bandwidth_bytes_per_s: float
    fetch_ahead_bytes: int = 1024
    source: str = "nominal"

    def __post_init__(self) -> None:
        if self.vector_bytes not in (16, 32, 64):
            raise UserError(
                f"target {self.name}: got vector_bytes={self.vector_bytes}; expected 16, 32 or 64"
            )
        for word in (self.name, self.triple, self.cpu, self.source, *self.features):
            if not _WORD.fullmatch(word):
                raise UserError(
                    f"target {self.name}: got {word!r}; expected letters, digits and any of _ . -"
                )

    def has(self, feature: str) -> bool:
        """Whether the code may use the instruction set called ``feature`` (LLVM name)."""
        return feature in self.features

    @property
    def arch(self) -> str:
        """First part of the triple: ``"x86_64"``, ``"aarch64"``."""
        return self.triple.split("-", 1)[0]

    @property
    def has_bf16_dot(self) -> bool:
        """A native dot product of bf16 pairs with f32 sums."""
        return self.has("bf16" if self.arch == "aarch64" else "avx512bf16")

    @property
    def has_int8_dot(self) -> bool:
        """A native dot product of groups of four 8-bit integers with i32 sums."""
        return any(self.has(f) for f in ("avx512vnni", "avxvnni", "dotprod", "i8mm"))

    @property
    def prefers_bf16_dot(self) -> bool:
        """Its dot product of bf16 pairs is faster than two f32 multiply-adds.

        On Intel's cores (Sapphire and Emerald Rapids) it runs at half their rate: docs/performance.md.
        """
        return self.has_bf16_dot and self.cpu != "sapphirerapids"

    @property
    def multiplies_bf16_pairs(self) -> bool:
        """Products of bf16 are fastest where pairs of k lie together: by dot products, or a matrix unit."""
        return self.prefers_bf16_dot or self.has_matrix_bf16

    @property
    def has_matrix_bf16(self) -> bool:
        """A unit that multiplies tiles of bf16 with f32 sums (AMX)."""
        return self.has("amx-bf16")

    @property
    def has_matrix_int8(self) -> bool:
        """A unit that multiplies tiles of 8-bit integers with i32 sums (AMX)."""
        return self.has("amx-int8")

    @property
    def has_bf16_conversion(self) -> bool:
        """Instructions that round f32 to bf16."""
        return self.has_bf16_dot

    @property
    def has_fma(self) -> bool:
        """Multiply-adds with one rounding."""
        return self.arch == "aarch64" or self.has("fma")

    @property
    def has_f16_conversion(self) -> bool:
        """Instructions that convert between f16 and f32."""
        return self.arch == "aarch64" or self.has("f16c")

    @property
    def has_float_rounding(self) -> bool:
        """Instructions that round floats to whole numbers."""
        return self.arch == "aarch64" or self.has("sse4.1")

    @property
    def has_scale_by_power(self) -> bool:
        """Instructions that split a float at its binary point and that multiply by a power of 2."""
        return self.has("avx512dq") and self.has("avx512vl")

    @property
    def register_lanes(self) -> tuple[int, ...]:
        """f32 (or i32) elements of the vector registers, the widest first: ``(16, 8, 4)``."""
        return tuple(n for n in (16, 8, 4) if n <= self.lanes_f32)

    @property
    def lanes_f32(self) -> int:
        """f32 elements of one vector register."""
        return self.vector_bytes // 4

    @property
    def feature_string(self) -> str:
        """``features`` as LLVM takes them: ``"+avx2,+fma"``."""
        return ",".join(f"+{f}" for f in self.features)

    def __str__(self) -> str:
        parts = [f"{f.name}={_value_text(getattr(self, f.name))}" for f in fields(self) if f.name != "name"]
        return f"{self.name}{{{','.join(parts)}}}"


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return "+".join(value) or "-"
    return value.hex() if isinstance(value, float) else str(value)


def parse_target(text: str) -> Target:
    """Parse ``str(target)``.

    Raises:
        ParseError: not of that form, an unknown, repeated or missing key, or a value that is no number.
        UserError: a value that no target may have.
    """
    match = re.fullmatch(r"\s*([A-Za-z0-9_.\-]+)\{([^{}]*)\}\s*", text)
    if match is None:
        raise ParseError(f"target: got {text!r}; expected name{{key=value,...}}")
    known = {f.name: f for f in fields(Target) if f.name != "name"}
    values: dict[str, object] = {"name": match[1]}
    for part in match[2].split(","):
        key, eq, word = part.partition("=")
        if not eq or key not in known or key in values:
            raise ParseError(f"target {match[1]}: got {part!r}; expected each of {', '.join(known)} once")
        values[key] = _parse_value(match[1], key, word, str(known[key].type))
    required = [f.name for f in known.values() if f.default is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise ParseError(f"target {match[1]}: no value for {', '.join(missing)}")
    return Target(**values)  # type: ignore[arg-type]


def _parse_value(target: str, key: str, word: str, kind: str) -> object:
    if kind.startswith("tuple"):
        return () if word == "-" else tuple(word.split("+"))
    if kind == "str":
        return word
    try:
        return int(word) if kind == "int" else float.fromhex(word)
    except ValueError:
        expected = "an integer" if kind == "int" else "a hexadecimal float"
        raise ParseError(f"target {target}: got {key}={word}; expected {expected}") from None
