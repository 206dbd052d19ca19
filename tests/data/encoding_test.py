"""Tokenising: gone on from where it was killed, and within a bound of memory."""

import itertools
import json
import pathlib
import subprocess
import sys
import zlib

import numpy as np
import pytest

import data
from data import encoding

ROOT = pathlib.Path(__file__).parents[2]


class Killed(BaseException):
    """What no handler of errors catches, as a signal."""


def corpus(tmp_path, name="cache"):
    path = tmp_path / "a.jsonl"
    if not path.exists():
        rng = np.random.default_rng(0)
        lines = (json.dumps({"text": "".join(map(chr, rng.integers(97, 123, 900)))}) + "\n" for _ in range(120))
        path.write_text("".join(lines))
    return data.load("text", path=str(path), cache_dir=str(tmp_path / name), validation=0.2)


@pytest.mark.parametrize("damage", ["none", "torn line", "torn file", "flipped", "a fact", "deep"])
def test_a_build_that_was_killed_is_gone_on_from(damage, tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_CHUNK_BYTES", 10_000)
    want, texts, asked = corpus(tmp_path, "other"), encoding.texts, []

    def counted(kind, most):
        made = texts(kind)

        def of(documents):
            if len(asked) >= most:
                raise Killed
            asked.append(len(documents))
            return made.of(documents)

        return encoding.Encode(of, made.dtype, made.masked)

    monkeypatch.setattr(encoding, "texts", lambda kind: counted(kind, 5))
    with pytest.raises(Killed):
        corpus(tmp_path)
    folder = next((tmp_path / "cache" / "corpora").glob("*.begun"))
    journal, tokens = folder / "journal.jsonl", folder / "train.tokens.bin"
    if damage == "torn line":
        journal.write_bytes(journal.read_bytes()[:-9])
    elif damage == "torn file":
        tokens.write_bytes(tokens.read_bytes()[:-9])
    elif damage == "flipped":
        raw = bytearray(tokens.read_bytes())
        raw[30_000] ^= 1
        tokens.write_bytes(bytes(raw))
    elif damage == "a fact":  # One document more than there is would leave one out.
        lines = journal.read_bytes().splitlines(keepends=True)
        count = json.loads(lines[2])["documents"]
        lines[2] = lines[2].replace(b'"documents": %d' % count, b'"documents": %d' % (count + 1))
        journal.write_bytes(b"".join(lines))
    elif damage == "deep":
        journal.write_bytes(journal.read_bytes() + b"[" * 100_000 + b"\n")
    first, asked[:] = list(asked), []
    monkeypatch.setattr(encoding, "texts", lambda kind: counted(kind, 1000))
    got = corpus(tmp_path)
    kept = {"none": 5, "torn line": 4, "torn file": 4, "flipped": 1, "a fact": 1, "deep": 5}[damage]
    assert sum(asked) == 120 - sum(first[:kept])
    for a, b in ((got.train, want.train), (got.valid, want.valid)):
        np.testing.assert_array_equal(a.tokens, b.tokens)
        np.testing.assert_array_equal(a.starts, b.starts)
    assert got.info["splits"] == want.info["splits"]
    left = [path.name for path in pathlib.Path(got.train.folder).iterdir()]
    assert sorted(left) == ["meta.json", *sorted(f"{s}.{n}" for s, n in itertools.product(
        ("train", "valid"), ("starts.npy", "tokens.bin")))]  # fmt: skip
    assert not list((tmp_path / "cache" / "corpora").glob("*.begun*"))


@pytest.mark.parametrize("kinds", [True, False])
def test_a_build_of_conversations_without_kinds_is_begun_anew(kinds, tmp_path):
    """An older house kept no kinds beside what is scored: its chunks do not count."""
    line = {"split": "train", "documents": 1, "bytes": 3, "content": 3, "tokens": 2, "lengths": 8, "scored": 1}
    line |= {"kinds": 1} if kinds else {}
    added, crc = {"tokens": b"ab", "lengths": b"12345678", "scored": b"\1", "kinds": b"\2"}, 0
    for name, raw in added.items():
        (tmp_path / f"train.{name}.bin").write_bytes(raw)
        crc = zlib.crc32(raw, crc) if name in line else crc
    said = [{"hash": "h"}, {**line, "crc": encoding._with_facts(crc, line)}]
    (tmp_path / "journal.jsonl").write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in said))
    assert len(encoding._begun(tmp_path, "h").get("train", [])) == kinds


BOUNDED = """
import resource, sys
import numpy, scipy.sparse, data
from data import tokenise, sources
held = int(next(line for line in open("/proc/self/status") if line.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (held + (64 << 20), held + (64 << 20)))
made = data.load("text", path=sys.argv[1], cache_dir=sys.argv[2], validation=0.05)
print(made.train.num_bytes + made.valid.num_bytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the bound is Linux's")
def test_a_corpus_larger_than_the_memory_that_may_be_used(tmp_path):
    path, line = tmp_path / "a.jsonl", "abcdefghi " * 2200
    with path.open("w") as file:
        for i in range(5000):
            file.write(json.dumps({"text": f"{i} {line}"}) + "\n")
    size = path.stat().st_size
    assert size > 96 << 20
    done = subprocess.run(
        [sys.executable, "-c", BOUNDED, str(path), str(tmp_path / "cache")], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == sum(len(f"{i} {line}") for i in range(5000))
