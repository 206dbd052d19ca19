"""Samplers of masked diffusion models: one compiled loop per request, from a plain function denoise(z, t) -> logits.

Rows of a batch are independent: each has its own keys, its own progress and its own number of calls.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.decoding.canvas import reveal
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
        analytic, euler, released: score models, whose `denoise` returns log-scores: see `_by_score`.
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
    mask_id = vocab_size if mask_id is None else mask_id
    canvas = jnp.full((length,), mask_id) if init is None else jnp.asarray(init)
    if canvas.shape[-1] != length:
        raise ValueError(f"init has {canvas.shape[-1]} positions; give it length={length}")
    canvas = jnp.broadcast_to(canvas, (batch, length))
    keys = key_scheme.row_keys(key, batch, requests)
    run = METHODS[method]
    known = [
        name for name, p in inspect.signature(run).parameters.items() if p.default is not p.empty and name != "kind"
    ]
    for name in options:
        if name not in known:
            raise ValueError(f"method {method!r} has no option {name!r}; it takes {', '.join(known)}")
    return run(denoise, keys, canvas, vocab_size=vocab_size, mask_id=mask_id, steps=steps, **options)


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


def _on_grid(
    denoise,
    keys,
    canvas,
    *,
    vocab_size,
    mask_id,
    steps,
    kind,
    schedule="linear",
    grid="linear",
    remask=0.0,
    early_stop=False,
    temperature=1.0,
    guidance=0.0,
):
    del vocab_size
    times, rates = time_grid(schedule, steps, grid)
    prompt = canvas != mask_id
    predict = reveal.predictor(denoise, mask_id, guidance, prompt)
    cost = 1 if guidance == 0 else 2

    def body(state):
        i, z, calls, logits, stale = state
        masked = z == mask_id
        needs = masked.any(-1) if early_stop and not remask else jnp.ones(z.shape[:1], bool)
        if kind == "cached":
            needs = needs & stale
            logits = jax.lax.cond(needs.any(), lambda: predict(z, times[i]), lambda: logits)
        else:
            logits = predict(z, times[i])
        up, down = (r.astype(logits.dtype) for r in reverse_rates(rates[i], rates[i + 1], remask))
        log_p = jax.nn.log_softmax(logits / (temperature or 1.0), -1)
        token_keys, reveal_keys = (
            key_scheme.fold(keys, i, key_scheme.TOKEN),
            key_scheme.fold(keys, i, key_scheme.REVEAL),
        )
        if kind == "ancestral_two_step" or temperature == 0:
            drawn = key_scheme.sample(token_keys, log_p, 0 if temperature == 0 else 1)
            shown = key_scheme.uniform(reveal_keys, z.shape[1:], logits.dtype) < up
        else:
            stay = jnp.broadcast_to(jnp.log1p(-up), (*z.shape, 1))
            drawn = key_scheme.sample(token_keys, jnp.concatenate([log_p + jnp.log(up), stay], -1))
            shown = drawn < log_p.shape[-1]
        new = jnp.where(masked & shown, drawn.astype(z.dtype), z)
        if remask:
            noise = key_scheme.uniform(key_scheme.fold(keys, i, key_scheme.REMASK), z.shape[1:], logits.dtype)
            new = jnp.where(~masked & ~prompt & (noise < down), mask_id, new)
        return i + 1, new, calls + cost * needs, logits, (new != z).any(-1)

    def unfinished(state):
        i, z = state[:2]
        done = ~(z == mask_id).any() if early_stop and not remask else False
        return (i < steps) & ~jnp.asarray(done)

    rows = canvas.shape[0]
    blank = jax.eval_shape(predict, canvas, times[0])
    start = (0, canvas, jnp.zeros(rows, int), jnp.zeros(blank.shape, blank.dtype), jnp.ones(rows, bool))
    _, z, calls, _, _ = jax.lax.while_loop(unfinished, body, start)
    return z, calls


def next_hitting_rate(u: Array, rate: Array, masks: Array) -> Array:
    """Mask rate at which the next of `masks` tokens appears: rate * u^(1/masks), u uniform in (0, 1]."""
    return rate * u ** (1 / jnp.maximum(masks, 1))


def _first_hitting(
    denoise,
    keys,
    canvas,
    *,
    vocab_size,
    mask_id,
    steps,
    schedule="linear",
    temperature=1.0,
    guidance=0.0,
):
    del vocab_size, steps
    schedule = schedules.resolve(schedule)
    predict = reveal.predictor(denoise, mask_id, guidance, canvas != mask_id)

    def body(state):
        i, z, rate, calls = state
        masked = z == mask_id
        left = masked.sum(-1)
        u = 1 - key_scheme.uniform(key_scheme.fold(keys, i, key_scheme.REVEAL), dtype=rate.dtype)
        rate = next_hitting_rate(u, rate, left)
        logits = predict(z, schedule.time(rate))
        place = key_scheme.uniform(key_scheme.fold(keys, i, key_scheme.PLACE), z.shape[1:])
        drawn = key_scheme.sample(key_scheme.fold(keys, i, key_scheme.TOKEN), logits, temperature)
        new = jnp.where(reveal.choose(place, masked, jnp.minimum(left, 1)), drawn.astype(z.dtype), z)
        return i + 1, new, rate, calls + (1 if guidance == 0 else 2) * (left > 0)

    rows = canvas.shape[0]
    start = (0, canvas, jnp.ones(rows, jnp.result_type(float)), jnp.zeros(rows, int))
    _, z, _, calls = jax.lax.while_loop(lambda s: (s[1] == mask_id).any(), body, start)
    return z, calls


def block_steps(length: int, block: int | None, prompt_length: int, steps: int | None) -> int:
    """Steps for each block of a semi-autoregressive sampler that has `steps` in all."""
    blocks = -(-(length - prompt_length) // block) if block else 1
    if steps is None or steps < blocks or steps % blocks:
        raise ValueError(f"steps={steps} must be a positive multiple of the {blocks} blocks, for example {4 * blocks}")
    return steps // blocks


def _by_confidence(
    denoise,
    keys,
    canvas,
    *,
    vocab_size,
    mask_id,
    steps,
    kind,
    block=None,
    prompt_length=0,
    counts="even",
    threshold=0.9,
    factor=1.0,
    confidence="max_prob",
    position_temperature=0.0,
    temperature=1.0,
    guidance=0.0,
):
    del vocab_size
    rows, length = canvas.shape
    parallel = kind in ("threshold", "factor")
    owner = reveal.block_of(length, block, prompt_length)
    pick, limit = (reveal.threshold_count, threshold) if kind == "threshold" else (reveal.factor_count, factor)
    if counts not in ("even", "dream") or (counts == "dream" and block):
        raise ValueError(f"counts={counts!r} with block={block}: use even, or dream without blocks")
    each = 0 if parallel else block_steps(length, block, prompt_length, steps)
    predict = reveal.predictor(denoise, mask_id, guidance, canvas != mask_id)
    grid = dream_grid(steps) if counts == "dream" and not parallel else None

    plan = _planner(parallel, grid, owner if block else None, each)

    def body(state):
        i, z, calls, total = state
        masked = z == mask_id
        allowed, count, total = plan(i, masked, total)
        logits = predict(z, masked.mean(-1) if grid is None else grid[i])
        drawn = key_scheme.sample(key_scheme.fold(keys, i, key_scheme.TOKEN), logits, temperature)
        places = key_scheme.fold(keys, i, key_scheme.PLACE)
        rule = confidence if parallel else kind
        conf = reveal.confidence(rule, logits, temperature, candidates=drawn, keys=places)
        if parallel:
            count = pick(jnp.where(allowed, conf, -jnp.inf), limit)
        if position_temperature:
            noisy = key_scheme.fold(keys, i, key_scheme.REVEAL)
            conf = conf / position_temperature + jax.vmap(lambda k: key_scheme.gumbel(k, (length,), conf.dtype))(noisy)
        new = jnp.where(reveal.choose(conf, allowed, count), drawn.astype(z.dtype), z)
        return i + 1, new, calls + (1 if guidance == 0 else 2) * (count > 0) * allowed.any(-1), total

    def unfinished(state):
        return (state[1] == mask_id).any() & (parallel | (state[0] < (steps or 0)))

    none = jnp.zeros(rows, int)
    return jax.lax.while_loop(unfinished, body, (0, canvas, none, none))[1:3]


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


def _by_score(
    denoise, keys, canvas, *, vocab_size, mask_id, steps, kind, schedule="loglinear", graph="absorb", grid="linear"
):
    """Score models (SEDD): `denoise(z, t)` returns log-scores; z starts all masked, or uniform on the uniform graph.

    Every call reveals or moves tokens by the noise sigma(t) - sigma(s); the last step of the absorbing graph goes to
    sigma = 0 and then puts what is left of the mask's mass on the tokens. `released` is Euler's step with the noise
    (t - s) sigma'(t) in its place, as in SEDD's released code: the same to first order, and too long wherever sigma
    bends up (on the log-linear schedule the first of T steps is 999 / T, where the noise is 6.9 in all). Its grid is
    ours; the released one stops at t = 1e-5 and adds a call that removes the rest.
    """
    times, _ = time_grid(schedule, steps, grid)
    schedule = schedules.resolve(schedule)
    sigma = schedule.sigma(times).at[-1].set(0.0)
    lengths = sigma[:-1] - sigma[1:]
    if kind == "released":
        lengths = (times[:-1] - times[1:]) * schedule.dsigma(times[:-1])
    fixed = canvas != mask_id
    move = score_entropy.analytic_step if kind == "analytic" else score_entropy.euler_step
    if graph == "uniform":
        noise = key_scheme.uniform(key_scheme.fold(keys, 0, key_scheme.START), canvas.shape[1:])
        canvas = jnp.where(fixed, canvas, jnp.minimum((noise * vocab_size).astype(canvas.dtype), vocab_size - 1))

    def body(i, z):
        law = move(denoise(z, jnp.broadcast_to(times[i], z.shape[:1])), z, lengths[i], graph, mask_id)
        if graph == "absorb":
            keep = (jnp.arange(law.shape[-1]) != mask_id) | (i < steps - 1)
            law = jnp.where(keep | fixed[..., None], law, 0.0)
        drawn = key_scheme.sample(key_scheme.fold(keys, i, key_scheme.TOKEN), jnp.log(law))
        return jnp.where(fixed, z, drawn.astype(z.dtype))

    if graph == "uniform":
        mask_id = None
    z = jax.lax.fori_loop(0, steps, body, canvas)
    return z, jnp.full(canvas.shape[0], steps)


METHODS = {
    **{name: functools.partial(_on_grid, kind=name) for name in ("ancestral", "ancestral_two_step", "cached")},
    "first_hitting": _first_hitting,
    **{name: functools.partial(_by_confidence, kind=name) for name in (*reveal.CONFIDENCES, "threshold", "factor")},
    **{name: functools.partial(_by_score, kind=name) for name in ("analytic", "euler", "released")},
}
