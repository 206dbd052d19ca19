"""Left-to-right generation with the decoding state of any mixer: one prefill, then one compiled loop on the device."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from models.decoding import categorical, sampling


@dataclasses.dataclass(frozen=True)
class Sampler:
    """How a next token is chosen; static, so each setting compiles once."""

    temperature: float = 1.0
    rules: tuple[tuple[str, float], ...] = ()  # names in `sampling.RULES` and their values
    eos: int = -1  # Ends a row; -1 = never.
    vocab_size: int = 0  # Ids at and above it are never drawn (padding of V); 0 = all.
    banned: tuple[int, ...] = ()  # Ids that are never drawn, e.g. pad and bos.

    def __call__(self, keys: jax.Array, logits: jax.Array) -> jax.Array:
        """`keys [B]`, `logits [B, V]` -> tokens `[B]`."""
        ids = jnp.arange(logits.shape[-1])
        out = ids >= self.vocab_size if self.vocab_size else jnp.zeros(ids.shape, bool)
        for token in self.banned:
            out |= ids == token
        logits = jnp.where(out, -jnp.inf, logits)
        if self.temperature == 0.0:
            return jnp.argmax(logits, axis=-1).astype(jnp.int32)
        logits = sampling.process(logits, temperature=self.temperature, rules=dict(self.rules))
        return categorical.sample(keys, logits).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Generation under way. Tokens `[B, max_new]` are written up to `count`; a done row is padded with `eos`."""

    tokens: jax.Array
    count: jax.Array  # [] tokens drawn so far, the same for all rows
    last: jax.Array  # [B] the newest token of each row
    position: jax.Array  # [B] its position
    done: jax.Array  # [B]
    state: Any  # the model's decoding state, without the newest token


def prefill(
    model, prompt: jax.Array, lengths: jax.Array, keys: jax.Array, sampler: Sampler, *, max_new: int, slots: int
) -> Progress:
    """Reads the prompts and draws the first new token.

    Args:
      model: an `LM`, inside a trace.
      prompt: `[B, T]` ids, each row padded at its end.
      lengths: `[B]` tokens of each prompt, at least 1.
      keys: `[B]` one key per request; a token's randomness depends on its request and position alone.
      sampler: how tokens are chosen.
      max_new: tokens to generate at most.
      slots: length of the decoding state, at least T + max_new.
    """
    B, T = prompt.shape
    model = model.for_decoding()
    at = jnp.arange(T)[None]
    positions = jnp.where(at < lengths[:, None], at, -1)
    features, state, _ = model(
        prompt, mask=masks.Causal(), positions=positions, state=model.init_state(B, slots), fresh=True
    )
    last = jnp.take_along_axis(features, (lengths - 1)[:, None, None], axis=1)[:, 0]
    token = sampler(_at(keys, lengths), model.logits(last))
    tokens = jnp.full((B, max_new), max(sampler.eos, 0), jnp.int32).at[:, 0].set(token)
    return Progress(tokens, jnp.int32(1), token, lengths.astype(jnp.int32), token == sampler.eos, state)


def extend(model, progress: Progress, keys: jax.Array, sampler: Sampler, until: jax.Array) -> Progress:
    """Draws tokens until `until` of them stand in `progress.tokens` or every row is done; one `while_loop`."""
    model = model.for_decoding()

    def step(p: Progress) -> Progress:
        features, state, _ = model(p.last[:, None], mask=masks.Causal(), positions=p.position[:, None], state=p.state)
        token = sampler(_at(keys, p.position + 1), model.logits(features[:, 0]))
        token = jnp.where(p.done, max(sampler.eos, 0), token)
        tokens = jax.lax.dynamic_update_slice_in_dim(p.tokens, token[:, None], p.count, axis=1)
        return Progress(tokens, p.count + 1, token, p.position + 1, p.done | (token == sampler.eos), state)

    def unfinished(p: Progress) -> jax.Array:
        return (p.count < until) & ~jnp.all(p.done)

    return jax.lax.while_loop(unfinished, step, progress)


def _at(keys: jax.Array, positions: jax.Array) -> jax.Array:
    return jax.vmap(jax.random.fold_in)(keys, positions)
