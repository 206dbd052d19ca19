"""Socket Segmenter: which bytes give rise to a token of the backbone, and what the token is of.

A part is built by `(spec, *, rngs)` with the spec of the bytes' layers, and called as `(Bytes, carry) -> (Cut, carry)`.
`start(batch)` is the carry before a row: what is kept of the bytes read. What it says of itself:

- `pool`: "mean", what `model.segmented.pool` makes of the bytes of the segment, or "at", the vector of the marked byte.
- `delayed`: a token of "mean" holds the bytes before its mark, since the mark is the first byte behind the segment;
  else the mark is the segment's last byte.
- `softens`: in training all bytes are tokens, with `Cut.gates` and `Cut.kept` in place of marks.
- `of_places`: places of the backbone's tokens are those of their bytes; else tokens are counted.

`loss(cut, marks, bytes)` is None, or nats to be added to the sum over bytes.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from models import parameters
from models.products import by_rows
from models.segments import hnet, magnet, mrt5, words
from models.spec import Spec

Carry = dict[str, jax.Array]


class Bytes(NamedTuple):
    """What a segmenter sees."""

    hidden: jax.Array  # [B, T, D] behind the encoder
    tokens: jax.Array  # [B, T] ids
    place: jax.Array  # [B, T] in the document
    first: jax.Array  # [B, T] bool, a document's first byte
    live: jax.Array  # [B, T] bool, False for padding


class Cut(NamedTuple):
    """What it decides."""

    proposed: jax.Array  # [B, T] bool
    soft: jax.Array | None = None  # [B, T] with the gradient of the marks; None: they are not learned
    share: jax.Array | None = None  # [B, T] p of the moving average over tokens; None: a token is read as it is
    chosen: jax.Array | None = None  # [B, T] probability of the decision
    script: jax.Array | None = None  # [B, T] which of several predictors decided
    gates: jax.Array | None = None  # [B, T] added to the scores of each byte as a key, in a soft pass
    kept: jax.Array | None = None  # [B, T] with them: how far a byte is one that later ones read
    nats: jax.Array | None = None  # [B, T] of a prediction of the segmenter's own, 0 where there is none


def last(rows: jax.Array, live: jax.Array, before: jax.Array) -> jax.Array:
    """The entry of `rows [B, T, ...]` at the last live place of each row; `before [B, ...]` where there is none."""
    count = jnp.sum(live, axis=1)
    index = jnp.maximum(count - 1, 0).reshape(-1, *[1] * (rows.ndim - 1))
    found = jnp.take_along_axis(rows, index, axis=1)[:, 0]
    return jnp.where((count > 0).reshape(-1, *[1] * (found.ndim - 1)), found, before.astype(found.dtype))


class Segmenter(nnx.Module):
    """Base of those that learn nothing and keep nothing."""

    pool: ClassVar[str] = "mean"
    delayed: ClassVar[bool] = False
    of_bytes: ClassVar[bool] = False  # whether ids must be bytes
    of_places: ClassVar[bool] = False
    softens: ClassVar[bool] = False

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        self.spec = spec

    @property
    def options(self) -> Mapping[str, Any]:
        """Those that `model.segmented` has under its name."""
        group = self.spec.options["segmented"]
        return group[group["segmenter"]]

    def start(self, batch: int) -> Carry:
        """Nothing."""
        return {}

    def loss(self, cut: Cut, marks: jax.Array, bytes_: Bytes) -> jax.Array | None:
        """None."""
        return None


class Stride(Segmenter):
    """Segments of k bytes, k = `stride.bytes` (MegaByte, Yu et al. 2023, arXiv:2305.07185, pools its patches so)."""

    def __call__(self, bytes_: Bytes, carry: Carry) -> tuple[Cut, Carry]:
        return Cut(bytes_.place % self.options["bytes"] == 0), carry


class Words(Segmenter):
    """Words (`words.word_starts`): a token is the mean of a word, marked by the first byte behind it.

    Learn Your Tokens (Thawani et al. 2023, arXiv:2310.11628) and HAT (Neitemeier et al. 2025, arXiv:2501.10322) pool
    words by vectors of their own, which attend to their bytes: `model.segmented.pool=attention`.
    """

    delayed, of_bytes = True, True

    def start(self, batch: int) -> Carry:
        """The byte read last, a special at first."""
        return {"token": jnp.full((batch,), 256, jnp.int32)}

    def __call__(self, bytes_: Bytes, carry: Carry) -> tuple[Cut, Carry]:
        tokens = bytes_.tokens.astype(jnp.int32)
        row = jnp.concatenate([carry["token"][:, None], tokens], axis=1)
        return Cut(words.word_starts(row)[:, 1:]), {"token": last(tokens, bytes_.live, carry["token"])}


class Spaces(Segmenter):
    """Patches that begin behind a byte that is no letter, digit or continuation of UTF-8; of a run of such bytes behind
    the first (`data.tokenizers.patches.space_starts`; Slagle 2024, arXiv:2404.14408, a control of BLT, Pagnoni et al.
    2024, arXiv:2412.09871). A special is a patch of its own. A token is the mean of a patch, marked by the byte behind
    it."""

    delayed, of_bytes = True, True

    def start(self, batch: int) -> Carry:
        """The two bytes read last."""
        return {"token": jnp.full((batch, 2), 256, jnp.int32)}

    def __call__(self, bytes_: Bytes, carry: Carry) -> tuple[Cut, Carry]:
        tokens, kept = bytes_.tokens.astype(jnp.int32), carry["token"]
        now = jnp.concatenate([kept[:, 1:], tokens], axis=1)  # of each byte the one before it
        earlier = jnp.concatenate([kept[:, 1:], tokens[:, :-1]], axis=1)
        earlier = jnp.where(bytes_.first, 256, earlier)  # and what stood before that: nothing of another document
        earlier = jnp.concatenate([kept[:, :1], earlier], axis=1)
        ended = (now >= 256) | ~_inside(now) & (_inside(earlier) | (earlier >= 256))
        pairs = jnp.stack([earlier[:, 1:], tokens], axis=-1)
        return Cut(ended[:, :-1]), {"token": last(pairs, bytes_.live, kept)}


def _inside(row: jax.Array) -> jax.Array:
    """Whether a byte is a letter, a digit or a continuation of UTF-8; specials are not."""
    between = lambda a, b: (row >= a) & (row <= b)  # noqa: E731
    return between(48, 57) | between(65, 90) | between(97, 122) | between(128, 191)


class Magnet(Segmenter):
    """Boundaries by an MLP, straight-through, held near a rate by a prior (MAGNET, Ahia et al. 2024, arXiv:2407.08818).

    A byte ends its segment where sigmoid(logit / temperature) > 1/2. The released code draws noise for the relaxation
    also in evaluation; here there is none, so that a byte is cut the same in training, packed and decoded. The loss of
    a row is -log Binomial(marks; bytes, prior).

    The paper has one predictor and one prior for each script, told by the text's language. With `magnet.priors` the
    script is that of the newest letter (`magnet.scripts`): each has a row of its own behind the common hidden layer,
    and a row's loss is the sum over scripts, of their own bytes.
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        D, init, R = spec.D, parameters.normal(spec.D**-0.5), max(1, len(self.options["priors"]))
        self.hidden = parameters.param(init, rngs, (D, D), ("embed", None), "kernel", spec)
        self.hidden_bias = parameters.param(parameters.zeros, rngs, (D,), (None,), "bias", spec)
        self.out = parameters.param(init, rngs, (D, R), (None, None), "kernel", spec)
        self.out_bias = parameters.param(parameters.zeros, rngs, (R,), (None,), "bias", spec)

    def start(self, batch: int) -> Carry:
        """The script of the byte read last, where there are several."""
        return {"script": jnp.zeros((batch,), jnp.int32)} if self.options["priors"] else {}

    def __call__(self, bytes_: Bytes, carry: Carry) -> tuple[Cut, Carry]:
        x = bytes_.hidden
        first, second = (each[...].astype(x.dtype) for each in (self.hidden, self.out))
        x = jax.nn.gelu(by_rows(lambda x: x @ first, x) + self.hidden_bias[...].astype(x.dtype))
        logits, script = by_rows(lambda x: x @ second, x) + self.out_bias[...].astype(x.dtype), None
        if self.options["priors"]:
            script = magnet.scripts(bytes_.tokens, bytes_.first, carry["script"])
            carry = {"script": last(script, bytes_.live, carry["script"])}
            logits = jnp.take_along_axis(logits, script[..., None], axis=-1)
        logits = logits[..., 0]
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        soft = jax.nn.sigmoid(wide / self.options["temperature"])
        return Cut(soft > 0.5, soft=soft, script=script), carry

    def loss(self, cut: Cut, marks: jax.Array, bytes_: Bytes) -> jax.Array:
        """`magnet.weight` times the sum over rows, nats; a document's first byte is no trial."""
        total, free = jnp.zeros((), marks.dtype), bytes_.live & ~bytes_.first
        priors = [float(prior) for prior in self.options["priors"]] or [self.options["prior"]]
        for r, prior in enumerate(priors):
            mine = free if cut.script is None else free & (cut.script == r)
            count, trials = (jnp.sum(jnp.where(mine, x, 0), axis=-1) for x in (marks, jnp.ones_like(marks)))
            nats = magnet.binomial_nats(count, trials, prior)
            total += jnp.sum(jnp.where(trials > 0, nats, 0))
        return self.options["weight"] * total


class HNet(Segmenter):
    """Chunks begin where neighbours differ (H-Net's dynamic chunking, Hwang et al. 2025, arXiv:2507.07955).

    See `models.segments.hnet`: p from the cosine of two maps, the token is the vector of the chunk's first byte, what
    is read is an exponential moving average, times 1 with the gradient of the choice; the loss holds the rate at 1 /
    `hnet.ratio`. Its encoder and decoder are layers of attention here, and the residual is the plain sum.
    """

    pool = "at"

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        one = lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)  # noqa: E731
        self.query = parameters.param(one, rngs, (spec.D, spec.D), ("embed", None), "kernel", spec)
        self.key = parameters.param(one, rngs, (spec.D, spec.D), ("embed", None), "kernel", spec)

    def start(self, batch: int) -> Carry:
        """The vector of the byte read last."""
        return {"hidden": jnp.zeros((batch, self.spec.D), self.spec.dtype)}

    def __call__(self, bytes_: Bytes, carry: Carry) -> tuple[Cut, Carry]:
        x = bytes_.hidden
        row = jnp.concatenate([carry["hidden"][:, None].astype(x.dtype), x], axis=1)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        query, key = (each[...].astype(x.dtype) for each in (self.query, self.key))
        ends = jnp.concatenate([jnp.zeros_like(bytes_.first[:, :1]), bytes_.first], axis=1)
        found = hnet.routing(row.astype(wide), query.astype(wide), key.astype(wide), ends)
        p, boundary, chosen = (each[:, 1:] for each in found)
        return Cut(boundary, share=p, chosen=chosen), {"hidden": last(x, bytes_.live, carry["hidden"])}

    def loss(self, cut: Cut, marks: jax.Array, bytes_: Bytes) -> jax.Array:
        """`hnet.weight` times the ratio loss of the batch, for each of its bytes, nats."""
        routed = hnet.Routing(cut.share, marks > 0, cut.chosen)
        count = jnp.sum(bytes_.live)
        return self.options["weight"] * count * hnet.ratio_loss(routed, self.options["ratio"], bytes_.live)


class Entropy(Segmenter):
    """Patches begin at bytes that are hard to predict (Byte Latent Transformer, Pagnoni et al. 2024, arXiv:2412.09871).

    `data.tokenizers.patches.entropy_starts` with the rule `entropy.rule`: H_t > threshold (global), or H_t - H_{t-1} >
    threshold (monotonic; H is 0 at a document's first byte). The paper's H is that of a small model trained before;
    here it is of a head on the encoder, which learns the next byte in the same run, so that the encoder is the small
    model. No gradient goes through the cuts. A token is the mean of a patch, marked by the byte behind it.
    """

    delayed = True

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        init = parameters.normal(spec.D**-0.5)
        self.head = parameters.param(init, rngs, (spec.D, spec.V), ("embed", "vocab"), "kernel", spec)

    def start(self, batch: int) -> Carry:
        """The entropy of the byte to come, and that of the byte read last when it was to come."""
        wide = jnp.promote_types(self.spec.dtype, jnp.float32)
        return {"next": jnp.zeros((batch,), wide), "entropy": jnp.zeros((batch,), wide)}

    def __call__(self, bytes_: Bytes, carry: Carry) -> tuple[Cut, Carry]:
        x, head = mrt5.rms_norm(bytes_.hidden, 1.0), self.head[...].astype(bytes_.hidden.dtype)
        wide = jnp.promote_types(x.dtype, jnp.float32)
        log_p = jax.nn.log_softmax(by_rows(lambda x: x @ head, x).astype(wide), axis=-1)
        following = jax.lax.stop_gradient(-jnp.sum(jnp.exp(log_p) * log_p, axis=-1))
        moved = lambda first, row: jnp.concatenate([first[:, None].astype(row.dtype), row[:, :-1]], axis=1)  # noqa: E731
        H = jnp.where(bytes_.first, 0, moved(carry["next"], following))
        compared = H - moved(carry["entropy"], H) if self.options["rule"] == "monotonic" else H
        ids = jnp.minimum(bytes_.tokens[:, 1:], head.shape[1] - 1)
        nats = -jnp.take_along_axis(log_p[:, :-1], ids[..., None], axis=-1)[..., 0]
        nats = jnp.pad(jnp.where(bytes_.live[:, 1:] & ~bytes_.first[:, 1:], nats, 0), ((0, 0), (0, 1)))
        kept = {"next": last(following, bytes_.live, carry["next"]), "entropy": last(H, bytes_.live, carry["entropy"])}
        return Cut(compared > self.options["threshold"], nats=nats), kept

    def loss(self, cut: Cut, marks: jax.Array, bytes_: Bytes) -> jax.Array:
        """`entropy.weight` times the nats of the next bytes of each document."""
        return self.options["weight"] * jnp.sum(cut.nats)


class MrT5(Segmenter):
    """A gate deletes bytes, softly in training, truly wherever the model is read (MrT5, Kallini et al. 2025,
    arXiv:2410.20771; see `models.segments.mrt5`).

    G = k sigmoid(-(w . rms(h) + b)). Read: a byte is a token where G > k / 2, in its own place, and a document's first
    byte always is. Trained: all bytes are tokens, G is added to their scores as keys in every layer of the backbone,
    and byte t reads z_t = s_t c_t + (1 - s_t) z_{t-1}, s = 1 - G / k: the mean of what it would read if each byte
    stayed with probability s. Where all gates are 0 or -inf both are one. The paper's decoder attends to the bytes that
    are left.

    Its loss is the mean of G over bytes; the coefficient follows `mrt5.deleted`, the share of bytes to be deleted, by a
    PI controller, whose sums are parameters of role `running`.
    """

    pool, softens, of_places = "at", True, True

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        super().__init__(spec, rngs=rngs)
        make = lambda init, shape, role: parameters.param(init, rngs, shape, (None,) * len(shape), role, spec)  # noqa: E731
        self.scale = make(parameters.ones, (spec.D,), "norm")
        self.out = make(parameters.normal(spec.D**-0.5), (spec.D, 1), "kernel")
        self.bias = make(parameters.ones, (1,), "bias")
        self.held = make(parameters.zeros, (2,), "running")  # What the controller has gathered, P and I.

    def __call__(self, bytes_: Bytes, carry: Carry) -> tuple[Cut, Carry]:
        k, out = self.options["k"], self.out[...].astype(bytes_.hidden.dtype)
        x = mrt5.rms_norm(bytes_.hidden, self.scale[...].astype(bytes_.hidden.dtype))
        logits = by_rows(lambda x: x @ out, x)[..., 0]
        wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) + self.bias[...]
        gates = jnp.where(bytes_.first, 0, mrt5.gate(wide, k))
        return Cut(gates > k / 2, gates=gates, kept=1 - gates / k), carry

    def loss(self, cut: Cut, marks: jax.Array, bytes_: Bytes) -> jax.Array:
        """The coefficient times the sum of G over bytes, nats; a document's first byte has none."""
        assert cut.gates is not None
        return jnp.maximum(0, jnp.sum(self.held[...])) * jnp.sum(jnp.where(bytes_.live, cut.gates, 0))

    def advance(self, old: Mapping[str, jax.Array], report: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The controller's sums after a step that deleted 1 - `segments` of the bytes."""
        options, state = self.options, mrt5.Controller(*jnp.unstack(old["held"]))
        rate = 1 - report["segments"].value[0]
        told = options["deleted"], rate, options["proportional"], options["integral"]
        return {"held": jnp.stack(mrt5.pi_controller(state, *told)[0])}


SEGMENTERS: dict[str, type[Segmenter]] = {
    "stride": Stride,
    "words": Words,
    "spaces": Spaces,
    "magnet": Magnet,
    "hnet": HNet,
    "entropy": Entropy,
    "mrt5": MrT5,
}
