"""Looking ahead before a token is chosen: AdaDec and Cautious Next Token Prediction (CNTP).

AdaDec (He et al. 2025, arXiv:2506.08980) ranks the likeliest candidates by greedy roll-outs where the entropy is high.
CNTP (Wang et al. 2025, arXiv:2507.03038) draws more trials the higher the entropy, each to the next punctuation, and
keeps the one of least perplexity.
"""

import jax
import jax.numpy as jnp

Array = jax.Array
ENTROPY_OFFSET = 1e-10  # Of CNTP's code, inside the logarithm.
PUNCTUATION = (".", ",", "\n", "?", "!", ":", ";", ")", "]", "}")


def entropy(logits: Array) -> Array:
    """-sum p log p of p = softmax(logits), 0 log 0 = 0: `[..., V]` -> `[...]`."""
    p = jax.nn.softmax(jnp.asarray(logits), axis=-1)
    return -jnp.sum(jnp.where(p > 0, p * jax.nn.log_softmax(jnp.asarray(logits), axis=-1), 0), axis=-1)


def looks_ahead(logits: Array, threshold: Array | float) -> Array:
    """AdaDec: whether the entropy of softmax(logits) is at least the threshold; inf: never. `[..., V]` -> `[...]`."""
    return entropy(logits) >= threshold


def adadec_scores(history: Array | float, first: Array, rollout: Array, length: Array, weight: float = 1.0) -> Array:
    """history + weight (log p of the candidate + sum of its roll-out's log p) / (length + 1): `[..., B]`.

    Args:
      history: score of the text so far, a sum that is not normalised, `[...]`.
      first: `[..., B]`, log-probabilities of the B likeliest candidates (B = 3).
      rollout: `[..., B, L]`, of the greedy tokens behind each (L = 5); only the first `length` `[..., B]` count.
      length: tokens of each roll-out.
      weight: lambda.
    """
    length = jnp.asarray(length)
    there = jnp.arange(jnp.shape(rollout)[-1]) < length[..., None]
    total = first + jnp.sum(jnp.where(there, rollout, 0), axis=-1)
    return jnp.asarray(history)[..., None] + weight * total / (length + 1)


def released_adadec_scores(
    history: Array | float, first: Array, rollout: Array, length: Array, weight: float = 1.0
) -> Array:
    """As `adadec_scores`, but sums are over max(length) tokens of every candidate: the released code goes on adding to
    roll-outs that are over while another is not, and divides by the own length + 1. `[..., B]`."""
    length = jnp.asarray(length)
    there = jnp.arange(jnp.shape(rollout)[-1]) < jnp.max(length, axis=-1, keepdims=True)[..., None]
    total = first + jnp.sum(jnp.where(there, rollout, 0), axis=-1)
    return jnp.asarray(history)[..., None] + weight * total / (length + 1)


def entropy_threshold(entropy: Array, wrong: Array, *, steps: int = 100) -> Array:
    """A model's threshold, learned by logistic regression: the entropy at which P(wrong) is 1/2: `[N]` each -> `[]`.

    log P / (1 - P) = a H + b is fitted by Newton steps on the mean log-loss; the threshold is -b / a. wrong: whether
    the model's likeliest token was not the true one, 0 or 1.
    """
    H, wrong = jnp.asarray(entropy), jnp.asarray(wrong, jnp.result_type(float))
    x = jnp.stack([H, jnp.ones_like(H)], axis=-1)

    def newton(_: int, w: Array) -> Array:
        p = jax.nn.sigmoid(x @ w)
        slope = x.T @ (p - wrong) / len(x)
        curve = (x.T * (p * (1 - p))) @ x / len(x) + 1e-9 * jnp.eye(2)
        return w - jnp.linalg.solve(curve, slope)

    a, b = jax.lax.fori_loop(0, steps, newton, jnp.zeros(2, x.dtype))
    return -b / a


def entropy_of(p: Array, offset: float = ENTROPY_OFFSET) -> Array:
    """-sum p log(p + offset), of the law after temperature and cuts as CNTP's code has it: `[..., V]` -> `[...]`."""
    return -jnp.sum(p * jnp.log(jnp.asarray(p) + offset), axis=-1)


def trials(entropy: Array, least: int = 1, most: int = 40, low: float = 0.01, high: float = 1.5) -> Array:
    """CNTP: floor(least + (most - least) clip((H - low) / (high - low), 0, 1)): `[...]` whole numbers."""
    share = jnp.clip((jnp.asarray(entropy) - low) / (high - low), 0, 1)
    return jnp.floor(least + (most - least) * share).astype(jnp.int32)


def trials_in_steps(entropy: Array, most: int = 8) -> Array:
    """The released variant with steps: 1 below an entropy of 0.5, 3 below 3.5, else `most`. `[...]`."""
    entropy = jnp.asarray(entropy)
    return jnp.where(entropy < 0.5, 1, jnp.where(entropy < 3.5, 3, most))


def perplexity(log_p: Array, length: Array) -> Array:
    """exp of minus the mean of the first `length` log-probabilities: `[..., L]`, `[...]` -> `[...]`."""
    there = jnp.arange(jnp.shape(log_p)[-1]) < jnp.asarray(length)[..., None]
    return jnp.exp(-jnp.sum(jnp.where(there, log_p, 0), axis=-1) / length)


def best_trial(log_p: Array, length: Array, valid: Array | None = None) -> Array:
    """The valid trial of least perplexity, of equal ones the first: log_p `[..., N, L]`, the others `[..., N]`."""
    value = perplexity(log_p, length)
    return jnp.argmin(value if valid is None else jnp.where(valid, value, jnp.inf), axis=-1)


def best_trial_truncated(log_p: Array, length: Array) -> Array:
    """The released variant: the trial whose first min(length) tokens are likeliest together, of equal ones the first.

    log_p `[..., N, L]`, length `[..., N]` -> `[...]`.
    """
    least = jnp.min(jnp.asarray(length), axis=-1, keepdims=True)
    there = jnp.arange(jnp.shape(log_p)[-1]) < least[..., None]
    return jnp.argmax(jnp.sum(jnp.where(there, log_p, 0), axis=-1), axis=-1)


def trial_length(tokens: Array, stops: Array) -> Array:
    """Tokens of a trial up to and with the first that stops it, all if none does: `[..., L]`, stops `[V]` bool."""
    hit = jnp.asarray(stops)[tokens]
    return jnp.where(jnp.any(hit, axis=-1), jnp.argmax(hit, axis=-1) + 1, jnp.shape(tokens)[-1])
