"""HAMburger: several tokens in one step of the model (Liu et al. 2025, arXiv:2505.20438). Plain functions of arrays."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

Linear = tuple[jax.Array, jax.Array]  # (kernel [in, out], bias [out])


def merge(embedded: jax.Array, position: jax.Array, query: Linear, key: Linear, value: Linear, out: Linear, heads: int):
    """One vector of up to S tokens, `[D]`: mean + out(attention of the mean over the tokens); one token stays as it is.

    Args:
      embedded: `[s, D]`, s >= 1 tokens.
      position: `[S, D / 2]` learned vector of each place; joined to the tokens for keys and values.
      query: of the mean, `[D, D]`. key, value: `[D + D / 2, D]`. out: `[D, D]`.
      heads: N; logits are divided by sqrt(D / N).
    """
    s, D = embedded.shape
    if s == 1:
        return embedded[0]
    mean = jnp.mean(embedded, axis=0)
    placed = jnp.concatenate([embedded, position[:s]], axis=-1)
    split = lambda x: x.reshape(-1, heads, D // heads)  # noqa: E731
    q = split(mean[None] @ query[0] + query[1])[0]
    k, v = split(placed @ key[0] + key[1]), split(placed @ value[0] + value[1])
    weights = jax.nn.softmax(jnp.einsum("nh,snh->ns", q, k) / jnp.sqrt(D // heads), axis=-1)
    joined = jnp.einsum("ns,snh->nh", weights, v).reshape(D)
    return mean + joined @ out[0] + out[1]


def positions(instruction: int, groups: Sequence[int]) -> np.ndarray:
    """Positions of the steps: 0..n - 1 for an instruction, then the last position plus the size of each group."""
    return np.concatenate([np.arange(instruction), instruction - 1 + np.cumsum(groups)]).astype(int)


def stop_targets(groups: Sequence[int]) -> np.ndarray:
    """1 at the last token of each group, else 0, `[sum(groups)]`: when the small decoder is to stop."""
    targets = np.zeros(int(np.sum(groups)), int)
    targets[np.cumsum(groups) - 1] = 1
    return targets


def emitted(stop: Sequence[float], most: int = 4, confidence: float | None = 0.9) -> int:
    """Tokens of one step: it ends behind the first whose 1 - stop is below `confidence` (None: stop > 0.5), or at most.

    Args:
      stop: probability of stopping after each token, in order.
    """
    for count, p in enumerate(stop[:most], start=1):
        if (1 - p < confidence) if confidence is not None else p > 0.5:
            return count
    return min(most, len(stop))
