"""Prepacking: several prompts in one row, each apart from the others (Zhao et al. 2024, arXiv:2404.09529).

Rules are those of siyan-zhao/prepacking: of each prompt all tokens but the last are read in packed rows, and the last
is the first token of decoding. Lengths count whole prompts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


def bins(lengths: Sequence[int], capacity: int | None = None, *, fullest: bool = True) -> list[list[int]]:
    """Prompts by row: the longest first, each into the fullest row that has room, else into a new one.

    lengths: `[n]`; capacity: of a row, None: the longest. fullest=False: the emptiest row with room, as binpacking from
    version 2 does (the released code asks for 1.5.2). Equal ones: the first.
    """
    capacity = max(lengths, default=0) if capacity is None else capacity
    rows, used = [], []
    for prompt in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        room = [row for row in range(len(rows)) if used[row] + lengths[prompt] <= capacity]
        if room:
            row = (max if fullest else min)(room, key=used.__getitem__)
        else:
            row = len(rows)
            rows.append([])
            used.append(0)
        rows[row].append(prompt)
        used[row] += lengths[prompt]
    return rows


class Packed(NamedTuple):
    """tokens, positions `[R, T]`; mask `[R, T, T]` bool, query by key; row, start, end `[n]`: where each prompt is."""

    tokens: np.ndarray
    positions: np.ndarray
    mask: np.ndarray
    row: np.ndarray
    start: np.ndarray
    end: np.ndarray


def pack(
    prompts: Sequence[Sequence[int]], rows: Sequence[Sequence[int]], pad: int = 0, *, last: bool = False
) -> Packed:
    """Rows of prompts without their last tokens, positions from 0 in each, mask lower triangles along the diagonal.

    Rows are padded at their ends: tokens with `pad`, positions with 1, the mask with False. last=True: with their last
    tokens, for a use without decoding.
    """
    cut = 0 if last else 1
    sizes = [len(prompt) - cut for prompt in prompts]
    T = max((sum(sizes[i] for i in row) for row in rows), default=0)
    tokens, positions = np.full((len(rows), T), pad, np.int64), np.ones((len(rows), T), np.int64)
    mask = np.zeros((len(rows), T, T), bool)
    place, start = np.zeros(len(prompts), np.int64), np.zeros(len(prompts), np.int64)
    for r, row in enumerate(rows):
        at = 0
        for i in row:
            span = slice(at, at + sizes[i])
            tokens[r, span] = prompts[i][: sizes[i]]
            positions[r, span] = np.arange(sizes[i])
            mask[r, span, span] = np.tri(sizes[i], dtype=bool)
            place[i], start[i], at = r, at, at + sizes[i]
    return Packed(tokens, positions, mask, place, start, start + np.asarray(sizes, np.int64))


def side_by_side(
    prompts: Sequence[Sequence[int]], size: int, pad: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One row of whole prompts as an engine reads it: (tokens, positions, segments), `[1, size]` each.

    Positions begin at 0 in each prompt, segments are 1, 2, ...; behind the prompts they are -1 and 0.
    """
    tokens, positions = np.full((1, size), pad, np.int32), np.full((1, size), -1, np.int32)
    segments, at = np.zeros((1, size), np.int32), 0
    for number, prompt in enumerate(prompts, start=1):
        span = slice(at, at + len(prompt))
        tokens[0, span], positions[0, span], segments[0, span] = prompt, np.arange(len(prompt)), number
        at += len(prompt)
    return tokens, positions, segments


def cut_apart(cache: np.ndarray, packed: Packed, *, left: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Keys or values of packed rows `[R, T, ...]` -> those of each prompt `[n, max length, ...]`, and where they are.

    Zeros fill them up in front (left=True, as released) or behind. The second is bool `[n, max length]`.
    """
    sizes = packed.end - packed.start
    n, T = len(sizes), int(sizes.max(initial=0))
    out, there = np.zeros((n, T, *cache.shape[2:]), cache.dtype), np.zeros((n, T), bool)
    for i in range(n):
        span = slice(T - sizes[i], T) if left else slice(0, sizes[i])
        out[i, span] = cache[packed.row[i], packed.start[i] : packed.end[i]]
        there[i, span] = True
    return out, there


def padded_tokens(lengths: Sequence[int]) -> int:
    """n max(length): tokens of a batch that is padded to its longest prompt."""
    return len(lengths) * max(lengths, default=0)


def packed_tokens(lengths: Sequence[int], rows: Sequence[Sequence[int]]) -> int:
    """rows x longest row: tokens of the packed batch, with each prompt's last token left out."""
    return len(rows) * max((sum(lengths[i] - 1 for i in row) for row in rows), default=0)
