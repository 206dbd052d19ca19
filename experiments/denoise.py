"""Text from a trained diffusion model: masks behind a prompt (and before a suffix) are filled in by a sampler of
models/decoding/diffusion.py, with the model as its `denoise`.

A row is `[bos] prompt [mask * max_tokens] suffix`, then padding up to a length that few requests do not share. Blocks
are filled from left to right: those of a block diffusion model, else of `generate.diffusion.block`; tokens of later
blocks stay masked meanwhile.
"""

import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import preflight, preflight_diffusion
from experiments.errors import ConfigError
from experiments.program import Program
from models.decoding import diffusion
from models.objectives import schedules

# What a method takes beside temperature and guidance.
TAKES = {
    "ancestral": ("grid", "remask"), "ancestral_two_step": ("grid", "remask"), "cached": ("grid", "remask"),
    "threshold": ("threshold",), "factor": ("factor",), **dict.fromkeys(preflight_diffusion.SCORE_METHODS, ("grid",)),
}  # fmt: skip


class Filler:
    """Filling in with one model, behind the face of `generate.Generator`; compiled once per shape and setting.

    `options` is `config.generate` as a dict; top_k, top_p and min_p are not used.
    """

    def __init__(self, program: Program, tokenizer: Any):
        self.program, self.tokenizer = program, tokenizer
        self._fill = jax.jit(self._run, static_argnames=("settings",))

    def __call__(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> list[str]:
        """What follows each prompt, the suffix included. The same prompt and seed give the same text in any batch."""
        return [text for _, text in self.stream(params, prompts, options, seed=seed)]

    def stream(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> Iterator[tuple[int, str]]:
        """Yields `(row, its text)`, each row once and whole. Raises ConfigError for options out of range."""
        preflight.check_generation(options)
        if problems := list(preflight_diffusion.sampling_problems(self.program.config, options)):
            raise ConfigError(problems)
        if not prompts:
            return
        tokens, _ = self.fill(params, prompts, options, seed=seed)
        for row, filled in enumerate(tokens):
            yield row, self._text(filled, tuple(options["stop"])) + options["diffusion"]["suffix"]

    def fill(
        self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that fill each prompt's masks, `[B, max_tokens]`, and calls of the model `[B]`."""
        count = options["max_tokens"]
        canvas, segments, starts = self.canvas(prompts, count, options["diffusion"]["suffix"])
        tokens, calls = self._fill(
            params, canvas, segments, jax.random.key(seed), requests(prompts), settings=self.settings(options)
        )
        rows = [filled[start : start + count] for filled, start in zip(np.asarray(tokens), starts, strict=True)]
        return np.stack(rows), np.asarray(calls)

    def answers(self, params: Any, batch: dict, options: dict, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a task with their answers drawn anew: tokens `[B, T]`, calls `[B]`. `batch` as from `inputs.prepare`.

        `data.tasks.score(batch, predicted=tokens)` says how many are right.
        """
        canvas = np.where(batch["mask"], self._mask_id, batch["tokens"]).astype(np.int32)
        options = {**options, "max_tokens": max(1, int(batch["mask"].sum(1).max()))}
        filled = self._fill(
            params, canvas, batch["segment_ids"], jax.random.key(seed), jnp.arange(len(canvas)),
            settings=self.settings(options),
        )  # fmt: skip
        return tuple(map(np.asarray, filled))

    def encode(self, prompt: str) -> np.ndarray:
        """Ids of a prompt, `[n]` int32, the start of a document before them."""
        return np.concatenate([[self.tokenizer.bos], self.tokenizer.encode(prompt)]).astype(np.int32)

    def canvas(self, prompts: Sequence[str], count: int, suffix: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Tokens and segment ids `[B, T]` of rows with `count` masks each, and where the masks begin."""
        tail = np.concatenate([np.full(count, self._mask_id), self.tokenizer.encode(suffix)]).astype(np.int32)
        ids = [self.encode(prompt) for prompt in prompts]
        width = -(-(max(map(len, ids)) + len(tail)) // 64) * 64  # Rounded up, so that few lengths compile.
        canvas = np.full((len(ids), width), self.tokenizer.pad, np.int32)
        segments = np.zeros(canvas.shape, np.int32)
        for row, head in enumerate(ids):
            whole = np.concatenate([head, tail])
            canvas[row, : len(whole)], segments[row, : len(whole)] = whole, 1
        return canvas, segments, [len(head) for head in ids]

    @property
    def _mask_id(self) -> int:
        return self.program.objective.mask_id

    def _run(self, params: Any, canvas: jax.Array, segments: jax.Array, key: jax.Array, rows: jax.Array, *, settings):
        """Filled tokens `[B, T]` and calls of the model `[B]`."""
        model, goal, settings = self.program.decoder(params), self.program.objective, dict(settings)
        never = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad])

        def predict(z: jax.Array, t: jax.Array) -> jax.Array:
            features, _ = model(z, mask=goal.mask, segment_ids=segments, time=t)
            return model.logits(features)[..., : goal.mask_id]

        def denoise(z: jax.Array, rate: jax.Array) -> jax.Array:
            # Samplers that fill masks run on the linear schedule, whose time is the rate of masks.
            return predict(z, schedules.get(goal.schedule).time(rate)).at[..., never].set(-jnp.inf)

        def log_score(z: jax.Array, t: jax.Array) -> jax.Array:
            return goal.log_score(predict(z, t), t, z, temperature).at[..., never].set(-jnp.inf)

        scores = settings["method"] in preflight_diffusion.SCORE_METHODS
        if scores:
            temperature = settings.pop("temperature")
            settings |= {"schedule": goal.schedule, "graph": goal.graph}
        source, block = log_score if scores else denoise, getattr(goal, "block", 0)
        tokens, calls = fill(source, key, canvas, rows, mask_id=goal.mask_id, block=block, **settings)
        return self.program.spec.partition.constrain(tokens, (None, None)), calls  # Whole: the host reads it.

    def settings(self, options: dict) -> tuple[tuple[str, Any], ...]:
        """The arguments of `fill` that `config.generate` names, hashable."""
        return settings(options, self.program.config.objective)

    def _text(self, tokens: np.ndarray, stop: tuple[str, ...]) -> str:
        """Text up to the end of the document or the first stop string."""
        ends = np.flatnonzero(tokens == self.tokenizer.eos)
        text = self.tokenizer.decode(tokens[: ends[0]] if len(ends) else tokens)
        return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def settings(options: dict, objective: str = "masked_diffusion") -> tuple[tuple[str, Any], ...]:
    """The arguments of `fill` that `config.generate` names, hashable."""
    chosen = options["diffusion"]
    method = preflight_diffusion.method(objective, chosen["method"])
    names = TAKES.get(method, ())
    if method not in preflight_diffusion.SCORE_METHODS:
        names = ("guidance", *names)
    return (
        ("method", method),
        ("steps", chosen["steps"] or options["max_tokens"]),
        ("count", options["max_tokens"]),
        ("by", chosen["block"]),
        ("temperature", options["temperature"]),
        *((name, chosen[name]) for name in names),
    )


def fill(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    key: jax.Array,
    canvas: jax.Array,
    rows: jax.Array,
    *,
    mask_id: int,
    count: int,
    steps: int,
    block: int = 0,
    by: int = 0,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """Fills the masks of `canvas [B, T]`: tokens `[B, T]` and calls of the model `[B]`. Safe under jit.

    Args:
      denoise: `(z [B, T], t [B]) -> logits [B, T, mask_id]`.
      key: of the request's seed; `rows [B]`: numbers from which the rows' own keys are folded.
      count: masks of a row; steps: calls that they are worth, shared out among the blocks.
      block: the model's own blocks, 0 for none; by: those to use else. Counted from the first token of a row.
      **options: of `diffusion.sample`: method, temperature, ...
    """
    B, T = canvas.shape
    sample = lambda denoise, key, init, steps: diffusion.sample(  # noqa: E731
        denoise, key, batch=B, length=T, vocab_size=mask_id, steps=steps, init=init, requests=rows, **options
    )
    size = block or by
    if not size or size >= T:
        return sample(denoise, key, canvas, steps)
    index, share = jnp.arange(T), max(1, -(-steps * size // count))

    def one(b: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        z, calls = state
        # To the sampler the masks of later blocks are tokens that stand; the model sees them as the masks they are.
        later = (index >= (b + 1) * size) & (z == mask_id)
        seen = lambda z, t: denoise(jnp.where(later, mask_id, z), t)  # noqa: E731
        filled, more = sample(seen, jax.random.fold_in(key, b), jnp.where(later, 0, z), share)
        return jnp.where(later, mask_id, filled), calls + more

    first = jnp.min(jnp.where(canvas == mask_id, index, T)) // size
    last = jnp.max(jnp.where(canvas == mask_id, index, -1)) // size
    return jax.lax.fori_loop(first, last + 1, one, (jnp.asarray(canvas), jnp.zeros(B, int)))


def requests(prompts: Sequence[str]) -> jax.Array:
    """One number a request, from its prompt and how often that prompt came before: batching does not change it."""
    seen, numbers = Counter(), []
    for prompt in prompts:
        numbers.append(zlib.crc32(f"{seen[prompt]} {prompt}".encode("utf-8", "surrogateescape")))
        seen[prompt] += 1
    return jnp.asarray(np.asarray(numbers, np.uint32))
