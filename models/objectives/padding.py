"""Padding of answers for models that fill a fixed canvas: end-of-sequence everywhere, or once and then a rainbow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def eos(answer: Sequence[int], length: int, eos: int) -> np.ndarray:
    """The answer, then `eos` up to `length`: int32 [length]. The common scheme, and the cause of early stopping."""
    return _pad(answer, length, eos, [eos])


def rainbow(answer: Sequence[int], length: int, eos: int, pads: Sequence[int]) -> np.ndarray:
    """The answer, one `eos`, then the ids of `pads` in turn: int32 [length].

    With one end token as padding, late positions are nearly certain of it, and confidence decoding reveals them first.
    K distinct pads, in a cycle (7 suffice), spread that certainty (Rainbow Padding). `strip` cuts generated tokens.

    Raises:
      ValueError: an answer without room for its eos, no pads, or pads that repeat or hold the eos.
    """
    pads = [int(p) for p in pads]
    if not pads or len(set(pads)) < len(pads) or eos in pads:
        raise ValueError(f"pads={pads} must be distinct ids other than eos={eos}, for example seven unused ones")
    return _pad(answer, length, eos, pads)


def strip(tokens: Sequence[int], eos: int) -> np.ndarray:
    """The tokens before the first `eos`, all of them if there is none."""
    tokens = np.asarray(tokens)
    ends = np.flatnonzero(tokens == eos)
    return tokens[: ends[0]] if len(ends) else tokens


def _pad(answer: Sequence[int], length: int, eos: int, pads: Sequence[int]) -> np.ndarray:
    answer = np.asarray(answer, np.int32)
    room = length - len(answer) - 1
    if room < 0:
        raise ValueError(
            f"length={length} leaves no room for {len(answer)} tokens and eos; use at least {len(answer) + 1}"
        )
    return np.concatenate([answer, [eos], np.resize(pads, room)]).astype(np.int32)
