"""What a layer of experts tells of a pass: its losses, and figures of its load, as entries of the model's report.

docs/moe.md lists the entries. Sums are over tokens that are no padding.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from models.experts import balance, capacity, sparsity
from models.experts.options import Kinds, Options
from models.experts.routing import Routing
from models.reports import Mean


def free(kinds: Kinds) -> np.ndarray:
    """Which experts cost nothing and balance by `eta`, `[E]` bool: constants, copies and zeros, but not nulls."""
    order = np.arange(kinds.total)
    return (order >= kinds.first("constant")) & (order < kinds.first("null"))


def eta(options: Options) -> np.ndarray:
    """The weight of each expert in the balance loss, `[E]`: 1, and `eta` for those that cost nothing."""
    return np.where(free(options.kinds), options.eta, 1.0)


def product(options: Options, probs: jax.Array, index: jax.Array, valid: jax.Array, before: Any = 0.0) -> jax.Array:
    """E sum_i eta_i f_i P_i of the tokens `[..., E]` together, f with the counts `before` them; nulls share their f."""
    E = probs.shape[-1]
    new = balance.counts(index, E, valid).astype(probs.dtype)
    f, _ = balance.accumulate(before, new)
    if not options.normalise_k:
        f = f * jnp.sum(new) / jnp.maximum(jnp.sum(valid), 1)
    if options.kinds.null:
        f = balance.null_fractions(f, E - options.kinds.null)
    return balance.product(f, eta(options) * balance.mean_probs(probs, valid))


def balanced(options: Options, routing: Routing, valid: jax.Array, before: jax.Array | None) -> jax.Array:
    """The balance loss of a pass in its scope, a number a token; arrays `[B, T, ...]`, counts `before [E]`."""
    arrays = routing.probs, routing.index, valid
    scope = options.balance_scope
    if scope in ("global", "accumulated"):
        return product(options, *arrays, 0.0 if before is None else before)
    B, T = valid.shape
    parts = B if scope == "sequence" else np.gcd(options.balance_parts, B if scope == "micro" else B * T)
    cut = lambda a: a.reshape(B * T, *a.shape[2:])  # noqa: E731
    if scope == "shuffled":
        # One draw of places for all passes of a shape: texts are in another order each step.
        order = np.random.default_rng(0).permutation(B * T)
        arrays = tuple(cut(a)[order][None] for a in arrays)
    arrays = tuple(a.reshape(parts, -1, *a.shape[2:]) for a in arrays)
    each = jax.vmap(lambda *arrays: product(options, *arrays))(*arrays)
    # A share of padding alone has no load, and no say.
    some = jnp.any(arrays[2], axis=1)
    return jnp.sum(jnp.where(some, each, 0)) / jnp.maximum(jnp.sum(some), 1)


def report(
    options: Options,
    routing: Routing,
    kept: jax.Array,
    valid: jax.Array,
    failed: jax.Array,
    context: Any,
    state: Mapping[str, jax.Array],
) -> dict[str, Any]:
    """Entries of a layer's report.

    Args:
      options: the layer's.
      routing: what its router decided, before anything was dropped; `[B, T, ...]`.
      kept: the index after that.
      valid: `[B, T]` tokens that are no padding and whose logits are numbers.
      failed: `[B, T]` those whose logits hold NaN.
      context: of the pass.
      state: running parameters by name.
    """
    E, tokens = options.kinds.total, jnp.sum(valid, dtype=jnp.float32)
    counted = balance.counts(routing.index, E, valid)
    choices = jnp.sum(counted)
    costly = jnp.sum((kept >= 0) & (kept < options.kinds.first("constant")) & valid[..., None])
    probs = routing.probs
    if options.router == "relu":
        probs = sparsity.shares(probs)
        routing = routing._replace(probs=probs)
    per = lambda value: Mean(jnp.sum(jnp.where(valid, value, 0)), tokens)  # noqa: E731
    told = {
        "load": Mean(counted, jnp.full_like(counted, choices)),
        "entropy": per(balance.entropy(probs)),
        "costly": Mean(costly.astype(tokens.dtype), tokens),
        "dropped": Mean(capacity.dropped(routing.index, kept).astype(tokens.dtype), choices),
        "not_a_number": Mean(jnp.sum(failed, dtype=jnp.float32), tokens + jnp.sum(failed, dtype=jnp.float32)),
    }
    losses = dict(_losses(options, routing, valid, context, state))
    if options.budget:
        losses["budget"] = (options.budget, jnp.sum(jnp.where(valid, state["budget"], 0)) / jnp.maximum(tokens, 1))
    told |= {name: Mean(jax.lax.stop_gradient(value) * tokens, tokens) for name, (_, value) in losses.items()}
    told = jax.lax.stop_gradient(told)
    total = sum((coefficient * value for coefficient, value in losses.values()), jnp.zeros((), jnp.float32))
    return told | {"loss": total * tokens}


def _losses(options: Options, routing: Routing, valid: jax.Array, context: Any, state: Mapping) -> Any:
    """(name, (coefficient, loss a token)) of every loss that has a coefficient."""
    if options.balance:
        yield "balance", (options.balance, balanced(options, routing, valid, state.get("before")))
    if options.z_loss:
        yield "z_loss", (options.z_loss, balance.z_loss(routing.logits, valid))
    if options.router == "relu" and options.locality:
        pairs = valid[:, 1:] & valid[:, :-1] & (context.positions[:, 1:] != 0)
        yield "locality", (options.locality, sparsity.locality_loss(routing.logits, pairs))
    if options.router == "relu" and options.sparsity:
        B, T, E = routing.probs.shape
        chunk = np.gcd(options.chunk, T)
        loss = sparsity.chunk_loss(routing.probs.reshape(B * T, E), valid.reshape(-1), chunk=int(chunk))
        yield "sparsity", (schedule(options).value(state["schedule"]), loss)


def schedule(options: Options) -> sparsity.Schedule:
    """Of the coefficient of BlockFFN's chunk loss."""
    return sparsity.Schedule(options.sparsity, options.stable, options.window)


def advance(options: Options, old: Mapping[str, jax.Array], told: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The running parameters after a step with this report, layers in front: biases and the schedule move."""
    new = dict(old)
    if "bias" in old:
        new["bias"] = balance.bias_update(old["bias"], told["load"].total, options.bias_rate)
    if "schedule" in old:
        new["schedule"] = schedule(options).advance(old["schedule"], told["sparsity"].value)
    if "draws" in old:
        new["draws"] = old["draws"] + jnp.asarray([1, 0], old["draws"].dtype)
    return new


def begin_draws(key: jax.Array, shape: Any, dtype: Any) -> jax.Array:
    """`[2]`: no step yet, and a whole number of the layer's own below 2^20."""
    return jnp.stack([jnp.zeros(()), jnp.floor(jax.random.uniform(key) * 2**20)]).reshape(shape).astype(dtype)


def figures(told: Mapping[str, Any]) -> dict[str, jax.Array]:
    """What metrics show of each layer: the load `[L', E]`, its largest and smallest share, and the rest `[L']`.

    MaxViolation follows from the counts of the whole batch, and is no mean over its parts.
    """
    share = told["load"].value
    return {
        "max_violation": balance.max_violation(told["load"].total),
        "most": jnp.max(share, axis=-1),
        "least": jnp.min(share, axis=-1),
        "load": share,
        **{name: told[name].value for name in ("entropy", "dropped", "costly")},
    }


__all__ = ["advance", "balanced", "begin_draws", "eta", "figures", "free", "product", "report", "schedule"]
