"""Words of bytes: where they end, their pools, and the probability of a text under a hierarchical model.

HAT: Neitemeier et al. 2025, arXiv:2501.10322. Learn Your Tokens: Thawani et al. 2023, arXiv:2310.11628.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

_KINDS = np.full(256, 2)  # 0 blank, 1 letter, digit or byte of UTF-8 beyond ASCII, 2 other
_KINDS[[9, 10, 11, 12, 13, 32]] = 0
_KINDS[[*range(48, 58), *range(65, 91), *range(97, 123), *range(128, 256)]] = 1


def word_starts(row: jax.Array) -> jax.Array:
    """Whether a word begins at each byte `[..., T]`: decided by this byte and the one before, so it can be streamed.

    A word is one blank, if any, with the letters and digits behind it, or the punctuation behind it; further blanks are
    words of their own. The words join to the text. Ids of 256 and above (specials) are words of their own.
    """
    kinds = jnp.concatenate([jnp.asarray(_KINDS), jnp.full((1,), 3)])
    kind = kinds[jnp.minimum(row, 256)]
    before = kind[..., :-1]
    now = kind[..., 1:]
    joined = (now == before) & (now != 0) & (now != 3) | (before == 0) & ((now == 1) | (now == 2))
    return jnp.concatenate([jnp.ones(kind[..., :1].shape, bool), ~joined], axis=-1)


def split(text: bytes) -> list[bytes]:
    """The words of `text` by `word_starts`; they join to it."""
    if not text:
        return []
    starts = np.flatnonzero(np.asarray(word_starts(jnp.asarray(np.frombuffer(text, np.uint8).astype(np.int32)))))
    return [text[a:b] for a, b in itertools.pairwise([*starts.tolist(), len(text)])]


def pool_mean(hidden: jax.Array, word: jax.Array, words: int) -> jax.Array:
    """Mean of `hidden [B, T, D]` over each word, `[B, W, D]`; zero where a word has no byte.

    Args:
      word: `[B, T]` number of the word of each byte.
      words: W; bytes of words beyond it are left out.
    """
    member = (word[..., None] == jnp.arange(words)).astype(hidden.dtype)
    total = jnp.einsum("btd,btw->bwd", hidden, member)
    return total / jnp.maximum(jnp.sum(member, axis=1), 1)[..., None]


def pool_last(hidden: jax.Array, word: jax.Array, words: int) -> jax.Array:
    """The vector of each word's last byte, `[B, W, D]`: what a causal encoder of words knows of one; zero for none."""
    at = jnp.arange(hidden.shape[1])
    member = word[..., None] == jnp.arange(words)
    last = jnp.max(jnp.where(member, at[:, None], -1), axis=1)
    found = jnp.take_along_axis(hidden, jnp.maximum(last, 0)[..., None], axis=1)
    return jnp.where((last >= 0)[..., None], found, 0)


def word_log_probability(rows: np.ndarray, word: Sequence[int], end: int) -> float:
    """sum over a word's bytes of log p(byte), and log p(end mark); rows `[len(word) + 1, V]` log-probabilities."""
    return float(sum(rows[k][b] for k, b in enumerate((*word, end))))


def text_log_probability(words: Sequence[Sequence[int]], row: Callable[[tuple, tuple], np.ndarray], end: int) -> float:
    """Log-likelihood of a text under a model of words: the sum over words of `word_log_probability`.

    Args:
      words: the text's words.
      row: (words before, bytes of this word so far) -> log-probabilities `[V]` of the next byte or end mark.
      end: id of the end mark.
    """
    total, before = 0.0, ()
    for word in words:
        rows = np.stack([row(before, tuple(word[:k])) for k in range(len(word) + 1)])
        total += word_log_probability(rows, word, end)
        before = (*before, tuple(word))
    return total


def total_mass(
    row: Callable[[tuple, tuple], np.ndarray], alphabet: Sequence[int], end: int, most: int
) -> tuple[float, float]:
    """(mass of all texts of words with at most `most` symbols, end marks counted; mass of all longer beginnings).

    The text ends with an empty word: its end mark comes first. Both sum to 1 where each row does.
    """
    whole, tail = 0.0, 0.0
    stack: list[tuple[tuple, tuple, float, int]] = [((), (), 0.0, 0)]
    while stack:
        before, word, log_p, used = stack.pop()
        if used == most:
            tail += float(np.exp(log_p))
            continue
        log_row = row(before, word)
        for symbol in alphabet:
            stack.append((before, (*word, symbol), log_p + float(log_row[symbol]), used + 1))
        ended = log_p + float(log_row[end])
        if word:
            stack.append(((*before, word), (), ended, used + 1))
        else:
            whole += float(np.exp(ended))
    return whole, tail
