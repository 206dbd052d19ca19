"""Dispatch where a mesh cuts tokens, experts or their widths: every device's own part of the work.

Experts lie as `[E, D, F]` over the logical axes `experts`, `embed` and `hidden`, tokens over `batch` and `sequence`.

    sorted, dense, einsum    all experts on every device, each device its own tokens
    alltoall                 each device holds E / W experts; a token's vector goes to those of its choice and back
    gather                   each device collects the tokens of all W and computes what its own experts give them
    weights                  each device collects the experts of all W, and no token moves

Where `hidden` is cut over s devices, they share the width of each expert (each sums over its part of F, the results are
added) or the tokens (each collects all of F). The parameters lie the same way: these are the layouts r = 0 (weights),
1 (tokens) and s (width) of Tutel (Hwang et al. 2022, arXiv:2206.03382).

Attention and experts are folded separately over the same devices (Liu et al. 2025, arXiv:2504.14960): any mesh axis may
cut `experts` (EP) or `hidden` (ETP), whatever it cuts in mixers; those that cut neither hold copies of experts (EDP).

    axis        has other tokens (batch, sequence)     has the same tokens (heads)
    experts     vectors go to the devices chosen       each device sends its share of them; then all are gathered
    hidden      tokens gathered, sums scattered        sums added
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from models.activations import ACTIVATIONS
from models.experts import banks, capacity, dispatch
from models.experts.routing import wide
from models.partition import Partition

WEIGHTS = {
    "gate": ("experts", "embed", "hidden"),
    "up": ("experts", "embed", "hidden"),
    "down": ("experts", "hidden", "embed"),
    "gate_bias": ("experts", "hidden"),
    "up_bias": ("experts", "hidden"),
    "down_bias": ("experts", "embed"),
}
TOKENS = ("batch", "sequence", None)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How one bank of experts is run.

    form: of the dispatch; experts: E; places: of each expert in a row (einsum; 0 = the row's length); limit, alpha: of
    `banks.clamped_glu`, which joins gate and up where the limit is not 0; share: of devices that `hidden` is cut over,
    "width" or "tokens" (always so with the form "weights").
    """

    form: str
    experts: int
    places: int
    activation: str
    implementation: str | None
    partition: Partition
    limit: float = 0.0
    alpha: float = 0.0
    share: str = "width"

    def gathered(self) -> tuple[str, ...]:
        """Logical axes of the experts that are whole on a device before it computes."""
        return ("embed", *(("experts",) * (self.form == "weights")), *(("hidden",) * self.by_tokens))

    @property
    def by_tokens(self) -> bool:
        """Whether the devices that `hidden` is cut over share the tokens."""
        return self.form == "weights" or (self.share == "tokens" and self.form != "einsum")


def run(plan: Plan, x: jax.Array, index: jax.Array, gate: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
    """What the chosen experts give: x `[B, T, D]`, index and gate `[B, T, K]`, -1 for none: `[B, T, D]` like x.

    `weights`: `up`, `down` and for gated experts `gate`, `[E, ...]` in the type of x, and perhaps `up_bias` and so on.
    """
    axes = {name: WEIGHTS[name] for name in weights}
    local = functools.partial(_local, plan)
    return plan.partition.run(local, (x, index, gate, weights), (TOKENS, TOKENS, TOKENS, axes), TOKENS)


def _local(plan: Plan, x: jax.Array, index: jax.Array, gate: jax.Array, weights: dict) -> jax.Array:
    partition = plan.partition
    if partition.trivial:
        return _parts(plan, weights, x, index, gate)
    whole = {n: tuple(axis if axis in plan.gathered() else None for axis in WEIGHTS[n]) for n in weights}
    weights = {name: partition.gather(w, whole[name]) for name, w in weights.items()}
    cut = {axis: partition.mesh_axes(axis) for axis in ("batch", "sequence", "experts", "hidden")}
    others = (*cut["batch"], *cut["sequence"])
    parts = () if plan.by_tokens else cut["hidden"]
    same = tuple(a for a in (*cut["experts"], *(cut["hidden"] if plan.by_tokens else ())) if a not in others)
    inner = functools.partial(_added, plan, _once(weights, parts), parts, tuple(a for a in parts if a in others))
    return _shared(partition, inner, (x, index, gate), same) if same else inner(x, index, gate)


def _parts(plan: Plan, weights: dict, x: jax.Array, index: jax.Array, gate: jax.Array) -> jax.Array:
    """What this device's part of every expert's width gives tokens `[B, T, D]`."""
    B, T, D = x.shape
    if plan.form == "einsum":
        y = jax.vmap(functools.partial(_einsum, plan, weights))(x, index, gate)
    else:
        y = _formed(plan, weights, x.reshape(B * T, D), index.reshape(B * T, -1), gate.reshape(B * T, -1))
    return y.astype(x.dtype).reshape(B, T, D)


def _added(
    plan: Plan, weights: dict, parts: tuple[str, ...], others: tuple[str, ...], x: Any, index: Any, gate: Any
) -> jax.Array:
    """`_parts` summed over the mesh axes `parts` that cut the width; devices along `others` of them have other tokens.

    These are gathered before vectors go to their experts: buffers are as long as the worst load needs, and gathering
    these instead would move no less.
    """
    if others:
        x, index, gate = (jax.lax.all_gather(a, others, axis=0, tiled=True) for a in (x, index, gate))
    y = _parts(plan, weights, x, index, gate)
    if others:
        y = jax.lax.psum_scatter(y, others, scatter_dimension=0, tiled=True)
    same = tuple(a for a in parts if a not in others)
    return jax.lax.psum(y, same) if same else y


def _once(weights: dict, hidden: tuple[str, ...]) -> dict:
    """The bias of the map down on one of the devices whose results are added up."""
    if not hidden or "down_bias" not in weights:
        return weights
    return weights | {"down_bias": jnp.where(jax.lax.axis_index(hidden) == 0, weights["down_bias"], 0)}


def _formed(plan: Plan, weights: dict, x: jax.Array, index: jax.Array, gate: jax.Array) -> jax.Array:
    """What the experts give tokens `[N, D]`, by the form of the plan."""
    cut = () if plan.partition.trivial else plan.partition.mesh_axes("experts")
    if cut and plan.form in ("alltoall", "gather"):
        return {"alltoall": _alltoall, "gather": _gather}[plan.form](plan, weights, x, index, gate, cut)
    return {"dense": _dense}.get(plan.form, _sorted)(plan, weights, x, index, gate)


def _shared(partition: Partition, fn: Callable, args: tuple, names: tuple[str, ...]) -> jax.Array:
    """`fn` where the devices along `names` have the same tokens `[B, T, D]`: each gives it as many of them."""
    (B, T, D), N = args[0].shape, math.prod(args[0].shape[:2])
    ways = math.prod(partition.mesh.shape[name] for name in names)
    each = -(-N // ways)
    first = jax.lax.axis_index(names) * each

    def mine(a: jax.Array, unused: int) -> jax.Array:
        a = jnp.pad(a.reshape(N, -1), ((0, each * ways - N), (0, 0)), constant_values=unused)
        return jax.lax.dynamic_slice_in_dim(a, first, each)[None]

    y = fn(*(mine(a, unused) for a, unused in zip(args, (0, -1, 0), strict=True)))[0]
    return jax.lax.all_gather(y, names, axis=0, tiled=True)[:N].reshape(B, T, D)


def _dense(plan: Plan, weights: dict, x: jax.Array, index: jax.Array, gate: jax.Array) -> jax.Array:
    return dispatch.dense(x, index, gate, _bank(banks.ffn, plan, weights))


def _einsum(plan: Plan, weights: dict, x: jax.Array, index: jax.Array, gate: jax.Array) -> jax.Array:
    places, bank = capacity.fifo(index), _bank(banks.ffn, plan, weights)
    return dispatch.einsum(x, index, gate, places, plan.places or len(x), plan.experts, bank)


def _sorted(plan: Plan, weights: dict, x: jax.Array, index: jax.Array, gate: jax.Array) -> jax.Array:
    return dispatch.by_sorting(x, index, gate, weights["up"].shape[0], _grouped(plan, weights))


def _bank(function: Callable, plan: Plan, weights: dict, **more: Any) -> Callable:
    names = [name for name in weights if not name.endswith("_bias")]
    maps = {n: (weights[n], weights[f"{n}_bias"]) if f"{n}_bias" in weights else weights[n] for n in names}
    join = functools.partial(banks.clamped_glu, limit=plan.limit, alpha=plan.alpha) if plan.limit else None
    return functools.partial(function, **maps, activation=ACTIVATIONS[plan.activation], join=join, **more)


def _grouped(plan: Plan, weights: dict) -> Callable:
    return _bank(banks.grouped_ffn, plan, weights, implementation=plan.implementation)


def _gather(plan: Plan, weights: dict, x: Any, index: Any, gate: Any, names: tuple[str, ...]) -> jax.Array:
    """All W devices' tokens here, what this device's experts give them, and the sums back to where they belong."""
    x, index, gate = (jax.lax.all_gather(a, names, axis=0, tiled=True) for a in (x, index, gate))
    held = weights["up"].shape[0]
    mine = index - jax.lax.axis_index(names) * held
    y = _sorted(plan, weights, x, jnp.where((mine >= 0) & (mine < held), mine, -1), gate)
    return jax.lax.psum_scatter(y.astype(x.dtype), names, scatter_dimension=0, tiled=True)


def slots(tokens: int, k: int, held: int) -> int:
    """Vectors that a device may have to send another, at worst: tokens min(K, E / W). The buffers are as long."""
    return tokens * min(k, held)


def _alltoall(plan: Plan, weights: dict, x: Any, index: Any, gate: Any, names: tuple[str, ...]) -> jax.Array:
    """A token's vector goes to each expert of its choice and comes back; buffers are as long as they may have to be.

    `jax.lax.ragged_all_to_all` does not exist on CPUs; padded buffers do the same everywhere.
    """
    (N, D), K, held = x.shape, index.shape[1], weights["up"].shape[0]
    W = plan.experts // held
    C = slots(N, K, held)
    order = dispatch.by_expert(index, plan.experts)
    counts = order.sizes.reshape(W, held).sum(axis=1)
    start = jnp.cumsum(counts) - counts
    at = start[:, None] + jnp.arange(C)
    used = jnp.arange(C) < counts[:, None]
    at = jnp.minimum(at, N * K - 1)
    expert = jnp.where(used, index.reshape(-1)[order.order[at]] % held, -1)
    rows = jnp.where(used[..., None], dispatch.permute(x, order)[at], 0)
    exchange = functools.partial(jax.lax.all_to_all, axis_name=names, split_axis=0, concat_axis=0, tiled=True)
    got, whose = exchange(rows).reshape(W * C, D), exchange(expert).reshape(W * C)
    inner = dispatch.by_expert(whose[:, None], held)
    given = _grouped(plan, weights)(dispatch.permute(got, inner), inner.sizes)
    back = exchange(dispatch.unpermute(given, inner, W * C)[:, 0].reshape(W, C, D)).reshape(W * C, D)
    # Choice c stands at place back[c] of the order, and so at its place behind the first of its device.
    device = jnp.maximum(index.reshape(-1), 0) // held
    slot = device * C + order.back - start[device]
    outputs = back[jnp.clip(slot, 0, W * C - 1)].reshape(N, K, D)
    return dispatch.combine(jnp.where(index[..., None] >= 0, outputs, 0), jnp.where(index >= 0, wide(gate), 0))
