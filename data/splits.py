"""Types of a corpus: the tokens of a split, mixtures of splits, and the rows that a packing cuts from them."""

import dataclasses
from typing import Any

import numpy as np

from data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Tokens:
    """One split of a corpus: documents `[bos] content [eos]`, one after another.

    tokens: `[n]` uint8, uint16 or uint32, memory-mapped if it comes from a file.
    starts: `[D]` int64, the index at which each document begins (the first at 0).
    num_bytes: bytes of the original content.
    labels: `[D]` int32 or None.
    scored: `[n]` bool, whether a token is a target (not the first of a document), or None where all are.
    kinds: `[n]` uint8, the kind of a token (`data.roles`), or None where it follows from `scored`.
    folder, split: where indices of these tokens may be cached; empty: nowhere.
    """

    tokens: np.ndarray
    starts: np.ndarray
    num_bytes: int
    labels: np.ndarray | None = None
    scored: np.ndarray | None = None
    kinds: np.ndarray | None = None
    folder: str = ""
    split: str = ""

    @property
    def num_targets(self) -> int:
        """Tokens that are predicted once per epoch: all but the first of each document."""
        return len(self.tokens) - len(self.starts) if self.scored is None else int(np.count_nonzero(self.scored))


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
    """The result of `data.load`. `hash` identifies the documents and their splits, whatever the tokenizer.

    `info` (plain JSON): source, files, bytes, tokens, documents, bytes_per_token, tokenizer, vocab_size, hash, splits
    (the counts of each), best_loss (nats per target token, or None where the law of the data is not known), and
    notes: sentences about surprises, such as files left out or a vocabulary that was not filled.
    """

    train: Tokens | Mixture
    valid: Tokens | Mixture
    tokenizer: Tokenizer
    hash: str
    info: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Raw rows, each array `[B, T]`.

    tokens: ids, undefined outside `held`.
    targets: the id that follows, undefined outside `scored`.
    first: bool, a segment begins here.
    held: bool, a token stands here (not padding).
    scored: bool, the token that follows is a target: of the same document, and in a task an answer.
    kinds: uint8, of `data.roles`.
    """

    tokens: np.ndarray
    targets: np.ndarray
    first: np.ndarray
    held: np.ndarray
    scored: np.ndarray
    kinds: np.ndarray
