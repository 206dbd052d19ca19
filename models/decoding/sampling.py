"""Rules of sampling, pure functions of logits; `categorical.sample` draws from what they leave."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp


def top_k(logits: jax.Array, k: int) -> jax.Array:
    """Keeps the k largest (Fan et al. 2018); 0 or k >= V keeps all. `[..., V]`."""
    if not 0 < k < logits.shape[-1]:
        return logits
    least = jax.lax.top_k(logits, k)[0][..., -1:]
    return jnp.where(logits < least, -jnp.inf, logits)


def top_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps the fewest tokens, at least one, whose probability reaches p (Holtzman et al. 2020). `[..., V]`."""
    if p >= 1.0:
        return logits
    order = jnp.argsort(-logits, axis=-1)
    probabilities = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    reaching = (before < p).at[..., 0].set(True)
    keep = jnp.put_along_axis(jnp.zeros(logits.shape, bool), order, reaching, axis=-1, inplace=False)
    return jnp.where(keep, logits, -jnp.inf)


def min_p(logits: jax.Array, p: float) -> jax.Array:
    """Keeps tokens at least p times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all. `[..., V]`."""
    if p <= 0.0:
        return logits
    return jnp.where(logits < jnp.max(logits, axis=-1, keepdims=True) + jnp.log(p), -jnp.inf, logits)


# By the name of its knob in `generate`: (logits [..., V] float32, value) -> logits. They are applied in this order, to
# logits that the temperature has divided. A rule sees -inf where a token is ruled out, and leaves at least one token.
RULES: dict[str, Callable[[jax.Array, float], jax.Array]] = {
    "top_k": top_k,
    "min_p": min_p,
    "top_p": top_p,
}


def process(logits: jax.Array, *, temperature: float, rules: Mapping[str, float] | None = None) -> jax.Array:
    """Temperature (above 0), then those of `RULES` that `rules` gives a value, in float32. `[..., V]`."""
    logits, rules = logits.astype(jnp.float32) / temperature, rules or {}
    for name, rule in RULES.items():
        logits = rule(logits, rules[name]) if name in rules else logits
    return logits
