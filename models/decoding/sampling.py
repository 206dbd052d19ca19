"""Rules of sampling, pure functions of logits; `keys.sample` draws from what they leave.

A value may be a number or an array `[...]` of one a row: whether a rule is off is then found while the program runs.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp


def tempered(logits: jax.Array, temperature: Any) -> jax.Array:
    """Logits / temperature in float32 or wider; at temperature 0 the first likeliest token alone. `[..., V]`."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    temperature = by_row(temperature, logits)
    greedy = jnp.arange(logits.shape[-1]) == jnp.argmax(logits, axis=-1, keepdims=True)
    divided = logits / jnp.where(temperature == 0, 1, temperature).astype(logits.dtype)
    return jnp.where(greedy | (temperature != 0), divided, -jnp.inf)


def top_k(logits: jax.Array, k: Any) -> jax.Array:
    """Keeps the k largest (Fan et al. 2018), and ties of the last; 0 or k >= V keeps all. `[..., V]`."""
    V, k = logits.shape[-1], by_row(k, logits).astype(jnp.int32)
    ordered = jnp.sort(logits, axis=-1)
    index = jnp.broadcast_to(jnp.clip(V - k, 0, V - 1), (*logits.shape[:-1], 1))
    least = jnp.take_along_axis(ordered, index, axis=-1)
    return jnp.where((logits < least) & (k > 0), -jnp.inf, logits)


def top_p(logits: jax.Array, p: Any) -> jax.Array:
    """Keeps the fewest tokens, at least one, whose probability reaches p (Holtzman et al. 2020). `[..., V]`."""
    p = by_row(p, logits)
    order = jnp.argsort(-logits, axis=-1)
    probabilities = jnp.take_along_axis(jax.nn.softmax(logits, axis=-1), order, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    reaching = (before < p).at[..., 0].set(True)
    keep = jnp.put_along_axis(jnp.zeros(logits.shape, bool), order, reaching, axis=-1, inplace=False)
    return jnp.where(keep | (p >= 1), logits, -jnp.inf)


def min_p(logits: jax.Array, p: Any) -> jax.Array:
    """Keeps tokens at least p times as likely as the likeliest (Nguyen et al. 2024); 0 keeps all. `[..., V]`."""
    least = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(by_row(p, logits).astype(logits.dtype))
    return jnp.where(logits < least, -jnp.inf, logits)


def by_row(value: Any, logits: jax.Array) -> jax.Array:
    """A number, or one a row, `[...]`, as it meets logits `[..., V]`."""
    value = jnp.asarray(value)
    return value if value.ndim == 0 else value.reshape(*value.shape, *[1] * (logits.ndim - value.ndim))


# By the name of its knob in `generate`: (logits [..., V] float32, value) -> logits. They are applied in this order, to
# logits that the temperature has divided. A rule sees -inf where a token is ruled out, and leaves at least one token.
# The value is a number, or an array [] of a program that serves rows with other values.
RULES: dict[str, Callable[[jax.Array, Any], jax.Array]] = {
    "top_k": top_k,
    "min_p": min_p,
    "top_p": top_p,
}


def process(logits: jax.Array, *, temperature: Any, rules: Mapping[str, Any] | None = None) -> jax.Array:
    """Temperature, then those of `RULES` that `rules` gives a value, in float32. `[..., V]`."""
    logits, rules = tempered(logits.astype(jnp.float32), temperature), rules or {}
    for name, rule in RULES.items():
        logits = rule(logits, rules[name]) if name in rules else logits
    return logits
