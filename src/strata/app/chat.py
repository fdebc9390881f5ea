"""``strata chat``: a conversation on a terminal, or through a pipe with one message per line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from strata.core.errors import UserError
from strata.engine.generate import LanguageModel
from strata.engine.sampling import SamplingParams

from .session import figures, stats_line

HELP = "/reset forgets the conversation, /stats shows figures of the last answer, /exit (or Ctrl-D) ends"


class Chat:
    """A conversation and what was said in it.

    Args:
        model: Has a chat template.
        params: How answers are sampled.
        system: System message; ``""`` = none.
        as_json: Print each answer with its figures as one line of JSON.

    Attributes:
        messages: Everything said so far, oldest first.

    Raises:
        UserError: the model has no chat template, or the template refuses a system message.
    """

    def __init__(
        self, model: LanguageModel, params: SamplingParams, system: str = "", as_json: bool = False
    ) -> None:
        self._model = model
        self._params = params
        self._start = [{"role": "system", "content": system}] if system else []
        self._as_json = as_json
        self._stats = "nothing was generated yet"
        self.messages = list(self._start)
        model.chat_prompt(
            [*self.messages, {"role": "user", "content": "?"}]
        )  # fails now rather than at an answer

    def run(self) -> None:
        """Answer until the input ends or ``/exit``.

        Raises:
            UserError: an answer is impossible; on a terminal it is only shown, and the conversation goes on.
        """
        interactive = sys.stdin.isatty()
        if interactive:
            sys.stderr.write(f"{HELP}\n")
        for line in _terminal_lines() if interactive else _piped_lines():
            text = line.strip()
            if text in ("/exit", "/quit"):
                return
            if text.startswith("/"):
                self._command(text)
            elif text:
                try:
                    self.answer(text)
                except UserError as error:
                    if not interactive:
                        raise
                    sys.stderr.write(f"strata: {error}; /reset starts over\n")
                except KeyboardInterrupt:
                    if not interactive:
                        raise
                    sys.stdout.write("\n")

    def _command(self, text: str) -> None:
        match text:
            case "/reset":
                self.messages = list(self._start)
                sys.stderr.write("forgotten\n")
            case "/stats":
                sys.stderr.write(f"[{self._stats}]\n")
            case "/help":
                sys.stderr.write(f"{HELP}\n")
            case _:
                sys.stderr.write(f"unknown command {text.split()[0]}: {HELP}\n")

    def answer(self, text: str) -> None:
        """Print the answer to ``text``, streaming, and remember both (of an answer cut short, its start).

        Raises:
            UserError: the conversation does not fit the context; it is as before.
        """
        question = {"role": "user", "content": text}
        pieces: list[str] = []
        with self._model.stream_chat([*self.messages, question], self._params) as stream:
            try:
                for piece in stream:
                    pieces.append(piece)
                    if not self._as_json:
                        sys.stdout.write(piece)
                        sys.stdout.flush()
            finally:
                if pieces:
                    self.messages += [question, {"role": "assistant", "content": "".join(pieces)}]
            result = stream.generation
        if not pieces:
            self.messages += [question, {"role": "assistant", "content": ""}]
        self._stats = stats_line(self._model, result)
        sys.stdout.write(json.dumps(figures(self._model, result)) + "\n" if self._as_json else "\n")
        sys.stdout.flush()


def _terminal_lines() -> Iterator[str]:
    """Lines typed after a prompt, with editing and history where Python has ``readline``."""
    try:
        import readline  # noqa: F401  (importing it gives ``input`` its line editing)
    except ImportError:
        sys.stderr.write("(no line editing: this Python has no readline)\n")
    while True:
        try:
            yield input("> ")
        except EOFError:
            sys.stderr.write("\n")
            return


def _piped_lines() -> Iterator[str]:
    try:
        for line in sys.stdin.buffer:
            yield line.decode()
    except UnicodeError as error:
        raise UserError(f"chat: standard input is no UTF-8 text: {error}") from None
