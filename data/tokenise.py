"""Documents to token ids: which split each belongs to, one pass of encoding, files in the order of the hashes."""

import hashlib
import itertools
import pathlib
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data import cache, sources, tokenizer

_FORMAT = 1  # of the cached files; a new number makes old ones unused
_CHUNK_BYTES = 4 << 20
_BPE_SAMPLE_BYTES = 4 << 20
_NO_SPLIT, _TRAIN, _VALID = -1, 0, 1
_ROLES = {None: _NO_SPLIT, "train": _TRAIN, "valid": _VALID}


def trained_bpe(
    vocab_size: int, parts: Sequence[sources.Texts], validation: float, cached_in: pathlib.Path
) -> tokenizer.Tokenizer:
    """BPE learned from a sample of the train splits, kept by the hash of the corpus and the size."""
    key = cache.digest("bpe", _FORMAT, vocab_size, validation, _BPE_SAMPLE_BYTES, [p.fingerprint for p in parts])
    folder = cached_in / "tokenizers" / key

    def build(private: pathlib.Path) -> dict[str, Any]:
        texts = itertools.chain.from_iterable(_sample(p, validation, _BPE_SAMPLE_BYTES // len(parts)) for p in parts)
        tokenizer.train_bpe(texts, vocab_size).save(private / "tokenizer.json")
        return {}

    if vocab_size < 260:
        tokenizer.train_bpe((), vocab_size)  # refuses by itself
    cache.cached(folder, build)
    return tokenizer.load_tokenizer(folder / "tokenizer.json")


def _sample(source: sources.Texts, validation: float, limit: int) -> Iterator[bytes]:
    """About `limit` bytes of train documents, chosen by their hash. Reads the source twice, keeps only the sample."""
    digests, given, lengths = bytearray(), array("b"), array("q")
    for content, split in _documents(source, validation):
        digests += hashlib.sha256(content).digest()
        given.append(_ROLES[split])
        lengths.append(len(content))
    train, _ = _split(digests, np.array(given), validation)
    sizes = np.array(lengths, np.int64)[train]
    left = limit - (np.cumsum(sizes) - sizes)
    room = dict(zip(train[left > 0].tolist(), left[left > 0].tolist(), strict=True))
    for k, (content, _) in enumerate(_documents(source, validation)):
        if k in room:
            yield content[: room[k]]


def _documents(source: sources.Texts, validation: float) -> Iterator[sources.Document]:
    """The documents that are not empty; a single one is cut in two where a validation split is wanted."""
    documents = ((content, split) for content, split in source.documents() if content)
    first = list(itertools.islice(documents, 2))
    if len(first) != 1 or not validation or len(first[0][0]) < 2:
        yield from first
        yield from documents
        return
    content = first[0][0]
    place = min(max(1, round(len(content) * (1 - validation))), len(content) - 1)
    line = content.rfind(b"\n", place * 9 // 10, place) + 1
    cut = line or place
    while not line and cut > 1 and content[cut] & 0xC0 == 0x80:  # never inside a UTF-8 character
        cut -= 1
    yield content[:cut], "train"
    yield content[cut:], "valid"


def _split(digests: bytes, given: np.ndarray, validation: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the documents of each split, in the order of their SHA-256 `digests` (32 bytes each).

    `given` `[D]` names the split of each document, where the source knows it; if it knows none, the hash decides.
    Returns (train, valid).
    """
    words = np.frombuffer(bytes(digests), ">u8").reshape(-1, 4)
    by_hash = np.lexsort(words.T[::-1])
    if (given != _NO_SPLIT).any():
        is_valid = given == _VALID
    else:
        is_valid = words[:, 0] < np.uint64(int(validation * 2**64))
        if validation and len(given) > 1:  # by chance all on one side: the one nearest to the border crosses it
            if not is_valid.any():
                is_valid[by_hash[0]] = True
            elif is_valid.all():
                is_valid[by_hash[-1]] = False
    return by_hash[~is_valid[by_hash]], by_hash[is_valid[by_hash]]


def tokenised(
    source: sources.Texts, name: str, kind: tokenizer.Tokenizer, validation: float, cached_in: pathlib.Path
) -> tuple[pathlib.Path, dict[str, Any]]:
    """The folder with a text source's tokens, built if need be, and its meta data: hash, dtype, counts."""
    key = cache.digest("corpus", _FORMAT, source.fingerprint, kind.hash, validation)
    folder = cached_in / "corpora" / key
    return folder, cache.cached(folder, lambda private: _build(private, source, name, kind, validation))


def _build(
    private: pathlib.Path, source: sources.Texts, name: str, kind: tokenizer.Tokenizer, validation: float
) -> dict[str, Any]:
    """Encodes in the order of reading, in bounded memory, then copies each split in the order of its hashes."""
    dtype = token_dtype(kind.vocab_size)
    raw = private / "unsorted.bin"
    digests, given, lengths, sizes = bytearray(), array("b"), array("q"), array("q")
    with raw.open("wb") as file:
        for chunk in _chunks(_documents(source, validation)):
            contents = [content for content, _ in chunk]
            for content, ids, (_, split) in zip(contents, kind.encode_batch(contents), chunk, strict=True):
                digests += hashlib.sha256(content).digest()
                given.append(_ROLES[split])
                sizes.append(len(content))
                lengths.append(len(ids) + 2)
                document = np.empty(len(ids) + 2, dtype)
                document[0], document[1:-1], document[-1] = kind.bos, ids, kind.eos
                file.write(memoryview(document))  # tofile would hide that the disk is full.
    if not lengths:
        asked = source.asked or f"source={name!r}"
        raise ValueError(f"{asked} has no text in any of its {source.files} files; use files that are not empty.")
    ends = np.cumsum(lengths, dtype=np.int64)
    unsorted = np.memmap(raw, dtype, "r")
    splits = _split(digests, np.array(given), validation)
    hashed = hashlib.sha256()
    words = np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32)
    counts = {}
    for split, which in zip(("train", "valid"), splits, strict=True):
        taken = np.array(lengths, np.int64)[which]
        np.save(private / f"{split}.starts.npy", np.cumsum(taken) - taken)
        with (private / f"{split}.tokens.bin").open("wb") as file:
            for k in which.tolist():
                file.write(memoryview(unsorted[ends[k] - lengths[k] : ends[k]]))
        hashed.update(split.encode() + words[which].tobytes())
        total = int(np.array(sizes, np.int64)[which].sum())
        counts[split] = {"documents": len(which), "tokens": int(taken.sum()), "bytes": total}
    del unsorted
    raw.unlink()
    return {"hash": hashed.hexdigest(), "dtype": np.dtype(dtype).name, "splits": counts}


def _chunks(documents: Iterator[sources.Document]) -> Iterator[list[sources.Document]]:
    """Documents in lists of a few MiB, so that a tokenizer can use all cores on each list."""
    chunk, size = [], 0
    for document in documents:
        chunk.append(document)
        size += len(document[0])
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def token_dtype(vocab_size: int) -> type:
    """The smallest unsigned type that holds every id."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def symbols(
    source: sources.Sequences, kind: tokenizer.Tokenizer, validation: float
) -> tuple[dict[str, Any], dict[str, Any], str]:
    """The fields of the train and valid `Tokens` of a source of symbols, in memory, and the hash of its documents."""
    documents = [np.ascontiguousarray(d) for d in source.documents]
    words = [np.asarray(d, "<u4").tobytes() for d in documents]
    digests = b"".join(hashlib.sha256(w).digest() for w in words)
    if source.valid is None:
        given = np.full(len(documents), _NO_SPLIT)
    else:
        given = np.where(source.valid, _VALID, _TRAIN)
    splits = _split(digests, given, validation)
    made, hashed = [], hashlib.sha256()
    for split, which in zip(("train", "valid"), splits, strict=True):
        chosen = [documents[k] for k in which.tolist()]
        lengths = np.array([len(d) + 2 for d in chosen], np.int64)
        starts = np.cumsum(lengths) - lengths
        tokens = np.empty(lengths.sum(), token_dtype(kind.vocab_size))
        content = np.ones(len(tokens), bool)
        content[starts] = content[starts + lengths - 1] = False
        tokens[starts], tokens[starts + lengths - 1] = kind.bos, kind.eos
        if chosen:
            tokens[content] = np.concatenate(chosen)
        labels = None if source.labels is None else np.asarray(source.labels, np.int32)[which]
        made.append({"tokens": tokens, "starts": starts, "num_bytes": int(content.sum()), "labels": labels})
        hashed.update(split.encode() + b"".join(digests[32 * k : 32 * k + 32] for k in which.tolist()))
    return *made, hashed.hexdigest()
