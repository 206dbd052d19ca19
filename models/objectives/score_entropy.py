"""Score entropy (SEDD) and uniform-state diffusion: losses on ratios s_y ~ p_t(y) / p_t(z), and one reverse step.

`log_score` is [B, T, C]: C = V for the uniform graph; C = V + 1 with the mask last, or V without it, for the
absorbing one. `sigma` is the total noise -log alpha: a scalar, [B] or [B, T]. Losses are in nats, per token, before
the factor sigma'(t).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kernels import masks
from models.facts import Facts, span_problems
from models.objectives import masked_diffusion, schedules
from models.objectives.diffusion import whole_documents
from models.objectives.loss import Loss, per_scored
from models.objectives.masked_diffusion import Corruption, per_token
from models.objectives.next_token import over_logits
from models.objectives.noise import by_row, mean_of_draws

Array = jax.Array
CHOICES = {
    "graph": ("absorb", "uniform"),
    "head": ("score", "probs"),
    "schedule": ("loglinear", "cosine_mdlm", "geometric"),  # The noise of these is finite at t = 1.
    "times": ("iid", "offset", "stratified"),
}


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
      log_score: [B, T, C]; C = V on the uniform graph.
      z: [B, T] tokens.
      step: noise of the step, a scalar.
      graph: "absorb" or "uniform".
      mask_id: the mask's column on the absorbing graph, the last by default. Pass mask_id = C for scores without one;
        the result then has C + 1 columns.
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

    Each other token y gets step * rate(y -> z) * s_y, with rate 1 from y to the mask, or 1/V between any two. z keeps
    the rest.
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


@dataclasses.dataclass(frozen=True)
class ScoreEntropy:
    """Score entropy of an `LM` (SEDD, Lou et al. 2024), or with head="probs" masked and uniform-state diffusion.

    Tokens where `batch["scored"]` is true are scored, the others given. graph="absorb": tokens become `mask_id`.
    graph="uniform": tokens become any of the `mask_id` ids of the tokenizer, and there is no mask. Options: see
    `config.score_entropy`. Nats are upper bounds.
    """

    mask_id: int
    graph: str = "absorb"
    head: str = "score"
    schedule: str = "loglinear"
    times: str = "stratified"
    t_min: float = 1e-3
    t_max: float = 1.0
    draws: int = 4

    mask: ClassVar[masks.Mask] = masks.Full()
    bound: ClassVar[str] = "<="
    causal: ClassVar[bool] = False
    generator: ClassVar[str] = "canvas"
    copies: ClassVar[int] = 1
    timed: ClassVar[bool] = True

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """Times without a span."""
        return span_problems(options, facts)

    @property
    def extra_tokens(self) -> int:
        """1 for the mask; 0 on the uniform graph, which has none."""
        return int(self.graph == "absorb")

    def log_score(self, logits: Array, t: Array, z: Array, temperature: float = 1.0) -> Array:
        """Log-scores [B, T, V] from the head's logits [B, T, V] at times t; the absorbing ones mean k p at the masks.

        head "score": the logits themselves, of the absorbing graph scaled as in SEDD; "probs": what predictions of x
        imply. Temperatures other than 1 change where tokens go, not how many: log-sum-exp stays.
        """
        logits, sigma = tempered(_wide(logits), temperature), schedules.get(self.schedule).sigma(t)
        if self.head == "probs":
            return log_score_from_probs(jax.nn.log_softmax(logits, -1), sigma, z, self.graph)
        return log_score_from_logits(logits, sigma, z) if self.graph == "absorb" else logits

    def corrupt(self, batch: dict, key: Array) -> dict:
        """The global batch with `noised [B, T]` tokens, their `time [B]`, and `weight [B, T]` of the loss."""
        drawn = self._noise(key, batch["tokens"], batch["scored"], training=True)
        return {**batch, "noised": drawn.z, "time": drawn.t, "weight": drawn.weight}

    def loss(self, model, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """Sum of sigma' times score entropy over a batch from `corrupt`, nats; `key` and `z_loss` are not used."""
        rows, report = self._rows(model, batch, Corruption(batch["noised"], batch["time"], batch["weight"]))
        total = jnp.sum(rows)
        return Loss(total, per_scored({"nll": total}, batch), report)

    def row_nll(self, model, batch: dict, key: Array) -> Array:
        """Bound of each row's nats, [B]: the mean of `draws` estimates.

        Absorbing: fixed counts, k of a row's n free tokens masked, weight n / k. Uniform: times in (0, 1], and the
        divergence of the noise at t = 1 from the uniform law, which the sampler starts from.
        """

        tokens, draw = batch["tokens"], functools.partial(self._noise, training=False)

        def estimate(keys: Array) -> Array:
            return self._rows(model, batch, by_row(draw, keys, tokens, batch["scored"]))[0]

        mean = mean_of_draws(estimate, key, self.draws, tokens, model.spec.dtype)
        return mean + self.prior() * batch["scored"].sum(-1)

    def prior(self) -> Array:
        """KL(q(z_1 | x) || law that the sampler starts from) of a token, nats; 0 where all is masked at the end."""
        if self.graph == "absorb":
            return jnp.zeros(())
        floor = schedules.get(self.schedule).mask(1.0) / self.mask_id
        stays = 1 - (self.mask_id - 1) * floor
        entropy = -stays * jnp.log(stays) - (self.mask_id - 1) * floor * jnp.log(floor)
        return jnp.log(self.mask_id) - entropy

    def _rows(self, model, batch: dict, drawn: Corruption) -> tuple[Array, dict]:
        """Weighted loss of each row [B], and the model's report."""
        plain = absorbing if self.graph == "absorb" else uniform

        def local(logits: Array, z: Array, x: Array, t: Array, weight: Array) -> Array:
            loss = plain(self.log_score(logits, t, z), schedules.get(self.schedule).sigma(t), z, x)
            return jnp.where(weight > 0, weight * loss, 0).sum(-1)

        out = whole_documents(model, batch, drawn.z, drawn.t)
        arrays = (drawn.z, batch["tokens"], drawn.t, drawn.weight)
        return over_logits(local, model, out.features, *arrays, classes=self.mask_id), out.report

    def _noise(self, key: Array, tokens: Array, free: Array, *, training: bool) -> Corruption:
        """Noised tokens, times [B], and the weight of each token's score entropy: sigma' where it is scored."""
        schedule = schedules.get(self.schedule)
        if self.graph == "absorb" and not training:
            drawn = masked_diffusion.corrupt(
                key, tokens, mask_id=self.mask_id, schedule=schedule, how="fixed_count", frozen=~free
            )
            # n / k belongs to the loss at the rate 1 / m of the mask; score entropy is 1 / expm1(sigma) of that.
            scale = jnp.exp(_log_expm1(schedule.sigma(drawn.t)))
            return drawn._replace(weight=drawn.weight * scale[:, None])
        time_key, move_key, token_key = jax.random.split(key, 3)
        limits = (self.t_min, self.t_max) if training else (0.0, 1.0)
        t = schedules.sample_times(time_key, tokens.shape[0], self.times, *limits)
        moved = free & (jax.random.uniform(move_key, tokens.shape) < schedule.mask(t)[:, None])
        anew = jax.random.randint(token_key, tokens.shape, 0, self.mask_id, tokens.dtype)
        z = jnp.where(moved, self.mask_id if self.graph == "absorb" else anew, tokens)
        return Corruption(z, t, jnp.where(free, schedule.dsigma(t)[:, None], 0.0))


def tempered(logits: Array, temperature: float) -> Array:
    """Logits [..., C] at a temperature (0: all on the largest); their log-sum-exp does not change."""
    if temperature == 1:
        return logits
    if temperature == 0:
        sharp = jnp.where(jnp.arange(logits.shape[-1]) == jnp.argmax(logits, -1)[..., None], 0.0, -jnp.inf)
    else:
        sharp = jax.nn.log_softmax(logits / temperature, -1)
    return sharp + jax.nn.logsumexp(logits, -1, keepdims=True)


PARTS = {"score_entropy": ScoreEntropy}
