"""Samplers of masked diffusion models: one compiled loop per request, from a plain function denoise(z, t) -> logits.

Rows of a batch are independent: each has its own keys, its own progress and its own number of calls.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.decoding.canvas import reveal
from models.decoding.canvas.canvas import Canvas, begin, fill
from models.decoding.canvas.laws import exact_law as exact_law
from models.objectives import schedules, score_entropy
from models.objectives.schedules import Schedule

Array = jax.Array


def sample(
    denoise: Callable[[Array, Array], Array],
    key: Array,
    *,
    batch: int,
    length: int,
    vocab_size: int,
    mask_id: int | None = None,
    steps: int | None = None,
    method: str = "ancestral",
    init: Array | None = None,
    requests: Array | None = None,
    **options,
) -> tuple[Array, Array]:
    """Draws token sequences; safe under jit, static shapes.

    Args:
      denoise: (z [B, T], t [B]) -> logits [B, T, V], or more columns, in which case `mask_id`'s is never drawn.
      mask_id: the mask, by default V.
      steps: T; not used by first_hitting, threshold and factor.
      method: which sampler, with its options:
        ancestral, ancestral_two_step, cached: T steps down a time grid. schedule="linear", grid="linear" | "cosine" | a
          sequence of T + 1 times from 1 to 0, remask=0.0 (share of the largest allowed remasking rate, ReMDM),
          early_stop=False (True: a row without masks makes no more calls). The last mask rate is 0, so nothing is left
          over. `cached` calls the model again only after a token changed: same tokens for a time-free model.
        first_hitting: one token per call at the exact times of the continuous process (schedule=).
        max_prob, margin, entropy, random, left_to_right, candidate, drawn: the most confident tokens first, in `steps`
          calls.
          block=None (semi-autoregressive blocks of this size), prompt_length=0, counts="even" | "dream",
          position_temperature=0. `candidate` and `drawn` are the released rules of LLaDA and Dream, which do NOT sample
          the model's law.
        threshold, factor: each call reveals all tokens whose confidence suffices: threshold=0.9 or factor=1.0,
          confidence="max_prob", block.
        analytic, euler, released: score models, whose `denoise` returns log-scores: see `Score`.
          schedule="loglinear", graph.
        All but the score models: temperature=1.0 (0 is argmax), guidance=0.0 (classifier-free; a call then counts
          twice).
      init: [T] or [B, T] canvas, `mask_id` where tokens are to be filled in (a prompt, or infilling); all masked if
        None.
      requests: [B] numbers from which the rows' keys are folded; by default the row's index.

    Returns:
      tokens [B, T] and calls [B]: the model evaluations that each row needed.

    Raises:
      ValueError: unknown method or option, or steps that do not fit.
    """
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown; use one of {', '.join(METHODS)}")
    settings = METHODS[method]
    known = [field.name for field in dataclasses.fields(settings) if field.name not in ("method", "steps")]
    for name in options:
        if name not in known:
            raise ValueError(f"method {method!r} has no option {name!r}; it takes {', '.join(known)}")
    canvas = begin(key, (batch, length), vocab_size, mask_id, init, requests)
    return settings(method, steps, **options).run(denoise, canvas)


def time_grid(
    schedule: Schedule | str, steps: int, grid: str | Sequence[float] = "linear"
) -> tuple[jax.Array, jax.Array]:
    """Times t_0 = 1 .. t_T and their mask rates, the last of them 0 so that no token is left masked: [T+1], [T+1]."""
    if steps is None:
        raise ValueError("steps=None does not say how many; give a number, for example 32")
    times = schedules.grid(steps, grid) if isinstance(grid, str) else list(grid)
    if len(times) != steps + 1:
        raise ValueError(f"grid has {len(times)} times; steps={steps} needs {steps + 1}")
    times = jnp.asarray(times, jnp.result_type(float))
    return times, schedules.resolve(schedule).mask(times).at[-1].set(0.0)


def reverse_rates(now: Array, then: Array, remask: float = 0.0) -> tuple[Array, Array]:
    """Chances, from mask rate `now` to `then`, that a masked token is revealed and that a visible one is masked again.

    remask = 0 is the ancestral step, (m_t - m_s)/m_t and 0. Otherwise sigma = remask * min(1, m_s / alpha_t), and the
    reveal rate that keeps the marginals of the forward process (ReMDM, theorem 3.1).
    """
    keep = 1 - now
    sigma = remask * jnp.minimum(1.0, then / jnp.maximum(keep, jnp.finfo(jnp.float32).tiny))
    return (now - then + sigma * keep) / now, sigma


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all methods are told: which one it is, and T, the steps."""

    method: str
    steps: int | None


@dataclasses.dataclass(frozen=True)
class Ancestral(Settings):
    """Steps down a time grid: ancestral, ancestral_two_step, cached. Options: see `sample`."""

    schedule: Schedule | str = "linear"
    grid: str | Sequence[float] = "linear"
    remask: float = 0.0
    early_stop: bool = False
    temperature: float = 1.0
    guidance: float = 0.0

    def run(self, denoise: Callable, canvas: Canvas) -> tuple[Array, Array]:
        """Tokens [B, T] and calls [B]."""
        keys, mask_id, steps, remask = canvas.keys, canvas.mask_id, self.steps, self.remask
        times, rates = time_grid(self.schedule, steps, self.grid)
        prompt = ~canvas.masked
        predict = reveal.predictor(denoise, mask_id, self.guidance, prompt)
        stops = self.early_stop and not remask

        def step(i, z, own):
            logits, stale = own
            masked = z == mask_id
            needs = masked.any(-1) if stops else jnp.ones(z.shape[:1], bool)
            if self.method == "cached":
                needs = needs & stale
                logits = jax.lax.cond(needs.any(), lambda: predict(z, times[i]), lambda: logits)
            else:
                logits = predict(z, times[i])
            up, down = (r.astype(logits.dtype) for r in reverse_rates(rates[i], rates[i + 1], remask))
            drawn, shown = self._draw(keys, i, logits, up)
            new = jnp.where(masked & shown, drawn.astype(z.dtype), z)
            if remask:
                noise = key_scheme.uniform(key_scheme.fold(keys, i, key_scheme.REMASK), z.shape[1:], logits.dtype)
                new = jnp.where(~masked & ~prompt & (noise < down), mask_id, new)
            return new, _cost(self.guidance) * needs, (logits, (new != z).any(-1))

        def unfinished(i, z):
            return (i < steps) & ~jnp.asarray(~(z == mask_id).any() if stops else False)

        blank = jax.eval_shape(predict, canvas.tokens, times[0])
        own = (jnp.zeros(blank.shape, blank.dtype), jnp.ones(len(canvas.tokens), bool))
        return fill(canvas, step, own, unfinished)

    def _draw(self, keys: Array, i: Array, logits: Array, up: Array) -> tuple[Array, Array]:
        """The token of every position [B, T], and whether it is shown; `up`: the chance of that."""
        log_p = jax.nn.log_softmax(logits / (self.temperature or 1.0), -1)
        token_keys, reveal_keys = (key_scheme.fold(keys, i, of) for of in (key_scheme.TOKEN, key_scheme.REVEAL))
        if self.method == "ancestral_two_step" or self.temperature == 0:
            drawn = key_scheme.sample(token_keys, log_p, 0 if self.temperature == 0 else 1)
            return drawn, key_scheme.uniform(reveal_keys, logits.shape[1:2], logits.dtype) < up
        stay = jnp.broadcast_to(jnp.log1p(-up), (*logits.shape[:2], 1))
        drawn = key_scheme.sample(token_keys, jnp.concatenate([log_p + jnp.log(up), stay], -1))
        return drawn, drawn < log_p.shape[-1]


def _cost(guidance: float) -> int:
    """Evaluations of the model in a call: classifier-free guidance asks twice."""
    return 1 if guidance == 0 else 2


def next_hitting_rate(u: Array, rate: Array, masks: Array) -> Array:
    """Mask rate at which the next of `masks` tokens appears: rate * u^(1/masks), u uniform in (0, 1]."""
    return rate * u ** (1 / jnp.maximum(masks, 1))


@dataclasses.dataclass(frozen=True)
class FirstHitting(Settings):
    """One token a call at the exact times of the continuous process. Options: see `sample`."""

    schedule: Schedule | str = "linear"
    temperature: float = 1.0
    guidance: float = 0.0

    def run(self, denoise: Callable, canvas: Canvas) -> tuple[Array, Array]:
        """Tokens [B, T] and calls [B]."""
        keys, schedule = canvas.keys, schedules.resolve(self.schedule)
        predict = reveal.predictor(denoise, canvas.mask_id, self.guidance, ~canvas.masked)

        def step(i, z, rate):
            masked = z == canvas.mask_id
            left = masked.sum(-1)
            u = 1 - key_scheme.uniform(key_scheme.fold(keys, i, key_scheme.REVEAL), dtype=rate.dtype)
            rate = next_hitting_rate(u, rate, left)
            logits = predict(z, schedule.time(rate))
            place = key_scheme.uniform(key_scheme.fold(keys, i, key_scheme.PLACE), z.shape[1:])
            drawn = key_scheme.sample(key_scheme.fold(keys, i, key_scheme.TOKEN), logits, self.temperature)
            new = jnp.where(reveal.choose(place, masked, jnp.minimum(left, 1)), drawn.astype(z.dtype), z)
            return new, _cost(self.guidance) * (left > 0), rate

        return fill(canvas, step, jnp.ones(len(canvas.tokens), jnp.result_type(float)))


def block_steps(length: int, block: int | None, prompt_length: int, steps: int | None) -> int:
    """Steps for each block of a semi-autoregressive sampler that has `steps` in all."""
    blocks = -(-(length - prompt_length) // block) if block else 1
    if steps is None or steps < blocks or steps % blocks:
        raise ValueError(f"steps={steps} must be a positive multiple of the {blocks} blocks, for example {4 * blocks}")
    return steps // blocks


@dataclasses.dataclass(frozen=True)
class Confident(Settings):
    """The most confident tokens first: the rules of `reveal`, threshold, factor. Options: see `sample`."""

    block: int | None = None
    prompt_length: int = 0
    counts: str = "even"
    threshold: float = 0.9
    factor: float = 1.0
    confidence: str = "max_prob"
    position_temperature: float = 0.0
    temperature: float = 1.0
    guidance: float = 0.0

    @property
    def parallel(self) -> bool:
        """Whether confidences decide how many tokens a call reveals."""
        return self.method in ("threshold", "factor")

    def run(self, denoise: Callable, canvas: Canvas) -> tuple[Array, Array]:
        """Tokens [B, T] and calls [B]."""
        keys, steps, (rows, length) = canvas.keys, self.steps, canvas.tokens.shape
        grid, plan = self._plan(length)
        predict = reveal.predictor(denoise, canvas.mask_id, self.guidance, ~canvas.masked)

        def step(i, z, total):
            masked = z == canvas.mask_id
            allowed, count, total = plan(i, masked, total)
            logits = predict(z, masked.mean(-1) if grid is None else grid[i])
            drawn = key_scheme.sample(key_scheme.fold(keys, i, key_scheme.TOKEN), logits, self.temperature)
            places = key_scheme.fold(keys, i, key_scheme.PLACE)
            rule = self.confidence if self.parallel else self.method
            conf = reveal.confidence(rule, logits, self.temperature, candidates=drawn, keys=places)
            if self.parallel:
                count = self._count(jnp.where(allowed, conf, -jnp.inf))
            if self.position_temperature:
                noisy = key_scheme.fold(keys, i, key_scheme.REVEAL)
                noise = jax.vmap(lambda k: key_scheme.gumbel(k, (length,), conf.dtype))(noisy)
                conf = conf / self.position_temperature + noise
            new = jnp.where(reveal.choose(conf, allowed, count), drawn.astype(z.dtype), z)
            return new, _cost(self.guidance) * (count > 0) * allowed.any(-1), total

        def unfinished(i, z):
            return (z == canvas.mask_id).any() & (self.parallel | (i < (steps or 0)))

        return fill(canvas, step, jnp.zeros(rows, int), unfinished)

    def _count(self, conf: Array) -> Array:
        """How many tokens suffice [B], of confidences [B, T]."""
        if self.method == "threshold":
            return reveal.threshold_count(conf, self.threshold)
        return reveal.factor_count(conf, self.factor)

    def _plan(self, length: int) -> tuple[Array | None, Callable]:
        """Dream's times (None without them) and what `_planner` gives."""
        dream, block = self.counts == "dream", self.block
        if self.counts not in ("even", "dream") or (dream and block):
            raise ValueError(f"counts={self.counts!r} with block={block}: use even, or dream without blocks")
        each = 0 if self.parallel else block_steps(length, block, self.prompt_length, self.steps)
        grid = dream_grid(self.steps) if dream and not self.parallel else None
        owner = reveal.block_of(length, block, self.prompt_length) if block else None
        return grid, _planner(self.parallel, grid, owner, each)


def _planner(parallel: bool, grid: Array | None, owner: Array | None, each: int) -> Callable:
    """A function (step, masked [B, T], total [B]) -> open positions, how many to reveal, masks of the block at first.

    How many to reveal is None where the confidences decide it. `owner` [T] is each position's block, None without
    blocks.
    """

    def plan(i, masked, total):
        if parallel:
            first = 0 if owner is None else owner[jnp.argmax(masked, -1)][:, None]
            return masked & ((0 if owner is None else owner) == first), None, total
        if grid is not None:
            return masked, dream_count(masked.sum(-1), grid, i), total
        allowed = masked if owner is None else masked & (owner == i // each)
        total = jnp.where(i % each == 0, allowed.sum(-1), total)
        return allowed, total // each + (i % each < total % each), total

    return plan


def dream_grid(steps: int) -> Array:
    """Dream's times: 1 down to 1e-3 in `steps` equal steps: [steps + 1]."""
    return jnp.linspace(1.0, 1e-3, steps + 1)


def dream_count(masks: Array, grid: Array, step: Array | int) -> Array:
    """Tokens that Dream reveals in a step: floor(n (1 - s/t)) of n masks, and all of them at the last step."""
    share = jnp.floor(masks * (1 - grid[step + 1] / grid[step])).astype(masks.dtype)
    return jnp.where(step == grid.shape[0] - 2, masks, share)


@dataclasses.dataclass(frozen=True)
class Score(Settings):
    """Score models (SEDD): `denoise(z, t)` returns log-scores; z starts all masked, or uniform on the uniform graph.

    Every call reveals or moves tokens by the noise sigma(t) - sigma(s); the last step of the absorbing graph goes to
    sigma = 0 and then puts what is left of the mask's mass on the tokens. `released` is Euler's step with the noise
    (t - s) sigma'(t) in its place, as in SEDD's released code: the same to first order, and too long wherever sigma
    bends up (on the log-linear schedule the first of T steps is 999 / T, where the noise is 6.9 in all). Its grid is
    ours; the released one stops at t = 1e-5 and adds a call that removes the rest.
    """

    schedule: Schedule | str = "loglinear"
    graph: str = "absorb"
    grid: str | Sequence[float] = "linear"

    def run(self, denoise: Callable, canvas: Canvas) -> tuple[Array, Array]:
        """Tokens [B, T] and calls [B]."""
        keys, steps, graph, size = canvas.keys, self.steps, self.graph, canvas.vocab_size
        times, lengths = self._lengths()
        fixed, z = ~canvas.masked, canvas.tokens
        move = score_entropy.analytic_step if self.method == "analytic" else score_entropy.euler_step
        mask_id = None if graph == "uniform" else canvas.mask_id
        if graph == "uniform":
            noise = key_scheme.uniform(key_scheme.fold(keys, 0, key_scheme.START), z.shape[1:])
            z = jnp.where(fixed, z, jnp.minimum((noise * size).astype(z.dtype), size - 1))

        def body(i, z):
            law = move(denoise(z, jnp.broadcast_to(times[i], z.shape[:1])), z, lengths[i], graph, mask_id)
            if graph == "absorb":
                keep = (jnp.arange(law.shape[-1]) != mask_id) | (i < steps - 1)
                law = jnp.where(keep | fixed[..., None], law, 0.0)
            drawn = key_scheme.sample(key_scheme.fold(keys, i, key_scheme.TOKEN), jnp.log(law))
            return jnp.where(fixed, z, drawn.astype(z.dtype))

        return jax.lax.fori_loop(0, steps, body, z), jnp.full(z.shape[0], steps)

    def _lengths(self) -> tuple[Array, Array]:
        """Times [T + 1] and the noise of each step [T]."""
        times, _ = time_grid(self.schedule, self.steps, self.grid)
        schedule = schedules.resolve(self.schedule)
        if self.method == "released":
            return times, (times[:-1] - times[1:]) * schedule.dsigma(times[:-1])
        sigma = schedule.sigma(times).at[-1].set(0.0)
        return times, sigma[:-1] - sigma[1:]


METHODS: dict[str, Any] = {
    **dict.fromkeys(("ancestral", "ancestral_two_step", "cached"), Ancestral),
    "first_hitting": FirstHitting,
    **dict.fromkeys((*reveal.CONFIDENCES, "threshold", "factor"), Confident),
    **dict.fromkeys(("analytic", "euler", "released"), Score),
}
