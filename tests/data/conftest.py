"""Corpora small enough to be checked token by token."""

import numpy as np
import pytest

import data


@pytest.fixture
def numbered():
    """Makes Tokens whose every token is its own place in the stream, so that a batch shows where it came from."""

    def make(sizes, offset=0):
        sizes = np.asarray(sizes, np.int64)
        starts = np.cumsum(sizes) - sizes
        return data.Tokens(np.arange(sizes.sum(), dtype=np.uint32) + offset, starts, int(sizes.sum()))

    return make


@pytest.fixture
def book(tmp_path):
    """A folder of twelve short texts, and a cache folder: the arguments of `data.load`."""
    folder = tmp_path / "book"
    folder.mkdir()
    for k in range(12):
        (folder / f"{k}.txt").write_text(f"chapter {k}\n" + "naïve tokens, façade of tokens\n" * (k + 1), "utf-8")
    return {"source": "text", "path": str(folder), "cache_dir": str(tmp_path / "cache")}
