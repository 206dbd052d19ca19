"""Pattention as a linear map: tokens attend to parameter tokens (TokenFormer, arXiv:2410.23168, section 3.1).

`config.model.projection = "pattention"` turns every map of a mixer or channel into one; `config.model.channel =
"pattention"` is the paper's feed-forward, a single one. Parameters by name: `keys [P, D_in]`, `values [P, D_out]` and
`tau []`.

`tau`, the square root of P at birth, is a parameter of role "frozen". As a parameter it is saved, restored, placed and
grown with its keys, without a second path through all of those. It is not trained: its gradient is stopped here, and
the optimizer gives no update for the role (`keep_untrained` in program/optimizers.py), so that no decay and no average
changes a bit of it.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kernels.pattention import pattention
from models import parameters
from models.facts import Facts, listed
from models.products import by_rows
from models.spec import Spec

INIT_VALUES = {
    "wang": lambda spec, P: 2 / (spec.L * math.sqrt(spec.D)),
    "normal": lambda spec, P: spec.init_std,
    "fan_in": lambda spec, P: 1 / math.sqrt(P),
}
ROUTERS = ("score", "magnitude")


MAPS = {"q": "tokens", "k": "tokens", "v": "tokens", "o": "tokens", "up": "channel_tokens", "down": "channel_tokens"}


def token_counts(options: Mapping[str, Any], width: int) -> dict[str, int]:
    """P by the name of its key, every zero of `model.pattention` resolved: tokens, channel_tokens, q_tokens, ...

    Args:
      options: `config.model.pattention`.
      width: D.
    """
    tokens = options["tokens"] or width
    counts = {"tokens": tokens, "channel_tokens": options["channel_tokens"] or 4 * tokens}
    return counts | {f"{name}_tokens": options[f"{name}_tokens"] or counts[rest] for name, rest in MAPS.items()}


def problems(options: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    """Refuses a router that keeps more than all parameter tokens, and a number of them that devices do not divide."""
    counts, parts = token_counts(options, facts.model["width"]), facts.ways("tokens")
    if options["top_r"] > counts["tokens"]:
        yield (
            f"model.pattention.top_r={options['top_r']} is more than the {counts['tokens']} there are; "
            f"use e.g. {counts['tokens'] // 2}."
        )
    for name, count in counts.items():
        if count % parts and (options[name] or name in ("tokens", "channel_tokens")):
            yield (
                f"model.pattention.{name}={count} does not divide over {parts} devices of "
                f"{tuple(facts.sharding['tokens'])}; use e.g. {max(1, round(count / parts)) * parts}."
            )


def used(spec: Spec) -> bool:
    """Whether a model of this spec has parameter tokens."""
    return "pattention" in (spec.projection, *listed(spec.channel))


class Pattention(nnx.Module):
    """`theta(x keys^T) values (+ b)`: `x [..., D_in] -> [..., D_out]` over P parameter tokens; a Projection.

    P is `model.pattention.NAME_tokens` for the map of this `name`, where it is set; else `tokens`, or `channel_tokens`
    for a map to or from a channel's hidden width. theta multiplies the scores by tau, divides them by their norm over
    P, and takes GeLU; see kernels.pattention for the other forms.
    """

    problems = staticmethod(problems)
    keeps_input_alone = False  # also a statistic of each token's scores

    def __init__(
        self,
        spec: Spec,
        d_in: int,
        d_out: int,
        *,
        axes: tuple[str | None, str | None],
        residual: bool = False,
        bias: bool = False,
        name: str = "",
        rngs: nnx.Rngs,
    ):
        options = spec.options["pattention"]
        counts = token_counts(options, spec.D)
        own = f"{name}_tokens" if name in (*MAPS, "channel") else "channel_tokens" if "hidden" in axes else "tokens"
        P = counts[own]
        keys, values = (parameters.normal(std) for std in (spec.init_std, INIT_VALUES[options["init_values"]](spec, P)))
        # A mesh axis cuts P (tensor) or a width (fsdp), whatever the map's ends are called.
        self.keys = parameters.param(keys, rngs, (P, d_in), ("tokens", "embed"), "kernel", spec)
        self.values = parameters.param(values, rngs, (P, d_out), ("tokens", "embed"), "kernel", spec)
        wide = jnp.promote_types(spec.param_dtype, jnp.float32)
        self.tau = nnx.Param(jnp.asarray(math.sqrt(P), wide), axes=(), role="frozen")
        self.bias = parameters.param(parameters.zeros, rngs, (d_out,), axes[1:], "bias", spec) if bias else None
        self.rule = {name: options[name] for name in ("normalization", "gelu")}
        self.rule["implementation"] = options["implementation"] or None
        self.kept, self.router = _kept(options["top_r"], P, counts["tokens"]), options["top_by"]
        self.partition, self.dtype = spec.partition, spec.dtype
        self.cut = _mesh_axis(spec)

    def __call__(self, x: jax.Array) -> jax.Array:
        def local(x: jax.Array, keys: jax.Array, values: jax.Array, tau: jax.Array) -> jax.Array:
            keys, values = (self.partition.gather(p, (None, "embed")) for p in (keys, values))

            def multiply(x: jax.Array) -> jax.Array:
                mask = top_mask(x, keys, self.kept, by=self.router, axis_name=self.cut) if self.kept else None
                return pattention(x, keys, values, tau=tau, mask=mask, axis_name=self.cut, **self.rule)

            return by_rows(multiply, x)

        args = [a.astype(self.dtype) for a in (x, self.keys[...], self.values[...])]
        rows = self.partition.rows(x.ndim)
        axes = (rows, ("tokens", "embed"), ("tokens", "embed"), ())
        y = self.partition.run(local, (*args, jax.lax.stop_gradient(self.tau[...])), axes, rows)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


def top_mask(
    x: jax.Array, keys: jax.Array, r: int, *, by: str = "score", axis_name: str | tuple[str, ...] | None = None
) -> jax.Array:
    """A router over parameter tokens: which of P every token keeps, the r with the largest score (or |score|).

    Args:
      x: `[..., D]`.
      keys: `[P, D]`; with `axis_name`, this device's part of them.
      r: how many are kept; ties with the last of them are kept too.
      by: "score", or "magnitude": then zero keys never displace others, and growth stays exact.
      axis_name: the mesh axes that cut P, inside shard_map.

    Returns:
      `[..., P]` bool, not differentiated.
    """
    x, keys = jax.lax.stop_gradient((x, keys))
    wide = jnp.promote_types(x.dtype, jnp.float32)
    scores = jnp.einsum("...d,pd->...p", x, keys, preferred_element_type=wide, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.abs(scores) if by == "magnitude" else scores
    best = jax.lax.top_k(scores, min(r, scores.shape[-1]))[0]
    if axis_name is not None:
        best = jax.lax.all_gather(best, axis_name, axis=best.ndim - 1, tiled=True)
        best = jax.lax.top_k(best, r)[0]
    return scores >= best[..., -1:]


def _kept(top_r: int, P: int, per_mixer: int) -> int:
    """Parameter tokens that the router keeps of P, the same share everywhere; 0 = no router."""
    r = max(1, round(top_r * P / per_mixer)) if top_r else 0
    return r if r < P else 0


def _mesh_axis(spec: Spec) -> str | tuple[str, ...] | None:
    """The mesh axes that cut P; sums over them must not mix the rows of a batch."""
    if spec.partition.trivial:
        return None
    names = spec.partition.mesh_axes("tokens")
    shared = [name for axis in ("batch", "sequence") for name in spec.partition.mesh_axes(axis) if name in names]
    if shared:
        raise ValueError(
            f"sharding.tokens={names}: mesh axis {shared[0]!r} already cuts the batch; use sharding.tokens=('tensor',)."
        )
    return (names[0] if len(names) == 1 else names) if names else None
