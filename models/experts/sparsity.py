"""BlockFFN: losses that make neighbouring tokens choose the same few experts, measures of it, and their schedule.

Source: Song et al. 2025, arXiv:2507.08771, and its release.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from models.experts.routing import wide

EPS = 1e-5


def shares(plain: Any) -> jax.Array:
    """p = A / (sum of A + 1e-5) of gates without their weight, `[..., E]` (`routers.relu`, second result)."""
    plain = wide(plain)
    return plain / (jnp.sum(plain, axis=-1, keepdims=True) + EPS)


def binary_cross_entropy(logits: Any, target: Any) -> jax.Array:
    """-(y log sigmoid(z) + (1 - y) log(1 - sigmoid(z))) for each number; the gradient flows into both."""
    z = wide(logits)
    return jax.nn.softplus(z) - z * wide(target)


def locality_loss(logits: Any, pairs: Any = None, *, steepness: float = 100.0) -> jax.Array:
    """The mean over experts and pairs of neighbours of BCE(sigmoid(a z_(t-1)); target sigmoid(a z_t)).

    Args:
      logits: z BEFORE the ReLU, `[..., T, E]`.
      pairs: `[..., T - 1]`: the pair (t, t + 1) lies inside a document and counts; None: all do.
      steepness: a.

    The target is not detached, as in the release: the gradient flows to both tokens.
    """
    z = steepness * wide(logits)
    each = jnp.mean(binary_cross_entropy(z[..., :-1, :], jax.nn.sigmoid(z[..., 1:, :])), axis=-1)
    if pairs is None:
        return jnp.mean(each)
    v = jnp.asarray(pairs).astype(each.dtype)
    return jnp.sum(each * v) / jnp.maximum(jnp.sum(v), 1)


def pairs_of(segment_ids: Any, positions: Any = None) -> jax.Array:
    """Which pairs of neighbours lie in one document, `[..., T] -> [..., T - 1]`; segment 0 is padding."""
    ids = jnp.asarray(segment_ids)
    same = (ids[..., :-1] == ids[..., 1:]) & (ids[..., 1:] != 0)
    return same if positions is None else same & (jnp.asarray(positions)[..., 1:] != 0)


def chunk_loss(p: Any, valid: Any = None, *, chunk: int = 64) -> jax.Array:
    """1 - mean over chunks and experts of exp(sum over the chunk of log(1 - p_ti + 1e-5)).

    Args:
      p: shares of the experts `[T, E]`, T a multiple of the chunk.
      valid: `[T]`; padding has p = 0.
      chunk: neighbouring tokens that share the experts they load.

    The release writes the zeros into its array of shares, so that its balance loss reads them too; here p stays.
    """
    p = wide(p)
    if p.shape[0] % chunk:
        raise ValueError(f"chunk={chunk} does not divide {p.shape[0]} tokens; use e.g. chunk=1.")
    if valid is not None:
        p = p * jnp.asarray(valid).astype(p.dtype)[:, None]
    unused = jnp.sum(jnp.log(1 - p + EPS).reshape(-1, chunk, p.shape[-1]), axis=1)
    return 1 - jnp.mean(jnp.exp(unused))


def router_entropy(p: Any) -> jax.Array:
    """The release's entropy: mean over tokens of -sum_i p_i log(p_i + 1e-5), `p [..., E]` from `shares`."""
    p = wide(p)
    return jnp.mean(-jnp.sum(p * jnp.log(p + EPS), axis=-1))


def released_balance(p: Any) -> jax.Array:
    """The release's balance loss: E sum_i (mean p_i) (active_i / (all active + 1e-5)), `p [T, E]` from `shares`."""
    p = wide(p)
    active = jnp.sum(p > 0, axis=0)
    return p.shape[-1] * jnp.sum(jnp.mean(p, axis=0) * (active / (jnp.sum(active) + EPS)))


def token_sparsity(active: Any) -> jax.Array:
    """TLS = 1 - mean over tokens of the active experts / E: `active [..., E]`, non-zero where an expert is active."""
    return 1 - jnp.mean((jnp.asarray(active) != 0).astype(jnp.result_type(float)))


def chunk_sparsity(active: Any, window: int) -> jax.Array:
    """CLS_w = 1 - mean over windows of w tokens of the experts active in any of them / E: `active [T, E]`.

    The last T % w tokens are in no window. The release hands in valid tokens alone, without the first of each document.
    """
    used = jnp.asarray(active) != 0
    used = used[: len(used) // window * window].reshape(-1, window, used.shape[-1])
    return 1 - jnp.mean(jnp.any(used, axis=1).astype(jnp.result_type(float)))


@dataclasses.dataclass(frozen=True)
class Schedule:
    """The adaptive coefficient of the chunk loss, a function of the losses of the steps before.

    From step `stable` on, every `window` steps: r = mean loss of the last window / mean of the window before; r > 1
    becomes max(r, `least`); the coefficient then moves linearly from c to r c over the next `window` steps, and never
    above `most` times its start. In the first `warmup` steps it rises linearly from 0.

    The state is a vector of 6 numbers, so that it can be a running parameter: steps done, coefficient at the last
    change, where it goes, steps since then, sum of losses in this window, and in the window before.
    """

    start: float
    stable: int = 1000
    window: int = 100
    warmup: int = 0
    least: float = 1.025
    most: float = 4.0

    def begin(self) -> jax.Array:
        """The state before step 1."""
        return jnp.asarray([0, self.start, self.start, 0, 0, 0], jnp.result_type(float))

    def value(self, state: Any) -> jax.Array:
        """The coefficient of the step that follows a state `[..., 6]`."""
        done, begin, end, since = (wide(state)[..., i] for i in range(4))
        now = begin + (end - begin) * jnp.minimum(1, since / self.window)
        return jnp.where(done + 1 < self.warmup, self.start * (done + 1) / max(1, self.warmup), now)

    def advance(self, state: Any, loss: Any) -> jax.Array:
        """The state `[..., 6]` after a step with this loss `[...]`."""
        done, begin, end, since, new, old = (wide(state)[..., i] for i in range(6))
        now = begin + (end - begin) * jnp.minimum(1, since / self.window)
        done, new = done + 1, new + wide(loss)
        full = done % self.window == 0
        change = full & (done >= self.stable) & (old > 0)
        moved = now * self.ratio(now, new / jnp.where(old > 0, old, 1))
        return jnp.stack(
            [
                done,
                jnp.where(change, now, begin),
                jnp.where(change, moved, end),
                jnp.where(change, 0, since) + 1,
                jnp.where(full, 0, new),
                jnp.where(full, new, old),
            ],
            axis=-1,
        )

    def ratio(self, value: Any, change: Any) -> jax.Array:
        """By how much a coefficient is multiplied after the loss changed by the factor `change`."""
        change = jnp.where(change > 1, jnp.maximum(self.least, change), change)
        return jnp.minimum(self.start * self.most / value, change)

    def values(self, losses: Any) -> jax.Array:
        """The coefficient of each step `[S]` of a run with these losses `[S]`."""
        step = lambda state, loss: (self.advance(state, loss), self.value(state))  # noqa: E731
        return jax.lax.scan(step, self.begin(), wide(losses))[1]
