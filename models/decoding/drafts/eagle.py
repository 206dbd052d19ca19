"""Drafter `eagle`: a head of one layer that predicts the model's features (objective `eagle`): a chain or a tree.

Sources: Li et al. 2024, "EAGLE", arXiv:2401.15077, and "EAGLE-2", arXiv:2406.16858, whose trees grow where the head is
sure (`by_level`); what the head reads and learns stands in `models.objectives.eagle`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.decoding import keys
from models.decoding.drafts import Seen, Tree
from models.decoding.drafts.ahead import newest
from models.decoding.drafts.by_level import ByLevel
from models.decoding.drafts.model import warped
from models.decoding.drafts.none import last_token
from models.mixers.context import Context
from models.mixers.slots import Slots, ancestors, depths


def read_on(
    model: Any, state: Any, tokens: jax.Array, before: jax.Array, positions: jax.Array, parents: Any = None
) -> tuple[Any, Any]:
    """(g `[B, T, D]`, the head's state): it reads tokens `[B, T]` beside the features before them, `[B, T, D]`.

    Args:
      model: an `LM` with the head, inside a trace; state: "slots" and "layer" of the head.
      positions: `[B, T]` of the tokens, -1 = padding at a row's end.
      parents: `[1|B, T]` of tokens that are a tree, -1: the text; None: each is behind the one before it.
    """
    start, slots = state["slots"].length, state["slots"].append(positions)
    paths = None if parents is None else ancestors(parents)
    context = Context(positions, None, masks.Causal(), slots, start, paths)
    made, layer = model.heads["eagle"](model.embed(tokens), before, context, state["layer"])
    return made, {"slots": slots, "layer": layer}


@dataclasses.dataclass(frozen=True)
class Eagle(ByLevel):
    """See the module's docstring. `builder` "chain": `length` drafts a round; else a tree, see `ByLevel`.

    The side: the head's state, which has read the text but for its last token beside the model's own features, and the
    model's feature `[B, D]` of the token before the last one.
    """

    NAME = "eagle"

    length: int

    @property
    def branches(self) -> bool:
        """See `Drafter`."""
        return self.builder != "chain"

    @property
    def nodes(self) -> int:
        """See `Drafter`."""
        return super().nodes if self.branches else self.length + 1

    @property
    def depth(self) -> int:
        """See `Drafter`."""
        return super().depth if self.branches else self.length + 1

    @property
    def independent(self) -> bool:
        """See `Drafter`."""
        return super().independent if self.branches else True

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        if self.branches:
            yield from super().problems(config)
        if config.objective != "eagle":
            yield (
                f"generate.drafter='eagle' needs the head that objective='eagle' trains, which a model of objective="
                f"{config.objective!r} has not; use generate.drafter='lookup'."
            )

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        model, capacity = models["model"], capacity + (self.room if self.branches else 0)
        layer = model.heads["eagle"].init_state(batch, capacity)
        feature = jnp.zeros((batch, model.spec.D), model.spec.dtype)
        return {"slots": Slots.empty(batch, capacity), "layer": layer, "feature": feature}

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """See `Drafter.read`."""
        return self._taken_in(models["model"], side, tokens, positions, made.features)

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`. What the head makes of its own features is dropped."""
        model, side = models["model"], p.side[self.NAME]
        if self.branches:
            reader = _Reader(models, p, parts, side)
            tree = self.tree_of(reader)
            return tree, side | {"layer": reader.state["layer"]}
        request, state, feature = jax.random.wrap_key_data(p.key), side, side["feature"][:, None]
        drafts, laws = [last_token(p.text, p.length)[:, 0]], []
        for i in range(self.length):
            here = jnp.where(p.live, p.length - 1 + i, -1)[:, None]
            feature, state = read_on(model, state, drafts[-1][:, None], feature, here)
            logits = warped(models, model.logits(feature), p, parts)[:, 0]
            laws.append(jax.nn.softmax(logits, axis=-1))
            drafts.append(parts.verifier.draw(keys.fold(request, p.length + i, keys.TOKEN), logits))
        token = jnp.stack(drafts, axis=1)
        q = jnp.pad(jnp.stack(laws, axis=1), ((0, 0), (1, 0), (0, 0))) if parts.verifier.needs_q else None
        # What was written behind the text has no position in these slots, and is overwritten.
        return Tree.chain(token, jnp.ones(token.shape, bool), q), side | {"layer": state["layer"]}

    def observe(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Any:
        """See `Drafter.observe`: the head reads what was accepted, beside the model's own features."""
        at = jnp.where(jnp.arange(self.depth) < seen.count[:, None], seen.path, 0)
        token, position = (jnp.take_along_axis(x, at, axis=1) for x in (seen.tree.token, seen.position))
        position = jnp.where(jnp.arange(self.depth) < seen.count[:, None], position, -1)
        features = jnp.take_along_axis(seen.made.features, at[..., None], axis=1)
        return self._taken_in(models["model"], side, token, position, features)

    def _taken_in(self, model: Any, side: Any, tokens: jax.Array, positions: jax.Array, features: jax.Array) -> Any:
        """The side after tokens `[B, T]` that the model made `features [B, T, D]` of."""
        before = jnp.concatenate([side["feature"][:, None], features[:, :-1].astype(side["feature"].dtype)], axis=1)
        _, state = read_on(model, side, tokens, before, positions)
        count = jnp.sum(positions >= 0, axis=1)
        return state | {"feature": newest(features, jnp.maximum(count - 1, 0), count > 0, side["feature"])}


class _Reader:
    """The head, as it reads trees behind the text beside its own features: a `by_level.Reader`."""

    def __init__(self, models: Mapping[str, Any], p: Any, parts: Any, side: Any):
        self.models, self.model, self.p, self.parts = models, models["model"], p, parts
        last = jnp.where(p.live, p.length - 1, -1)[:, None]
        self.made, self.state = read_on(
            self.model, side, last_token(p.text, p.length), side["feature"][:, None], last
        )  # of the last token, then of every node, [B, 1 + n, D]
        self.first = self._logits(self.made)

    def _logits(self, features: jax.Array) -> jax.Array:
        return warped(self.models, self.model.logits(features), self.p, self.parts)

    def read(self, token: jax.Array, parent: jax.Array, last: int) -> jax.Array:
        """See `by_level.Reader.read`."""
        parent = jnp.broadcast_to(parent, token.shape)
        before = jnp.take_along_axis(self.made, 1 + parent[..., None], axis=1)
        place = jnp.where(self.p.live[:, None], self.p.length[:, None] + depths(parent), -1)
        made, after = read_on(self.model, self.state, token, before, place, parent)
        self.made, self.state = (
            jnp.concatenate([self.made[:, :1], made], axis=1),
            self.state | {"layer": after["layer"]},
        )
        return self._logits(made[:, -last:])


PARTS = {"eagle": Eagle}
