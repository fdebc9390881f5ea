"""A small static linker: ELF relocatable objects in, one position-independent image out.

Sections are gathered by what may be done with them and laid out in three page-aligned segments::

    text    executable                                                read + execute
    rodata  constants, and .data.rel.ro (written once, when loaded)   read
    data    variables, the table of addresses (GOT), zeroed memory    read + write

Everything inside the image is reached relative to the program counter; the only fields that depend on the
load address are 64-bit addresses in rodata and data, which become load-time relocations ``base + target``.
Sections without memory (debug information, notes, symbol tables) and unwind tables are left out.

Only x86-64 so far: sections ``SHF_ALLOC``, relocations ``R_X86_64_{64,PC32,PC64,PLT32,GOTPCREL,GOTPCRELX,
REX_GOTPCRELX}``.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from strata.core.errors import CodegenError
from strata.runtime.image import PAGE_BYTES, Image, Protection, Segment

EM_X86_64 = 62

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")

_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_X86_64_UNWIND = 2, 4, 8, 0x70000001
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_TLS = 1, 2, 4, 0x400
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON = 0, 0xFFF1, 0xFFF2
_STB_LOCAL, _STB_GLOBAL, _STB_WEAK = 0, 1, 2

_R_64, _R_PC32, _R_PLT32, _R_GOTPCREL, _R_PC64 = 1, 2, 4, 9, 24
_R_GOTPCRELX, _R_REX_GOTPCRELX = 41, 42
_RELATIVE32 = frozenset({_R_PC32, _R_PLT32})
_GOT32 = frozenset({_R_GOTPCREL, _R_GOTPCRELX, _R_REX_GOTPCRELX})


@dataclass(slots=True)
class _Section:
    """A section that gets memory; ``address`` is set by the layout."""

    name: str
    data: bytearray
    size: int
    align: int
    flags: int
    nobits: bool
    address: int = 0

    @property
    def protection(self) -> Protection:
        """The segment it goes to."""
        if self.flags & _SHF_EXECINSTR:
            return Protection.READ_EXECUTE
        if self.flags & _SHF_WRITE and not self.name.startswith(".data.rel.ro"):
            return Protection.READ_WRITE
        return Protection.READ


@dataclass(frozen=True, slots=True)
class _Symbol:
    """A symbol; ``section`` is ``None`` where it is undefined."""

    name: str
    binding: int
    section: _Section | None
    value: int
    absolute: bool = False


@dataclass(frozen=True, slots=True)
class _Reloc:
    section: _Section
    offset: int
    kind: int
    symbol: _Symbol
    addend: int


@dataclass(slots=True)
class _Object:
    sections: list[_Section] = field(default_factory=list)
    symbols: list[_Symbol] = field(default_factory=list)
    relocs: list[_Reloc] = field(default_factory=list)


def _name_at(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode()


def _read_object(data: bytes, where: str) -> _Object:
    """Parse one ELF relocatable."""
    try:
        ident, kind, machine, _, _, _, shoff, _, _, _, _, shentsize, shnum, shstrndx = _EHDR.unpack_from(data)
        if ident[:6] != b"\x7fELF\x02\x01" or kind != 1 or machine != EM_X86_64 or shentsize != _SHDR.size:
            raise CodegenError(
                f"link: {where}: got no x86-64 ELF relocatable object (machine {machine}, type {kind})"
            )
        headers = [_SHDR.unpack_from(data, shoff + i * shentsize) for i in range(shnum)]
        names = data[headers[shstrndx][4] :][: headers[shstrndx][5]]
        return _read_sections(data, headers, names, where)
    except (struct.error, IndexError, ValueError) as error:
        raise CodegenError(f"link: {where}: the object file is truncated or malformed ({error})") from error


def _read_sections(data: bytes, headers: list[tuple[int, ...]], names: bytes, where: str) -> _Object:
    out = _Object()
    by_index: dict[int, _Section] = {}
    for i, (name_at, kind, flags, _, offset, size, _, _, align, _) in enumerate(headers):
        name = _name_at(names, name_at)
        if not flags & _SHF_ALLOC or kind == _SHT_X86_64_UNWIND or name == ".eh_frame":
            continue
        if flags & _SHF_TLS:
            raise CodegenError(f"link: {where}: got thread-local section {name}; expected none")
        nobits = kind == _SHT_NOBITS
        content = bytearray() if nobits else bytearray(data[offset : offset + size])
        by_index[i] = _Section(name, content, size, max(align, 1), flags, nobits)
    out.sections = list(by_index.values())
    for _, kind, _, _, offset, size, link, _, _, _ in headers:
        if kind == _SHT_SYMTAB:
            strings = data[headers[link][4] :][: headers[link][5]]
            table = data[offset : offset + size]
            out.symbols = [_read_symbol(entry, strings, by_index, out) for entry in _SYM.iter_unpack(table)]
    for _, kind, _, _, offset, size, _, info, _, _ in headers:
        if kind == _SHT_RELA and info in by_index:
            for place, packed, addend in _RELA.iter_unpack(data[offset : offset + size]):
                symbol = out.symbols[packed >> 32]
                out.relocs.append(_Reloc(by_index[info], place, packed & 0xFFFFFFFF, symbol, addend))
    return out


def _read_symbol(
    entry: tuple[int, ...], strings: bytes, sections: dict[int, _Section], out: _Object
) -> _Symbol:
    name_at, info, _, index, value, size = entry
    name, binding = _name_at(strings, name_at), info >> 4
    if index == _SHN_ABS:
        return _Symbol(name, binding, None, value, absolute=True)
    if index == _SHN_COMMON:  # tentative definition: ``value`` is its alignment
        section = _Section(".bss." + name, bytearray(), size, max(value, 1), _SHF_ALLOC | _SHF_WRITE, True)
        out.sections.append(section)
        return _Symbol(name, _STB_WEAK, section, 0)
    return _Symbol(name, binding, sections.get(index), value)


def _resolve(objects: Sequence[_Object]) -> dict[str, _Symbol]:
    """Global definitions by name: a strong one wins over weak ones; the first weak one counts."""
    found: dict[str, _Symbol] = {}
    for obj in objects:
        for symbol in obj.symbols:
            if symbol.binding == _STB_LOCAL or symbol.section is None:
                continue
            before = found.get(symbol.name)
            if before is not None and _STB_WEAK not in (before.binding, symbol.binding):
                raise CodegenError(
                    f"link: symbol {symbol.name} is defined twice; names of kernels must be unique"
                )
            if before is None or (before.binding == _STB_WEAK and symbol.binding == _STB_GLOBAL):
                found[symbol.name] = symbol
    return found


def _check_defined(objects: Sequence[_Object], known: dict[str, _Symbol], exports: Iterable[str]) -> None:
    used = {
        r.symbol.name for o in objects for r in o.relocs if r.symbol.section is None and not r.symbol.absolute
    }
    missing = sorted((used | set(exports)) - set(known))
    if missing:
        raise CodegenError(
            f"link: undefined symbols: {', '.join(missing)}; generated code may only call what the run-time"
            " support defines"
        )


class _Linker:
    def __init__(self, objects: Sequence[_Object], known: dict[str, _Symbol]) -> None:
        self.objects = objects
        self.known = known
        self.got: dict[tuple[int, int], int] = {}  # (id of section, value) -> offset in the GOT
        self.got_section = _Section(".got", bytearray(), 0, 8, _SHF_ALLOC | _SHF_WRITE, False)
        self.load_relocs: list[tuple[int, int]] = []

    def target(self, symbol: _Symbol) -> tuple[_Section, int]:
        """Where a symbol is: its section and offset."""
        if symbol.section is None:
            if symbol.absolute:
                raise CodegenError(
                    f"link: symbol {symbol.name} is absolute; expected an address in the image"
                )
            symbol = self.known[symbol.name]
        assert symbol.section is not None
        return symbol.section, symbol.value

    def reserve_got(self) -> None:
        """Give every symbol that is reached through the GOT an entry."""
        for reloc in (r for o in self.objects for r in o.relocs if r.kind in _GOT32):
            section, value = self.target(reloc.symbol)
            self.got.setdefault((id(section), value), 8 * len(self.got))
        self.got_section.size = 8 * len(self.got)
        self.got_section.data = bytearray(self.got_section.size)

    def layout(self) -> tuple[list[tuple[Protection, int, int, list[_Section]]], int]:
        """Assign addresses; returns (protection, start, size, sections) of the segments and the end."""
        sections = [s for o in self.objects for s in o.sections] + [self.got_section]
        out, at = [], 0
        for protection in (Protection.READ_EXECUTE, Protection.READ, Protection.READ_WRITE):
            members = sorted((s for s in sections if s.protection is protection), key=lambda s: s.nobits)
            start = at
            for section in members:
                at = -(-at // section.align) * section.align
                section.address = at
                at += section.size
            if at > start:
                out.append((protection, start, at - start, members))
            at = -(-at // PAGE_BYTES) * PAGE_BYTES
        return out, at

    def relocate(self, reloc: _Reloc) -> None:
        """Write one field, or leave it to the loader."""
        section, value = self.target(reloc.symbol)
        address = section.address + value + reloc.addend
        place = reloc.section.address + reloc.offset
        if reloc.kind in _GOT32:
            slot = self.got_section.address + self.got[id(section), value]
            self._write32(reloc, slot + reloc.addend - place)
        elif reloc.kind in _RELATIVE32:
            self._write32(reloc, address - place)
        elif reloc.kind == _R_PC64:
            struct.pack_into("<q", reloc.section.data, reloc.offset, address - place)
        elif reloc.kind == _R_64 and reloc.section.protection is not Protection.READ_EXECUTE:
            self.load_relocs.append((place, address))
        else:
            raise CodegenError(
                f"link: relocation type {reloc.kind} against {reloc.symbol.name or section.name} in"
                f" {reloc.section.name}; expected position-independent code (reloc=pic, small code model)"
            )

    def _write32(self, reloc: _Reloc, value: int) -> None:
        if not -(2**31) <= value < 2**31:
            raise CodegenError(
                f"link: {reloc.symbol.name} is {value} bytes away; expected less than 2 GiB of code"
            )
        struct.pack_into("<i", reloc.section.data, reloc.offset, value)

    def fill_got(self) -> None:
        """GOT entries are addresses, set by the loader."""
        by_id = {id(s): s for o in self.objects for s in o.sections}
        for (section_id, value), offset in self.got.items():
            self.load_relocs.append((self.got_section.address + offset, by_id[section_id].address + value))


def _content(start: int, members: Sequence[_Section]) -> bytes:
    """Bytes of a segment, without the zeroed end."""
    data = bytearray()
    for section in members:
        if not section.nobits:
            data += bytes(section.address - start - len(data))
            data += section.data
    return bytes(data)


def link(objects: Sequence[bytes], exports: Iterable[str]) -> Image:
    """Link relocatable objects into an image.

    Args:
        objects: ELF files, as ``compile_object`` returns them.
        exports: Symbols that the image's table lists.

    Raises:
        CodegenError: undefined or doubly defined symbols (all undefined ones are listed), a malformed
            object, or code that is not position independent.
    """
    exports = list(exports)
    parsed = [_read_object(data, f"object {i}") for i, data in enumerate(objects)]
    known = _resolve(parsed)
    _check_defined(parsed, known, exports)
    linker = _Linker(parsed, known)
    linker.reserve_got()
    layout, memory_bytes = linker.layout()
    for obj in parsed:
        for reloc in obj.relocs:
            linker.relocate(reloc)
    linker.fill_got()
    segments = tuple(
        Segment(start, size, _content(start, members), prot) for prot, start, size, members in layout
    )
    symbols = {}
    for name in exports:
        section, value = linker.target(known[name])
        symbols[name] = section.address + value
    return Image(EM_X86_64, memory_bytes, segments, symbols, tuple(sorted(linker.load_relocs)))
