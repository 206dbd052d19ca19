"""Semantic probabilistic control: a verifier of the whole text reweighs each next token (Ahmed et al. 2025,
arXiv:2505.01954).

p(y | text so far, constraint) is proportional to p(y) E[phi(text) | y]. `exact` takes the expectations; `linearised`
estimates them from one sample: the law of sentences around it is a product of the model's next-token laws at its
positions, whose expected embedding is a closed form, and the verifier is replaced by its tangent there.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def exact(log_p: Array, expectation: Array) -> Array:
    """log_softmax(log p(y) + log E[phi | y]): `[..., V]` each."""
    return jax.nn.log_softmax(log_p + jnp.log(expectation), axis=-1)


def expected_embeddings(p: Array, table: Array) -> Array:
    """sum_v p_l(v) E(v) at each position: p `[..., T, V]`, table `[V, D]` -> `[..., T, D]`."""
    return p @ table


def contextual_law(log_p: Array, sample: Array, place: int) -> Array:
    """Laws `[T, V]` of the positions around a sample: its own tokens before `place`, the model's laws from there on.

    log_p `[T, V]` are the model's at each position of the sample `[T]`; positions are taken as independent.
    """
    own = jax.nn.one_hot(sample, log_p.shape[-1], dtype=log_p.dtype)
    return jnp.where((jnp.arange(len(sample)) < place)[:, None], own, jnp.exp(log_p))


def linearised(
    verifier: Callable[[Array], Array], log_p: Array, sample: Array, place: int, table: Array, least: float = 1e-6
) -> Array:
    """E[phi | y] for every token y at `place`, by the verifier's tangent at the expected embedding: `[V]`.

    phi(m) + grad phi(m) . (m_y - m), with m the expected embeddings where the model chooses the token at `place`, and
    m_y those where it is y; cut to [least, 1].

    Args:
      verifier: embeddings `[T, D]` -> probability that the constraint holds.
      log_p: `[T, V]` of the model at each position of the sample.
      sample: `[T]`; positions before `place` are the text.
      table: `[V, D]`, the verifier's embeddings.
    """
    mean = expected_embeddings(contextual_law(log_p, sample, place), table)
    value, slope = jax.value_and_grad(verifier)(mean)
    # Only the embedding at `place` depends on y: the others are means of laws that do not.
    return jnp.clip(value + (table - mean[place]) @ slope[place], least, 1.0)
