"""Tokenizers: raw bytes, byte-pair merges learned offline, or the symbols of a synthetic sequence.

Every tokenizer ends its vocabulary with three specials (bos, eos, pad), which no text can produce. A document in a
corpus is `[bos] content [eos]`. A tokenizer knows how many bytes of the original each token stands for, so that losses
of different tokenizers can be compared in bits per byte.
"""

import codecs
import functools
import hashlib
import importlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from data import disk, messages, words

_PIECE = 1 << 20  # longer texts are given to the BPE library in pieces of about this many characters
_WORD = 1 << 9  # characters of the longest word that BPE learns from
# How Python's decoder marks the bytes that are not UTF-8: one lone surrogate each.
_ESCAPED = frozenset(map(chr, range(0xDC80, 0xDD00)))
_RUNS = re.compile("[\udc80-\udcff]+|[^\udc80-\udcff]+")
_LONG_BLANKS = re.compile(rf"\s{{{_WORD + 1}}}")


class Tokenizer(Protocol):
    """The interface of a tokenizer. V below is `vocab_size`, specials included."""

    name: str
    vocab_size: int
    bos: int
    eos: int
    pad: int

    @property
    def hash(self) -> str:
        """Hex digest of all settings that decide the ids of a text."""

    @property
    def token_bytes(self) -> np.ndarray:
        """`[V]` int32: bytes of the original that each id stands for; 0 for specials."""

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32, without specials."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; specials are skipped, bytes that are not UTF-8 become U+FFFD."""

    def to_json(self) -> str:
        """The argument of `from_json`, with a digest of its content."""

    def save(self, path: str | pathlib.Path) -> None:
        """Writes `to_json` to a file, whole or not at all; a link at `path` is replaced and not followed."""


class _Saved:
    """Base of the tokenizers: their state is plain JSON, which is saved."""

    def _state(self) -> dict[str, Any]:
        raise NotImplementedError

    def to_json(self) -> str:
        state = self._state()
        return json.dumps({**state, "digest": digest_of(state)})

    def save(self, path: str | pathlib.Path) -> None:
        with disk.whole(path) as file:
            file.write(self.to_json().encode("utf-8"))


class ByteLevel(_Saved):
    """A vocabulary whose every id is a known string of bytes; the specials come last, or are those of `specials`."""

    def __init__(self, name: str, pieces: Sequence[bytes], specials: Sequence[int] = ()):
        self.name = name
        self.pieces = tuple(pieces) if specials else (*pieces, b"", b"", b"")
        self.vocab_size = len(self.pieces)
        self.bos, self.eos, self.pad = specials or (len(pieces) + k for k in range(3))

    def _state(self) -> dict[str, Any]:
        return {"kind": self.name}

    @functools.cached_property
    def hash(self) -> str:
        return digest_of(self._state())

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        return np.fromiter(map(len, self.pieces), np.int32, self.vocab_size)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids`; specials are skipped. Errors: ValueError for an id outside 0..V-1."""
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).ravel()
        _check_ids(ids, self.vocab_size)
        return b"".join(map(self.pieces.__getitem__, ids.tolist()))

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")


class ByteTokenizer(ByteLevel):
    """Ids 0..255 are the bytes of UTF-8 text; bos 256, eos 257, pad 258."""

    def __init__(self):
        super().__init__("bytes", [bytes([b]) for b in range(256)])

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32, without specials."""
        return np.frombuffer(as_bytes(text), np.uint8).astype(np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, `[n]` uint8: the bytes as they are."""
        return [np.frombuffer(text, np.uint8) for text in texts]


class BPETokenizer(ByteLevel):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in GPT-2): lossless for any bytes.

    Bytes that are not valid UTF-8 are given their single-byte ids, so nothing is ever replaced when encoding.

    Args:
      definition: the result of `tokenizers.Tokenizer.to_str`.

    Errors: ValueError where it is no byte-level BPE.
    """

    def __init__(self, definition: str):
        import tokenizers  # slow to import, and needed by few

        self.definition = definition
        try:
            self._library = tokenizers.Tokenizer.from_str(definition)
        except Exception as error:  # the library knows one class of error
            raise ValueError("its definition is not one of the tokenizers library") from error
        super().__init__("bpe", _byte_pieces(self._library, definition))
        self._single = np.full(256, -1, np.int32)
        for i, piece in enumerate(self.pieces):
            if len(piece) == 1:
                self._single[piece[0]] = i
        self._words, self._plain = words.Words(self._encoded), _is_plain(json.loads(definition))
        if (self._single < 0).any():
            raise ValueError(f"its vocabulary lacks the byte {int(np.argmin(self._single))}")

    def _state(self) -> dict[str, Any]:
        return {"kind": "bpe", "definition": self.definition}

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32, without specials."""
        return self.encode_batch([as_bytes(text)])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, `[n]` int32."""
        runs = [list(utf8_runs(text)) for text in texts]
        valid = [run for row in runs for run in row if isinstance(run, str)]
        encoded = iter(self._words.encode(valid) if self._plain and _few_cores() else self._encoded(valid))
        return [
            np.concatenate(
                [
                    np.asarray(next(encoded), np.int32)
                    if isinstance(run, str)
                    else self._single[np.frombuffer(run, np.uint8)]
                    for run in row
                ]
                or [np.empty(0, np.int32)]
            )
            for row in runs
        ]

    def _encoded(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text by the library, which uses all cores."""
        return [made.ids for made in self._library.encode_batch_fast(texts)]


class SymbolTokenizer(_Saved):
    """The symbols 0..n-1 of a sequence that is not text, written as decimal numbers; bos n, eos n+1, pad n+2.

    One symbol counts as one byte of the original, so "bits per byte" means bits per symbol.
    """

    def __init__(self, num_symbols: int, name: str = "symbols"):
        if not 0 < num_symbols < 1 << 31:
            raise ValueError(f"num_symbols={num_symbols} is not a number of symbols; use 1 or more, such as 256")
        self.name, self.num_symbols, self.vocab_size = name, num_symbols, num_symbols + 3
        self.bos, self.eos, self.pad = num_symbols, num_symbols + 1, num_symbols + 2

    @property
    def hash(self) -> str:
        return hashlib.sha256(f"{self.name} {self.num_symbols}".encode()).hexdigest()

    @functools.cached_property
    def token_bytes(self) -> np.ndarray:
        return (np.arange(self.vocab_size) < self.num_symbols).astype(np.int32)

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of numbers separated by spaces, `[n]` int32. Errors: ValueError for anything else."""
        words = as_bytes(text).decode("utf-8", "replace").split()
        for word in words:
            if not (word.isascii() and word.isdigit() and int(word) < self.num_symbols):
                raise ValueError(f"text has {word!r}, which is not a symbol; use numbers 0 to {self.num_symbols - 1}.")
        return np.array([int(word) for word in words], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids), np.int64).ravel()
        _check_ids(ids, self.vocab_size)
        return " ".join(str(i) for i in ids.tolist() if i < self.num_symbols)

    def _state(self) -> dict[str, Any]:
        return {"kind": "symbols", "num_symbols": self.num_symbols, "name": self.name}


class StreamDecoder:
    """Text of a sequence whose ids come one by one; a character appears once its last byte has come."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._words = 0

    def push(self, token: int) -> str:
        """The text that `token` completes; empty for specials and in the middle of a character."""
        if hasattr(self._tokenizer, "decode_bytes"):
            return self._utf8.decode(self._tokenizer.decode_bytes([int(token)]))
        word = self._tokenizer.decode([int(token)])
        self._words += bool(word)
        return f" {word}" if word and self._words > 1 else word

    def flush(self) -> str:
        """The rest of the text at the end: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", final=True)


def read(path: pathlib.Path) -> str:
    """The text of a saved tokenizer.

    Errors: FileNotFoundError where no file is; ValueError with one sentence where it cannot be read or is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer={str(path)!r} does not exist; use 'bytes', 'bpe' or a saved file.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError:
        raise ValueError(not_saved(str(path), "it is not text")) from None
    except OSError as error:
        raise ValueError(f"tokenizer={str(path)!r} cannot be read ({error.strerror}); use 'bytes' or 'bpe'.") from error


def parsed(text: str, name: str) -> Any:
    """The JSON of `text`; `name` is that of the file, for messages. Errors: ValueError with one sentence."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(not_saved(name, "it nests too deep")) from None
    except ValueError:
        raise ValueError(not_saved(name, "it is not JSON")) from None


def from_json(text: str, name: str = "tokenizer.json") -> Tokenizer:
    """The tokenizer of a text from `to_json`; `name` is that of the file, for messages.

    Errors: ValueError with one sentence.
    """
    return of_state(parsed(text, name), name)


def of_state(state: Any, name: str) -> Tokenizer:
    """The tokenizer of what `to_json` wrote, parsed. Errors: ValueError with one sentence."""
    if not isinstance(state, dict) or not isinstance(state.get("kind"), str):
        raise ValueError(not_saved(name, 'it is not an object with a "kind"'))
    kind = state["kind"]
    if kind not in _KINDS:
        raise messages.unknown(f"kind in {name!r}", kind, tuple(_KINDS))
    digest = state.pop("digest", None)  # older files have none
    made, needed = _KINDS[kind]
    if isinstance(made, str):  # A module that is built on this one.
        module, _, attribute = made.partition(":")
        made = getattr(importlib.import_module(module), attribute)
    for key, type_ in needed.items():
        if type(state.get(key)) is not type_:
            raise ValueError(not_saved(name, f"its {key!r} is missing or not of type {type_.__name__}"))
    if digest is not None and digest != digest_of(state):
        raise ValueError(f"tokenizer={name!r} is damaged: it is not what was saved; bring the file back from a copy.")
    try:
        return made(*(state[key] for key in needed))
    except Exception as error:  # A definition may be anything, and end any line of what makes a tokenizer of it.
        raise ValueError(not_saved(name, messages.why(error))) from error


def _is_plain(definition: dict[str, Any]) -> bool:
    """Whether text is cut by GPT-2's pattern and by nothing else, as `train_bpe` does it."""
    borders = definition.get("pre_tokenizer") or {}
    return (
        borders.get("type") == "ByteLevel"
        and borders.get("use_regex", True)
        and not borders.get("add_prefix_space")
        and not any(
            definition.get(key) for key in ("normalizer", "post_processor", "added_tokens", "truncation", "padding")
        )
        and not definition["model"].get("dropout")
        and not definition["model"].get("ignore_merges")
    )


def _few_cores() -> bool:
    """Whether a table of words on one core is faster than the library on all of them: they are level at about eight."""
    return len(os.sched_getaffinity(0)) <= 8 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) <= 8


def not_saved(name: str, why: str) -> str:
    return f"tokenizer={name!r} is not a saved tokenizer ({why}); use 'bytes' or 'bpe'."


def digest_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def train_bpe(texts: Iterable[bytes], vocab_size: int) -> BPETokenizer:
    """A byte-level BPE of at most `vocab_size` ids (256 bytes and 3 specials included) learned from `texts`.

    A small text may not have enough repeated pairs; then the vocabulary is smaller, as its `vocab_size` says.
    Errors: ValueError when `vocab_size` has no room for the bytes, the specials and one merge.
    """
    if vocab_size < 260:
        raise ValueError(f"vocab_size={vocab_size} is too small for tokenizer='bpe'; use at least 260, such as 4096.")
    import tokenizers
    from tokenizers import models, pre_tokenizers, trainers

    library = tokenizers.Tokenizer(models.BPE())
    borders = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.pre_tokenizer = borders
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 3,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    runs = (run for text in texts for run in utf8_runs(text) if isinstance(run, str))
    runs = (piece for run in runs for piece in bounded(run, borders))  # the library itself is locked while it learns
    library.train_from_iterator(runs, trainer=trainer)
    return BPETokenizer(library.to_str())


def as_bytes(text: str | bytes) -> bytes:
    """UTF-8 of a string; the lone surrogates by which Python stands for undecodable bytes become those bytes."""
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def _check_ids(ids: np.ndarray, vocab_size: int) -> None:
    wrong = ids[(ids < 0) | (ids >= vocab_size)]
    if wrong.size:
        raise ValueError(f"id={wrong[0]} is outside the vocabulary; use ids 0 to {vocab_size - 1}.")


def utf8_runs(text: bytes) -> Iterable[str | bytes]:
    """The text as valid runs (str, in pieces of bounded size) and runs that are not UTF-8 (bytes), in order."""
    for run in _RUNS.findall(text.decode("utf-8", "surrogateescape")):
        if run[0] in _ESCAPED:
            yield run.encode("utf-8", "surrogateescape")
            continue
        start = 0
        while start < len(run):
            end = start + _PIECE
            if end < len(run):
                end = run.rfind("\n", start + _PIECE // 2, end) + 1 or end
            yield run[start:end]
            start = end


def bounded(text: str, borders: Any) -> list[str]:
    """The text, cut inside each word of more than `_WORD` characters; `borders` is the library's pre-tokenizer.

    Learning merges takes time in the square of the longest word, and a text without blanks (DNA, base64) is one word.
    Text of shorter words is not cut.
    """
    if max(map(len, text.split()), default=0) <= _WORD and not _LONG_BLANKS.search(text):
        return [text]
    cuts = [cut for _, (begin, end) in borders.pre_tokenize_str(text) for cut in range(begin + _WORD, end, _WORD)]
    return [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def _byte_pieces(library: Any, definition: str) -> list[bytes]:
    """The bytes of each id of a byte-level BPE. Errors: ValueError where it is something else."""
    to_byte = byte_alphabet()
    vocabulary = sorted(library.get_vocab().items(), key=lambda item: item[1])
    if [i for _, i in vocabulary] != list(range(len(vocabulary))):
        raise ValueError("its vocabulary has gaps in its ids")
    try:
        if json.loads(definition)["model"]["type"] != "BPE":
            raise ValueError("its model is not BPE")
        return [bytes(to_byte[c] for c in piece) for piece, _ in vocabulary]
    except (KeyError, TypeError):
        raise ValueError("its vocabulary is not of bytes") from None


def byte_alphabet() -> dict[str, int]:
    """The printable character by which byte-level BPE writes each byte, and the byte: GPT-2's table."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


# Kind of a saved tokenizer: what makes it, and the fields that it needs.
_KINDS: dict[str, tuple[Callable[..., Tokenizer] | str, dict[str, type]]] = {
    "bytes": (ByteTokenizer, {}),
    "bpe": (BPETokenizer, {"definition": str}),
    "symbols": (SymbolTokenizer, {"num_symbols": int, "name": str}),
    "greedy": ("data.tokenizers.kinds:GreedyTokenizer", {"name": str, "pieces": list}),
    "bytes_library": ("data.tokenizers.kinds:BytesLibraryTokenizer", {"name": str, "definition": str}),
    "library": (
        "data.library_tokenizer:LibraryTokenizer",
        {"definition": str, "bos": int, "eos": int, "pad": int, "add_bos": bool, "chat": str},
    ),
    "sentencepiece": ("data.sentencepiece_tokenizer:SentencePieceTokenizer", {"model": str}),
}
