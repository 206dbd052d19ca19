"""Text from models of any order: drafts that the model checks itself (any_subset), and insertion."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.denoise import Filler
from models.decoding import assd, insertion


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


class Inserter(Filler):
    """Inserts up to max_tokens between a prompt and a suffix, one a call, until the model stops."""

    def settings(self, options: dict) -> tuple[tuple[str, Any], ...]:
        """The arguments of `insertion.sample` that `config.generate` names, hashable."""
        chosen = tuple((key, options["insertion"][key]) for key in ("stop", "threshold"))
        return (("temperature", options["temperature"]), ("room", options["max_tokens"]), *chosen)

    def _run(self, params: Any, canvas: jax.Array, segments: jax.Array, key: jax.Array, rows: jax.Array, *, settings):
        """`canvas [B, T]` with its masks replaced by what was inserted and, behind that, ends; calls `[B]`."""
        model, goal, (B, T) = self.program.merge(params), self.program.objective, canvas.shape
        never = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad])
        open_ = canvas == goal.mask_id
        kept = (segments != 0) & ~open_
        given, prefix = kept.sum(-1), jnp.argmax(open_, -1)
        init = jnp.take_along_axis(canvas, jnp.argsort(~kept, -1, stable=True), -1)

        def insert(z: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
            slots, stop = goal.predict(model, z, count)
            return slots.at[..., never].set(-jnp.inf), stop

        pad, index = goal.mask_id + 1, jnp.arange(T)
        tokens, calls = insertion.sample(
            insert, key, batch=B, length=T, vocab_size=goal.mask_id, init=jnp.where(index < given[:, None], init, pad),
            given=given, prefix=prefix, suffix=given - prefix, requests=rows, **dict(settings),
        )  # fmt: skip
        new = (tokens != pad).sum(-1) - given
        inserted = jnp.where(index < (prefix + new)[:, None], tokens, self.tokenizer.eos)
        return jnp.where(open_, inserted, canvas), calls
