"""Drafter `model_tree`: a smaller run writes a tree, level by level (`by_level`).

Each level reads the tree so far again from the state of the text, so that nothing has to be taken back.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from models.decoding.drafts import Tree
from models.decoding.drafts.by_level import ByLevel
from models.decoding.drafts.model import ByModel, caught_up, fitted, warped
from models.mixers.slots import depths


@dataclasses.dataclass(frozen=True)
class ModelTree(ByLevel, ByModel):
    """See the module's docstring."""

    NAME = "model_tree"

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        return super().init(models, batch, capacity + self.room)

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`."""
        model, state, feature = caught_up(models[f"{self.NAME}.workdir"], p, p.side[self.NAME], self.depth)
        reader = _Reader(models, model, p, parts, state, feature)
        tree = self.tree_of(reader)
        return tree, {"slots": state["slots"], "layers": reader.layers}


class _Reader:
    """The model that drafts, as it reads trees behind the text: a `by_level.Reader`."""

    def __init__(self, models: Mapping[str, Any], model: Any, p: Any, parts: Any, state: Any, feature: jax.Array):
        self.models, self.model, self.p, self.parts, self.state = models, model, p, parts, state
        self.layers = state["layers"]
        self.first = self._logits(feature)

    def _logits(self, features: jax.Array) -> jax.Array:
        V = self.models["model"].head_weights().shape[0]
        return warped(self.models, fitted(self.model.logits(features), V), self.p, self.parts)

    def read(self, token: jax.Array, parent: jax.Array, last: int) -> jax.Array:
        """See `by_level.Reader.read`."""
        place = jnp.where(self.p.live[:, None], self.p.length[:, None] + depths(parent), -1)
        given = {"mask": masks.Causal(), "positions": place, "state": self.state | {"layers": self.layers}}
        features, after, _ = self.model(token, parents=parent, **given)
        self.layers = after["layers"]
        return self._logits(features[:, -last:])


PARTS = {ModelTree.NAME: ModelTree}
