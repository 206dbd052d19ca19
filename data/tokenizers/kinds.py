"""Kinds of saved tokenizers beside bytes and byte-level BPE: greedy ones by a list of pieces, and the library's.

Both cut every byte string and give it back. Their text is bytes from the start: no UTF-8 is looked for.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data.tokenizer import ByteLevel, as_bytes, byte_alphabet
from data.tokenizers import lzw

# Code units of UTF-16 of the characters of the bytes 0..255.
_CODE = np.array([ord(character) for character, _ in sorted(byte_alphabet().items(), key=lambda pair: pair[1])], "<u2")


class GreedyTokenizer(ByteLevel):
    """From left to right the longest piece each time.

    Args:
      name: how it was trained, e.g. "lzw".
      pieces: each as a string of the characters 0..255, in the order of their ids; all 256 bytes must be among them.

    Errors: ValueError where a byte is missing, a piece is empty or stands twice.
    """

    def __init__(self, name: str, pieces: Sequence[str]):
        try:
            raw = [piece.encode("latin-1") for piece in pieces]
        except (UnicodeEncodeError, AttributeError):
            raise ValueError("its pieces are not strings of bytes") from None
        self._ids = {piece: i for i, piece in enumerate(raw)}
        missing = [b for b in range(256) if bytes([b]) not in self._ids]
        if missing or b"" in self._ids or len(self._ids) != len(raw):
            raise ValueError(
                f"its vocabulary lacks the byte {missing[0]}" if missing else "its pieces are not distinct"
            )
        super().__init__(name, raw)
        self._longest = max(map(len, raw))

    def _state(self) -> dict[str, Any]:
        return {
            "kind": "greedy",
            "name": self.name,
            "pieces": [piece.decode("latin-1") for piece in self.pieces[:-3]],
        }

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32, without specials."""
        return np.array(lzw.greedy(as_bytes(text), self._ids, self._longest), np.int32)

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, `[n]` int32."""
        return [self.encode(text) for text in texts]


class BytesLibraryTokenizer(ByteLevel):
    """A model of the tokenizers library over bytes: each byte is one of the 256 characters of GPT-2's table.

    Args:
      name: how it was trained, "unigram" or "byte_bpe".
      definition: the result of `tokenizers.Tokenizer.to_str`.

    Errors: ValueError where it is none, or lacks a byte.
    """

    def __init__(self, name: str, definition: str):
        import tokenizers  # slow to import, and needed by few

        self._definition = definition
        try:
            self._library = tokenizers.Tokenizer.from_str(definition)
            vocabulary = sorted(self._library.get_vocab().items(), key=lambda item: item[1])
            to_byte = byte_alphabet()
            pieces = [bytes(to_byte[c] for c in piece) for piece, _ in vocabulary]
        except Exception as error:  # the library knows one class of error
            raise ValueError("its definition is not one of the tokenizers library on bytes") from error
        if [i for _, i in vocabulary] != list(range(len(pieces))) or len({*pieces} & {*_BYTES}) < 256:
            raise ValueError("its vocabulary has gaps in its ids, or lacks a byte")
        super().__init__(name, pieces)

    def _state(self) -> dict[str, Any]:
        return {"kind": "bytes_library", "name": self.name, "definition": self._definition}

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32, without specials."""
        return self.encode_batch([as_bytes(text)])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, `[n]` int32; the library uses all cores."""
        made = self._library.encode_batch_fast([characters(text) for text in texts])
        return [np.asarray(each.ids, np.int32) for each in made]


_BYTES = [bytes([b]) for b in range(256)]


def characters(text: bytes) -> str:
    """Each byte as its character of GPT-2's table."""
    return _CODE[np.frombuffer(text, np.uint8)].tobytes().decode("utf-16-le")


def from_characters(texts: Iterable[str]) -> list[bytes]:
    """The bytes of strings of `characters`."""
    to_byte = byte_alphabet()
    return [bytes(to_byte[c] for c in text) for text in texts]


def merges_of(definition: str) -> list[tuple[bytes, bytes]]:
    """The merges of a byte-level BPE of the library, in their order."""
    made = json.loads(definition)["model"]["merges"]
    return [tuple(from_characters(pair.split(" ") if isinstance(pair, str) else pair)) for pair in made]
