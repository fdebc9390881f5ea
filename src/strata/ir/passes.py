"""Passes and pipelines: pure functions ``module -> module`` with a text form, shared by both IRs.

::

    Pipeline ::= item ("," item)* ","?                one nested pipeline is itself unless a comma follows
    item     ::= name options?                        a registered pass, or a named pipeline (without options)
               | name? "(" Pipeline? ")"              a nested pipeline; the name is only a label
               | name part ("(" Pipeline? ")")?       the same, or a named pipeline, on a part of the module;
                                                      the name "only" is no label
    part     ::= "{" "functions" "=" "[" name ("," name)* "]" "}"          names as in a shell: decode, "pre*"
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

``str`` prints the options that differ from their defaults, and ``parse_pipeline(str(p)) == p``. A pipeline
on a part of the module, ``only{functions=[decode]}(fuse{max_ops=4})``, leaves the other functions untouched:
``Pipeline((Fuse(max_ops=4),)).on("decode")``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace
from fnmatch import fnmatchcase
from typing import Any, ClassVar, Generic, TypeVar, Union

from strata.core.errors import UserError
from strata.core.registry import Registry

from .options import Scanner, convert_option, format_value, is_word, option_types

M = TypeVar("M")

_ONLY = "only"  # the word for a pipeline on a part of the module that has no label


class OptionError(UserError):
    """An option of a pass does not fit the module at hand: the user's mistake, not the pass'."""


@dataclass(frozen=True)
class Pass(ABC, Generic[M]):
    """One transformation of a module. Subclasses are frozen dataclasses; fields are options with defaults.

    Option types: ``int``, ``float``, ``bool``, ``str``, an ``Enum``, ``tuple[T, ...]``, ``T | None``.

    Attributes:
        name: Its word in pipelines, ``--print-after`` and dumps.
        ir: What it works on: ``"graph"`` or ``"loop"``.
    """

    name: ClassVar[str]
    ir: ClassVar[str] = "graph"

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
class Partial(Pass[M]):
    """A pass on those functions of a module whose names match; :meth:`Pipeline.passes` makes these.

    Attributes:
        step: The pass.
        parts: A function has to match a pattern of each of them.
    """

    name: ClassVar[str] = _ONLY
    step: Pass[M] = field(kw_only=True)
    parts: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        # As it is called in dumps and --print-after; what it works on.
        object.__setattr__(self, "name", self.step.name)
        object.__setattr__(self, "ir", self.step.ir)

    def __str__(self) -> str:
        text = str(self.step)
        for patterns in reversed(self.parts):
            text = f"{_ONLY}{_part_text(patterns)}({text})"
        return text

    def run(self, module: M) -> M:
        """Run the pass on the part, and put what it made in the part's place.

        Raises:
            OptionError: no function matches, or the module is no set of functions.
        """
        functions: tuple[Any, ...] | None = getattr(module, "functions", None)
        if functions is None:
            raise OptionError(f"{self}: got a {type(module).__name__}; expected a module of functions")
        chosen = [f for f in functions if self._selects(f.name)]
        if not chosen:
            if getattr(module, "is_excerpt", False):
                return module
            known = ", ".join(f.name for f in functions) or "none"
            raise OptionError(f"{self}: no function has such a name; the module has: {known}")
        result: Any = self.step.run(replace(module, functions=tuple(chosen)))  # type: ignore[type-var]
        return replace(result, functions=_merged(functions, chosen, result.functions))

    def _selects(self, name: str) -> bool:
        return all(any(fnmatchcase(name, p) for p in patterns) for patterns in self.parts)


def _merged(functions: tuple[Any, ...], chosen: list[Any], results: tuple[Any, ...]) -> tuple[Any, ...]:
    """``functions`` with ``results`` in place of ``chosen``; new ones go to the end."""
    left = {f.name: f for f in results}
    merged: list[Any] = []
    for function in functions:
        if not any(function is c for c in chosen):
            merged.append(function)
        elif function.name in left:
            merged.append(left.pop(function.name))
    return (*merged, *left.values())


def _part_text(functions: tuple[str, ...]) -> str:
    return f"{{functions={format_value(functions)}}}"


@dataclass(frozen=True)
class Pipeline(Generic[M]):
    """Passes and nested pipelines, run in order.

    Attributes:
        steps: What runs.
        label: Name in text; ``""`` for the outermost list, which prints without parentheses.
        functions: If given, it runs only on functions whose names match one of these (``fnmatch`` patterns).
    """

    steps: tuple[Step[M], ...] = ()
    label: str = ""
    functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.label and (not is_word(self.label) or self.label == _ONLY):
            raise UserError(f"pipeline: got label {self.label!r}; expected a name (but not {_ONLY!r})")

    def __str__(self) -> str:
        # Parentheses around anonymous pipelines, and the comma after a lone one, keep the nesting in text.
        inner = ",".join(f"({s})" if isinstance(s, Pipeline) and not s._head else str(s) for s in self.steps)
        if self._head:
            return f"{self._head}({inner})"
        return inner + ("," if len(self.steps) == 1 and isinstance(self.steps[0], Pipeline) else "")

    @property
    def _head(self) -> str:
        return (self.label or _ONLY) + _part_text(self.functions) if self.functions else self.label

    def on(self, *functions: str) -> Pipeline[M]:
        """The same on a part of the module: functions whose names match one of these patterns."""
        return replace(self, functions=functions)

    def passes(self) -> Iterator[Pass[M]]:
        """All passes in execution order, nested ones included; on a part of the module: :class:`Partial`."""
        return self._passes(())

    def _passes(self, around: tuple[tuple[str, ...], ...]) -> Iterator[Pass[M]]:
        parts = (*around, self.functions) if self.functions else around
        for step in self.steps:
            if isinstance(step, Pipeline):
                yield from step._passes(parts)
            else:
                yield Partial(step=step, parts=parts) if parts else step

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

    Args:
        name: Its name.
        steps: Passes and pipelines; a lone pipeline is registered itself, under the new name.

    Raises:
        UserError: the name is taken by a pass or a pipeline.
    """
    _check_free(name)
    if len(steps) == 1 and isinstance(steps[0], Pipeline):
        return PIPELINES.add(name, replace(steps[0], label=name))
    return PIPELINES.add(name, Pipeline(steps, name))


def _check_free(name: str) -> None:
    if not is_word(name) or name == _ONLY:
        raise UserError(
            f"pass or pipeline {name!r}: expected a name of letters, digits, _ . - (not {_ONLY!r})"
        )
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
    if name in PASSES:
        cls = PASSES[name]
        return cls(**_parse_options(scan, name, option_types(cls))) if scan.accept("{") else cls()
    if scan.accept("{"):
        part = _parse_options(scan, name, {"functions": tuple[str, ...]})
        if not part["functions"]:
            raise scan.error(f"{name}: option functions is []; expected at least one name")
        if name in PIPELINES and not scan.accept("("):
            return PIPELINES[name].on(*part["functions"])
        if name not in PIPELINES:
            scan.expect("(", f"'(': {name!r} is no pass or named pipeline")
        return Pipeline(_parse_steps(scan, ")"), "" if name == _ONLY else name, part["functions"])
    if name in PIPELINES:
        return PIPELINES[name]
    known = ", ".join(sorted([*PASSES, *PIPELINES]))
    raise scan.error(f"no pass or pipeline {name!r}; known: {known}")


def _parse_options(scan: Scanner, owner: str, types: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    while True:
        key = scan.word("an option")
        if key not in types:
            raise scan.error(f"{owner}: no option {key!r}; it has: {', '.join(types) or 'none'}")
        if key in values:
            raise scan.error(f"{owner}: option {key!r} is given twice")
        scan.expect("=", "'='")
        values[key] = convert_option(scan, f"{owner}: option {key}", scan.value(), types[key])
        if scan.accept("}"):
            return values
        scan.expect(",", "',' or '}'")
