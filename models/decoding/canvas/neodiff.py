"""Sampling of NeoDiff models: embeddings lose their noise token by token, each at the time a predictor gives it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.objectives import neodiff

Array = jax.Array


def sample(
    decode: Callable[..., Array],
    times: Callable[[Array, Array], Array],
    key: Array,
    given: Array,
    fixed: Array,
    *,
    K: int,
    steps: int,
    noise_factor: float = 1.0,
    conditioned: bool = False,
    requests: Array | None = None,
) -> tuple[Array, Array]:
    """Draws embeddings; safe under jit.

    Args:
      decode: (z [B, T, D], tau [B, T]) -> predicted clean embeddings [B, T, D]; with conditioned=True a third argument
        is the prediction before, zeros at first and the prompt where there is one.
      times: (predicted [B, T, D], t [B]) -> logits [B, T, K+1] of each token's intrinsic time at the global time t.
      key: of the whole batch; each row folds its request number into it.
      given: clean embeddings [B, T, D] of the prompt; they are read where `fixed` is true.
      fixed: [B, T] bool, the tokens of the prompt.
      K: the largest intrinsic time.
      steps: number of global times, 1 - 1/steps down to 0.
      noise_factor: multiplies the noise.
      conditioned: whether `decode` takes the prediction before.
      requests: [B] numbers from which the rows' keys are folded.

    Returns:
      the last predicted embeddings [B, T, D] and calls [B], half of which are the time predictor's.
    """
    B, T, D = given.shape
    keys = key_scheme.row_keys(key, B, requests)

    def noised(i: Array | int, x: Array, tau: Array) -> Array:
        eps = jax.vmap(lambda k: jax.random.normal(k, (T, D), x.dtype))(key_scheme.fold(keys, i, key_scheme.START))
        keep = neodiff.signal(tau, K).astype(x.dtype)[..., None]
        z = jnp.sqrt(keep) * x + jnp.sqrt(1 - keep) * noise_factor * eps
        return jnp.where(fixed[..., None], given, z)

    def body(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        x, tau = state
        earlier = (jnp.where(fixed[..., None], given, x),) if conditioned else ()
        x = jnp.where(fixed[..., None], given, decode(noised(i, x, tau), tau, *earlier))
        t = jnp.full(B, 1 - (i + 1) / steps)
        return x, jnp.where(fixed, 0, jnp.argmax(times(x, t), -1))

    start = (jnp.zeros_like(given), jnp.where(fixed, 0, K))
    x, _ = jax.lax.fori_loop(0, steps, body, start)
    return x, jnp.full(B, 2 * steps)
