"""Texts with sets, whose members share positions and do not see one another (Set-Based Prompting), and roles.

Set-Based Prompting (McIlroy-Young et al. 2024, arXiv:2406.06581): the members of a set begin at one position and are
masked from one another; what follows sees all of them and begins behind the longest. The text then does not depend on
the order of the members. Instructional segment embedding (Wu et al. 2024, arXiv:2410.09102) adds an embedding of a
token's role to the token's own.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels import masks

Array = jax.Array
SYSTEM, USER, DATA, OUTPUT = range(4)  # Roles of segments, the more trusted first.
Part = Sequence[int] | Sequence[Sequence[int]]


class Layout(NamedTuple):
    """tokens, positions, set_, member `[T]`, mask `[T, T]` (row sees column); next: the position behind the text.

    set_ numbers the sets from 0, member the members of a set from 0; both are -1 in plain text.
    """

    tokens: np.ndarray
    positions: np.ndarray
    set_: np.ndarray
    member: np.ndarray
    mask: np.ndarray
    next: int


def layout(parts: Sequence[Part], pad: int | None = None) -> Layout:
    """A text of parts: a list of tokens, or a set, which is a list of lists of tokens.

    Args:
      parts: in order.
      pad: as released with `pad_attention`: members are filled to the longest with this token, which nobody sees.
    """
    tokens, positions, sets, member, seen = [], [], [], [], []
    start, which = 0, -1
    for part in parts:
        a_set = len(part) > 0 and not np.isscalar(part[0])
        which += a_set
        longest = max(len(one) for one in part) if a_set else len(part)
        for i, one in enumerate(part if a_set else [part]):
            filled = [pad] * (longest - len(one)) if pad is not None else []
            many = len(one) + len(filled)
            tokens += [*one, *filled]
            seen += [True] * len(one) + [False] * len(filled)
            positions += range(start, start + many)
            sets += [which if a_set else -1] * many
            member += [i if a_set else -1] * many
        start += longest
    sets, member = np.array(sets, int), np.array(member, int)
    mask = visible(sets, member) & np.array(seen, bool)[None]
    return Layout(np.array(tokens, int), np.array(positions, int), sets, member, mask, start)


def visible(set_: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Which token (row) sees which (column), `[T, T]`: those before it and itself, less its set's other members."""
    T = len(set_)
    same_set = (set_[:, None] == set_[None]) & (set_[:, None] >= 0)
    other = same_set & (member[:, None] != member[None])
    return np.tril(np.ones((T, T), bool)) & ~other


def among(set_: Array, member: Array, T: int) -> Array:
    """Which of the first T tokens (columns) each of them (row) may see as far as sets decide it, `[B, T, T]` bool.

    set_, member: `[B, R]`, numbers from 1, 0 in plain text.
    """
    set_, member = set_[:, :T], member[:, :T]
    same_set = (set_[:, :, None] == set_[:, None]) & (set_[:, :, None] > 0)
    return ~(same_set & (member[:, :, None] != member[:, None]))


def mask_of(set_: np.ndarray, member: np.ndarray) -> masks.Mask:
    """`visible` in the house's mask algebra, for a pass of the model: causal, and not in one set, or in one member."""
    ours = np.where(set_ >= 0, set_ * (np.max(member, initial=0) + 1) + member + 1, 0)
    return masks.Causal() & (~masks.Segments(jnp.asarray(set_ + 1)) | masks.Segments(jnp.asarray(ours)))


def ordered(parts: Sequence[Part]) -> list[Part]:
    """The parts with the members of each set in the order of their tokens.

    With it the numbers of a model do not depend on the members' order in the last bit either: a mask alone leaves the
    order of its sums.
    """
    a_set = lambda part: len(part) > 0 and not np.isscalar(part[0])  # noqa: E731
    return [sorted(map(list, part)) if a_set(part) else part for part in parts]


def roles(lengths: Sequence[int], which: Sequence[int]) -> np.ndarray:
    """The role of each token `[T]`: segments of so many tokens with these roles."""
    return np.repeat(np.asarray(which), np.asarray(lengths))


def add_roles(embedded: Array, table: Array, role: Array) -> Array:
    """embedded + table[role]: `[..., T, D]`, table `[R, D]`, role `[..., T]`; a table of zeros changes nothing."""
    return embedded + jnp.asarray(table)[role]
