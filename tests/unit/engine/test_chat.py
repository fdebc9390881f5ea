import pytest

from strata.core.errors import UserError
from strata.engine.chat import ChatTemplate, check_messages

USER = {"role": "user", "content": "hi"}
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EXTRAS = """{%- for m in messages %}
    {%- if m.role == 'system' %}{% continue %}{% endif %}
    {%- if m.content == 'halt' %}{% break %}{% endif %}
    {%- generation %}{{ m.content | trim }};{% endgeneration %}
{%- endfor %}
{{ {'b': '<é>', 'a': [1, none]} | tojson }} {{ strftime_now('%Y') | length }}
{{- ' ' ~ enable_thinking | default('off') }}"""


def test_chatml():
    template = ChatTemplate(CHATML, {})
    assert template.render([USER]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert template.render([USER], add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_extras():
    messages = [{"role": "system", "content": "s"}, USER, {"role": "user", "content": "halt"}, USER]
    text = ChatTemplate(EXTRAS, {}).render(messages)
    assert text == 'hi;{"b": "<é>", "a": [1, null]} 4 off'
    assert ChatTemplate(EXTRAS, {}).render([USER], enable_thinking=True).endswith("True")


def test_same_as_transformers():
    pytest.importorskip("transformers")
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "system", "content": "s"}, USER, {"role": "assistant", "content": " yo "}, USER]
    for source in (
        CHATML,
        EXTRAS,
        "{{ bos_token }}{% if tools %}t{% endif %}{{ messages | tojson(indent=2) }}",
    ):
        for prompt in (True, False):
            theirs, _ = render_jinja_template(
                [messages], chat_template=source, add_generation_prompt=prompt, bos_token="<s>"
            )
            ours = ChatTemplate(source, {"bos_token": "<s>"}).render(messages, add_generation_prompt=prompt)
            assert ours == theirs[0]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (
            "{{ raise_exception('roles must alternate') }}",
            "t: cannot render 1 messages: roles must alternate",
        ),
        ("{{ messages[0].nothing.more }}", "cannot render 1 messages: .* has no attribute 'nothing'"),
        ("{{ messages[0].content + 1 }}", "cannot render 1 messages"),
        ("{{ ''.__class__.__mro__ }}", "cannot render 1 messages: access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "cannot render 1 messages: .*append"),
        ("{{ 1 / 0 }}", "cannot render 1 messages: division by zero"),
    ],
)
def test_templates_that_fail(source, match):
    with pytest.raises(UserError, match=match):
        ChatTemplate(source, {}, "t").render([USER])


@pytest.mark.parametrize("source", ["{% if %}", "{{ x", "{% nosuchtag %}", "{% generation %}"])
def test_texts_that_are_no_templates(source):
    with pytest.raises(UserError, match=r"t: line 1: .*; expected a Jinja template"):
        ChatTemplate(source, {}, "t")


@pytest.mark.parametrize(
    ("messages", "match"),
    [
        ("hi", "chat: got 'hi'; expected a list of messages"),
        ([], r"chat: got \[\]; expected a list"),
        (USER, "expected a list of messages"),
        (["hi"], r"messages\[0\]: got 'hi'; expected a dict with 'role'"),
        ([USER, {"content": "x"}], r"messages\[1\]: got \{'content': 'x'\}"),
        ([{"role": "user"}], r"messages\[0\]\.content: got None; expected a text"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content: got 3"),
    ],
)
def test_messages_are_checked(messages, match):
    with pytest.raises(UserError, match=match):
        check_messages(messages)


def test_messages_with_tool_calls_need_no_content():
    check_messages([{"role": "assistant", "tool_calls": []}, {"role": "user", "content": [{"type": "text"}]}])
