"""Growth of a TokenFormer: more parameter tokens, the same function (arXiv:2410.23168, section 3.3).

A new key is zero, so its score is 0 and the norm of the scores does not change. gelu(0) = 0, so its value adds nothing,
whatever the value is. Growth is therefore exact, provided that tau does not change either: tau is a parameter and keeps
its value at birth. (The released code computes it anew from the grown P, and leaves new keys random.) A new value is
drawn as at birth: a new key's gradient is tau / (2 |a|) <dout, value> x, so that it learns from the first step on.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import pattention
from models.lm import LM
from models.spec import Spec

KEYS = {  # of a Spec -> in a config
    "V": "model.vocab_size", "D": "model.width", "L": "model.num_layers", "N": "model.num_heads",
    "K": "model.num_kv_heads", "H": "model.head_dim", "mixers": "model.mixer",
}  # fmt: skip
SIZES = ("tokens", "channel_tokens", *(f"{name}_tokens" for name in pattention.MAPS))
FREE = {"dtype", "remat", "unroll", "partition", "init", "init_std", "options"}  # no part of the function, or below
FREE_OPTIONS = {f"pattention.{name}" for name in ("init_values", *SIZES)}


def grow(params: Any, old: Spec, new: Spec, key: jax.Array) -> Any:
    """The parameters of `new` that compute what `params` compute under `old`: zero keys and drawn values appended.

    Args:
      params: parameters of `LM(old)` as a plain dict; keys `[L, P, D_in]`, values `[L, P, D_out]`, tau `[L]`.
      old: sizes of the model that `params` belong to.
      new: the same but for more parameter tokens; may lie on another mesh or compute in another dtype.
      key: draws the new values.

    Raises:
      ValueError: the sizes differ in more than parameter tokens (each is named), or `new` has fewer of them.
    """
    if found := problems(old, new):
        raise ValueError("\n".join(found))
    born = nnx.to_pure_dict(nnx.state(LM(new, rngs=nnx.Rngs(params=key)), nnx.Param))

    def join(path: tuple, before: jax.Array, fresh: jax.Array) -> jax.Array:
        return extend(before, jnp.zeros_like(fresh) if path[-1].key == "keys" else fresh)

    kept = {name: params[name] for name in params.keys() & {"heads"}}  # What an objective adds has no tokens to grow.
    rest = {name: part for name, part in params.items() if name not in kept}
    return jax.tree_util.tree_map_with_path(join, rest, born) | kept


def extend(before: jax.Array, fresh: jax.Array) -> jax.Array:
    """`before`, followed by what `fresh` has beyond it along the one axis where it is longer; of `before`'s type."""
    longer = [axis for axis, (a, b) in enumerate(zip(before.shape, fresh.shape, strict=False)) if a != b]
    if not longer and before.ndim == fresh.ndim:
        return before
    if before.ndim != fresh.ndim or len(longer) > 1 or before.shape[longer[0]] > fresh.shape[longer[0]]:
        raise ValueError(f"an array of shape {before.shape} cannot grow to {fresh.shape}; only one axis may grow.")
    axis = longer[0]
    rest = jax.lax.slice_in_dim(fresh, before.shape[axis], fresh.shape[axis], axis=axis)
    return jnp.concatenate([before, rest.astype(before.dtype)], axis=axis)


def problems(old: Spec, new: Spec) -> list[str]:
    """One sentence for everything that growth from `old` to `new` would have to change and cannot."""
    if not pattention.used(old):
        return [
            f"model.projection={old.projection!r} and model.channel={old.channel!r} have no parameter tokens to grow; "
            "grow a model with model.projection='pattention'."
        ]
    found = []
    for key, was, wanted in differences(old, new):
        found.append(f"{key}={wanted!r} was {was!r}; growth changes only parameter tokens, use {key}={was!r}.")
    options = new.options["pattention"]
    if options["normalization"] == "softmax":
        found.append(
            "model.pattention.normalization='softmax' gives a zero key the weight exp(0) and growth would change the "
            "model; grow one with 'l2_gelu' or 'gelu_l2'."
        )
    if options["top_r"] and options["top_by"] == "score":
        found.append(
            "model.pattention.top_by='score' lets zero scores of new tokens displace negative ones; use 'magnitude'."
        )
    was, wanted = (pattention.token_counts(spec.options["pattention"], spec.D) for spec in (old, new))
    # A map without a number of its own has that of all maps, of which one sentence is enough.
    own = lambda name: name in SIZES[:2] or old.options["pattention"][name] or options[name]  # noqa: E731
    for name in filter(own, SIZES):
        if wanted[name] < was[name]:
            found.append(
                f"model.pattention.{name}={wanted[name]} is fewer than the {was[name]} there are; "
                f"use e.g. {2 * was[name]}."
            )
        elif options["top_r"] and was["tokens"] * wanted[name] != wanted["tokens"] * was[name]:
            kind = "a channel's" if name == "channel_tokens" else f"{name.removesuffix('_tokens')}'s"
            found.append(
                f"model.pattention.{name}={wanted[name]} changes what the router keeps of {kind} {was[name]} tokens; "
                f"use {wanted['tokens'] * was[name] // was['tokens']}, as many times more as model.pattention.tokens."
            )
    return found


def differences(old: Spec, new: Spec, free: frozenset[str] = frozenset()) -> list[tuple[str, Any, Any]]:
    """(key of the config, old, new) of everything that decides the function, parameter tokens and `free` left out."""
    pairs = [
        (KEYS.get(f.name, f"model.{f.name}"), getattr(old, f.name), getattr(new, f.name))
        for f in dataclasses.fields(Spec)
        if f.name not in FREE | free
    ]
    for group in sorted({*old.options, *new.options}):
        before, after = old.options.get(group, {}), new.options.get(group, {})
        for name in sorted({*before, *after}):
            if f"{group}.{name}" not in FREE_OPTIONS and name != "implementation":
                pairs.append((f"model.{group}.{name}", before.get(name), after.get(name)))
    return [(key, _plain(was), _plain(wanted)) for key, was, wanted in pairs if was != wanted]


def _plain(value: Any) -> Any:
    """As a config says it."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value) if isinstance(value, jnp.dtype) else value
