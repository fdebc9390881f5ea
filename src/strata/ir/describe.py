"""Passes and pipelines as data, for ``strata passes`` and ``docs/passes.md``."""

from __future__ import annotations

import inspect
import re
import types
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any, get_args, get_origin

from .options import format_value, option_types
from .passes import PASSES, PIPELINES, Pass


@dataclass(frozen=True, slots=True)
class OptionInfo:
    """One option of a pass.

    Attributes:
        name: Its key in pipeline text.
        kind: Accepted values in words.
        default: Text of the value when nobody sets it.
        doc: What it does.
    """

    name: str
    kind: str
    default: str
    doc: str


@dataclass(frozen=True, slots=True)
class PassInfo:
    """One pass.

    Attributes:
        name: Its word in pipelines.
        ir: ``"graph"`` or ``"loop"``.
        summary: First sentence of its docstring.
        doc: The whole docstring, without the options.
        options: What can be set.
    """

    name: str
    ir: str
    summary: str
    doc: str
    options: tuple[OptionInfo, ...]


def describe_passes() -> tuple[PassInfo, ...]:
    """All registered passes, sorted by name."""
    return tuple(describe_pass(PASSES[name]) for name in sorted(PASSES))


def describe_pass(cls: type[Pass[Any]]) -> PassInfo:
    """What a pass says about itself."""
    doc, _, attributes = (inspect.getdoc(cls) or "").partition("\nAttributes:\n")
    summary = " ".join(doc.split("\n\n")[0].split())
    docs = _attribute_docs(attributes)
    kinds = option_types(cls)
    options = tuple(
        OptionInfo(f.name, _kind_text(kinds[f.name]), format_value(f.default), docs.get(f.name, ""))
        for f in fields(cls)
    )
    return PassInfo(cls.name, cls.ir, summary, doc.strip(), options)


def describe_pipelines() -> dict[str, str]:
    """Text of all registered pipelines, by name."""
    return {name: str(pipeline) for name, pipeline in PIPELINES.items()}


def _attribute_docs(section: str) -> dict[str, str]:
    """``name: text`` entries of a docstring's ``Attributes`` section; lines that are indented more go on."""
    found: dict[str, str] = {}
    name = ""
    for line in section.splitlines():
        if match := re.match(r" {4}(\w+): (.*)", line):
            name = match[1]
            found[name] = match[2]
        elif name and line.startswith(" " * 8):
            found[name] += " " + line.strip()
        else:
            name = ""
    return found


def _kind_text(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"list of {_kind_text(get_args(kind)[0])}"
    if get_args(kind):
        return " or ".join(_kind_text(k) for k in get_args(kind))
    if kind is types.NoneType:
        return "none"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(format_value(m) for m in kind)
    return {int: "integer", float: "number", bool: "true or false", str: "word or string"}[kind]
