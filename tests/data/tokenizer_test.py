import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data
from data import tokenizer

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
    assert max(len(run) for run in tokenizer._utf8_runs(content)) <= 64
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


def test_another_file_is_not_a_tokenizer(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match="is not a saved tokenizer"):
        data.load_tokenizer(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"kind": "bep"}')
    with pytest.raises(ValueError, match="did you mean 'bpe'"):
        data.load_tokenizer(tmp_path / "b.json")
