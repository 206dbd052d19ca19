"""What a config says of a mixture of experts: kinds of experts, routers by name, and what does not go together."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.experts import graph, mixed, routers
from models.experts.routing import Routing
from models.facts import Facts, largest_divisor, nearest_multiple


class Kinds(NamedTuple):
    """How many experts there are of each kind; the router numbers them in this order."""

    ffn: int
    small: int
    constant: int
    copy: int
    zero: int
    null: int

    @property
    def total(self) -> int:
        return sum(self)

    def first(self, kind: str) -> int:
        """The number of the first expert of a kind."""
        return sum(self[: self._fields.index(kind)])


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of `config.model.moe` as attributes, and the kinds of experts."""

    kinds: Kinds
    told: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Options":
        """From the group of the config."""
        kinds = Kinds(told["experts"], *(told[name] for name in Kinds._fields[1:]))
        return cls(kinds, tuple(sorted(told.items())))

    def __getattr__(self, name: str) -> Any:
        found = {} if name in ("told", "kinds") else dict(self.told)
        if name not in found:
            raise AttributeError(name)
        return found[name]

    def hidden_width(self, D: int) -> int:
        """F of an expert."""
        return self.hidden or -(-8 * D // (3 * self.k) // 64) * 64

    def active(self) -> tuple[float, float]:
        """Experts of the ffn and of the small kind that a token has at balance; of a ReLU router: all."""
        kinds, costly = self.kinds, self.kinds.ffn + self.kinds.small
        if self.router == "relu":
            return kinds.ffn, kinds.small
        # MoE++, equation 9: an expert that costs nothing is chosen 1 / eta times as often as one that does.
        share = self.eta if self.balance else 1.0
        each = self.k * share / (share * (costly + kinds.null) + kinds.total - costly - kinds.null) if share else 0.0
        return each * kinds.ffn, each * kinds.small


class Given(NamedTuple):
    """What routers read beside the logits `z [B, T, E]`; an array is None where the router has none."""

    options: Options
    bias: jax.Array | None  # [E]
    weight: jax.Array | None  # [E] learned
    x: jax.Array  # [B, T, D]
    segment_ids: jax.Array | None  # [B, T]
    positions: jax.Array | None = None  # [B|1, T]
    draws: jax.Array | None = None  # [2] steps so far, and a number of the layer's own


class Rule(NamedTuple):
    """A router: `decide(z, given)`, and what it needs.

    weighted: multiplies gates by a learned number an expert. biased: chooses by a bias that `advance` moves. causal:
    the choice of a token needs no other token. every: a token may have any number of experts, and K is E. drawn: by
    chance, anew each step.
    """

    decide: Callable[[jax.Array, Given], Routing]
    weighted: bool = False
    biased: bool = False
    causal: bool = True
    every: bool = False
    grouped: bool = False
    drawn: bool = False


def _softmax_before(z: jax.Array, given: Given) -> Routing:
    o = given.options
    return routers.softmax_before(z, o.k, renormalise=o.renormalise, scale=o.scale)


def _sigmoid_bias(z: jax.Array, given: Given) -> Routing:
    o = given.options
    return routers.sigmoid_bias(z, given.bias, o.k, scale=o.scale, renormalise=o.renormalise)


def _group_softmax(z: jax.Array, given: Given) -> Routing:
    o = given.options
    return routers.group_softmax(z, o.k, o.groups, o.kept_groups, scale=o.scale, rule=o.group_rule)


def _group_sigmoid(z: jax.Array, given: Given) -> Routing:
    o = given.options
    return routers.group_sigmoid(z, given.bias, o.k, o.groups, o.kept_groups, scale=o.scale, rule=o.group_rule)


def _all(z: jax.Array, probs: jax.Array, gates: jax.Array) -> Routing:
    """A routing by gates of all experts `[B, T, E]`: those above 0 are chosen."""
    E = z.shape[-1]
    index = jnp.where(gates > 0, jnp.arange(E), -1).astype(jnp.int32)
    return Routing(z, probs, index, jnp.where(gates > 0, gates, 0))


def _relu(z: jax.Array, given: Given) -> Routing:
    gates, plain = routers.relu(z, given.weight)
    index = jnp.where(plain > 0, jnp.arange(z.shape[-1]), -1).astype(jnp.int32)
    return Routing(z, plain, index, gates)  # A learned weight may be negative.


def _expert_choice(z: jax.Array, given: Given) -> Routing:
    """Every row of tokens by itself: an expert takes K T / E tokens of each."""
    T, E = z.shape[-2:]
    count = max(1, min(T, given.options.k * T // E))
    one = lambda z: routers.expert_choice_gates(*routers.expert_choice(z, count), T)  # noqa: E731
    return _all(z, jax.nn.softmax(z, axis=-1), jax.vmap(one)(z))


def _graph(z: jax.Array, given: Given) -> Routing:
    seen = graph.visible(z.shape[-2], given.segment_ids, causal=False)
    S = graph.similarity(given.x, seen, given.options.temperature)
    return graph.graph_of_tokens(z, S, given.options.k, renormalise=given.options.renormalise)


def _duo_chance(z: jax.Array, given: Given) -> Routing:
    step, own = given.draws.astype(jnp.uint32)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), own), step)
    made = mixed.duo(z, given.options.temperature, straight=True)
    return mixed.by_chance(made, key, given.positions, given.options.chance)


ROUTERS = {
    "softmax_before": Rule(_softmax_before),
    "softmax_after": Rule(lambda z, given: routers.softmax_after(z, given.options.k, scale=given.options.scale)),
    "sigmoid_bias": Rule(_sigmoid_bias, biased=True),
    "group_softmax": Rule(_group_softmax, grouped=True),
    "group_sigmoid": Rule(_group_sigmoid, biased=True, grouped=True),
    "moge": Rule(
        lambda z, given: routers.moge(z, given.options.k, given.options.groups, scale=given.weight),
        weighted=True,
        grouped=True,
    ),
    "expert_choice": Rule(_expert_choice, causal=False, every=True),
    "relu": Rule(_relu, weighted=True, every=True),
    "null": Rule(lambda z, given: mixed.null_experts(z, given.options.k, z.shape[-1] - given.options.kinds.null)),
    "moepp": Rule(lambda z, given: mixed.moepp_released(z, given.options.k)),
    "graph": Rule(_graph, causal=False),
    "duo": Rule(lambda z, given: mixed.duo(z, given.options.temperature)),
    "duo_chance": Rule(_duo_chance, drawn=True),
}


def problems(told: Mapping[str, Any], facts: Facts) -> Iterator[str]:
    """Sentences about options of `model.moe` that do not go together, or not with the rest of the config."""
    options = Options.of(told)
    rule, E, k, router = ROUTERS[told["router"]], options.kinds.total, told["k"], told["router"]
    if facts.model["parametrization"] != "standard":
        yield (
            f"model.parametrization={facts.model['parametrization']!r} has no rule for the rates of "
            "model.channel='moe'; use model.parametrization='standard'."
        )
    if router != "relu" and k > E:
        yield f"model.moe.k={k} is more than the {E} experts there are; use e.g. model.moe.k={E}."
    elif router in ("duo", "duo_chance") and k != 1:
        yield f"model.moe.k={k}: model.moe.router={router!r} chooses one module for a token; use model.moe.k=1."
    if rule.grouped:
        yield from _group_problems(told, E)
    if 0 < told["capacity"] < 1:
        yield (
            f"model.moe.capacity={told['capacity']} drops tokens where the load is even, too; use e.g. "
            "model.moe.capacity=1.25, or 0 to drop none."
        )
    if told["capacity"] and rule.every:
        yield (
            f"model.moe.capacity={told['capacity']} is a share of k experts a token, and model.moe.router={router!r} "
            "gives a token any number; use model.moe.capacity=0."
        )
    if told["null"] and router != "null":
        yield f"model.moe.null={told['null']} is for model.moe.router='null'; use model.moe.null=0, or zero experts."
    if router == "moepp" and not told["zero"]:
        yield "model.moe.zero=0: model.moe.router='moepp' sets the gate of the last, a zero expert, to 0; use 1."
    yield from _place_problems(told, rule, facts)


def _group_problems(told: Mapping[str, Any], E: int) -> Iterator[str]:
    groups, kept, k, router = told["groups"], told["kept_groups"], told["k"], told["router"]
    if E % groups:
        yield (
            f"model.moe.groups={groups} does not divide the {E} experts; use e.g. "
            f"model.moe.groups={largest_divisor(E, groups)}."
        )
    elif router == "moge" and k % groups:
        yield (
            f"model.moe.groups={groups} does not divide model.moe.k={k}, and each group has as many of them; use e.g. "
            f"model.moe.k={nearest_multiple(k, groups)}."
        )
    elif router == "moge" and k > E:
        return
    elif router != "moge" and kept > groups:
        yield f"model.moe.kept_groups={kept} is more than model.moe.groups={groups}; use at most {groups}."
    elif router != "moge" and k > kept * (E // groups):
        yield (
            f"model.moe.k={k} is more than the {kept * (E // groups)} experts of {kept} kept groups; use e.g. "
            f"model.moe.k={kept * (E // groups)}."
        )


def _place_problems(told: Mapping[str, Any], rule: Rule, facts: Facts) -> Iterator[str]:
    """What the mesh asks."""
    router, ways = told["router"], facts.ways("experts")
    for kind in ("experts", "small"):
        if told[kind] % ways:
            yield (
                f"model.moe.{kind}={told[kind]} does not divide over the {ways} devices of sharding.experts; use e.g. "
                f"model.moe.{kind}={nearest_multiple(told[kind], ways)}."
            )
    form = told["dispatch"]
    if ways > 1 and form in ("dense", "einsum", "sorted"):
        yield (
            f"model.moe.dispatch={form!r} needs all experts on every device, and mesh.expert cuts them; use "
            "model.moe.dispatch='alltoall', 'gather' or 'weights'."
        )
    if told["share"] == "tokens" and form == "einsum":
        yield (
            "model.moe.share='tokens' divides the tokens of a row, and model.moe.dispatch='einsum' counts them by row; "
            "use model.moe.dispatch='sorted'."
        )
    reads = [name for name in ("capacity", "locality", "sparsity") if told[name]]
    reads = [name for name in reads if name == "capacity" or router == "relu"]
    if facts.ways("sequence") > 1 and (reads or not rule.causal):
        key = reads[0] if reads else "router"
        yield (
            f"model.moe.{key}={told[key]!r} reads the tokens of a row in their order, and mesh.context cuts rows; use "
            "mesh.context=1."
        )
    length, chunk = facts.data["length"], told["chunk"]
    if "sparsity" in reads and length % chunk:
        yield (
            f"model.moe.chunk={chunk} does not divide data.length={length}; use e.g. "
            f"model.moe.chunk={largest_divisor(length, chunk)}."
        )


__all__ = ["ROUTERS", "Given", "Kinds", "Options", "Rule", "problems"]
