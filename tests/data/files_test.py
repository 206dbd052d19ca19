"""Tables, compressed files, folders of the datasets library and stores, by the same `path`."""

import csv
import gzip
import json
import random

import fsspec
import pytest

import data
from data import places, progress, tables

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

WORDS = [f"document {i}: " + "abc " * (i % 7 + 1) + "é" for i in range(300)]


def texts(tmp_path, path, **kw):
    """All documents at `path`, sorted, and its corpus."""
    corpus = data.load("text", path=str(path), cache_dir=str(tmp_path / "cache"), **{"validation": 0.2, **kw})
    found = []
    for split in (corpus.train, corpus.valid):
        ends = [*split.starts[1:], len(split.tokens)][: len(split.starts)]
        found += [corpus.tokenizer.decode(split.tokens[a:b]) for a, b in zip(split.starts, ends, strict=True)]
    return sorted(found), corpus


def table(**columns):
    return pyarrow.table({"id": list(range(len(WORDS))), "text": WORDS, **columns})


def zst(data):
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def write(path, kind):
    lines = "".join(json.dumps({"text": text}) + "\n" for text in WORDS).encode()
    if kind == "parquet":
        parquet.write_table(table(), path, row_group_size=70)
    elif kind == "stream":
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table().schema) as out:
            out.write_table(table(), max_chunksize=90)
    elif kind == "file":
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_file(sink, table().schema) as out:
            out.write_table(table(), max_chunksize=90)
    elif kind in ("csv", "csv.gz"):
        with (gzip.open if kind == "csv.gz" else open)(path, "wt", encoding="utf-8", newline="") as file:
            rows = csv.DictWriter(file, ["id", "text"])
            rows.writeheader()
            rows.writerows({"id": i, "text": text} for i, text in enumerate(WORDS))
    elif kind == "zst":  # Two frames, as tools that use several cores write.
        middle = lines.index(b"\n", len(lines) // 2) + 1
        path.write_bytes(zst(lines[:middle]) + zst(lines[middle:]))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.parquet", "parquet"), ("a.arrow", "stream"), ("b.arrow", "file"), ("a.csv", "csv"), ("a.csv.gz", "csv.gz"),
        ("a.jsonl.zst", "zst"),
    ],
)  # fmt: skip
def test_every_form_gives_the_same_documents(name, kind, tmp_path):
    write(tmp_path / name, kind)
    found, corpus = texts(tmp_path, tmp_path / name)
    assert found == sorted(WORDS) and corpus.info["documents"] == len(WORDS)


def test_columns_are_chosen_and_what_is_not_there_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    titles = [None if i % 2 else f"title {i}" for i in range(len(WORDS))]
    parquet.write_table(table(title=titles), path)
    found, _ = texts(tmp_path, path, columns=("title", "text"))
    assert found == sorted(f"{t}\n\n{w}" if t else w for t, w in zip(titles, WORDS, strict=True))
    with pytest.raises(ValueError, match=r"has no column 'body'; it has 'id', 'text', 'title': name one in columns"):
        texts(tmp_path, path, columns=("body",))
    with pytest.raises(ValueError, match='is not an object with a string in "id"'):
        texts(tmp_path, path, columns=("id",))


def test_a_folder_of_the_datasets_library(tmp_path):
    for split, rows in (("train", WORDS[:200]), ("validation", WORDS[200:280]), ("test", WORDS[280:])):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        made = pyarrow.table({"text": rows})
        for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):
            with pyarrow.OSFile(str(folder / name), "wb") as sink, pyarrow.ipc.new_stream(sink, made.schema) as out:
                out.write_table(made)
        (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
        (folder / "dataset_info.json").write_text("{}")
    (tmp_path / "set" / "README.md").write_text("a card")
    found, corpus = texts(tmp_path, tmp_path / "set")
    assert found == sorted(WORDS[:280])
    assert corpus.info["splits"]["valid"]["documents"] == 80
    assert any("no part of the data set: " in note and "test split" in note for note in corpus.info["notes"])
    (tmp_path / "set" / "more.txt").write_text("text that is there beside tables is what is read " * 20)
    assert texts(tmp_path, tmp_path / "set")[1].info["files"] == 2


@pytest.mark.parametrize("kind", ["parquet", "stream", "zst"])
def test_a_file_that_is_cut_off_is_told(kind, tmp_path):
    name = {"parquet": "a.parquet", "stream": "a.arrow", "zst": "a.jsonl.zst"}[kind]
    write(tmp_path / name, kind)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match=rf"path='.*{name}(:\d+)?' is not a whole (parquet|Arrow|Zstandard) file"):
        texts(tmp_path, tmp_path / name)


def test_text_that_is_named_as_an_arrow_file_is_none(tmp_path):
    (tmp_path / "a.arrow").write_text("plain text")
    with pytest.raises(ValueError, match=r"path='.*a.arrow' is not a whole Arrow file"):
        texts(tmp_path, tmp_path / "a.arrow")


def test_a_store_is_read_as_a_folder_is(tmp_path):
    store = fsspec.filesystem("memory")
    for k in range(2):
        store.pipe(f"/corpus/{k}.jsonl", "".join(json.dumps({"text": w}) + "\n" for w in WORDS[k::2]).encode())
    store.pipe("/corpus/picture.png", b"no text")
    found, corpus = texts(tmp_path, "memory://corpus")
    assert found == sorted(WORDS) and corpus.info["files"] == 2
    assert texts(tmp_path, "memory://corpus/0.jsonl")[0] == sorted(WORDS[::2])
    assert texts(tmp_path, "memory://corpus/*.jsonl")[0] == sorted(WORDS)
    store.pipe("/corpus/0.jsonl", b'{"text": "other"}\n')
    assert texts(tmp_path, "memory://corpus")[1].hash != corpus.hash
    with pytest.raises(ValueError, match="names a store that is unknown"):
        places.found("nowhere://bucket/a.txt")
    with pytest.raises(ValueError, match=r"path='s3://b/a.txt' needs s3fs; pip install s3fs"):
        places.found("s3://b/a.txt")


def test_what_is_long_says_how_long_it_takes():
    assert progress.line("tokenising", 5_000_000, 20_000_000, 1e6) == (
        "tokenising: 25 % of 20 MB, 1.0 MB/s, 0 min 15 s left"
    )
    assert progress.line("reading text", 3_000_000, 0, 2e6) == "reading text: 3 MB, 2.0 MB/s"
    assert "2 h 46 min left" in progress.line("tokenising", 0, 10_000_000_000, 1e6)


def test_fields_of_csv_may_be_long(tmp_path):
    before = csv.field_size_limit()
    (tmp_path / "a.csv").write_text("text\n" + "x" * (before + 5) + "\nshort\n" + "y" * 500 + "\n")
    found, _ = texts(tmp_path, tmp_path / "a.csv", validation=0.0)
    assert [len(text) for text in found] == [5, before + 5, 500] and csv.field_size_limit() == before


def test_a_pick_names_what_it_reads():
    assert tables.text(()).columns == ("text",) and tables.talk(()).columns == ()


@pytest.mark.parametrize(
    ("name", "kind"), [("a.parquet", "parquet"), ("a.arrow", "stream"), ("b.arrow", "file"), ("c.jsonl.zst", "zst")]
)
def test_a_damaged_file_is_one_sentence_whatever_is_flipped_or_lost(name, kind, tmp_path):
    path, rng = tmp_path / name, random.Random(0)
    write(path, kind)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(8, len(whole) - 1, len(whole) // 20)]
    for i in range(60):  # In the middle, and where tables say what lies where.
        place = rng.choice([rng.randrange(len(whole)), rng.randrange(400), len(whole) - 1 - rng.randrange(400)])
        damaged.append(whole[:place] + bytes([whole[place] ^ 1 << i % 8]) + whole[place + 1 :])
    for changed in damaged:
        path.write_bytes(changed)
        try:
            texts(tmp_path, path)
        except ValueError as error:
            assert str(error).startswith("path=") and "\n" not in str(error), error
