"""What is read and what is not: formats by name and by first bytes, links, loops, and the sentences about them."""

import bz2
import gzip
import io
import json
import lzma
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

import data
from data import documents, formats, sources

NOISE = np.random.default_rng(0).bytes(60_000)


def parquet():
    return b"PAR1" + NOISE[:300] + b"PAR1"


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text" * 99)
    return file.getvalue()


def array():
    file = io.BytesIO()
    np.save(file, np.arange(999))
    return file.getvalue()


def tar():
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo("a.txt")
        member.size = 400
        archive.addfile(member, io.BytesIO(b"text" * 100))
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """The documents that a path gives, and what was left out."""

    def read(path, **kw):
        source = sources.text(documents.Request(path=str(path), **kw))
        left_out = list(source.left_out)
        texts = [content for content, _ in source.documents(left_out)]
        return sorted(texts), sorted(
            (why, os.path.relpath(name, path) if os.path.isabs(name) else name) for why, name in left_out
        )

    return read


REFUSED = {
    "c": (bytes.fromhex("04224d18") + NOISE, "a LZ4 file"),
    "c.TXT": (b"\x1f\x9d\x90" + NOISE, "a compress file"),
    "c.txt.br": (NOISE, "a binary file"),
    "a.zip": (zipped(), "a zip file"),
    "a.txt.zip": (zipped(), "a zip file"),
    "b.txt": (parquet(), "a Parquet file"),
    "d.png": (b"\x89PNG\r\n\x1a\n" + NOISE, "a PNG file"),
    "d.md": (b"\xff\xd8\xff\xe0" + NOISE, "a JPEG file"),
    "d.gif": (b"GIF89a" + NOISE, "a GIF file"),
    "e.pkl": (pickle.dumps(list(range(300))), "a binary file"),
    "e.txt": (pickle.dumps({"text": "a" * 99}), "a binary file"),
    "f.npy": (array(), "a NumPy file"),
    "g.pdf": (b"%PDF-1.4\n" + b"text " * 99, "a PDF file"),
    "h.tar": (tar(), "a tar file"),
    "h.tar.gz": (gzip.compress(tar()), "a tar file inside a compressed one"),
    "i.txt.gz": (gzip.compress(gzip.compress(b"text " * 99)), "a compressed file inside a compressed one"),
    "j.txt": ("text in sixteen bits".encode("utf-16"), "UTF-16 text, which must be made UTF-8 first"),
    "k.jsonl": ('{"text": "a"}'.encode("utf-16"), "UTF-16 text, which must be made UTF-8 first"),
    "l.txt": ("no mark".encode("utf-16-le"), "a binary file"),
    "m": ("latin: é è".encode("latin-1"), "of no known format, by its name or by its first bytes"),
    "n.sqlite": (b"SQLite format 3\x00" + NOISE, "a SQLite file"),
    "o.safetensors": (b"\x40\x00\x00\x00\x00\x00\x00\x00{}", "a binary file"),
    "p.txt.xz": (gzip.compress(b"text"), "named .xz and begins as a gzip file"),
    "q.lzma": (lzma.compress(b"text" * 99, lzma.FORMAT_ALONE), "a LZMA file"),
    "r.py": (NOISE[:200].replace(b"\x00", b""), "a binary file"),
    "s.parquet": (b"plain text", "named as a Parquet file and does not begin as one"),
    "s.PARQUET.gz": (gzip.compress(b'{"text": "a"}'), "named as a Parquet file and does not begin as one"),
    "t.parquet": (b"", "named as a Parquet file and does not begin as one"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_text_is_refused_by_itself_and_left_out_of_a_folder(tmp_path, read, name):
    content, why = REFUSED[name]
    path = tmp_path / "folder" / name
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        data.load("text", path=str(path), cache_dir=str(tmp_path / "cache"))
    assert str(caught.value).startswith(f"path={str(path)!r} is {why}; use UTF-8 text") and "\n" not in str(
        caught.value
    )
    (path.parent / "good.txt").write_text("good")
    by_name = formats.suffix(name) not in formats.TEXT_SUFFIXES
    assert read(path.parent) == ([b"good"], [("of other kinds" if by_name else why, name)])
    texts, left_out = read(f"{path.parent}/*")
    assert texts == [b"good"] and [w for w, _ in left_out] == [why]


READ = {
    "a.TXT": b"text",
    "a.Md": b"text",
    "a.txt.GZ": gzip.compress(b"text"),
    "A.TXT.gz": gzip.compress(b"text"),
    "a.txt.bz2": bz2.compress(b"text"),
    "a.md.XZ": lzma.compress(b"text"),
    "a.txt": gzip.compress(b"text"),  # says gzip by its first bytes
    "a.JSONL": b'{"text": "text"}\n',
    "a.jsonl.Gz": gzip.compress(b'{"text": "text"}\n'),
    "a.jsonl": b'\xef\xbb\xbf{"text": "text"}\r\n\r\n',
    "several.jsonl.gz": gzip.compress(b'{"text": "te') + gzip.compress(b'xt"}'),
}


@pytest.mark.parametrize("name", READ)
def test_names_without_regard_to_case_and_first_bytes_say_the_format(tmp_path, read, name):
    (tmp_path / name).write_bytes(READ[name])
    assert read(tmp_path) == read(tmp_path / name) == read(f"{tmp_path}/*") == ([b"text"], [])


def test_a_file_of_another_name_is_what_it_begins_as(tmp_path, read):
    for name, content, expected in (
        ("plain", b"plain", b"plain"),
        ("data.json", b'{"text": "one"}\n{"text": "two"}\n', None),
        ("words.ndjson", b'{"text": "one"}\n{"text": "two"}\n', None),
        ("config.json", b'{"key": 1}', b'{"key": 1}'),
        ("table.csv", b"a,text\n1,one\n2,two\n", None),
        ("packed", gzip.compress(b"packed"), b"packed"),
    ):
        (tmp_path / name).write_bytes(content)
        assert read(tmp_path / name)[0] == ([expected] if expected else [b"one", b"two"])


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz"])
def test_a_torn_file_is_named(tmp_path, kind):
    whole = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[kind](NOISE.hex().encode())
    for k, content in enumerate(
        (whole[:-9], whole[: len(whole) // 2], whole[:30000] + b"\xff" * 99 + whole[30099:], b"")
    ):
        path = tmp_path / f"{k}.txt.{kind}"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{k}.txt.{kind}' is not a whole .* file .*; compress it again"):
            data.load("text", path=str(path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["a.txt.GZ", "a.JSONL.Bz2", "A.XZ"])
def test_a_compressed_name_on_plain_bytes_is_damage_whatever_its_case(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "plain"}\n')
    with pytest.raises(ValueError, match=f"{name}' is not a whole .* file .it does not begin as one."):
        data.load("text", path=str(tmp_path / name), cache_dir=str(tmp_path / "cache"))


def nested(opening, closing, depth=200_000):
    return (opening * depth + closing * depth).encode()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (nested("[", "]"), "nests too deep to be read"),
        (b'{"text": ' + nested('{"text":', "}").replace(b":}", b":1}") + b"}", "nests too deep to be read"),
        (b'{"id": ' + nested("[", "]") + b', "text": "a"}', "nests too deep to be read"),
        (b'{"text": ' + b"9" * 5000 + b"}", "is not an object with a string"),
        (b'{"text": null}', "is not an object with a string"),
        (b'{"text": "\xff"}', "is not an object with a string"),
        (b"null", "is not an object with a string"),
    ],
    ids=["lists", "objects", "beside", "digits", "null", "bytes", "nothing"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_line_that_is_not_a_document_is_named(tmp_path, line, message, compressed):
    path = tmp_path / ("a.jsonl.gz" if compressed else "a.jsonl")
    content = b'{"text": "good"}\n' + line + b"\n"
    path.write_bytes(gzip.compress(content) if compressed else content)
    with pytest.raises(ValueError, match=rf"a.jsonl(.gz)?:2' {message}") as caught:
        data.load("text", path=str(path), cache_dir=str(tmp_path / "cache"))
    assert len(str(caught.value)) < 400


def test_each_file_is_read_once_and_loops_end(tmp_path, read):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a.txt").write_text("a")
    (folder / "deep" / "b.txt").write_text("b")
    os.symlink("a.txt", folder / "A-link.txt")
    os.link(folder / "a.txt", folder / "hard.txt")
    os.symlink(folder / "deep" / "b.txt", folder / "b.txt")
    os.symlink("..", folder / "deep" / "up")
    os.symlink(".", folder / "loop")
    os.symlink("self.txt", folder / "self.txt")
    os.symlink("nowhere.txt", folder / "broken.txt")
    os.mkfifo(folder / "pipe.txt")
    (tmp_path / "elsewhere.txt").write_text("elsewhere")
    os.symlink("../elsewhere.txt", folder / "c.txt")
    again, linked = "further names of files that are read already", "links to folders, which are not followed"
    expected = [
        (again, "A-link.txt"),
        (again, "b.txt"),
        (again, "hard.txt"),
        (linked, "deep/up"),
        (linked, "loop"),
        ("links that lead nowhere (No such file or directory)", "broken.txt"),
        ("links that lead nowhere (Too many levels of symbolic links)", "self.txt"),
        ("neither files nor folders", "pipe.txt"),
    ]
    assert read(folder) == ([b"a", b"b", b"elsewhere"], sorted(expected))
    texts, left_out = read(f"{folder}/**/*.txt")
    assert texts == [b"a", b"b", b"elsewhere"] and {why for why, _ in left_out} == {why for why, _ in expected}
    assert len([w for w, _ in left_out if w == again]) == 3
    assert read(f"{folder}/**")[0] == read(f"{folder}/**/")[0] == texts
    # A folder that a pattern names is entered although it is a link: once, as the pattern says.
    assert read(f"{folder}/loop/loop/*.txt")[0] == [b"a", b"b", b"elsewhere"]
    with pytest.raises(ValueError, match="pipe.txt' is neither a file nor a folder"):
        read(folder / "pipe.txt")


def test_a_pattern_names_what_glob_names(tmp_path, read, monkeypatch):
    import glob

    for name in ("a.txt", "b.md", "c1/a.txt", "c1/d/e.txt", "c2/.hidden/f.txt", "c2/.g.txt", "[x].txt", "c1/d/h"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    for pattern in ("*", "*.txt", "*/*.txt", "**/*.txt", "**", "c?/**/*", "c[12]/*", ".*/x", "c2/.*", "[[]x].txt",
                    "**/d/**", "c1/../*.md", "./*.md", "**/**/h", "nothing*"):  # fmt: skip
        named = set(map(os.path.realpath, glob.glob(pattern, recursive=True)))
        expected = sorted(pathlib.Path(p).read_bytes() for p in named if os.path.isfile(p))
        for text in (pattern, str(tmp_path / pattern)):
            if expected:
                assert read(text)[0] == expected, text
            else:
                with pytest.raises(FileNotFoundError, match="does not exist"):
                    read(text)


def test_a_corpus_says_what_it_left_out(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("some text of some length\n" * 99)
    for k in range(5):
        (folder / f"{k}.png").write_bytes(b"\x89PNG")
    (folder / "z.txt").write_bytes(NOISE)
    arguments = {"path": str(folder), "cache_dir": str(tmp_path / "cache")}
    for _ in range(2):  # built, and from the cache
        (note,) = data.load("text", **arguments).info["notes"]
        assert (
            note
            == f"path={str(folder)!r}: left out 5 of other kinds: 0.png, 1.png, 2.png, ...; 1 a binary file: z.txt."
        )
    (folder / "b.txt").write_text("more text of some length\n" * 99)
    left_out = sources.text(documents.Request(path=str(folder), max_files=1)).left_out
    assert [(w, n) for w, n in left_out if w != "of other kinds"] == [
        ("more than max_files", "b.txt"),
        ("more than max_files", "z.txt"),
    ]
    (folder / "a.txt").unlink(), (folder / "b.txt").unlink()
    with pytest.raises(ValueError, match=r"has no text in any of its 1 files \(1 a binary file: z.txt\)"):
        data.load("text", **arguments)
    (folder / "z.txt").unlink()
    with pytest.raises(
        FileNotFoundError,
        match=r"no .txt, .md, .py, .jsonl, .csv, .parquet or .arrow files \('0.png' and 4 more: of other kinds\)",
    ):
        data.load("text", **arguments)


def test_a_file_that_changes_while_it_is_read_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "a"}) + "\n")
    source = sources.text(documents.Request(path=str(path)))
    path.write_text(json.dumps({"text": "changed"}) + "\n")
    with pytest.raises(ValueError, match="a.jsonl' was changed while it was read"):
        list(source.documents([]))
    path.unlink()
    with pytest.raises(ValueError, match="a.jsonl' cannot be read .No such file"):
        list(source.documents([]))
