"""Socket Mixer: how do tokens see each other?

A part is built by `(spec, *, rngs)` and called as `(x [B, T, D], context, state) -> (y [B, T, D], state)`. Training
calls it with `state=None`. Decoding calls it with the state from `init_state(batch, length, memory)` and any number of
new tokens. The parallel form and the step form are one function, and a test holds them equal for every part in the
table. `memory` says what attention keeps (`models.mixers.memory`); a recurrence ignores it. Every leaf of a state has
the batch in front, so that rows are inserted, repeated and taken without knowledge of the mixer
(`models.decoding.rows`).

- `bidirectional`: whether the part can run under a mask that is not causal.
- `context_parallel`: whether it can run where devices of the mesh axis `context` share a sequence (False if absent).
- `layouts`, optional: the orders of tokens that it can then follow (`kernels.context_attention.LAYOUTS`).
- `grouped`: whether it can have fewer key heads than query heads.
- `sized`: whether rules of `models.parametrization` are derived and checked for it. Other parts have rates or norms of
  their own that do not follow the width.
- `problems(options, facts)`, optional: sentences about options that do not go with the rest of the config
  (`models.facts`).
- `context_flops`: forward FLOPs of a token beyond the projections, by kind: attention, recurrent (a memory), fast
  (weights that learn).
- `grows`, optional: whether the state grows with the text (False if absent).
- `joins`, optional: whether it reads rows of several states at once, `context.parts`; else each by itself (False if
  absent). See `models.mixers.together`.
- `computed_again`, optional: how often the backward pass computes again what `context_flops` counts (0 if absent).

A module of this folder says which mixers it brings, `PARTS = {"mine": Mine}`. The table is all of them.
"""

from typing import Any, Protocol

import jax

from models import tables
from models.mixers.context import Context
from models.mixers.memory import Policy


class Mixer(Protocol):
    """See the module's docstring."""

    bidirectional: bool
    context_parallel: bool

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]: ...

    def init_state(self, batch: int, length: int, memory: Policy | None = None) -> Any: ...

    def context_flops(self, length: int, causal: bool) -> dict[str, float]: ...


MIXERS: dict[str, type[Mixer]] = tables.found(__name__)

__all__ = ["MIXERS", "Context", "Mixer"]
