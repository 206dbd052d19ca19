"""Beginnings that prompts share, and how a prompt is cut into pieces of few sizes."""

from collections import Counter
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.stream import Progress

BLOCK = 32  # Beginnings are cut to so many tokens, so that what agrees by chance does not tell them apart.
SMALLEST = 8  # The smallest piece; rests are padded to it.


def pieces(count: int, chunk: int) -> Iterator[tuple[int, int]]:
    """Cuts `count` tokens into pieces, (tokens, size with padding); sizes are `chunk` and powers of two below it.

    A rest is padded to the next size where that is at most a third more; else half of it is read first.
    """
    while count >= chunk:
        yield chunk, chunk
        count -= chunk
    while count > 0:
        size = SMALLEST
        while size < count:
            size *= 2
        if size > SMALLEST and 3 * size > 4 * count:
            size //= 2
        yield min(count, size), size
        count -= min(count, size)


def row_size(count: int) -> int:
    """Tokens of a row that holds `count` of them, with padding: `SMALLEST` 2^i or 3/2 of that."""
    size = SMALLEST
    while size < count:
        size = size // 2 * 3 if size & (size - 1) == 0 else size // 3 * 4
    return size


def padded(count: int) -> int:
    """Where the last piece of `count` tokens may end, with its padding, however they are cut."""
    return count + max(SMALLEST, -(-count // 3))


def shared(prompts: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """The longest beginning of each prompt that another one has, too, in whole blocks.

    The last token of a prompt is never in it: a row's first round reads that one.
    """
    order = sorted(range(len(prompts)), key=lambda i: prompts[i].tolist())
    longest = dict.fromkeys(order, 0)
    for a, b in zip(order, order[1:], strict=False):
        n = min(len(prompts[a]), len(prompts[b]))
        differ = np.flatnonzero(prompts[a][:n] != prompts[b][:n])
        same = int(differ[0]) if len(differ) else n
        longest[a], longest[b] = max(longest[a], same), max(longest[b], same)
    cut = lambda i: min(longest[i], len(prompts[i]) - 1) // BLOCK * BLOCK  # noqa: E731
    return [tuple(prompts[i][: cut(i)].tolist()) for i in range(len(prompts))]


class Prefixes:
    """States after shared beginnings, each kept for as long as requests are expected that begin so; `most` of them."""

    def __init__(self, most: int):
        self.most = most
        self.expected: Counter[tuple[int, ...]] = Counter()
        self.states: dict[tuple[int, ...], Progress] = {}
        self.copied = 0  # tokens that were not read again

    def expect(self, prefix: tuple[int, ...]) -> None:
        """One more request will begin so."""
        if prefix:
            self.expected[prefix] += 1

    def take(self, prefix: tuple[int, ...]) -> Progress | None:
        """The state after `prefix`, for one of the requests that were expected; None: it is not there yet."""
        if not prefix:
            return None
        self.expected[prefix] -= 1
        found = self.states.get(prefix)
        self.copied += len(prefix) if found is not None else 0
        if self.expected[prefix] <= 0:
            self.states.pop(prefix, None)
            del self.expected[prefix]
        return found

    def keep(self, prefix: tuple[int, ...], state: Progress) -> None:
        """Keeps a state that others will begin with."""
        if self.expected[prefix] > 0 and prefix not in self.states and len(self.states) < self.most:
            self.states[prefix] = jax.tree.map(jnp.copy, state)  # The row's own is given away when it reads on.
