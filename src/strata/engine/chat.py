"""Chat templates: the Jinja text that comes with a model turns messages into a prompt.

Templates are untrusted input: they run in Jinja's immutable sandbox. What Hugging Face templates may use
besides plain Jinja: ``raise_exception(text)``, ``strftime_now(format)``, the ``tojson`` filter without HTML
escapes, ``break`` and ``continue``, ``{% generation %}`` blocks (their content as it is), and the texts of
the special tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from strata.core.errors import UserError

Message = Mapping[str, Any]


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}`` marks what the model wrote, for training; here it is
    transparent.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _environment() -> ImmutableSandboxedEnvironment:
    extensions = [_Generation, loopcontrols]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: Jinja text.
        variables: Always there: ``bos_token``, ``eos_token``, ...
        where: Where the text is from, for messages.

    Raises:
        UserError: the text is no Jinja template.
    """

    def __init__(self, source: str, variables: Mapping[str, str], where: str = "chat template") -> None:
        self.source = source
        self._variables = dict(variables)
        self._where = where
        try:
            self._template = _environment().from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(
                f"{where}: line {getattr(error, 'lineno', '?')}: {error}; expected a Jinja template"
            ) from error

    def render(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt for a conversation.

        Args:
            messages: Each with a ``role`` and a ``content``, oldest first.
            add_generation_prompt: End with what introduces the assistant's answer.
            variables: Further template variables (``tools``, ``enable_thinking``, ...).

        Raises:
            UserError: malformed messages, or the template refuses them.
        """
        check_messages(messages)
        values = {"tools": None, "documents": None, **self._variables, **variables}
        try:
            return self._template.render(
                messages=[dict(m) for m in messages], add_generation_prompt=add_generation_prompt, **values
            )
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            RecursionError,
        ) as error:
            raise UserError(f"{self._where}: cannot render {len(messages)} messages: {error}") from error


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse what is no list of messages.

    Raises:
        UserError: names the message that is wrong.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise UserError(
            f"chat: got {messages!r:.60}; expected a list of messages {{'role': ..., 'content': ...}}"
        )
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(
                f"chat: messages[{i}]: got {message!r:.60}; expected a dict with 'role' and 'content'"
            )
        content = message.get("content")
        if not isinstance(content, (str, list)) and not (content is None and "tool_calls" in message):
            raise UserError(f"chat: messages[{i}].content: got {content!r:.60}; expected a text")
