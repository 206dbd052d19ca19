"""`--mode=tokenize`: tokenizers learned on one corpus, and their measures on its held-out documents with intervals."""

import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import data
from data.tokenizers import measures
from experiments import workdir as files
from experiments.program import inputs
from experiments.settings.errors import ConfigError
from experiments.workdir import disk

FILE, FIGURE = "tokenize.json", "tokenize.svg"
_ROWS = {  # what is printed: measure -> heading
    "vocab_size": "ids", "bytes_per_token": "bytes/token", "interval": "95% of documents", "fertility": "tokens/word",
    "renyi_efficiency": "Renyi 2.5", "coverage": "used", "boundary_f1": "words F1",
}  # fmt: skip


def compare(config: Any, workdir: pathlib.Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The measures of each tokenizer of `names`, learned as `config.data` says; written to the workdir with a figure.

    Errors: ConfigError where the corpus has no text, or nothing is held out.
    """
    found = []
    for name in names:
        changed = config.copy_and_resolve_references().unlock()
        changed.data.tokenizer = name
        if name == "bytes":
            changed.data.vocab_size = 0
        found.append({"tokenizer": name, **measured(inputs.load(changed.lock()))})
    disk.folder(workdir)
    disk.write_file(workdir / FILE, json.dumps(found, indent=1).encode())
    _draw(found, workdir / FIGURE)
    return found


def measured(corpus: data.Corpus) -> dict[str, Any]:
    """Measures of a corpus' tokenizer on its held-out documents; see docs/tokens.md.

    A word is what stands between blanks; its tokens are those that it has a byte of. The interval is of bytes a token,
    from documents drawn with replacement. `boundary_f1`: how well ends of tokens and of words agree.
    """
    kind = corpus.tokenizer
    if not hasattr(kind, "pieces"):
        raise ConfigError([f"data.source has symbols ({kind.name!r}) and no text to tokenize; use e.g. 'stdlib'."])
    sizes, counts, words, in_words, uses = [], [], 0, 0, Counter()
    agreed = np.zeros(3)
    for ids in documents(corpus.valid):
        pieces = [kind.pieces[i] for i in ids.tolist()]
        text, ends = b"".join(pieces), np.cumsum([len(piece) for piece in pieces])
        sizes.append(len(text))
        counts.append(len(ids))
        uses.update(ids.tolist())
        spans = _words(text)
        words += len(spans)
        in_words += sum(int(np.searchsorted(ends, b, "left") - np.searchsorted(ends, a, "right")) + 1 for a, b in spans)
        gold, made = {b for _, b in spans}, set(ends.tolist())
        agreed += (len(gold & made), len(made), len(gold))
    if not sum(counts):
        raise ConfigError(["data.validation holds nothing out to measure on; use e.g. 0.05."])
    used = np.array([uses.get(i, 0) for i in range(kind.vocab_size) if kind.pieces[i]])
    return {
        "vocab_size": kind.vocab_size,
        "hash": kind.hash,
        "documents": len(sizes),
        "bytes": int(sum(sizes)),
        "tokens": int(sum(counts)),
        "bytes_per_token": measures.bytes_per_token(sizes, counts),
        "interval": measures.interval(sizes, counts),
        "fertility": in_words / max(words, 1),
        "renyi_efficiency": measures.renyi_efficiency(used, vocab_size=len(used)),
        "coverage": measures.coverage(used),
        "boundary_f1": float(2 * agreed[0] / max(agreed[1] + agreed[2], 1)),
        "scripts": dict(sorted(measures.scripts(kind.pieces).items())),
    }


def documents(split: data.Tokens | data.Mixture) -> Iterator[np.ndarray]:
    """Ids of each document of a split, without bos and eos."""
    parts = split.parts if isinstance(split, data.Mixture) else (split,)
    for part in parts:
        for begin, end in zip(part.starts, [*part.starts[1:], len(part.tokens)], strict=False):
            yield np.asarray(part.tokens[begin + 1 : end - 1])


def _words(text: bytes) -> list[tuple[int, int]]:
    """(begin, end) of each stretch without blanks."""
    blank = np.isin(np.frombuffer(text, np.uint8), list(b" \t\n\r\f\v"))
    edges = np.flatnonzero(np.diff(np.concatenate([[True], blank, [True]]).astype(int)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def text(found: list[dict[str, Any]]) -> str:
    """The measures as a table."""

    def cell(row: dict[str, Any], name: str) -> str:
        value = row[name]
        if name == "interval":
            return f"{value[0]:.3f} to {value[1]:.3f}"
        return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"

    table = [["tokenizer", *_ROWS.values()], *([row["tokenizer"], *(cell(row, n) for n in _ROWS)] for row in found)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table)


def _draw(found: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Bytes a token with intervals, and the scripts of the vocabularies."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.5 * len(found) + 1.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [row["tokenizer"] for row in found]
    middle = np.array([row["bytes_per_token"] for row in found])
    low, high = np.array([row["interval"] for row in found]).T
    left.barh(names, middle, xerr=np.abs([middle - low, high - middle]), color="#4477aa")
    left.set_xlabel("bytes a token, held out")
    start = np.zeros(len(found))
    for script in sorted({script for row in found for script in row["scripts"]}):
        share = np.array([row["scripts"].get(script, 0) / row["vocab_size"] for row in found])
        right.barh(names, share, left=start, label=script)
        start += share
    right.set_xlabel("share of the vocabulary")
    right.legend(fontsize="x-small", ncols=2)
    left.invert_yaxis()
    files.write_figure(path, figure, format="svg", metadata={"Date": None})
