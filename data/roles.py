"""Who a token comes from: kinds of segments, from the most trusted to what is written, and the roles of a model.

Instructional Segment Embedding (Wu et al. 2024, arXiv:2410.09102) tells system, user, data and output apart. A model of
`model.roles` = N of them merges the first kinds: r(k) = max(k + N - 4, 0), so that 3 are instructions, data and output,
and 2 are what is given and what is written.
"""

from collections.abc import Sequence

import numpy as np

KINDS = ("system", "user", "data", "output")
SYSTEM, USER, DATA, OUTPUT = range(len(KINDS))
_OF_MESSAGE = {"system": SYSTEM, "developer": SYSTEM, "user": USER, "assistant": OUTPUT}


def of_message(role: str) -> int:
    """The kind of a message; a tool's, and any that is not known, is data: the least trusted of what is given."""
    return _OF_MESSAGE.get(role, DATA)


def role(kind: np.ndarray, count: int) -> np.ndarray:
    """r(k) = max(k + N - 4, 0) of kinds `[...]`, N = `count` in 2..4: int32."""
    return np.maximum(np.asarray(kind, np.int32) + (count - len(KINDS)), 0)


def of_tokens(first: np.ndarray, segments: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Kinds `[n]` uint8 of tokens that begin at `first [n]`: of the last segment (begin, end, kind) that begins there
    or before; segments lie in their order and cover the text. Without any: a user's."""
    if not segments:
        return np.full(len(first), USER, np.uint8)
    begins = np.asarray([begin for begin, _, _ in segments])
    kinds = np.asarray([kind for _, _, kind in segments], np.uint8)
    return kinds[np.maximum(np.searchsorted(begins, first, "right") - 1, 0)]
