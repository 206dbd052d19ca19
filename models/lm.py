"""The backbone that every objective trains: embedding, a stack of layers, a final norm, a head.

Logical axes of its parameters: `vocab`, `embed` (D), `heads` (N*H or K*H), `hidden` (F), `tokens` (P),
`experts` (E), `layers` (the stack).
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from kernels import masks
from kernels.cross_entropy.reference import shape_logits
from models import norms, parameters
from models.block import STREAM, Pass, Stack, Unstacked
from models.depth import Depth
from models.mixers.context import Asked, Context, Edit, check_sites
from models.mixers.memory import Policy
from models.mixers.prefill import Prefill
from models.mixers.slots import Slots, ancestors
from models.mixers.together import Rows, cut, joined
from models.products import against, by_rows
from models.spec import Spec

STACKED = ("period", "late")  # Parts of a stack whose parameters have the layers in front; see models/rewired.py.
Head = Callable[[nnx.Rngs], nnx.Module]  # makes a part that an objective adds to the model


class LM(nnx.Module):
    """Tokens `[B, T]` to features `[B, T, D]`; `logits` maps features to `[B, T, V]`."""

    made_of = Stack  # What makes the layers of a model of this kind.

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs, heads: Mapping[str, Head] | None = None):
        """`heads`: parts that an objective adds (models/objectives), as functions that make them; built last."""
        V, D = spec.V, spec.D
        init = parameters.normal(spec.init_std)
        self.embedding = parameters.param(init, rngs, (V, D), ("vocab", "embed"), "embedding", spec)
        place = ((spec.positions, D), (None, "embed"), "embedding", spec)
        self.positions = parameters.param(init, rngs, *place) if spec.positions else None
        self.time = TimeEmbedding(spec, rngs=rngs) if spec.time_features else None
        square = ((D, D), (None, "embed"), "kernel", spec)
        self.condition = parameters.param(parameters.zeros, rngs, *square) if spec.self_condition else None
        self.stack = self.made_of(spec, rngs=rngs)
        self.norm = norms.make_final(spec, rngs=rngs)
        head = None if spec.tied else parameters.param(init, rngs, (V, D), ("vocab", "embed"), "embedding", spec)
        self.head = head
        self.heads = Heads(heads, rngs=rngs) if heads else None
        table = ((spec.roles, D), (None, "embed"), "embedding", spec)
        self.roles = parameters.param(parameters.zeros, rngs, *table) if spec.roles else None
        self.spec = spec

    def __call__(
        self,
        tokens: jax.Array,
        *,
        mask: masks.Mask,
        positions=None,
        segment_ids=None,
        time=None,
        condition=None,
        roles=None,
        state=None,
        fresh: bool = False,
        prefill: Prefill | None = None,
        parents=None,
        asked: Asked | None = None,
        layers: Mapping[str, Any] | None = None,
        taps: tuple[str, ...] = (),
        edits: Mapping[str, Edit] | None = None,
        depth: Depth | None = None,
        among: jax.Array | None = None,
    ) -> Pass:
        """Features of `tokens`, the decoding state after them, and what the layers report.

        Args:
          tokens: `[B, T]` ids, or vectors `[B, T, D]` in place of embedded ones.
          mask: what a token may see, before segments and the mixer's own window, e.g. `Causal()`.
          positions: `[B, T]` place in the document. None means 0..T-1. Give them when the sequence is cut over devices:
            its tokens may then be permuted.
          segment_ids: `[B, T]` document within the row, 0 = padding; None: one document a row.
          time: `[B]` or `[B, T]` in 0..1, how noisy the tokens are; read where `model.time_features` asks for it.
          condition: `[B, T, D]` an earlier prediction, read through the learned map of `model.self_condition` (zero at
            first). None: there is no earlier prediction.
          roles: `[B, T]` who a token comes from, 0 to `model.roles` - 1, where the model has them (zero at first).
          state: from `init_state`, for decoding; None in training.
          fresh: the state holds no token yet. The new tokens then see one another, and no slot of a cache is read.
          prefill: what the heads see of one another's tokens in a fresh pass; None: everything.
          parents: `[1|B, T]` with a state: the tokens are drafts in a tree, each behind its parent, -1 = the past.
            None: each is behind the one before it.
          asked: with a state: the requests whose rows these are.
          layers: values that differ by layer, name -> `[L, ...]`; each layer finds its own in `context.layers`.
          taps: sites ("mixer", "channel", "residual") whose activations `[L, B, T, D]` the report is to hold; and
            "experts", of which it holds those of each token, `[L, B, T, K]`, -1 where there is none.
          edits: site -> function that changes its activations; see models/edits.py.
          depth: with a state: which tokens take which layers. None: all take all.
          among: `[B, T, T]` of a fresh pass: which of the others each token may see, beside the mask. None: all.

        Returns:
          `Pass(features [B, T, D], state, report)`.
        """
        if positions is None:
            positions = jnp.arange(tokens.shape[1])[None]
        x = self._entered(tokens, positions)
        if self.time is not None:
            x = x + self.time(time)
        if self.condition is not None and condition is not None:
            kernel = self.condition[...].astype(x.dtype)
            x = x + by_rows(lambda earlier: earlier @ kernel, condition.astype(x.dtype), self.spec.partition)
        x = self._with_roles(x, roles)
        x = self.spec.partition.constrain(x, STREAM)
        edits = edits or {}
        check_sites(tuple(taps), edits)
        shown = {"layers": layers or {}, "taps": tuple(taps), "edits": tuple(edits.items())}
        if state is None:
            x, _, report = self.stack(x, Context(positions, segment_ids, mask, **shown))  # ty: ignore
            return Pass(self.norm(x), None, report)
        start, positions = state["slots"].length, jnp.broadcast_to(positions, tokens.shape[:2])
        slots = state["slots"].append(positions)
        patterns = self.stack.patterns(prefill) if prefill is not None and fresh else ()
        more = {"prefill": patterns, "depth": depth, "among": among if fresh else None}
        paths = None if parents is None else ancestors(parents)  # Once for all layers.
        context = Context(positions, segment_ids, mask, slots, start, paths, fresh, asked, **more, **shown)
        x, after, report = self.stack(x, context, state["layers"])
        return Pass(self.norm(x), {"slots": slots, "layers": after}, report)

    def together(self, rows: Sequence[Rows], mask: masks.Mask) -> tuple[Pass, ...]:
        """What a call with each of `rows` gives, in one pass that reads the weights once; reports are left out.

        Args:
          rows: of several states; see `models.mixers.together`.
          mask: of all.
        """
        self._with_roles(jnp.zeros(()), None)  # No row tells roles.
        states, parts = [r.state for r in rows], []
        for r in rows:
            at = jnp.broadcast_to(r.positions, r.tokens.shape[:2])
            slots = r.state["slots"].append(at)
            paths = None if r.parents is None else ancestors(r.parents)
            parts.append(Context(at, None, mask, slots, r.state["slots"].length, paths, asked=r.asked))
        entered = [self._entered(r.tokens, part.positions) for r, part in zip(rows, parts, strict=True)]
        x = self.spec.partition.constrain(joined(entered), STREAM)
        whole = Context(joined([part.positions for part in parts]), None, mask, parts=tuple(parts))
        held = zip(*(state["layers"] for state in states), strict=True)
        layers = tuple({name: tuple(one[name] for one in period) for name in period[0]} for period in held)
        x, after, _ = self.stack(x, whole, layers)
        return tuple(
            Pass(features, {"slots": part.slots, "layers": tuple({n: s[i] for n, s in p.items()} for p in after)}, {})
            for i, (features, part) in enumerate(zip(cut(self.norm(x), parts), parts, strict=True))
        )

    def _entered(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """`[B, T]` ids, or vectors `[B, T, D]`, as the stream before the first layer."""
        x = tokens.astype(self.spec.dtype) if tokens.ndim == 3 else self.embed(tokens)
        if self.positions is None:
            return x
        # Padding has negative positions.
        return x + look_up(self.positions[...], jnp.maximum(positions, 0), self.spec.dtype)

    def _with_roles(self, x: jax.Array, roles: jax.Array | None) -> jax.Array:
        """x_t + R[role_t]. Errors: ValueError where the model has roles and is told none, or the other way round."""
        if (self.roles is None) != (roles is None):
            told = "tells" if self.roles is None else "does not tell"
            raise ValueError(
                f"model.roles={self.spec.roles}, and this pass {told} who "
                "a token comes from; read the model by a part that does, e.g. plain decoding, or use model.roles=0."
            )
        return x if roles is None else x + look_up(self.roles[...], roles, self.spec.dtype)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """`[B, T] -> [B, T, D]`, scaled as the config says."""
        part, dtype = self.spec.partition, self.spec.dtype
        table = self.embedding[...].astype(jnp.promote_types(dtype, self.embedding[...].dtype))
        # Gather the table's width first: a gather from width-sharded rows would otherwise be all-gathered per token.
        if part.ways("vocab") == 1 and part.ways("embed") > 1 and tokens.ndim == 2:

            def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
                return look_up(part.gather(table, (None, "embed")), tokens, dtype)

            rows = ("batch", "sequence")
            x = part.run(local, (table, tokens), ((None, "embed"), rows), (*rows, None))
        else:
            x = look_up(part.constrain(table, ("vocab", None)), tokens, dtype)
        return x if self.spec.embedding_scale == 1.0 else x * jnp.asarray(self.spec.embedding_scale, x.dtype)

    def head_weights(self) -> jax.Array:
        """`[V, D]`: the tied embedding or the free head."""
        return (self.embedding if self.head is None else self.head)[...]

    def logits(self, features: jax.Array) -> jax.Array:
        """`[..., D] -> [..., V]` in float32, scaled and capped as the config says."""
        weights = self.head_weights().astype(features.dtype)
        logits = by_rows(lambda x: against(x, weights, self.spec.partition), features, self.spec.partition)
        return shape_logits(logits, self.spec.logit_scale, self.spec.softcap)

    def for_decoding(self, layers: tuple | None = None) -> "LM":
        """This model with its stack replaced by single layers, as `init_state` and calls with a state need it.

        Call it inside a trace. `layers` holds the layers' parameters from `unstack`, for callers that keep one copy for
        many calls; None cuts them out of the stack here.
        """
        if not isinstance(self.stack, Unstacked):
            self.stack = self.stack.unstack(layers)
        return self

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> dict:
        """The decoding state for `batch` rows of up to `length` tokens; see `for_decoding`.

        Every leaf has the batch in front. `memory`: what layers of attention keep; None: everything.
        """
        memory = memory or Policy()
        layers = self.stack.init_state(batch, length, memory)
        return {"slots": Slots.empty(batch, memory.slots or length), "layers": layers}


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def look_up(table: jax.Array, tokens: jax.Array, dtype: Any) -> jax.Array:
    """Rows of `table [V, D]` at `tokens [B, T]` in `dtype`, `[B, T, D]`; the gradient adds up in the table's own type.

    A row's gradient is a sum over all its uses, and bfloat16 stops at 256 equal terms. What devices that cut V exchange
    is in `dtype`.
    """
    return table.astype(dtype)[tokens]


def _looked_up(table: jax.Array, tokens: jax.Array, dtype: Any) -> tuple[jax.Array, tuple]:
    return look_up(table, tokens, dtype), (table, tokens)


def _added_up(dtype: Any, kept: tuple, gradient: jax.Array) -> tuple[jax.Array, None]:
    table, tokens = kept
    return jnp.zeros_like(table).at[tokens].add(gradient.astype(table.dtype)), None


look_up.defvjp(_looked_up, _added_up)


class Heads(nnx.Module):
    """What an objective adds to the model: parts by name, their parameters under `heads/NAME`."""

    def __init__(self, heads: Mapping[str, Head], *, rngs: nnx.Rngs):
        for name, make in heads.items():
            setattr(self, name, make(rngs))

    def __getitem__(self, name: str) -> nnx.Module:
        return getattr(self, name)


class TimeEmbedding(nnx.Module):
    """Noise levels `[B]` or `[B, T]` in 0..1 to vectors `[B, 1|T, D]` that are added to the embedded tokens.

    A linear map of cos and sin of 1000 t at wavelengths in geometric progression (Ho et al. 2020, appendix B), zero at
    first: the untrained model does not depend on the time.
    """

    def __init__(self, spec: Spec, *, rngs: nnx.Rngs):
        F = spec.time_features
        self.kernel = parameters.param(parameters.zeros, rngs, (F, spec.D), (None, "embed"), "kernel", spec)
        self.dtype, self.partition = spec.dtype, spec.partition

    def __call__(self, time: jax.Array) -> jax.Array:
        F = self.kernel.shape[0]
        time = time[:, None] if time.ndim == 1 else time
        rates = 1000 * jnp.exp(-math.log(10_000) * jnp.arange(F // 2) / (F // 2))
        angles = time[..., None] * rates
        features = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)
        kernel = self.kernel[...].astype(self.dtype)
        return by_rows(lambda x: x @ kernel, features.astype(self.dtype), self.partition)


def unstack(params: dict) -> tuple:
    """Parameters of each repetition of the stack by themselves: `{"stack": {"period": {... [L, ...]}}}` -> L trees.

    Repetitions of the later layers of a rewired stack (`models.rewired`) stand behind those of its period.
    """

    def each(part: dict) -> tuple:
        count = jax.tree.leaves(part)[0].shape[0]
        return tuple(jax.tree.map(lambda p, i=i: p[i], part) for i in range(count))

    return tuple(layer for name in STACKED if name in params["stack"] for layer in each(params["stack"][name]))
