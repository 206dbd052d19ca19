"""SentencePiece models, by the sentencepiece package."""

import base64
import binascii
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.tokenizer import ByteLevel, as_bytes, utf8_runs


class SentencePieceTokenizer(ByteLevel):
    """A `.model` of SentencePiece; a blank that it puts in front of a text counts as a byte.

    Args:
      model: its bytes in base64.

    Errors: ValueError where it is not one, or the package sentencepiece is not installed.
    """

    add_bos, chat = True, ""

    def __init__(self, model: str):
        try:
            import sentencepiece
        except ImportError:
            raise ValueError("it needs sentencepiece; pip install -r requirements-pretrained.txt") from None
        self._model, self._library = model, sentencepiece.SentencePieceProcessor()
        try:
            self._library.LoadFromSerializedProto(base64.b64decode(model, validate=True))
            count = self._library.GetPieceSize()
        except (RuntimeError, binascii.Error):
            raise ValueError("it is not a model of SentencePiece") from None
        pieces = [self._bytes_of(i) for i in range(count)]
        bos, eos, pad = (getattr(self._library, f"{name}_id")() for name in ("bos", "eos", "pad"))
        if eos < 0 and bos < 0:
            raise ValueError("it has no id that ends a document")
        self.add_bos = bos >= 0
        eos = bos if eos < 0 else eos
        super().__init__("sentencepiece", pieces, (eos if bos < 0 else bos, eos, eos if pad < 0 else pad))
        self.blank_first = b"".join(pieces[i] for i in self._library.encode("a")).startswith(b" ")
        self._single = {piece[0]: i for i, piece in reversed([*enumerate(pieces)]) if len(piece) == 1}

    @classmethod
    def of(cls, data: bytes) -> "SentencePieceTokenizer":
        """From the bytes of a `.model`."""
        return cls(base64.b64encode(data).decode())

    def _state(self) -> dict[str, Any]:
        return {"kind": "sentencepiece", "model": self._model}

    def _bytes_of(self, i: int) -> bytes:
        piece = self._library.IdToPiece(i)
        if self._library.IsByte(i):
            return bytes([int(piece[3:5], 16)])
        hidden = self._library.IsControl(i) or self._library.IsUnknown(i) or self._library.IsUnused(i)
        return b"" if hidden else piece.replace("\u2581", " ").encode()

    def encode(self, text: str | bytes) -> np.ndarray:
        """Ids of `text`, `[n]` int32, without specials."""
        return self.encode_batch([as_bytes(text)])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[np.ndarray]:
        """Ids of each text, `[n]` int32; bytes that are not UTF-8 by themselves where there are pieces of bytes."""
        return [
            np.asarray([i for run in utf8_runs(text) for i in self._ids(run)], np.int32).reshape(-1) for text in texts
        ]

    def _ids(self, run: str | bytes) -> list[int]:
        if isinstance(run, bytes) and all(byte in self._single for byte in run):
            return [self._single[byte] for byte in run]
        return self._library.encode(run if isinstance(run, str) else "\ufffd")

    def decode(self, ids) -> str:
        """The text of `ids`; the blank that `encode` puts in front of a text is taken away."""
        text = super().decode(ids)
        return text[1:] if self.blank_first and text.startswith(" ") else text
