"""Text from models of any order: drafts that the model checks itself (any_subset)."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.denoise import Filler
from models.decoding import assd


class Drafter(Filler):
    """Fills masks from left to right by any-subset speculative decoding; what is given on either side is the prompt."""

    def settings(self, options: dict) -> tuple[tuple[str, Any], ...]:
        """The arguments of `assd.sample` that `config.generate` names, hashable."""
        return (("temperature", options["temperature"]), ("draft", options["draft"]))

    def _run(self, params: Any, canvas: jax.Array, segments: jax.Array, key: jax.Array, rows: jax.Array, *, settings):
        """Filled tokens `[B, T]` and calls of the model `[B]`."""
        model, goal = self.program.merge(params), self.program.objective
        never = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad])
        logits = goal.conditionals(model, canvas, segments)
        kw = {"order": jnp.arange(canvas.shape[1]), "prompt": canvas, "batch": canvas.shape[0], "requests": rows}
        allowed = lambda *streams: logits(*streams).at[..., never].set(-jnp.inf)  # noqa: E731
        return assd.sample(allowed, key, mask_id=goal.mask_id, two_stream=True, **kw, **dict(settings))
