"""Drafter `eagle`: a head of one layer that predicts the model's features (objective `eagle`), a chain of drafts.

Source: Li et al. 2024, "EAGLE", arXiv:2401.15077; what the head reads and learns stands in `models.objectives.eagle`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.decoding import keys
from models.decoding.drafts import Drafter, Seen, Tree
from models.decoding.drafts.ahead import newest
from models.decoding.drafts.model import warped
from models.decoding.drafts.none import last_token
from models.mixers.context import Context
from models.mixers.slots import Slots


def read_on(model: Any, state: Any, tokens: jax.Array, before: jax.Array, positions: jax.Array) -> tuple[Any, Any]:
    """(g `[B, T, D]`, the head's state): it reads tokens `[B, T]` beside the features before them, `[B, T, D]`.

    Args:
      model: an `LM` with the head, inside a trace; state: "slots" and "layer" of the head.
      positions: `[B, T]` of the tokens, -1 = padding at a row's end.
    """
    start, slots = state["slots"].length, state["slots"].append(positions)
    context = Context(positions, None, masks.Causal(), slots, start)
    made, layer = model.heads["eagle"](model.embed(tokens), before, context, state["layer"])
    return made, {"slots": slots, "layer": layer}


@dataclasses.dataclass(frozen=True)
class Eagle(Drafter):
    """See the module's docstring. `length` drafts a round.

    The side: the head's state, which has read the text but for its last token beside the model's own features, and the
    model's feature `[B, D]` of the token before the last one.
    """

    draws = True

    length: int

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return self.length + 1

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        if config.objective != "eagle":
            yield (
                f"generate.drafter='eagle' needs the head that objective='eagle' trains, which a model of objective="
                f"{config.objective!r} has not; use generate.drafter='lookup'."
            )

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        model = models["model"]
        layer = model.heads["eagle"].init_state(batch, capacity)
        feature = jnp.zeros((batch, model.spec.D), model.spec.dtype)
        return {"slots": Slots.empty(batch, capacity), "layer": layer, "feature": feature}

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """See `Drafter.read`."""
        return self._taken_in(models["model"], side, tokens, positions, made.features)

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`. What the head makes of its own features is dropped."""
        model, side = models["model"], p.side["eagle"]
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
        accepted = jnp.where(jnp.arange(self.nodes) < seen.count[:, None], seen.position, -1)
        return self._taken_in(models["model"], side, seen.tree.token, accepted, seen.made.features)

    def _taken_in(self, model: Any, side: Any, tokens: jax.Array, positions: jax.Array, features: jax.Array) -> Any:
        """The side after tokens `[B, T]` that the model made `features [B, T, D]` of."""
        before = jnp.concatenate([side["feature"][:, None], features[:, :-1].astype(side["feature"].dtype)], axis=1)
        _, state = read_on(model, side, tokens, before, positions)
        count = jnp.sum(positions >= 0, axis=1)
        return state | {"feature": newest(features, jnp.maximum(count - 1, 0), count > 0, side["feature"])}


PARTS = {"eagle": Eagle}
