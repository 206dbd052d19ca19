"""Documents to rows of T tokens, nothing dropped: which tokens stand in a row, and where its segments begin.

`stream`: row i is the window [i*T, i*T + T) of the documents laid end to end; nothing is precomputed.
`first_fit`: a document that fits is placed whole in the first row with room. A longer one is cut into rows of T and a
rest, which is placed like a short document. The index of pieces is computed once and cached beside the tokens.
`alone`: a document begins a row, and no row has a part of two; the rest of its last row is padding.

All give, for any set of rows at once, a `Rows` of `[B, T]` arrays; `finish` makes a batch of it. In all every token
but the first of each document is a target exactly once per epoch.
"""

import contextlib
import dataclasses
import functools
import pathlib

import numpy as np

from data import disk, roles
from data.splits import Rows, Tokens

_PIECE_FIELDS = ("begin", "size", "ends", "row_first")


@dataclasses.dataclass(frozen=True)
class Stream:
    """The default packing of `tokens` into rows of `length`."""

    tokens: Tokens
    length: int

    @property
    def num_rows(self) -> int:
        return -(-len(self.tokens.tokens) // self.length)

    def rows(self, index: np.ndarray) -> Rows:
        """The rows `index` `[B]`; a negative index is a row of padding."""
        flat, starts, length = self.tokens.tokens, self.tokens.starts, self.length
        base = np.asarray(index, np.int64) * length
        place = base[:, None] + np.arange(length + 1)
        window = np.take(flat, place, mode="clip")
        low, high = np.searchsorted(starts, base), np.searchsorted(starts, base + length, "right")
        begins = np.zeros(place.shape, bool)
        which, offset = _ragged(high - low)
        begins[which, starts[low[which] + offset] - base[which]] = True
        held = (place >= 0) & (place < len(flat))
        target = held[:, 1:] & held[:, :-1] & ~begins[:, 1:] & _scored(self.tokens, place[:, 1:])
        begins[:, 0] = True
        kinds = _kinds(self.tokens, place[:, :-1])
        return Rows(window[:, :-1], window[:, 1:], begins[:, :-1], held[:, :-1], target, kinds)


@dataclasses.dataclass(frozen=True)
class Alone:
    """One document, or a piece of one, in each row of `length`, in the order of the documents."""

    tokens: Tokens
    length: int

    @functools.cached_property
    def first_row(self) -> np.ndarray:
        """`[D + 1]`: the rows of document d are first_row[d]:first_row[d + 1]."""
        sizes = np.diff(self.tokens.starts, append=len(self.tokens.tokens))
        return np.concatenate([[0], np.cumsum(-(-sizes // self.length))])

    @property
    def num_rows(self) -> int:
        return int(self.first_row[-1])

    def rows(self, index: np.ndarray) -> Rows:
        """The rows `index` `[B]`; a negative index is a row of padding."""
        index, flat, starts = np.asarray(index, np.int64), self.tokens.tokens, self.tokens.starts
        document = np.maximum(np.searchsorted(self.first_row, index, "right") - 1, 0)
        end = np.append(starts[1:], len(flat))[document]
        begin = starts[document] + (index - self.first_row[document]) * self.length
        place = np.where(index >= 0, begin, end)[:, None] + np.arange(self.length + 1)
        held = place < end[:, None]
        window = np.take(flat, place, mode="clip")
        first = np.zeros((len(index), self.length), bool)
        first[:, 0] = True
        kinds = _kinds(self.tokens, place[:, :-1])
        return Rows(window[:, :-1], window[:, 1:], first, held[:, :-1], held[:, 1:], kinds)


@dataclasses.dataclass(frozen=True)
class FirstFit:
    """Whole documents in rows of `length`. Row r holds the pieces row_first[r]:row_first[r+1] from left to right.

    A piece is `size` tokens from `begin` on; `ends` says whether it is the end of its document.
    """

    tokens: Tokens
    length: int
    begin: np.ndarray
    size: np.ndarray
    ends: np.ndarray
    row_first: np.ndarray

    @property
    def num_rows(self) -> int:
        return len(self.row_first) - 1

    def rows(self, index: np.ndarray) -> Rows:
        """The rows `index` `[B]`; a negative index is a row of padding."""
        flat, index = self.tokens.tokens, np.asarray(index, np.int64)
        shape = (len(index), self.length)
        real = np.maximum(index, 0)
        which, offset = _ragged(np.where(index < 0, 0, self.row_first[real + 1] - self.row_first[real]))
        piece = self.row_first[real][which] + offset
        size, begin = self.size[piece], self.begin[piece]
        total = np.cumsum(size)
        # Start of each piece in its row: tokens before it in the batch, less tokens before the row.
        before_row = np.concatenate([[0], total])[np.searchsorted(which, np.arange(len(index)))]
        column = total - size - before_row[which]
        of, step = _ragged(size)
        cell = (which * self.length + column)[of] + step
        place = np.full(shape, -1, np.int64)
        place.ravel()[cell] = begin[of] + step
        held = place >= 0
        first = np.zeros(shape, bool)
        first[which, column] = True
        target = held.copy()
        ends = self.ends[piece]
        target[which[ends], (column + size - 1)[ends]] = False
        target &= _scored(self.tokens, place + 1)
        window = np.take(flat, place, mode="clip"), np.take(flat, place + 1, mode="clip")
        return Rows(*window, first, held, target, _kinds(self.tokens, place))


def _scored(tokens: Tokens, place: np.ndarray) -> np.ndarray | bool:
    """Whether the tokens at these places are targets, as far as the corpus says; places outside of it are any."""
    return True if tokens.scored is None else np.take(tokens.scored, place, mode="clip")


def _kinds(tokens: Tokens, place: np.ndarray) -> np.ndarray:
    """The kinds (`data.roles`) of the tokens at these places, uint8; places outside of the corpus are any."""
    if tokens.kinds is not None:
        return np.take(tokens.kinds, place, mode="clip")
    return np.where(_scored(tokens, place), roles.OUTPUT, roles.USER) * np.ones(place.shape, np.uint8)


def first_fit(tokens: Tokens, length: int) -> FirstFit:
    """The first-fit packing of `tokens`, read from the cache beside them or computed and kept there."""
    path = pathlib.Path(tokens.folder) / f"{tokens.split}.first_fit.{length}.npz" if tokens.folder else None
    kept = _kept(path, tokens, length) if path is not None else None
    if kept is not None:
        return FirstFit(tokens, length, **kept)
    made = _pieces(tokens, length)
    if path is not None:
        with contextlib.suppress(OSError), disk.whole(path) as file:  # a cache that cannot be written only costs time
            np.savez(file, **made)
    return FirstFit(tokens, length, **made)


def _kept(path: pathlib.Path, tokens: Tokens, length: int) -> dict[str, np.ndarray] | None:
    """The pieces that an earlier run cached at `path`; None if there are none, or if they are of other tokens."""
    try:
        with np.load(path) as file:  # a zip file: every array is checked against its CRC-32
            kept = {name: file[name] for name in _PIECE_FIELDS}
    except Exception:  # what a damaged zip file raises is not one class: also NotImplementedError and RuntimeError
        return None
    begin, size, ends, row_first = kept.values()
    whole = all(a.ndim == 1 for a in kept.values()) and len(begin) == len(size) == len(ends) and len(row_first) > 0
    if not whole or any(a.dtype != t for a, t in zip(kept.values(), (np.int64, np.int64, bool, np.int64), strict=True)):
        return None
    in_order = np.argsort(begin)
    joined = np.concatenate([begin[in_order], [len(tokens.tokens)]])
    every_token_once = joined[0] == 0 and np.array_equal(joined[1:] - joined[:-1], size[in_order])
    rows = row_first[0] == 0 and row_first[-1] == len(begin) and (row_first[1:] > row_first[:-1]).all()
    last = np.isin(begin + size, np.append(tokens.starts[1:], len(tokens.tokens)))
    if (
        not every_token_once
        or not rows
        or not np.array_equal(last, ends)
        or np.add.reduceat(size, row_first[:-1]).max() > length
    ):
        return None
    return kept


def _pieces(tokens: Tokens, length: int) -> dict[str, np.ndarray]:
    """Every piece, by row: rests and short documents by first fit, then the full rows of long documents."""
    sizes = np.diff(tokens.starts, append=len(tokens.tokens))
    full, rest = np.divmod(sizes, length)
    which, chunk = _ragged(full)
    short = np.flatnonzero(rest)
    placed = _place(rest[short].tolist(), length)
    opened = int(placed.max(initial=-1)) + 1
    begin = np.concatenate([tokens.starts[short] + full[short] * length, tokens.starts[which] + chunk * length])
    size = np.concatenate([rest[short], np.full(len(which), length, np.int64)])
    ends = np.concatenate([np.ones(len(short), bool), (chunk + 1 == full[which]) & (rest[which] == 0)])
    row = np.concatenate([placed, opened + np.arange(len(which))])
    by_row = np.argsort(row, kind="stable")
    row_first = np.searchsorted(row[by_row], np.arange(opened + len(which) + 1))
    return {"begin": begin[by_row], "size": size[by_row], "ends": ends[by_row], "row_first": row_first}


def _place(sizes: list[int], length: int) -> np.ndarray:
    """For each size in turn, the first row that has room for it: a tournament tree over the room left in each row.

    First fit leaves at most one row half empty or more, so 2 * total / `length` rows are enough.
    """
    rows = 1 << min(len(sizes), 2 * sum(sizes) // length + 2).bit_length()
    room = [length] * (2 * rows)
    placed = np.empty(len(sizes), np.int64)
    for k, size in enumerate(sizes):
        node = 1
        while node < rows:
            node *= 2
            if room[node] < size:
                node += 1
        placed[k] = node - rows
        room[node] -= size
        while node > 1:
            node //= 2
            most = max(room[2 * node], room[2 * node + 1])
            if room[node] == most:
                break
            room[node] = most
    return placed


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(owner, offset) of each of `counts[k]` items of every k: [2, 1] gives [0, 0, 1] and [0, 1, 0]."""
    owner = np.repeat(np.arange(len(counts)), counts)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)


def finish(rows: Rows, *, pad: int, isolate: bool, kinds: bool = False) -> dict[str, np.ndarray]:
    """The batch of raw rows: see `data.loader.Loader.batch`."""
    batch, length = rows.tokens.shape
    column = np.arange(length, dtype=np.int32)
    if isolate:
        positions = column - np.maximum.accumulate(np.where(rows.first, column, 0), axis=1)
        segments = np.cumsum(rows.first, axis=1, dtype=np.int32)
    else:
        positions = np.tile(column, (batch, 1))
        segments = np.ones((batch, length), np.int32)
    tokens = rows.tokens.astype(np.int32)
    if not rows.held.all():
        tokens[~rows.held] = pad
        segments[~rows.held] = 0
        positions[~rows.held] = 0
    targets = rows.targets.astype(np.int32)
    targets[~rows.scored] = pad
    return {
        "tokens": tokens,
        "targets": targets,
        "positions": positions,
        "segment_ids": segments,
        "scored": rows.scored,
        **({"kinds": rows.kinds} if kinds else {}),
    }
