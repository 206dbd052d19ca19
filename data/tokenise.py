"""Documents to token ids: a source is read once, divided into splits, and encoded in the order of the hashes."""

import dataclasses
import functools
import hashlib
import pathlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data import cache, disk, division, documents, encoding, progress, tokenizer
from data.tokenizers import trainers

_FORMAT = 2  # of the cached files; a new number makes old ones unused
_SPLITS = ("train", "valid")
_NAMES_KEPT = 3  # of the files left out for one reason

Sides = Callable[..., division.Sides]


@dataclasses.dataclass(frozen=True, eq=False)
class Divided:
    """The documents of a source, read once, and their splits.

    content: `[n]` uint8, all documents end to end.
    begin, size: `[D]` int64, the place of each document in `content`.
    digests: `[D, 32]` uint8.
    train, valid: indices of the documents of each split, in the order of their digests.
    hash: of both splits.
    alone: the hash as if the source were no part of a mixture.
    before: the hash by the rule of `division.by_documents`.
    """

    content: np.ndarray
    begin: np.ndarray
    size: np.ndarray
    digests: np.ndarray
    train: np.ndarray
    valid: np.ndarray
    hash: str
    alone: str
    before: str
    notes: tuple[str, ...]
    left_out: dict[str, list]

    def texts(self, which: np.ndarray) -> Iterator[bytes]:
        """The bytes of the documents `which`."""
        for k in which.tolist():
            yield self.content[self.begin[k] : self.begin[k] + self.size[k]].tobytes()


class Reading:
    """The text sources of a corpus, each read at most once, when something must be built from it.

    Args:
      parts: the sources.
      validation: share of the bytes to hold out.
      rule: "bytes", or that of a corpus with which an older run was made: "alone" (each part as if it were no mixture)
        or "documents".
      place: a private folder, made when it is needed, for the documents as they were read.
      cached_in: the folder of the cache.
    """

    def __init__(
        self,
        parts: Sequence[documents.Texts],
        validation: float,
        rule: str,
        place: Callable[[], pathlib.Path],
        cached_in: pathlib.Path,
    ):
        self.parts, self.validation, self.rule = tuple(parts), validation, rule
        self._place, self._cached_in = place, cached_in
        self._read: dict[int, Read] = {}
        self._divided: dict[int, Divided] = {}

    def divided(self, part: int) -> Divided:
        """The documents of one part."""
        if part not in self._divided:
            elsewhere = self._elsewhere[1][part]
            made = self._divided[part] = _divided(self._whole(part), self.validation, self.rule, elsewhere)
            if not len(made.train) + len(made.valid):
                raise ValueError(
                    f"{self.parts[part].asked or 'a component'} holds no text but such as other components hold out; "
                    "leave it away."
                )
        return self._divided[part]

    def _whole(self, part: int) -> "Read":
        if part not in self._read:
            self._read[part] = _read(self.parts[part], self._place() / f"{part}.documents")
        return self._read[part]

    @functools.cached_property
    def _elsewhere(self) -> tuple[list[str], list[np.ndarray]]:
        """Of each part the digests `[n, 32]` of what it learns from and another one holds out, and a name of them."""
        count, none = len(self.parts), np.empty((0, 32), np.uint8)
        if self.rule != "bytes" or count < 2:
            return [""] * count, [none] * count
        folder = self.folder_apart()

        def build(private: pathlib.Path) -> dict[str, Any]:
            read = [self._whole(k) for k in range(count)]
            out = division.apart([r.alike for r in read], [r.sides(self.validation) for r in read])
            for k, (r, which) in enumerate(zip(read, out, strict=True)):
                with disk.create(private / f"{k}.npy") as file:
                    np.save(file, r.alike[which])
            chosen = [r.alike[which].tobytes() for r, which in zip(read, out, strict=True)]
            return {"names": [hashlib.sha256(each).hexdigest() if each else "" for each in chosen]}

        names = cache.cached(folder, build)["names"]
        return names, [np.load(folder / f"{k}.npy") if name else none for k, name in enumerate(names)]

    def folder_apart(self) -> pathlib.Path:
        """The folder that caches what the parts of a mixture hold out of each other."""
        return self._cached_in / "apart" / cache.digest("apart", *self._facts(range(len(self.parts))))

    @property
    def known(self) -> bool:
        """Whether `facts` can be had without reading the parts."""
        return self.rule != "bytes" or len(self.parts) < 2 or cache.found(self.folder_apart())

    def _facts(self, parts: Iterable[int]) -> tuple:
        rule = "bytes" if self.rule == "alone" else self.rule
        return (_FORMAT, self.validation, rule, [self.parts[k].fingerprint for k in parts])

    def facts(self, *parts: int) -> tuple:
        """The inputs that decide documents and splits of the parts: the key of their cached results."""
        parts = parts or tuple(range(len(self.parts)))
        names = [self._elsewhere[0][k] for k in parts]
        return (*self._facts(parts), names) if any(names) else self._facts(parts)


@dataclasses.dataclass(frozen=True, eq=False)
class Read:
    """The documents of a source that are not empty: content as in `Divided`, and of each its size `[D]`, its digests
    `[D, 32]`, by its bytes (own) and by what counts as equal (alike), and the split that the source gives it.
    """

    content: np.ndarray
    size: np.ndarray
    own: np.ndarray
    alike: np.ndarray
    given: np.ndarray
    left_out: dict[str, list]
    cuttable: bool

    def sides(self, validation: float) -> division.Sides:
        """The side of each document, as if the source stood alone."""
        twin = division.twins(self.alike)
        return division.by_bytes(self.own, self.given, self.size, validation, twin=twin, cuttable=self.cuttable)


def _read(source: documents.Texts, path: pathlib.Path) -> Read:
    """Reads the documents that are not empty into the file at `path`."""
    digests, contents, given, sizes = bytearray(), bytearray(), array("b"), array("q")
    left_out: list[documents.LeftOut] = []
    with disk.create(path) as file, progress.shown("reading text") as read:
        for content, split in source.documents(left_out):
            if content:
                file.write(content)
                read(len(content))
                digests += hashlib.sha256(content).digest()
                contents += division.content_digest(content)
                given.append(division.ROLES[split])
                sizes.append(len(content))
    counted = summary(left_out)
    if not sizes:
        why = f" ({said(counted)})" if counted else ""
        asked = source.asked or "the source"
        raise ValueError(f"{asked} has no text in any of its {source.files} files{why}; use files that are not empty.")
    own, alike = (np.frombuffer(bytes(d), np.uint8).reshape(-1, 32) for d in (digests, contents))
    content = np.memmap(path, np.uint8, "r")
    return Read(content, np.array(sizes, np.int64), own, alike, np.array(given), counted, source.form == "text")


def _divided(read: Read, validation: float, rule: str, elsewhere: np.ndarray) -> Divided:
    """The documents in their splits; `elsewhere` `[n, 32]`: digests of those that other parts of a mixture hold out."""
    size = read.size
    old, new = division.by_documents(read.own, read.given, size, validation), read.sides(validation)
    out = ~new.valid & ~new.dropped & _among(read.alike, elsewhere)
    mixed = dataclasses.replace(new, dropped=new.dropped | out, cut=np.where(out, 0.0, new.cut))
    cut = {"bytes": mixed, "alone": new, "documents": old}
    made = {name: _pieces(read.content, size, read.own, sides) for name, sides in cut.items()}
    hashes = {name: _hash(pieces[2], pieces[3:]) for name, pieces in made.items()}
    notes: tuple[str, ...] = ()
    if rule != "documents" and hashes["alone"] != hashes["documents"]:
        notes = _notes(new, old, size, validation)
    if rule == "bytes" and out.any():
        notes += (
            f"{out.sum():,} training documents ({size[out].sum():,} bytes) also stand in the held-out split of another "
            "component; they are left out of training.",
        )
    return Divided(read.content, *made[rule], hashes[rule], hashes["alone"], hashes["documents"], notes, read.left_out)


def _among(digests: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """`[D]` bool: whether each digest, `[D, 32]` uint8, is one of the chosen ones, `[n, 32]`."""
    ids = division.twins(np.concatenate([digests, chosen]))
    return np.isin(ids[: len(digests)], ids[len(digests) :])


def _pieces(
    content: np.ndarray, size: np.ndarray, digests: np.ndarray, sides: division.Sides
) -> tuple[np.ndarray, ...]:
    """(begin, size, digests, train, valid) of the documents; a document that is cut counts as two."""
    begin = np.cumsum(size) - size
    where = np.flatnonzero(sides.cut)
    valid, dropped = sides.valid, sides.dropped
    if len(where):
        texts = [content[begin[k] : begin[k] + size[k]].tobytes() for k in where]
        place = np.array([division.cut_place(t, sides.cut[k]) for t, k in zip(texts, where, strict=True)], np.int64)
        halves = [(t[:p], t[p:]) for t, p in zip(texts, place.tolist(), strict=True)]
        new = [np.frombuffer(b"".join(hashlib.sha256(h[i]).digest() for h in halves), np.uint8) for i in (0, 1)]
        digests = np.concatenate([digests, new[1].reshape(-1, 32)])
        digests[where] = new[0].reshape(-1, 32)
        begin = np.concatenate([begin, begin[where] + place])
        size = np.concatenate([size, size[where] - place])
        size[where] = place
        valid = np.concatenate([valid, np.ones(len(where), bool)])
        dropped = np.concatenate([dropped, np.zeros(len(where), bool)])
    order = division.by_hash(digests)
    order = order[~dropped[order]]
    return begin, size, digests, order[~valid[order]], order[valid[order]]


def _hash(digests: np.ndarray, splits: Sequence[np.ndarray]) -> str:
    """Hex digest of the documents of both splits, in their order."""
    hashed = hashlib.sha256()
    for name, which in zip(_SPLITS, splits, strict=True):
        hashed.update(name.encode() + digests[which].tobytes())
    return hashed.hexdigest()


def _notes(sides: division.Sides, old: division.Sides, size: np.ndarray, validation: float) -> tuple[str, ...]:
    """Sentences about surprises in a split."""
    if sides.dropped.any():
        return (
            f"{sides.dropped.sum():,} training documents ({size[sides.dropped].sum():,} bytes) also stand in the "
            "held-out split of the source; they are left out of training.",
        )
    held = size[sides.valid].sum() + (size * sides.cut).sum()
    cut = np.count_nonzero(sides.cut)
    return (
        f"validation={validation!r} holds out some {held:,.0f} of {size.sum():,} bytes, equal documents on one side"
        + (f", {cut:,} of {len(size):,} documents cut near the end" if cut else "")
        + f"; the hashes of documents alone would hold out {size[old.valid].sum():,}.",
    )


def summary(left_out: Sequence[documents.LeftOut]) -> dict[str, list]:
    """{why: [number of files, the first names]} of files that were not read."""
    counted: dict[str, list] = {}
    for why, name in left_out:
        entry = counted.setdefault(why, [0])
        entry[0] += 1
        if len(entry) <= _NAMES_KEPT:
            entry.append(name)
    return counted


def said(counted: dict[str, list]) -> str:
    """`summary` in words."""
    parts = []
    for why, (count, *names) in counted.items():
        parts.append(f"{count:,} {why}: {', '.join(names)}{', ...' if count > len(names) else ''}")
    return "; ".join(parts)


# By name: (texts, vocab_size) -> a tokenizer that is learned from the training split.
TRAINERS = {"bpe": tokenizer.train_bpe, **trainers.TRAINERS}


def trained_folder(name: str, vocab_size: int, reading: Reading, sample: int, cached_in: pathlib.Path) -> pathlib.Path:
    """The folder that caches the tokenizer of `trained`."""
    return cached_in / "tokenizers" / cache.digest(name, vocab_size, sample, *reading.facts())


def trained(name: str, vocab_size: int, reading: Reading, sample: int, cached_in: pathlib.Path) -> tokenizer.Tokenizer:
    """A tokenizer learned from at most `sample` bytes of the train splits (0: all of them), kept by corpus and size.

    Args:
      name: of `TRAINERS`.
    """
    folder = trained_folder(name, vocab_size, reading, sample, cached_in)
    count = len(reading.parts)

    def build(private: pathlib.Path) -> dict[str, Any]:
        texts = (text for k in range(count) for text in _sample(reading.divided(k), sample // count if sample else 0))
        TRAINERS[name](texts, vocab_size).save(private / "tokenizer.json")
        return {}

    if vocab_size < 260:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for tokenizer={name!r}; use at least 260, such as 4096."
        )
    cache.cached(folder, build)
    return tokenizer.from_json(tokenizer.read(folder / "tokenizer.json"), str(folder / "tokenizer.json"))


def _sample(made: Divided, limit: int) -> Iterator[bytes]:
    """`limit` bytes (0: all) of train documents, chosen in the order of their hashes, in the order of reading."""
    sizes = made.size[made.train]
    room = np.minimum(sizes, limit - (np.cumsum(sizes) - sizes)) if limit else sizes
    chosen = np.flatnonzero(room > 0)
    in_order = chosen[np.argsort(made.begin[made.train[chosen]])]
    for text, most in zip(made.texts(made.train[in_order]), room[in_order].tolist(), strict=True):
        yield text[:most]


def tokenised(
    part: int, reading: Reading, kind: tokenizer.Tokenizer, template: str, cached_in: pathlib.Path
) -> tuple[pathlib.Path, dict[str, Any]]:
    """The folder with the tokens of one part, built if need be, and its meta data; one that was begun is finished.

    These are `hash`, `alone`, `before`, `dtype`, `splits` (documents, tokens, bytes of each), `notes` and `left_out`.

    Args:
      template: of conversations: a chat template, "" for the tokenizer's own.
    """
    form = reading.parts[part].form
    more = [form, template, getattr(kind, "chat", "")] if form != "text" else []
    key = cache.digest("corpus", kind.hash, *reading.facts(part), *more)
    folder = cached_in / "corpora" / key

    def build(private: pathlib.Path) -> dict[str, Any]:
        made = reading.divided(part)
        encode = encoding.texts(kind) if form == "text" else encoding.talks(kind, template)
        counts = encoding.write(private, made, {name: getattr(made, name) for name in _SPLITS}, encode)
        told = {"hash": made.hash, "alone": made.alone, "before": made.before, "dtype": np.dtype(encode.dtype).name}
        return {**told, "splits": counts, "notes": list(made.notes), "left_out": made.left_out}

    return folder, cache.cached(folder, build, resumable=True)


def symbols(
    source: documents.Sequences, kind: tokenizer.Tokenizer, validation: float
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The fields of the train and valid `Tokens` of a source of symbols, in memory, and the hash of its documents."""
    contents = [np.ascontiguousarray(d) for d in source.documents]
    hashes = b"".join(hashlib.sha256(np.asarray(d, "<u4").tobytes()).digest() for d in contents)
    digests = np.frombuffer(hashes, np.uint8).reshape(-1, 32)
    if source.valid is None:
        given = np.full(len(contents), division.NO_SPLIT)
    else:
        given = np.where(source.valid, division.VALID, division.TRAIN)
    size = np.array([len(d) for d in contents], np.int64)
    sides = division.by_bytes(digests, given, size, validation, twin=division.twins(digests), cuttable=False)
    order = division.by_hash(digests)
    order = order[~sides.dropped[order]]
    splits = order[~sides.valid[order]], order[sides.valid[order]]
    made = []
    for which in splits:
        chosen = [contents[k] for k in which.tolist()]
        lengths = np.array([len(d) + 2 for d in chosen], np.int64)
        starts = np.cumsum(lengths) - lengths
        tokens = np.empty(lengths.sum(), encoding.token_dtype(kind.vocab_size))
        content = np.ones(len(tokens), bool)
        content[starts] = content[starts + lengths - 1] = False
        tokens[starts], tokens[starts + lengths - 1] = kind.bos, kind.eos
        if chosen:
            tokens[content] = np.concatenate(chosen)
        labels = None if source.labels is None else np.asarray(source.labels, np.int32)[which]
        made.append({"tokens": tokens, "starts": starts, "num_bytes": int(content.sum()), "labels": labels})
    return *made, _hash(digests, splits)
