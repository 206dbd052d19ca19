"""Text from a trained diffusion model: masks behind a prompt (and before a suffix) are filled in by a sampler of
models/decoding/canvas/diffusion.py, with the model as its `denoise`.

A row is `[bos] prompt [mask * max_tokens] suffix`, then padding up to a length that few requests do not share. Blocks
are filled from left to right: those of a block diffusion model, else of `generate.diffusion.block`; tokens of later
blocks stay masked meanwhile. What a row gets depends on no other row, nor on how far the canvas is padded.
"""

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
from models.decoding.canvas import caches, diffusion, features, network
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


class Filler:
    """Filling in with one model, behind the face of `generate.Generator`; compiled once per shape and setting.

    `options` is `config.generate` as a dict; top_k, top_p and min_p are not used. `guide`: a trained autoregressive
    model (`workdir.trained.Trained`) of the same tokens, for method="guided"; by default that in the workdir which
    `generate.diffusion.guide` names.
    """

    def __init__(self, program: Program, tokenizer: Any, guide: Any = None):
        self.program, self.tokenizer, self.guide = program, tokenizer, guide
        self._fill = jax.jit(self._run, static_argnames=("settings",))

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
        chosen, open_ = dict(settings), canvas == self._mask_id
        if chosen.get("policy") == "adaptive":
            sides = features.sides(np.where(segments != 0, 0, -1), open_)
            settings += (("sides", tuple(int(side.sum(1).max()) for side in sides)),)

        def run(some: np.ndarray | slice, settings: tuple) -> tuple[np.ndarray, Work]:
            parts = (canvas[some], segments[some], key, rows[some])
            return jax.tree.map(np.asarray, self._fill(params, *parts, settings=settings, **extra))

        if "policy" not in chosen or chosen["by_from"] == "row" or not chosen["by"]:
            return run(slice(None), settings)
        # Windows of a cache are the same in all rows: rows whose blocks begin together go together.
        starts = np.argmax(open_, 1)
        groups = [np.flatnonzero(starts == start) for start in np.unique(starts)]
        done = [run(group, (*settings, ("start", int(starts[group[0]])))) for group in groups]
        back = np.argsort(np.concatenate(groups))
        return jax.tree.map(lambda *parts: np.concatenate(parts)[back], *done)

    def answers(self, params: Any, batch: dict, options: dict, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a task with their answers drawn anew: tokens `[B, T]`, calls `[B]`. `batch` as from `inputs.prepare`.

        `data.tasks.score(batch, predicted=tokens)` says how many are right.
        """
        tokens, work = self.answered(params, batch, options, seed=seed)
        return tokens, work.calls

    def answered(self, params: Any, batch: dict, options: dict, *, seed: int = 0) -> tuple[np.ndarray, Work]:
        """The same, with all that it cost."""
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

    def _run(
        self, params: Any, canvas: jax.Array, segments: jax.Array, key: jax.Array, rows: jax.Array, *, settings,
        guide: Any = None,
    ):  # fmt: skip
        """Filled tokens `[B, T]` and `Work`."""
        model, goal, settings = self.program.decoder(params), self.program.objective, dict(settings)
        never, block = jnp.asarray([self.tokenizer.bos, self.tokenizer.pad]), getattr(goal, "block", 0)
        if "policy" in settings:
            settings["never"] = never
            if guide is not None:
                settings["guide"] = self.guide.program.decoder(guide)
            tokens, work = fill_cached(
                model, goal.mask, key, canvas, segments, rows, mask_id=goal.mask_id, block=block, **settings
            )
            return self.program.spec.partition.constrain(tokens, (None, None)), work

        def predict(z: jax.Array, t: jax.Array) -> jax.Array:
            out = model(z, mask=goal.mask, segment_ids=segments, time=t)
            return model.logits(out.features)[..., : goal.mask_id]

        open_, held, method = canvas == goal.mask_id, (segments != 0).sum(-1), settings["method"]

        def denoise(z: jax.Array, rate: jax.Array) -> jax.Array:
            # Samplers that fill masks run on the linear schedule, whose time is the rate of masks: in those without a
            # clock, of the row itself, padding and the masks of later blocks as the model sees them.
            if method in preflight_objectives.CONFIDENT:
                rate = ((z == goal.mask_id) & open_).sum(-1) / held
            return predict(z, schedules.get(goal.schedule).time(rate)).at[..., never].set(-jnp.inf)

        def log_score(z: jax.Array, t: jax.Array) -> jax.Array:
            return goal.log_score(predict(z, t), t, z, temperature).at[..., never].set(-jnp.inf)

        scores = method in preflight_objectives.SCORE_METHODS
        if scores:
            temperature = settings.pop("temperature")
            settings |= {"schedule": goal.schedule, "graph": goal.graph}
        source = log_score if scores else denoise
        tokens, calls = fill(source, key, canvas, rows, mask_id=goal.mask_id, block=block, **settings)
        tokens = self.program.spec.partition.constrain(tokens, (None, None))  # Whole: the host reads it.
        return tokens, plain_work(calls, canvas)

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
    method = preflight_objectives.method(objective, chosen["method"])
    names = TAKES.get(method, ())
    more: tuple[tuple[str, Any], ...] = ()
    if chosen["cache"] or method == "guided":
        names = (*names, "commit", "refresh")
        more = (("policy", chosen["cache"] or "none"), ("plan", tuple(chosen["adaptive"].items())))
    elif method not in preflight_objectives.SCORE_METHODS:
        names = ("guidance", *names)
    return (
        ("method", method),
        ("steps", chosen["steps"] or options["max_tokens"]),
        ("count", options["max_tokens"]),
        ("by", chosen["block"]),
        ("by_from", chosen["block_from"]),
        ("temperature", options["temperature"]),
        *((name, chosen[name]) for name in names),
        *more,
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
    by_from: str = "row",
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """Fills the masks of `canvas [B, T]`: tokens `[B, T]` and calls of the model `[B]`. Safe under jit.

    Args:
      denoise: `(z [B, T], t [B]) -> logits [B, T, mask_id]`.
      key: of the request's seed; `rows [B]`: numbers from which the rows' own keys are folded.
      count: masks of a row; steps: calls that they are worth, shared out among the blocks.
      block: the model's own blocks, 0 for none; by: those to use else. The model's are counted from the first token of
        a row, the others from there or, with by_from="prompt", from its first mask (LLaDA).
      **options: of `diffusion.sample`: method, temperature, ...
    """
    B, T = canvas.shape
    sample = lambda denoise, key, init, steps: diffusion.sample(  # noqa: E731
        denoise, key, batch=B, length=T, vocab_size=mask_id, steps=steps, init=init, requests=rows, **options
    )
    size = block or by
    if not size:
        return sample(denoise, key, canvas, steps)
    index, share, masked = jnp.arange(T), _share(steps, size, count), canvas == mask_id
    start = jnp.argmax(masked, -1)[:, None] if by_from == "prompt" and not block else 0

    def one(b: jax.Array, state: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        z, calls = state
        # To the sampler the masks of later blocks are tokens that stand; the model sees them as the masks they are.
        later = (index >= start + (b + 1) * size) & (z == mask_id)
        seen = lambda z, t: denoise(jnp.where(later, mask_id, z), t)  # noqa: E731
        filled, more = sample(seen, jax.random.fold_in(key, b), jnp.where(later, 0, z), share)
        # A row with nothing to fill in this block is there because of others.
        return jnp.where(later, mask_id, filled), calls + more * ((z == mask_id) & ~later).any(-1)

    own = (index - start) // size
    first, last = jnp.min(jnp.where(masked, own, T)), jnp.max(jnp.where(masked, own, -1))
    return jax.lax.fori_loop(first, last + 1, one, (jnp.asarray(canvas), jnp.zeros(B, int)))


def _share(steps: int, size: int, count: int) -> int:
    """Calls of a block of `size` positions, where `steps` are for `count` masks."""
    return max(1, -(-steps * min(size, count) // count))


def fill_cached(
    model: Any,
    mask: masks.Mask,
    key: jax.Array,
    canvas: jax.Array,
    segments: jax.Array,
    rows: jax.Array,
    *,
    mask_id: int,
    count: int,
    steps: int,
    policy: str,
    method: str,
    plan: tuple = (),
    sides: tuple[int, int] = (0, 0),
    block: int = 0,
    by: int = 0,
    by_from: str = "row",
    start: int = 0,
    never: jax.Array | None = None,
    guide: Any = None,
    rule: str = "match",
    commit: bool = True,
    refresh: int = 0,
    **options: Any,
) -> tuple[jax.Array, Work]:
    """The same as `fill` by rules that reveal the surest, with a cache of `models.decoding.canvas.{caches,features}`.

    Args:
      model, mask: an `LM` and what its objective sees; segments `[B, T]`: 0 = padding.
      policy: none, prefix, dual, free; or adaptive, as `plan` says (prompt_every, answer_every, share), in one block.
      sides: adaptive: most tokens of a row before its first mask, and from it on.
      start: by_from="prompt": where the first mask of all these rows is, from which blocks of `by` are counted.
      guide: an autoregressive `LM` for method "guided", and `rule`: see `models.decoding.canvas.guided`.
      others: as of `fill` and `caches.decode`; refresh 0: never.
    """
    B, T = canvas.shape
    index = jnp.arange(T)
    places = jnp.where(segments != 0, index, -1)
    start = start if by_from == "prompt" and by and not block else 0
    size = min(block or by or T, T - start)
    if policy == "adaptive":
        how = features.Renewal(*sides, **dict(plan))
        run, cache = features.of_model(model, mask, places, canvas == mask_id, how, mask_id)
        policy = "none"
    else:
        run, cache = network.cached(model, mask, places, mask_id), network.empty(model, B, T)

    def allowed(tokens: jax.Array, positions: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits, cache = run(tokens, positions, cache)
        return logits if never is None else logits.at[..., never].set(-jnp.inf), cache

    judge = None
    if guide is not None:
        reads = network.cached(guide, masks.Causal(), places, mask_id)
        judge = caches.Guide(reads, network.empty(guide, B, T), rule)
    blocks, share = -(-(T - start) // size), _share(steps, size, count)
    found = caches.decode(
        allowed, cache, key, init=canvas, block=size, mask_id=mask_id, policy=policy, commit=commit,
        refresh=refresh or None, method=method, steps=blocks * share, guide=judge, prompt_length=start,
        prefill=blocks > 1, requests=rows, **options,
    )  # fmt: skip
    fed = found.cache.fed if isinstance(found.cache, features.Features) else found.fed
    return found.tokens, Work(found.calls, fed, found.guided)


def plain_work(calls: jax.Array, canvas: jax.Array, copies: int = 1) -> Work:
    """Every call is fed the whole canvas `[B, T]`."""
    return Work(calls, calls * (copies * canvas.shape[1]), 0 * calls)
