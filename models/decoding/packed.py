"""Several prompts read side by side in one row, each apart from the others (Zhao et al. 2024, arXiv:2404.09529).

Of memories `full` alone: what a row keeps are its slots, which are cut apart when all is read.
"""

import dataclasses

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.decoding.stream import Models, Parts, Progress, with_piece
from models.mixers.memory import Memory


def read_row(
    models: Models, parts: Parts, tokens: jax.Array, positions: jax.Array, segments: jax.Array, slots: int
) -> Pass:
    """The model's pass over a row of prompts, in which a token sees those of its own prompt before it.

    Args:
      models: inside a trace.
      parts: of rows.
      tokens, positions, segments: `[1, R]` each; positions begin at 0 in each prompt, segments are 1, 2, ...;
        behind the prompts they are -1 and 0.
      slots: of the state and places of the features `[1, slots, D]`, at least R, so that rows of any R are cut alike.
    """
    model = models["model"]
    state = model.init_state(1, slots, dataclasses.replace(parts.memory, slots=slots))
    given = {"mask": masks.Causal(), "positions": positions, "segment_ids": segments}
    made = model(tokens, state=state, fresh=True, **given)
    return made._replace(features=jnp.pad(made.features, ((0, 0), (0, slots - tokens.shape[1]), (0, 0))))


def cut_out(models: Models, p: Progress, parts: Parts, made: Pass, start: jax.Array, size: int) -> Progress:
    """A row `p` of which nothing is read, as it is when its prompt, but for the last token, is read.

    Args:
      models: inside a trace.
      p: one row.
      parts: its parts.
      made: of `read_row`, where its prompt begins at `start`, `[]`.
      size: at least the tokens of the prompt but the last, at most the slots of `p`.
    """
    at = jnp.arange(size)[None]
    position = jnp.where(at < (p.length - 1)[:, None], at, -1)
    kept = lambda old, row: old.holding(row, start, size)  # noqa: E731
    layers = jax.tree.map(kept, p.state["layers"], made.state["layers"], is_leaf=lambda leaf: isinstance(leaf, Memory))
    behind = jnp.pad(made.features, ((0, 0), (0, size), (0, 0)))
    features = jax.lax.dynamic_slice_in_dim(behind, start, size, axis=1)
    own = Pass(features, {"slots": p.state["slots"].append(position), "layers": layers}, {})
    return with_piece(models, p, parts, p.text[:, :size], position, own)


__all__ = ["cut_out", "read_row"]
