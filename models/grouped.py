"""What the kinds share whose stack reads several tokens as one: `segmented` and `hamburger`."""

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from kernels import masks
from models.lm import LM
from models.mixers.context import Context
from models.segments import cuts


class Grouped(LM):
    """A model whose stack reads groups of tokens; they follow from the tokens so far, and it reads left to right."""

    named: ClassVar[str]  # as the sentence of its errors begins

    def _rows(
        self, tokens: jax.Array, mask: masks.Mask, positions: Any, segment_ids: Any, parents: Any
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(positions, which tokens there are, which begin a document), `[B, T]`; arguments as of `LM.__call__`.

        Errors: ValueError for a mask that is not causal, for vectors in place of ids, and for drafts in a tree.
        """
        if mask != masks.Causal() or tokens.ndim != 2 or parents is not None:
            raise ValueError(f"{self.named} one after another; use mask=Causal(), ids and no tree.")
        B, T = tokens.shape
        positions = jnp.broadcast_to(jnp.arange(T)[None] if positions is None else positions, (B, T))
        live = positions >= 0 if segment_ids is None else segment_ids != 0
        return positions, live, live & (positions == 0)

    def _told(
        self, at: jax.Array, held: jax.Array, place: jax.Array, segment_ids: Any, slots: Any, told: Mapping[str, Any]
    ) -> Context:
        """What the stack's layers are told, with the slots of its cache behind this pass, where it has one.

        Args:
          at: `[B, S]` the token at which each group stands.
          held: `[B, S]` which groups there are.
          place: `[B, S]` their positions.
          segment_ids: `[B, T]` of the tokens, or None.
          slots: of the stack's cache before this pass, or None.
          told: fields of `Context` beside these.
        """
        if slots is None:
            own = jnp.ones_like(at) if segment_ids is None else cuts.at(segment_ids, at)
            return Context(jnp.where(held, place, 0), jnp.where(held, own, 0), masks.Causal(), **told)
        place = jnp.where(held, place, -1)
        return Context(place, None, masks.Causal(), slots.append(place), slots.length, None, **told)
