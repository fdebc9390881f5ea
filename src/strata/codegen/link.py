"""A small static linker: ELF relocatable objects in, one position-independent image out.

Sections are gathered by what may be done with them and laid out in three page-aligned segments::

    text    executable                                                read + execute
    rodata  constants, and .data.rel.ro (written once, when loaded)   read
    data    variables, the table of addresses (GOT), zeroed memory    read + write

Everything inside the image is reached relative to the program counter; the only fields that depend on the
load address are 64-bit addresses in rodata and data, which become load-time relocations ``base + target``.
Sections without memory (debug information, notes, symbol tables) and unwind tables are left out.

Sections are those with ``SHF_ALLOC``; relocations and machines are those of :mod:`.relocations`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from strata.core.errors import CodegenError
from strata.runtime.image import Image, Protection, Segment

from .relocations import MACHINES, Field, fill

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")

_SHT_SYMTAB, _SHT_RELA, _SHT_NOBITS, _SHT_X86_64_UNWIND = 2, 4, 8, 0x70000001
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR, _SHF_TLS = 1, 2, 4, 0x400
_SHN_UNDEF, _SHN_ABS, _SHN_COMMON = 0, 0xFFF1, 0xFFF2
_STB_LOCAL, _STB_GLOBAL, _STB_WEAK = 0, 1, 2


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
    """A field to fill in; ``field`` is ``None`` for relocation types that the linker does not know."""

    section: _Section
    offset: int
    kind: int
    symbol: _Symbol
    addend: int
    field: Field | None
    size: int


@dataclass(slots=True)
class _Object:
    machine: int
    sections: list[_Section] = field(default_factory=list)
    symbols: list[_Symbol] = field(default_factory=list)
    relocs: list[_Reloc] = field(default_factory=list)


def _name_at(table: bytes, start: int) -> str:
    return table[start : table.index(b"\0", start)].decode()


def _read_object(data: bytes, where: str) -> _Object:
    """Parse one ELF relocatable."""
    try:
        ident, kind, machine, _, _, _, shoff, _, _, _, _, shentsize, shnum, shstrndx = _EHDR.unpack_from(data)
        if ident[:6] != b"\x7fELF\x02\x01" or kind != 1 or machine not in MACHINES or shentsize != _SHDR.size:
            expected = " or ".join(m.name for m in MACHINES.values())
            raise CodegenError(
                f"link: {where}: got no ELF relocatable object of {expected} (machine {machine}, type {kind})"
            )
        headers = [_SHDR.unpack_from(data, shoff + i * shentsize) for i in range(shnum)]
        names = data[headers[shstrndx][4] :][: headers[shstrndx][5]]
        return _read_sections(data, machine, headers, names, where)
    except (struct.error, IndexError, ValueError) as error:
        raise CodegenError(f"link: {where}: the object file is truncated or malformed ({error})") from error


def _read_sections(
    data: bytes, machine: int, headers: list[tuple[int, ...]], names: bytes, where: str
) -> _Object:
    out = _Object(machine)
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
                symbol, number = out.symbols[packed >> 32], packed & 0xFFFFFFFF
                known = MACHINES[machine].fields.get(number, (None, 0))
                out.relocs.append(_Reloc(by_index[info], place, number, symbol, addend, *known))
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


def _common_machine(objects: Sequence[_Object]) -> int:
    machines = {o.machine for o in objects}
    if len(machines) != 1:
        names = " and ".join(MACHINES[m].name for m in sorted(machines)) or "no machine"
        raise CodegenError(f"link: got objects of {names}; expected one machine")
    return machines.pop()


class _Linker:
    def __init__(self, objects: Sequence[_Object], known: dict[str, _Symbol], machine: int) -> None:
        self.objects = objects
        self.machine = machine
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
        fields = (r for o in self.objects for r in o.relocs)
        for reloc in (r for r in fields if r.field is not None and r.field.uses_got):
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
            page = MACHINES[self.machine].page_bytes
            at = -(-at // page) * page
        return out, at

    def relocate(self, reloc: _Reloc) -> None:
        """Write one field, or leave it to the loader."""
        section, value = self.target(reloc.symbol)
        address = section.address + value
        place = reloc.section.address + reloc.offset
        is_code = reloc.section.protection is Protection.READ_EXECUTE
        if reloc.field is None or (reloc.field is Field.ADDRESS64 and is_code):
            raise CodegenError(
                f"link: relocation type {reloc.kind} against {reloc.symbol.name or section.name} in"
                f" {reloc.section.name}; expected position-independent code (reloc=pic, small code model)"
            )
        if reloc.field.uses_got:
            address = self.got_section.address + self.got[id(section), value]
        address += reloc.addend
        if reloc.field is Field.ADDRESS64:
            self.load_relocs.append((place, address))
        elif not fill(reloc.section.data, reloc.offset, reloc.field, reloc.size, address, place):
            raise CodegenError(
                f"link: {reloc.symbol.name or section.name} is {address - place} bytes away, which does not"
                f" fit into {reloc.field.value}; expected less than 2 GiB of code and data"
            )

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
    machine = _common_machine(parsed)
    known = _resolve(parsed)
    _check_defined(parsed, known, exports)
    linker = _Linker(parsed, known, machine)
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
    return Image(linker.machine, memory_bytes, segments, symbols, tuple(sorted(linker.load_relocs)))
