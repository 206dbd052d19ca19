"""NeoDiff: diffusion of embeddings with a global time t and an intrinsic time tau in {0..K} of each token.

tau comes from s ~ Poisson(lambda), lambda = 2 K t, stretched about its mean by sqrt(lambda) and clipped:
tau = clip(round((s - lambda) sqrt(lambda) + lambda), 0, K). It is strongly bimodal at middle times.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kernels import masks
from models import reports
from models.block import Pass
from models.facts import Facts
from models.objectives import schedules
from models.objectives.loss import Loss, per_scored
from models.objectives.next_token import over_logits
from models.objectives.noise import by_row, mean_of_draws

Array = jax.Array
FULL_NOISE_ABOVE = 0.99


class Noised(NamedTuple):
    """Noised embeddings z [B, T, D], global times t [B], intrinsic times tau [B, T] in 0..K."""

    z: Array
    t: Array
    tau: Array


def stretch(s: Array, mean: Array, K: int) -> Array:
    """tau of a Poisson draw s of the given mean: clip(round((s - mean) sqrt(mean) + mean), 0, K); elementwise.

    The release divides by the standard deviation and multiplies by the variance: a factor sqrt(mean) in all. Mean 0
    gives 0.
    """
    return jnp.clip(jnp.round((s - mean) * jnp.sqrt(mean) + mean), 0, K)


def tau_pmf(t: Array | float, K: int) -> Array:
    """Law of a token's intrinsic time at global time t: [..., K+1] for t [...]; sums to 1.

    For t > 0.99 all mass is at K, full noise. (The release puts tau = 1 there, K only if tau were normalised.)
    """
    t = _float(t)
    mean = 2 * K * t
    s = _support(K, t.dtype)
    mass = jnp.exp(_log_poisson(s, mean[..., None]))
    tau = stretch(s, mean[..., None], K)
    pmf = (mass[..., None] * (tau[..., None] == jnp.arange(K + 1))).sum(-2)
    return jnp.where(_late(t)[..., None], jnp.arange(K + 1) == K, pmf)


def sample_tau(key: Array, t: Array, length: int, K: int) -> Array:
    """Independent intrinsic times for `length` tokens at global times t [B]: int [B, T]."""
    # By the inverse of the law and not by a Poisson draw: jax.random.poisson runs two loops until every element of the
    # batch is accepted, on all devices, and XLA on CPUs may run them in another order on each: a deadlock, seen.
    cdf = jnp.cumsum(tau_pmf(t, K), -1)[:, None, :-1]
    return (cdf <= jax.random.uniform(key, (t.shape[0], length, 1), cdf.dtype)).sum(-1)


def poisson_ppf(q: Array, mean: Array, K: int) -> Array:
    """Smallest s with P(S <= s) >= q for S ~ Poisson(mean), mean <= 2K; elementwise on broadcast q and mean."""
    q, mean = jnp.broadcast_arrays(_float(q), _float(mean))
    cdf = jnp.cumsum(jnp.exp(_log_poisson(_support(K, mean.dtype), mean[..., None])), -1)
    return (cdf < q[..., None]).sum(-1)


def labels(losses: Array, t: Array | float, K: int, valid: Array | None = None) -> Array:
    """Labels of the time predictor: the intrinsic time that suits each token's loss: int [..., T].

    Tokens are ranked by loss; rank r of n gets tau of the Poisson quantile (r + 1/2) / n, so that tokens of large loss
    keep more noise. losses are [..., T], t is a scalar or [...]. valid is bool [..., T], the tokens that count (others
    get label 0).
    """
    losses, t = jnp.asarray(losses), _float(t)
    valid = jnp.ones(losses.shape, bool) if valid is None else jnp.asarray(valid)
    ranked = jnp.where(valid, losses, jnp.inf)
    rank = jnp.argsort(jnp.argsort(ranked, -1, stable=True), -1)
    count = jnp.maximum(valid.sum(-1, keepdims=True), 1)
    mean = 2 * K * t[..., None]
    quantile = jnp.minimum((rank + 0.5) / count, 1 - 1e-6).astype(t.dtype)
    tau = stretch(poisson_ppf(quantile, mean, K).astype(mean.dtype), mean, K)
    tau = jnp.where(_late(t)[..., None], K, tau)
    return jnp.where(valid, tau, 0).astype(int)


def signal(tau: Array, K: int) -> Array:
    """Share of signal abar = 1 - sqrt(tau/K + 1e-4), at least 0 ("sqrt" schedule); elementwise."""
    return jnp.maximum(1 - jnp.sqrt(_float(tau) / K + 1e-4), 0.0)


def corrupt(key: Array, x: Array, t: Array, K: int, noise_factor: float = 1.0, frozen: Array | None = None) -> Noised:
    """z = sqrt(abar) x + sqrt(1 - abar) noise_factor eps with abar of each token's own tau.

    x are clean embeddings [B, T, D], t is [B]. frozen is bool [B, T], the tokens that stay clean (tau = 0, no noise).
    """
    tau_key, noise_key = jax.random.split(key)
    tau = sample_tau(tau_key, t, x.shape[1], K)
    keep = signal(tau, K).astype(x.dtype)[..., None]
    z = jnp.sqrt(keep) * x + jnp.sqrt(1 - keep) * noise_factor * jax.random.normal(noise_key, x.shape, x.dtype)
    if frozen is not None:
        z, tau = jnp.where(frozen[..., None], x, z), jnp.where(frozen, 0, tau)
    return Noised(z, t, tau)


def token_loss(predicted: Array, x: Array, logits: Array, tokens: Array, smoothing: float = 0.1) -> tuple[Array, Array]:
    """Squared error of predicted embeddings and anchor cross-entropy, per token: [B, T], [B, T].

    predicted, x: [B, T, D]; logits [B, T, V] of the predicted embeddings; tokens [B, T]. The anchor is smoothed: the
    target is 1 - smoothing at the token plus smoothing / V everywhere. The release sums both.
    """
    error = jnp.square(predicted - x).mean(-1)
    log_p = jax.nn.log_softmax(logits, -1)
    chosen = jnp.take_along_axis(log_p, tokens[..., None], -1)[..., 0]
    return error, -(1 - smoothing) * chosen - smoothing * log_p.mean(-1)


def time_loss(logits: Array, label: Array) -> Array:
    """Cross-entropy of the time predictor per token: [B, T] from logits [B, T, K+1] and labels [B, T]."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits, -1), label[..., None], -1)[..., 0]


def _float(t: Array | float) -> Array:
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))


def _late(t: Array) -> Array:
    return _float(t) > FULL_NOISE_ABOVE


def _support(K: int, dtype) -> Array:
    # Beyond the largest mean 2K by 12 standard deviations and 40 the Poisson tail is below 1e-30.
    return jnp.arange(int(2 * K + 12 * (2 * K) ** 0.5 + 40), dtype=dtype)


def _log_poisson(s: Array, mean: Array) -> Array:
    zero = mean == 0
    value = s * jnp.log(jnp.where(zero, 1.0, mean)) - mean - jax.lax.lgamma(s + 1)
    return jnp.where(zero, jnp.where(s == 0, 0.0, -jnp.inf), value)


@dataclasses.dataclass(frozen=True)
class NeoDiff:
    """NeoDiff of an `LM` whose inputs are noised embeddings of unit mean square and whose features predict clean ones.

    Every token is told its own tau / levels (`model.time_features`). The time predictor is the same backbone, run over
    the predicted embeddings at the next global time, with `levels` + 1 more rows of the head as its classes (the paper
    has a layer of its own for it). With `model.self_condition` a share `conditioned` of the rows in training, and every
    row in evaluation, is decoded twice, the second time with the first prediction beside it. Tokens where
    `batch["scored"]` is false stay clean. Options: see `config.neodiff`. The nats of evaluation are those of clean
    tokens given noised ones at a random time: NOT a bound of the likelihood, which this model does not have.
    """

    mask_id: int
    levels: int = 99
    smoothing: float = 0.1
    noise_factor: float = 1.0
    conditioned: float = 0.5
    draws: int = 4

    mask: ClassVar[masks.Mask] = masks.Full()
    bound: ClassVar[str] = "~"
    causal: ClassVar[bool] = False
    generator: ClassVar[str] = "neodiff"
    copies: ClassVar[int] = 2
    timed: ClassVar[bool] = True
    predicts_twice: ClassVar[bool] = True

    @staticmethod
    def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
        """A model that is told no time."""
        if not facts.model["time_features"]:
            yield (
                "model.time_features=0 does not tell a token its noise, which objective='neodiff' needs; "
                "use e.g. model.time_features=64."
            )

    @property
    def extra_tokens(self) -> int:
        """The classes of the time predictor."""
        return self.levels + 1

    def corrupt(self, batch: dict, key: Array) -> dict:
        """The global batch with what noises it.

        Added are `tau [B, T]`, the global times `next [B]` of the predictor, the keys `noise [B, 2]`, and
        `conditioned [B]`, the rows that see an earlier prediction. The noise is as wide as the model, so each row draws
        its own from its key later.
        """
        time_key, tau_key, next_key, noise_key = jax.random.split(key, 4)
        coin = jax.random.uniform(jax.random.fold_in(key, 1), batch["tokens"].shape[:1])
        B, T = batch["tokens"].shape
        t = schedules.sample_times(time_key, B)
        tau = jnp.where(batch["scored"], sample_tau(tau_key, t, T, self.levels), 0)
        noise = jax.random.key_data(jax.random.split(noise_key, B))
        later = t * jax.random.uniform(next_key, (B,))
        return {**batch, "tau": tau, "next": later, "noise": noise, "conditioned": coin < self.conditioned}

    def loss(self, model, batch: dict, key: Array, *, z_loss: float = 0.0) -> Loss:
        """Sum of squared error, anchor and time losses over a batch from `corrupt`; `key` and `z_loss` are not used."""
        (features, _, report), x = self._predicted(model, batch)
        error, anchor = self._token_losses(model, features, x, batch, self.smoothing)
        ranked = jax.lax.stop_gradient(error + anchor)
        label = labels(ranked, batch["next"], self.levels, batch["scored"])
        # The predictor reads the predicted embeddings; no gradient passes from it into them.
        read = jax.lax.stop_gradient(jnp.where(batch["scored"][..., None], features, x))
        out = self.decode(model, read, batch["next"], batch)
        late = over_logits(
            lambda logits, label: time_loss(logits[..., self.mask_id : self.mask_id + self.levels + 1], label),
            model, out.features, label,
        )  # fmt: skip
        sums = [jnp.sum(jnp.where(batch["scored"], value, 0)) for value in (error, anchor, late)]
        means = per_scored(dict(zip(("error", "nll", "time"), sums, strict=True)), batch)
        return Loss(sum(sums), means, reports.add(report, out.report))

    def row_nll(self, model, batch: dict, key: Array) -> Array:
        """Nats of each row's clean tokens given noised ones, [B]: the mean of `draws` random times."""

        read = {name: batch[name] for name in ("tokens", "scored")}

        def estimate(keys: Array) -> Array:
            noised = {**batch, **by_row(lambda key, row: self.corrupt(row, key), keys, read)}
            noised["conditioned"] = jnp.ones_like(noised["conditioned"])
            out, x = self._predicted(model, noised)
            _, nll = self._token_losses(model, out.features, x, noised, 0.0)
            return jnp.sum(jnp.where(batch["scored"], nll, 0), -1)

        return mean_of_draws(estimate, key, self.draws, batch["tokens"], model.spec.dtype)

    def embed(self, model, tokens: Array) -> Array:
        """Clean embeddings [B, T, D], each of unit mean square."""
        x = model.embed(tokens).astype(jnp.promote_types(model.spec.dtype, jnp.float32))
        return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), -1, keepdims=True) + 1e-12)

    def decode(self, model, z: Array, time: Array, batch: dict, earlier: Array | None = None) -> Pass:
        """A pass over embeddings z [B, T, D] at times [B] or [B, T] in 0..1; `earlier`: a prediction."""
        places = {"positions": batch.get("positions"), "segment_ids": batch.get("segment_ids")}
        return model(z, mask=self.mask, time=time, condition=earlier, **places)

    def _predicted(self, model, batch: dict) -> tuple[Pass, Array]:
        """The pass that predicts embeddings, with the reports of all, and clean ones [B, T, D]; batch of `corrupt`."""
        x, tau = self.embed(model, batch["tokens"]), batch["tau"]
        keys = jax.random.wrap_key_data(batch["noise"])
        eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
        keep = signal(tau, self.levels).astype(x.dtype)[..., None]
        z = jnp.sqrt(keep) * x + jnp.sqrt(1 - keep) * self.noise_factor * eps
        z = jnp.where(batch["scored"][..., None], z, x)
        time, free = tau / self.levels, batch["scored"][..., None]
        if model.condition is None:
            return self.decode(model, z, time, batch), x
        first = self.decode(model, z, time, batch)
        known = jax.lax.stop_gradient(jnp.where(free, first.features, x))
        out = self.decode(model, z, time, batch, jnp.where(batch["conditioned"][:, None, None], known, 0))
        return out._replace(report=reports.add(first.report, out.report)), x

    def _token_losses(self, model, features: Array, x: Array, batch: dict, smoothing: float) -> tuple[Array, Array]:
        """Squared error and anchor of every token, [B, T] each."""

        def local(logits: Array, predicted: Array, x: Array, tokens: Array) -> Array:
            return jnp.stack(token_loss(predicted, x, logits, tokens, smoothing), 1)

        both = over_logits(local, model, features, features, x, batch["tokens"], classes=self.mask_id)
        return both[:, 0], both[:, 1]

    def keys(self, length: int) -> float:
        """Keys seen for each token of a row of `length`, over both passes."""
        return 2 * length


PARTS = {"neodiff": NeoDiff}
