import json
import os
import pathlib
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest

import data
from data import cache

ROOT = pathlib.Path(__file__).parents[2]


def folder_of(corpus):
    return pathlib.Path(corpus.train.folder)


def test_a_second_load_reads_the_cache(book, monkeypatch):
    first = data.load(**book, tokenizer="bpe", vocab_size=300)
    monkeypatch.setattr(data.BPETokenizer, "encode_batch", None)
    monkeypatch.setattr("data.tokenizer.train_bpe", None)
    again = data.load(**book, tokenizer="bpe", vocab_size=300)
    assert again.info == first.info
    assert np.array_equal(again.train.tokens, first.train.tokens)


def truncate(folder):
    path = folder / "train.tokens.bin"
    path.write_bytes(path.read_bytes()[:-2])


def flip(folder):
    path = folder / "valid.tokens.bin"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(folder):
    (folder / "train.starts.npy").unlink()


def no_meta(folder):
    (folder / "meta.json").unlink()


def half_meta(folder):
    path = folder / "meta.json"
    path.write_text(path.read_text()[:-20])


def other_meta(folder):
    path = folder / "meta.json"
    record = json.loads(path.read_text())
    record["meta"]["splits"]["valid"]["bytes"] += 1
    path.write_text(json.dumps(record))


def deep_meta(folder):
    (folder / "meta.json").write_text("[" * 200_000)


def list_meta(folder):
    (folder / "meta.json").write_text("[]")


def files_of_another_type(folder):
    path = folder / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"files": ["train.tokens.bin"]}))


@pytest.mark.parametrize(
    "damage",
    [truncate, flip, remove, no_meta, half_meta, other_meta, deep_meta, list_meta, files_of_another_type],
)
def test_a_damaged_result_is_built_again(book, damage):
    first = data.load(**book)
    kept = {split: np.array(getattr(first, split).tokens) for split in ("train", "valid")}
    damage(folder_of(first))
    again = data.load(**book)
    assert again.hash == first.hash
    for split, tokens in kept.items():
        assert np.array_equal(getattr(again, split).tokens, tokens)
    assert [p.name for p in folder_of(again).parent.iterdir()] == [folder_of(again).name]


@pytest.mark.parametrize("place", [0, 1, 8 << 20, (8 << 20) - 1, 35 << 20, -1])
def test_a_flip_anywhere_in_a_large_file_is_found(tmp_path, place):
    folder = tmp_path / "kind" / "key"
    size = 70 << 20

    def build(private):
        (private / "tokens.bin").write_bytes(bytes(size))
        return {"built": True}

    cache.cached(folder, build)
    with (folder / "tokens.bin").open("r+b") as file:
        file.seek(place % size)
        file.write(b"\x01")
    assert not cache.found(folder)
    with (folder / "tokens.bin").open("r+b") as file:
        file.seek(place % size)
        file.write(b"\x00")
    assert cache.found(folder)


def test_the_checksums_are_those_of_every_block(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_BLOCK", 64)
    content = np.random.default_rng(0).bytes(64 * 5 + 3)
    (tmp_path / "a").write_bytes(content)
    expected = [zlib.crc32(content[k : k + 64]) for k in range(0, len(content), 64)]
    assert cache._fingerprint(tmp_path / "a") == [323, *expected]
    (tmp_path / "a").write_bytes(b"")
    assert cache._fingerprint(tmp_path / "a") == [0]


def test_any_flipped_bit_of_a_result_is_found(book):
    corpus = data.load(**book, tokenizer="bpe", vocab_size=300)
    (named,) = pathlib.Path(book["cache_dir"]).glob("tokenizers/*")
    rng = np.random.default_rng(0)
    for folder in (folder_of(corpus), named):
        assert cache.found(folder)
        for path in sorted(folder.iterdir()):
            whole = path.read_bytes()
            for place in rng.integers(0, 8 * len(whole), 16).tolist():
                content = bytearray(whole)
                content[place // 8] ^= 1 << place % 8
                path.write_bytes(content)
                assert not cache.found(folder), (path.name, place)
            path.write_bytes(whole)
        assert cache.found(folder)


def test_a_killed_build_leaves_no_result_and_the_next_one_is_whole(book):
    """SIGKILL while documents are read, while BPE is learned and while tokens are written."""
    whole = data.load(**{**book, "cache_dir": f"{book['cache_dir']}-other"}, tokenizer="bpe", vocab_size=300)
    kill = "import os, signal; die = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
    for place in ("data.tokenise.hashlib.sha256", "data.tokenizer._byte_pieces", "data.encoding.token_dtype"):
        name, _, attribute = place.rpartition(".")
        code = f"import json, sys, data\n{kill}{name}.{attribute} = die\ndata.load(**json.loads(sys.argv[1]))"
        command = [sys.executable, "-c", code, json.dumps({**book, "tokenizer": "bpe", "vocab_size": 300})]
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -9
    corpus = data.load(**book, tokenizer="bpe", vocab_size=300)
    assert corpus.hash == whole.hash and corpus.tokenizer.hash == whole.tokenizer.hash
    assert np.array_equal(corpus.train.tokens, whole.train.tokens)


def test_a_damaged_tokenizer_is_trained_again(book):
    first = data.load(**book, tokenizer="bpe", vocab_size=300)
    (path,) = pathlib.Path(book["cache_dir"]).glob("tokenizers/*/tokenizer.json")
    path.write_text(path.read_text()[:100])
    assert data.load(**book, tokenizer="bpe", vocab_size=300).tokenizer.hash == first.tokenizer.hash


LOAD = "import json, sys, data; c = data.load(**json.loads(sys.argv[1])); print(c.hash, int(c.train.tokens.sum()))"


def test_processes_that_build_at_once_agree(book):
    command = [sys.executable, "-c", LOAD, json.dumps({**book, "tokenizer": "bpe", "vocab_size": 300})]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    answers = {process.communicate()[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    corpus = data.load(**book, tokenizer="bpe", vocab_size=300)
    assert answers == {f"{corpus.hash} {corpus.train.tokens.sum()}\n"}
    assert not list(pathlib.Path(book["cache_dir"]).rglob("*.tmp-*"))


def test_the_first_of_two_builders_wins_and_a_damaged_result_makes_way(tmp_path):
    folder = tmp_path / "kind" / "key"

    def slow(private):
        cache.cached(folder, lambda p: (p / "a").write_text("first") and {"who": 1})
        (private / "a").write_text("second")
        return {"who": 2}

    cache.cached(folder, slow)
    assert (folder / "a").read_text() == "first"
    (folder / "a").write_text("damaged")
    assert cache.cached(folder, lambda p: (p / "a").write_text("third") and {"who": 3}) == {"who": 3}
    assert (folder / "a").read_text() == "third"


def test_a_failed_build_leaves_nothing_and_old_leftovers_are_swept(tmp_path):
    parent = tmp_path / "kind"
    (parent / "x.tmp-old").mkdir(parents=True)
    (parent / "y.tmp-new").mkdir()
    (parent / "z.tmp-long").mkdir()
    (parent / "z.tmp-long" / "growing").write_text("a")  # two days old and still being written
    for name in ("x.tmp-old", "z.tmp-long"):
        os.utime(parent / name, (time.time() - 90000,) * 2)

    def fail(private):
        (private / "a").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.cached(parent / "key", fail)
    assert sorted(p.name for p in parent.iterdir()) == ["y.tmp-new", "z.tmp-long"]


def test_a_cache_that_cannot_be_written_is_named(book, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cache_dir='.*file' cannot be written \(.*\); use a folder") as caught:
        data.load(**{**book, "cache_dir": str(tmp_path / "file")})
    assert str(caught.value).startswith("cache_dir=")


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(private):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"cannot be written \(No space left on device\)"):
        cache.cached(tmp_path / "kind" / "key", full)


def test_a_source_that_cannot_be_read_is_not_the_fault_of_the_cache(tmp_path):
    def unreadable(private):
        raise PermissionError(13, "Permission denied", "/elsewhere/book.txt")

    with pytest.raises(PermissionError, match="/elsewhere/book.txt"):
        cache.cached(tmp_path / "kind" / "key", unreadable)
