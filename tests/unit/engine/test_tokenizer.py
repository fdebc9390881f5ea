import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_tokenizers import byte_level, llama, metaspace, word_piece

from strata.core.errors import UserError
from strata.engine.tokenizer import StartSpace, Tokenizer, read_json

BOS = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
FAMILIES = {"byte_level": byte_level, "llama": llama, "metaspace": metaspace}
TOKENIZERS = {name: Tokenizer(make(), BOS) for name, make in FAMILIES.items()}


def pieces(tokenizer: Tokenizer, ids: list[int], **options) -> list[str]:
    stream = tokenizer.stream(**options)
    return [*(stream.push(i) for i in ids), stream.flush()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=150, deadline=None)
@given(text=st.text("abc hé你🎉\n,.", max_size=30))
def test_stream_is_decode(name, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer.encode(text)
    got = pieces(tokenizer, ids, continues=False)
    assert "".join(got) == tokenizer.decode(ids)
    if name != "metaspace":  # its vocabulary has no bytes: unknown characters are lost
        assert not any("\ufffd" in piece for piece in got)
    if name == "byte_level":
        assert "".join(got) == text


@pytest.mark.parametrize("name", ["byte_level", "llama", "metaspace"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_stream_of_any_tokens(name, data):
    """Whatever the model emits: valid text is as decoded, and nothing ever comes out half."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    whole = "".join(pieces(tokenizer, ids, continues=False))
    decoded = tokenizer.decode(ids)
    if "\ufffd" not in whole + decoded or name == "byte_level":
        assert whole == decoded
    raw = b"".join(tokenizer.token_bytes(i) or b"" for i in ids if not tokenizer.is_skipped(i))
    assert whole.strip(" ") == raw.decode("utf-8", "replace").strip(" ")


def test_characters_are_never_split():
    tokenizer = TOKENIZERS["byte_level"]
    ids = [tokenizer.token_id(c) for c in ("ð", "Ł", "İ", "ī", "a")]  # bytes f0 9f 8e 89 = 🎉
    assert None not in ids
    assert pieces(tokenizer, ids) == ["", "", "", "🎉", "a", ""]
    assert pieces(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]
    assert pieces(tokenizer, [ids[0], ids[4]]) == ["", "\ufffda", ""]
    llama2 = TOKENIZERS["llama"]
    ids = [llama2.token_id(f"<0x{b:02X}>") for b in "é".encode()]
    assert pieces(llama2, ids) == ["", "é", ""]


def test_a_real_replacement_character_comes_through():
    tokenizer = TOKENIZERS["byte_level"]
    assert pieces(tokenizer, tokenizer.encode("a\ufffd", add_special=False))[-2] == "\ufffd"


def test_space_at_the_start():
    for name in ("llama", "metaspace"):
        tokenizer = TOKENIZERS[name]
        ids = tokenizer.encode("hello", add_special=False)
        assert "".join(pieces(tokenizer, ids, continues=False)) == "hello"
        assert "".join(pieces(tokenizer, ids, continues=True)) == " hello"
    assert Tokenizer(llama(strip=False)).start_space is StartSpace.KEEP
    assert TOKENIZERS["byte_level"].start_space is StartSpace.KEEP


def test_special_tokens():
    tokenizer = TOKENIZERS["byte_level"]
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (0, (1,))
    assert tokenizer.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    assert tokenizer.token(0) == "<s>"
    assert tokenizer.token(99999) is None
    ids = tokenizer.encode("a</s><tool call>b")
    assert "".join(pieces(tokenizer, ids)) == "a<tool call>b" == tokenizer.decode(ids)
    assert "".join(pieces(tokenizer, ids, skip_special=False)) == "<s>a</s><tool call>b"
    assert pieces(tokenizer, [99999]) == ["", ""]
    assert Tokenizer(byte_level(), BOS, {"eos_token_id": [7, 1, True, "x"]}).eos_ids == (7, 1)
    assert Tokenizer(byte_level()).eos_ids == ()


@pytest.mark.parametrize(
    ("make", "config", "text", "begin"),
    [
        (byte_level, {}, "a", [0]),  # the post-processor decides
        (byte_level, {"add_bos_token": True}, "a", [0]),
        (byte_level, {"add_bos_token": False}, "a", []),
        (byte_level, {"add_bos_token": False}, "<s>a", [0]),  # written by the user
        (byte_level, {"add_bos_token": True}, "<s>a", [0, 0]),
        (llama, {}, "a", []),
        (llama, {"add_bos_token": True}, "a", [1]),
        (llama, {"add_bos_token": True}, "", [1]),
    ],
)
def test_bos(make, config, text, begin):
    tokenizer = Tokenizer(make(), {**BOS, **config})
    bos = tokenizer.bos_id
    ids = tokenizer.encode(text)
    count = next((i for i, token in enumerate(ids) if token != bos), len(ids))
    assert ids[:count] == begin
    assert tokenizer.encode("a", add_special=False)[0] != bos


def test_eos_is_added_where_the_configuration_says():
    tokenizer = Tokenizer(llama(), {**BOS, "add_eos_token": True, "add_bos_token": True})
    assert tokenizer.encode("")[0] == 1
    assert tokenizer.encode("a")[-1] == 2
    assert tokenizer.encode("a", add_special=False)[-1] != 2


def test_decoders_without_a_byte_mapping_use_a_window():
    tokenizer = Tokenizer(word_piece())
    assert tokenizer.token_bytes(1) is None
    ids = tokenizer.encode("hello helloing the world, the world " * 5, add_special=False)
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids)
    stream = tokenizer.stream()
    assert [stream.push(ids[0]), stream.push(ids[1]), stream.push(ids[2])] == ["hello", " hello", "ing"]
    assert stream.flush() == ""


def test_window_decoder_holds_back_incomplete_characters():
    from tokenizers import decoders

    backend = byte_level()
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    tokenizer = Tokenizer(backend)
    assert tokenizer.token_bytes(5) is None
    ids = tokenizer.encode("é你a", add_special=False)
    got = pieces(tokenizer, ids)
    assert not any("\ufffd" in p for p in got)
    assert "".join(got) == "é你a"
    parts = [tokenizer.token_id(c) for c in ("ð", "Ł", "İ", "ī")]  # the bytes of 🎉
    assert pieces(tokenizer, parts) == ["", "", "", "🎉", ""]
    assert pieces(tokenizer, parts[:2])[:2] == ["", ""]


@pytest.mark.parametrize(
    "decoder", [None, {"type": "Fuse"}, {"type": "Replace", "pattern": {"Regex": "x"}, "content": ""}]
)
def test_unknown_decoders(decoder):
    from strata.engine.tokenizer import _byte_decoder

    assert _byte_decoder(decoder) == (None, StartSpace.KEEP)


def folder_with(tmp_path: Path, **files) -> Path:
    byte_level().save(str(tmp_path / "tokenizer.json"))
    for name, content in files.items():
        path = tmp_path / name.replace("_json", ".json").replace("_jinja", ".jinja")
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


def test_from_folder(tmp_path):
    folder = folder_with(
        tmp_path,
        tokenizer_config_json={**BOS, "chat_template": "old"},
        generation_config_json={"eos_token_id": [3]},
        chat_template_jinja="{{ bos_token }}{{ messages[0].content }}",
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_ids == (3, 1)
    assert tokenizer.chat_template().render([{"role": "user", "content": "x"}]) == "<s>x"


def test_from_folder_fallbacks(tmp_path):
    folder = folder_with(
        tmp_path,
        special_tokens_map_json=BOS,
        config_json={"eos_token_id": 9},
        chat_template_json={"chat_template": "{{ eos_token }}"},
    )
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.eos_ids == (9, 1)
    assert tokenizer.chat_template().render([{"role": "user", "content": "x"}]) == "</s>"


def test_several_chat_templates():
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    tokenizer = Tokenizer(byte_level(), {"chat_template": named})
    message = [{"role": "user", "content": "x"}]
    assert tokenizer.chat_template().render(message) == "d"
    assert tokenizer.chat_template(tools=True).render(message) == "t"


def test_errors(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json: no such file; the model needs a tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(UserError, match=r"tokenizer\.json: is no tokenizer: "):
        Tokenizer.from_folder(tmp_path)
    folder_with(tmp_path, tokenizer_config_json="{nope")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: is no JSON: "):
        Tokenizer.from_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"tokenizer_config\.json: got \[1\]; expected an object"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(UserError, match="cannot read: Is a directory"):
        read_json(tmp_path)
    with pytest.raises(
        UserError, match=r"here: the model has no chat template .*use generate with a plain prompt"
    ):
        Tokenizer(byte_level(), where="here").chat_template()


def test_like_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    folder = folder_with(
        tmp_path,
        tokenizer_config_json={
            "bos_token": "<s>",
            "eos_token": "</s>",
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    ours = Tokenizer.from_folder(folder)
    for text in ["hello world", "", "  spaces", "é你🎉", "</s>x"]:
        assert ours.encode(text) == reference(text)["input_ids"]
        ids = ours.encode(text)
        assert ours.decode(ids) == reference.decode(ids, skip_special_tokens=True)
