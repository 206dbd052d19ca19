"""What a constraint makes of a law: masking tokens is not conditioning, and how one comes from the one to the other.

Masking gives a text x the probability q(x) = prod_t p(x_t | x_<t) / Z_t, with Z_t the probability of the tokens
that are allowed there. The law of the model given that the text fulfils the constraint is p(x) / P. So prod_t Z_t is
the weight of a masked text (`log_weight`): it is at most 1, and texts that are accepted with it have exactly the
conditional law. Where the model is a chain that is known, the conditional law of each token is a closed form (`exact`).
"""

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.control.automata import Tokens

Array = jax.Array


def log_mass(logits: Array, allowed: Array) -> Array:
    """log Z = log of the probability of the allowed tokens: `[..., V]` each -> `[...]`; -inf if there is none."""
    log_p = jax.nn.log_softmax(jnp.asarray(logits), axis=-1)
    return jax.nn.logsumexp(jnp.where(allowed, log_p, -jnp.inf), axis=-1)


def masked(logits: Array, allowed: Array) -> Array:
    """logits where allowed, else -inf: `[..., V]`."""
    return jnp.where(allowed, logits, -jnp.inf)


def log_weight(log_masses: Array) -> Array:
    """sum_t log Z_t, `[..., T]` -> `[...]`: log of p(x) / q(x) of a text that was drawn under the mask."""
    return jnp.sum(log_masses, axis=-1)


def accepted(log_weights: Array, uniform: Array) -> Array:
    """Whether a masked text stays, uniform < prod_t Z_t: those that do have the conditional law. `[...]`."""
    return jnp.log(uniform) < log_weights


def estimate(values: Array, log_weights: Array) -> Array:
    """sum w f / sum w: the mean of f under the conditional law from n masked texts, `[n, ...]`, log_weights `[n]`."""
    weight = jax.nn.softmax(jnp.asarray(log_weights))
    return jnp.tensordot(weight, jnp.asarray(values), axes=1)


def fulfilled(chain: np.ndarray, automaton: Tokens, tokens: int) -> np.ndarray:
    """h `[tokens + 1, S, V]`: chance that a text in state s, whose last token is v, fulfils the constraint in time.

    h[b] is for at most b tokens more; h[0] is 1 in the last state and 0 elsewhere. chain `[V, V]`: p(next | last).
    """
    chain, (S, V) = np.asarray(chain), automaton.next.shape
    h = np.zeros((tokens + 1, S, V), chain.dtype)
    h[:, -1] = 1
    target, there = np.maximum(automaton.next, 0), automaton.next >= 0
    for left in range(1, tokens + 1):
        then = np.where(there, h[left - 1, target, np.arange(V)], 0)  # [S, V]: after token v in state s.
        h[left, :-1] = (then @ chain.T)[:-1]
    return h


def exact(p: np.ndarray, automaton: Tokens, state: int, after: np.ndarray) -> np.ndarray:
    """The law of the next token given that the text will fulfil the constraint: p(v) h(v) / sum p h, `[V]`.

    p: `[V]`, p(next | last); after: `[S, V]`, `fulfilled(...)[left - 1]`, for `left` tokens to come, with this one.
    """
    target = automaton.next[state]
    weight = np.where(target >= 0, p * after[np.maximum(target, 0), np.arange(len(p))], 0)
    return weight / weight.sum()
