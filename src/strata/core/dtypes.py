"""Element types of tensors, by the names that every text form uses.

NumPy is not imported here; ``np.dtype(DType.numpy_name)`` gives its type once ``ml_dtypes`` is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from .errors import UserError


class Kind(Enum):
    """What a dtype's bits mean."""

    FLOAT = "float"
    INT = "int"
    UINT = "uint"
    BOOL = "bool"


@dataclass(frozen=True, slots=True, eq=False)
class DType:
    """An element type: one object for each, compared by identity.

    Attributes:
        name: Strata's name (``"bf16"``), used in every text form.
        kind: Float, signed, unsigned or bool.
        bits: Width of one element in memory, in bits; elements of 4 bits are stored two to a byte.
        numpy_name: Name that ``np.dtype`` accepts (with ``ml_dtypes`` imported).
    """

    name: str
    kind: Kind
    bits: int
    numpy_name: str

    @property
    def itemsize_bytes(self) -> int:
        """Bytes of one element in an array that is not packed: 1 for elements of 4 bits."""
        return max(self.bits // 8, 1)

    @property
    def is_float(self) -> bool:
        """True for f16, bf16, f32, f64."""
        return self.kind is Kind.FLOAT

    @property
    def is_int(self) -> bool:
        """True for signed and unsigned integers (not bool)."""
        return self.kind in (Kind.INT, Kind.UINT)

    def __reduce__(self) -> tuple[Callable[[str], DType], tuple[str]]:
        return dtype, (self.name,)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return self.name


f64 = DType("f64", Kind.FLOAT, 64, "float64")
f32 = DType("f32", Kind.FLOAT, 32, "float32")
f16 = DType("f16", Kind.FLOAT, 16, "float16")
bf16 = DType("bf16", Kind.FLOAT, 16, "bfloat16")
i64 = DType("i64", Kind.INT, 64, "int64")
i32 = DType("i32", Kind.INT, 32, "int32")
i16 = DType("i16", Kind.INT, 16, "int16")
i8 = DType("i8", Kind.INT, 8, "int8")
u4 = DType("u4", Kind.UINT, 4, "uint4")
u8 = DType("u8", Kind.UINT, 8, "uint8")
u16 = DType("u16", Kind.UINT, 16, "uint16")
u32 = DType("u32", Kind.UINT, 32, "uint32")
bool_ = DType("bool", Kind.BOOL, 8, "bool")

ALL_DTYPES: dict[str, DType] = {
    d.name: d for d in (f64, f32, f16, bf16, i64, i32, i16, i8, u4, u8, u16, u32, bool_)
}
_ALIASES = {d.numpy_name: d for d in ALL_DTYPES.values()}


def dtype(name: str | DType) -> DType:
    """The dtype called ``name`` (Strata's name or NumPy's: ``"f16"``, ``"float16"``).

    Raises:
        UserError: no such dtype; lists those that exist.
    """
    if isinstance(name, DType):
        return name
    found = ALL_DTYPES.get(name) or _ALIASES.get(name)
    if found is None:
        raise UserError(f"dtype: got {name!r}; expected one of {', '.join(ALL_DTYPES)}")
    return found
