"""Conversations: their forms, and that answers alone are scored, whatever the tokenizer and the packing."""

import json

import numpy as np
import pytest

import data
from data import conversations, library_tokenizer
from data.documents import Request

TALK = [
    {"role": "user", "content": "one"}, {"role": "assistant", "content": " two"},
    {"role": "user", "content": "three"}, {"role": "assistant", "content": "four"},
]  # fmt: skip
MARKED = (
    "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n[ two<|im_end|>\n]"
    "<|im_start|>user\nthree<|im_end|>\n<|im_start|>assistant\n[four<|im_end|>\n]"
)


def chatting():
    """A byte-level tokenizer with the specials of ChatML and merges across some borders, and no start of its own."""
    letters = {byte: letter for letter, byte in library_tokenizer.byte_alphabet().items()}
    pieces = [letters[byte] for byte in range(256)] + ["tw", "Ġtw", "on", "one"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    specials = {"<|im_start|>": 260, "<|im_end|>": 261, "<|endoftext|>": 262}
    pattern = library_tokenizer.GPT2_PATTERN
    definition = library_tokenizer.byte_level(vocabulary, ["t w", "Ġ tw", "o n", "on e"], [pattern], specials)
    return library_tokenizer.LibraryTokenizer(definition, 262, 261, 262, False, "chatml")


def test_a_pattern_that_would_try_for_ever_is_a_sentence():
    """A foreign definition is a program, too: its regular expressions take exponential time for some texts."""
    told = json.loads(chatting().definition)
    split = {"type": "Split", "pattern": {"Regex": r"(.*a){25}$"}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    told["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, level]}
    slow = library_tokenizer.LibraryTokenizer(json.dumps(told), 262, 261, 262, False, "chatml")
    assert slow.decode(slow.encode("one two")) == "one two"
    text = "a" * 400 + "b"
    for read in (slow.encode, slow.encode_marked, lambda text: slow.encode_placed(text, specials=True)):
        with pytest.raises(
            ValueError, match="the tokenizer's definition cannot cut this text .*; use another tokenizer"
        ):
            read(text)


def shown(tokenizer, ids, scored):
    """The text of ids, what is scored between brackets; specials by name."""
    names = {i: name for name, i in getattr(tokenizer, "specials", {}).items()}
    pieces = [names.get(i) or tokenizer.decode([i]) for i in ids]
    out, inside = "", False
    for piece, flag in zip(pieces, scored, strict=True):
        out += ("[" if flag and not inside else "]" if inside and not flag else "") + piece
        inside = bool(flag)
    return out + "]" * int(inside)


def test_answers_alone_are_scored_by_the_template_of_the_tokenizer():
    document = json.dumps({"messages": TALK}).encode()
    ids, scored, _ = conversations.encoded(document, chatting(), "")
    assert shown(chatting(), ids, scored) == MARKED
    whole, _ = chatting().encode_placed(MARKED.replace("[", "").replace("]", ""), specials=True)
    np.testing.assert_array_equal(ids, whole)
    ids, scored, _ = conversations.encoded(document, data.ByteTokenizer(), "chatml")
    assert ids[0] == 256 and not scored[0] and shown(data.ByteTokenizer(), ids[1:], scored[1:]) == MARKED


def test_plain_prompts_and_completions():
    document = json.dumps({"prompt": "ab", "completion": "cd"}).encode()
    for tokenizer in (data.ByteTokenizer(), chatting()):
        ids, scored, _ = conversations.encoded(document, tokenizer, "")
        wanted = [tokenizer.bos, *b"abcd", tokenizer.eos]
        assert ids.tolist() == wanted if tokenizer.name == "bytes" else len(ids) == 6
        assert scored.tolist() == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TALK[:2]},
        {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": " two"}]},
        {"prompt": TALK[:1], "completion": TALK[1:2]},
        {"prompt": TALK[:1], "response": " two"},
        {"instruction": "one", "input": "", "output": " two"},
    ],
)
def test_forms_are_one_conversation(record):
    assert json.loads(conversations.canonical(record, (), "a:1")) == {"messages": TALK[:2]}


@pytest.mark.parametrize("record", [{"text": "a"}, {"messages": TALK[:1]}, {"messages": [{"role": "user"}]}, None, 3])
def test_what_is_no_conversation_is_told(record):
    with pytest.raises(ValueError, match=r"path='a:1' is no conversation; use lines like"):
        conversations.canonical(record, (), "a:1")


def test_a_template_that_changes_what_was_said_is_refused():
    pytest.importorskip("jinja2")
    template = "{% for m in messages %}{% if loop.last %}{{ m.content }}{% else %}-{% endif %}{% endfor %}"
    with pytest.raises(ValueError, match="does not keep message 2 as it was once others follow"):
        conversations.segments(TALK, template, data.ByteTokenizer())


def test_a_tokenizer_without_a_template_is_told():
    with pytest.raises(ValueError, match="brings no chat template; use template='chatml'"):
        conversations.encoded(json.dumps({"messages": TALK}).encode(), data.ByteTokenizer(), "")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "talk.jsonl"
    told = [({"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": "x" * (i % 9 + 1)})
            for i in range(80)]  # fmt: skip
    lines = [{"messages": messages} for messages in told]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("packing", ["stream", "first_fit"])
def test_batches_score_answers_alone(packing, file, tmp_path):
    kw = {"path": str(file), "template": "chatml", "cache_dir": str(tmp_path / "cache"), "validation": 0.2}
    corpus = data.load("chat", **kw)
    loader = data.Loader(corpus.train, batch_size=4, length=90, pad=258, packing=packing, epochs=1, shuffle=False)
    targets = []
    for step in range(loader.num_steps):
        batch = loader.batch(step)
        targets += batch["targets"][batch["scored"]].tolist()
    assert len(targets) == corpus.train.num_targets
    text = bytes(targets).decode()
    assert set(text) == set("x<|im_end|>\n") and text.count("<|im_end|>\n") == len(corpus.train.starts)
    again = data.load("chat", **kw)
    np.testing.assert_array_equal(again.valid.scored, corpus.valid.scored)
    assert corpus.info["documents"] == 80


def test_a_template_from_a_file_is_another_corpus_of_the_same_text(file, tmp_path):
    pytest.importorskip("jinja2")
    path = tmp_path / "t.jinja"
    path.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                    "{% if add_generation_prompt %}assistant: {% endif %}")  # fmt: skip
    kw = {"path": str(file), "cache_dir": str(tmp_path / "cache"), "validation": 0.2}
    corpus, other = (data.load("chat", template=name, **kw) for name in ("chatml", str(path)))
    assert other.train.folder != corpus.train.folder and other.hash == corpus.hash
    assert "assistant: x" in corpus.tokenizer.decode(other.train.tokens)


def test_a_mixture_of_text_and_conversations(file, tmp_path):
    (tmp_path / "a.txt").write_text("plain text " * 300)
    parts = ({"source": "text", "path": str(tmp_path / "a.txt")}, {"source": "chat", "path": str(file)})
    corpus = data.load("mixture", components=parts, template="chatml", cache_dir=str(tmp_path / "c"), validation=0.1)
    batch = data.Loader(corpus.train, batch_size=8, length=64, pad=258).batch(0)
    shares = batch["scored"].mean(axis=1)
    assert (shares[::2] > 0.9).all() and (shares[1::2] < 0.6).all()


def test_the_source_reads_what_the_request_names(file):
    source = data.SOURCES["chat"](Request(path=str(file), columns=("messages",)))
    assert source.form == "chat" and len(list(source.documents([]))) == 80
