"""Tokenizers of other libraries from their files: rank files by a plain form, SentencePiece models by their library."""

import base64
import importlib.util
import io
import re

import numpy as np
import pytest

import data
from data import saved_tokenizers
from data.library_tokenizer import GPT4_PATTERN

RNG = np.random.default_rng(5)
MERGED = [
    b" a",
    b"ab",
    b"bc",
    b"abc",
    b"aa",
    b"aab",
    b"\n\n",
    b"12",
    b"th",
    b" th",
    b"the",
    b" the",
    b"\xc3\xa9",
    b"e\xcc",
]
RANKS = {piece: i for i, piece in enumerate([*(bytes([b]) for b in range(256)), *MERGED])}
TEXTS = [
    "the abc", " the  theabc\n\n\n  abcabc 1234512 aab aaaaab", "ab" * 7 + "c", "it's the 12th; aa\taab\r\n",
    *("".join(RNG.choice([*"aabbct he12\n'"], 60)) for _ in range(40)),
]  # fmt: skip


def rank_file(path, ranks):
    lines = (f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items())
    path.write_text("".join(lines))
    return path


def plain(text):
    """tiktoken's rule: of each word the leftmost pair of the lowest rank is merged until none has a rank."""
    pattern = GPT4_PATTERN.replace(r"[^\r\n\p{L}\p{N}]", r"[^\r\na-zA-Z0-9]").replace(
        r"[^\s\p{L}\p{N}]", r"[^\sa-zA-Z0-9]"
    )
    pattern = pattern.replace(r"\p{L}", "[a-zA-Z]").replace(r"\p{N}", "[0-9]")
    ids = []
    for word in (match.group().encode() for match in re.finditer(pattern, text)):
        parts = [word] if word in RANKS else [bytes([byte]) for byte in word]
        while True:
            ranks = [RANKS.get(a + b, len(RANKS)) for a, b in zip(parts, parts[1:], strict=False)]
            if not ranks or min(ranks) == len(RANKS):
                break
            at = ranks.index(min(ranks))
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        ids += [RANKS[part] for part in parts]
    return ids


def test_a_rank_file_merges_as_tiktoken_does(tmp_path):
    made = saved_tokenizers.load_tokenizer(rank_file(tmp_path / "x.tiktoken", RANKS))
    for text in TEXTS:
        assert made.encode(text).tolist() == plain(text), text
    assert (made.bos, made.eos, made.vocab_size, made.add_bos) == (len(RANKS), len(RANKS), len(RANKS) + 1, False)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["YQ== 0"], "its ranks are not 0, 1, 2"),
        (["YQ==0"], "a line is not the base64 of a piece and its rank"),
        (["Y! 0"], "a line is not the base64"),
        (["YQ== first"], "a line is not the base64"),
    ],
)
def test_a_rank_file_that_is_none_is_one_sentence(lines, said, tmp_path):
    (tmp_path / "x.tiktoken").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=said):
        saved_tokenizers.load_tokenizer(tmp_path / "x.tiktoken")
    whole = rank_file(tmp_path / "y.tiktoken", RANKS).read_text()
    (tmp_path / "y.tiktoken").write_text(whole.replace(" 7\n", " 8\n", 1))
    with pytest.raises(ValueError, match="its ranks are not 0, 1, 2"):
        saved_tokenizers.load_tokenizer(tmp_path / "y.tiktoken")


needs_library = pytest.mark.skipif(
    not importlib.util.find_spec("sentencepiece"), reason="sentencepiece is not installed"
)


def sentencepiece_model(path, kind, **options):
    """A model that sentencepiece trains on a few lines, with bytes for what it has no piece for."""
    import sentencepiece

    out, lines = io.BytesIO(), ["the quick brown fox jumps over the lazy dog", "the abc of it: the fox, the dog"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, vocab_size=310, model_type=kind, byte_fallback=True,
        hard_vocab_limit=False, minloglevel=2, normalization_rule_name="identity", **options,
    )  # fmt: skip
    path.write_bytes(out.getvalue())
    return path


@needs_library
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("blank", [True, False])
def test_a_model_of_sentencepiece_has_its_ids_and_gives_text_back(kind, blank, tmp_path):
    import sentencepiece

    options = {"remove_extra_whitespaces": False, "add_dummy_prefix": blank}
    path = sentencepiece_model(tmp_path / "x.model", kind, **options)
    made, library = saved_tokenizers.load_tokenizer(path), sentencepiece.SentencePieceProcessor(str(path))
    assert made.vocab_size == library.get_piece_size() and made.add_bos
    assert (made.bos, made.eos) == (library.bos_id(), library.eos_id())
    for text in ("the dog", "  two  blanks", "caf\u00e9 \u65e5\u672c \U0001f680 the", "x\ny\t<s> </s>", "the"):
        ids = made.encode(text)
        assert ids.tolist() == library.encode(text)
        assert made.decode(ids) == text
        decoder = data.StreamDecoder(made)
        assert "".join(decoder.push(i) for i in ids) + decoder.flush() == (" " if blank else "") + text
        assert made.token_bytes[ids].sum() == len(text.encode()) + blank
    again = saved_tokenizers.tokenizer.of_state(made._state(), "x")
    np.testing.assert_array_equal(again.encode("the fox"), made.encode("the fox"))
    assert again.hash == made.hash


@needs_library
@pytest.mark.parametrize("damage", [b"", b"nothing of that kind", None])
def test_a_model_of_sentencepiece_that_is_none_is_one_sentence(damage, tmp_path):
    path = sentencepiece_model(tmp_path / "x.model", "bpe")
    path.write_bytes(path.read_bytes()[:500] if damage is None else damage)
    with pytest.raises(ValueError, match=r"^[^\n]*\.$"):
        saved_tokenizers.load_tokenizer(path)
