"""Notes on nodes: text, what keeps them, and what the passes that follow them say about wrong ones."""

from __future__ import annotations

import pytest

from strata.core.errors import ParseError, UserError, VerifyError
from strata.graph import builder as g
from strata.graph.nodes import Function, LoopText, Module, Node, rebuild, rewrite, with_notes
from strata.graph.text import parse_module, print_module
from strata.ir.passes import OptionError
from strata.passes import ClearNotes, KillDead, Legalize, Partition, legalization, plan_memory, run_passes
from strata.passes.legalize import LEGALIZATIONS

TEXT = """module {
  func @f(%x: f32[16] !{pinned=true}) -> (f32[16]) {
    %0: f32[16] = @w !{layout="row_major"}
    %1: f32[16] = add(%x, %0) !{kills=(), offset=64, s=("a \\"b\\"", true, -1)}  # first
    %2: f32[16] = fused(%1) {
      body=func @exp(%a0: f32[16]) -> (f32[16]) {
        %0: f32[16] = exp(%a0)
        return %0
      }
    } !{loop="exp"}
    return %2
  }

  loop @exp(%0, %1.k_pages.3, %out) {{
    func @exp(a0: f32[16]) -> (y: f32[16])
      for i in 16:
        y[i // 1] = exp(a0[i])
  }}

  loop @"my exp"() {{
    pass
  }}
}
"""


def test_text() -> None:
    module = parse_module(TEXT)
    assert print_module(module) == TEXT
    first = module["f"].outputs[0].inputs[0]
    assert first.notes == {"kills": (), "offset": 64, "s": ('a "b"', True, -1)}
    assert module["f"].inputs[0].notes == {"pinned": True}
    assert list(module.loops) == ["exp", "my exp"]
    assert module.loops["exp"].args == ("0", "1.k_pages.3", "out")
    assert module.loops["exp"].text.startswith("func @exp(a0: f32[16])")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "offset=64",
            "offset=",
            r"got ','; expected the value of a note: an integer, true, false, a string or a",
        ),
        ("offset=64", "3=4", "expected the name of a note"),
        ("loop @exp(", "loop exp(", r"expected the loop function's @name"),
        ('@"my exp"', "@exp", "loop @exp is defined twice"),
        ("(%0, %1", "(0, %1", "expected an operand: %0, %1.k_pages or %out"),
        ("%out) {{", "%out) {", r"expected '\{\{', loop IR on lines of its own, and '\}\}'"),
    ],
)
def test_bad_text(old: str, new: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse_module(TEXT.replace(old, new, 1))


X = g.input("x", g.tensor_type((16,), "f32"))


def function(*outputs: Node, name: str = "f") -> Module:
    return Module((Function(name, (X,), outputs),))


def test_notes_stay_with_the_operation() -> None:
    node = with_notes(g.exp(X), a=1, b=("x",))
    assert rebuild(node, [g.neg(X)]).notes == {"a": 1, "b": ("x",)}
    assert rebuild(g.softmax(X), [X], axis=-1).notes == {}
    changed = rebuild(with_notes(g.softmax(X), a=1), [X], axis=-1)
    assert changed.notes == {"a": 1}
    assert with_notes(node, a=1) is node
    assert with_notes(node, a=None, c=True).notes == {"b": ("x",), "c": True}
    with pytest.raises(UserError, match=r"note a of exp : got 1.5; expected bool, int, str or a tuple"):
        with_notes(node, a=1.5)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"note a of exp : got \(\(1,\),\); expected"):
        with_notes(node, a=((1,),))  # type: ignore[arg-type]
    module = parse_module(TEXT)
    assert print_module(run_passes("canonicalize,common_subexpressions,dead_code", module)) == TEXT
    assert "!{" not in print_module(ClearNotes().run(module))


def test_a_pass_that_adds_nodes_keeps_the_loops() -> None:
    module = parse_module(TEXT)
    partial = run_passes("only{functions=[f]}(clear_notes{names=[pinned]})", module)
    assert partial.loops == module.loops
    assert Module(module.functions).loops == {}
    assert hash(module) == hash(Module(module.functions, {"x": LoopText((), "")})), (
        "loops are no part of the hash"
    )


def test_pattern_notes() -> None:
    for note in ("fast", 3):
        bad = function(g.exp(with_notes(g.neg(X, name="n"), pattern=note)))
        with pytest.raises(
            OptionError, match=rf"note pattern of neg n: got {note!r}; expected one of leaf, element"
        ):
            run_passes("fuse_ops", bad)
    # A note cannot make an op fuse more easily than it can: a softmax is no elementwise op.
    easy = function(g.exp(with_notes(g.softmax(X), pattern="elementwise")))
    launches = [n for n in run_passes("fuse_ops", easy)["f"].nodes if n.op == "fused"]
    assert [n.attrs["body"].name for n in launches] == ["softmax_exp"]
    with pytest.raises(UserError, match="fuse_ops: max_ops is 0; expected at least 1"):
        run_passes("fuse_ops{max_ops=0}", easy)


def chain(*offsets: int | None, kills: tuple[object, ...] = ()) -> Function:
    """exp -> neg -> abs -> sqrt, each a launch, with these notes on the first ones."""
    node = X
    for number, build in enumerate((g.exp, g.neg, g.abs, g.sqrt)):
        node = build(node, name=f"n{number}")
        if number < len(offsets):
            node = with_notes(node, offset=offsets[number])
        if number < len(kills):
            node = with_notes(node, kills=kills[number])  # type: ignore[arg-type]
    return Function("f", (X,), (node,))


def test_offsets_are_followed_and_checked() -> None:
    plan = plan_memory(chain(640, None, 64))
    assert [plan.offsets[id(b.node)] for b in plan.buffers] == [640, 0, 64]
    assert plan.arena_bytes == 704
    with pytest.raises(
        OptionError,
        match=r"note offset of neg n1: bytes 64..127 are also of exp n0 \(64..127\), .* drop those of",
    ):
        plan_memory(chain(64, 64))
    assert plan_memory(chain(64, 128, 64)).arena_bytes == 192
    for bad in (-64, 8, True):
        with pytest.raises(
            OptionError, match=rf"note offset of exp n0: got {bad!r}; expected a multiple of 64"
        ):
            plan_memory(chain(bad))


def test_kills_are_followed_and_checked() -> None:
    never = plan_memory(chain(kills=((), (), (), ())))
    assert [(b.first, b.last) for b in never.buffers] == [(0, 3), (1, 3), (2, 3)]
    assert never.arena_bytes == 192
    usual = plan_memory(chain(kills=((), (0,), (0,), (0,))))
    assert [(b.first, b.last) for b in usual.buffers] == [(0, 1), (1, 2), (2, 3)]
    early = Function("f", (X,), (g.add(first := g.exp(X), with_notes(g.neg(first, name="n"), kills=(0,))),))
    with pytest.raises(
        OptionError, match="note kills of neg n: operand 0 is read later, by add ; run kill_dead again"
    ):
        plan_memory(early)
    for bad in ((1,), ("x",), (-1,), (True,), 0):
        with pytest.raises(
            OptionError, match=r"note kills of neg n1: got .*; expected numbers of its 1 operands"
        ):
            plan_memory(chain(kills=((), bad)))


def test_kill_dead_replaces_its_notes_and_dead_code_drops_them() -> None:
    module = Module((chain(kills=((), (), (), ())),))
    again = KillDead().run(module)["f"]
    assert [n.notes.get("kills") for n in again.nodes] == [None, (), (0,), (0,), (0,)]
    a, b = (g.input(n, X.type) for n in "ab")
    node = with_notes(g.fused([X, g.exp(X)], Function("second", (a, b), (g.neg(b),))), kills=(1,), offset=0)
    (kept,) = run_passes("dead_code", function(node))["f"].outputs
    assert len(kept.inputs) == 1
    assert kept.notes == {"offset": 0}


def test_equal_nodes_with_unlike_notes_are_not_merged() -> None:
    a, b = g.exp(X), with_notes(g.exp(X), pattern="opaque")
    (out,) = run_passes("common_subexpressions", function(g.add(a, b)))["f"].outputs
    assert out.inputs[0] is not out.inputs[1]
    (out,) = run_passes("common_subexpressions", function(g.add(a, g.exp(X))))["f"].outputs
    assert out.inputs[0] is out.inputs[1]


def test_legalizations_of_ones_own() -> None:
    before = dict(LEGALIZATIONS._items)
    try:
        LEGALIZATIONS._items.pop("relu")
        legalization("relu", required=True)(lambda n: g.maximum(n.inputs[0], 0.0))
        legalization("sqrt")(lambda n: g.power(n.inputs[0], 0.5) if n.name else None)
        legalization("tanh")(lambda n: g.neg(g.tanh(g.neg(n.inputs[0]))))
        legalization("floor")(lambda n: g.sum(n.inputs[0]))
        module = function(g.relu(g.add(g.sqrt(X), g.sqrt(X, name="s"))))
        ops = [n.op for n in Legalize().run(module)["f"].nodes]
        assert ops == ["input", "sqrt", "sqrt", "add", "const", "maximum"]  # by itself: what has no lowering
        ops = [n.op for n in Legalize(ops=("sqrt",)).run(module)["f"].nodes]
        assert ops == ["input", "sqrt", "const", "power", "add", "const", "maximum"]
        with pytest.raises(
            VerifyError, match="legalization of tanh t: it leads back to tanh again and again"
        ):
            Legalize(ops=("tanh",)).run(function(g.tanh(X, name="t")))
        with pytest.raises(VerifyError, match=r"legalization of floor t: got f32\[\]; expected f32\[16\]"):
            Legalize(ops=("floor",)).run(function(g.floor(X, name="t")))
        with pytest.raises(UserError, match="legalization 'sqrt' is registered already"):
            legalization("sqrt")(lambda n: None)
        with pytest.raises(UserError, match="no op 'sqr'"):
            legalization("sqr")
    finally:
        LEGALIZATIONS._items.clear()
        LEGALIZATIONS._items.update(before)


def test_every_op_can_be_compiled() -> None:
    """An op has a lowering, or a legalization that is required, or is no computation."""
    from strata.graph.opdef import OPS
    from strata.lower import LOWERINGS

    left = {op for op in OPS if op not in LOWERINGS}
    left -= {op for op, rule in LEGALIZATIONS.items() if rule.required}
    assert left == {"input", "param", "const", "fused", "create_kv_cache"}


def test_layers_share_a_composite_body() -> None:
    w = g.param("w", g.tensor_type((16, 16), "f32"))
    x = g.input("x", g.tensor_type((4, 16), "f32"))
    first = g.matmul(x, w, transpose_b=True, name="one")
    module = Module((Function("f", (x,), (g.matmul(g.softmax(first), w, transpose_b=True, name="two"),)),))
    after = Partition(patterns=("openblas.matmul",)).run(module)["f"]
    made = [n for n in after.nodes if n.op == "fused"]
    assert [n.name for n in made] == ["one", "two"]
    assert made[0].attrs["body"] is made[1].attrs["body"]
    assert {n.notes["composite"] for n in made} == {"openblas.matmul"}
    with pytest.raises(
        OptionError, match=r"partition: no pattern 'openblas'; registered: openblas.matmul_bias_act,"
    ):
        Partition(patterns=("openblas",)).run(module)
    untouched = rewrite(module["f"], lambda n: n)
    assert [n.op for n in untouched.nodes] == [n.op for n in Partition().run(module)["f"].nodes]
