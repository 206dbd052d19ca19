"""Text from models of any order: drafts that the model checks itself, insertion, noised embeddings."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.generation.canvas import Filler, Request, Work, plain_work
from models.decoding import keys as key_scheme
from models.decoding.canvas import assd, insertion, neodiff


class AnySubsetFiller(Filler):
    """Fills masks from left to right by any-subset speculative decoding; what is given on either side is the prompt."""

    def settings(self, options: dict) -> tuple[tuple[str, Any], ...]:
        """The arguments of `assd.sample` that `config.generate` names, hashable."""
        return (("temperature", options["temperature"]), ("draft", options["draft"]))

    def _run(self, params: Any, request: Request, *, settings: Any) -> tuple[jax.Array, Work]:
        """Filled tokens `[B, T]` and `Work`."""
        model, goal = self.program.decoder(params), self.program.objective
        canvas, segments, key, rows = request
        never = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad])
        logits = goal.conditionals(model, canvas, segments)
        kw = {"order": jnp.arange(canvas.shape[1]), "prompt": canvas, "batch": canvas.shape[0], "requests": rows}
        allowed = lambda *streams: logits(*streams).at[..., never].set(-jnp.inf)  # noqa: E731
        tokens, calls = assd.sample(allowed, key, mask_id=goal.mask_id, two_stream=True, **kw, **dict(settings))
        return tokens, plain_work(calls, canvas, goal.copies)


class Inserter(Filler):
    """Inserts up to max_tokens between a prompt and a suffix, one a call, until the model stops."""

    def settings(self, options: dict) -> insertion.Settings:
        """What `config.generate` says of insertion."""
        chosen = options["insertion"]
        return insertion.Settings(chosen["stop"], chosen["threshold"], options["temperature"], options["max_tokens"])

    def _run(self, params: Any, request: Request, *, settings: Any) -> tuple[jax.Array, Work]:
        """`canvas [B, T]` with its masks replaced by what was inserted and, behind that, ends; and `Work`."""
        canvas, segments, key, rows = request
        model, goal, (B, T) = self.program.decoder(params), self.program.objective, canvas.shape
        never = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad])
        open_ = canvas == goal.mask_id
        kept = (segments != 0) & ~open_
        given, prefix = kept.sum(-1), jnp.argmax(open_, -1)
        init = jnp.take_along_axis(canvas, jnp.argsort(~kept, -1, stable=True), -1)

        def insert(z: jax.Array, count: jax.Array) -> tuple[jax.Array, jax.Array]:
            slots, stop = goal.predict(model, z, count)
            return slots.at[..., never].set(-jnp.inf), stop

        pad, index = goal.mask_id + 1, jnp.arange(T)
        start = insertion.Start(jnp.where(index < given[:, None], init, pad), prefix, given - prefix, given)
        size = {"batch": B, "length": T, "vocab_size": goal.mask_id}
        tokens, calls = insertion.sample(insert, key, **size, settings=settings, start=start, requests=rows)
        new = (tokens != pad).sum(-1) - given
        inserted = jnp.where(index < (prefix + new)[:, None], tokens, self.tokenizer.eos)
        return jnp.where(open_, inserted, canvas), plain_work(calls, canvas)


class Refiner(Filler):
    """Denoises embeddings between a prompt and a suffix (neodiff), then draws the token of each."""

    def settings(self, options: dict) -> tuple[tuple[str, Any], ...]:
        """The steps (20 if none are named) and the temperature of the tokens, hashable."""
        return (("temperature", options["temperature"]), ("steps", options["diffusion"]["steps"] or 20))

    def _run(self, params: Any, request: Request, *, settings: Any) -> tuple[jax.Array, Work]:
        """Filled tokens `[B, T]` and `Work`."""
        canvas, segments, key, rows = request
        model, goal, settings = self.program.decoder(params), self.program.objective, dict(settings)
        never = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad])
        fixed, row, K = canvas != goal.mask_id, {"segment_ids": segments}, goal.levels

        def times(x: jax.Array, t: jax.Array) -> jax.Array:
            logits = model.logits(goal.decode(model, x, t, row).features)
            return logits[..., goal.mask_id : goal.mask_id + K + 1]

        x, calls = neodiff.sample(
            lambda z, tau, *before: goal.decode(model, z, tau / K, row, *before).features, times, key,
            goal.embed(model, canvas), fixed, K=K, steps=settings["steps"], noise_factor=goal.noise_factor,
            conditioned=model.condition is not None, requests=rows,
        )  # fmt: skip
        logits = model.logits(x.astype(model.spec.dtype))[..., : goal.mask_id].at[..., never].set(-jnp.inf)
        keys = key_scheme.fold(key_scheme.row_keys(key, len(canvas), rows), 0, key_scheme.TOKEN)
        drawn = key_scheme.sample(keys, logits, settings["temperature"]).astype(canvas.dtype)
        return jnp.where(fixed, canvas, drawn), plain_work(calls, canvas)
