"""Where a patch of bytes begins: by entropy (BLT), by blanks, and groups of tokens for HAMburger. Arrays in numpy."""

from collections.abc import Callable, Sequence

import numpy as np


def entropies(logits: np.ndarray) -> np.ndarray:
    """-sum_v p_v log p_v in nats of logits `[..., V]`, `[...]`."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return -np.sum(np.exp(log_p) * log_p, axis=-1)


def entropy_starts(H: np.ndarray, threshold: float, *, rise: float | None = None, rule: str = "global") -> np.ndarray:
    """Whether a patch begins at each byte, `[B, T]`; H `[B, T]` is the entropy of the byte AT t given those before it.

    Rules (Pagnoni et al. 2024, arXiv:2412.09871, section 2.3, and the released code):
      global: H_t > threshold.
      monotonic: H_t - H_{t-1} > threshold.
      both: H_t > threshold and H_t - H_{t-1} > rise, and, as released, t - 1 is not the first byte of the row.

    The first byte always begins a patch. The released code indexes H by the byte BEFORE: there H_t of ours stands at
    t - 1, and its first two bytes begin patches (`released_patch_starts`).
    """
    H = np.asarray(H, np.float64)
    starts = np.ones(H.shape, bool)
    rises = H[:, 1:] - H[:, :-1]
    if rule == "global":
        starts[:, 1:] = H[:, 1:] > threshold
    elif rule == "monotonic":
        starts[:, 1:] = rises > threshold
    elif rule == "both":
        first = np.zeros(rises.shape, bool)
        first[:, :1] = True
        starts[:, 1:] = (rises > (rise or 0.0)) & (H[:, 1:] > threshold) & ~first
    else:
        raise ValueError(f"rule={rule!r} is unknown; use 'global', 'monotonic' or 'both'.")
    return starts


def released_patch_starts(H_next: np.ndarray, threshold: float, rule: str = "global", rise: float = 0.0) -> np.ndarray:
    """Patch starts as the released code finds them, `[B, T + 1]`; H_next `[B, T]` of the byte AFTER each place.

    Bytes 0 and 1 begin patches; place t >= 1 of H_next decides on byte t + 1. The last place decides on the byte after
    the row.
    """
    H = np.asarray(H_next, np.float64)[:, 1:]
    if rule == "global":
        mask = H > threshold
    else:
        mask = entropy_starts(H, threshold, rise=rise, rule=rule)
    return np.concatenate([np.ones((len(H), 2), bool), mask], axis=1)


def space_starts(row: Sequence[int]) -> np.ndarray:
    """Whether a patch begins at each byte, `[T]`: after a byte that is no letter, digit or continuation of UTF-8.

    A run of such bytes ends a patch once, at its first; byte 0 begins one. (Slagle 2024, arXiv:2404.14408; as released
    with BLT, there behind a bos that is a patch of its own.)
    """
    b = np.asarray(row)
    letter = ((b >= 48) & (b <= 57)) | ((b >= 65) & (b <= 90)) | ((b >= 97) & (b <= 122)) | ((b >= 0x80) & (b < 0xC0))
    end = ~letter
    end[1:] &= letter[:-1]
    starts = np.zeros(len(b), bool)
    starts[:1] = True
    starts[1:] = end[:-1]
    return starts


def lengths(starts: np.ndarray) -> np.ndarray:
    """Lengths of the patches of one row of starts `[T]`; they sum to T."""
    at = np.flatnonzero(starts)
    return np.diff([*at, len(starts)])


def token_groups(values: Sequence[float], strategy: str, most: int = 4, threshold: float = 0.0, ratio: float = 0.3):
    """Lengths of groups of tokens, each at most `most`, which sum to len(values); HAMburger's four strategies.

    Args:
      values: entropy in nats of each token given those before it.
      strategy: "sliding" (a token joins where its entropy is below `threshold`), "decreasing" (where it is at most
        `ratio` times the first one's), "decreasing_v2" (either, against the largest of the group), "small_group" (runs
        at or below `threshold`; others stand alone).
      most: tokens of a group.
      threshold, ratio: see above.

    Source: Liu et al. 2025, arXiv:2505.20438, and its released code.
    """
    if strategy not in GROUPS:
        raise ValueError(f"strategy={strategy!r} is unknown; use one of {sorted(GROUPS)}.")
    made: list[list[float]] = []
    for value in values:
        if made and len(made[-1]) < most and GROUPS[strategy](value, made[-1], threshold, ratio):
            made[-1].append(value)
        else:
            made.append([value])
    return [len(group) for group in made]


# Whether a value joins a group: (value, group, threshold, ratio).
GROUPS: dict[str, Callable[[float, list[float], float, float], bool]] = {
    "sliding": lambda value, group, threshold, ratio: value < threshold,
    "decreasing": lambda value, group, threshold, ratio: value <= ratio * group[0],
    "decreasing_v2": lambda value, group, threshold, ratio: value < threshold or value < ratio * max(group),
    "small_group": lambda value, group, threshold, ratio: value <= threshold and group[0] <= threshold,
}
