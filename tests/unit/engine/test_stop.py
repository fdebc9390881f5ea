import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.engine.stop import StopBuffer


@pytest.mark.parametrize(
    ("stops", "given_pieces", "passed", "found", "rest"),
    [
        ((), ["a", "b"], ["a", "b"], None, ""),
        (("END",), ["one E", "N", "D two", "three"], ["one ", "", "", ""], "END", ""),
        (("END",), ["one E", "N", "X"], ["one ", "", "ENX"], None, ""),
        (("END",), ["one EN"], ["one "], None, "EN"),
        (("\n\n", "###"), ["a\n", "##", "\n", "\n\nb"], ["a", "\n", "##", ""], "\n\n", ""),
        (("aab",), ["a", "a", "a", "b"], ["", "", "a", ""], "aab", ""),
        (("b", "ab"), ["ab"], [""], "ab", ""),
        (("x",), ["x"], [""], "x", ""),
    ],
)
def test_examples(stops, given_pieces, passed, found, rest):
    buffer = StopBuffer(stops)
    assert [buffer.push(p) for p in given_pieces] == passed
    assert buffer.found == found
    assert buffer.flush() == rest
    assert buffer.flush() == ""


@given(
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_equals_the_whole_text_cut_at_the_first_stop(stops, given_pieces):
    buffer = StopBuffer(stops)
    out = ""
    for i, piece in enumerate(given_pieces):
        out += buffer.push(piece)
        so_far = "".join(given_pieces[: i + 1])
        hits = [so_far.find(s) for s in stops if s in so_far]
        if hits:
            assert out == so_far[: min(hits)]
            assert buffer.found is not None
            assert so_far[min(hits) :].startswith(buffer.found)
            return
        assert so_far.startswith(out)
    assert buffer.found is None
    assert out + buffer.flush() == "".join(given_pieces)
