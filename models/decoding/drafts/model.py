"""Drafter `model_draft`: a smaller run writes the drafts, with the random numbers of the tokens that they are to be.

Source: Leviathan et al. 2023, "Fast Inference from Transformers via Speculative Decoding"; Chen et al. 2023. Drawing
with the keys of the request couples the two models: a draft is the token itself wherever both laws agree on it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from kernels import masks
from models.block import Pass
from models.decoding import keys
from models.decoding.commit import rewinds
from models.decoding.drafts import Drafter, Tree
from models.decoding.drafts.none import last_token

NAME = "model_draft"


@dataclasses.dataclass(frozen=True)
class ModelDraft(Drafter):
    """See the module's docstring.

    The side is the smaller model's decoding state. It holds the text as far as it stands, so that nothing has to be
    taken back: drafts are written from a state that is dropped.
    """

    runs = ("workdir",)
    draws = True

    workdir: str
    length: int

    @property
    def nodes(self) -> int:
        """The last token and the drafts."""
        return self.length + 1

    def init(self, models: Mapping[str, Any], batch: int, capacity: int) -> Any:
        """See `Drafter.init`."""
        return models[f"{NAME}.workdir"].init_state(batch, capacity)

    def read(self, models: Mapping[str, Any], side: Any, tokens: jax.Array, positions: jax.Array, made: Pass) -> Any:
        """See `Drafter.read`."""
        return models[f"{NAME}.workdir"](tokens, mask=masks.Causal(), positions=positions, state=side).state

    def propose(self, models: Mapping[str, Any], p: Any, parts: Any) -> tuple[Tree, Any]:
        """See `Drafter.propose`. First the smaller model reads what the last round wrote."""
        model, state = models[f"{NAME}.workdir"], p.side[NAME]
        at = state["slots"].length[:, None] + jnp.arange(self.nodes)
        position = jnp.where((at < p.length[:, None]) & p.live[:, None], at, -1)
        tokens = jnp.take_along_axis(p.text, jnp.minimum(at, p.text.shape[1] - 1), axis=1)
        features, state, _ = model(tokens, mask=masks.Causal(), positions=position, state=state)
        newest = jnp.maximum(jnp.sum(position >= 0, axis=1) - 1, 0)
        feature = jnp.take_along_axis(features, newest[:, None, None], axis=1)
        drafts, laws, going = [last_token(p.text, p.length)[:, 0]], [], state
        request = jax.random.wrap_key_data(p.key)
        V = models["model"].head_weights().shape[0]
        for i in range(self.length):
            logits = warped(models, fitted(model.logits(feature), V), p, parts)[:, 0]
            laws.append(jax.nn.softmax(logits, axis=-1))
            drafts.append(parts.verifier.draw(keys.fold(request, p.length + i, keys.TOKEN), logits))
            if i + 1 < self.length:
                here = jnp.where(p.live, p.length + i, -1)[:, None]
                feature, going, _ = model(drafts[-1][:, None], mask=masks.Causal(), positions=here, state=going)
        token = jnp.stack(drafts, axis=1)
        q = None
        if parts.verifier.needs_q:
            q = jnp.pad(jnp.stack(laws, axis=1), ((0, 0), (1, 0), (0, 0)))
        # What was written behind the text has no position in these slots: the state is as it was, and is not copied.
        side = {"slots": state["slots"], "layers": going["layers"]} if rewinds(state) else state
        return Tree.chain(token, jnp.ones(token.shape, bool), q), side


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


PARTS = {NAME: ModelDraft}
