"""From a source to tokens on disk: split by hash, cut by a tokenizer, cached, opened as memory maps.

Splits are decided by the SHA-256 of each document, so the same text is never in both, and documents stand in the order
of that hash, which no file name or folder can bias. Everything is computed once and kept under a hash of what decides
it; a second call opens the files.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import cache, messages, order, sources, tokenise
from data.tokenizer import ByteTokenizer, SymbolTokenizer, Tokenizer, load_tokenizer

_SPLITS = ("train", "valid")
_BPE_VOCAB_SIZE = 4096
TOKENIZERS = ("bytes", "bpe")


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """One split of a corpus: documents `[bos] content [eos]`, one after another.

    `tokens` `[n]` uint8, uint16 or uint32, memory-mapped where it comes from a file; `starts` `[D]` int64, where each
    document begins (the first at 0); `num_bytes`, bytes of the original content; `labels` `[D]` int32 or None.
    `folder` and `split` say where indices derived from it may be cached; empty: nowhere.
    """

    tokens: np.ndarray
    starts: np.ndarray
    num_bytes: int
    labels: np.ndarray | None = None
    folder: str = ""
    split: str = ""

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted once per epoch: all but the first of each document."""
        return len(self.tokens) - len(self.starts)


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Splits that take turns, row by row, in proportion to `weights` (whole numbers)."""

    parts: tuple[Tokens, ...]
    weights: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of the original content, each part once."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted when each part is read once."""
        return sum(part.num_targets for part in self.parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """What `load` gives. `hash` identifies the documents and their splits, whatever the tokenizer.

    `info` (plain JSON): source, files, bytes, tokens, documents, bytes_per_token, tokenizer, vocab_size, hash, splits
    (the counts of each), best_loss (nats per target token, or None where the law of the data is not known).
    """

    train: Tokens | Mixture
    valid: Tokens | Mixture
    tokenizer: Tokenizer
    hash: str
    info: dict[str, Any]


def load(
    source: str = "stdlib",
    *,
    path: str = "",
    name: str = "",
    tokenizer: str = "bytes",
    vocab_size: int = 0,
    validation: float = 0.05,
    cache_dir: str = "~/.cache/tessera",
    components: Sequence[Mapping[str, Any]] = (),
    max_files: int = 0,
    size: int = 0,
    seed: int = 0,
) -> Corpus:
    """The corpus that a source and a tokenizer make, from the cache where it is there.

    Args:
      source: a name in `data.SOURCES`, "mixture", or "task:NAME" with a name in `data.TASKS`.
      path: file, folder or pattern for "text"; data folder for "tfds"; another library's folder for "stdlib".
      name: data set for "tfds"; "all" keeps the test folders of "stdlib"; settings of a task, as "pairs=32, keys=64".
      tokenizer: "bytes", "bpe" (trained on the train split), or the path of a saved tokenizer. Sources of symbols
        ("digits", "random") have their own vocabulary.
      vocab_size: ids, specials included; 0 is the tokenizer's own (bytes 259, bpe 4096). "random" needs it.
      validation: share of the documents kept for validation, 0 <= validation < 1. With 0 the split is empty; else it
        has at least one document (a corpus of a single document is cut near that share of its end).
      cache_dir: where tokenizers and tokens are kept.
      components: for "mixture": one mapping per part, with `source`, `weight` and that source's own arguments.
      max_files, size, seed: see `data.sources.Request`; of a task, `size` is rows of the train split (0: endless).

    Errors: ValueError or FileNotFoundError with one sentence: the argument, its value, and a value that works.
    """
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation!r} is not a share; use 0 <= validation < 1, such as 0.05.")
    cached_in = pathlib.Path(cache_dir).expanduser()
    if components and source != "mixture":
        raise ValueError(f"components are given with source={source!r}; use source='mixture' with components.")
    if source.startswith("task:"):
        return _task(source, name, tokenizer, vocab_size, size, seed)
    if source != "mixture":
        request = sources.Request(path, name, vocab_size, max_files, size, seed)
        made = _source(source, request)
        kind = _tokenizer(tokenizer, vocab_size, [made], [source], validation, cached_in)
        return _corpus(made, source, kind, validation, cached_in)
    parts, names, weights = _components(components, vocab_size)
    kind = _tokenizer(tokenizer, vocab_size, parts, names, validation, cached_in)
    corpora = [_corpus(part, n, kind, validation, cached_in) for part, n in zip(parts, names, strict=True)]
    return _mixed(corpora, names, weights)


def _task(source: str, settings: str, tokenizer: str, vocab_size: int, rows: int, seed: int) -> Corpus:
    """The corpus of a synthetic task."""
    from data.tasks import loading  # builds a Corpus, so it stands above this module

    if tokenizer != "bytes":
        raise ValueError(f"tokenizer={tokenizer!r} is for text and source={source!r} has symbols; leave it at 'bytes'.")
    made = loading.corpus(source.removeprefix(loading.PREFIX), settings, rows=rows, seed=seed)
    _of_size(made.tokenizer, vocab_size, source)
    return made


def _source(name: str, request: sources.Request) -> sources.Texts | sources.Sequences:
    if name not in sources.SOURCES:
        raise messages.unknown("source", name, (*sources.SOURCES, "mixture"))
    return sources.SOURCES[name](request)


def _components(components: Sequence[Mapping[str, Any]], vocab_size: int) -> tuple[list, list[str], tuple[int, ...]]:
    """Every part of a mixture, or an error that names the part. Returns (sources, names, whole weights)."""
    if not components:
        raise ValueError(
            "components=() is empty for source='mixture'; use mappings like {'source': 'stdlib', 'weight': 1.0}."
        )
    weights = order.whole_weights(tuple(c.get("weight", 1.0) for c in components))
    allowed = {f.name for f in dataclasses.fields(sources.Request)} | {"source", "weight"}
    parts, names = [], []
    for k, component in enumerate(components):
        for key in component:
            if key not in allowed:
                raise messages.unknown(f"components[{k}] key", key, allowed)
        source = component.get("source")
        if source is None or source == "mixture":
            raise ValueError(
                f"components[{k}].source={source!r} cannot be part of a mixture; use one of {sorted(sources.SOURCES)}."
            )
        request = {key: value for key, value in component.items() if key not in ("source", "weight")}
        try:
            parts.append(_source(source, sources.Request(**{"vocab_size": vocab_size, **request})))
        except (ValueError, FileNotFoundError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"components[{k}]: {error}") from error
        names.append(source)
    return parts, names, weights


def _tokenizer(
    kind: str, vocab_size: int, parts: list, names: list[str], validation: float, cached_in: pathlib.Path
) -> Tokenizer:
    """The one tokenizer of all parts: the text tokenizer asked for, or the vocabulary that the symbols bring."""
    symbols = {part.num_symbols for part in parts if isinstance(part, sources.Sequences)}
    if symbols:
        if len(symbols) > 1 or not all(isinstance(part, sources.Sequences) for part in parts):
            raise ValueError(
                f"components={names} do not share a vocabulary; use parts that are all text, or all alike."
            )
        if kind != "bytes":
            raise ValueError(
                f"tokenizer={kind!r} is for text and source={names[0]!r} has symbols; leave it at 'bytes'."
            )
        return _of_size(SymbolTokenizer(symbols.pop()), vocab_size, names[0])
    if kind == "bytes":
        return _of_size(ByteTokenizer(), vocab_size, kind)
    if kind == "bpe":
        return tokenise.trained_bpe(vocab_size or _BPE_VOCAB_SIZE, parts, validation, cached_in)
    if "/" in kind or kind.endswith(".json"):
        return _of_size(load_tokenizer(kind), vocab_size, kind)
    raise messages.unknown("tokenizer", kind, TOKENIZERS)


def _of_size(made: Tokenizer, vocab_size: int, name: str) -> Tokenizer:
    if vocab_size not in (0, made.vocab_size):
        raise ValueError(f"vocab_size={vocab_size} does not fit {name!r}; use 0 or {made.vocab_size}.")
    return made


def _corpus(made: sources.Texts | sources.Sequences, source: str, kind: Tokenizer, validation: float, cached_in):
    """One source as a corpus."""
    if isinstance(made, sources.Sequences):
        train, valid, hashed = tokenise.symbols(made, kind, validation)
        splits = {"train": Tokens(**train), "valid": Tokens(**valid)}
        files, best_loss = 0, made.best_loss
    else:
        folder, meta = tokenise.tokenised(made, source, kind, validation, cached_in)
        splits = {name: _open(folder, name, meta) for name in _SPLITS}
        files, best_loss, hashed = made.files, None, meta["hash"]
    return Corpus(**splits, tokenizer=kind, hash=hashed, info=_info(source, kind, splits, files, hashed, best_loss))


def _open(folder: pathlib.Path, split: str, meta: dict[str, Any]) -> Tokens:
    """Memory maps of one split that `tokenise.tokenised` wrote."""
    count = meta["splits"][split]["tokens"]
    path = folder / f"{split}.tokens.bin"
    tokens = np.memmap(path, meta["dtype"], "r", shape=(count,)) if count else np.empty(0, meta["dtype"])
    starts = np.load(folder / f"{split}.starts.npy")
    return Tokens(np.asarray(tokens), starts, meta["splits"][split]["bytes"], folder=str(folder), split=split)


def _mixed(corpora: Sequence[Corpus], names: Sequence[str], weights: tuple[int, ...]) -> Corpus:
    """The corpora as one; each keeps its own info under `components`."""
    splits = {s: Mixture(tuple(getattr(c, s) for c in corpora), weights, tuple(names)) for s in _SPLITS}
    hashed = cache.digest("mixture", weights, [c.hash for c in corpora])
    files = sum(c.info["files"] for c in corpora)
    info = _info("mixture", corpora[0].tokenizer, splits, files, hashed, None)
    info["components"] = [{"weight": w / sum(weights), **c.info} for c, w in zip(corpora, weights, strict=True)]
    return Corpus(**splits, tokenizer=corpora[0].tokenizer, hash=hashed, info=info)


def _info(source: str, kind: Tokenizer, splits: Mapping[str, Tokens | Mixture], files: int, hashed: str, best_loss):
    """What a report says about a corpus: plain numbers and names."""
    counts = {}
    for name, split in splits.items():
        parts = split.parts if isinstance(split, Mixture) else (split,)
        counts[name] = {
            "documents": sum(len(p.starts) for p in parts),
            "tokens": sum(len(p.tokens) for p in parts),
            "bytes": split.num_bytes,
        }
    total = {key: sum(c[key] for c in counts.values()) for key in ("documents", "tokens", "bytes")}
    return {
        "source": source,
        "tokenizer": kind.name,
        "vocab_size": kind.vocab_size,
        "hash": hashed,
        "files": files,
        **total,
        "bytes_per_token": total["bytes"] / total["tokens"],
        "splits": counts,
        "best_loss": best_loss,
    }
