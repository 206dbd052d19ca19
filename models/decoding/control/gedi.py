"""GeDi: a class-conditional language model says which next tokens belong to the wanted class (Krause et al. 2020).

By Bayes, P(c | x_1:t) is proportional to P(c) prod_i P(x_i | x_<i, c). The next token follows p(x) P(c | x_1:t)^w. With
w = 1 and likelihoods that are not divided by their length this is exactly the next token of class c if p is the mixture
of the class models with weights P(c). The authors' code (names with `released`) divides by the length, filters, and
takes w = 30. Source: arXiv:2009.06367.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array
REMOVED = 10000.0  # What the released filter takes off a logit.


def log_posterior(log_likelihood: Array, log_prior: Array | float = 0.0) -> Array:
    """log P(c | x) = log_softmax over the classes of log P(x | c) + log P(c): `[..., C]` each."""
    return jax.nn.log_softmax(jnp.asarray(log_likelihood) + log_prior, axis=-1)


def exact(
    log_p: Array, history: Array, class_log_p: Array, log_prior: Array, wanted: int, weight: Array | float = 1.0
) -> Array:
    """log p(x) + weight log P(wanted | x_1:t) for every next token: `[..., V]`.

    Args:
      log_p: `[..., V]` of the model.
      history: `[..., C]`, log-likelihood of the text so far in each class.
      class_log_p: `[..., C, V]`, log-probabilities of the next token in each class.
      log_prior: `[C]`.
      wanted: the index of the class.
      weight: `[...]` or a number; 0 gives log_p exactly.
    """
    joint = jnp.moveaxis(jnp.asarray(history)[..., None] + class_log_p, -2, -1)
    return log_p + jnp.asarray(weight)[..., None] * log_posterior(joint, log_prior)[..., wanted]


def released_log_desired(
    history: Array,
    class_logits: Array,
    steps: Array | int,
    scale: float = 1.0,
    bias: Array | float = 0.0,
    class_bias: float = 0.0,
) -> Array:
    """log P(desired | x_1:t) of each next token, as released: class 0 is the desired one; `[..., V]`.

    softmax over classes of scale (history + log_softmax(class_logits)) / (steps + 1) + bias, class_bias added to
    class 0.

    Args:
      history: `[..., C]`, sum of the log-probabilities of the text so far in each class; zeros at the start.
      class_logits: `[..., C, V]`.
      steps: how many tokens `history` sums.
      scale, bias: of the trained classifier, bias `[C]`.
      class_bias: what makes the desired class likelier, e.g. 2 for detoxification.
    """
    total = jnp.asarray(history)[..., None] + jax.nn.log_softmax(jnp.asarray(class_logits), axis=-1)
    score = scale * jnp.moveaxis(total, -2, -1) / (jnp.asarray(steps)[..., None, None] + 1) + bias
    return jax.nn.log_softmax(score.at[..., 0].add(class_bias), axis=-1)[..., 0]


def released_target(target_p: float, class_bias: float) -> float:
    """The target after a class bias: sigmoid(logit(target_p) + class_bias); 0 and 1 stay."""
    if not 0 < target_p < 1:
        return target_p
    return 1 / (1 + math.exp(-(math.log(target_p / (1 - target_p)) + class_bias)))


def released_filter(scores: Array, log_desired: Array, filter_p: float, target_p: float) -> Array:
    """Takes 10,000 off the tokens that are least likely of the class: scores, log_desired `[..., V]`.

    In ascending order of log_desired: where the guided probability summed so far, the token's own included, stays below
    filter_p and log_desired below log(target_p). The defaults of the authors' `generate`, 1 and 1, take off all but
    rounding.
    """
    scores = jnp.asarray(scores)
    order = jnp.argsort(log_desired, axis=-1)
    p = jnp.take_along_axis(jax.nn.softmax(scores, axis=-1), order, axis=-1)
    sorted_desired = jnp.take_along_axis(jnp.asarray(log_desired), order, axis=-1)
    bar = math.log(target_p) if target_p > 0 else -math.inf
    off = (jnp.cumsum(p, axis=-1) < filter_p) & (sorted_desired < bar)
    removed = jnp.put_along_axis(jnp.zeros(scores.shape, bool), order, off, axis=-1, inplace=False)
    return jnp.where(removed, scores - REMOVED, scores)


def released(
    logits: Array, log_desired: Array, weight: float = 30.0, filter_p: float = 0.8, target_p: float = 0.8
) -> Array:
    """log_softmax(logits) + weight log_desired, filtered: `[..., V]`. Defaults are those of the authors' script."""
    scores = jax.nn.log_softmax(jnp.asarray(logits), axis=-1) + weight * jnp.asarray(log_desired)
    return released_filter(scores, log_desired, filter_p, target_p)


def released_repetition(scores: Array, previous: Array, penalty: float = 1.2, scale: float = 10.0) -> Array:
    """The authors' repetition penalty: scores `[V]` of one text are moved so that the largest is `scale`, then one
    token of the text after the other has its score divided by the penalty: previous `[T]`, as often as it comes.

    Where a token had the largest score, all are moved to `scale` again before the next. A scale of 0 multiplies, since
    all scores are then at most 0 (`repetition`, once for each time a token came).
    """
    scores = jnp.asarray(scores)
    scores = scores - jnp.max(scores) + scale

    def one(scores: Array, token: Array) -> tuple[Array, None]:
        value = scores[token]
        changed = scores.at[token].set(value / penalty if scale > 0 else jnp.where(value < 0, value * penalty, value))
        again = (value == scale) & (scale > 0)
        return jnp.where(again, changed - jnp.max(changed) + scale, changed), None

    return jax.lax.scan(one, scores, jnp.asarray(previous, jnp.int32))[0]
