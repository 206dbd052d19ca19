"""Channel `moe`: a router sends each token to a few of many experts (docs/moe.md)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from models import parameters
from models.activations import ACTIVATIONS
from models.experts import banks, capacity, mixed, parallel, routers, routing, told
from models.experts import options as settings
from models.experts.options import ROUTERS, Given, Options
from models.mixers.context import EXPERTS, Context
from models.products import by_rows
from models.spec import Spec


class Experts(nnx.Module):
    """Feed-forward experts of one width, stacked: `gate` (of gated ones) and `up` `[E, D, F]`, `down [E, F, D]`.

    With `bias` each has one, `gate_bias` `[E, F]` and so on.
    """

    def __init__(self, spec: Spec, count: int, hidden: int, *, gated: bool, bias: bool, rngs: nnx.Rngs):
        shapes = {"gate": (count, spec.D, hidden), "up": (count, spec.D, hidden), "down": (count, hidden, spec.D)}
        for name, shape in shapes.items():
            if name == "gate" and not gated:
                self.gate = self.gate_bias = None
                continue
            axes, made = parallel.WEIGHTS[name], None
            std = parameters.kernel_std(spec, shape[1], axes[1], residual=name == "down")
            setattr(self, name, parameters.param(parameters.normal(std), rngs, shape, axes, "kernel", spec))
            if bias:
                size, axes = (count, shape[-1]), parallel.WEIGHTS[f"{name}_bias"]
                made = parameters.param(parameters.zeros, rngs, size, axes, "bias", spec)
            setattr(self, f"{name}_bias", made)

    def weights(self, dtype: Any) -> dict[str, jax.Array]:
        """By name, in the type of the tokens."""
        every = {name: getattr(self, name) for name in parallel.WEIGHTS}
        return {name: value[...].astype(dtype) for name, value in every.items() if value is not None}


class Shared(nnx.Module):
    """A feed-forward layer that every token passes: S experts of width F are one of width S F, kernels `[in, out]`."""

    def __init__(self, spec: Spec, hidden: int, *, gated: bool, activation: str, rngs: nnx.Rngs):
        shapes = {"gate": (spec.D, hidden), "up": (spec.D, hidden), "down": (hidden, spec.D)}
        for name, shape in shapes.items():
            axes = ("hidden", "embed") if name == "down" else ("embed", "hidden")
            std = parameters.kernel_std(spec, shape[0], axes[0], residual=name == "down")
            made = None if name == "gate" and not gated else parameters.param(
                parameters.normal(std), rngs, shape, axes, "kernel", spec
            )  # fmt: skip
            setattr(self, name, made)
        self.activation, self.partition = ACTIVATIONS[activation], spec.partition

    def __call__(self, x: jax.Array) -> jax.Array:
        def multiply(x: jax.Array, kernel: nnx.Param) -> jax.Array:
            return by_rows(lambda x: x @ kernel[...].astype(x.dtype), x, self.partition)

        if self.gate is None:
            return multiply(jax.checkpoint(self.activation)(multiply(x, self.up)), self.down)
        gated = jax.checkpoint(lambda gate, up: self.activation(gate) * up)
        return multiply(gated(multiply(x, self.gate), multiply(x, self.up)), self.down)


class MoE(nnx.Module):
    """y = sum over a token's choices of gate times expert, plus the shared experts; `x [B, T, D] -> [B, T, D]`.

    `router [D, E]` gives the logits of all E experts: `experts` (stacked), `small_experts`, constants, copy, zero and
    null ones, in this order. It computes in float32 or wider whatever the type of x.
    `context.layers["experts"]`, a pair of index and gate `[B, T, K]`, stands in place of its decision.
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        o = self.options = Options.of(spec.options["moe"])
        self.rule, E, D = ROUTERS[o.router], o.kinds.total, spec.D
        normal = parameters.normal(parameters.kernel_std(spec, D, "embed", residual=False))
        self.router = parameters.param(normal, rngs, (D, E), ("embed", None), "kernel", spec)
        kw = {"gated": o.gated, "rngs": rngs}
        self.experts = Experts(spec, o.kinds.ffn, o.hidden_width(D), bias=o.bias, **kw)
        small = o.kinds.small
        self.small_experts = Experts(spec, small, o.small_hidden, bias=o.bias, **kw) if small else None
        shared = o.shared * o.hidden_width(D)
        self.shared = Shared(spec, shared, activation=o.activation, **kw) if shared else None
        make = lambda init, shape, role: parameters.param(init, rngs, shape, (None,) * len(shape), role, spec)  # noqa: E731
        C = o.kinds.constant
        self.constant_weight = make(normal, (C, D, 2), "kernel") if C else None
        self.constant = make(parameters.zeros, (C, D), "bias") if C else None
        self.router_bias = make(parameters.zeros, (E,), "bias") if o.bias else None
        self.expert_scale = make(parameters.ones, (E,), "norm") if self.rule.weighted else None
        self.residual = make(parameters.zeros, (E, E), "kernel") if o.residual else None
        self.bias = make(parameters.zeros, (E,), "running") if self.rule.biased else None
        self.before = make(parameters.zeros, (E,), "running") if _accumulates(o) else None
        begin = lambda key, shape, dtype: told.schedule(o).begin().astype(dtype)  # noqa: E731
        self.schedule = make(begin, (6,), "running") if o.router == "relu" and o.sparsity else None
        self.draws = make(told.begin_draws, (2,), "running") if self.rule.drawn else None
        self.layers = spec.L
        self.partition, self.dtype = spec.partition, spec.dtype

    def __call__(self, x: jax.Array, context: Context) -> tuple[jax.Array, dict[str, Any]]:
        o, x = self.options, x.astype(self.dtype)
        number = lambda p: None if p is None else p[...]  # noqa: E731
        z = by_rows(lambda x: routers.logits(x, self.router[...], number(self.router_bias)), x, self.partition)
        if o.residual:
            z = mixed.gating_residual(z, context.flow["router"], self.residual[...])
        present = jnp.broadcast_to(context.positions, x.shape[:2]) >= 0
        if context.segment_ids is not None:
            present &= context.segment_ids != 0
        failed = routing.reported(z) & present
        z = jnp.where(routing.reported(z)[..., None], 0, z)
        valid = present & ~failed
        given = Given(
            o, number(self.bias), number(self.expert_scale), x, context.segment_ids, context.positions,
            number(self.draws),
        )  # fmt: skip
        made = self.rule.decide(z, given)
        if EXPERTS in context.layers:
            index, gate = context.layers[EXPERTS]
            made = made._replace(index=index, gate=gate)
        made = made._replace(index=jnp.where(valid[..., None], made.index, -1))
        kept = made.index if context.decoding else within(o, made, x.shape[1])
        y = self._routed(x, kept, made.gate)
        if self.shared is not None:
            y = y + self.shared(x)
        state = {name: getattr(self, name)[...] for name in ("before", "schedule") if getattr(self, name) is not None}
        flow = {"router": z} if o.residual else {}
        if o.budget:
            now = context.flow["big"] + jnp.sum(made.probs[..., : o.kinds.ffn], axis=-1)
            state["budget"] = mixed.budget_step(context.flow["big"], now, self.layers, o.big)
            flow["big"] = now
        report = told.report(o, made, kept, valid, failed, context, state)
        shown = {EXPERTS: kept} if EXPERTS in context.taps else {}
        return y, report | shown | flow

    @property
    def carries(self) -> dict[str, tuple[int, ...]]:
        """The logits, where those of the layer before are added; the sum of P_big, where it has a budget."""
        o = self.options
        return ({"router": (o.kinds.total,)} if o.residual else {}) | ({"big": ()} if o.budget else {})

    def _routed(self, x: jax.Array, index: jax.Array, gate: jax.Array) -> jax.Array:
        """What all experts but the shared ones give."""
        kinds, y = self.options.kinds, 0
        for kind, bank in (("ffn", self.experts), ("small", self.small_experts)):
            if bank is None:
                continue
            count, first = getattr(kinds, kind), kinds.first(kind)
            mine = jnp.where((index >= first) & (index < first + count), index - first, -1)
            y = y + parallel.run(self._plan(count, x.shape[1]), x, mine, gate, bank.weights(x.dtype))
        if not kinds.constant + kinds.copy:
            return y
        weight, free = routing.dense(index, gate, kinds.total), 0
        for c in range(kinds.constant):
            made = banks.constant(routing.wide(x), self.constant_weight[c], self.constant[c])
            free = free + weight[..., kinds.first("constant") + c, None] * made
        first = kinds.first("copy")
        copies = jnp.sum(weight[..., first : first + kinds.copy], axis=-1, keepdims=True)
        return y + (free + copies * x).astype(x.dtype)

    def _plan(self, count: int, length: int) -> parallel.Plan:
        o, partition = self.options, self.partition
        cut = not partition.trivial and partition.ways("experts") > 1
        form = o.dispatch or ("alltoall" if cut else "sorted")
        places = int(limits(o, length)[0]) if o.capacity else 0
        return parallel.Plan(
            form, count, places, o.activation, o.implementation or None, partition, o.limit, o.alpha, o.share
        )

    def advance(self, old: dict[str, jax.Array], report: Mapping[str, Any]) -> dict[str, jax.Array]:
        """See `told.advance`."""
        return told.advance(self.options, old, report)

    def within(self, old: dict[str, jax.Array], report: Mapping[str, Any]) -> dict[str, jax.Array]:
        """Running parameters for the next microbatch of a step, from the report of those before it."""
        return old | {"before": report["load"].total} if "before" in old else old

    figures = staticmethod(told.figures)
    problems = staticmethod(settings.problems)

    def flops(self) -> float:
        """Matrix products of a token at balance: its experts, the shared ones, the router (docs/moe.md)."""
        o, sizes = self.options, {}
        for name in ("experts", "small_experts"):
            bank = getattr(self, name)
            sizes[name] = 0 if bank is None else parameters.kernel_size(bank) / bank.up.shape[0]
        ffn, small = o.active()
        beside = parameters.kernel_size(self) - sum(
            parameters.kernel_size(bank) for bank in (self.experts, self.small_experts) if bank is not None
        )
        return 2 * (ffn * sizes["experts"] + small * sizes["small_experts"] + beside)


def _accumulates(options: Options) -> bool:
    return bool(options.balance) and options.balance_scope == "accumulated"


def limits(options: Options, length: int) -> np.ndarray:
    """Places of each expert in a row of `length` tokens, `[E]`, at least 1 and at most T.

    capacity K T / E; with `eta` those of MoE++: an expert that costs something has eta times the places of another.
    """
    free = told.free(options.kinds)
    share = options.eta if options.balance and options.eta else 1.0
    sizes = int(np.sum(~free)), int(np.sum(free))
    each = capacity.moepp(options.k * length, sizes, options.capacity, share)
    return np.clip(np.where(free, int(each[1]), int(each[0])), 1, length)


def within(options: Options, made: routing.Routing, length: int) -> jax.Array:
    """The index after each row's tokens have taken their places; the rows do not compete. `[B, T, K]`."""
    if not options.capacity:
        return made.index
    places = jax.vmap(capacity.ORDERS[options.capacity_order])(made.index, made.gate)
    most = limits(options, length)
    return jax.vmap(lambda index, places: capacity.keep(index, places, most))(made.index, places)
