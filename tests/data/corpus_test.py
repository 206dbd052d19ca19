import gzip
import hashlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import data

ROOT = pathlib.Path(__file__).parents[2]


def documents(corpus, split):
    """The texts of a split."""
    tokens = getattr(corpus, split)
    ends = np.append(tokens.starts[1:], len(tokens.tokens))
    cut = [tokens.tokens[a:b] for a, b in zip(tokens.starts, ends, strict=True)]
    assert all(d[0] == corpus.tokenizer.bos and d[-1] == corpus.tokenizer.eos for d in cut)
    return [corpus.tokenizer.decode(d) for d in cut]


@pytest.mark.parametrize("kind", [{}, {"tokenizer": "bpe", "vocab_size": 320}], ids=["bytes", "bpe"])
def test_every_file_is_a_document_of_one_split(book, kind):
    corpus = data.load(**book, **kind, validation=0.3)
    train, valid = documents(corpus, "train"), documents(corpus, "valid")
    texts = [p.read_text("utf-8") for p in pathlib.Path(book["path"]).iterdir()]
    assert sorted(train + valid) == sorted(texts)
    assert valid and train and not set(train) & set(valid)
    assert corpus.train.num_bytes == sum(len(t.encode()) for t in train)
    assert isinstance(corpus.train.tokens.base, np.memmap)
    info = corpus.info
    assert info["bytes"] == sum(len(t.encode()) for t in texts)
    assert (info["files"], info["documents"], info["best_loss"]) == (12, 12, None)
    assert info["bytes_per_token"] == info["bytes"] / info["tokens"]
    assert info["splits"]["valid"]["documents"] == len(valid)
    json.dumps(info)


def test_split_follows_the_content_and_not_the_file(book, tmp_path):
    corpus = data.load(**book, validation=0.3)
    other = tmp_path / "other"
    other.mkdir()
    for k, path in enumerate(sorted(pathlib.Path(book["path"]).iterdir(), reverse=True)):
        (other / f"renamed{k}.md").write_bytes(path.read_bytes())
    renamed = data.load("text", path=str(other), cache_dir=book["cache_dir"], validation=0.3)
    assert renamed.hash == corpus.hash
    assert np.array_equal(renamed.train.tokens, corpus.train.tokens)
    (other / "renamed0.md").write_text("changed")
    assert data.load("text", path=str(other), cache_dir=book["cache_dir"], validation=0.3).hash != corpus.hash


def test_share_of_validation(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {k}"}) + "\n" for k in range(4000)))
    corpus = data.load("text", path=str(path), cache_dir=str(tmp_path), validation=0.1)
    # Binomial(4000, 0.1): 400 with standard deviation 19; four of them.
    assert abs(len(corpus.valid.starts) - 400) < 76
    assert len(corpus.valid.starts) + len(corpus.train.starts) == 4000
    twice = "".join(json.dumps({"text": f"document {k % 40}"}) + "\n" for k in range(80))
    path.write_text(twice)
    corpus = data.load("text", path=str(path), cache_dir=str(tmp_path), validation=0.3)
    assert not set(documents(corpus, "train")) & set(documents(corpus, "valid"))


def test_no_validation_and_given_ones(book):
    assert len(data.load(**book, validation=0).valid.tokens) == 0
    assert len(data.load(**book, validation=1 - 1e-9).train.starts) == 1
    with pytest.raises(ValueError, match="validation=1e-09 holds out 1 of 2696 bytes, too few to measure"):
        data.load(**book, validation=1e-9)


@pytest.mark.parametrize("text", ["line\n" * 200, "é" * 999, "日" * 334])
def test_a_single_document_is_cut_near_its_end_and_never_in_a_character(tmp_path, text):
    path = tmp_path / "one"
    path.write_text(text, "utf-8")
    corpus = data.load("text", path=str(path), cache_dir=str(tmp_path), validation=0.1)
    (train,), (valid,) = documents(corpus, "train"), documents(corpus, "valid")
    assert train + valid == text
    assert 0.1 <= len(valid) / len(text) < 0.2
    assert "\n" not in text or train.endswith("\n")


def test_forms_of_files(tmp_path):
    folder = tmp_path / "mixed"
    (folder / "deep").mkdir(parents=True)
    (folder / ".hidden").mkdir()
    (folder / "a.txt").write_text("plain")
    (folder / "deep" / "b.md").write_text("mark")
    (folder / "c.py").write_bytes(b"not utf-8: \xff")
    (folder / "d.txt.gz").write_bytes(gzip.compress(b"zipped"))
    (folder / "e.jsonl").write_text('{"text": "one"}\n\n{"text": "two\\n", "id": 3}\n')
    (folder / "f.jsonl.gz").write_bytes(gzip.compress(b'{"text": "three"}'))
    (folder / "g.bin").write_text("not text")
    (folder / "h.txt").write_text("")
    (folder / ".hidden" / "i.txt").write_text("hidden")

    def load(path):
        corpus = data.load("text", path=str(path), cache_dir=str(tmp_path / "cache"), validation=0)
        return sorted(documents(corpus, "train"))

    assert load(folder) == sorted(["plain", "mark", "not utf-8: \ufffd", "zipped", "one", "two\n", "three"])
    assert load(folder / "*.txt*") == ["plain", "zipped"]
    assert load(folder / "**" / "*.md") == ["mark"]
    assert load(folder / "g.bin") == ["not text"]


def test_stdlib_is_this_library_and_nothing_installed(tmp_path):
    corpus = data.load("stdlib", cache_dir=str(tmp_path), max_files=20)
    texts = documents(corpus, "train") + documents(corpus, "valid")
    assert 15 <= len(texts) <= 20
    assert "Python" in "".join(texts) or "import" in "".join(texts)
    library = tmp_path / "library"
    for name in (
        "a.py",
        "json/b.py",
        "test/c.py",
        "json/tests/d.py",
        "site-packages/e.py",
        "__pycache__/f.py",
        "g.txt",
    ):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(name)
    (library / "latin.py").write_bytes(b"\xe9")

    def names(name):
        corpus = data.load("stdlib", path=str(library), name=name, cache_dir=str(tmp_path), validation=0)
        return sorted(documents(corpus, "train"))

    assert names("") == ["a.py", "json/b.py"]
    assert names("all") == ["a.py", "json/b.py", "json/tests/d.py", "test/c.py"]


def test_digits_are_images_with_labels(tmp_path):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    corpus = data.load("digits", cache_dir=str(tmp_path))
    seen = {}
    for split in (corpus.train, corpus.valid):
        rows = split.tokens.reshape(-1, 66)
        assert (rows[:, 0] == 17).all() and (rows[:, -1] == 18).all()
        seen |= {row[1:-1].tobytes(): label for row, label in zip(rows, split.labels, strict=True)}
    assert corpus.info["documents"] == 1797 and corpus.tokenizer.vocab_size == 20
    assert all(seen[image.astype(np.uint8).tobytes()] == label for image, label in zip(images, labels, strict=True))
    assert corpus.info["bytes"] == 1797 * 64


def test_random_is_uniform_and_knows_its_entropy():
    corpus = data.load("random", vocab_size=67, size=1 << 17)
    content = corpus.train.tokens[corpus.train.tokens < 64]
    counts = np.bincount(content, minlength=64)
    # Chi-square with 63 degrees of freedom is below 103.4 in 999 of 1,000.
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 103.4
    targets = corpus.train.num_targets
    assert corpus.info["best_loss"] == pytest.approx(corpus.train.num_bytes * np.log(64) / targets)
    assert (corpus.tokenizer.vocab_size, corpus.train.tokens.dtype) == (67, np.uint8)
    assert data.load("random", vocab_size=67, size=1 << 17).hash == corpus.hash
    assert data.load("random", vocab_size=67, size=1 << 17, seed=1).hash != corpus.hash


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_mixture_has_all_its_parts_and_one_tokenizer(book, tmp_path, kind):
    (tmp_path / "other.txt").write_text("0123456789\n" * 50)
    components = [
        {"source": "text", "path": book["path"], "weight": 0.75},
        {"source": "text", "path": str(tmp_path / "other.txt"), "weight": 0.25},
    ]
    options = {"cache_dir": book["cache_dir"], "validation": 0.2}
    corpus = data.load("mixture", components=components, tokenizer=kind, vocab_size=0, **options)
    assert corpus.train.weights == (3, 1)
    assert [len(p.starts) for p in corpus.train.parts][1] == 1
    assert corpus.train.num_bytes + corpus.valid.num_bytes == corpus.info["bytes"]
    assert [c["weight"] for c in corpus.info["components"]] == [0.75, 0.25]
    decoded = corpus.tokenizer.decode(corpus.train.parts[1].tokens)
    assert decoded.startswith("0123456789\n")
    if kind == "bytes":
        assert corpus.info["components"][0]["hash"] == data.load(**book | options).hash
    json.dumps(corpus.info)


def test_a_saved_tokenizer_cuts_another_corpus(book, tmp_path):
    corpus = data.load(**book, tokenizer="bpe", vocab_size=300)
    corpus.tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "other.txt").write_text("tokens of tokens\n" * 200)
    other = data.load(
        "text",
        path=str(tmp_path / "other.txt"),
        tokenizer=str(tmp_path / "tokenizer.json"),
        cache_dir=book["cache_dir"],
    )
    assert other.tokenizer.hash == corpus.tokenizer.hash
    assert other.info["bytes_per_token"] > 1.5


def test_a_tokenizer_may_be_handed_over_ready(book, tmp_path):
    made = data.load(**book, tokenizer="bpe", vocab_size=300)
    made.tokenizer.save(tmp_path / "tokenizer.json")
    for path in pathlib.Path(book["path"]).iterdir():  # the folder is another one now
        path.write_text("other words altogether: zebra quartz\n" * 50 + path.name)
    anew = data.load(**book, tokenizer="bpe", vocab_size=300)
    assert anew.tokenizer.hash != made.tokenizer.hash
    for ready in (made.tokenizer, tmp_path / "tokenizer.json"):
        kept = data.load(**book, tokenizer=ready, vocab_size=300 if ready is made.tokenizer else 0)
        assert kept.tokenizer.hash == made.tokenizer.hash and kept.hash == anew.hash
        assert kept.info["vocab_size"] == made.tokenizer.vocab_size
        decoded = made.tokenizer.decode(kept.train.tokens)
        assert decoded == made.tokenizer.decode(data.load(**book, tokenizer=made.tokenizer).train.tokens)
    # What is asked for is not what a run has: the size that could not be filled is no reason to refuse its tokenizer.
    assert data.load(**book, tokenizer=made.tokenizer, vocab_size=50_304).tokenizer is made.tokenizer
    symbols = data.SymbolTokenizer(17)
    assert data.load("digits", tokenizer=symbols, cache_dir=book["cache_dir"]).tokenizer is symbols
    task = data.load("task:recall").tokenizer
    assert data.load("task:recall", tokenizer=task).tokenizer.hash == task.hash
    for arguments, message in (
        ({**book, "tokenizer": symbols}, "tokenizer='symbols' is for symbols and source='text' has text"),
        ({"source": "digits", "tokenizer": made.tokenizer}, "tokenizer='bpe' with .* is not that of source='digits'"),
        (
            {"source": "task:recall", "tokenizer": symbols},
            "tokenizer='symbols' with 20 ids is not that of source='task",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            data.load(**arguments)


def test_a_vocabulary_that_is_not_filled_is_said_each_time(book):
    for _ in range(2):  # learned, and from the cache
        corpus = data.load(**book, tokenizer="bpe", vocab_size=50_304)
        ids = corpus.tokenizer.vocab_size
        (note,) = corpus.info["notes"]
        assert ids < 400 and note == (
            f"vocab_size=50304 is not filled: the training split (4 MiB of it) gives {ids} ids; use "
            f"tokenizer_sample=33554432 (0: all) to learn from more, or vocab_size={ids}."
        )
    assert not data.load(**book, tokenizer="bpe", vocab_size=ids).info["notes"]
    assert (
        f"(all of it) gives {ids} ids; use vocab_size"
        in data.load(**book, tokenizer="bpe", vocab_size=50_304, tokenizer_sample=0).info["notes"][0]
    )
    parts = [{"source": "text", "path": book["path"], "weight": w} for w in (1.0, 3.0)]
    mixed = data.load("mixture", components=parts, tokenizer="bpe", vocab_size=5000, cache_dir=book["cache_dir"])
    assert any("vocab_size=5000 is not filled" in note for note in mixed.info["notes"])


def test_bpe_learns_from_as_much_as_it_is_given(tmp_path):
    """The sample is the train documents in the order of their hashes, up to so many bytes: the same as by hand."""
    folder = tmp_path / "many"
    folder.mkdir()
    rng = np.random.default_rng(3)
    texts = [" ".join("".join(rng.choice(list("abcdefgh"), 4)) for _ in range(200)) for _ in range(30)]
    for k, text in enumerate(texts):
        (folder / f"{k:02}.txt").write_text(text)
    arguments = {"path": str(folder), "cache_dir": str(tmp_path / "cache"), "tokenizer": "bpe", "vocab_size": 600}
    seen = set()
    for sample in (1000, 5000, 0):
        corpus = data.load("text", **arguments, tokenizer_sample=sample)
        train = set(documents(corpus, "train"))
        chosen, left = {}, sample or 1 << 30
        for text in sorted(train, key=lambda t: hashlib.sha256(t.encode()).digest()):
            if left > 0:
                chosen[text] = text[:left]
            left -= len(text)
        by_hand = data.train_bpe([chosen[t].encode() for t in texts if t in chosen], 600)
        assert corpus.tokenizer.hash == by_hand.hash
        seen.add(by_hand.hash)
    assert len(seen) == 3
    with pytest.raises(ValueError, match="tokenizer_sample=-1 is not a number of bytes; use 4194304, or 0 for all"):
        data.load("text", **arguments, tokenizer_sample=-1)


def test_what_is_known_of_a_tokenizer_before_the_corpus_is_read(book, monkeypatch):
    wanted = {**book, "tokenizer": "bpe", "vocab_size": 300}
    monkeypatch.setattr("data.formats.documents", None)  # nothing can be read
    assert data.known_tokenizer(**wanted) is None
    assert data.known_tokenizer(**book).hash == data.ByteTokenizer().hash
    assert data.known_tokenizer("digits").vocab_size == 20 and data.known_tokenizer("task:recall").name == "symbols"
    monkeypatch.undo()
    made = data.load(**wanted)
    monkeypatch.setattr("data.formats.documents", None)
    assert data.known_tokenizer(**wanted).hash == made.tokenizer.hash
    assert data.known_tokenizer(**wanted | {"vocab_size": 310}) is None
    assert data.known_tokenizer(**wanted, tokenizer_sample=99) is None


def test_a_source_is_read_once(book, monkeypatch):
    from data import formats

    read, whole = [], formats.documents
    monkeypatch.setattr(formats, "documents", lambda path, *told: read.append(path) or whole(path, *told))
    data.load(**book, tokenizer="bpe", vocab_size=300)
    assert sorted(read) == sorted(str(p) for p in pathlib.Path(book["path"]).iterdir())
    data.load(**book, tokenizer="bpe", vocab_size=300)
    assert len(read) == 12


def test_bpe_is_learned_from_the_train_split_only(tmp_path):
    path = tmp_path / "two.jsonl"
    texts = ["alpha beta gamma " * 30, "qqzz xxyy " * 30]
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    corpus = data.load("text", path=str(path), tokenizer="bpe", vocab_size=330, cache_dir=str(tmp_path), validation=0.4)
    (train,), (valid,) = documents(corpus, "train"), documents(corpus, "valid")
    words = {p.decode() for p in corpus.tokenizer.pieces if len(p) > 3}
    assert any(w.strip() in train for w in words)
    assert not any(w.strip() in valid for w in words)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"source": "stdlb"}, ValueError, "source='stdlb' is not known; did you mean 'stdlib'"),
        ({"source": "text"}, ValueError, "path='' is missing for source='text'; use a file, a folder"),
        ({"source": "text", "path": "/no/such"}, FileNotFoundError, "path='/no/such' does not exist; use a file"),
        ({"tokenizer": "byte", "max_files": 2}, ValueError, "tokenizer='byte' is not known; did you mean 'bytes'"),
        ({"tokenizer": "a/b.json", "max_files": 2}, FileNotFoundError, "tokenizer='a/b.json' does not exist"),
        ({"vocab_size": 300, "max_files": 2}, ValueError, "vocab_size=300 does not fit 'bytes'; use 0 or 259"),
        ({"tokenizer": "bpe", "vocab_size": 9, "max_files": 2}, ValueError, "vocab_size=9 is too small.* 260"),
        ({"validation": 1.0}, ValueError, "validation=1.0 is not a share; use 0 <= validation < 1"),
        ({"name": "tests"}, ValueError, "name='tests' means nothing to source='stdlib'; use '' or 'all'"),
        ({"path": "my.txt"}, FileNotFoundError, "path='my.txt' is no folder for source='stdlib'; use source='text'"),
        ({"components": [{"source": "stdlib"}]}, ValueError, "components are given with source='stdlib'"),
        ({"source": "mixture"}, ValueError, r"components=\(\) is empty for source='mixture'; use mappings like"),
        ({"source": "random"}, ValueError, "vocab_size=0 is too small for source='random'; use 5 or more"),
        ({"source": "digits", "tokenizer": "bpe"}, ValueError, "tokenizer='bpe' is for text and source='digits'"),
    ],
)
def test_refusals(arguments, error, message, tmp_path):
    with pytest.raises(error, match=message) as caught:
        data.load(**{"source": "stdlib", "cache_dir": str(tmp_path / "cache"), **arguments})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": "txt"}, r"components\[1\]: source='txt' is not known; did you mean 'text'"),
        ({"source": "mixture"}, r"components\[1\].source='mixture' cannot be part of a mixture"),
        ({"pth": "x"}, r"components\[1\] key='pth' is not known; did you mean 'path'"),
        ({"weight": 0}, r"components\[1\].weight=0 is not a positive number"),
        ({"source": "digits"}, "do not share a vocabulary"),
        ({"path": "/no/such"}, r"components\[1\]: path='/no/such' does not exist"),
    ],
)
def test_a_mixture_with_a_bad_part_is_refused(book, change, message):
    good = {"source": "text", "path": book["path"]}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data.load("mixture", components=[good, {**good, **change}], cache_dir=book["cache_dir"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", r"path='.*empty.txt' has no text in any of its 1 files"),
        ("bad.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r"bad.jsonl:2' is not an object with a string in"),
        ("torn.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], "torn.txt.gz' is not a whole gzip file"),
        ("fake.txt.gz", b"plain", "fake.txt.gz' is not a whole gzip file"),
    ],
)
def test_damaged_files_are_named_and_leave_nothing_behind(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load("text", path=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_folder_without_text_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="has no .txt, .md, .py, .jsonl, .csv, .parquet or .arrow files"):
        data.load("text", path=str(tmp_path), cache_dir=str(tmp_path))


def test_importing_data_imports_nothing_slow():
    code = (
        "import sys, data; "
        "print({'jax', 'grain', 'tokenizers', 'sklearn', 'tensorflow_datasets', 'tensorflow'} & set(sys.modules))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.strip() == "set()"
