"""``strata chat``: through pipes, on a terminal, and what is remembered."""

import builtins
import json

import pytest

from strata.app.chat import Chat
from strata.core.errors import UserError
from strata.engine.sampling import SamplingParams

SHORT = SamplingParams(max_tokens=6)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_piped_conversation(strata, model):
    first = model.chat([user("Sum a list")], max_tokens=6).text
    second = model.chat([user("Sum a list"), assistant(first), user("Again")], max_tokens=6).text
    fresh = model.chat([user("Again")], max_tokens=6).text
    lines = "Sum a list\n\n  Again \n/reset\nAgain\n/stats\n/what now\n/help\n/exit\nnever read\n"
    result = strata("chat", "--max-tokens", 6, "--temperature", 0, stdin=lines)
    assert result.exit_code == 0
    assert result.stdout == f"{first}\n{second}\n{fresh}\n"
    forgotten, stats, unknown, help_ = result.stderr.splitlines()
    assert forgotten == "forgotten"
    assert "decode 6 tokens" in stats
    assert unknown.startswith("unknown command /what: /reset forgets")
    assert help_.startswith("/reset forgets")


def test_sampling_options(strata, model):
    options = {
        "temperature": 1.5,
        "top_k": 9,
        "top_p": 0.8,
        "min_p": 0.01,
        "repetition_penalty": 1.1,
        "seed": 4,
    }
    args = [x for key, value in options.items() for x in (f"--{key.replace('_', '-')}", value)]
    want = model.chat([user("Hi")], max_tokens=20, **options).text
    assert strata("chat", "--max-tokens", 20, *args, stdin="Hi").stdout == want + "\n"


def test_json_lines_and_artifacts(strata, model, artifact):
    result = strata(
        "chat", "--artifact", artifact, "--max-tokens", 4, "--temperature", 0, "--json", stdin="A\nB\n"
    )
    first, second = map(json.loads, result.stdout.splitlines())
    assert first["text"] == model.chat([user("A")], max_tokens=4).text
    assert second["generated_tokens"] == 4


def test_what_is_remembered(model, capsys):
    chat = Chat(model, SHORT, system="Be short")
    start = [{"role": "system", "content": "Be short"}]
    assert chat.messages == start
    chat.answer("one")
    said = capsys.readouterr().out.removesuffix("\n")
    assert chat.messages == [*start, user("one"), assistant(said)]
    with pytest.raises(UserError, match=r"prompt has \d+ tokens, context is 1024"):
        chat.answer("long " * 1100)
    assert len(chat.messages) == 3
    chat._command("/reset")
    assert chat.messages == start


def test_bad_bytes(strata):
    result = strata("chat", stdin=b"\xff\n")
    assert result.exit_code == 2
    assert result.stderr.startswith("strata: chat: standard input is no UTF-8 text: ")


def test_an_impossible_answer_ends_a_pipe(strata):
    result = strata("chat", "--max-tokens", 2, stdin="long " * 1100 + "\nshort\n")
    assert result.exit_code == 2
    assert "context is 1024" in result.stderr


class Typist:
    """Stands in for a person: gives lines, or raises what keys raise."""

    def __init__(self, *lines):
        self.lines = list(lines)

    def __call__(self, prompt):
        assert prompt == "> "
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


@pytest.fixture
def at_terminal(monkeypatch):
    def sit_down(*lines):
        monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
        monkeypatch.setattr(builtins, "input", Typist(*lines))

    return sit_down


def test_terminal(model, at_terminal, capsys):
    at_terminal("Hi", "long " * 1100, "/stats", EOFError())
    chat = Chat(model, SHORT)
    chat.run()
    out, err = capsys.readouterr()
    assert err.startswith("/reset forgets the conversation, /stats shows figures")
    assert "context is 1024; shorten the prompt" in err
    assert "; /reset starts over\n" in err
    assert "decode 6 tokens" in err
    assert chat.messages == [user("Hi"), assistant(out.removesuffix("\n"))]


def test_ctrl_c_stops_the_answer_and_keeps_its_start(model, at_terminal, capsys, monkeypatch):
    at_terminal("Hi", "Go on", "/exit")
    chat = Chat(model, SamplingParams(max_tokens=50, ignore_eos=True))
    stream = model.stream_chat
    calls = []

    def interrupted(messages, params):
        calls.append(len(messages))
        pieces = stream(messages, params)
        if len(calls) == 1:
            take = pieces._pieces

            def some():
                for number, piece in enumerate(take):
                    if number == 5:
                        raise KeyboardInterrupt
                    yield piece

            pieces._pieces = some()
        return pieces

    monkeypatch.setattr(model, "stream_chat", interrupted)
    chat.run()
    first, _ = capsys.readouterr().out.split("\n", 1)
    assert calls == [1, 3]
    assert chat.messages[0] == user("Hi")
    assert chat.messages[1]["content"].startswith(first)
    assert len(chat.messages) == 4
    monkeypatch.undo()
    model.cache.check_integrity()


def test_ctrl_c_at_the_prompt_ends(model, at_terminal):
    at_terminal(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        Chat(model, SHORT).run()
