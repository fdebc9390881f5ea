"""Passes and pipelines: pure functions ``module -> module`` with a text form, shared by both IRs.

::

    Pipeline ::= item ("," item)* ","?                one nested pipeline is itself unless a comma follows
    item     ::= name options?                        a registered pass, or a named pipeline (without options)
               | name? "(" Pipeline? ")"              a nested pipeline; the name is only a label
    options  ::= "{" key "=" value ("," key "=" value)* "}"
    value    ::= integer | float | true | false | none | word | "string" | "[" (value ("," value)*)? "]"

A pass is a frozen dataclass; its fields are its options and its text::

    @register_pass
    @dataclass(frozen=True)
    class Fuse(Pass[Module]):
        name: ClassVar[str] = "fuse"
        max_ops: int = 32
        def run(self, module: Module) -> Module: ...

    str(Fuse(max_ops=8)) == "fuse{max_ops=8}"

``str`` prints the options that differ from their defaults, and ``parse_pipeline(str(p)) == p``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Generic, TypeVar, Union

from strata.core.errors import UserError
from strata.core.registry import Registry

from .options import Scanner, convert_option, format_value, is_word, option_types

M = TypeVar("M")


class OptionError(UserError):
    """An option of a pass does not fit the module at hand: the user's mistake, not the pass'."""


@dataclass(frozen=True)
class Pass(ABC, Generic[M]):
    """One transformation of a module. Subclasses are frozen dataclasses; fields are options with defaults.

    Option types: ``int``, ``float``, ``bool``, ``str``, an ``Enum``, ``tuple[T, ...]``, ``T | None``.

    Attributes:
        name: Its word in pipelines, ``--print-after`` and dumps.
    """

    name: ClassVar[str]

    @abstractmethod
    def run(self, module: M) -> M:
        """The transformed module; the argument is not changed."""

    def __str__(self) -> str:
        shown = [
            f"{f.name}={format_value(getattr(self, f.name))}"
            for f in fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name + (f"{{{','.join(shown)}}}" if shown else "")


@dataclass(frozen=True)
class Pipeline(Generic[M]):
    """Passes and nested pipelines, run in order.

    Attributes:
        steps: What runs.
        label: Name in text; ``""`` for the outermost list, which prints without parentheses.
    """

    steps: tuple[Step[M], ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        if self.label and not is_word(self.label):
            raise UserError(f"pipeline: got label {self.label!r}; expected a name")

    def __str__(self) -> str:
        # Parentheses around anonymous pipelines, and the comma after a lone one, keep the nesting in text.
        inner = ",".join(f"({s})" if isinstance(s, Pipeline) and not s.label else str(s) for s in self.steps)
        if self.label:
            return f"{self.label}({inner})"
        return inner + ("," if len(self.steps) == 1 and isinstance(self.steps[0], Pipeline) else "")

    def passes(self) -> Iterator[Pass[M]]:
        """All passes in execution order, nested ones included."""
        for step in self.steps:
            if isinstance(step, Pipeline):
                yield from step.passes()
            else:
                yield step

    def run(self, module: M) -> M:
        """Run all passes, without hooks; ``ir.runner.run_pipeline`` verifies, dumps and times."""
        for step in self.passes():
            module = step.run(module)
        return module

    def append(self, *steps: Step[M]) -> Pipeline[M]:
        """With ``steps`` at the end."""
        return replace(self, steps=(*self.steps, *steps))

    def prepend(self, *steps: Step[M]) -> Pipeline[M]:
        """With ``steps`` at the start."""
        return replace(self, steps=(*steps, *self.steps))

    def insert_before(self, name: str, *steps: Step[M]) -> Pipeline[M]:
        """With ``steps`` before every pass or nested pipeline called ``name``.

        Raises:
            UserError: nothing is called so.
        """
        return self._splice(name, lambda found: (*steps, found))

    def insert_after(self, name: str, *steps: Step[M]) -> Pipeline[M]:
        """With ``steps`` after every pass or nested pipeline called ``name``.

        Raises:
            UserError: nothing is called so.
        """
        return self._splice(name, lambda found: (found, *steps))

    def replace(self, name: str, *steps: Step[M]) -> Pipeline[M]:
        """With ``steps`` (or nothing) in place of every pass or nested pipeline called ``name``.

        Raises:
            UserError: nothing is called so.
        """
        return self._splice(name, lambda _: steps)

    def _splice(self, name: str, change: Any) -> Pipeline[M]:
        new, count = self._spliced(name, change)
        if not count:
            raise UserError(f"pipeline: no pass {name!r} in {str(self) or 'the empty pipeline'}")
        return new

    def _spliced(self, name: str, change: Any) -> tuple[Pipeline[M], int]:
        steps: list[Step[M]] = []
        count = 0
        for step in self.steps:
            if (step.label if isinstance(step, Pipeline) else step.name) == name:
                steps.extend(change(step))
                count += 1
            elif isinstance(step, Pipeline):
                inner, found = step._spliced(name, change)
                steps.append(inner)
                count += found
            else:
                steps.append(step)
        return replace(self, steps=tuple(steps)), count


Step = Union[Pass[M], Pipeline[M]]  # noqa: UP007 (a generic alias needs Union at run time)

PASSES: Registry[type[Pass[Any]]] = Registry("pass")
PIPELINES: Registry[Pipeline[Any]] = Registry("pipeline")

P = TypeVar("P", bound=type[Pass[Any]])


def register_pass(cls: P) -> P:
    """Class decorator: makes a pass known to :func:`parse_pipeline` under its ``name``.

    Raises:
        UserError: the name is taken by a pass or a pipeline, or an option has a type without text form.
    """
    _check_free(cls.name)
    option_types(cls)
    PASSES.add(cls.name, cls)
    return cls


def register_pipeline(name: str, *steps: Step[Any]) -> Pipeline[Any]:
    """Make a named pipeline, which :func:`parse_pipeline` then knows by its bare name.

    Raises:
        UserError: the name is taken by a pass or a pipeline.
    """
    _check_free(name)
    return PIPELINES.add(name, Pipeline(steps, name))


def _check_free(name: str) -> None:
    if name in PASSES or name in PIPELINES:
        raise UserError(f"pass or pipeline {name!r} is registered already")


def parse_pipeline(text: str) -> Pipeline[Any]:
    """Parse pipeline text by the grammar of this module.

    Raises:
        ParseError: the text does not follow the grammar, or an option has a bad value; shows the place.
        UserError: no such pass or option; lists those that exist.
    """
    scan = Scanner(text, "pipeline")
    steps = _parse_steps(scan, "")
    if len(steps) == 1 and isinstance(steps[0], Pipeline) and not text.rstrip().endswith(","):
        return steps[0]
    return Pipeline(steps)


def _parse_steps(scan: Scanner, close: str) -> tuple[Step[Any], ...]:
    steps: list[Step[Any]] = []
    if scan.accept(close):
        return ()
    while True:
        steps.append(_parse_step(scan))
        if scan.accept(close):
            return tuple(steps)
        scan.expect(",", f"',' or {close!r}" if close else "',' or the end")
        if scan.accept(close):
            return tuple(steps)


def _parse_step(scan: Scanner) -> Step[Any]:
    if scan.accept("("):
        return Pipeline(_parse_steps(scan, ")"))
    name = scan.word("the name of a pass or pipeline")
    if scan.accept("("):
        return Pipeline(_parse_steps(scan, ")"), name)
    if name in PIPELINES:
        return PIPELINES[name]
    if name not in PASSES:
        known = ", ".join(sorted([*PASSES, *PIPELINES]))
        raise scan.error(f"no pass or pipeline {name!r}; known: {known}")
    cls = PASSES[name]
    return cls(**_parse_options(scan, cls)) if scan.accept("{") else cls()


def _parse_options(scan: Scanner, cls: type[Pass[Any]]) -> dict[str, Any]:
    types = option_types(cls)
    values: dict[str, Any] = {}
    while True:
        key = scan.word("an option")
        if key not in types:
            raise scan.error(f"{cls.name}: no option {key!r}; it has: {', '.join(types) or 'none'}")
        if key in values:
            raise scan.error(f"{cls.name}: option {key!r} is given twice")
        scan.expect("=", "'='")
        values[key] = convert_option(scan, f"{cls.name}: option {key}", scan.value(), types[key])
        if scan.accept("}"):
            return values
        scan.expect(",", "',' or '}'")
