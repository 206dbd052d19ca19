"""Optimizers and learning-rate schedules by name, from optax, with weight decay by parameter role."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from models import growth
from models.parameters import UNTRAINED


def schedule(options, steps: int) -> Callable[[jax.Array], jax.Array]:
    """Learning rate of an update by its index (0 for the first of `steps`): a linear warm-up, then the named shape.

    Update u of n, u = 1 .. n, has rate peak * u / w up to u = w, the warm-up in updates (at least 1), and is (u - w) /
    (n - w) of the way from the peak to `final` times the peak after it. So the first update has a rate above 0, the
    peak is reached, and the last update has `final`; a run of one update has the peak. wsd keeps the peak until
    the last `decay_share` of the updates after the warm-up, and goes down in a line over those. constant keeps it.

    With `optimizer.counting="steps"` all of it comes one update later, as in runs made before that key: the first has
    rate 0, and `final` is never reached.

    Args:
      options: `config.optimizer`.
      steps: updates of the whole run.
    """
    peak, final, late = options.learning_rate, options.learning_rate * options.final, options.counting == "steps"
    warmup = warmup_steps(options, steps)
    first = warmup if late else max(1, warmup)
    rest = max(1, steps - first)
    shapes = {
        "cosine": lambda: optax.cosine_decay_schedule(peak, rest, alpha=options.final),
        "linear": lambda: optax.linear_schedule(peak, final, rest),
        "constant": lambda: optax.constant_schedule(peak),
        "wsd": lambda: _stable_then_decay(peak, final, rest, options.decay_share),
    }
    after = shapes[options.schedule]()
    curve = optax.join_schedules([optax.linear_schedule(0.0, peak, first), after], [first]) if first else after
    return curve if late else lambda index: curve(index + 1)


SCHEDULES = ("cosine", "linear", "wsd", "constant")
COUNTINGS = ("updates", "steps")


def warmup_steps(options, steps: int) -> int:
    """Warm-up in updates: a share of the run below 1, else a count."""
    return round(options.warmup * steps) if options.warmup < 1 else round(options.warmup)


def _stable_then_decay(peak: float, final: float, steps: int, share: float) -> Callable:
    """Constant, then linear over the last `share` of the steps (WSD; Hu et al. 2024, MiniCPM)."""
    decay = max(1, round(share * steps))
    return optax.join_schedules(
        [optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [max(0, steps - decay)]
    )


def make(options, steps: int, roles: Any, rates: Any = None) -> optax.GradientTransformation:
    """The whole update rule: clipping, the named optimizer, decoupled decay on the chosen roles, the schedule.

    Args:
      options: `config.optimizer`.
      steps: length of the whole run.
      roles: pytree of parameter roles (models.parameters.ROLES), the structure of the parameters.
      rates: pytree of what multiplies the learning rate of each parameter; None: nothing does. Decay keeps the rate of
        the schedule. ValueError for an optimizer that is not in BY_SIZE.
    """
    decayed = jax.tree.map(lambda role: role in options.decay_roles, roles)
    rate = schedule(options, steps)
    clip = [optax.stateless(lambda grads, _: clipped(grads, options.clip))] if options.clip else []
    rule = optax.chain(*clip, OPTIMIZERS[options.name](options, rate, decayed, roles, _scaled(options.name, rates)))

    def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
        updates, state = rule.update(grads, state, params)
        return keep_untrained(roles, updates, jax.tree.map(jnp.zeros_like, updates)), state

    return optax.GradientTransformation(rule.init, update)


def clipped(grads: Any, limit: float) -> Any:
    """Gradients g, of norm n together, times min(1, limit / n) (Pascanu et al. 2012).

    One factor for all: XLA computes a division of every gradient, as optax has it, apart from what reads it, twice.
    """
    norm = optax.tree.norm(grads)
    factor = jnp.where(norm < limit, 1, limit / norm)
    return jax.tree.map(lambda g: (g * factor).astype(g.dtype), grads)


def keep_untrained(roles: Any, new: Any, old: Any) -> Any:
    """`new`, but `old` for parameters that no gradient trains (models.parameters.UNTRAINED), bit for bit."""
    return jax.tree.map(lambda role, n, o: o if role in UNTRAINED else n, roles, new, old)


def _scaled(name: str, rates: Any) -> tuple[optax.GradientTransformation, ...]:
    """What multiplies each update by its rate, before decay."""
    if rates is None or all(rate == 1.0 for rate in jax.tree.leaves(rates)):
        return ()
    if name not in BY_SIZE:
        raise ValueError(f"optimizer.name={name!r} has no rates by size; use optimizer.name='adamw'.")
    return (optax.stateless(lambda updates, _: jax.tree.map(lambda u, r: u * jnp.asarray(r, u.dtype), updates, rates)),)


def _adamw(o, rate, decayed, roles, scaled=()):
    return optax.chain(
        optax.scale_by_adam(o.b1, o.b2, o.eps),
        *scaled,
        optax.add_decayed_weights(o.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(rate),
    )


def _lion(o, rate, decayed, roles, scaled=()):
    return optax.chain(
        optax.scale_by_lion(o.b1, o.b2),
        *scaled,
        optax.add_decayed_weights(o.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(rate),
    )


def _adafactor(o, rate, decayed, roles, scaled=()):
    # optax.adafactor's own decay is not multiplied by the learning rate: chain the decoupled form instead.
    return optax.chain(
        optax.scale_by_factored_rms(),
        optax.clip_by_block_rms(1.0),
        optax.add_decayed_weights(o.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(rate),
    )


def _muon(o, rate, decayed, roles, scaled=()):
    """Muon (Jordan 2024) for stacked kernels `[layers, in, out]`, AdamW for everything else."""
    by_role = jax.tree.map(lambda role: "muon" if role == "kernel" else "adamw", roles)
    dimensions = contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    muon = optax.chain(
        contrib.scale_by_muon(
            beta=0.95, weight_dimension_numbers=lambda params: jax.tree.map(lambda _: dimensions, params)
        ),
        optax.stateless_with_tree_map(_match_adam_rms),
        optax.add_decayed_weights(o.weight_decay if "kernel" in o.decay_roles else 0.0),
        optax.scale_by_learning_rate(rate),
    )
    return optax.partition(
        {"muon": muon, "adamw": _adamw(o, rate, decayed_outside_kernels(decayed, roles), roles)}, by_role
    )


def decayed_outside_kernels(decayed: Any, roles: Any) -> Any:
    """The decay mask of what Muon leaves to AdamW: masked kernels stay masked."""
    return jax.tree.map(lambda flag, role: flag and role != "kernel", decayed, roles)


def _match_adam_rms(update: jax.Array, _) -> jax.Array:
    """Scales an orthogonal update to the RMS of an Adam update, 0.2 (Liu et al. 2025, Moonlight, eq. 4)."""
    return update * 0.2 * jnp.sqrt(max(update.shape[-2:])).astype(update.dtype)


def _schedule_free(o, rate, decayed, roles, scaled=()):
    """Schedule-free AdamW (Defazio et al. 2024): set `optimizer.schedule="constant"`; evaluation uses the average."""
    base = optax.chain(
        optax.scale_by_adam(b1=0.0, b2=o.b2, eps=o.eps),
        optax.add_decayed_weights(o.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(rate),
    )
    # The average weighs an update by the square of the (largest) rate that it was made with; optax counts the weights
    # from 1 and the rates from 0, and so would weigh it by that of the next one.
    weighing = rate if o.counting == "steps" else lambda count: rate(count - 1)
    return contrib.schedule_free(base, weighing, b1=o.b1)


OPTIMIZERS = {
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
    "adafactor": _adafactor,
    "schedule_free": _schedule_free,
}

BY_SIZE = ("adamw", "lion")  # whose steps do not depend on the size of a gradient, entry by entry: Adam's rules hold
CARRIED = ("adamw", "lion", "muon")  # whose state grows with the parameters row by row


def carry(old: Any, fresh: Any) -> Any:
    """The optimizer state of grown parameters: old rows keep their moments, new rows and the schedule start afresh.

    Args:
      old: state (of an optimizer in CARRIED) as it was trained.
      fresh: `init` of the grown parameters.
    """
    restarts = lambda node: isinstance(node, optax.ScaleByScheduleState)  # noqa: E731
    extended = lambda f, o: f if restarts(f) else growth.extend(o, f).astype(f.dtype)  # noqa: E731
    return jax.tree.map(extended, fresh, old, is_leaf=restarts)


def average(options, old: Any, count: jax.Array | None, params: Any) -> tuple[Any, dict]:
    """The exponential average after one more update, and its count where it has one.

    With a count t it is (1 - d) sum_i d^(t-i) p_i / (1 - d^t), d = `optimizer.ema`, over the updates i = 1 .. t: the
    initial parameters are no part of it, so that an average longer than the run is the mean of the run. Without one (as
    in runs made before `optimizer.ema_debias`) it starts at the initial parameters, which keep the weight d^t.

    Args:
      options: `config.optimizer`.
      old: the average before, at the first update anything finite.
      count: updates in it, int32 []; None: it is not corrected.
      params: parameters after the update.

    Returns:
      the average and `{"averaged": count + 1}`, or `{}` without a count.
    """
    decay = options.ema
    if count is None:
        return jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, old, params), {}
    new = count + 1
    # (1 - d) / (1 - d^t), without taking numbers that are nearly equal from one another; 1 at the first update.
    share = jnp.minimum(1.0, (1 - decay) / -jnp.expm1(new * jnp.float32(math.log(decay))))
    mix = lambda a, p: ((1 - share) * a + share * p).astype(a.dtype)  # noqa: E731
    return jax.tree.map(mix, old, params), {"averaged": new}


def evaluation_params(options, optimizer_state: Any, params: Any) -> Any:
    """The parameters to evaluate: those trained, except for schedule-free, which evaluates its running average."""
    if options.name != "schedule_free":
        return params
    return contrib.schedule_free_eval_params(optimizer_state[-1], params)
