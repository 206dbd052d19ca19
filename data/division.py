"""Which split each document belongs to: by the hash of its content, by bytes, and equal documents on one side.

A document is held out if its SHA-256 falls below `validation` of all hashes. Documents that differ only in line ends or
in surrounding blanks share the side of the smallest hash among them. This split is used if each side then has between a
quarter of its share of the bytes and four times as many. Else (few documents, or one that is larger than the rest)
documents are held out in the order of their hashes until `validation` of the BYTES is reached. The document in which
that border falls is cut near its end if neither side of it comes within a factor of two.
"""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

NO_SPLIT, TRAIN, VALID = -1, 0, 1
ROLES = {None: NO_SPLIT, "train": TRAIN, "valid": VALID}
_SOUND = 4.0  # factor between bytes held out and bytes asked for, within which the hashes alone decide
_NEAR = 2.0  # the same for a border between two documents that is chosen by bytes
_BOM = b"\xef\xbb\xbf"


@dataclasses.dataclass(frozen=True)
class Sides:
    """The side of each document.

    valid: `[D]` bool, held out.
    dropped: `[D]` bool, in no split.
    cut: `[D]` float, the share at the document's end that is held out although the rest is not (0: it is not cut).
    """

    valid: np.ndarray
    dropped: np.ndarray
    cut: np.ndarray


def content_digest(content: bytes) -> bytes:
    """SHA-256 of a text without surrounding blanks and byte-order mark, and with all line ends alike."""
    return hashlib.sha256(content.removeprefix(_BOM).replace(b"\r\n", b"\n").strip()).digest()


def twins(digests: np.ndarray) -> np.ndarray:
    """`[D]` int64: the same number for documents of equal digest, `[D, 32]` uint8."""
    keys = np.ascontiguousarray(digests).view("V32").ravel()
    return np.unique(keys, return_inverse=True)[1].reshape(-1)


def by_hash(digests: np.ndarray) -> np.ndarray:
    """Indices of the documents in the order of their digests, `[D, 32]` uint8."""
    return np.lexsort(np.ascontiguousarray(digests).view(">u8").T[::-1])


def by_documents(digests: np.ndarray, given: np.ndarray, size: np.ndarray, validation: float) -> Sides:
    """The rule of runs made before the split was by bytes: each document by its own hash, whatever its size.

    Args and result: see `by_bytes`.
    """
    first_word = np.ascontiguousarray(digests).view(">u8")[:, 0]
    valid, cut = first_word < np.uint64(int(validation * 2**64)), np.zeros(len(size))
    if (given != NO_SPLIT).any():
        valid = given == VALID
    elif validation and len(size) > 1:  # by chance all on one side: the one nearest to the border crosses it
        order = by_hash(digests)
        if not valid.any():
            valid[order[0]] = True
        elif valid.all():
            valid[order[-1]] = False
    if validation and len(size) == 1 and size[0] > 1:
        valid, cut = np.zeros(1, bool), np.full(1, validation)
    return Sides(valid, np.zeros(len(size), bool), cut)


def by_bytes(
    digests: np.ndarray,
    given: np.ndarray,
    size: np.ndarray,
    validation: float,
    *,
    twin: np.ndarray,
    cuttable: bool = True,
) -> Sides:
    """The side of each document.

    Args:
      digests: `[D, 32]` uint8, SHA-256 of each document.
      given: `[D]` the split that the source names (`TRAIN`, `VALID`) or `NO_SPLIT`. Where it names held-out documents,
        they are the split, and training documents equal to one of them are dropped.
      size: `[D]` bytes (or symbols) of each document.
      validation: the share to hold out.
      twin: `[D]` the same number for documents that count as equal.
      cuttable: whether a document may be cut in two.
    """
    valid, dropped, cut = np.zeros(len(size), bool), np.zeros(len(size), bool), np.zeros(len(size))
    if (given == VALID).any():
        valid = given == VALID
        return Sides(valid, ~valid & np.isin(twin, twin[valid]), cut)
    if not validation or not len(size):
        return Sides(valid, dropped, cut)
    order = by_hash(digests)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    groups = int(twin.max()) + 1
    leading = np.full(groups, len(order), np.int64)
    np.minimum.at(leading, twin, rank)
    sizes = np.bincount(twin, size, groups)
    in_order = np.argsort(leading)
    first_word = np.ascontiguousarray(digests).view(">u8")[order[leading], 0]
    held = first_word < np.uint64(int(validation * 2**64))
    if groups > 1 and not held.any():
        held[in_order[0]] = True
    elif groups > 1 and held.all():
        held[in_order[-1]] = False
    if _within(sizes[held].sum(), sizes.sum(), validation, _SOUND) or not cuttable:
        return Sides(held[twin], dropped, cut)
    held, border, share = _border(sizes[in_order], validation)
    valid = np.empty(groups, bool)
    valid[in_order] = held
    if share:
        cut[twin == in_order[border]] = share
    return Sides(valid[twin], dropped, cut)


def apart(contents: Sequence[np.ndarray], sides: Sequence[Sides]) -> list[np.ndarray]:
    """What must leave the training split of each of several sources, so that no text is on both sides of all together.

    Args:
      contents: `[D, 32]` uint8 of each source, the digests by which documents count as equal.
      sides: of each source, as if it stood alone.

    Returns:
      `[D]` bool of each source: a document that is learned from there (all or most of it), and that another source
      holds out, or holds out the end of. Of two that cut it in different places, the first one keeps it.
    """
    ends = np.cumsum([len(content) for content in contents])
    ids = np.split(twins(np.concatenate(contents)), ends[:-1])
    found = []
    for k, mine in enumerate(sides):
        out = np.zeros(len(ids[k]), bool)
        for j, other in enumerate(sides):
            if j == k:
                continue
            share = np.zeros(ends[-1])  # by id: how much of the end the other one holds out, 1 for all
            share[ids[j]] = np.where(other.valid, 1.0, other.cut)
            there = share[ids[k]]
            both = (mine.cut > 0) & (there < 1)
            out |= (there > 0) & np.where(both, (there != mine.cut) & (j < k), True)
        found.append(out & ~mine.valid & ~mine.dropped)
    return found


def _within(held: float, total: float, validation: float, factor: float) -> bool:
    """Whether both sides have their share of the bytes, up to a factor."""
    asked = validation * total
    return asked / factor <= held <= asked * factor and (total - held) * factor >= total - asked


def _border(sizes: np.ndarray, validation: float) -> tuple[np.ndarray, int, float]:
    """(held `[D]` bool, where the border falls, the share of that document that is cut off) for documents in order."""
    ends = np.cumsum(sizes)
    total = ends[-1]
    asked = validation * total
    at = int(np.searchsorted(ends, asked))  # the first whose end reaches what was asked
    before = ends[at] - sizes[at]
    nearest = min((0, 1), key=lambda whole: abs(before + whole * sizes[at] - asked))
    held = np.arange(len(sizes)) < at + nearest
    if _within(before + nearest * sizes[at], total, validation, _NEAR):
        return held, at, 0.0
    return np.arange(len(sizes)) < at, at, float((asked - before) / sizes[at])


def cut_place(content: bytes, share: float) -> int:
    """Index at which a text is cut so that about `share` of it follows: after a line if one ends near.

    A text is never cut inside a character.
    """
    place = min(max(1, round(len(content) * (1 - share))), len(content) - 1)
    line = content.rfind(b"\n", place * 9 // 10, place) + 1
    cut = line or place
    while not line and cut > 1 and content[cut] & 0xC0 == 0x80:
        cut -= 1
    return cut
