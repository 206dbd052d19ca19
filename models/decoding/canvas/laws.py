"""Exact laws of the samplers on tiny alphabets: the probability of every output string, by recursion over all states.

A state is a partly masked string; there are (V+1)^L of them, and one step of a sampler is a Markov kernel on them.
Plain numpy in float64, for alphabets of up to a few thousand states.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding.canvas import reveal
from models.objectives import schedules

MAX_STATES = 4096
GRID = ("ancestral", "ancestral_two_step", "cached")


def exact_law(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    *,
    length: int,
    vocab_size: int,
    mask_id: int | None = None,
    steps: int | None = None,
    method: str = "ancestral",
    init: np.ndarray | None = None,
    **options,
) -> np.ndarray:
    """Law of `models.decoding.canvas.diffusion.sample` with the same arguments: float64 of shape [V] * L, sum 1.

    All methods but the score ones; options as there, without position_temperature. For first_hitting and the confidence
    family the denoiser must not depend on t. Sampler and law share the rules of `reveal` and nothing else.

    Raises:
      ValueError: more than 4096 states, a mask other than V, or a method without a recursion.
    """
    mask_id = vocab_size if mask_id is None else mask_id
    if mask_id != vocab_size:
        raise ValueError(f"mask_id={mask_id}: the enumeration numbers the mask last, use mask_id={vocab_size}")
    if (vocab_size + 1) ** length > MAX_STATES:
        raise ValueError(f"{vocab_size + 1}^{length} states are too many; at most {MAX_STATES}, for example V=3, L=4")
    states = np.array(list(itertools.product(range(vocab_size + 1), repeat=length)))
    canvas = np.full(length, mask_id) if init is None else np.asarray(init)
    law = np.zeros(len(states))
    law[_index(canvas, vocab_size)] = 1.0
    model = _Model(denoise, states, vocab_size, canvas != mask_id, options)
    if method in GRID:
        kernels = _grid_kernels(model, steps, options)
    else:
        kernels = _confidence_kernels(model, canvas, steps, method, options)
    if options:
        raise ValueError(f"method {method!r} has no exact law with {sorted(options)}")
    for kernel in kernels:
        law = kernel(law)
    full = (states < vocab_size).all(1)
    if not math.isclose(law[full].sum(), 1.0, abs_tol=1e-9):
        raise ValueError(
            f"steps={steps} leave a share {1 - law[full].sum():.3g} of the strings unfinished; use more steps"
        )
    return law[full].reshape((vocab_size,) * length)


class _Model:
    """The denoiser's probabilities at every state, with the options that change them."""

    def __init__(self, denoise, states, size, prompt, options):
        self.states, self.size, self.prompt = states, size, prompt
        self.masked = states == size
        self.temperature = options.pop("temperature", 1.0)
        self.predict = reveal.predictor(denoise, size, options.pop("guidance", 0.0), prompt)

    def logits(self, t: float | np.ndarray) -> jax.Array:
        return self.predict(jnp.asarray(self.states), jnp.asarray(t, jnp.result_type(float)))[..., : self.size]

    def probs(self, logits: jax.Array) -> np.ndarray:
        values = np.asarray(logits, np.float64)
        if self.temperature == 0:
            return np.eye(self.size)[values.argmax(-1)]
        p = np.exp((values - values.max(-1, keepdims=True)) / self.temperature)
        return p / p.sum(-1, keepdims=True)


def _index(states: np.ndarray, size: int) -> np.ndarray:
    return (states * (size + 1) ** np.arange(states.shape[-1])[::-1]).sum(-1)


def _product(law: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Next law when, from state s, position l independently takes value v with probability rows[s, l, v]."""
    live = np.flatnonzero(law)
    joint = law[live, None]
    for l in range(rows.shape[1]):
        joint = (joint[:, :, None] * rows[live, l, None, :]).reshape(len(live), -1)
    return joint.sum(0)


def _grid_kernels(model: _Model, steps: int, options: dict) -> Iterator[Callable]:
    schedule, grid = options.pop("schedule", "linear"), options.pop("grid", "linear")
    remask, _ = options.pop("remask", 0.0), options.pop("early_stop", False)
    times = schedules.grid(steps, grid) if isinstance(grid, str) else list(grid)
    rates = np.asarray(schedules.resolve(schedule).mask(jnp.asarray(times, jnp.result_type(float))), np.float64)
    rates = np.append(rates[:-1], 0.0)

    def kernel(i: int) -> Callable:
        now, then = rates[i], rates[i + 1]
        down = remask * (1.0 if then >= 1 - now else then / (1 - now))
        up = (now - then + down * (1 - now)) / now

        def apply(law):
            p = model.probs(model.logits(times[i]))
            masked = np.concatenate([up * p, np.full((*p.shape[:2], 1), 1 - up)], -1)
            fall = np.where(model.prompt, 0.0, down)[None, :, None]
            shown = (1 - fall) * np.eye(model.size + 1)[model.states] + fall * np.eye(model.size + 1)[model.size]
            return _product(law, np.where(model.masked[..., None], masked, shown))

        return apply

    return (kernel(i) for i in range(steps))


def _confidence_kernels(
    model: _Model, canvas: np.ndarray, steps: int, method: str, options: dict
) -> Iterator[Callable]:
    length = len(canvas)
    options.pop("schedule", None)
    block, prompt_length = options.pop("block", None), options.pop("prompt_length", 0)
    counts, rule = options.pop("counts", "even"), options.pop("confidence", "max_prob")
    limit = {name: options.pop(name, value) for name, value in (("threshold", 0.9), ("factor", 1.0))}
    owner = np.asarray(reveal.block_of(length, block, prompt_length))
    left = model.masked.sum(1)
    logits = model.logits(model.masked.mean(1))
    if method in limit:
        first = owner[np.argmax(model.masked, 1)]
        allowed = model.masked & (owner == first[:, None])
        conf = reveal.confidence(rule, logits, model.temperature)
        pick = reveal.threshold_count if method == "threshold" else reveal.factor_count
        count = np.asarray(pick(jnp.where(allowed, conf, -jnp.inf), limit[method]))
        return (_step(model, logits, allowed, count, rule) for _ in range(length))
    if method == "first_hitting":
        return (_step(model, logits, model.masked, np.minimum(left, 1), "random") for _ in range(length))
    if method not in reveal.CONFIDENCES:
        raise ValueError(
            f"method {method!r} has no exact law here; use one of {', '.join((*GRID, *reveal.CONFIDENCES))}"
        )
    if counts == "dream":
        times = np.linspace(1, 1e-3, steps + 1)
        shares = [1.0 if i == steps - 1 else 1 - times[i + 1] / times[i] for i in range(steps)]
        return (_step(model, logits, model.masked, np.floor(left * share).astype(int), method) for share in shares)
    blocks = -(-(length - prompt_length) // block) if block else 1
    each, plans = steps // blocks, []
    for i in range(steps):
        mine = owner == i // each if block else np.ones(length, bool)
        total = int(((canvas == model.size) & mine).sum())
        plans.append((model.masked & mine, total // each + (i % each < total % each)))
    return (_step(model, logits, a, np.full(len(left), c), method) for a, c in plans)


def _step(model: _Model, logits: jax.Array, allowed: np.ndarray, count: np.ndarray, rule: str) -> Callable:
    """Reveal `count[s]` of the `allowed[s]` positions of state s, chosen by `rule`, tokens drawn independently."""
    p, size = model.probs(logits), model.size
    seen = np.eye(size + 1)[model.states]
    shown = np.concatenate([p, np.zeros((*p.shape[:2], 1))], -1)

    def reveal_at(law, chosen):
        return _product(law, np.where(chosen[..., None], shown, seen))

    def at_random(law):
        total = np.zeros_like(law)
        for pattern in itertools.product([False, True], repeat=allowed.shape[1]):
            chosen = np.array(pattern)[None] & allowed
            fits = (chosen.sum(1) == sum(pattern)) & (sum(pattern) == np.minimum(count, allowed.sum(1)))
            ways = [math.comb(int(n), sum(pattern)) for n in allowed.sum(1)]
            share = np.where(fits, law / np.maximum(ways, 1), 0.0)
            if share.any():
                total += reveal_at(share, chosen)
        return total

    def by_candidate(law):
        total = np.zeros_like(law)
        for string in itertools.product(range(size), repeat=allowed.shape[1]):
            picked = np.broadcast_to(np.array(string), allowed.shape)
            # Positions that are not open draw nothing: they are counted once, at token 0.
            chance = np.where(allowed, np.take_along_axis(p, picked[..., None], -1)[..., 0], picked == 0).prod(1)
            conf = reveal.confidence(rule, logits, model.temperature, candidates=jnp.asarray(picked))
            chosen = np.asarray(reveal.choose(conf, jnp.asarray(allowed), jnp.asarray(count)))
            np.add.at(total, _index(np.where(chosen, picked, model.states), size), law * chance)
        return total

    if rule == "random":
        return at_random
    if rule in ("candidate", "drawn"):
        return by_candidate
    conf = reveal.confidence(rule, logits, model.temperature)
    chosen = np.asarray(reveal.choose(conf, jnp.asarray(allowed), jnp.asarray(count)))
    return lambda law: reveal_at(law, chosen)
