"""Model kind `segmented`: layers of bytes around layers of segments, trained, evaluated and decoded as any other.

    bytes -> encoder -> [cut into segments, pool] -> backbone -> [each byte reads its newest token] -> decoder -> head

The encoder and the decoder are layers of attention of the width D' = `model.segmented.width`; the backbone is the stack
that `model` describes, over S tokens a row. x' = h + up(backbone(down(pool(h)))) goes into the decoder. A byte reads
tokens that are made of bytes up to it, so that features at byte t depend on no later byte, and a row of several
documents is each of them alone. `models.segments.segmenters` has the cuts, `models.segments.cuts` the formulas.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from models import norms, parameters
from models.block import STREAM, Pass, Period, Stack, Unstacked
from models.grouped import Grouped
from models.lm import Heads
from models.mixers.context import Context
from models.mixers.memory import Policy
from models.mixers.slots import Slots
from models.parameters import kernel_size
from models.products import by_rows
from models.reports import Mean
from models.segments import cuts, hnet
from models.segments.pools import POOLS, Members
from models.segments.segmenters import SEGMENTERS, Bytes, Cut, last
from models.spec import Spec


class Tokens(NamedTuple):
    """The tokens of the backbone in one pass."""

    at: jax.Array  # [B, S] the bytes that are marked
    held: jax.Array  # [B, S] bool, which of the S there are
    marks: jax.Array  # [B, T] bool
    number: jax.Array  # [B, T] marks of the document up to each byte


class Segmented(Grouped):
    """Bytes `[B, T]` to features `[B, T, D']`; `logits` maps features to `[B, T, V]`. The face is that of `LM`."""

    named = "a segmented model reads bytes"

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs, heads: Mapping[str, Any] | None = None):
        outer, init = of_bytes(spec), parameters.normal(spec.init_std)
        table = ((spec.V, outer.D), ("vocab", "embed"), "embedding", spec)
        self.embedding = parameters.param(init, rngs, *table)
        self.encoder = Stack(of_bytes(spec, "encoder_layers"), rngs=rngs)
        self.segmenter = SEGMENTERS[spec.options["segmented"]["segmenter"]](outer, rngs=rngs)
        self.pool = POOLS[spec.options["segmented"]["pool"]](outer, rngs=rngs)
        self.none = parameters.param(init, rngs, (self.pool.width,), (None,), "embedding", spec)
        wide = self.pool.width
        down, up = (parameters.kernel_std(spec, n, "embed", residual=False) for n in (wide, spec.D))
        self.down = parameters.param(parameters.normal(down), rngs, (wide, spec.D), ("embed", None), "kernel", spec)
        self.stack = Stack(spec, rngs=rngs)
        self.stack_norm = norms.make_final(spec, rngs=rngs)
        self.up = parameters.param(parameters.normal(up), rngs, (spec.D, outer.D), (None, "embed"), "kernel", spec)
        self.decoder = Stack(of_bytes(spec, "decoder_layers"), rngs=rngs)
        self.norm = norms.make_final(outer, rngs=rngs)
        self.head = None if spec.tied else parameters.param(init, rngs, *table)
        self.heads = Heads(heads, rngs=rngs) if heads else None
        self.time = self.condition = self.positions = self.roles = None
        self.spec, self.inner = outer, spec

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
        soft: bool = False,
    ) -> Pass:
        """As `LM.__call__`; `layers`, `taps` and `edits` are of the backbone, whose tokens are segments.

        `soft`: of a model that `softens`, the pass by which it is trained. All bytes are tokens of the backbone then.

        Errors: as `Grouped._rows`.
        """
        positions, live, first = self._rows(tokens, mask, positions, segment_ids, parents)
        slots = start = None
        held = self._begin(len(tokens)) if state is None else state["layers"]
        if state is not None:
            start, slots = state["slots"].length, state["slots"].append(positions)
        outer = Context(positions, segment_ids, mask, slots, start, None, fresh, asked)
        h, encoder, _ = self._through(self.encoder, self.embed(tokens), outer, held["encoder"])
        seen = Bytes(h, tokens, positions, first, live)
        cut, carry = self.segmenter(seen, held["carry"])
        found = self._tokens(cut, seen, held["number"], fixed=state is not None, soft=soft)
        pooled, kept = self._pooled(found, cut, seen, segment_ids, held)
        shown = {"layers": layers or {}, "taps": tuple(taps), "edits": tuple((edits or {}).items())}
        shown["key_bias"] = cut.gates if soft else None
        place = cuts.at(seen.place if self.segmenter.of_places else found.number - 1, found.at)
        told = {"fresh": fresh, "asked": asked, **shown}
        inner = self._told(found.at, found.held, place, segment_ids, held["slots"], told)
        made, backbone, report = self._backbone(pooled, inner, held, found)
        made = self._smoothed(made, found, cut, seen, held["read"], soft=soft)
        read = made if soft else cuts.read(made, found.marks, held["read"])
        x = h + (read if cut.chosen is None else hnet.confident(read, cut.chosen.astype(read.dtype)))
        x, decoder, _ = self._through(self.decoder, x, outer, held["decoder"])
        report = report | self._said(cut, found, seen)
        if state is None:
            return Pass(self.norm(x), None, report)
        more = {"encoder": encoder, "decoder": decoder, "backbone": backbone, "carry": carry, **kept}
        more |= {"slots": inner.slots, "number": last(found.number, live, held["number"])}
        more["read"] = cuts.at(jnp.concatenate([held["read"][:, None].astype(made.dtype), made], axis=1),
                               jnp.sum(found.held, axis=1)[:, None])[:, 0]  # fmt: skip
        return Pass(self.norm(x), {"slots": slots, "layers": more}, report)

    def _through(self, stack: Any, x: jax.Array, context: Context, state: Any) -> Pass:
        x = self.spec.partition.constrain(x, STREAM)
        return stack(x, context) if state is None else stack(x, context, state)

    def _begin(self, B: int) -> dict[str, Any]:
        """What stands before a row of which nothing was read."""
        D, dtype = self.spec.D, self.spec.dtype
        none = dict.fromkeys(("encoder", "decoder", "backbone", "slots"))
        return none | {
            "carry": self.segmenter.start(B), "number": jnp.zeros((B,), jnp.int32),
            "read": jnp.zeros((B, D), dtype), "pool": self.pool.start(B),
        }  # fmt: skip

    @property
    def softens(self) -> bool:
        """Whether it is trained by another pass than the one that it is read by."""
        return self.segmenter.softens

    def _tokens(self, cut: Cut, seen: Bytes, before: jax.Array, *, fixed: bool, soft: bool) -> Tokens:
        """Where the backbone's tokens are. In decoding (`fixed`) a pass may mark as many as it has bytes.

        In a `soft` pass all bytes are, whatever is marked.
        """
        B, T = seen.tokens.shape
        if soft:
            at = jnp.broadcast_to(jnp.arange(T), (B, T))
            return Tokens(at, seen.live, seen.live & (seen.first | cut.proposed), seen.place + 1)
        least = self.inner.options["segmented"]["least"]
        number = cuts.limited(cut.proposed, seen.first, seen.live, seen.place, least, before)
        marks = cuts.marked(number, seen.first, seen.live, before)
        at, held = cuts.places(marks, T if fixed else segments(self.inner, T))
        return Tokens(at, held, marks, number)

    def _pooled(self, found: Tokens, cut: Cut, seen: Bytes, segment_ids: Any, held: dict) -> tuple[jax.Array, dict]:
        """Vectors of the tokens `[B, S, D']`, and what is kept of bytes whose token is still to come."""
        if self.segmenter.pool == "at":
            return cuts.at(seen.hidden, found.at), {"pool": held["pool"]}
        wide = held["pool"]["total"].dtype
        marks = found.marks.astype(wide)
        if cut.soft is not None:
            free = seen.live & ~seen.first & (cut.proposed == found.marks)
            marks = cuts.straight_marks(found.marks, cut.soft.astype(wide), free)
        segment = cuts.segment_of(marks, self.segmenter.delayed)
        member = jnp.where(seen.live[..., None], cuts.members(segment, found.at.shape[1]), 0)
        if segment_ids is not None:
            own = cuts.at(segment_ids, found.at)
            member = jnp.where(segment_ids[..., None] == own[:, None], member, 0)
        newest = jnp.sum(found.marks, axis=1, dtype=wide)
        rest = (jax.lax.stop_gradient(segment) == newest[:, None]) & seen.live
        bytes_ = Members(seen.hidden, member, segment, rest, newest == 0)
        made, kept = self.pool(bytes_, held["pool"], self.none[...])
        return made, {"pool": kept}

    def _backbone(self, pooled: jax.Array, inner: Context, held: dict, found: Tokens) -> tuple[jax.Array, Any, dict]:
        """What the bytes are to read of each token `[B, S, D']`, the state and the report of the backbone."""
        partition, down, up = self.spec.partition, self.down[...], self.up[...]

        def run(state: Any) -> Pass:
            x = by_rows(lambda x: x @ down.astype(x.dtype), pooled.astype(self.spec.dtype), partition)
            out = self._through(self.stack, x, inner, state)
            x = by_rows(lambda x: x @ up.astype(x.dtype), self.stack_norm(out.features), partition)
            return Pass(x, out.state, out.report)

        if held["slots"] is None or pooled.shape[1] > 1 or inner.taps:
            return run(held["backbone"])
        return when_any(found.held, run, held["backbone"])

    def _smoothed(
        self, made: jax.Array, found: Tokens, cut: Cut, seen: Bytes, before: jax.Array, *, soft: bool
    ) -> jax.Array:
        if soft and cut.kept is not None:
            return cuts.smoothed(made, cut.kept, seen.first, before)
        if cut.share is None:
            return made
        share = jnp.where(found.held, jnp.clip(cuts.at(cut.share, found.at), 1e-4, 1 - 1e-4), 1)
        return cuts.smoothed(made, share, found.held & cuts.at(seen.first, found.at), before)

    def _said(self, cut: Cut, found: Tokens, seen: Bytes) -> dict[str, Any]:
        """The report: tokens a byte, bytes whose token did not fit the row, the segmenter's loss."""
        count = lambda x: jnp.sum(x, dtype=jnp.float32)[None]  # noqa: E731
        beyond = jnp.cumsum(found.marks, axis=1) > found.at.shape[1]
        said = {
            "segments": Mean(count(found.marks), count(seen.live)),
            "unread": Mean(count(beyond & seen.live), count(seen.live)),
        }
        marks = found.marks.astype(jnp.promote_types(self.spec.dtype, jnp.float32))
        if cut.soft is not None:
            marks = cuts.straight_marks(found.marks, cut.soft.astype(marks.dtype), seen.live & ~seen.first)
        nats = self.segmenter.loss(cut, marks, seen)
        return said if nats is None else said | {"loss": nats[None]}

    reported = ("segments", "unread", "loss")  # Entries of the report that are not of the backbone's layers.

    def for_decoding(self, layers: tuple | None = None) -> "Segmented":
        """As `LM.for_decoding`; `layers` are the backbone's."""
        if not isinstance(self.stack, Unstacked):
            self.stack = self.stack.unstack(layers)
            self.encoder, self.decoder = self.encoder.unstack(), self.decoder.unstack()
        return self

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> dict:
        """As `LM.init_state`: caches of the bytes' layers and of the backbone, and what is kept between the bytes."""
        memory = memory or Policy()
        size = memory.slots or length
        held = self._begin(batch) | {"slots": Slots.empty(batch, size)}
        for name, stack in (("encoder", self.encoder), ("decoder", self.decoder), ("backbone", self.stack)):
            held[name] = stack.init_state(batch, length, memory)
        return {"slots": Slots.empty(batch, size), "layers": held}


def when_any(held: jax.Array, run: Callable[[Any], Pass], state: Any) -> Pass:
    """`run(state)` where any of `held` is, else zeros and the state as it was: a token that makes no step of the
    backbone costs it nothing."""
    shapes = jax.eval_shape(run, state)
    zeros = lambda tree: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), tree)  # noqa: E731
    return jax.lax.cond(
        jnp.any(held), run, lambda state: Pass(zeros(shapes.features), state, zeros(shapes.report)), state
    )


def of_bytes(spec: Spec, layers: str = "") -> Spec:
    """The spec of the bytes' layers: of the encoder or the decoder, by the knob that says how many there are."""
    options = spec.options["segmented"]
    D, N = options["width"], options["heads"]
    L = options[layers] if layers else 1
    attention = MappingProxyType({**spec.options["attention"], "window": options["window"], "sinks": 0})
    return dataclasses.replace(
        spec, D=D, L=L, N=N, K=N, H=D // N, mixers=("attention",), by_position=(), unroll=min(L, spec.unroll),
        options=MappingProxyType({**spec.options, "attention": attention}),
    )  # fmt: skip


def segments(spec: Spec, length: int) -> int:
    """S: tokens of the backbone for a row of `length` bytes, a multiple of the devices that cut its stream.

    Documents of l bytes have at most ceil(l / least) tokens, so that a row of `segmented.documents` fits.
    """
    return room(spec, length, spec.options["segmented"]["least"], spec.options["segmented"]["documents"])


def room(spec: Spec, length: int, least: int, documents: int) -> int:
    """As `segments`, for at least `least` bytes a token and so many documents."""
    most, ways = length if least == 1 else min(length, -(-length // least) + documents), spec.partition.ways("stream")
    return -(-most // ways) * ways


def forward_flops(spec: Spec, length: int, causal: bool) -> dict[str, float]:
    """FLOPs of a byte's forward pass in a row of `length` bytes: `matmul` without the head, and those of the mixers.

    The backbone counts for the S tokens that it is computed for in training, whether a row marks as many or not.
    """
    outer, name = of_bytes(spec), spec.options["segmented"]["segmenter"]
    S = length if SEGMENTERS[name].softens else segments(spec, length)
    share, found = S / length, {"matmul": 0.0}
    for each, part, tokens in (
        (of_bytes(spec, "encoder_layers"), 1.0, length),
        (spec, share, S),
        (of_bytes(spec, "decoder_layers"), 1.0, length),
    ):
        for kind, flops in stack_flops(each, tokens, causal).items():
            found[kind] = found.get(kind, 0.0) + part * flops
    segmenter = nnx.eval_shape(lambda: SEGMENTERS[name](outer, rngs=nnx.Rngs(0)))
    pool = nnx.eval_shape(lambda: POOLS[spec.options["segmented"]["pool"]](outer, rngs=nnx.Rngs(0)))
    found["matmul"] += 2 * kernel_size(segmenter) + share * 2 * (pool.width + outer.D) * spec.D
    if segmenter.pool == "mean":
        found["matmul"] += 2 * kernel_size(pool) + pool.flops(S)
    return found


def stack_flops(spec: Spec, tokens: int, causal: bool) -> dict[str, float]:
    """FLOPs of a token's forward pass through all layers in a row of `tokens`: `matmul`, and those of the mixers."""
    blocks = nnx.eval_shape(lambda: Period(spec, rngs=nnx.Rngs(0))).blocks.values()
    repeats, found = spec.L // len(blocks), {"matmul": 0.0}
    for block in blocks:
        free = 2 * (kernel_size(block) - kernel_size(block.channel)) + block.channel.flops()
        found["matmul"] += repeats * free
        for kind, flops in block.mixer.context_flops(tokens, causal).items():
            found[kind] = found.get(kind, 0.0) + repeats * flops
    return found


def features_width(spec: Spec) -> int:
    """D': what the head reads."""
    return of_bytes(spec).D


__all__ = ["Segmented", "features_width", "forward_flops", "of_bytes", "room", "segments", "stack_flops", "when_any"]
