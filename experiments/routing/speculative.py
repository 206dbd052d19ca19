"""Speculative shuffling: tokens are moved to the device that they will probably need, before the router has spoken.

A wrong guess costs the exchange that it would have cost anyway: the result never changes. Source: Speculative MoE
(Li et al. 2025, arXiv:2503.04398); its tables are rebuilt here from the description, no code of it is public.
"""

import dataclasses
from typing import Any

import numpy as np

from experiments.routing import traces


@dataclasses.dataclass(frozen=True)
class Tables:
    """Guesses of the device that a token goes to, and how sure they are (shares of what was seen; 0 = never seen).

    By the token's id, `[L, V]`; by its experts in the two layers before, `[L, E, E]` (layers 0 and 1: 0).
    """

    by_token: np.ndarray
    token_share: np.ndarray
    by_pair: np.ndarray
    pair_share: np.ndarray

    def guess(self, layer: int, tokens: Any, before: Any | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(device, confidence) for `tokens [T]` with the experts of the two layers before, `before [T, 2]`.

        The more confident table wins; the token's own where both are as sure.
        """
        tokens = np.asarray(tokens)
        device, share = self.by_token[layer, tokens], self.token_share[layer, tokens]
        if before is None or layer < 2:
            return device, share
        a, b = np.asarray(before).T
        other, sure = self.by_pair[layer, a, b], self.pair_share[layer, a, b]
        return np.where(sure > share, other, device), np.maximum(sure, share)


def tables(trace: Any, tokens: Any, placement: Any, vocabulary: int) -> Tables:
    """Tables from a trace `[N, L]` (or its first choices of `[N, L, K]`) of tokens `[N]` under a placement `[L, E]`."""
    placement, tokens = np.asarray(placement), np.asarray(tokens)
    L, E = placement.shape
    first, G = traces.checked(trace, E)[:, :, 0], int(placement.max()) + 1
    by_token, by_pair = np.zeros((L, vocabulary, G)), np.zeros((L, E, E, G))
    for layer in range(L):
        to = placement[layer][first[:, layer]]
        np.add.at(by_token[layer], (tokens, to), 1)
        if layer >= 2:
            np.add.at(by_pair[layer], (first[:, layer - 2], first[:, layer - 1], to), 1)
    share = lambda counted: counted.max(-1) / np.maximum(counted.sum(-1), 1)  # noqa: E731
    return Tables(by_token.argmax(-1), share(by_token), by_pair.argmax(-1), share(by_pair))


def shuffle(guess: Any, home: Any, sure: Any, devices: int, least: float = 0.0) -> np.ndarray:
    """Where each token stands after the shuffle, `[T]`: its guess, as far as every device keeps as many as it had.

    Tokens with the surest guesses are moved first, those below `least` stay where there is room. The counts of the
    devices do not change, so that arrays keep their shapes.
    """
    guess, home, sure = (np.asarray(x) for x in (guess, home, sure))
    room = np.bincount(home, minlength=devices)
    at = np.full(len(home), -1)
    for t in np.argsort(-sure, kind="stable"):
        if sure[t] > least and room[guess[t]]:
            at[t] = guess[t]
            room[guess[t]] -= 1
    for t in np.flatnonzero(at < 0):  # At home where there is room, else on the first device that has some.
        at[t] = home[t] if room[home[t]] else int(np.flatnonzero(room)[0])
        room[at[t]] -= 1
    return at


def remaining(at: Any, index: Any, placement: Any) -> int:
    """Token copies that the exchange of a layer still has to send: `at [T]`, `index [T, K]`, `placement [E]`."""
    at, index = np.asarray(at), np.asarray(index)
    return int(np.sum((np.asarray(placement)[np.maximum(index, 0)] != at[:, None]) & (index >= 0)))
