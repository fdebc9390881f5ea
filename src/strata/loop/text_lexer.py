"""Words of loop text, with indentation made explicit; the grammar is in :mod:`.text`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from strata.core.errors import ParseError, Span

_TOKEN = re.compile(
    r"""
    (?P<skip>[ \t]+|\#[^\n]*)
  | (?P<newline>\n)
  | (?P<number>(?:0x[0-9a-f]+(?:\.[0-9a-f]*)?p[+-]?\d+|\d+)(?:_[a-z]+\d*)?)
  | (?P<string>"[^"\n]*")
  | (?P<symbol>@[\w.]+)
  | (?P<name>[A-Za-z_]\w*)
  | (?P<punct>->|\.\.|//|<=|>=|==|!=|[][(){}<>:=,*/%+-])
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word; ``kind`` is a group of the token pattern, or newline, indent, dedent, end."""

    kind: str
    text: str
    line: int
    column: int


class Source:
    """A text and its tokens.

    Args:
        text: The whole text.
        name: What error messages call it.

    Raises:
        ParseError: a character that starts no word, or an indentation that matches no line above.
    """

    def __init__(self, text: str, name: str) -> None:
        self.name = name
        self.lines = text.split("\n")
        self.tokens = self.tokenize(text)

    def fail(self, message: str, at: Token) -> NoReturn:
        """Raise a ParseError at a token."""
        line = self.lines[at.line - 1] if at.line <= len(self.lines) else ""
        raise ParseError(message, Span(self.name, at.line, at.column), line)

    def tokenize(self, text: str) -> list[Token]:
        """Words with indentation made explicit; inside brackets, line ends and indentation do not count."""
        tokens: list[Token] = []
        indents = [0]
        depth = offset = 0
        line, start = 1, 0
        fresh = True  # at the first word of a line
        while offset < len(text):
            match = _TOKEN.match(text, offset)
            if match is None:
                here = Token("", text[offset], line, offset - start + 1)
                self.fail(f"got {text[offset]!r}; expected a word of the loop language", here)
            kind, word = str(match.lastgroup), match[0]
            here = Token(kind, word, line, offset - start + 1)
            offset = match.end()
            if kind == "newline":
                if not fresh and depth == 0:
                    tokens.append(here)
                    fresh = True
                line, start = line + 1, offset
            elif kind != "skip":
                if fresh and depth == 0:
                    self.indent(tokens, indents, here)
                fresh = False
                depth += (word in "([{") - (word in ")]}") if kind == "punct" else 0
                tokens.append(here)
        end = Token("end", "end of text", line, offset - start + 1)
        if not fresh:
            tokens.append(Token("newline", "\n", end.line, end.column))
        tokens += [Token("dedent", "", end.line, end.column) for _ in indents[1:]]
        return [*tokens, end]

    def indent(self, tokens: list[Token], indents: list[int], here: Token) -> None:
        """Tokens for a change of indentation before the word ``here``."""
        column = here.column - 1
        if column > indents[-1]:
            indents.append(column)
            tokens.append(Token("indent", "", here.line, here.column))
        while column < indents[-1]:
            indents.pop()
            tokens.append(Token("dedent", "", here.line, here.column))
        if column != indents[-1]:
            self.fail("got an indentation that matches no line above", here)
