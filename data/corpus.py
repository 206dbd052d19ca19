"""From a source to tokens on disk: read once, split, cut by a tokenizer, cached, opened as memory maps.

The SHA-256 of each document decides its split (see `data.division`), so the same text is never in both. Documents are
sorted by that hash, which no file name or folder can bias. Every result is computed once and cached under a hash of its
inputs; a second call verifies the files and opens them.
"""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data import cache, conversations, messages, order, sources, tokenise
from data.documents import Request, Sequences, Texts
from data.saved_tokenizers import load_tokenizer
from data.splits import Corpus, Mixture, Tokens
from data.tokenizer import ByteTokenizer, SymbolTokenizer, Tokenizer

_SPLITS = ("train", "valid")
_BPE_VOCAB_SIZE = 4096
_LEAST_HELD_OUT = 64  # bytes; with fewer the standard error of bits per byte is some 0.3 bits
TOKENIZERS = ("bytes", *tokenise.TRAINERS)
SAMPLE = 4 << 20  # bytes of the training split that BPE learns from, where nothing else is said


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """The arguments of `load`, checked; `weights` is None where there is one part and no mixture."""

    parts: tuple[Texts | Sequences, ...]
    names: tuple[str, ...]
    weights: tuple[int, ...] | None
    tokenizer: str | os.PathLike | Tokenizer
    vocab_size: int
    sample: int
    validation: float
    template: str
    cached_in: pathlib.Path

    def reading(self, rule: str, place: Callable[[], pathlib.Path]) -> tokenise.Reading:
        """The parts that are text, to be read when they are needed."""
        texts = [part for part in self.parts if isinstance(part, Texts)]
        return tokenise.Reading(texts, self.validation, rule, place, self.cached_in)

    @property
    def ids(self) -> int:
        """Ids that a trainer is asked for."""
        return self.vocab_size or _BPE_VOCAB_SIZE


def load(
    source: str = "stdlib",
    *,
    path: str = "",
    name: str = "",
    tokenizer: str | os.PathLike | Tokenizer = "bytes",
    vocab_size: int = 0,
    tokenizer_sample: int = SAMPLE,
    validation: float = 0.05,
    columns: Sequence[str] = (),
    template: str = "",
    cache_dir: str = "~/.cache/tessera",
    components: Sequence[Mapping[str, Any]] = (),
    max_files: int = 0,
    size: int = 0,
    seed: int = 0,
    expected: str = "",
) -> Corpus:
    """The corpus of a source and a tokenizer, read from the cache if it is there.

    Args:
      source: a name in `data.SOURCES`, "mixture", or "task:NAME" with a name in `data.TASKS`.
      path: file, folder or pattern for "text"; data folder for "tfds"; another library's folder for "stdlib".
      name: data set for "tfds"; "all" keeps the test folders of "stdlib"; settings of a task, as "pairs=32, keys=64".
      tokenizer: "bytes", a name in `data.tokenise.TRAINERS` ("bpe", ...: trained on the train split), the path of a
        saved tokenizer, or a `Tokenizer` (e.g. of a trained run), for which `vocab_size` is not read. Sources of
        symbols ("digits", "random") have their own vocabulary.
      vocab_size: ids, specials included; 0 is the tokenizer's own (bytes 259, bpe 4096). "random" needs it.
      tokenizer_sample: bytes of the train split that "bpe" learns from; 0: all of it.
      validation: share of the bytes kept for validation, 0 <= validation < 1 (see `data.division`). With 0 the split is
        empty; else it has at least 64 bytes.
      columns: what "text" and "chat" read of records: () is `text`, and what `data.conversations` knows.
      template: of "chat": "" is the tokenizer's own, or a name in `data.conversations.TEMPLATES`, or a .jinja file.
      cache_dir: where tokenizers and tokens are kept.
      components: for "mixture": one mapping per part, with `source`, `weight` and that source's own arguments.
      max_files, size, seed: see `data.documents.Request`; of a task, `size` is rows of the train split (0: endless).
      expected: the `hash` of the corpus that a run began with, or "". Where the documents are the same and only the
        splitting rule has changed since, the older rule is used.

    Errors: ValueError or FileNotFoundError with one sentence: the argument, its value, and a value that works.
    """
    request = Request(path, name, vocab_size, max_files, size, seed, tuple(columns))
    if source.startswith("task:"):
        return _task(source, request, tokenizer)
    wanted = _wanted(source, request, tokenizer, tokenizer_sample, validation, template, cache_dir, components)
    made = _loaded(wanted, "bytes")
    for rule, key in (("alone", "hash_alone"), ("documents", "hash_before")):
        if expected and made.hash != expected and made.info[key] == expected:
            return _loaded(wanted, rule)
    if made.hash != expected:
        _check_held_out(made, wanted)
    return made


def known_tokenizer(source: str = "stdlib", **arguments: Any) -> Tokenizer | None:
    """The tokenizer that `load` gives for the same arguments; None where BPE must first be learned from the corpus.

    Errors: as `load`.
    """
    request, rest = _asked(arguments)
    if source.startswith("task:"):
        return _task(source, request, rest["tokenizer"]).tokenizer
    wanted = _wanted(source, request, **rest)
    reading = wanted.reading("bytes", None)
    if reading.parts and _is_trained(wanted.tokenizer):
        if not reading.known:
            return None
        folder = tokenise.trained_folder(wanted.tokenizer, wanted.ids, reading, wanted.sample, wanted.cached_in)
        if not cache.found(folder):
            return None
    return _tokenizer(wanted, reading)


def _asked(arguments: Mapping[str, Any]) -> tuple[Request, dict[str, Any]]:
    """(the request to a source, what else `_wanted` takes) of arguments of `load`; those not given are its defaults."""
    a = {**load.__kwdefaults__, **arguments}
    names = ("path", "name", "vocab_size", "max_files", "size", "seed")
    keys = ("tokenizer", "tokenizer_sample", "validation", "template", "cache_dir", "components")
    return Request(*(a[name] for name in names), tuple(a["columns"])), {key: a[key] for key in keys}


def listed_size(source: str = "stdlib", **arguments: Any) -> int:
    """Bytes on disk of the files that `load` would read for the same arguments, without reading them; 0: not known.

    Errors: as `load`.
    """
    if source.startswith("task:"):
        return 0
    request, rest = _asked(arguments)
    parts = _wanted(source, request, **rest).parts
    sizes = [part.size if isinstance(part, Texts) else 0 for part in parts]
    return sum(sizes) if all(sizes) else 0


def _wanted(
    source: str,
    request: Request,
    tokenizer: str | os.PathLike | Tokenizer,
    tokenizer_sample: int,
    validation: float,
    template: str,
    cache_dir: str,
    components: Sequence[Mapping[str, Any]],
) -> _Wanted:
    """The sources and the settings of the corpus, or an error that names the argument that does not fit."""
    if not 0 <= validation < 1:
        raise ValueError(f"validation={validation!r} is not a share; use 0 <= validation < 1, such as 0.05.")
    if tokenizer_sample < 0:
        raise ValueError(f"tokenizer_sample={tokenizer_sample!r} is not a number of bytes; use {SAMPLE}, or 0 for all.")
    if components and source != "mixture":
        raise ValueError(f"components are given with source={source!r}; use source='mixture' with components.")
    if source == "mixture":
        parts, names, weights = _components(components, request.vocab_size)
    else:
        parts, names, weights = [_source(source, request)], [source], None
    cached_in = pathlib.Path(cache_dir).expanduser()
    sized = (request.vocab_size, tokenizer_sample, validation, template)
    return _Wanted(tuple(parts), tuple(names), weights, tokenizer, *sized, cached_in)


def _task(source: str, request: Request, tokenizer: str | os.PathLike | Tokenizer) -> Corpus:
    """The corpus of a synthetic task."""
    from data.tasks import loading  # builds a Corpus, so it stands above this module

    task, rows = source.removeprefix(loading.PREFIX), request.size
    made = loading.corpus(task, request.name, rows=rows, seed=request.seed)
    _symbol_tokenizer(tokenizer, request.vocab_size, made.tokenizer, source)
    return made


def _source(name: str, request: Request) -> Texts | Sequences:
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
    allowed = {f.name for f in dataclasses.fields(Request)} | {"source", "weight"}
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
            request["columns"] = tuple(request.get("columns", ()))
            parts.append(_source(source, Request(**{"vocab_size": vocab_size, **request})))
        except (ValueError, FileNotFoundError) as error:
            kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
            raise kind(f"components[{k}]: {error}") from error
        names.append(source)
    return parts, names, weights


def _loaded(wanted: _Wanted, rule: str) -> Corpus:
    """The corpus of all parts, its documents split by `rule` (see `tokenise.Reading`)."""
    with contextlib.ExitStack() as stack:
        place = wanted.cached_in / "reading" / "documents"
        reading = wanted.reading(rule, lambda: stack.enter_context(cache.private(place)))
        kind = _tokenizer(wanted, reading)
        corpora = [_corpus(part, n, kind, reading, wanted) for part, n in zip(wanted.parts, wanted.names, strict=True)]
    made = _mixed(corpora, wanted.names, wanted.weights) if wanted.weights else corpora[0]
    if _is_trained(wanted.tokenizer) and kind.vocab_size < wanted.ids:
        read = "all of it" if not wanted.sample else f"{wanted.sample / (1 << 20):.3g} MiB of it"
        more = f"tokenizer_sample={8 * wanted.sample} (0: all) to learn from more, or " if wanted.sample else ""
        made.info["notes"].append(
            f"vocab_size={wanted.ids} is not filled: the training split ({read}) gives {kind.vocab_size} ids; "
            f"use {more}vocab_size={kind.vocab_size}."
        )
    return made


def _check_held_out(made: Corpus, wanted: _Wanted) -> None:
    """Raises ValueError where a split was asked for and holds too little text to measure anything."""
    parts = made.valid.parts if isinstance(made.valid, Mixture) else (made.valid,)
    held = made.valid.num_bytes
    if wanted.validation and all(part.folder for part in parts) and held < _LEAST_HELD_OUT:
        total = made.info["bytes"]
        share = math.ceil(200 * _LEAST_HELD_OUT / total) / 100  # twice the least: a document is cut after a line
        larger = f" or validation={share}" if wanted.validation < share < 0.9 else ""
        raise ValueError(
            f"validation={wanted.validation!r} holds out {held} of {total} bytes, too few to measure "
            f"(at least {_LEAST_HELD_OUT}); use a larger corpus{larger}."
        )


def _tokenizer(wanted: _Wanted, reading: tokenise.Reading) -> Tokenizer:
    """The one tokenizer of all parts: the text tokenizer asked for, or the vocabulary of the symbols."""
    kind, source = wanted.tokenizer, wanted.names[0]
    symbols = {part.num_symbols for part in wanted.parts if isinstance(part, Sequences)}
    if symbols:
        if len(symbols) > 1 or reading.parts:
            raise ValueError(
                f"components={list(wanted.names)} do not share a vocabulary; use parts that are all text, or all alike."
            )
        return _symbol_tokenizer(kind, wanted.vocab_size, SymbolTokenizer(symbols.pop()), source)
    if kind == "bytes":
        return _of_size(ByteTokenizer(), wanted.vocab_size, kind)
    if _is_trained(kind):
        return tokenise.trained(kind, wanted.ids, reading, wanted.sample, wanted.cached_in)
    if _is_path(kind):
        kind = _of_size(load_tokenizer(kind), wanted.vocab_size, str(kind))
    if isinstance(kind, str):
        raise messages.unknown("tokenizer", kind, TOKENIZERS)
    if isinstance(kind, SymbolTokenizer):
        raise ValueError(f"tokenizer={kind.name!r} is for symbols and source={source!r} has text; use 'bytes'.")
    return kind


def _is_trained(kind: str | os.PathLike | Tokenizer) -> bool:
    return isinstance(kind, str) and kind in tokenise.TRAINERS


def _symbol_tokenizer(
    kind: str | os.PathLike | Tokenizer, vocab_size: int, own: SymbolTokenizer, source: str
) -> Tokenizer:
    """The tokenizer of a source of symbols, which may be handed over but not chosen."""
    if kind == "bytes":
        return _of_size(own, vocab_size, source)
    if _is_path(kind):
        kind = load_tokenizer(kind)
    if isinstance(kind, str):
        raise ValueError(f"tokenizer={kind!r} is for text and source={source!r} has symbols; leave it at 'bytes'.")
    if kind.hash != own.hash:
        raise ValueError(
            f"tokenizer={kind.name!r} with {kind.vocab_size} ids is not that of source={source!r}, which has "
            f"{own.vocab_size}; use tokenizer='bytes' for its own."
        )
    return kind


def _is_path(kind: str | os.PathLike | Tokenizer) -> bool:
    return isinstance(kind, os.PathLike) or (isinstance(kind, str) and ("/" in kind or kind.endswith(".json")))


def _of_size(made: Tokenizer, vocab_size: int, name: str) -> Tokenizer:
    if vocab_size not in (0, made.vocab_size):
        raise ValueError(f"vocab_size={vocab_size} does not fit {name!r}; use 0 or {made.vocab_size}.")
    return made


def _corpus(
    made: Texts | Sequences, source: str, kind: Tokenizer, reading: tokenise.Reading, wanted: _Wanted
) -> Corpus:
    """One source as a corpus."""
    if isinstance(made, Sequences):
        train, valid, hashed = tokenise.symbols(made, kind, wanted.validation)
        splits = {"train": Tokens(**train), "valid": Tokens(**valid)}
        info = _info(source, kind, splits, 0, hashed, made.best_loss)
    else:
        place, template = reading.parts.index(made), conversations.template_of(wanted.template)
        folder, meta = tokenise.tokenised(place, reading, kind, template, wanted.cached_in)
        splits, hashed = {name: _open(folder, name, meta) for name in _SPLITS}, meta["hash"]
        info = _info(source, kind, splits, made.files, hashed, None)
        info |= {"hash_alone": meta.get("alone", hashed), "hash_before": meta["before"], "notes": list(meta["notes"])}
        left_out = tokenise.summary(made.left_out) | meta["left_out"]
        if left_out:
            info["notes"].append(f"{made.asked}: left out {tokenise.said(left_out)}.")
    return Corpus(**splits, tokenizer=kind, hash=hashed, info=info)


def _open(folder: pathlib.Path, split: str, meta: dict[str, Any]) -> Tokens:
    """Memory maps of one split that `tokenise.tokenised` wrote."""
    count = meta["splits"][split]["tokens"]
    path = folder / f"{split}.tokens.bin"
    tokens = np.memmap(path, meta["dtype"], "r", shape=(count,)) if count else np.empty(0, meta["dtype"])
    starts, marks = np.load(folder / f"{split}.starts.npy"), folder / f"{split}.scored.bin"
    scored = np.asarray(np.memmap(marks, bool, "r", shape=(count,))) if count and marks.is_file() else None
    said = folder / f"{split}.kinds.bin"  # Not in caches of older houses.
    kinds = np.asarray(np.memmap(said, np.uint8, "r", shape=(count,))) if count and said.is_file() else None
    size = meta["splits"][split]["bytes"]
    return Tokens(np.asarray(tokens), starts, size, scored=scored, kinds=kinds, folder=str(folder), split=split)


def _mixed(corpora: Sequence[Corpus], names: Sequence[str], weights: tuple[int, ...]) -> Corpus:
    """The corpora as one; each keeps its own info under `components`."""
    splits = {s: Mixture(tuple(getattr(c, s) for c in corpora), weights, tuple(names)) for s in _SPLITS}
    hashed = cache.digest("mixture", weights, [c.hash for c in corpora])
    files = sum(c.info["files"] for c in corpora)
    info = _info("mixture", corpora[0].tokenizer, splits, files, hashed, None)
    for key in ("hash_alone", "hash_before"):
        info[key] = cache.digest("mixture", weights, [c.info[key] for c in corpora])
    info["notes"] = [f"components[{k}]: {note}" for k, c in enumerate(corpora) for note in c.info["notes"]]
    info["components"] = [{"weight": w / sum(weights), **c.info} for c, w in zip(corpora, weights, strict=True)]
    return Corpus(**splits, tokenizer=corpora[0].tokenizer, hash=hashed, info=info)


def _info(source: str, kind: Tokenizer, splits: Mapping[str, Tokens | Mixture], files: int, hashed: str, best_loss):
    """Plain numbers and names about a corpus, for reports."""
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
        "hash_alone": hashed,  # as if it were no mixture
        "hash_before": hashed,  # by the rule that split older runs
        "files": files,
        **total,
        "bytes_per_token": total["bytes"] / total["tokens"],
        "splits": counts,
        "best_loss": best_loss,
        "notes": [],
    }
