"""Socket Mixer: how do tokens see each other?

A part is built by `(spec, *, rngs)` and called as `(x [B, T, D], context, state) -> (y [B, T, D], state)`. Training
calls it with `state=None`; decoding hands it the state that `init_state(batch, length)` made, with any number of new
tokens: the parallel form and the step form are one function, and a test holds them equal for every part in the table.
`bidirectional` says whether the part can run under a mask that is not causal, `context_parallel` whether it can where
the devices of the mesh axis `context` share a sequence (a part that does not say so cannot), and `layouts`, where it is
said, in which orders of the tokens (`kernels.context_attention.LAYOUTS`). `grouped` says whether it can have fewer key
heads than query heads, `sized` whether rules of `models.parametrization` are derived and checked for it: others have
rates or norms of their own that do not follow the width. `problems(options, facts)`, where there is one, says which of
its options do not go with the rest of the config (`models.facts`). `context_flops` is what a token costs forward
beyond the projections, by kind: attention, recurrent (a memory), fast (weights that learn). `grows` says whether the
state grows with the text (one that does not say so may not), `computed_again`, 0 where it is not said, how often the
backward pass computes again what `context_flops` counts, instead of keeping it.

A module of this folder says which mixers it brings, `PARTS = {"mine": Mine}`: the table is all of them.
"""

from typing import Any, Protocol

import jax

from models import tables
from models.mixers.context import Context


class Mixer(Protocol):
    """See the module's docstring."""

    bidirectional: bool
    context_parallel: bool

    def __call__(self, x: jax.Array, context: Context, state: Any = None) -> tuple[jax.Array, Any]: ...

    def init_state(self, batch: int, length: int) -> Any: ...

    def context_flops(self, length: int, causal: bool) -> dict[str, float]: ...


MIXERS: dict[str, type[Mixer]] = tables.found(__name__)

__all__ = ["MIXERS", "Context", "Mixer"]
