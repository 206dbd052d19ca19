"""Drafter `model_draft`: a smaller run writes the drafts, with the random numbers of the tokens that they are to be.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"; Chen et al. 2023. Drawing
with the keys of the request couples the two models: a draft is the token itself wherever both laws agree on it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.decoding import keys
from models.decoding.commit import rewinds
from models.decoding.drafts import Drafter, Seen, Tree
from models.decoding.drafts.none import last_token
from models.decoding.rows import single


@dataclasses.dataclass(frozen=True)
class ByModel(Drafter):
    """Drafts of the run in `workdir`, which `NAME` (of the drafter) leads to.

    The side is the smaller model's decoding state. It holds no token that is not of the text, so that nothing has to be
    taken back: drafts are written behind it, and what was read of those that stay is kept where the state rewinds.
    """

    NAME: ClassVar[str]
    runs = ("workdir",)

    workdir: str

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        return models[f"{self.NAME}.workdir"].init_state(batch, capacity)

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """See `Drafter.read`."""
        return models[f"{self.NAME}.workdir"](tokens, mask=masks.Causal(), positions=positions, state=side).state


@dataclasses.dataclass(frozen=True)
class ModelDraft(ByModel):
    """See the module's docstring."""

    NAME = "model_draft"
    draws = True

    length: int

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return self.length + 1

    def problems(self, config: Any) -> Iterator[str]:
        """See `Drafter.problems`."""
        if self.length < 1:
            yield (
                "generate.model_draft.length=0 is chosen before texts are written, which nothing does here; use e.g. "
                "generate.model_draft.length=4."
            )

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`. First the smaller model reads what it has not read of the text."""
        unread = 2 if rewinds(p.side[self.NAME]) else self.depth
        model, state, feature = caught_up(models[f"{self.NAME}.workdir"], p, p.side[self.NAME], unread)
        tree, going = written(models, p, parts, model, (state, feature), self.length)
        # What was written behind the text has no position in these slots: the state is as it was, and is not copied.
        side = {"slots": state["slots"], "layers": going["layers"]} if rewinds(state) else state
        return tree, side

    def observe(self, models: Mapping[str, Any], side: Any, seen: Seen) -> Any:
        """See `Drafter.observe`. Drafts that stay lie where they were written: all but the last, which was not read."""
        if not rewinds(side):
            return side
        at = jnp.arange(self.length - 1)
        stay = jnp.where(at < seen.count[:, None] - 1, seen.p.length[:, None] + at, -1)
        return side | {"slots": side["slots"].append(stay)}


def caught_up(model: Any, p: Any, state: Any, count: int) -> tuple[Any, Any, jax.Array]:
    """(model, its state, the feature `[B, 1, D]` of the last token) once it has read what the last round wrote.

    Args:
      model: the one that drafts, inside a trace; state: of the text that it has read.
      p: `stream.Progress`.
      count: tokens that it may not have read at most.
    """
    at = state["slots"].length[:, None] + jnp.arange(count)
    position = jnp.where((at < p.length[:, None]) & p.live[:, None], at, -1)
    tokens = jnp.take_along_axis(p.text, jnp.minimum(at, p.text.shape[1] - 1), axis=1)
    features, state, _ = model(tokens, mask=masks.Causal(), positions=position, state=state)
    newest = jnp.maximum(jnp.sum(position >= 0, axis=1) - 1, 0)
    return model, state, jnp.take_along_axis(features, newest[:, None, None], axis=1)


def written(
    models: Mapping[str, Any], p: Any, parts: Any, model: Any, held: tuple[Any, jax.Array], length: int,
    threshold: float = 0.0,
) -> tuple[Tree, Any]:  # fmt: skip
    """A chain of `length` drafts that `model` writes behind the text, and its state once it has read all but the last.

    Args:
      models, p, parts: see `Drafter.propose`.
      model: the one that drafts; it has read the text, to its last token.
      held: its state then, and `[B, 1, D]` what it made of the last token.
      length: of the chain.
      threshold: a row drafts no further where its likeliest token (before the rules of sampling) is less likely: what
        was drafted so far decides that, and not the draft itself, so that laws stay exact. Where no row does, nothing
        more is read.
    """
    request, V = jax.random.wrap_key_data(p.key), models["model"].head_weights().shape[0]
    last = last_token(p.text, p.length)
    B, law = len(last), parts.verifier.needs_q

    def draft(i: Any, made: _Drafts, held: tuple) -> _Drafts:
        logits = fitted(model.logits(held[1]), V)
        there = made.valid[:, i]
        if threshold:
            there = there & (jnp.max(jax.nn.softmax(logits, axis=-1), axis=(1, 2)) >= threshold)
        logits = warped(models, logits, p, parts)[:, 0]
        token = parts.verifier.draw(keys.fold(request, p.length + i, keys.TOKEN), logits)
        q = made.q.at[:, i + 1].set(jax.nn.softmax(logits, axis=-1)) if law else None
        return _Drafts(made.token.at[:, i + 1].set(token), made.valid.at[:, i + 1].set(there), q)

    def further(i: Any, made: _Drafts, held: tuple) -> tuple[_Drafts, tuple]:
        here, token = jnp.where(p.live, p.length + i - 1, -1)[:, None], jnp.take(made.token, jnp.array([i]), axis=1)
        feature, state, _ = model(token, mask=masks.Causal(), positions=here, state=held[0])
        return draft(i, made, (state, feature)), (state, feature)

    wide = jnp.result_type(held[1].dtype, jnp.float32)
    q = jnp.zeros((B, length + 1, V), wide) if law else None
    made = _Drafts(jnp.pad(last, ((0, 0), (0, length))), jnp.zeros((B, length + 1), bool).at[:, 0].set(True), q)
    made = draft(0, made, held)
    if not threshold:
        for i in range(1, length):
            made, held = further(i, made, held)
    else:
        carried, rows = single(held)
        goes_on = lambda carry: (carry[0] < length) & jnp.any(carry[1].valid[:, carry[0]] & p.live)  # noqa: E731

        def turned(carry: tuple) -> tuple:
            made, held = further(carry[0], carry[1], rows(carry[2]))
            return carry[0] + 1, made, single(held)[0]

        _, made, carried = jax.lax.while_loop(goes_on, turned, (jnp.int32(1), made, carried))
        held = rows(carried)
    return Tree.chain(made.token, made.valid, made.q), held[0]


class _Drafts(NamedTuple):
    """token, valid `[B, 1 + length]` of a chain, and the laws `[B, 1 + length, V]`, None: not asked for."""

    token: jax.Array
    valid: jax.Array
    q: jax.Array | None


def fitted(logits: jax.Array, V: int) -> jax.Array:
    """Logits `[..., V']` as `[..., V]`: ids that the smaller model does not know are ruled out."""
    more = max(0, V - logits.shape[-1])
    padded = jnp.pad(logits, (*[(0, 0)] * (logits.ndim - 1), (0, more)), constant_values=-jnp.inf)
    return padded[..., :V]


def warped(models: Mapping[str, Any], logits: jax.Array, p: Any, parts: Any) -> jax.Array:
    """`[B, N, V]` after those controls that read logits and dials alone."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    for _, part in parts.control:
        if part.pure:
            logits, _ = part.process(models, None, logits, p, None, None)
    return logits


PARTS = {ModelDraft.NAME: ModelDraft}
