"""Model kind `swiftkv`: later layers read keys and values that are made of the stream that leaves an early layer.

    h = layers 1 .. l of tokens,  k_i, v_i = K_i(norm(h)), V_i(norm(h)),  layers l+1 .. L attend to k_i, v_i with q_i(x)

Qiao et al. 2024, arXiv:2410.03960 (SingleInputKV), l = `model.swiftkv.layer`; of `model.swiftkv.share` later layers one
pair serves all (AcrossKV). What a prompt leaves behind is the state of the first l layers and keys and values of h:
queries, outputs and channels of the later layers enter no state, so that a pass over a prompt whose features nobody
reads does not compute them. Plain functions: `models.swiftkv`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from models import norms, projections, reports, swiftkv
from models.block import REMAT, STREAM, TOKENS, Block, Pass, Period, Stack, Unstacked, by_period, same
from models.lm import LM
from models.mixers.attention import Attention
from models.mixers.context import Context
from models.spec import Spec


def sizes(options: Mapping[str, Any], layers: int) -> tuple[int, int]:
    """(l, g) of a model of `layers` layers from the options of `model.swiftkv`; l is half of the layers unless given.

    Errors: ValueError with a value that works.
    """
    first, share = options["layer"] or max(1, layers // 2), options["share"]
    if not 1 <= first <= layers:
        raise ValueError(
            f"model.swiftkv.layer={first} is not a layer of model.num_layers={layers}; use model.swiftkv.layer="
            f"{max(1, layers // 2)}."
        )
    if (layers - first) % share:
        fits = [g for g in range(1, layers - first + 1) if (layers - first) % g == 0]
        near = min(fits, key=lambda g: abs(g - share))
        yours = f"model.swiftkv.share={share} does not divide the {layers - first} layers behind layer {first}"
        raise ValueError(f"{yours}; use model.swiftkv.share={near}.")
    return first, share


class Keys(nnx.Module):
    """`y [B, T, D] -> k, v [B, T, K, H]`, not rotated: what `Attention` has of keys, by itself."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        options, kw = spec.options["attention"], {"axes": ("embed", "heads"), "rngs": rngs}
        kw["bias"] = options["bias"] or options["qkv_bias"]
        self.k, self.v = (projections.make(spec, spec.D, spec.K * spec.H, name=name, **kw) for name in "kv")
        self.by_row, self.H = options["qk_norm_over"] == "row", spec.H
        width, eps = spec.K * spec.H if self.by_row else spec.H, options["qk_norm_eps"] or None
        norm = norms.Norm(spec, width, kind="rmsnorm", scale=True, eps=eps, rngs=rngs) if options["qk_norm"] else None
        self.k_norm = norm

    def __call__(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        heads = lambda x: x.reshape(*x.shape[:2], -1, self.H)  # noqa: E731
        k, v = self.k(y), heads(self.v(y))
        if self.k_norm is not None:
            k = self.k_norm(k if self.by_row else heads(k))
        return heads(k), v


class Reader(Attention):
    """Attention whose keys and values are `context.given`."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        self.k = self.v = self.k_norm = None

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]:
        q = self.q(x)
        if self.q_norm is not None:
            q = self.q_norm(q if self.by_row else q.reshape(*q.shape[:2], -1, self.H))
        q = q.reshape(*q.shape[:2], -1, self.H)
        q = q if self.score_scale == 1.0 else q * jnp.asarray(self.score_scale, q.dtype)
        return self.over(q, *context.given, context, state)


class Group(nnx.Module):
    """Later layers that share one pair of keys and values, made of y `[B, T, D]`; x `[B, T, D] -> [B, T, D]`.

    The state is one memory. Every layer looks at it as it was before these tokens, with the new ones beside; what it
    keeps afterwards is what the first of the layers looked at.
    """

    def __init__(self, spec: Spec, share: int, *, rngs: nnx.Rngs):
        self.keys = Keys(spec, rngs=rngs)
        self.names = tuple(f"{i}_attention" for i in range(share))
        for name in self.names:
            block = Block(spec, "attention", rngs=rngs)
            block.mixer = Reader(spec, rngs=rngs)
            setattr(self, name, block)

    def __call__(self, x: jax.Array, y: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any, dict]:
        """(x, state, reports by block); arrays in `context.layers` have the layers of this group in front."""
        given, report, after = self.keys(y), {}, None
        for i, name in enumerate(self.names):
            layer = jax.tree.map(lambda values, i=i: values[i], context.layers)
            here = dataclasses.replace(context, layers=layer, given=given)
            out = getattr(self, name)(x, here, state)
            x, report[name] = out.x, out.report
            after = out.state if i == 0 else after
        return x, after, report


class Wired(Stack):
    """A stack whose first l layers are those of any other, `period`, and whose later ones are groups, `late`."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        first, share = sizes(spec.options["swiftkv"], spec.L)
        swiftkv.check(spec.L, first, share)
        super().__init__(dataclasses.replace(spec, L=first), rngs=rngs)
        self.partition, self.share = spec.partition, share
        self.groups = (spec.L - first) // share
        if not self.groups:
            self.late = self.norm = None
            return

        @nnx.split_rngs(splits=self.groups)
        @nnx.vmap
        def build(rngs: nnx.Rngs) -> Group:
            return Group(spec, share, rngs=rngs)

        self.late = build(rngs)
        self.norm = norms.make(spec, rngs=rngs) if spec.norm_place != "post" else same
        self.late_unroll = max(1, min(self.groups, spec.unroll // share))

    def __call__(self, x: jax.Array, context: Context, state: None = None) -> Pass:
        first, later = parted(context.layers, self.repeats)
        out = super().__call__(x, dataclasses.replace(context, layers=first))
        if self.late is None:
            return out
        graphdef, params = nnx.split(self.late)
        y = read_from(self.norm, self.partition, out.features)

        def group(x: jax.Array, inputs: tuple) -> tuple[jax.Array, dict]:
            params, layers = inputs
            x, _, report = nnx.merge(graphdef, params)(x, y, dataclasses.replace(context, layers=layers))
            return x, report

        if REMAT[self.remat] is not None:
            group = jax.checkpoint(group, policy=REMAT[self.remat])
        inputs = params, by_period(later, self.groups, self.share)
        x, report = jax.lax.scan(group, out.features, inputs, unroll=self.late_unroll)
        return Pass(x, None, behind(out.report, reports.join(report)))

    def unstack(self, layers: tuple | None = None) -> "Unstacked":
        """As `Stack.unstack`; `layers` holds those of the period, then those of the groups."""
        early = super().unstack(None if layers is None else layers[: self.repeats])
        if self.late is None:
            return early
        graphdef, params = nnx.split(self.late)
        if layers is None:
            late = [jax.tree.map(lambda p, i=i: p[i], params) for i in range(self.groups)]
        else:
            late = layers[self.repeats :]
        groups = tuple(nnx.merge(graphdef, layer) for layer in late)
        return UnstackedWired(early.periods, groups, self.norm, self.partition)


class UnstackedWired(Unstacked):
    """A rewired stack of single layers, for decoding."""

    def __init__(self, periods: tuple[Period, ...], groups: tuple[Group, ...], norm: Any, partition: Any):
        super().__init__(periods)
        self.groups, self.norm, self.partition = groups, norm, partition

    def __call__(self, x: jax.Array, context: Context, state: tuple) -> Pass:
        count, share = len(self.periods), len(self.groups[0].names)
        first, later = parted(context.layers, count)
        out = super().__call__(x, dataclasses.replace(context, layers=first), state[:count])
        y, x = read_from(self.norm, self.partition, out.features), out.features
        layers, after, said = by_period(later, len(self.groups), share), [], []
        for i, (group, old) in enumerate(zip(self.groups, state[count:], strict=True)):
            mine = jax.tree.map(lambda values, i=i: values[i], layers)
            here = dataclasses.replace(context, layers=mine, prefill=())  # Patterns are of the early layers.
            x, new, report = group(x, y, here, old["keys"])
            after.append({"keys": new})
            said.append(report)
        report = reports.join(jax.tree.map(lambda *xs: jnp.stack(xs), *said))
        return Pass(x, (*out.state, *after), behind(out.report, report))

    @property
    def mixers(self) -> tuple[dict[str, Any], ...]:
        """As `Unstacked.mixers`: of each early layer, then the first of each group, whose cache it is."""
        return (*super().mixers, *({"keys": getattr(group, group.names[0]).mixer} for group in self.groups))


class Rewired(LM):
    """An `LM` whose later layers read an early one."""

    made_of = Wired


def read_from(norm: Any, partition: Any, h: jax.Array) -> jax.Array:
    """What keys and values are made of, `[B, T, D]`: the normed stream, whole tokens where the mesh cuts it."""
    y = norm(h)
    return partition.exchange(y, STREAM, TOKENS) if partition.cuts_stream else y


def parted(layers: Mapping[str, Any], first: int) -> tuple[dict, dict]:
    """Values by layer `[L, ...]`: those of the first layers, and the rest."""
    cut = lambda values, part: jax.tree.map(lambda x: x[part], dict(values))  # noqa: E731
    return cut(layers, slice(None, first)), cut(layers, slice(first, None))


def behind(first: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    """Reports of two parts of a stack, `[L', ...]` each, as one."""
    return {name: jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first[name], later[name]) for name in first}
