"""Score entropy (SEDD) and uniform-state diffusion: losses on ratios s_y ~ p_t(y) / p_t(z), and one reverse step.

`log_score` is [B, T, C]: C = V for the uniform graph; C = V + 1 with the mask last, or V without it, for the
absorbing one. `sigma` is the total noise -log alpha: a scalar, [B] or [B, T]. Losses are in nats, per token, before
the factor sigma'(t).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from models.objectives.masked_diffusion import per_token

Array = jax.Array


def absorbing(log_score: Array, sigma: Array | float, z: Array, x: Array) -> Array:
    """Absorbing score entropy per token [B, T], before sigma'(t); zero at visible tokens (SEDD eq. 5 and code).

    At a masked token, k = 1/expm1(sigma): sum_{y<V} s_y - k log s_x + k (log k - 1). Masked is where z differs from
    x, so neither the mask's id nor whether it has a column needs saying. With s_y = k p_y, sigma' times this is the
    SUBS loss.
    """
    z, x = jnp.asarray(z), jnp.asarray(x)
    log_score = _wide(log_score)
    log_k = -_log_expm1(per_token(jnp.asarray(sigma, log_score.dtype), z))
    masked = z != x
    # The visible rows may hold anything (SEDD puts 0 at z); they are cleared first so that gradients stay finite.
    log_score = jnp.where(masked[..., None], log_score, 0.0)
    others = jnp.arange(log_score.shape[-1]) != z[..., None]
    total = jnp.where(others, jnp.exp(log_score), 0.0).sum(-1)
    loss = total - jnp.exp(log_k) * (_pick(log_score, x) - log_k + 1)
    return jnp.where(masked, loss, 0.0)


def uniform(log_score: Array, sigma: Array | float, z: Array, x: Array) -> Array:
    """Uniform score entropy per token [B, T], before sigma'(t); the rate to every other token is 1/V.

    (1/V) sum_{y != z} [s_y - r_y log s_y + r_y (log r_y - 1)], r_y = q(y|x)/q(z|x), q = alpha 1[.=x] + (1-alpha)/V.
    """
    z, x = jnp.asarray(z), jnp.asarray(x)
    log_score = _wide(log_score)
    size = log_score.shape[-1]
    # q(y|x) = (1 + 1[y=x] V / expm1(sigma)) (1-alpha)/V: only the ratio to the floor enters.
    log_up = jnp.logaddexp(0.0, jnp.log(size) - _log_expm1(per_token(jnp.asarray(sigma, log_score.dtype), z)))
    columns = jnp.arange(size)
    log_q = jnp.where(columns == x[..., None], log_up[..., None] + 0 * log_score, 0.0)
    log_r = log_q - _pick(log_q, z)[..., None]
    ratio = jnp.exp(log_r)
    terms = jnp.exp(log_score) - ratio * log_score + ratio * (log_r - 1)
    return jnp.where(columns != z[..., None], terms, 0.0).sum(-1) / size


def uniform_from_logits(logits: Array, alpha: Array | float, z: Array, x: Array) -> Array:
    """The same loss from predictions of x [B, T, V]; times -alpha'/alpha it is the NELBO density (UDLM eq. 15).

    With b = V alpha 1[.=x] + 1-alpha and c = V alpha p_theta + 1-alpha, i = z:
    (1/V) [V/c_i - V/b_i + sum_j (b_j/b_i) log(b_j c_i / (b_i c_j))].
    """
    z, x = jnp.asarray(z), jnp.asarray(x)
    logits = _wide(logits)
    alpha, size = per_token(jnp.asarray(alpha, logits.dtype), z), logits.shape[-1]
    floor = (1 - alpha)[..., None]
    c = size * alpha[..., None] * jax.nn.softmax(logits, -1) + floor
    b = size * alpha[..., None] * (jnp.arange(size) == x[..., None]) + floor
    c_i, b_i = _pick(c, z)[..., None], _pick(b, z)[..., None]
    cross = (b / b_i * jnp.log(b * c_i / (b_i * c))).sum(-1)
    return 1 / c_i[..., 0] - 1 / b_i[..., 0] + cross / size


def log_score_from_logits(logits: Array, sigma: Array | float, z: Array) -> Array:
    """SEDD's output scaling: logits - log expm1(sigma) - log(C - 1), and 0 at z. [B, T, C] -> [B, T, C]."""
    z, logits = jnp.asarray(z), _wide(logits)
    scale = _log_expm1(per_token(jnp.asarray(sigma, logits.dtype), z))
    scaled = logits - scale[..., None] - jnp.log(jnp.asarray(logits.shape[-1] - 1, logits.dtype))
    return jnp.where(jnp.arange(logits.shape[-1]) == z[..., None], 0.0, scaled)


def log_score_from_probs(log_p: Array, sigma: Array | float, z: Array, graph: str) -> Array:
    """The score that predictions of x imply: k p_y, k = 1/expm1(sigma), absorbing; c_y / c_z uniform; 0 at z.

    log_p: [B, T, C] normalised. For the absorbing graph only the rows of masked tokens mean anything.
    """
    z, log_p = jnp.asarray(z), _wide(log_p)
    log_e = _log_expm1(per_token(jnp.asarray(sigma, log_p.dtype), z))[..., None]
    if graph == "absorb":
        scaled = log_p - log_e
    elif graph == "uniform":
        # c_y is proportional to 1 + V p_y / expm1(sigma).
        log_c = jnp.logaddexp(0.0, jnp.log(log_p.shape[-1]) + log_p - log_e)
        scaled = log_c - _pick(log_c, z)[..., None]
    else:
        raise ValueError(f"graph={graph!r} is unknown; use absorb or uniform")
    return jnp.where(jnp.arange(log_p.shape[-1]) == z[..., None], 0.0, scaled)


def analytic_step(
    log_score: Array, z: Array, step: Array | float, graph: str = "absorb", mask_id: int | None = None
) -> Array:
    """Law of z_s given z_t by SEDD's analytic (Tweedie) step of noise `step` = sigma_t - sigma_s: [B, T, C].

    prob(y) is proportional to [e^{-DQ} s]_y [e^{DQ}](y -> z), D = step; s is 1 at z. Negative entries, which a wrong
    score can give on the uniform graph, are cut to 0. Rows are normalised; with true scores they already are.

    Args:
      log_score: [B, T, C]. graph "absorb": `mask_id` is the mask's column, the last by default; pass mask_id = C for
      scores
        without one, and the result has C + 1 columns. graph "uniform": C = V.
    """
    z, score, size = *_score(log_score, z, graph, mask_id), log_score.shape[-1]
    step = per_token(jnp.asarray(step, score.dtype), z)[..., None]
    columns = jnp.arange(score.shape[-1])
    if graph == "absorb":
        mask_id = size - 1 if mask_id is None else mask_id
        at_mask = columns == mask_id
        staggered = jnp.exp(step) * score - at_mask * jnp.expm1(step) * score.sum(-1, keepdims=True)
        # exp(D) s_M + (1 - exp(D)) sum s, with the sum over all columns, is SEDD's MASK entry.
        back = jnp.exp(-step) * (columns == z[..., None]) - jnp.expm1(-step) * (z == mask_id)[..., None]
    else:
        staggered = jnp.exp(step) * score - jnp.expm1(step) / size * score.sum(-1, keepdims=True)
        back = jnp.exp(-step) * (columns == z[..., None]) - jnp.expm1(-step) / size
    law = jnp.maximum(staggered * back, 0.0)
    return law / law.sum(-1, keepdims=True)


def euler_step(
    log_score: Array, z: Array, step: Array | float, graph: str = "absorb", mask_id: int | None = None
) -> Array:
    """Law of z_s given z_t by one Euler (tau-leaping) step of the reverse process: [B, T, C]; `step` as above.

    Each other token y gets step * rate(y -> z) * s_y, rate 1 from y to the mask, or 1/V between any two; the rest
    stays.
    """
    z, score, size = *_score(log_score, z, graph, mask_id), log_score.shape[-1]
    step = per_token(jnp.asarray(step, score.dtype), z)[..., None]
    here = jnp.arange(score.shape[-1]) == z[..., None]
    if graph == "absorb":
        rate = (z == (size - 1 if mask_id is None else mask_id)).astype(score.dtype)[..., None]
    else:
        rate = jnp.full_like(step, 1 / size)
    moves = jnp.where(here, 0.0, step * rate * score)
    # A step too long for the rates would leave less than nothing behind; the moves are then taken in proportion.
    law = jnp.where(here, jnp.maximum(1 - moves.sum(-1, keepdims=True), 0.0), moves)
    return law / law.sum(-1, keepdims=True)


def _score(log_score: Array, z: Array, graph: str, mask_id: int | None) -> tuple[Array, Array]:
    if graph not in ("absorb", "uniform"):
        raise ValueError(f"graph={graph!r} is unknown; use absorb or uniform")
    z, log_score = jnp.asarray(z), _wide(log_score)
    if graph == "absorb" and mask_id is not None and mask_id >= log_score.shape[-1]:
        log_score = jnp.pad(log_score, [(0, 0)] * (log_score.ndim - 1) + [(0, 1)])
    here = jnp.arange(log_score.shape[-1]) == z[..., None]
    return z, jnp.where(here, 1.0, jnp.exp(log_score))


def _wide(values: Array) -> Array:
    values = jnp.asarray(values)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _log_expm1(sigma: Array) -> Array:
    # log(e^s - 1) = s + log(1 - e^-s): no overflow for large noise, no loss for small.
    return sigma + jnp.log(-jnp.expm1(-sigma))


def _pick(values: Array, index: Array) -> Array:
    index = jnp.clip(index, 0, values.shape[-1] - 1)
    return jnp.take_along_axis(values, index[..., None], -1)[..., 0]
