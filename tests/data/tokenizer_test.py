import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import tokenizer, words

few = settings(max_examples=25, deadline=None, derandomize=True)
SAMPLE = ["the quick brown fox\n  jumps över the lazy dog's tail\n" * 20, "日本語のトークン 👩‍🚀 ok\n" * 10]
BPE = data.train_bpe([text.encode() for text in SAMPLE], 400)
BYTES = data.ByteTokenizer()
BOTH = pytest.mark.parametrize("kind", [BYTES, BPE], ids=["bytes", "bpe"])


@BOTH
@few
@given(text=st.text())
def test_any_text_comes_back(kind, text):
    assert kind.decode(kind.encode(text)) == text


@BOTH
@few
@given(content=st.binary())
def test_any_bytes_come_back_and_are_counted(kind, content):
    ids = kind.encode(content)
    assert kind.decode_bytes(ids) == content
    assert kind.token_bytes[ids].sum() == len(content)
    assert kind.decode(ids) == content.decode("utf-8", "replace")


@BOTH
@few
@given(text=st.text(alphabet="añ日👩\u200d 🚀", max_size=30))
def test_streaming_gives_each_character_when_it_is_complete(kind, text):
    decoder = data.StreamDecoder(kind)
    ids = kind.encode(text)
    pieces = [decoder.push(i) for i in ids]
    assert "".join(pieces) + decoder.flush() == text
    assert "\ufffd" not in "".join(pieces)


def test_streaming_says_when_a_character_stays_unfinished():
    decoder = data.StreamDecoder(BYTES)
    assert [decoder.push(i) for i in "é".encode()[:1]] == [""]
    assert decoder.flush() == "\ufffd"
    decoder = data.StreamDecoder(data.SymbolTokenizer(17))
    assert "".join(decoder.push(i) for i in [17, 3, 16, 0, 18]) == "3 16 0"


def test_ids_of_bytes_are_fixed():
    assert BYTES.encode("é\n").tolist() == [0xC3, 0xA9, 10]
    assert (BYTES.bos, BYTES.eos, BYTES.pad, BYTES.vocab_size) == (256, 257, 258, 259)


@pytest.mark.parametrize("kind", [BYTES, BPE, data.SymbolTokenizer(17)], ids=["bytes", "bpe", "symbols"])
def test_specials_come_last_and_stand_for_nothing(kind):
    assert [kind.bos, kind.eos, kind.pad] == [kind.vocab_size - 3 + k for k in range(3)]
    assert kind.decode([kind.bos, kind.eos, kind.pad]) == ""
    assert kind.token_bytes.shape == (kind.vocab_size,)
    assert (kind.token_bytes[-3:] == 0).all() and (kind.token_bytes[:-3] > 0).all()
    with pytest.raises(ValueError, match=f"id={kind.vocab_size} is outside the vocabulary; use ids 0 to"):
        kind.decode([kind.vocab_size])
    with pytest.raises(ValueError, match="id=-1 is outside"):
        kind.decode([-1])


@pytest.mark.parametrize("kind", [BYTES, BPE, data.SymbolTokenizer(17, "digits")], ids=["bytes", "bpe", "symbols"])
def test_a_saved_tokenizer_is_the_same(kind, tmp_path):
    kind.save(tmp_path / "tokenizer.json")
    again = data.load_tokenizer(tmp_path / "tokenizer.json")
    assert (again.hash, again.name, again.vocab_size) == (kind.hash, kind.name, kind.vocab_size)
    assert np.array_equal(again.encode("12 3"), kind.encode("12 3"))


def test_bpe_learns_words_and_the_same_ones_each_time():
    assert len(BPE.encode(SAMPLE[0])) < 0.5 * len(SAMPLE[0].encode())
    assert BPE.vocab_size <= 400
    assert data.train_bpe([text.encode() for text in SAMPLE], 400).hash == BPE.hash
    assert data.train_bpe([b"other text, other text"], 400).hash != BPE.hash
    assert len({BPE.hash, BYTES.hash, data.SymbolTokenizer(256).hash}) == 3


def test_a_long_text_is_cut_into_pieces_without_loss(monkeypatch):
    monkeypatch.setattr(tokenizer, "_PIECE", 64)
    content = b"\xff".join(text.encode() for text in SAMPLE) + b"x" * 300
    assert max(len(run) for run in tokenizer.utf8_runs(content)) <= 64
    assert BPE.decode_bytes(BPE.encode(content)) == content


def test_no_text_makes_a_special():
    ids = BPE.encode("<bos> <s> [PAD] <|endoftext|>")
    assert ids.max() < BPE.bos


def test_refusals():
    with pytest.raises(ValueError, match="vocab_size=256 is too small for tokenizer='bpe'; use at least 260"):
        data.train_bpe([b"text"], 256)
    with pytest.raises(ValueError, match="text has '17', which is not a symbol; use numbers 0 to 16"):
        data.SymbolTokenizer(17).encode("3 17")
    with pytest.raises(FileNotFoundError, match="does not exist; use 'bytes', 'bpe'"):
        data.load_tokenizer("/nowhere/tokenizer.json")


def library_only(texts):
    """Ids by the library alone."""
    return [np.asarray(ids, np.int32) for ids in BPE._encoded(texts)]


@pytest.mark.parametrize(
    "alphabet",
    [
        "".join(map(chr, range(128))),
        " \n\t\r\x0b\x0c\x1c\x1f'sretvldm aA19.,_",
        " \n'sél日²½٣\u0301_a1🚀",
        " \n\xa0\u2003\u3000\x85aé'",
    ],
    ids=["ascii", "borders", "letters", "blanks"],
)
def test_words_give_the_ids_of_the_library(alphabet):
    rng = np.random.default_rng(len(alphabet))
    texts = ["".join(rng.choice(list(alphabet), rng.integers(0, 24))) for _ in range(3000)]
    assert BPE._plain
    table = words.Words(BPE._encoded)
    for some in (texts[:1500], texts[1500:], texts):
        for text, ids, expected in zip(some, table.encode(some), library_only(some), strict=True):
            assert np.array_equal(ids, expected), repr(text)


def test_the_table_of_words_is_bounded_and_long_texts_take_time_in_proportion(monkeypatch):
    monkeypatch.setattr(words, "_MOST_KEPT", 200)
    table = words.Words(BPE._encoded)
    for k in range(30):
        texts = [f"many different words {k} {k * k} {k**3} " * 3, ""]
        assert all(np.array_equal(a, b) for a, b in zip(table.encode(texts), library_only(texts), strict=True))
        assert table._kept < 400
    long = ["é " + "A" * 300_000, " " * 300_000 + "é", "é" + " \n" * 150_000, "日" * 300_000]
    begin = time.process_time()
    assert all(np.array_equal(a, b) for a, b in zip(table.encode(long), library_only(long), strict=True))
    assert time.process_time() - begin < 10  # reading 300,000 characters again at each of them takes minutes


def test_another_cut_into_words_is_left_to_the_library():
    definition = json.loads(BPE.definition)
    changes = {
        "pre_tokenizer": {**definition["pre_tokenizer"], "add_prefix_space": True},
        "normalizer": {"type": "Lowercase"},
    }
    for key, value in changes.items():
        other = data.BPETokenizer(json.dumps({**definition, key: value}))
        assert not other._plain
        assert other.encode("The fox").tolist() == other._encoded(["The fox"])[0] != BPE.encode("The fox").tolist()


@pytest.mark.parametrize(
    "letters", ["ACGT", "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", " ", "=", "é日"]
)
def test_learning_from_text_without_borders_takes_time_in_proportion(letters):
    rng = np.random.default_rng(0)

    def seconds(count):
        text = "".join(rng.choice(list(letters), count)).encode()
        begin = time.process_time()
        assert data.train_bpe([text], 1000).vocab_size >= 260
        return time.process_time() - begin

    # 400,000 characters as one word take over a minute; in proportion, ten times 40,000.
    assert seconds(400_000) < max(25 * seconds(40_000), 3)


def test_words_are_cut_only_beyond_the_bound():
    borders = BPE._library.pre_tokenizer
    inside = "x" * tokenizer._WORD + " " + "y" * (tokenizer._WORD - 1) + " \n" + "=" * tokenizer._WORD
    minified = "f(x,y){return x+y};" * 400
    for text in (*SAMPLE, inside, minified, "", " "):
        assert "".join(parts := tokenizer.bounded(text, borders)) == text and len(parts) == 1
    for long in ("a" * 3000, "1" * 3000, "-" * 3000, " " * 3000, "日" * 3000, "a = '" + "QUJD" * 800 + "'\n"):
        parts = tokenizer.bounded("before " + long + " behind", borders)
        assert "".join(parts) == "before " + long + " behind" and len(parts) >= 3
        assert (
            max(end - begin for part in parts for _, (begin, end) in borders.pre_tokenize_str(part)) <= tokenizer._WORD
        )


def spoil(definition, **changes):
    """A saved BPE whose definition is changed, without the digest of what was saved."""
    return json.dumps({"kind": "bpe", "definition": json.dumps({**json.loads(definition), **changes})})


MODEL = json.loads(BPE.definition)["model"]
VOCAB = MODEL["vocab"]
DAMAGED = {
    "empty": "",
    "list": "[1, 2]",
    "null": "null",
    "number": "3",
    "string": '"bpe"',
    "deep": "[" * 200_000,
    "deep object": '{"kind": ' * 100_000,
    "no kind": '{"definition": "{}"}',
    "kind null": '{"kind": null}',
    "kind list": '{"kind": ["bpe"]}',
    "no definition": '{"kind": "bpe"}',
    "definition null": '{"kind": "bpe", "definition": null}',
    "definition object": '{"kind": "bpe", "definition": {}}',
    "definition empty": '{"kind": "bpe", "definition": ""}',
    "definition deep": json.dumps({"kind": "bpe", "definition": "[" * 100_000}),
    "definition other": '{"kind": "bpe", "definition": "{\\"version\\": \\"1.0\\"}"}',
    "symbols null": '{"kind": "symbols", "num_symbols": null, "name": "a"}',
    "symbols text": '{"kind": "symbols", "num_symbols": "17", "name": "a"}',
    "symbols bool": '{"kind": "symbols", "num_symbols": true, "name": "a"}',
    "symbols float": '{"kind": "symbols", "num_symbols": 17.0, "name": "a"}',
    "symbols negative": '{"kind": "symbols", "num_symbols": -4, "name": "a"}',
    "symbols many": '{"kind": "symbols", "num_symbols": 99999999999999999999, "name": "a"}',
    "symbols name": '{"kind": "symbols", "num_symbols": 17}',
    "gap": spoil(BPE.definition, model={**MODEL, "vocab": {k: v + 5 for k, v in VOCAB.items()}, "merges": []}),
    "byte": spoil(BPE.definition, model={**MODEL, "vocab": dict(list(VOCAB.items())[:200]), "merges": []}),
    "words": spoil(BPE.definition, model={"type": "WordLevel", "vocab": {"a": 0, "日": 1}, "unk_token": "a"}),
    "torn": BPE.to_json()[:5000],
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_tokenizer_is_one_sentence(tmp_path, name):
    path = tmp_path / "tokenizer.json"
    path.write_text(DAMAGED[name])
    with pytest.raises(ValueError, match="tokenizer.json") as caught:
        data.load_tokenizer(path)
    assert "\n" not in str(caught.value) and "is not a saved tokenizer (" in str(caught.value)
    assert str(caught.value).startswith(f"tokenizer={str(path)!r}") and len(str(caught.value)) < 400


def test_a_flipped_bit_of_a_saved_tokenizer_is_seen(tmp_path):
    path = tmp_path / "tokenizer.json"
    BPE.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    for place, bit in zip(rng.integers(0, len(whole), 60).tolist(), rng.integers(0, 8, 60).tolist(), strict=True):
        content = bytearray(whole)
        content[place] ^= 1 << bit
        path.write_bytes(content)
        with pytest.raises(ValueError, match="tokenizer|kind"):
            data.load_tokenizer(path)
    state = json.loads(whole)
    other = {**MODEL, "merges": [*MODEL["merges"][1::-1], *MODEL["merges"][2:]]}  # whole, and another tokenizer
    path.write_text(json.dumps({**state, "definition": json.dumps({**json.loads(BPE.definition), "model": other})}))
    with pytest.raises(ValueError, match="is damaged: it is not what was saved"):
        data.load_tokenizer(path)
    del state["digest"]  # as older runs saved it
    path.write_text(json.dumps(state))
    assert data.load_tokenizer(path).hash == BPE.hash


def test_saving_follows_no_link_and_leaves_nothing_behind(tmp_path):
    (tmp_path / "stranger").write_text("kept")
    (tmp_path / "tokenizer.json").symlink_to("stranger")
    BYTES.save(tmp_path / "tokenizer.json")
    assert (tmp_path / "stranger").read_text() == "kept" and not (tmp_path / "tokenizer.json").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["stranger", "tokenizer.json"]
    with pytest.raises(ValueError, match="is not a saved tokenizer .it is not text."):
        (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
        data.load_tokenizer(tmp_path / "binary.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        data.load_tokenizer(tmp_path)


def test_another_file_is_not_a_tokenizer(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a saved tokenizer"):
        data.load_tokenizer(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"kind": "bep"}')
    with pytest.raises(ValueError, match="did you mean 'bpe'"):
        data.load_tokenizer(tmp_path / "b.json")
