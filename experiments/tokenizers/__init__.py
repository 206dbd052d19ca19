"""`--mode=tokenize`: tokenizers learned on one corpus, and their measures on its held-out documents with intervals."""

import json
import pathlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import data
from data import sources
from data.documents import Request
from data.tokenizers import measures
from experiments import workdir as files
from experiments.program import inputs
from experiments.settings.errors import ConfigError
from experiments.training import other_texts
from experiments.workdir import disk

FILE, FIGURE = "tokenize.json", "tokenize.svg"
_ROWS = {  # what is printed: measure -> heading
    "vocab_size": "ids", "bytes_per_token": "bytes/token", "interval": "95% of documents", "fertility": "tokens/word",
    "renyi_efficiency": "Renyi 2.5", "coverage": "used", "boundary_f1": "words F1", "pure": "%Pure", "parity": "parity",
}  # fmt: skip


def compare(config: Any, workdir: pathlib.Path, names: Sequence[str]) -> list[dict[str, Any]]:
    """The measures of each tokenizer of `names`, learned as `config.data` says; written to the workdir with a figure.

    With `eval.morphemes` also `pure` (%Pure of the tokens that the held-out documents use), with `eval.texts` `parity`:
    {name: tokens of the text over those of the first}, document by document.

    Errors: ConfigError where the corpus has no text, nothing is held out, or the texts are not parallel.
    """
    found, texts, morphemes = [], parallel(config.eval.texts), listed(config.eval.morphemes)
    for name in names:
        changed = config.copy_and_resolve_references().unlock()
        changed.data.tokenizer = name
        if name == "bytes":
            changed.data.vocab_size = 0
        corpus = inputs.load(changed.lock())
        more: dict[str, Any] = {"tokenizer": name, **measured(corpus, morphemes)}
        if texts:
            counts = {name: [len(ids) for ids in corpus.tokenizer.encode_batch(some)] for name, some in texts.items()}
            more["parity"] = measures.parity(counts, next(iter(texts)))
        found.append(more)
    disk.folder(workdir)
    disk.write_file(workdir / FILE, json.dumps(found, indent=1).encode())
    _draw(found, workdir / FIGURE)
    return found


def parallel(texts: Sequence[str]) -> dict[str, list[bytes]]:
    """{name: its documents} of `eval.texts` in the order of their files, which must be translations of each other.

    Errors: ConfigError where a text cannot be read, or they have no, or unlike numbers of, documents.
    """
    found: dict[str, list[bytes]] = {}
    for name, path in other_texts.named(texts).items():
        try:
            read = sources.text(Request(path=path))
            found[name] = [content for content, _ in read.documents([])]
        except (ValueError, FileNotFoundError) as error:
            raise ConfigError([f"eval.texts {name!r}: {error}"]) from error
    counts = {name: len(some) for name, some in found.items()}
    if len({*counts.values()}) > 1 or 0 in counts.values():
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError([f"eval.texts has texts of unlike numbers of documents ({told}); use translations in order."])
    return found


def listed(path: str) -> frozenset[str]:
    """The lines of the file at `path` in lower case, none where there is no path. ConfigError if it cannot be read."""
    if not path:
        return frozenset()
    try:
        lines = pathlib.Path(path).expanduser().read_text("utf-8").lower().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            [f"eval.morphemes={path!r} cannot be read: {error}; use a text, one morpheme a line."]
        ) from error
    return frozenset(line.strip() for line in lines) - {""}


def measured(corpus: data.Corpus, morphemes: frozenset[str] = frozenset()) -> dict[str, Any]:
    """Measures of a corpus' tokenizer on its held-out documents; see docs/tokens.md.

    A word is what stands between blanks; its tokens are those that it has a byte of. The interval is of bytes a token,
    from documents drawn with replacement. `boundary_f1`: how well ends of tokens and of words agree. With `morphemes`
    also `pure`, 100 times the share of the tokens that are used which are one of them.
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
    pure = {}
    if morphemes:
        unique = [kind.pieces[i].decode("utf-8", "replace") for i in uses]
        pure = {"pure": measures.shares(unique, (), morphemes)["pure"]}
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
        **pure,
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
        if name == "parity":
            return ", ".join(f"{text} {ratio:.2f}" for text, ratio in value.items())
        return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"

    shown = {name: heading for name, heading in _ROWS.items() if name in found[0]}
    table = [["tokenizer", *shown.values()], *([row["tokenizer"], *(cell(row, n) for n in shown)] for row in found)]
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
