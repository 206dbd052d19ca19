"""What drafts were worth: tokens of a pass of the model, how far they stayed, and the time that they saved."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Drafted:
    """Of texts that were written together.

    Attributes:
      wrote: `[rows, D]` rounds that wrote 1, 2, ..., D tokens.
      calls: `[rows]` passes of the model that drew.
      seconds: of the rounds that were timed (what compiles is not); 0: none was.
      timed: tokens that those rounds wrote, of all rows.
    """

    wrote: np.ndarray
    calls: np.ndarray
    seconds: float = 0.0
    timed: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that were written."""
        return int((self.wrote * np.arange(1, self.wrote.shape[1] + 1)).sum())

    @property
    def per_call(self) -> float:
        """Tokens of a row for each pass of the model; 0 without a pass."""
        return self.tokens / max(1, int(self.calls.sum()))

    @property
    def per_second(self) -> float:
        """Tokens of all rows together; 0: not timed."""
        return self.timed / self.seconds if self.seconds > 0 else 0.0


def acceptance(wrote: np.ndarray) -> np.ndarray:
    """Share of rounds that went on at each depth, of those that came so far: `[..., D]` -> `[D - 1]`, nan: none came.

    wrote: rounds that wrote 1, ..., D tokens, summed over all but the last axis. A round of n tokens kept n - 1
    drafts. Rounds that the end of a text cut short count as if they had ended by themselves.
    """
    rounds = np.asarray(wrote).reshape(-1, np.shape(wrote)[-1]).sum(axis=0)
    reached = rounds[::-1].cumsum()[::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(reached[:-1] > 0, reached[1:] / reached[:-1], np.nan)


def line(drafted: Drafted, plain: Drafted | None = None) -> str:
    """One line: tokens a call, acceptance by depth, and how much faster than `plain` it was, if both were timed."""
    by_depth = [f"{share:.2f}" for share in acceptance(drafted.wrote) if np.isfinite(share)]
    parts = [
        f"{drafted.tokens} tokens in {int(drafted.calls.sum())} calls of the model, {drafted.per_call:.2f} a call",
        f"drafts that stay by depth {' '.join(by_depth)}" if by_depth else "",
    ]
    if plain is not None and plain.per_second and drafted.per_second:
        parts.append(
            f"{drafted.per_second / plain.per_second:.2f} times plain decoding ({drafted.per_second:.0f} against "
            f"{plain.per_second:.0f} tokens a second)"
        )
    return "; ".join(part for part in parts if part)


def histogram(wrote: np.ndarray) -> list[tuple[int, int]]:
    """(tokens, rounds that wrote so many) for 1..D: wrote `[..., D]`."""
    rounds = np.asarray(wrote).reshape(-1, np.shape(wrote)[-1]).sum(axis=0)
    return [(n, int(count)) for n, count in enumerate(rounds, start=1)]
