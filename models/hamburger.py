"""Model kind `hamburger`: a step of the stack reads several tokens, and a small decoder writes the next several.

    tokens -> groups of up to S -> [merged] -> stack -> features of some layers -> micro decoder -> tokens of a group

Liu et al. 2025, arXiv:2505.20438 (HAMburger). A step is the merged vector of a group of tokens, in the place of its
last one, so that keys and values of the stack are kept for groups, not for tokens. What the stack says behind a group
predicts the first token of the next one as in any model; behind each further token the micro decoder says what follows,
from features of F layers of that step and the tokens of its group so far. A stop head says of each token, before it is
known, whether it will end its group. Groups of one token make the plain model.

Groups are a function of the tokens up to their end, so that the likelihood of a text is exact and a text is read alike
alone, packed and step by step. `hamburger.groups` is who decides: fixed lengths, or the entropy of the next token by a
teacher, which in the paper is the trained model before. Here it is a map of the newest token (a bigram model) learned
in the same run. Of the released code different: the final norm stands before the head behind the micro decoder, too.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from models import parameters
from models.block import STREAM, Pass, Stack, Unstacked
from models.grouped import Grouped
from models.mixers.context import Context
from models.mixers.memory import Policy
from models.mixers.slots import Slots
from models.parameters import kernel_size
from models.products import by_rows
from models.reports import Mean
from models.segmented import room, stack_flops, when_any
from models.segments import cuts, mrt5
from models.segments.hamburger import Groups, groups, largest_entropy, merge
from models.segments.segmenters import last
from models.spec import Spec


class Steps(NamedTuple):
    """The steps of the stack in one pass."""

    at: jax.Array  # [B, S] the token that ends each
    held: jax.Array  # [B, S] bool, which of the S there are
    size: jax.Array  # [B, S] tokens of its group
    newest: jax.Array  # [B, T] steps of this pass up to each token, itself included


class Hamburger(Grouped):
    """Tokens `[B, T]` to features `[B, T, D]`. The face is that of `LM`, whose parameters it has beside its own."""

    named = "HAMburger reads tokens"
    reported = ("segments", "unread", "stops", "loss")  # Entries of the report that are not of the stack's layers.

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs, heads: Mapping[str, Any] | None = None):
        super().__init__(spec, rngs=rngs, heads=heads)
        self.most = spec.options["hamburger"]["most"]
        self.merger = Merger(spec, rngs=rngs) if self.most > 1 else None
        self.micro = Stack(of_micro(spec), rngs=rngs) if self.most > 1 else None
        self.stop = Stop(spec, rngs=rngs) if self.most > 1 else None
        self.teacher = Teacher(spec, rngs=rngs) if self.most > 1 and teaches(spec) else None

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: masks.Mask,
        positions=None,
        segment_ids=None,
        state=None,
        fresh: bool = False,
        parents=None,
        asked=None,
        layers: Mapping[str, Any] | None = None,
        taps: tuple[str, ...] = (),
        edits: Mapping[str, Any] | None = None,
    ) -> Pass:
        """As `LM.__call__`; `layers`, `taps` and `edits` are of the stack, whose tokens are groups.

        Errors: as `Grouped._rows`.
        """
        positions, live, first = self._rows(tokens, mask, positions, segment_ids, parents)
        (B, T), x = tokens.shape, self.embed(tokens)
        held = self._begin(B) if state is None else state["layers"]
        wants, taught = self._wants(x, tokens, live, first)
        if state is not None and T == 1 and self.spec.options["hamburger"]["stop"] == "head":
            wants = held["stop"][:, None]
        found = groups(wants, first, live, positions, self.most, least(self.spec), held["group"])
        steps = self._steps(found, T if state is not None else room_of(self.spec, T))
        line = jnp.concatenate([held["recent"].astype(x.dtype), x], axis=1)  # Token t stands at most + t.
        shown = {"layers": layers or {}, "taps": tuple(dict.fromkeys((*taps, "residual"))), "fresh": fresh}
        shown |= {"edits": tuple((edits or {}).items()), "asked": asked}
        place = cuts.at(positions, steps.at)
        context = self._told(steps.at, steps.held, place, segment_ids, held["slots"], shown)
        wires, backbone, report = self._stacked(line, steps, context, held["backbone"])
        known = wires if state is None else jnp.concatenate([held["wires"][:, None].astype(wires.dtype), wires], axis=1)
        features = self._written(line, known, steps, found, inside=state is not None)
        report = {k: v for k, v in report.items() if k != "residual" or "residual" in taps}
        if self.stop is not None:
            stops = self.stop(features)
            report |= self._said(stops, found, steps, live, first, taught)
        if state is None:
            return Pass(features, None, report)
        count = jnp.sum(steps.held, axis=1)
        kept = {
            "backbone": backbone, "slots": context.slots, "wires": cuts.at(known, count[:, None])[:, 0],
            "recent": cuts.at(line, jnp.sum(live, axis=1)[:, None] + jnp.arange(self.most)),
            "group": self._left(found, live, held["group"]), "stop": held["stop"],
        }  # fmt: skip
        if self.stop is not None:
            ending = 1 - jax.nn.sigmoid(stops) < self.spec.options["hamburger"]["stop_confidence"]
            kept["stop"] = last(ending, live, held["stop"])
        return Pass(features, {"slots": state["slots"].append(positions), "layers": kept}, report)

    def _begin(self, B: int) -> dict[str, Any]:
        """What stands before a row of which nothing was read."""
        spec, none = self.spec, jnp.zeros((B,), jnp.int32)
        return {
            "backbone": None, "slots": None, "wires": jnp.zeros((B, len(wired(spec)), spec.D), spec.dtype),
            "recent": jnp.zeros((B, self.most, spec.D), spec.dtype), "stop": none > 0,
            "group": Groups(none > 0, none, none),
        }  # fmt: skip

    def _left(self, found: Groups, live: jax.Array, before: Groups) -> Groups:
        """The group and the document that rows go on with, entries `[B]`."""
        ends = last(found.ends, live, before.ends)
        size = jnp.where(jnp.any(live, axis=1) & ends, 0, last(found.size, live, before.size))
        return Groups(ends, size, last(found.number, live, before.number))

    def _wants(self, x: jax.Array, tokens: jax.Array, live: jax.Array, first: jax.Array) -> tuple[jax.Array, Any]:
        """`[B, T]` whether a token ends its group, where that is not the last that fits; the teacher's loss, nats."""
        if self.teacher is None:
            return jnp.zeros(tokens.shape, bool), 0.0
        log_p = self.teacher(x)
        bar = largest_entropy(self.spec.options["hamburger"]["confidence"], self.spec.V)
        nats = -jnp.take_along_axis(log_p[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
        nats = jnp.sum(jnp.where(_pairs(live, first), nats, 0))
        weight = self.spec.options["hamburger"]["teacher_weight"]
        return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1) >= bar, weight * nats

    def _steps(self, found: Groups, S: int) -> Steps:
        at, held = cuts.places(found.ends, S)
        return Steps(at, held, cuts.at(found.size, at), jnp.cumsum(found.ends, axis=1))

    def _stacked(self, line: jax.Array, steps: Steps, context: Context, state: Any) -> tuple[jax.Array, Any, dict]:
        """(features of F layers of each step `[B, S, F, D]`, the last of them what the head reads; state; report)."""

        def run(state: Any) -> Pass:
            x = self._merged(line, steps)
            x = self.spec.partition.constrain(x, STREAM)
            out = self.stack(x, context) if state is None else self.stack(x, context, state)  # ty: ignore
            each = [out.report["residual"][layer] for layer in wired(self.spec)[:-1]]
            return Pass(jnp.stack([*each, self.norm(out.features)], axis=2), out.state, out.report)

        if state is None or steps.at.shape[1] > 1 or set(context.taps) != {"residual"}:
            return run(state)
        return when_any(steps.held, run, state)

    def _merged(self, line: jax.Array, steps: Steps) -> jax.Array:
        """The vector of each step, `[B, S, D]`."""
        if self.merger is None:
            return cuts.at(line, steps.at + self.most)
        begin = self.most + steps.at - steps.size + 1
        return self.merger(_cut(line, begin, self.most), steps.size)

    def _written(
        self, line: jax.Array, wires: jax.Array, steps: Steps, found: Groups, *, inside: bool
    ) -> jax.Array:  # fmt: skip
        """Features of every token `[B, T, D]`: of the step that it ends, or of the micro decoder within its group.

        Args:
          line: embedded tokens behind those read before.
          wires: `[B, R, F, D]` of the steps; `inside`: the first of them is the last one before this pass.
          steps, found: of this pass.
        """
        B, R, F, D = wires.shape
        row = steps.newest - (0 if inside else 1)
        table = wires[:, :, -1:]
        if self.micro is not None:
            begin = self.most + steps.at + 1
            if inside:  # The group that was begun before this pass ends behind its first token by `size` of it.
                begin = jnp.concatenate([self.most - found.size[:, :1] + 1, begin], axis=1)
            x = jnp.concatenate([wires, _cut(line, begin, self.most - 1)], axis=2)
            x = x.reshape(B * R, F + self.most - 1, D)
            places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
            x = self.micro(self.spec.partition.constrain(x, STREAM), Context(places, None, masks.Causal())).features
            x = self.norm(x[:, F:]).reshape(B, R, self.most - 1, D)
            table = jnp.concatenate([table, x], axis=2)
        read = jnp.where(found.ends, 0, jnp.minimum(found.size, self.most - 1))
        features = cuts.at(table.reshape(B, -1, D), jnp.clip(row, 0, R - 1) * self.most + read)
        return jnp.where(((row >= 0) & (row < R))[..., None], features, 0)

    def _said(
        self, stops: jax.Array, found: Groups, steps: Steps, live: jax.Array, first: jax.Array, taught: Any
    ) -> dict[str, Any]:  # fmt: skip
        """The report: steps a token, tokens whose step did not fit the row, right stops, and the losses."""
        count = lambda x: jnp.sum(x, dtype=jnp.float32)[None]  # noqa: E731
        pairs, following = _pairs(live, first), found.ends[:, 1:]
        wide = stops[:, :-1].astype(jnp.promote_types(stops.dtype, jnp.float32))
        nats = jnp.where(following, jax.nn.softplus(-wide), jax.nn.softplus(wide))
        return {
            "segments": Mean(count(found.ends), count(live)),
            "unread": Mean(count(live & (steps.newest > steps.at.shape[1])), count(live)),
            "stops": Mean(count(pairs & ((wide > 0) == following)), count(pairs)),
            "loss": (self.spec.options["hamburger"]["stop_weight"] * jnp.sum(jnp.where(pairs, nats, 0)) + taught)[None],
        }

    def for_decoding(self, layers: tuple | None = None) -> "Hamburger":
        """As `LM.for_decoding`; `layers` are the stack's. The micro decoder has no cache: it reads its group anew."""
        if not isinstance(self.stack, Unstacked):
            self.stack = self.stack.unstack(layers)
        return self

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> dict:
        """As `LM.init_state`: the cache of the steps, and what is kept of the group that is being written."""
        memory = memory or Policy()
        slots = Slots.empty(batch, memory.slots or length)
        more = {"slots": slots, "backbone": self.stack.init_state(batch, length, memory)}
        return {"slots": slots, "layers": self._begin(batch) | more}


class Merger(nnx.Module):
    """`(embedded [B, S, n, D], count [B, S]) -> [B, S, D]`: see `segments.hamburger.merge`."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        D, most, self.N = spec.D, spec.options["hamburger"]["most"], spec.N
        make = lambda inputs, residual=False: linear(spec, inputs, D, rngs=rngs, residual=residual)  # noqa: E731
        self.query, self.key, self.value = make(D), make(D + D // 2), make(D + D // 2)
        self.out = make(D, residual=True)
        std = parameters.normal((2 / (most + D // 2)) ** 0.5)
        self.position = parameters.param(std, rngs, (most, D // 2), (None, None), "embedding", spec)

    def __call__(self, embedded: jax.Array, count: jax.Array) -> jax.Array:
        dtype = embedded.dtype
        each = ((part.kernel[...].astype(dtype), part.bias[...].astype(dtype)) for part in self.linears)
        return merge(embedded, self.position[...].astype(dtype), *each, self.N, count)  # ty: ignore

    @property
    def linears(self) -> tuple["Linear", ...]:
        """Of queries, keys, values and the output."""
        return self.query, self.key, self.value, self.out


class Stop(nnx.Module):
    """Features `[B, T, D]` to logits `[B, T]`: the token that they predict ends its group."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        D = spec.D
        self.first, self.second = linear(spec, D, D, rngs=rngs), linear(spec, D, D, rngs=rngs)
        self.out = linear(spec, D, 1, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        return self.out(jax.nn.silu(self.second(jax.nn.silu(self.first(features)))))[..., 0]


class Teacher(nnx.Module):
    """Embedded tokens `[B, T, D]` to log-probabilities of the next ones `[B, T, V]`: it moves nothing but itself."""

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        init = parameters.normal(spec.D**-0.5)
        self.head = parameters.param(init, rngs, (spec.D, spec.V), ("embed", "vocab"), "kernel", spec)

    def __call__(self, x: jax.Array) -> jax.Array:
        x, head = mrt5.rms_norm(jax.lax.stop_gradient(x), 1.0), self.head[...].astype(x.dtype)
        logits = by_rows(lambda x: x @ head, x)
        return jax.nn.log_softmax(logits.astype(jnp.promote_types(x.dtype, jnp.float32)), axis=-1)


class Linear(nnx.Module):
    """`x [..., D] -> x W + b`."""

    def __init__(self, spec: Spec, sizes: tuple[int, int], std: float, *, rngs: nnx.Rngs):
        init = parameters.normal(std)
        self.kernel = parameters.param(init, rngs, sizes, ("embed", None), "kernel", spec)
        self.bias = parameters.param(parameters.zeros, rngs, sizes[1:], (None,), "bias", spec)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        return by_rows(lambda x: x @ kernel, x) + self.bias[...].astype(x.dtype)


def linear(spec: Spec, inputs: int, outputs: int, *, rngs: nnx.Rngs, residual: bool = False) -> Linear:
    """A map with a bias that begins as the config says of projections."""
    std = parameters.kernel_std(spec, inputs, "embed", residual=residual)
    return Linear(spec, (inputs, outputs), std, rngs=rngs)


def wired(spec: Spec) -> tuple[int, ...]:
    """The layers whose features the micro decoder reads, evenly spaced, the last layer among them."""
    F = min(spec.options["hamburger"]["features"], spec.L)
    return tuple(-(-(f + 1) * spec.L // F) - 1 for f in range(F))


def teaches(spec: Spec) -> bool:
    """Whether a teacher decides about groups."""
    return spec.options["hamburger"]["groups"] == "confidence"


def least(spec: Spec) -> int:
    """Tokens a group at least, on average; see `segments.hamburger.groups`."""
    options = spec.options["hamburger"]
    return options["least"] if teaches(spec) and options["most"] > 1 else options["most"]


def room_of(spec: Spec, length: int) -> int:
    """S: steps of the stack for a row of `length` tokens."""
    return room(spec, length, least(spec), spec.options["hamburger"]["documents"])


def of_micro(spec: Spec) -> Spec:
    """The spec of the micro decoder: layers of attention of the model's own width."""
    L = spec.options["hamburger"]["layers"]
    attention = MappingProxyType({**spec.options["attention"], "window": 0, "sinks": 0})
    return dataclasses.replace(
        spec, L=L, mixers=("attention",), by_position=(), unroll=min(L, spec.unroll),
        options=MappingProxyType({**spec.options, "attention": attention}),
    )  # fmt: skip


def forward_flops(spec: Spec, length: int, causal: bool) -> dict[str, float]:
    """FLOPs of a token's forward pass in a row of `length`: `matmul` without the head, and those of the mixers.

    Stack, merger and micro decoder count for the S steps that they are computed for in training.
    """
    S, most, D = room_of(spec, length), spec.options["hamburger"]["most"], spec.D
    found = {kind: S / length * flops for kind, flops in stack_flops(spec, S, causal).items()}
    if most == 1:
        return found
    tokens = len(wired(spec)) + most - 1
    for kind, flops in stack_flops(of_micro(spec), tokens, causal).items():
        found[kind] = found.get(kind, 0.0) + S * tokens / length * flops
    # Queries and outputs of each step, keys and values of its tokens, and their scores and sums.
    found["matmul"] += S / length * (4 * D * D + most * (6 * D * D + 4 * D))
    parts = nnx.eval_shape(lambda: [Stop(spec, rngs=nnx.Rngs(0)), Teacher(spec, rngs=nnx.Rngs(0))][: 1 + teaches(spec)])
    found["matmul"] += 2 * sum(map(kernel_size, parts))
    return found


def features_width(spec: Spec) -> int:
    """D: what the head reads."""
    return spec.D


def _cut(line: jax.Array, begin: jax.Array, count: int) -> jax.Array:
    """`count` entries of `line [B, T, D]` from each of `begin [B, S]`, `[B, S, count, D]`; the last beyond its end."""
    index = jnp.minimum(begin[..., None] + jnp.arange(count), line.shape[1] - 1)
    return cuts.at(line, index.reshape(len(line), -1)).reshape(*begin.shape, count, line.shape[-1])


def _pairs(live: jax.Array, first: jax.Array) -> jax.Array:
    """Whether a token and the one behind it are of one document, `[B, T - 1]`."""
    return live[:, :-1] & live[:, 1:] & ~first[:, 1:]


__all__ = ["Hamburger", "features_width", "forward_flops", "least", "of_micro", "room_of", "wired"]
