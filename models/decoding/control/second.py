"""A second run that reads along: it reads what it lacks of a row's text, only when it is asked."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from kernels import masks
from models.decoding.drafts.model import fitted

PIECE = 16  # Tokens of a pass while it catches up.


class Heard(NamedTuple):
    """What a run says of rows that it was asked about; of the others it is as it was, and the logits are anything."""

    state: Any  # its decoding state
    logits: jax.Array  # [B, V] of the token behind the text
    likelihood: jax.Array  # [B] log-probability of the tokens that it read newly, each behind those before it


def plain(p: Any) -> Callable[[jax.Array], jax.Array]:
    """tokens_at: index `[B, T]` -> tokens, of the text itself."""
    return lambda at: jnp.take_along_axis(p.text, jnp.clip(at, 0, p.text.shape[1] - 1), axis=1)


def hear(
    model: Any,
    state: Any,
    tokens_at: Callable[[jax.Array], jax.Array],
    length: jax.Array,
    asked: jax.Array,
    scored: jax.Array,
    V: int,
) -> Heard:
    """Reads the texts to their ends, in pieces while several tokens are missing.

    Args:
      model: for decoding, inside a trace.
      state: holds the first tokens of each text, at least one of a row that is asked about is missing.
      tokens_at: index `[B, T]` -> tokens `[B, T]` of the texts.
      length: `[B]` tokens of the texts.
      asked: `[B]` bool.
      scored: `[B]` tokens from this index on count in the likelihood.
      V: logits that are wanted; ids that the run does not know are ruled out.
    """

    def passed(state: Any, size: int, end: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        at = state["slots"].length[:, None] + jnp.arange(size)
        read = (at < end[:, None]) & asked[:, None]
        tokens = tokens_at(at)
        made = model(tokens, mask=masks.Causal(), positions=jnp.where(read, at, -1), state=state)
        logits = fitted(model.logits(made.features), V)
        log_p = jax.nn.log_softmax(logits, axis=-1)
        own = jnp.take_along_axis(log_p, tokens_at(at + 1)[..., None], axis=-1)[..., 0]
        counts = read & (at + 1 >= scored[:, None]) & (at + 1 < length[:, None])
        return made.state, logits[:, -1], jnp.sum(jnp.where(counts, own, 0), axis=1)

    def behind(carry: tuple) -> jax.Array:
        return jnp.any(asked & (carry[0]["slots"].length < length - 1))

    def piece(carry: tuple) -> tuple:
        state, _, more = passed(carry[0], PIECE, length - 1)
        return state, carry[1] + more

    zeros = jnp.zeros(length.shape)
    state, likelihood = jax.lax.while_loop(behind, piece, (state, zeros))
    new, logits, more = passed(state, 1, length)
    return Heard(new, logits, likelihood + more)


def hear_if(model: Any, state: Any, length: jax.Array, asked: jax.Array, V: int, p: Any) -> Heard:
    """`hear` of plain texts, and no pass at all where no row is asked about."""
    none = jnp.zeros(length.shape)
    idle = Heard(state, jnp.zeros((len(length), V)), none)
    run = lambda: hear(model, state, plain(p), length, asked, length, V)  # noqa: E731
    return jax.lax.cond(jnp.any(asked), run, lambda: idle)


def said(models: Mapping[str, Any], name: str) -> Any:
    """The run of a control's `workdir`."""
    return models[f"{name}.workdir"]
