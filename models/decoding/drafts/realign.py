"""What batches with left padding must move after a ragged round, counted: EQSPEC and EXSPEC (Zhang et al. 2025).

Here rows have lengths of their own and nothing is moved (`verify.walk.commit_map`); these functions say what
realignment would have cost. A row is `pad` empty slots, then its tokens; the last token has no keys and values yet.
Source: "Batch Speculative Decoding Done Right", arXiv:2510.22876.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Realigned(NamedTuple):
    """pad `[B]`: empty slots in front of each row; source `[B, S - 1]`: old slot of each new slot of the cache, -1 in
    front; moved: slots that changed place."""

    pad: np.ndarray
    source: np.ndarray
    moved: int


def eqspec(length: np.ndarray, pad: np.ndarray, accepted: np.ndarray) -> Realigned:
    """Takes the padding off, appends `accepted` tokens (the drafts that stay and the token behind them), pads anew.

    length, pad, accepted `[B]`: tokens and empty slots before the round. A row keeps length + accepted - 1 slots of its
    cache, from `pad` on; the new cache has max(length + accepted) - 1 slots.
    """
    length, pad, accepted = (np.asarray(array) for array in (length, pad, accepted))
    final = length + accepted
    new = final.max() - final
    slot = np.arange(final.max() - 1)
    source = np.where(slot < new[:, None], -1, slot - new[:, None] + pad[:, None])
    return Realigned(new, source, int(np.sum((source >= 0) & (source != slot))))


def cost(length: np.ndarray, accepted: np.ndarray) -> tuple[int, int]:
    """(slots that changed place, slots that were held) over the rounds `accepted [R, B]` of EQSPEC, in their order.

    length `[B]`: tokens of each row before them, padded to the longest.
    """
    length = np.asarray(length)
    pad, moved, held = length.max() - length, 0, 0
    for one in np.asarray(accepted):
        found = eqspec(length, pad, one)
        length, pad = length + one, found.pad
        moved, held = moved + found.moved, held + int(np.sum(length - 1))
    return moved, held


def same_length(lengths: Sequence[int], cached: Sequence[bool], batch: int) -> tuple[list[int], bool]:
    """EXSPEC's batch from a window of sequences: (their indices, whether nothing must be realigned).

    Up to `batch` sequences of one length, all with a cache or all without: the first such group that fills the batch,
    in
    the order of the window. Where none does, the first `batch` sequences of any length, which must be realigned unless
    they are alike.
    """
    groups: dict[tuple[int, bool], list[int]] = {}
    for i, key in enumerate(zip(lengths, cached, strict=True)):
        groups.setdefault(key, []).append(i)
        if len(groups[key]) == batch:
            return groups[key], True
    first = list(range(min(batch, len(lengths))))
    return first, len({(lengths[i], cached[i]) for i in first}) <= 1
