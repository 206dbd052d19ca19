"""LZW dictionaries (Ziv and Lempel 1978, Welch 1984), frozen after training, and greedy encoding by a dictionary."""

from collections.abc import Iterable


def train(texts: Iterable[bytes], size: int, alphabet: Iterable[bytes] | None = None) -> list[bytes]:
    """At most `size` pieces: the alphabet (None: all 256 bytes), then w + c for each longest known w read before c.

    Every prefix of a piece is a piece. A text ends its last phrase.

    Errors: ValueError where `size` has no room for the alphabet.
    """
    pieces = list(alphabet) if alphabet is not None else [bytes([b]) for b in range(256)]
    if size < len(pieces):
        raise ValueError(f"size={size} has no room for the alphabet; use at least {len(pieces)}, such as 4096.")
    known = set(pieces)
    for text in texts:
        phrase = b""
        for k in range(len(text)):
            if len(pieces) >= size:
                return pieces
            longer = phrase + text[k : k + 1]
            if longer in known:
                phrase = longer
                continue
            pieces.append(longer)
            known.add(longer)
            phrase = text[k : k + 1]
    return pieces


def greedy(text: bytes, pieces: dict[bytes, int], longest: int) -> list[int]:
    """Ids of `text`, from left to right the longest piece each time.

    Args:
      pieces: id of each piece; single bytes must be among them.
      longest: bytes of the longest piece.
    """
    ids, at = [], 0
    while at < len(text):
        end = min(len(text), at + longest)
        while (piece := text[at:end]) not in pieces:
            end -= 1
        ids.append(pieces[piece])
        at = end
    return ids
