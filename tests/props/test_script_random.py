"""Random kernels mean what Python means: the same text runs as a kernel and as plain Python."""

from __future__ import annotations

import itertools
import linecache
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from strata.loop import interp, script
from strata.loop.check import LOOP_LOWERED, check
from strata.loop.nodes import Func
from strata.loop.simplify import simplify_stmt
from strata.loop.text import parse_func, print_func
from strata.schedule import finalize
from strata.script import Out, dim, f32, grid, parallel

SIZE = 6
WORDS = {
    "Out": Out,
    "f32": f32,
    "grid": grid,
    "parallel": parallel,
    "n": dim("n", 1, 9),
}


class _Type:
    def __call__(self, x: Any) -> Any:
        return np.float32(x)

    def __getitem__(self, shape: Any) -> Any:
        return None


PYTHON = {"grid": range, "parallel": range, "f32": _Type(), "Out": _Type()}


class Writer:
    """Draws the lines of a kernel."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.lines: list[str] = []
        self.fresh = itertools.count()

    def pick(self, *options: Any) -> Any:
        return self.draw(st.sampled_from(options))

    def index(self, loops: list[str]) -> str:
        """An index of a buffer with ``SIZE`` elements, and whether it is inside."""
        return self.pick(*loops, "n - 1", *(f"{v} // 2" for v in loops))

    def load(self, loops: list[str]) -> str:
        shift, v = self.pick(-2, -1, 1, 2), self.pick(*loops)
        if self.pick(True, False):
            return f"x[{self.index(loops)}]"
        inside = f"{v} + {shift} < n" if shift > 0 else f"{v} >= {-shift}"
        return f"(x[{v} + {shift}] if {inside} else {self.pick('0.0', '2.0', f'x[{v}]')})"

    def value(self, loops: list[str], names: list[str], depth: int = 2) -> str:
        kind = self.pick("load", "constant", "name", "sum", "choice", "extreme", "index") if depth else "load"
        match kind:
            case "constant":
                return self.pick("0.5", "1.0", "-1.5", "2.0")
            case "name" if names:
                return self.pick(*names)
            case "sum":
                op = self.pick("+", "-", "*")
                return f"({self.value(loops, names, depth - 1)} {op} {self.value(loops, names, depth - 1)})"
            case "choice":
                a, b = (self.value(loops, names, depth - 1) for _ in range(2))
                return f"({a} if {self.condition(loops, names)} else {b})"
            case "extreme":
                a, b = (self.value(loops, names, depth - 1) for _ in range(2))
                return f"{self.pick('min', 'max')}({a}, {b})"
            case "index":
                return f"f32({self.index(loops)})"
        return self.load(loops)

    def condition(self, loops: list[str], names: list[str]) -> str:
        v = self.pick(*loops)
        test = self.pick(
            f"{v} < {self.pick(1, 3)}",
            f"{v} % 2 == 0",
            f"0 < {v} < n - 1",
            f"{self.load(loops)} > 0.5",
            f"({v} > 0 and x[{v} - 1] > 0.5)",
            f"({v} + 1 >= n or x[{v} + 1] < 0.5)",
        )
        return self.pick(test, f"not {test}")

    def suite(self, indent: str, loops: list[str], names: list[str], depth: int) -> None:
        """Statements; ``names`` are those that have a value here."""
        names = list(names)
        for _ in range(self.draw(st.integers(1, 3))):
            kind = self.pick("store", "let", "change", "if", "loop", "add")
            if kind == "let":
                name = f"t{next(self.fresh)}"
                self.lines.append(f"{indent}{name} = f32({self.value(loops, names)})")
                names.append(name)
            elif kind == "change" and names:
                self.lines.append(f"{indent}{self.pick(*names)} = f32({self.value(loops, names)})")
            elif kind == "if" and depth:
                self.lines.append(f"{indent}if {self.condition(loops, names)}:")
                self.suite(indent + "    ", loops, names, depth - 1)
                if self.pick(True, False):
                    self.lines.append(f"{indent}else:")
                    self.suite(indent + "    ", loops, names, depth - 1)
            elif kind == "loop" and depth:
                var = f"k{next(self.fresh)}"
                extent = self.pick("n", "range(1, n)")
                head = extent if extent.startswith("range") else f"grid({extent})"
                self.lines.append(f"{indent}for {var} in {head}:")
                self.suite(indent + "    ", [*loops, var], names, depth - 1)
            else:
                op = "+=" if kind == "add" else "="
                self.lines.append(f"{indent}y[{loops[0]}] {op} {self.value(loops, names)}")


@st.composite
def kernels(draw: Any) -> str:
    """The text of a kernel that writes ``y[i]`` for each ``i``."""
    writer = Writer(draw)
    head = writer.pick("grid(n)", "parallel(n)", "range(n)")
    writer.lines += ["def kernel(x: f32[n], y: Out[f32[n]]):", f"    for i in {head}:"]
    writer.suite("        ", ["i"], [], 2)
    return "\n".join(writer.lines) + "\n"


def define(text: str, words: dict[str, Any]) -> Any:
    """The function that ``text`` defines, with its source where ``inspect`` finds it."""
    name = f"<kernel {hash(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    space = dict(words)
    exec(compile(text, name, "exec"), space)
    return space["kernel"]


@settings(max_examples=120)
@given(kernels(), st.integers(1, SIZE), st.integers(0, 99))
def test_a_kernel_means_what_python_means(text, size, seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(-2, 3, size).astype(np.float32) / 2
    start = rng.integers(-2, 3, size).astype(np.float32)
    wanted = start.copy()
    define(text, {**PYTHON, "n": size})(x, wanted)
    func = script.script(define(text, WORDS))
    assert print_func(parse_func(print_func(func))) == print_func(func)
    simple = Func(func.name, func.params, simplify_stmt(func.body), func.num_outputs)
    lowered = finalize(func)
    check(lowered, LOOP_LOWERED)
    for version in (func, simple, lowered):
        got = start.copy()
        interp.run(version, [x, got])
        np.testing.assert_array_equal(got, wanted, err_msg=text)
