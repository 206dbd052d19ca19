"""Which side a document is on: against the rule written out in plain Python, and its border cases by hand."""

import hashlib
import itertools
import json

import numpy as np
import pytest

import data
from data import division


def digests_of(texts):
    return np.frombuffer(b"".join(hashlib.sha256(t).digest() for t in texts), np.uint8).reshape(-1, 32)


def sides(texts, validation, given=None, twin=None, **kw):
    digests = digests_of(texts)
    given = np.full(len(texts), division.NO_SPLIT) if given is None else np.array(given)
    size = np.array([len(t) for t in texts])
    twin = division.twins(digests) if twin is None else np.array(twin)
    return division.by_bytes(digests, given, size, validation, twin=twin, **kw)


def share(texts, made):
    """Of all bytes, those held out."""
    size = np.array([len(t) for t in texts], float)
    return float((size * np.where(made.valid, 1, made.cut)).sum() / size.sum())


def texts_of(seed, count, spread):
    rng = np.random.default_rng(seed)
    return [rng.bytes(int(10 + spread * rng.random() ** 8)) for _ in range(count)]


def plain(texts, validation):
    """The documents below the border of hashes, in plain Python."""
    hashed = [int.from_bytes(hashlib.sha256(t).digest()[:8], "big") / 2**64 for t in texts]
    return [h < validation for h in hashed]


@pytest.mark.parametrize("validation", [0.05, 0.3, 0.5, 0.9])
def test_many_alike_documents_are_split_by_hash_alone(validation):
    texts = texts_of(1, 3000, 50)
    made = sides(texts, validation)
    assert made.valid.tolist() == plain(texts, validation)
    assert not made.cut.any() and not made.dropped.any()


@pytest.mark.parametrize("seed", range(40))
def test_few_and_uneven_documents_are_split_by_bytes(seed):
    validation = (0.05, 0.2, 0.5)[seed % 3]
    texts = texts_of(seed, 1 + seed % 9, 10 ** (2 + seed % 4))
    made = sides(texts, validation)
    held = share(texts, made)
    old = plain(texts, validation)
    by_hash = sum(len(t) for t, v in zip(texts, old, strict=True) if v) / sum(map(len, texts))
    sound = validation / 4 <= by_hash <= validation * 4 and 1 - by_hash >= (1 - validation) / 4
    if sound:
        assert made.valid.tolist() == old and not made.cut.any()
    assert validation / 4 <= held <= validation * 4 and 1 - held >= (1 - validation) / 4
    assert np.count_nonzero(made.cut) <= 1
    if made.cut.any():
        assert held == pytest.approx(validation, rel=1e-12)
    # Held out are the first in the order of the hashes: moving the border never swaps two documents.
    order = np.argsort([hashlib.sha256(t).hexdigest() for t in texts])
    assert not np.diff(made.valid[order].astype(int)).max(initial=0) > 0


def test_the_border_by_hand():
    # In the order of their hashes, of 100, 10, 10, 10 and 70 bytes; a document ends at 120, where the border of 0.6 is.
    texts = sorted((bytes([k]) * 10 for k in range(5)), key=lambda t: hashlib.sha256(t).digest())
    digests = digests_of(texts)
    size, given = np.array([100, 10, 10, 10, 70]), np.full(5, division.NO_SPLIT)
    hashed = [int.from_bytes(d[:8].tobytes(), "big") / 2**64 for d in digests]

    def made(validation):
        return division.by_bytes(digests, given, size, validation, twin=np.arange(5))

    # 0.01 of 200 bytes are 2: no document ends within a factor of two, so 2 of the first 100 bytes are cut off.
    assert made(0.01).cut.tolist() == [0.02, 0, 0, 0, 0] and not made(0.01).valid.any()
    assert hashed[0] < 0.6 < hashed[-1]  # so that 0.6 does not need the bytes, and the hashes decide:
    assert made(0.6).valid.tolist() == [h < 0.6 for h in hashed]
    held, border, cut = division._border(size, 0.6)
    assert held.tolist() == [True, True, True, False, False] and (border, cut) == (2, 0.0)
    assert division._border(size, 0.61)[0].tolist() == [True, True, True, False, False]  # 122: nearer to 120 than 130
    assert division._border(size, 0.63)[0].tolist() == [True, True, True, True, False]  # 126: nearer to 130


def test_equal_documents_share_a_side():
    for count in range(2, 9):
        texts = [b"the same text"] * count + [b"another one....", b"a third"][: count % 3]
        made = sides(texts, 0.3)
        assert len({(v, c) for t, v, c in zip(texts, made.valid, made.cut, strict=True) if t == texts[0]}) == 1
        assert 0.3 / 4 <= share(texts, made) <= 1 - 0.7 / 4


def test_held_out_documents_of_a_source_leave_its_training_documents():
    texts = [b"one", b"two", b"two", b"three"]
    made = sides(texts, 0.05, given=[0, 0, 1, 1])
    assert made.valid.tolist() == [False, False, True, True]
    assert made.dropped.tolist() == [False, True, False, False]


def test_symbols_are_never_cut():
    texts = [b"a" * 50, b"b" * 60]
    made = sides(texts, 0.05, cuttable=False)
    assert not made.cut.any() and made.valid.sum() == 1


def documents(corpus, split):
    tokens = getattr(corpus, split)
    ends = np.append(tokens.starts[1:], len(tokens.tokens))
    return [corpus.tokenizer.decode(tokens.tokens[a:b]) for a, b in zip(tokens.starts, ends, strict=True)]


WORDS = "".join(f"word{k}" + ("\n" if k % 20 == 19 else " ") for k in range(400))


@pytest.mark.parametrize(
    ("names", "texts"),
    [
        (("a.txt", "b.txt"), (WORDS, WORDS)),
        (("a.txt", "b.txt", "c.md"), (WORDS, WORDS, WORDS)),
        (("a.txt", "b.txt"), (WORDS, WORDS + "\n \n")),  # blanks at the end
        (("a.txt", "b.txt"), (WORDS, WORDS.replace("\n", "\r\n"))),  # line ends
        (("a.txt", "b.txt"), (WORDS, "\ufeff" + WORDS)),  # a byte-order mark
        (("a.txt", "b.jsonl"), (WORDS, json.dumps({"text": WORDS}) + "\n")),
    ],
    ids=["two", "three", "blanks", "crlf", "bom", "jsonl"],
)
def test_the_same_text_is_never_in_both_splits(tmp_path, names, texts):
    folder = tmp_path / "same"
    folder.mkdir()
    for name, text in zip(names, texts, strict=True):
        (folder / name).write_bytes(text.encode())
    corpus = data.load("text", path=str(folder), cache_dir=str(tmp_path / "cache"))
    train, valid = documents(corpus, "train"), documents(corpus, "valid")
    assert train and valid
    # Every word stands once in a copy of the text: none may be on both sides, but for one that a cut goes through.
    seen, held = ({w for t in side for w in t.split() if w.startswith("word")} for side in (train, valid))
    assert len(seen & held) <= 1 and len(seen | held) >= 399
    assert sum(map(len, valid)) < 0.1 * sum(map(len, train))
    assert "held out" in (note := " ".join(corpus.info["notes"])) or "holds out" in note


def test_a_book_beside_a_short_file(tmp_path):
    folder = tmp_path / "book"
    folder.mkdir()
    book = "".join(f"sentence {k} of a long book\n" for k in range(30_000))
    (folder / "README.md").write_text("what this is\n" * 6)
    (folder / "book.txt").write_text(book)
    corpus = data.load("text", path=str(folder), cache_dir=str(tmp_path / "cache"))
    splits = corpus.info["splits"]
    assert splits["valid"]["bytes"] / corpus.info["bytes"] == pytest.approx(0.05, rel=0.01)
    assert splits["train"]["bytes"] + splits["valid"]["bytes"] == corpus.info["bytes"] == len(book) + 78
    pieces = sorted((t for t in documents(corpus, "train") + documents(corpus, "valid") if "book" in t), key=len)
    assert pieces[1] + pieces[0] == book and pieces[0] in documents(corpus, "valid")


def test_a_split_too_small_to_measure_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("a short text of few words\n" * 20)
    arguments = {"path": str(path), "cache_dir": str(tmp_path / "cache")}
    said = r"holds out 26 of 520 bytes, too few to measure \(at least 64\); use a larger corpus or validation=0.25.$"
    with pytest.raises(ValueError, match="validation=0.05 " + said):
        data.load("text", **arguments)
    assert data.load("text", **arguments, validation=0.25).valid.num_bytes >= 64
    assert data.load("text", **arguments, validation=0.2).valid.num_bytes == 104
    assert data.load("text", **arguments, validation=0.0).valid.num_bytes == 0


def test_a_corpus_of_an_older_run_is_split_as_that_run_split_it(tmp_path):
    folder = tmp_path / "same"
    folder.mkdir()
    for name in "ab":
        (folder / f"{name}.txt").write_text(WORDS)
    arguments = {"path": str(folder), "cache_dir": str(tmp_path / "cache")}
    new = data.load("text", **arguments)
    # As documents alone are split: two equal hashes, of which one crosses the border by chance.
    digest = hashlib.sha256(WORDS.encode()).digest()
    before = hashlib.sha256(b"train" + digest + b"valid" + digest).hexdigest()
    assert new.info["hash_before"] == before != new.hash
    old = data.load("text", **arguments, expected=before)
    assert old.hash == before and documents(old, "train") == documents(old, "valid") == [WORDS]
    for expected in ("", new.hash, "another"):
        assert data.load("text", **arguments, expected=expected).hash == new.hash
    mixture = {"components": [{"source": "text", "path": str(folder)}] * 2, "cache_dir": str(tmp_path / "cache")}
    made = data.load("mixture", **mixture)
    assert data.load("mixture", **mixture, expected=made.info["hash_before"]).hash == made.info["hash_before"]


def test_where_a_document_is_cut():
    assert division.cut_place(b"0123456789", 0.2) == 8
    assert division.cut_place(b"0123456789", 1e-9) == 9 and division.cut_place(b"0123456789", 1 - 1e-9) == 1
    assert division.cut_place(b"a" * 75 + b"\n" + b"a" * 24, 0.2) == 76  # after the line that ends near
    assert division.cut_place(b"a" * 60 + b"\n" + b"a" * 39, 0.2) == 80  # no line ends near
    text = "é".encode() * 50
    assert division.cut_place(text, 0.07) == 92  # 93 would part the two bytes of a character


def plain_apart(texts, sides):
    """Of each source the documents to leave out, one by one: what another holds out, or cuts and comes first."""
    out = []
    for k, mine in enumerate(sides):
        row = []
        for text, valid, cut in zip(texts[k], mine.valid, mine.cut, strict=True):
            held = False
            for j, other in enumerate(sides):
                for same, held_there, cut_there in zip(texts[j], other.valid, other.cut, strict=True):
                    if j != k and same == text and (held_there or cut_there):
                        held |= held_there or not cut or (cut != cut_there and j < k)
            row.append(bool(held and not valid))
        out.append(row)
    return out


@pytest.mark.parametrize("seed", range(30))
def test_what_one_source_holds_out_no_other_learns(seed):
    rng = np.random.default_rng(seed)
    pool = [b"%d " % k * int(5 + 400 * rng.random() ** 6) for k in range(12)]
    texts = [[pool[k] for k in rng.choice(12, rng.integers(1, 9), replace=False)] for _ in range(3)]
    alone = [sides(part, (0.1, 0.3, 0.5)[seed % 3]) for part in texts]
    out = division.apart([digests_of(part) for part in texts], alone)
    assert [o.tolist() for o in out] == plain_apart(texts, alone)
    rows = [row for part, s, o in zip(texts, alone, out, strict=True) for row in zip(part, s.valid, o, strict=True)]
    assert not {t for t, valid, _ in rows if valid} & {t for t, valid, gone in rows if not valid and not gone}


def test_a_text_in_two_components_is_on_one_side(tmp_path):
    """A book alone in its folder is cut near its end; in a second folder, among others, it is learned from whole."""
    book = "\n".join(f"line {k} of the book, which is long enough to be cut" for k in range(200))
    for folder, names in (("one", ["book"]), ("two", ["book", *map(str, range(30))])):
        (tmp_path / folder).mkdir()
        for name in names:
            text = book if name == "book" else f"another text {name} " * 60
            (tmp_path / folder / f"{name}.txt").write_text(text + "\r\n" * (folder == "two"))
    parts = [{"source": "text", "path": str(tmp_path / folder)} for folder in ("one", "two")]
    kw = {"cache_dir": str(tmp_path / "cache"), "validation": 0.05}
    both = data.load("mixture", components=parts, **kw)
    alone = [data.load(**part, **kw) for part in parts]

    def texts(split):
        each = [(part, [*part.starts, len(part.tokens)]) for part in split.parts]
        found = [part.tokens[a:b] for part, at in each for a, b in itertools.pairwise(at)]
        return {both.tokenizer.decode(ids).strip() for ids in found}

    held, learned = texts(both.valid), texts(both.train)
    end = next(text for text in held if text.endswith(book[-40:]))
    assert not any(end in text for text in learned)
    assert any("also stand in the held-out split of another component" in note for note in both.info["notes"])
    again = data.load("mixture", components=parts, **kw)
    assert again.hash == both.hash != both.info["hash_alone"]
    assert {c["hash"] for c in both.info["components"]} != {c.hash for c in alone}
    old = data.load("mixture", components=parts, **kw, expected=both.info["hash_alone"])  # As older runs read it.
    assert old.hash == both.info["hash_alone"] and [c["hash"] for c in old.info["components"]] == [
        c.hash for c in alone
    ]
    assert any(end in text for text in texts(old.train))
