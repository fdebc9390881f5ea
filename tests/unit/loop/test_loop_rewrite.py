"""Walking, rebuilding, substitution and queries."""

import pytest

from strata.core.dtypes import f32, i64
from strata.core.errors import LegalityError
from strata.loop import build as b
from strata.loop.interp import run
from strata.loop.nodes import (
    Alloc,
    Binary,
    BinaryOp,
    Block,
    Buffer,
    Const,
    For,
    Func,
    Let,
    Load,
    Seq,
    Store,
    Var,
    index,
)
from strata.loop.rewrite import (
    bound_vars,
    buffers_allocated,
    buffers_read,
    buffers_written,
    find_block,
    find_loop,
    free_vars,
    map_expr,
    map_stmt,
    path_to,
    refresh,
    replace_buffers,
    replace_stmt,
    substitute,
    walk,
    walk_stmts,
)
from strata.loop.text import canonical_text, parse_func, print_expr, print_func, print_stmt

TEXT = """dims n in 1..64
func @scale_sum(x: f32[n,8], w: f32[8]) -> (y: f32[n])
  alloc acc: f32[n]
  for i in n:
    for j in 8:
      block "dot" (m: spatial n = i, k: reduce 8 = j) where i < n:
        init: acc[m] = 0x0p+0
        acc[m] = acc[m] + x[m, k] * w[k]
  for t in n:
    let half = t // 2
    if half < 3:
      y[t] = acc[t]
    else:
      y[t] = (acc[half] if t > half) + reduce_sum(x[t, ramp(0, 8)]) * select(t == 1, f32(t), -acc[t])
"""


@pytest.fixture
def func() -> Func:
    return parse_func(TEXT)


def names(items) -> list[str]:
    return [item.name for item in items]


def test_queries(func):
    assert names(buffers_read(func)) == ["acc", "x", "w"]
    assert names(buffers_written(func)) == ["acc", "y"]
    assert names(buffers_allocated(func)) == ["acc"]
    assert names(bound_vars(func.body)) == ["i", "j", "m", "k", "t", "half"]
    assert not free_vars(func.body)
    loop = find_loop(func, "j")
    assert names(free_vars(loop)) == ["i"]
    assert names(free_vars(find_block(func, "dot"))) == ["i", "j"]
    assert names(free_vars(find_block(func, "dot").body)) == ["m", "k"]


def test_walk_is_in_textual_order(func):
    stmts = [type(s).__name__ for s in walk_stmts(func)]
    assert stmts == [
        "Alloc",
        "Seq",
        "For",
        "For",
        "Block",
        "Store",
        "Store",
        "For",
        "Let",
        "If",
        "Store",
        "Store",
    ]
    loads = [print_expr(e) for e in walk(func) if isinstance(e, Load)]
    assert loads[:3] == ["acc[m]", "x[m, k]", "w[k]"]
    assert len(loads) == 7


def test_find_errors(func):
    with pytest.raises(LegalityError, match="block 'x': found 0; expected exactly one; known: dot"):
        find_block(func, "x")
    with pytest.raises(LegalityError, match="loop 'i': found 2; expected exactly one; known: i"):
        find_loop(Seq((find_loop(func, "i"), find_loop(func, "i"))), "i")
    with pytest.raises(LegalityError, match="block 'x': found 0; expected exactly one; known: none"):
        find_block(Seq(()), "x")


def test_paths_and_replacement(func):
    block = find_block(func, "dot")
    path = path_to(func.body, block)
    assert path[0] is func.body
    assert path[-1] is block
    assert [s.var.name for s in path if isinstance(s, For)] == ["i", "j"]
    replaced = replace_stmt(func.body, block, Seq(()))
    assert not [s for s in walk_stmts(replaced) if isinstance(s, Block)]
    with pytest.raises(LegalityError, match="Block: is not part of this function any more"):
        path_to(replaced, block)


def test_nothing_changed_is_the_same_object(func):
    assert map_stmt(func.body, lambda e: e, lambda s: s) is func.body
    assert substitute(func.body, {Var("other"): index(1)}) is func.body
    assert replace_buffers(func.body, {}) is func.body
    expr = find_block(func, "dot").body.value
    assert map_expr(expr, lambda e: e) is expr


def test_substitute_leaves_binders(func):
    loop = find_loop(func, "t")
    out = substitute(loop.body, {loop.var: b.add(loop.var, 1)})
    assert print_stmt(out).startswith("let half = (t + 1) // 2\nif half < 3:\n  y[t + 1] = acc[t + 1]\n")
    assert print_expr(substitute(b.mul(loop.var, 4), {loop.var: index(3)})) == "3 * 4"


def test_replace_buffers(func):
    acc = next(iter(buffers_allocated(func)))
    other = Buffer("total", acc.shape, f32)
    out = replace_buffers(func.body, {acc: other})
    assert acc not in {*buffers_read(out), *buffers_written(out), *buffers_allocated(out)}
    assert other in buffers_allocated(out)
    read = replace_buffers(Load(acc, (index(0),)), {acc: other})
    assert read == Load(other, (index(0),))


def test_map_stmt_calls_each_statement_once():
    seen = []
    inner = Let(Var("q"), index(1), Seq(()))
    map_stmt(
        Seq((Seq((inner,)), Seq(()))),
        stmt_fn=lambda s: seen.append(type(s).__name__) or s,
    )
    assert seen.count("Let") == 1


def test_map_stmt_removes_and_flattens(func):
    out = map_stmt(func.body, stmt_fn=lambda s: Seq(()) if isinstance(s, Store) else s)
    assert not buffers_written(out)
    doubled = map_stmt(func.body, stmt_fn=lambda s: Seq((s, s)) if isinstance(s, For) else s)
    assert isinstance(doubled, Alloc)
    assert len(doubled.body.stmts) == 4


def test_refresh_renews_every_identity(func):
    fresh = Func(func.name, func.params, refresh(func.body), func.num_outputs)
    assert print_func(fresh) == TEXT
    assert canonical_text(fresh) == canonical_text(func)
    assert not set(bound_vars(fresh.body)) & set(bound_vars(func.body))
    assert not set(buffers_allocated(fresh)) & set(buffers_allocated(func))
    assert not free_vars(fresh.body)


def test_shared_expressions_are_mapped_once():
    i = Var("i")
    expr = i
    for _ in range(60):  # 2**60 nodes as a tree
        expr = Binary(BinaryOp.ADD, expr, expr)
    calls = []
    out = map_expr(expr, lambda e: calls.append(e) or (index(1) if e is i else e))
    assert len(calls) == 61
    assert out.a is out.b


def test_sixty_nested_statements():
    out_buffer = Buffer("y", (1,), i64)
    body = Store(out_buffer, (index(0),), index(0))
    variables = [Var(f"v{k}") for k in range(60)]
    total = variables[0]
    for var in variables[1:]:
        total = b.add(total, var)
    body = Store(out_buffer, (index(0),), b.add(Load(out_buffer, (index(0),)), b.add(total, 1)))
    for k, var in enumerate(reversed(variables)):
        body = For(var, Const(2 if k < 3 else 1, i64), b.ForKind.SERIAL, body)
    func = Func("deep", (out_buffer,), refresh(body))
    parsed = parse_func(print_func(func))
    assert print_func(parsed) == print_func(func)
    import numpy as np

    y = np.zeros(1, np.int64)
    run(func, [y])
    assert y[0] == 8 + 12
