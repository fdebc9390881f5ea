"""Machines as TOML files, and back to text that reads as the same machine.

::

    name = "my-machine"              # the file's name if left out
    like = "h100"                    # start from a machine of Strata; the rest adds or replaces
    profile = "physical"             # how ops are costed
    home = "hbm"                     # where weights and inputs are
    [memories.hbm]                   # a table per memory, link and device; keys are the fields of the part
    capacity_bytes = "80 GB"         # a number in base units, or a text with a unit
    source = "datasheet"             # of every number of the table that ``sources`` does not name
    sources = { read_j_per_byte = "O'Connor et al. 2017" }
    [devices.gpu]
    kind = "gpu"
    [devices.phu.dac]                # a converter is a table of its own

Numbers without a source are marked ``assumed``; in the machines that come with Strata each one has a source.
A ``.py`` file that defines ``machine`` is read too; functions in it that ``strata.op_cost`` decorates are
this machine's.
"""

from __future__ import annotations

import difflib
import json
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from strata.core.errors import ParseError, UnsupportedError, UserError
from strata.core.knobs import cache_folder

from .costs import costs_in
from .fitted import Family, FittedCPU, Knot
from .machine import CPU, GPU, PHU, Converter, Device, Link, Machine, Memory, Part
from .units import kind_of, parse, text_of

ASSUMED = "assumed"  # what a number without a source is said to be
DATA = Path(__file__).parent / "data"
KINDS: Mapping[str, type[Device]] = {"cpu": CPU, "gpu": GPU, "phu": PHU, "fittedcpu": FittedCPU}
_LISTS: Mapping[str, type[Part]] = {"tuple[Family, ...]": Family, "tuple[Knot, ...]": Knot}  # of tables
_PARTS: Mapping[str, type[Part]] = {"memories": Memory, "links": Link}
THIS = "this"
_OF_MACHINE = ("name", "profile", "home", "about")
_P = TypeVar("_P", bound=Part)


def this_machine_path() -> Path:
    """Where ``strata calibrate`` keeps what it measured of this computer, the machine ``this``."""
    return cache_folder() / "machines" / f"{THIS}.toml"


def machine_names() -> tuple[str, ...]:
    """Names of the machines that come with Strata."""
    return tuple(sorted(path.stem for path in DATA.glob("*.toml")))


def read_machine(name_or_path: str | Path) -> Machine:
    """The machine called so, or described in a TOML or Python file.

    Raises:
        UserError: no such machine or file, or a file that describes none.
    """
    path = Path(name_or_path)
    if str(name_or_path) == THIS:
        path = this_machine_path()
        if not path.exists():
            raise UserError("machine: 'this' is not measured yet; run: strata calibrate")
    if path.suffix not in (".toml", ".py"):
        names = machine_names()
        if str(name_or_path) not in names:
            close = difflib.get_close_matches(str(name_or_path), names, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(
                f"machine: got {str(name_or_path)!r}{hint} Expected one of {', '.join(names)}, "
                f"or a .toml or .py file"
            )
        path = DATA / f"{name_or_path}.toml"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"machine: cannot read {path}: {error}") from error
    if path.suffix == ".py":
        return _run(text, path)
    return parse_machine(text, path.name, name=path.stem, needs_sources=path.parent == DATA)


def parse_machine(
    text: str, where: str = "<text>", *, name: str = "custom", needs_sources: bool = False
) -> Machine:
    """The machine that a TOML text describes.

    Args:
        text: TOML.
        where: Name of the file, for messages.
        name: Of the machine, if the text gives none.
        needs_sources: Refuse numbers that have no source.

    Raises:
        ParseError: no TOML.
        UserError: a key that is unknown or missing, or a value that does not fit.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ParseError(f"{where}: {error}") from error
    _check_keys(where, data, ("like", *_OF_MACHINE, *_PARTS, "devices"))
    if "like" in data:
        data = _like(_text(f"{where}: like", data["like"]), data, where)
    words = {key: _text(f"{where}: {key}", data[key]) for key in _OF_MACHINE if key in data}
    reader = _Reader(where, needs_sources)
    memories, links = (reader.parts(data, group, cls) for group, cls in _PARTS.items())
    devices = reader.devices(data)
    try:
        return Machine(devices, memories=memories, links=links, **{"name": name, **words})  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _like(name: str, data: dict[str, Any], where: str) -> dict[str, Any]:
    """What another machine's file says, with what ``data`` adds and replaces."""
    if name not in machine_names():
        raise UserError(f"{where}: like: got {name!r}; expected one of {', '.join(machine_names())}")
    base = tomllib.loads((DATA / f"{name}.toml").read_text(encoding="utf-8"))
    if "like" in base:
        base = _like(base["like"], base, f"{name}.toml")
    merged = {
        key: value for key, value in {**base, **data}.items() if key not in ("like", *_PARTS, "devices")
    }
    merged |= {"about": data.get("about", ""), "name": data.get("name", "")}
    for group in (*_PARTS, "devices"):
        own = _table(f"{where}: {group}", data.get(group, {}))
        merged[group] = dict(base.get(group, {}))
        for part, table in own.items():
            at = f"{where}: {group}.{part}"
            merged[group][part] = _replaced(merged[group].get(part, {}), _table(at, table), at)
    return {key: value for key, value in merged.items() if value != ""}


def _replaced(base: Mapping[str, Any], own: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A table with keys replaced, whose sources then are others: "assumed" if none is given."""
    if not base:
        return dict(own)
    sources = dict(base.get("sources", {}))
    given = _table(f"{where}: sources", own.get("sources", {}))
    merged = dict(base)
    for key, value in own.items():
        if isinstance(value, dict) and key != "sources":
            merged[key] = _replaced(base.get(key, {}), value, f"{where}.{key}")
        elif key not in ("source", "sources"):
            merged[key] = value
            sources[key] = given.get(key, own.get("source", ASSUMED))
    return {**merged, "sources": {**sources, **given}}


def read_value(f: Field[Any], file: str, path: str, value: object) -> object:
    """A value of a field as a part takes it: texts with units become numbers.

    Args:
        f: Field of a part.
        file: Where the value is from, for messages.
        path: Of the part.
        value: As a TOML file would give it.

    Raises:
        UserError: it does not fit.
    """
    return _Reader(file, needs_sources=False).value(f, path, value)


class _Reader:
    """Tables of one file as parts of a machine."""

    def __init__(self, file: str, needs_sources: bool) -> None:
        self.file, self.needs_sources = file, needs_sources

    def parts(self, data: Mapping[str, Any], group: str, cls: type[_P]) -> list[_P]:
        tables = _table(f"{self.file}: {group}", data.get(group, {}))
        return [self.part(cls, f"{group}.{name}", name, table) for name, table in tables.items()]

    def devices(self, data: Mapping[str, Any]) -> list[Device]:
        found: list[Device] = []
        for name, table in _table(f"{self.file}: devices", data.get("devices", {})).items():
            where = f"{self.file}: devices.{name}"
            kind = _table(where, table).get("kind", "")
            if kind not in KINDS:
                got = repr(kind) if kind else "nothing"
                raise UserError(f"{where}: kind: got {got}; expected one of {', '.join(KINDS)}")
            rest = {key: value for key, value in table.items() if key != "kind"}
            found.append(self.part(KINDS[kind], f"devices.{name}", name, rest))
        return found

    def part(self, cls: type[_P], path: str, name: str, table: object) -> _P:
        where = f"{self.file}: {path}"
        given = dict(_table(where, table))
        known = {f.name: f for f in fields(cls) if f.name not in ("name", "sources")}
        source, sources = given.pop("source", None), given.pop("sources", {})
        _check_keys(where, given, (*known, "source", "sources"), tuple(known))
        if missing := [f for f in known.values() if f.default is MISSING and f.name not in given]:
            raise UserError(f"{where}: {missing[0].name} is missing; expected {_expected(missing[0])}")
        values = {key: self.value(known[key], path, value) for key, value in given.items()}
        cited = {key: _text(f"{where}: sources.{key}", text) for key, text in _table(where, sources).items()}
        if source is not None:
            cited[""] = _text(f"{where}: source", source)
        self.check_sources(cls, where, values, cited)
        try:
            return cls(name=name, sources=tuple(cited.items()), **values)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error

    def check_sources(
        self, cls: type[Part], where: str, values: Mapping[str, object], cited: dict[str, str]
    ) -> None:
        """Refuse numbers without a source, or mark defaults: the table's source is not theirs."""
        for f in filter(_is_number, fields(cls)):
            is_default = f.name not in values and f.name not in cited and not _is_neutral(f.default)
            unknown = f.name in values and cited.get(f.name, cited.get("", ASSUMED)) == ASSUMED
            if self.needs_sources and (is_default or unknown):
                raise UserError(f"{where}: {f.name}: got no source; expected one")
            if is_default and "" in cited:
                cited[f.name] = _default_source(cls)

    def value(self, f: Field[Any], path: str, value: object) -> object:
        """A value of the file as its field takes it."""
        where = f"{self.file}: {path}: {f.name}"
        expected = f"{where}: got {value!r}; expected {_expected(f)}"
        match str(f.type):
            case "Converter | None":
                return self.part(Converter, f"{path}.{f.name}", f.name, value)
            case "bool":
                if not isinstance(value, bool):
                    raise UserError(expected)
                return value
            case "int" | "float":
                kind = kind_of(f.name)
                if isinstance(value, bool) or not isinstance(value, int | float | (str if kind else int)):
                    raise UserError(expected)
                number = value if kind is None else parse(kind, value, where)
                if str(f.type) == "float":
                    return float(number)
                if not isinstance(number, int):
                    raise UserError(expected)
                return number
            case "str" | "str | None":
                return _text(where, value)
        if not isinstance(value, list):
            raise UserError(expected)
        if str(f.type) in _LISTS:
            cls = _LISTS[str(f.type)]
            return tuple(self.part(cls, f"{path}.{f.name}[{k}]", "", table) for k, table in enumerate(value))
        if not all(isinstance(v, str) for v in value):
            raise UserError(expected)
        if f.name == "ends" and len(value) != 2:
            raise UserError(expected)
        return tuple(value)


def _expected(f: Field[Any]) -> str:
    kind = kind_of(f.name)
    if kind is not None:
        return f"{kind.what} such as {kind.example!r}"
    return {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "tuple[str, str]": 'two memories, ["a", "b"]',
        "tuple[str, ...]": 'a list of texts, ["a", ...]',
        "Converter | None": "a table with the fields of a converter",
        "tuple[Family, ...]": "a list of tables, each a family of kernels",
        "tuple[Knot, ...]": "a list of tables, each with rows and costs such as s_per_flop",
    }.get(str(f.type), "a text")


def _is_number(f: Field[Any]) -> bool:
    return str(f.type) in ("int", "float")


def _is_neutral(default: object) -> bool:
    """Defaults that claim nothing: no cost, one of it, no limit. ``MISSING`` is never a default."""
    return default in (0, 1, float("inf")) or default is MISSING


def _default_source(cls: type[Part]) -> str:
    return f"assumed: the default of {cls.__name__}"


def _text(where: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: got {value!r}; expected a text")
    return value


def _table(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{where}: got {value!r}; expected a table")
    return value


def _check_keys(
    where: str, table: Iterable[str], known: tuple[str, ...], shown: tuple[str, ...] = ()
) -> None:
    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise UserError(f"{where}: no key {key!r}{hint} Expected any of {', '.join(shown or known)}")


def _run(text: str, path: Path) -> Machine:
    """What a Python file calls ``machine``."""
    module = ModuleType(f"machine of {path.name}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # dataclasses look their module up
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)
    except UserError as error:
        raise UserError(f"{path.name}: {error}") from error
    except Exception as error:
        # The file is the user's: whatever it raises is shown as a mistake in it.
        raise UserError(f"{path.name}: {type(error).__name__}: {error}") from error
    finally:
        del sys.modules[module.__name__]
    machine = getattr(module, "machine", None)
    if not isinstance(machine, Machine):
        got = f"of type {type(machine).__name__}" if hasattr(module, "machine") else "missing"
        raise UserError(f"{path.name}: machine is {got}; expected machine = strata.Machine([...])")
    own = [cost for cost in costs_in(vars(module)) if cost not in machine.costs]
    return machine.with_costs(own)


def machine_text(machine: Machine) -> str:
    """``machine`` as TOML; :func:`parse_machine` makes an equal one of it.

    Raises:
        UnsupportedError: a device whose class is no kind of device that TOML files know, or functions that
            cost ops.
    """
    if machine.costs:
        raise UnsupportedError(
            f"machine {machine.name}: costs: got {len(machine.costs)} functions, which TOML cannot say; keep "
            "the machine in a Python file"
        )
    words = {"name": machine.name, "profile": machine.profile, "home": machine.home, "about": machine.about}
    lines = [f"{key} = {_toml(value)}" for key, value in words.items() if value]
    for memory in machine.memories:
        lines += _lines(memory, f"memories.{_key(memory.name)}")
    for k, link in enumerate(machine.links):
        lines += _lines(link, f"links.{_key(link.name or f'link{k}')}")
    for device in machine.devices:
        if KINDS.get(device.kind) is not type(device):
            raise UnsupportedError(
                f"machine {machine.name}: device {device.name}: {type(device).__name__} is no kind that "
                f"TOML has ({', '.join(KINDS)}); keep the machine in a Python file"
            )
        lines += _lines(device, f"devices.{_key(device.name)}", kind=device.kind)
    return "\n".join(lines) + "\n"


def _lines(part: Part, path: str, kind: str | None = None, header: str = "[{}]") -> list[str]:
    """The table of one part; its converters and lists of parts follow as tables of their own."""
    lines = ["", header.format(path)] + ([f"kind = {_toml(kind)}"] if kind else [])
    tables: list[str] = []
    cited = dict(part.sources)
    for f in fields(part):
        value = getattr(part, f.name)
        if f.name in ("name", "sources") or (value == f.default and _goes_without_saying(part, f)):
            cited.pop(f.name, None)
        elif isinstance(value, Converter):
            tables += _lines(value, f"{path}.{f.name}")
        elif str(f.type) in _LISTS:
            for member in value:
                tables += _lines(member, f"{path}.{f.name}", header="[[{}]]")
        elif value is not None:  # TOML has no way to say nothing; a source may still say why
            kind_of_number = kind_of(f.name) if isinstance(value, float) else None
            lines.append(f"{f.name} = {_toml(text_of(kind_of_number, value) if kind_of_number else value)}")
    if "" in cited:
        lines.append(f"source = {_toml(cited.pop(''))}")
    if cited:
        lines.append(
            f"sources = {{ {', '.join(f'{name} = {_toml(text)}' for name, text in cited.items())} }}"
        )
    return lines + tables


def _goes_without_saying(part: Part, f: Field[Any]) -> bool:
    """Whether reading a table without the field gives its default with the source that it has."""
    source = dict(part.sources).get(f.name)
    if _is_number(f) and not _is_neutral(f.default):
        return source == _default_source(type(part)) and "" in dict(part.sources)
    return source is None


def _key(name: str) -> str:
    return name if name.replace("-", "_").isidentifier() and name.isascii() else _toml(name)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return repr(value)
