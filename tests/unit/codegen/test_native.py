"""The builder of native support code."""

import pytest

from strata.codegen.native import NativeFunction
from strata.core.errors import CodegenError


def test_text_of_a_small_function():
    f = NativeFunction("clamp", "i64", [("i64", "x")])
    with f.if_(f.arg("x") > 9):
        f.ret(9)
    f.ret(f.arg("x"))
    assert f.text() == (
        "define dso_local i64 @clamp(i64 %x) nounwind {\n"
        "entry:\n"
        "  %t1 = icmp sgt i64 %x, 9\n"
        "  br i1 %t1, label %then2, label %after3\n"
        "then2:\n"
        "  ret i64 9\n"
        "after3:\n"
        "  ret i64 %x\n"
        "}\n"
    )


def test_types_must_fit():
    f = NativeFunction("f", "void", [("i32", "x"), ("i64", "y")])
    with pytest.raises(CodegenError, match=r"f: got a value of type i64; expected i32"):
        f.arg("x") + f.arg("y")
