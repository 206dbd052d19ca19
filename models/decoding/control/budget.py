"""Budget guidance: next tokens weighed by their chance to be done within what is left (Li et al. 2025,
arXiv:2506.13752).

A predictor gives, for every next token, a Gamma law of the log of the remaining length, log(L + 1). The exact form
for a chain that is known is beside it: P(s' | s) u_(b-1)(s') / u_b(s), the chain given that it stops within b steps.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
LARGEST = 12.0  # Of log alpha and log rate, in size: what is beyond is no law of a length.


def gamma_of(features: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """(alpha, rate) `[..., V]` of every next token: features `[..., D]`, kernel `[2, V, D]`, bias `[2, V]`."""
    raw = jnp.einsum("...d,svd->s...v", features.astype(jnp.float32), kernel.astype(jnp.float32))
    raw = raw + bias.reshape(2, *[1] * (raw.ndim - 2), -1)
    return _positive(raw[0]), _positive(raw[1])


def gamma_of_token(features: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """(alpha, rate) `[...]` of one next token each: features `[..., D]`, kernel `[2, ..., D]`, bias `[2, ...]`."""
    raw = jnp.sum(kernel.astype(jnp.float32) * features.astype(jnp.float32), axis=-1) + bias
    return _positive(raw[0]), _positive(raw[1])


def _positive(raw: Array) -> Array:
    return jnp.exp(jnp.clip(raw, -LARGEST, LARGEST))


def factor(alpha: Array, rate: Array, remaining: Array) -> Array:
    """P(L <= remaining) = CDF of Gamma(alpha, rate) at log(remaining + 1): `[..., V]` each, remaining `[...]`."""
    encoded = jnp.log1p(jnp.asarray(remaining, jnp.result_type(float)))[..., None]
    return jax.scipy.special.gammainc(alpha, rate * encoded)


def expected_length(alpha: Array, rate: Array) -> Array:
    """exp((alpha - 1) / rate) - 1: the mode in log(L + 1), which the authors take for the expected length."""
    return jnp.expm1((alpha - 1) / rate)


def trusted(alpha: Array, rate: Array) -> Array:
    """Whether the released code uses a prediction: rate >= 10, alpha > 1 and an expected length of at least 0.9."""
    return (rate >= 10.0) & (alpha > 1.0) & (expected_length(alpha, rate) >= 0.9)


def guided(log_p: Array, weight: Array) -> Array:
    """log_softmax(log_p + log weight): log_p, weight `[..., V]`. All weights equal: log_p, if it is normalised."""
    return jax.nn.log_softmax(log_p + jnp.log(weight), axis=-1)


def released(logits: Array, alpha: Array, rate: Array, remaining: Array) -> Array:
    """The released probabilities behind a newline, `[..., V]`: softmax(logits) times the factors of trusted
    predictions.

    Where no prediction is trusted, or all factors are 0, only the likeliest token is left. The first token is guided,
    too; tokens behind others than newlines are sampled as always; `remaining` falls by one each token, not below 1
    (`released_remaining`).
    """
    weight = jnp.where(trusted(alpha, rate), factor(alpha, rate, remaining), 0)
    likeliest = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=weight.dtype)
    weight = jnp.where(jnp.any(weight > 0, axis=-1, keepdims=True), weight, likeliest)
    p = jax.nn.softmax(logits, axis=-1) * weight
    return p / jnp.sum(p, axis=-1, keepdims=True)


def released_remaining(remaining: Array) -> Array:
    """max(remaining - 1, 1)."""
    return jnp.maximum(remaining - 1, 1)


def negative_log_likelihood(alpha: Array, rate: Array, length: Array) -> Array:
    """The predictor's loss: -log of the Gamma density at y = log(length + 1): `[...]` each, length above 0.

    -(alpha log rate - log Gamma(alpha) + (alpha - 1) log y - rate y). alpha and rate are those of the token that came:
    `gamma_of_token`.
    """
    y = jnp.log1p(jnp.asarray(length, jnp.result_type(float)))
    log_gamma = jax.scipy.special.gammaln(alpha)
    return -(alpha * jnp.log(rate) - log_gamma + (alpha - 1) * jnp.log(y) - rate * y)


def stops_within(chain: Array, stop: Array, budget: int) -> Array:
    """u `[budget + 1, S]`: chance to have stopped after b steps from each state; u_0 = stop, u_b = chain u_(b-1).

    chain `[S, S]` with rows of sum 1, stop `[S]` bool: these states are absorbing.
    """
    stop = jnp.asarray(stop)
    start = stop.astype(jnp.asarray(chain).dtype)
    rows = [start]
    for _ in range(budget):
        rows.append(jnp.where(stop, 1, chain @ rows[-1]))
    return jnp.stack(rows)


def exact(log_p: Array, within: Array) -> Array:
    """log of P(s' | s) u_(b-1)(s') / u_b(s): log_p of the next state `[..., S]`, within = u_(b-1) `[..., S]`.

    Normalising is dividing by u_b(s) = sum P(s' | s) u_(b-1)(s'). A budget without end (u = 1) is the chain.
    """
    return guided(log_p, within)
