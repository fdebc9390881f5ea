"""Fields of machine code that depend on where things are: what the linker fills in, by instruction set.

A relocation says which field of a place P has to hold which function of the address of a symbol S and an
addend A (or of G, the address of the symbol's entry in the GOT):

============== ============================================== ============================================
field          value                                          where
============== ============================================== ============================================
``ADDRESS64``  ``S + A``                                      64 bits of data, by the loader
``PC32``       ``S + A - P``                                  32 bits, signed
``PC64``       ``S + A - P``                                  64 bits
``GOT_PC32``   ``G + A - P``                                  32 bits, signed
``PAGE``       pages from that of P to that of ``S + A``      ``adrp``: 21 bits
``LOW12``      low 12 bits of ``S + A``, divided by a size    ``add``, ``ldr``, ``str``: 12 bits
``BRANCH``     ``(S + A - P) / 4``                            ``b``, ``bl``: 26 bits
``GOT_PAGE``   like ``PAGE``, of G                            ``adrp``
``GOT_LOW12``  like ``LOW12``, of G                           ``ldr``
============== ============================================== ============================================

Segments start on page boundaries wherever the image is loaded, so pages count from the start of the image.

Sources: System V ABI, AMD64 supplement, table 4.10; ELF for the Arm 64-bit Architecture, section 5.7.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

EM_X86_64, EM_AARCH64 = 62, 183
_PAGE_BITS = 12


class Field(Enum):
    """What a relocation fills in; see the table above."""

    ADDRESS64 = "address"
    PC32 = "pc32"
    PC64 = "pc64"
    GOT_PC32 = "got_pc32"
    PAGE = "page"
    LOW12 = "low12"
    BRANCH = "branch"
    GOT_PAGE = "got_page"
    GOT_LOW12 = "got_low12"

    @property
    def uses_got(self) -> bool:
        """Whether the symbol needs an entry in the table of addresses."""
        return self in (Field.GOT_PC32, Field.GOT_PAGE, Field.GOT_LOW12)


@dataclass(frozen=True, slots=True)
class Machine:
    """How objects of one instruction set are linked.

    Attributes:
        name: For messages.
        page_bytes: Alignment of segments: the largest page of the operating system.
        fields: Field and size (``LOW12``: bytes of an access, log2) by relocation type.
    """

    name: str
    page_bytes: int
    fields: dict[int, tuple[Field, int]]


def _low12(shifts: dict[int, int]) -> dict[int, tuple[Field, int]]:
    return {kind: (Field.LOW12, shift) for kind, shift in shifts.items()}


MACHINES = {
    EM_X86_64: Machine(
        "x86-64",
        4096,
        {
            1: (Field.ADDRESS64, 0),  # R_X86_64_64
            2: (Field.PC32, 0),  # PC32
            4: (Field.PC32, 0),  # PLT32
            9: (Field.GOT_PC32, 0),  # GOTPCREL
            24: (Field.PC64, 0),  # PC64
            41: (Field.GOT_PC32, 0),  # GOTPCRELX
            42: (Field.GOT_PC32, 0),  # REX_GOTPCRELX
        },
    ),
    EM_AARCH64: Machine(
        "AArch64",
        65536,
        {
            257: (Field.ADDRESS64, 0),  # R_AARCH64_ABS64
            260: (Field.PC64, 0),  # PREL64
            261: (Field.PC32, 0),  # PREL32
            275: (Field.PAGE, 0),  # ADR_PREL_PG_HI21
            282: (Field.BRANCH, 0),  # JUMP26
            283: (Field.BRANCH, 0),  # CALL26
            # ADD_ABS_LO12_NC, LDST8_ABS_LO12_NC and those of 16, 32, 64 and 128 bits
            **_low12({277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}),
            311: (Field.GOT_PAGE, 0),  # ADR_GOT_PAGE
            312: (Field.GOT_LOW12, 3),  # LD64_GOT_LO12_NC
        },
    ),
}


def fill(data: bytearray, offset: int, field: Field, size: int, address: int, place: int) -> bool:
    """Write a field.

    Args:
        data: Contents of the section.
        offset: Where in it.
        field: Which field; not ``ADDRESS64``.
        size: log2 of the bytes of an access (``LOW12``).
        address: ``S + A``, or ``G + A``.
        place: ``P``.

    Returns:
        Whether the value fits into the field.
    """
    distance = address - place
    match field:
        case Field.PC32 | Field.GOT_PC32:
            return _pack("<i", data, offset, distance)
        case Field.PC64 | Field.ADDRESS64:
            return _pack("<q", data, offset, distance)
        case Field.BRANCH:
            if distance % 4 or not _fits(distance >> 2, 26):
                return False
            _insert(data, offset, distance >> 2, 26, 0)
        case Field.PAGE | Field.GOT_PAGE:
            pages = (address >> _PAGE_BITS) - (place >> _PAGE_BITS)
            if not _fits(pages, 21):
                return False
            _insert(data, offset, pages, 2, 29)
            _insert(data, offset, pages >> 2, 19, 5)
        case Field.LOW12 | Field.GOT_LOW12:
            low = address % (1 << _PAGE_BITS)
            if low % (1 << size):
                return False
            _insert(data, offset, low >> size, 12, 10)
        case _:
            assert_never(field)
    return True


def _fits(value: int, bits: int) -> bool:
    return -(1 << (bits - 1)) <= value < 1 << (bits - 1)


def _pack(code: str, data: bytearray, offset: int, value: int) -> bool:
    if not _fits(value, 8 * struct.calcsize(code)):
        return False
    struct.pack_into(code, data, offset, value)
    return True


def _insert(data: bytearray, offset: int, value: int, bits: int, at: int) -> None:
    """Replace ``bits`` bits of an instruction from bit ``at`` up."""
    mask = ((1 << bits) - 1) << at
    (word,) = struct.unpack_from("<I", data, offset)
    struct.pack_into("<I", data, offset, word & ~mask | (value << at) & mask)
