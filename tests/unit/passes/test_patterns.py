"""The pattern language: what matches, what does not, rewriting, the registry."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from strata.core.dtypes import bf16, f32
from strata.core.errors import UserError, VerifyError
from strata.graph import builder as g
from strata.graph.nodes import Function, Module, Node
from strata.graph.text import parse_function, print_function
from strata.ir.passes import PASSES
from strata.passes import named_pipeline, run_passes
from strata.passes.patterns import (
    PATTERNS,
    NodePattern,
    any_,
    const,
    find,
    is_op,
    match,
    optional,
    param,
    patterns,
    register_pattern,
    rewrite,
    rewrite_pass,
)

relu = is_op("relu")
matmul = is_op("matmul")


def leaf(*shape: int, name: str = "x", dtype: str = "f32") -> Node:
    return g.input(name, g.tensor_type(shape, dtype))


X, Y = leaf(4, 8), leaf(4, 8, name="y")
W = g.param("w", g.tensor_type((16, 8), "f32"))
B = g.param("b", g.tensor_type((16,), "f32"))


def function(*outputs: Node) -> Function:
    return Function("f", (X, Y), outputs)


def parsed(*lines: str, result: str) -> Function:
    text = "\n".join(lines)
    return parse_function(
        f"func @f(%x: f32[4,8], %y: f32[4,8]) -> (f32[4,8]) {{\n{text}\nreturn {result}\n}}"
    )


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(PATTERNS._items)
    yield
    PATTERNS._items.clear()
    PATTERNS._items.update(before)


def test_the_example_of_the_documentation() -> None:
    x, w, bias = any_("x"), param("w"), any_("bias")
    dense = matmul(x, w.T) + bias >> relu
    product = g.matmul(X, W, transpose_b=True)
    node = g.relu(g.add(product, B))
    found = match(node, dense)
    assert found is not None
    assert found.root is node
    assert [m.op for m in found.members] == ["matmul", "add", "relu"]
    assert (found[x], found["w"], found[bias]) == (X, W, B)
    assert match(product, dense) is None


@pytest.mark.parametrize("swapped", [False, True])
def test_a_transposed_operand_is_matched_in_both_forms(swapped: bool) -> None:
    x, w = any_(), any_()
    square = g.param("s", g.tensor_type((8, 8), "f32"))
    permuted = g.matmul(X, g.permute_dims(square, (1, 0)))
    flagged = g.matmul(X, square, transpose_b=True)
    plain = g.matmul(X, square)
    pattern = matmul(x, w.T) if not swapped else matmul(x, w)
    by_permute, by_flag = match(permuted, pattern), match(flagged, pattern)
    if swapped:  # without .T, the operand is what stands there, and no flag may turn it around
        assert by_permute is not None
        assert by_permute[w].op == "permute_dims"
        assert by_flag is None
    else:
        assert by_permute is not None
        assert by_flag is not None
        assert by_permute[w] is by_flag[w] is square
        assert [m.op for m in by_permute.members] == ["permute_dims", "matmul"]
        assert match(plain, pattern) is None
    moved = g.matmul(leaf(2, 4, 8), g.permute_dims(leaf(8, 2, 3), (1, 0, 2)))
    assert match(moved, matmul(x, w.T)) is None
    explicit = is_op("matmul", transpose_b=True)(x, w)
    found = match(flagged, explicit)
    assert found is not None
    assert found[w] is square
    assert match(plain, explicit) is None


def test_precedence() -> None:
    a, b, c = any_("a"), any_("b"), any_("c")
    pattern = a + b * c >> relu | a - b
    assert match(g.relu(g.add(X, g.mul(Y, X))), pattern) is not None
    assert match(g.sub(X, Y), pattern) is not None
    assert match(g.add(X, Y), pattern) is None


def test_arithmetic_and_numbers() -> None:
    x = any_()
    for node, pattern in (
        (g.add(X, 1.0), x + 1),
        (g.add(1.0, X), 1 + x),
        (g.sub(2.0, X), 2 - x),
        (g.sub(X, 2.0), x - 2),
        (g.mul(0.1, X), x * 0.1),
        (g.mul(X, 0.1), 0.1 * x),
        (g.div(X, 3.0), x / 3),
        (g.div(1.0, X), 1 / x),
    ):
        found = match(node, pattern)
        assert found is not None
        assert found[x] is X
        assert len(found.members) == 1
    assert match(g.mul(X, 0.2), x * 0.1) is None
    assert match(g.sub(X, 2.0), 2 - x) is None
    assert match(g.mul(X, Y), x * 0.1) is None
    assert match(g.add(X, 5.0), x + const()) is not None
    assert match(g.add(X, Y), x + const()) is None


def test_commutative_ops_match_in_either_order_the_written_one_first() -> None:
    a, w = any_(), param()
    p, q = g.param("p", g.tensor_type((8,), "f32")), g.param("q", g.tensor_type((8,), "f32"))
    assert match(g.add(p, X), a + w) is not None
    found = match(g.add(p, q), a + w)
    assert found is not None
    assert found[a] is p
    assert match(g.sub(p, X), a - w) is None


def test_one_pattern_object_is_one_value() -> None:
    y = any_()
    assert match(g.mul(X, g.sigmoid(X)), y * is_op("sigmoid")(y)) is not None
    assert match(g.mul(X, g.sigmoid(Y)), y * is_op("sigmoid")(y)) is None
    e = is_op("exp")(any_())
    shared = g.exp(X)
    norm = e / is_op("sum")(e)
    assert match(g.div(shared, g.sum(shared, -1, keepdims=True)), norm) is not None
    assert match(g.div(shared, g.sum(g.exp(X), -1, keepdims=True)), norm) is None
    # Two param nodes of one name, and two equal constants, are one value.
    again = g.param("w", W.tensor)
    assert match(g.add(W, again), y + y) is not None
    assert match(g.add(W, g.param("v", W.tensor)), y + y) is None


def test_ops_attributes_alternatives_and_optional_parts() -> None:
    x = any_("x")
    act = is_op("relu", "gelu")(x) | is_op("silu")(x)
    assert [match(node, act) is not None for node in (g.relu(X), g.gelu(X), g.silu(X), g.exp(X))] == [
        True,
        True,
        True,
        False,
    ]
    tanh = is_op("gelu", approximate="tanh")(x)
    assert match(g.gelu(X, approximate="tanh"), tanh) is not None
    assert match(g.gelu(X), tanh) is None
    eps = is_op("rms_norm", eps=1)(x, any_())
    assert match(g.rms_norm(X, leaf(8, name="w"), eps=1.0), eps) is not None
    maybe = is_op("exp")(x) >> optional(lambda y: y + 1) >> optional(relu)
    for node, members in (
        (g.exp(X), 1),
        (g.add(g.exp(X), 1.0), 2),
        (g.relu(g.exp(X)), 2),
        (g.relu(g.add(g.exp(X), 1.0)), 3),
    ):
        found = match(node, maybe)
        assert found is not None
        assert len(found.members) == members
    assert match(g.relu(g.neg(X)), maybe) is None


def test_conditions() -> None:
    x, w = any_("x"), any_("w")
    assert match(g.exp(X), is_op("exp")(x.has_dtype(f32))) is not None
    assert match(g.exp(X), is_op("exp")(x.has_dtype(bf16))) is None
    assert match(g.exp(X), is_op("exp")(x).has_shape(None, 8)) is not None
    assert match(g.exp(X), is_op("exp")(x).has_shape(8)) is None
    assert match(g.exp(X), is_op("exp")(x).has_shape(4, 9)) is None
    wide = matmul(x, w).where(lambda m: m[w].tensor.shape[0] > 4)
    assert match(g.matmul(X, leaf(8, 3, name="w")), wide) is not None
    assert match(g.matmul(leaf(4, 3), leaf(3, 8, name="w")), wide) is None
    named = any_("z").has_dtype(f32)
    found = match(g.exp(X), is_op("exp")(named))
    assert found is not None
    assert found["z"] is found[named] is X
    # A condition that fails sends the search to the other order of the operands.
    big = any_("big").where(lambda m: m.root.op == "exp")
    found = match(g.add(X, g.exp(Y)), big + x)
    assert found is not None
    assert found[x] is X


def test_nothing_inside_a_match_is_used_outside() -> None:
    product = g.matmul(X, W, transpose_b=True)
    node = g.relu(product)
    pattern = matmul(any_(), any_().T) >> relu
    assert match(node, pattern, within=function(node)) is not None
    for other in (product, g.neg(product)):  # a result, or read by somebody else
        assert match(node, pattern, within=function(node, other)) is None
        assert match(node, pattern) is not None
        assert find(function(node, other), pattern) == ()
    # The search goes on: a smaller alternative that fits is taken.
    smaller = pattern | is_op("relu")(any_())
    found = match(node, smaller, within=function(node, product))
    assert found is not None
    assert [m.op for m in found.members] == ["relu"]


def test_matches_do_not_overlap_and_earlier_patterns_win() -> None:
    a = g.relu(g.add(g.exp(X), Y))
    x, y = any_(), any_()
    big, small = is_op("exp")(x) + y >> relu, is_op("exp")(x)
    assert [len(m.members) for m in find(function(a), big, small)] == [3]
    assert [len(m.members) for m in find(function(a), small, big)] == [1]
    chain = g.neg(g.neg(g.neg(X)))
    pair = is_op("neg")(is_op("neg")(x))
    (found,) = find(function(chain), pair)
    assert found.root is chain  # nearer to the results goes first
    assert find(function(chain), any_()) == ()  # a match without ops is none


def test_rewrite_to_the_end() -> None:
    y = any_()
    before = parsed(
        "%0: f32[4,8] = sigmoid(%x)",
        "%1: f32[4,8] = mul(%x, %0)  # gate",
        "%2: f32[4,8] = sigmoid(%1)",
        "%3: f32[4,8] = mul(%2, %1)",
        "%4: f32[4,8] = neg(%3)",
        result="%4",
    )
    after = rewrite(before, y * is_op("sigmoid")(y), lambda m: g.silu(m[y]))
    assert print_function(after).splitlines()[1:4] == [
        "  %0: f32[4,8] = silu(%x)  # gate",
        "  %1: f32[4,8] = silu(%0)",
        "  %2: f32[4,8] = neg(%1)",
    ]
    double = is_op("neg")(is_op("neg")(y))
    assert rewrite(function(g.neg(g.neg(g.neg(g.neg(X))))), double, lambda m: m[y]).outputs == (X,)
    kept = function(g.neg(g.neg(X)))
    assert rewrite(kept, double, lambda m: None) is kept
    assert rewrite(kept, double, lambda m: m.root) is kept


def test_rewrite_mistakes_are_named() -> None:
    y = any_()
    with pytest.raises(VerifyError, match=r"my_rule: neg : got f32\[8,4\]; expected f32\[4,8\]"):
        rewrite(function(g.neg(X)), is_op("neg")(y), lambda m: g.permute_dims(m[y]), "my_rule")
    with pytest.raises(VerifyError, match="my_rule: still matches after 100 rounds"):
        rewrite(function(g.neg(X)), is_op("neg")(y), lambda m: g.neg(g.exp(m[y])), "my_rule")
    later = g.exp(inner := g.neg(X))
    with pytest.raises(
        VerifyError, match="rewrite of neg : the new node reads neg, which does not come before it"
    ):
        rewrite(function(later), is_op("neg")(y), lambda m: g.relu(later) if m.root is inner else None)


def test_a_rule_as_a_pass() -> None:
    y = any_()
    try:

        @rewrite_pass("test_use_silu", y * is_op("sigmoid")(y))
        def use_silu(found):
            """Writes a gate as ``silu``."""
            return g.silu(found[y])

        module = Module((function(g.mul(X, g.sigmoid(X))),))
        (node,) = run_passes("test_use_silu", module)["f"].outputs
        assert node.op == "silu"
        pipeline = named_pipeline("default").insert_before("fuse", use_silu)
        assert "dead_code,test_use_silu,fuse" in str(pipeline)
        assert type(use_silu).__doc__ == "Writes a gate as ``silu``."
    finally:
        PASSES._items.pop("test_use_silu", None)


def test_registry(registry: None) -> None:
    mine: NodePattern = relu(any_())
    assert register_pattern("mylib.relu", mine) is mine
    register_pattern("mylib.exp", is_op("exp")(any_()))
    assert PATTERNS["mylib.relu"] is mine
    assert list(patterns("mylib.")) == ["mylib.relu", "mylib.exp"]
    assert "openblas.matmul_bias" in patterns()
    with pytest.raises(UserError, match=r"pattern 'mylib.relu' is registered already"):
        register_pattern("mylib.relu", mine)
    with pytest.raises(UserError, match=r"no pattern 'mylib.rel'; did you mean 'mylib.relu'"):
        PATTERNS["mylib.rel"]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="is_op: got no op; expected at least one name"):
        is_op()
    with pytest.raises(UserError, match="no op 'rel'"):
        is_op("rel")
    with pytest.raises(UserError, match="is_op: relu has no attribute 'axis'; it has: none"):
        is_op("relu", axis=1)
    with pytest.raises(
        UserError, match=r"pattern: got the op relu; call it on its operands: is_op\(...\)\(x\)"
    ):
        any_() + relu  # type: ignore[operator]
    with pytest.raises(UserError, match="pattern: got str; expected a pattern or a number"):
        any_() + "x"  # type: ignore[operator]
    x, other = any_("x"), any_()
    found = match(g.exp(X), is_op("exp")(x))
    assert found is not None
    assert found.get(other) is None
    with pytest.raises(UserError, match="match of exp: 'y' took no part in it; named parts: x"):
        found["y"]
    with pytest.raises(UserError, match="match of exp: that pattern took no part in it"):
        found[other]


def test_many_candidates_are_searched_once_each() -> None:
    """A long chain: the matcher looks at the pattern's depth only, and the passes do not recurse."""
    node = X
    for _ in range(2000):
        node = g.relu(g.neg(node))
    found = find(function(node), is_op("neg")(any_()) >> relu)
    assert len(found) == 2000
