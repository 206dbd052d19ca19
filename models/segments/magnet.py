"""MAGNET: learned boundaries, pools of segments, and the binomial prior (Ahia et al. 2024, arXiv:2407.08818).

Boundaries are `[B, T]` in {0, 1}; 1 ends a segment, its byte included. Byte t reads the last segment that ended at t
or before, so that nothing after t reaches it. The pools are those of dynamic pooling (Nawrot et al. 2023,
arXiv:2211.09761).
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

_TINY = 1e-9  # The released pools divide by count + 1e-9.
_EPS = 1.1920929e-07  # float32's: the released code clamps probabilities and noise to eps..1 - eps.


def relaxed_bernoulli(logits: jax.Array, noise: jax.Array, temperature: float = 0.5) -> jax.Array:
    """sigmoid((logits + log u - log(1 - u)) / temperature), soft boundaries in 0..1.

    Args:
      logits: `[...]` of a boundary.
      noise: `[...]` u, uniform in 0..1. Both u and sigmoid(logits) are clamped to eps..1 - eps of float32, as released.
      temperature: of the relaxation.
    """
    p = jnp.clip(jax.nn.sigmoid(logits), _EPS, 1 - _EPS)
    u = jnp.clip(noise, _EPS, 1 - _EPS)
    return jax.nn.sigmoid((jnp.log(u) - jnp.log1p(-u) + jnp.log(p) - jnp.log1p(-p)) / temperature)


def straight_through(soft: jax.Array, threshold: float = 0.5) -> jax.Array:
    """1 where soft > threshold, else 0, with the gradient of `soft`; `[...]`."""
    hard = (soft > threshold).astype(soft.dtype)
    return hard - jax.lax.stop_gradient(soft) + soft


def downsample_weights(boundaries: jax.Array, segments: int) -> jax.Array:
    """`[B, T, S]`: 1 / count where byte t is in segment s, else 0; S = `segments` columns.

    Segment s holds the bytes before which s boundaries stand. The gradient with respect to the boundaries goes through
    their sums, as in the released code.
    """
    before = jnp.cumsum(boundaries, axis=1) - boundaries
    apart = jnp.arange(segments, dtype=boundaries.dtype) - before[..., None]
    member = jnp.where(apart == 0, 1 - apart, 0)
    return member / (jnp.sum(member, axis=1, keepdims=True) + _TINY)


def pool(boundaries: jax.Array, hidden: jax.Array, null: jax.Array, segments: int) -> jax.Array:
    """Means of the segments behind a null vector, `[B, 1 + S, D]`.

    Args:
      boundaries: `[B, T]`, straight-through or plain.
      hidden: `[B, T, D]`.
      null: `[D]` what bytes before the first boundary read.
      segments: S, at least the most boundaries of a row; columns beyond a row's boundaries hold its unfinished last
        segment (never read) and zeros. The released code takes the largest number of the batch.
    """
    pooled = jnp.einsum("btd,bts->bsd", hidden, downsample_weights(boundaries, segments))
    first = jnp.broadcast_to(null, (len(hidden), 1, hidden.shape[-1])).astype(pooled.dtype)
    return jnp.concatenate([first, pooled], axis=1)


def upsample(boundaries: jax.Array, short: jax.Array) -> jax.Array:
    """`[B, T, D]`: byte t reads row n of `short [B, 1 + S, D]`, n = boundaries up to and with t."""
    read = jnp.cumsum(boundaries, axis=1)
    apart = jnp.arange(short.shape[1], dtype=boundaries.dtype) - read[..., None]
    chosen = jnp.where(apart == 0, 1 - apart, 0)
    chosen = chosen / (jnp.sum(chosen, axis=2, keepdims=True) + _TINY)
    return jnp.einsum("bsd,bts->btd", short, chosen)


def binomial_nats(count: jax.Array, trials: jax.Array | float, prior: float) -> jax.Array:
    """-log Binomial(count; trials, prior) with log-gamma, so that `count` may be any real number; `[...]`."""
    choose = gammaln(trials + 1.0) - gammaln(count + 1.0) - gammaln(trials - count + 1.0)
    return -(choose + count * jnp.log(prior) + (trials - count) * jnp.log1p(-prior))


SCRIPTS = ("latin", "greek", "cyrillic", "other")


def scripts(tokens: jax.Array, first: jax.Array, before: jax.Array) -> jax.Array:
    """The script of each byte, a place in `SCRIPTS`, `[B, T]` int32: that of the newest letter of its document.

    A letter is told by its first byte in UTF-8: A-Z, a-z and C3..CA, Latin; CD..CF, Greek; D0..D4, Cyrillic; D5..FF but
    E2, other. Blanks, digits, marks (C2, CB, CC and E2 begin such) and the bytes behind a first one have the script
    before them, Latin at the beginning.

    Args:
      tokens: `[B, T]` ids; those of 256 and above are no letters.
      first: `[B, T]` bool, first bytes of documents.
      before: `[B]` the script of the byte before the row.
    """
    within = lambda a, b: (tokens >= a) & (tokens <= b)  # noqa: E731
    latin = within(65, 90) | within(97, 122) | within(0xC3, 0xCA)
    greek, cyrillic = within(0xCD, 0xCF), within(0xD0, 0xD4)
    letter = latin | within(0xCD, 0xFF) & (tokens != 0xE2)
    own = jnp.where(latin | ~letter, 0, jnp.where(greek, 1, jnp.where(cyrillic, 2, 3)))
    newest = jax.lax.cummax(jnp.where(letter | first, jnp.arange(tokens.shape[1]), -1), axis=1)
    found = jnp.take_along_axis(own, jnp.maximum(newest, 0), axis=1)
    return jnp.where(newest < 0, before[:, None], found).astype(jnp.int32)


def prior_loss(boundaries: jax.Array, prior: float) -> jax.Array:
    """mean over rows of -log Binomial(boundaries of the row; T, prior), divided by T: the language model's."""
    T = boundaries.shape[-1]
    return jnp.mean(binomial_nats(jnp.sum(boundaries, axis=-1), float(T), prior)) / T


def prior_loss_padded(boundaries: jax.Array, mask: jax.Array, prior: float) -> jax.Array:
    """The same over the bytes of `mask [B, T]` alone, NOT divided by their number, as released for classification."""
    mask = mask.astype(boundaries.dtype)
    return jnp.mean(binomial_nats(jnp.sum(boundaries * mask, axis=-1), jnp.sum(mask, axis=-1), prior))


def compression(boundaries: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mean over rows of bytes / boundaries, mean over rows of boundaries / bytes) of the bytes of `mask [B, T]`."""
    mask = mask.astype(boundaries.dtype)
    bytes_, count = jnp.sum(mask, axis=-1), jnp.sum(boundaries * mask, axis=-1)
    return jnp.mean(bytes_ / count), jnp.mean(count / bytes_)
