"""Text from a trained diffusion model: masks behind a prompt (and before a suffix) are filled in by a sampler of
models/decoding/canvas/diffusion.py, with the model as its `denoise`.

A row is `[bos] prompt [mask * max_tokens] suffix`, then padding up to a length that few requests do not share. Blocks
are filled from left to right: those of a block diffusion model, else of `generate.diffusion.block`; tokens of later
blocks stay masked meanwhile. What a row gets depends on no other row, nor on how far the canvas is padded.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import preflight
from experiments.generation import requests
from experiments.preflight import objectives as preflight_objectives
from experiments.program import Program
from experiments.settings.errors import ConfigError
from kernels import masks
from models.decoding import keys as key_scheme
from models.decoding.canvas import caches, diffusion, features, network
from models.decoding.canvas.canvas import Canvas
from models.objectives import schedules

# What a method takes beside temperature and guidance.
TAKES = {
    "ancestral": ("grid", "remask"), "ancestral_two_step": ("grid", "remask"), "cached": ("grid", "remask"),
    "threshold": ("threshold",), "factor": ("factor",), "guided": ("rule",),
    **dict.fromkeys(preflight_objectives.SCORE_METHODS, ("grid",)),
}  # fmt: skip


class Work(NamedTuple):
    """What each row cost, `[B]`: calls of the model, tokens that they were fed, tokens that a guide was fed."""

    calls: Any
    fed: Any
    guided: Any


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `config.generate` says of filling in; hashable.

    Args:
      sampler: the rule, with a cache (`caches.Settings`) or without. Its steps and blocks are set when rows are known.
      steps: calls that `count` masks are worth, shared out among the blocks.
      count: masks of a row.
      by: size of blocks where the model has none of its own; 0 = none.
      by_from: "row": blocks are counted from the first token of a row; "prompt": from its first mask (LLaDA).
      temperature: of the drawn tokens.
      rule: of a guide, see `models.decoding.canvas.guided`.
      plan: of policy adaptive: prompt_every, answer_every, share.
      sides: adaptive: most tokens of a row before its first mask, and from it on.
      start: by_from="prompt" with a cache: where the first mask of all these rows is.
    """

    sampler: diffusion.Settings | caches.Settings
    steps: int
    count: int
    by: int = 0
    by_from: str = "row"
    temperature: float = 1.0
    rule: str = "match"
    plan: tuple[tuple[str, Any], ...] = ()
    sides: tuple[int, int] = (0, 0)
    start: int = 0

    @property
    def cached(self) -> bool:
        """Whether keys and values, or features, are kept between calls."""
        return isinstance(self.sampler, caches.Settings)

    def share(self, size: int) -> int:
        """Calls of a block of `size` positions."""
        return max(1, -(-self.steps * min(size, self.count) // self.count))


class Request(NamedTuple):
    """Rows to be filled in.

    Args:
      tokens: `[B, T]` ids, `mask_id` where tokens are wanted.
      segments: `[B, T]`, 0 = padding.
      key: of the request's seed.
      rows: `[B]` numbers from which the rows' own keys are folded.
    """

    tokens: jax.Array
    segments: jax.Array
    key: jax.Array
    rows: jax.Array

    def canvas(self, mask_id: int, key: jax.Array | None = None, tokens: jax.Array | None = None) -> Canvas:
        """For a sampler; with another key or other tokens where these are given."""
        key, tokens = self.key if key is None else key, self.tokens if tokens is None else tokens
        return Canvas(jnp.asarray(tokens), key_scheme.row_keys(key, len(tokens), self.rows), mask_id, mask_id)


class Filler:
    """Filling in with one model, behind the face of `generate.Generator`; compiled once per shape and setting.

    `options` is `config.generate` as a dict; top_k, top_p and min_p are not used. `guide`: a trained autoregressive
    model (`workdir.trained.Trained`) of the same tokens, for method="guided"; by default that in the workdir which
    `generate.diffusion.guide` names.
    """

    def __init__(self, program: Program, tokenizer: Any, guide: Any = None):
        self.program, self.tokenizer, self.guide = program, tokenizer, guide
        self._fill = program.jit(self._run, static_argnames=("settings",))

    def __call__(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> list[str]:
        """What follows each prompt, the suffix included. The same prompt and seed give the same text in any batch."""
        return [text for _, text in self.stream(params, prompts, options, seed=seed)]

    def stream(self, params: Any, prompts: Sequence[str], options: dict, *, seed: int = 0) -> Iterator[tuple[int, str]]:
        """Yields `(row, its text)`, each row once and whole. Raises ConfigError for options out of range."""
        preflight.check_generation(options)
        if problems := list(preflight_objectives.sampling_problems(self.program.config, options)):
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
        tokens, work = self.work(params, canvas, segments, requests.rows(prompts), options, seed=seed)
        rows = [filled[start : start + count] for filled, start in zip(tokens, starts, strict=True)]
        return np.stack(rows), work.calls

    def work(
        self, params: Any, canvas: np.ndarray, segments: np.ndarray, rows: jax.Array, options: dict, *, seed: int = 0
    ) -> tuple[np.ndarray, Work]:
        """`canvas [B, T]` with its masks filled in, and what that cost. `segments [B, T]`: 0 = padding."""
        settings, guide, key = self.settings(options), self._guide(options), jax.random.key(seed)
        extra = {} if guide is None else {"guide": guide.params}
        open_, cached = canvas == self._mask_id, isinstance(settings, Settings) and settings.cached
        if cached and settings.sampler.policy == "adaptive":
            sides = features.sides(np.where(segments != 0, 0, -1), open_)
            settings = dataclasses.replace(settings, sides=tuple(int(side.sum(1).max()) for side in sides))

        def run(some: np.ndarray | slice, settings: Any) -> tuple[np.ndarray, Work]:
            request = Request(canvas[some], segments[some], key, rows[some])
            return jax.tree.map(np.asarray, self._fill(params, request, settings=settings, **extra))

        if not cached or settings.by_from == "row" or not settings.by:
            return run(slice(None), settings)
        # Windows of a cache are the same in all rows: rows whose blocks begin together go together.
        starts = np.argmax(open_, 1)
        groups = [np.flatnonzero(starts == start) for start in np.unique(starts)]
        done = [run(group, dataclasses.replace(settings, start=int(starts[group[0]]))) for group in groups]
        back = np.argsort(np.concatenate(groups))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *done)

    def answers(self, params: Any, batch: dict, options: dict, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a task with their answers drawn anew: tokens `[B, T]`, calls `[B]`. `batch` as from `inputs.prepare`.

        `data.tasks.score(batch, predicted=tokens)` says how many are right.
        """
        tokens, work = self.answered(params, batch, options, seed=seed)
        return tokens, work.calls

    def answered(self, params: Any, batch: dict, options: dict, *, seed: int = 0) -> tuple[np.ndarray, Work]:
        """As `answers`, with the whole `Work` instead of calls alone."""
        canvas = np.where(batch["scored"], self._mask_id, batch["tokens"]).astype(np.int32)
        options = {**options, "max_tokens": max(1, int(batch["scored"].sum(1).max()))}
        return self.work(params, canvas, batch["segment_ids"], jnp.arange(len(canvas)), options, seed=seed)

    def encode(self, prompt: str) -> np.ndarray:
        """Ids of a prompt, `[n]` int32, the start of a document before them."""
        return requests.encode(self.tokenizer, prompt)

    def canvas(self, prompts: Sequence[str], count: int, suffix: str) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Tokens and segment ids `[B, T]` of rows with `count` masks each, and where the masks begin."""
        tail = np.concatenate([np.full(count, self._mask_id), self.tokenizer.encode(suffix)]).astype(np.int32)
        ids = [self.encode(prompt) for prompt in prompts]
        canvas, length = requests.padded([np.concatenate([head, tail]) for head in ids], 0, self.tokenizer.pad)
        segments = (np.arange(canvas.shape[1]) < length[:, None]).astype(np.int32)
        return canvas, segments, [len(head) for head in ids]

    @property
    def _mask_id(self) -> int:
        return self.program.objective.mask_id

    def _guide(self, options: dict) -> Any:
        """The model that judges drafts, read when it is first asked for; None where none is."""
        chosen = options["diffusion"]
        if preflight_objectives.method(self.program.config.objective, chosen["method"]) != "guided":
            return None
        if self.guide is None:
            from experiments.workdir import trained

            self.guide = trained.load(chosen["guide"])
        made = self.guide
        if not made.program.objective.causal or made.tokenizer.hash != self.tokenizer.hash:
            raise ConfigError([
                f"generate.diffusion.guide={chosen['guide']!r} must be a causal model with the same tokenizer, e.g. of "
                f"objective='next_token'; it has objective={made.config.objective!r} and data.tokenizer="
                f"{made.config.data.tokenizer!r}."
            ])  # fmt: skip
        return made

    def _run(self, params: Any, request: Request, *, settings: Settings, guide: Any = None) -> tuple[jax.Array, Work]:
        """Filled tokens `[B, T]` and `Work`."""
        model, goal = self.program.decoder(params), self.program.objective
        never, block = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad]), getattr(goal, "block", 0)
        if settings.cached:
            judge = None if guide is None else self.guide.program.decoder(guide)
            reader = Reader(model, goal.mask, goal.mask_id, never)
            tokens, work = fill_cached(reader, request, settings, block=block, guide=judge)
            return self.program.spec.partition.constrain(tokens, (None, None)), work

        def predict(z: jax.Array, t: jax.Array) -> jax.Array:
            out = model(z, mask=goal.mask, segment_ids=request.segments, time=t)
            return model.logits(out.features)[..., : goal.mask_id]

        canvas, method = request.tokens, settings.sampler.method
        open_, held = canvas == goal.mask_id, (request.segments != 0).sum(-1)

        def denoise(z: jax.Array, rate: jax.Array) -> jax.Array:
            # Samplers that fill masks run on the linear schedule, whose time is the rate of masks: in those without a
            # clock, of the row itself, padding and the masks of later blocks as the model sees them.
            if method in preflight_objectives.CONFIDENT:
                rate = ((z == goal.mask_id) & open_).sum(-1) / held
            return predict(z, schedules.get(goal.schedule).time(rate)).at[..., never].set(-jnp.inf)

        def log_score(z: jax.Array, t: jax.Array) -> jax.Array:
            return goal.log_score(predict(z, t), t, z, settings.temperature).at[..., never].set(-jnp.inf)

        source = denoise
        if method in preflight_objectives.SCORE_METHODS:
            sampler = dataclasses.replace(settings.sampler, schedule=goal.schedule, graph=goal.graph)
            source, settings = log_score, dataclasses.replace(settings, sampler=sampler)
        tokens, calls = fill(source, request, settings, mask_id=goal.mask_id, block=block)
        tokens = self.program.spec.partition.constrain(tokens, (None, None))  # Whole: the host reads it.
        return tokens, plain_work(calls, canvas)

    def settings(self, options: dict) -> Any:
        """What `config.generate` says of filling in, hashable."""
        return settings(options, self.program.config.objective)

    def _text(self, tokens: np.ndarray, stop: tuple[str, ...]) -> str:
        """Text up to the end of the document or the first stop string."""
        ends = np.flatnonzero(tokens == self.tokenizer.eos)
        text = self.tokenizer.decode(tokens[: ends[0]] if len(ends) else tokens)
        return text[: min((at for at in map(text.find, stop) if at >= 0), default=len(text))]


def settings(options: dict, objective: str = "masked_diffusion") -> Settings:
    """What `config.generate` says of filling in."""
    chosen = options["diffusion"]
    method = preflight_objectives.method(objective, chosen["method"])
    names, temperature, more = TAKES.get(method, ()), options["temperature"], {}
    cached, scores = chosen["cache"] or method == "guided", method in preflight_objectives.SCORE_METHODS
    if cached:
        more = {"plan": tuple(chosen["adaptive"].items())} | {key: chosen[key] for key in names if key == "rule"}
        keeps = {"policy": chosen["cache"] or "none", "commit": chosen["commit"], "refresh": chosen["refresh"] or None}
        own = {key: chosen[key] for key in names if key in ("threshold", "factor")}  # Others take no cache.
        sampler = caches.Settings(0, method, temperature=temperature, **keeps, **own)
    else:
        own = {} if scores else {"temperature": temperature, "guidance": chosen["guidance"]}
        sampler = diffusion.METHODS[method](method, None, **own, **{key: chosen[key] for key in names})
    steps, count = chosen["steps"] or options["max_tokens"], options["max_tokens"]
    return Settings(sampler, steps, count, chosen["block"], chosen["block_from"], temperature, **more)


def fill(
    denoise: Callable[[jax.Array, jax.Array], jax.Array],
    request: Request,
    settings: Settings,
    *,
    mask_id: int,
    block: int = 0,
) -> tuple[jax.Array, jax.Array]:
    """Fills the masks of a request: tokens `[B, T]` and calls of the model `[B]`. Safe under jit.

    Args:
      denoise: `(z [B, T], t [B]) -> logits [B, T, mask_id]`.
      request: the rows.
      settings: how; its sampler is one without a cache.
      mask_id: V, id of the mask token.
      block: the model's own blocks, counted from the first token of a row; 0 for none.
    """
    (B, T), canvas = request.tokens.shape, request.tokens
    size = block or settings.by
    share = settings.share(size) if size else settings.steps
    sampler = dataclasses.replace(settings.sampler, steps=share)
    if not size:
        return sampler.run(denoise, request.canvas(mask_id))
    index, masked = jnp.arange(T), canvas == mask_id
    start = jnp.argmax(masked, -1)[:, None] if settings.by_from == "prompt" and not block else 0

    def one(b: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        z, calls = state
        # To the sampler the masks of later blocks are tokens that stand; the model sees them as the masks they are.
        later = (index >= start + (b + 1) * size) & (z == mask_id)
        seen = lambda z, t: denoise(jnp.where(later, mask_id, z), t)  # noqa: E731
        open_ = request.canvas(mask_id, jax.random.fold_in(request.key, b), jnp.where(later, 0, z))
        filled, more = sampler.run(seen, open_)
        # A row with nothing to fill in this block is there because of others.
        return jnp.where(later, mask_id, filled), calls + more * ((z == mask_id) & ~later).any(-1)

    own = (index - start) // size
    first, last = jnp.min(jnp.where(masked, own, T)), jnp.max(jnp.where(masked, own, -1))
    return jax.lax.fori_loop(first, last + 1, one, (jnp.asarray(canvas), jnp.zeros(B, int)))


class Reader(NamedTuple):
    """A model that fills a canvas: an `LM`, its objective's mask, V (the id of the mask token), ids never drawn."""

    model: Any
    mask: masks.Mask
    mask_id: int
    never: jax.Array | None = None


def fill_cached(
    reader: Reader, request: Request, settings: Settings, *, block: int = 0, guide: Any = None
) -> tuple[jax.Array, Work]:
    """The same as `fill` by rules that reveal the surest, with a cache of `models.decoding.canvas.{caches,features}`.

    Args:
      reader: the model.
      request: the rows.
      settings: how; its sampler is one with a cache. Policy adaptive fills the canvas in one block.
      block: the model's own blocks, 0 for none.
      guide: an autoregressive `LM` for method "guided".
    """
    (B, T), mask_id, sampler = request.tokens.shape, reader.mask_id, settings.sampler
    places = jnp.where(request.segments != 0, jnp.arange(T), -1)
    start = settings.start if settings.by_from == "prompt" and settings.by and not block else 0
    size = min(block or settings.by or T, T - start)
    canvas = request.canvas(mask_id)
    if sampler.policy == "adaptive":
        how = features.Renewal(*settings.sides, **dict(settings.plan))
        run, cache = features.of_model(reader.model, reader.mask, places, canvas.masked, how, mask_id)
        sampler = dataclasses.replace(sampler, policy="none")
    else:
        run = network.cached(reader.model, reader.mask, places, mask_id)
        cache = network.empty(reader.model, B, T)

    def allowed(tokens: jax.Array, positions: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = run(tokens, positions, cache)
        return logits if reader.never is None else logits.at[..., reader.never].set(-jnp.inf), cache

    judge = None
    if guide is not None:
        reads = network.cached(guide, masks.Causal(), places, mask_id)
        judge = caches.Guide(reads, network.empty(guide, B, T), settings.rule)
    blocks = -(-(T - start) // size)
    sampler = dataclasses.replace(
        sampler, block=size, steps=blocks * settings.share(size), prompt_length=start, prefill=blocks > 1
    )
    found = caches.decode(allowed, cache, canvas, sampler, judge)
    fed = found.cache.fed if isinstance(found.cache, features.Features) else found.fed
    return found.tokens, Work(found.calls, fed, found.guided)


def plain_work(calls: jax.Array, canvas: jax.Array, copies: int = 1) -> Work:
    """Every call is fed the whole canvas `[B, T]`."""
    return Work(calls, calls * (copies * canvas.shape[1]), 0 * calls)
