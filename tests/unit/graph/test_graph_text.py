"""Printer and parser of graph modules: exact text, round trip, every parse error."""

import re

import numpy as np
import pytest

from strata.core.dims import SymDim
from strata.core.dtypes import bf16, f32
from strata.core.errors import ParseError
from strata.graph import builder as b
from strata.graph.nodes import Function, Module, make_node
from strata.graph.opdef import Sample
from strata.graph.ops.common import np_dtype
from strata.graph.samples import op_samples, sample_function
from strata.graph.text import (
    attr_text,
    collect_dims,
    node_slice,
    parse_function,
    parse_module,
    print_function,
    print_module,
)
from strata.graph.types import CacheType, RopeMode

n = SymDim("n", 1, 512)
CACHE = CacheType(2, 1, 4, bf16, 16, RopeMode.NORMAL, 4)
CASES = [pytest.param(op, sample, id=id_) for id_, op, sample in op_samples()]


def decode() -> Function:
    ids, cache = b.input("ids", b.tensor_type((n,), "i32")), b.input("cache", CACHE)
    table = b.param("model.embed.weight", b.tensor_type((10, 4), "bf16"))
    x = b.cast(b.take(table, ids, name="model.embed"), "f32")
    k = b.rope(b.reshape(b.mul(x, 0.5), (n, 1, 4)), cache)
    cache2 = b.kv_append(cache, k, k, 0)
    y = b.paged_attention(k, cache2, 0, 0.5, name="model.layers.0.attention")
    return Function("decode", (ids, cache), (b.last_tokens(y, cache2), cache2))


TEXT = """\
module {
  dims n in 1..512, num_seqs in 1..65536

  func @decode(%ids: i32[n], %cache: CACHE) -> (f32[num_seqs,1,4], CACHE) {
    %0: bf16[10,4] = @model.embed.weight
    %1: bf16[n,4] = take(%0, %ids)  # model.embed
    %2: f32[n,4] = cast(%1) {dtype=f32}
    %3: f32[] = const() {value=f32[]:[0x1.0000000000000p-1]}
    %4: f32[n,4] = mul(%2, %3)
    %5: f32[n,1,4] = reshape(%4) {shape=(n, 1, 4)}
    %6: f32[n,1,4] = rope(%5, %cache)
    %7: CACHE = kv_append(%cache, %6, %6) {layer=0}
    %8: f32[n,1,4] = paged_attention(%6, %7) {layer=0, scale=0x1.0000000000000p-1}  # model.layers.0.attention
    %9: f32[num_seqs,1,4] = last_tokens(%8, %7)
    return %9, %7
  }
}
""".replace("CACHE", str(CACHE))


def test_text_of_a_module() -> None:
    assert print_module(Module((decode(),))) == TEXT


def test_parsed_module_is_the_same() -> None:
    module = parse_module(TEXT)
    assert print_module(module) == TEXT
    (function,) = module.functions
    assert [x.name for x in function.inputs] == ["ids", "cache"]
    assert [(d.name, d.lo, d.hi) for d in collect_dims([function])] == [("n", 1, 512), ("num_seqs", 1, 65536)]
    assert [x.name for x in function.nodes if x.op == "take"] == ["model.embed"]


@pytest.mark.parametrize(("op", "sample"), CASES)
def test_round_trip_of_every_sample(op: str, sample: Sample) -> None:
    function = sample_function(op, sample)
    text = print_function(function)
    again = parse_function(text)
    assert print_function(again) == text
    assert [x.type for x in again.nodes] == [x.type for x in function.nodes]


def test_empty_module() -> None:
    assert print_module(Module(())) == "module {\n}\n"
    assert parse_module("module { }").functions == ()


def test_dims_with_divisibility_and_polynomials() -> None:
    m = SymDim("m", 16, 4096, 16)
    x = b.input("x", b.tensor_type((m, 2 * n + 1, n * m - 3), "f32"))
    text = print_function(Function("f", (x,), (b.neg(x),)))
    assert "dims m in 16..4096 multiple of 16, n in 1..512\n" in text
    assert "%x: f32[m,2*n + 1,m*n - 3]" in text
    again = parse_function(text)
    assert again.inputs[0].type == x.type
    assert again.dims[0].multiple_of == 16


def test_odd_names() -> None:
    x = b.input("a b", b.tensor_type((1,), "f32"))
    w = b.param('w"/0', b.tensor_type((1,), "f32"))
    y = b.add(x, w, name=' padded\n"line"')
    z = b.neg(y, name='"quoted"')
    text = print_function(Function("f-1", (x,), (z,)))
    assert 'func @"f-1"(%"a b": f32[1])' in text
    again = parse_function(text)
    assert print_function(again) == text
    assert [node.name for node in again.nodes] == ["a b", 'w"/0', ' padded\n"line"', '"quoted"']


def test_comments_and_spacing() -> None:
    text = print_function(decode())
    loose = "// a comment\n" + text.replace("  %", "\n\n   %").replace(" {layer=0}", "{ layer = 0, }  // why")
    assert print_function(parse_function(loose)) == text


def test_constants_are_exact() -> None:
    rng = np.random.default_rng(0)
    arrays = [
        np.array([0.1, -0.0, np.inf, -np.inf, 1e-45], np.float32),
        np.array([np.nan, 1.0]),
        np.array([[1, 2**62], [-3, 0]], np.int64),
        np.array([True, False]),
        np.array(7, np.uint8),
        np.zeros((2, 0), np.float32),
        rng.standard_normal((5, 7)).astype(np_dtype(bf16)),
        rng.standard_normal(100).astype(np.float16),
        np.array([np.nan, -1.5], np_dtype(bf16)),
    ]
    outputs = tuple(b.const(a) for a in arrays)
    again = parse_function(print_function(Function("f", (), outputs)))
    for node, array in zip(again.outputs, arrays, strict=True):
        value = node.attrs["value"]
        assert value.dtype == array.dtype
        assert value.shape == array.shape
        assert value.tobytes() == array.tobytes()
        assert not value.flags.writeable


def test_fused_body_is_nested() -> None:
    x = b.input("x", b.tensor_type((n,), "f32"))
    inner = Function("body", (x,), (b.exp(x),))
    y = b.input("y", b.tensor_type((n,), "f32"))
    text = print_function(Function("f", (y,), (b.fused([y], inner, 3, name="here"),)))
    assert text == (
        "dims n in 1..512\n"
        "func @f(%y: f32[n]) -> (f32[n]) {\n"
        "  %0: f32[n] = fused(%y) {layer=3,\n"
        "    body=func @body(%x: f32[n]) -> (f32[n]) {\n"
        "      %0: f32[n] = exp(%x)\n"
        "      return %0\n"
        "    }\n"
        "  }  # here\n"
        "  return %0\n"
        "}\n"
    )
    assert print_function(parse_function(text)) == text


def test_deep_graph_prints_and_parses() -> None:
    x = b.input("x", b.tensor_type((1,), "f32"))
    y = x
    for _ in range(10_000):
        y = b.neg(y)
    text = print_function(Function("deep", (x,), (y,)))
    assert print_function(parse_function(text)) == text


def test_node_slice() -> None:
    x = b.input("x", b.tensor_type((n,), "f32"))
    y = b.exp(x, name="stage")
    assert node_slice(b.mul(y, y)) == "  %0: f32[n] = exp(...)  # stage\n  %1: f32[n] = mul(%0, %0)"


def test_value_without_text() -> None:
    with pytest.raises(TypeError, match=r"attribute value \{\} has no text form"):
        attr_text({})


def function_text(body: str, head: str = "%x: f32[n]", results: str = "f32[n]") -> str:
    return f"dims n in 1..8\nfunc @f({head}) -> ({results}) {{\n{body}\nreturn %0\n}}"


LONE = [
    (function_text("%0: f32[n] = exp(%x) $"), 3, 22, "unexpected character '$'"),
    (function_text("%0: f32[n] = exp(%y)"), 3, 18, "%y is not defined above"),
    (function_text("%0: f32[n] exp(%x)"), 3, 12, "got 'exp'; expected '='"),
    (function_text("%0: f32[n] = exb(%x)"), 3, 14, "no op 'exb'; did you mean 'exp'?"),
    (
        function_text("%0: f32[n] = input(%x)"),
        3,
        14,
        "input is not written as an op; inputs stand in the function's",
    ),
    (function_text("%0: f32[n] = (%x)"), 3, 14, "got '('; expected an op or a @param"),
    (function_text("%0: f32[m] = exp(%x)"), 3, 9, "dim m is not declared; add it to the dims line"),
    (function_text("%0: f32[*] = exp(%x)"), 3, 9, "got '*'; expected a dim (an integer or a declared name)"),
    (function_text("%0: f31[n] = exp(%x)"), 3, 5, "got 'f31'; expected a dtype (f64, f32"),
    (function_text("%0: f16[n] = exp(%x)"), 3, 14, "%0 is declared f16[n]; exp gives f32[n]"),
    (function_text("%0: f32[n] = exp(%x, %x)"), 3, 14, "exp: got 2 operands; expected 1 (x)"),
    (function_text("%0: f32[n] = exp(%x)\n%0: f32[n] = exp(%x)"), 4, 1, "%0 is defined twice"),
    (function_text("%0: f32[n] = exp(%x) {a=1}"), 3, 23, "exp has no attribute 'a'; it has: none"),
    (function_text("%0: f32[n] = cast(%x) {dtype=n}"), 3, 30, "got 'n'; expected a dtype"),
    (function_text("%0: f32[n] = gelu(%x) {approximate=1}"), 3, 36, "got '1'; expected str"),
    (function_text('%0: f32[n] = gelu(%x) {approximate="\\q"}'), 3, 36, "bad string: Invalid \\escape"),
    (function_text("%0: f32[n] = softmax(%x) {axis=1.5}"), 3, 33, "unexpected character '.'"),
    (function_text("%0: f32[n] = softmax(%x) {axis=n}"), 3, 32, "got 'n'; expected an integer"),
    (function_text("%0: f32[n] = max(%x) {axes=0}"), 3, 28, "got '0'; expected '('"),
    (
        function_text("%0: f32[n] = rms_norm(%x, %x) {eps=e}"),
        3,
        36,
        "got 'e'; expected a float as float.hex()",
    ),
    (
        function_text("%0: f32[2] = const() {value=f32[2]:[1]}"),
        3,
        29,
        "array has 1 elements; its shape says 2",
    ),
    (function_text("%0: bool[1] = const() {value=bool[1]:[1]}"), 3, 39, "got '1'; expected true or false"),
    (function_text('%0: f32[1] = const() {value=f32[1]:"AA="}'), 3, 36, "bad base64: "),
    (
        function_text('%0: f32[1] = const() {value=f32[1]:"AA=="}'),
        3,
        36,
        "got 1 bytes; expected a multiple of 4 for f32",
    ),
    (function_text("", head="%x f32[n]"), 2, 12, "got 'f32'; expected ':'"),
    (function_text("", head="x: f32[n]"), 2, 9, "got 'x'; expected an input %name"),
    (function_text("", head="%x: f32[n], %x: f32[n]"), 2, 21, "%x is defined twice"),
    (
        function_text("", head="%x: cache<layers=1>"),
        2,
        13,
        "cache type has the fields layers; expected layers, kv_heads",
    ),
    (
        function_text("", head=f"%x: {str(CACHE).replace('normal', 'norm')}"),
        2,
        13,
        "cache type: rope is norm; expected one of none, normal, inline",
    ),
    (
        function_text("", head=f"%x: {str(CACHE).replace('head_dim=4', 'head_dim=2')}"),
        2,
        13,
        "rotary_dim must be even and at most head_dim 2",
    ),
    (
        function_text("%0: f32[n] = exp(%x)", results="f16[n]"),
        2,
        25,
        "@f returns (f32[n]), declared (f16[n])",
    ),
    ("dims n in 3..1 func @f() -> () {", 1, 6, "symbolic dim n: got range 3..1"),
    ("dims n in 1..2, n in 1..2", 1, 17, "dim n is declared twice"),
    ("dims 3", 1, 6, "got '3'; expected the name of a dim"),
    ("fun", 1, 1, "got 'fun'; expected 'func'"),
    ("func f", 1, 6, "got 'f'; expected the function's @name"),
    ("func @f(", 1, 9, "got the end of the text; expected an input %name"),
    (function_text("%0: f32[n] = exp(%x)") + "\nx", 6, 1, "got 'x'; expected the end of the text"),
]


@pytest.mark.parametrize(("text", "line", "column", "message"), LONE, ids=range(len(LONE)))
def test_parse_errors(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ParseError, match=re.escape(message)) as caught:
        parse_function(text, "model.ir")
    span = caught.value.span
    assert span is not None
    assert (span.source, span.line, span.column) == ("model.ir", line, column)
    shown = str(caught.value).splitlines()
    if text.splitlines()[line - 1 :]:
        assert shown[-2:] == [f"  {text.splitlines()[line - 1]}", f"  {' ' * (column - 1)}^"]


def test_module_errors() -> None:
    text = print_module(Module((decode(),)))
    function = text[text.index("  func") : text.rindex("}")]
    with pytest.raises(ParseError, match="function @decode is defined twice"):
        parse_module(text[: text.rindex("}")] + function + "}")
    with pytest.raises(ParseError, match="got 'func'; expected 'module'"):
        parse_module("func @f() -> () {}")
    with pytest.raises(ParseError, match="got the end of the text; expected 'func'"):
        parse_module("module {")


def test_schema_decides_what_a_word_is() -> None:
    odd = SymDim("f32", 1, 4)  # a dim that is called like a dtype
    x = b.input("x", b.tensor_type((odd, 2), f32))
    function = Function("f", (x,), (make_node("reshape", [x], shape=(2, odd)),))
    text = print_function(function)
    assert print_function(parse_function(text)) == text
