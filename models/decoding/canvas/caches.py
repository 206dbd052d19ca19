"""Block-by-block decoding of masked diffusion with key/value caches that may be stale, and what staleness costs.

The network is a plain function `network(tokens [B, Q], positions [Q], cache) -> logits [B, Q, C], cache`: it
computes keys and values of the Q tokens, writes them into the cache at `positions`, then attends to the whole cache
under its own mask. A step that feeds fewer tokens than the canvas sees the others as they were when last fed. Shapes
are static: one compiled loop per block, since the windows of different blocks have different widths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.decoding.canvas import guided as guided_rules
from models.decoding.canvas import reveal
from models.decoding.canvas.canvas import Canvas
from models.objectives.masked_diffusion import mask_logits

Array = jax.Array
Network = Callable[[Array, Array, Any], tuple[Array, Any]]
POLICIES = ("none", "prefix", "dual", "free")


class Decoded(NamedTuple):
    """What `decode` returns.

    Args:
      tokens: [B, T] the filled canvas.
      calls: [B] calls of the network that each row needed.
      fed: [B] query tokens of those calls, to which the cost is nearly proportional.
      guided: [B] query tokens of the guide's calls.
      cache: the network's cache after the last call.
    """

    tokens: Array
    calls: Array
    fed: Array
    guided: Array
    cache: Any


class Guide(NamedTuple):
    """A small autoregressive network that judges drafts from left to right (see `models.decoding.canvas.guided`).

    `network` has the signature of the module's docstring but is causal: logits at a position predict the next token.
    It reads a position again when the block that holds it is drafted again, so its cache is never stale. Other fields
    are those of `guided.decode`.
    """

    network: Network
    cache: Any
    rule: str = "match"
    top_k: int = 5
    threshold: float = 0.3
    ratio: float = 0.3


def windows(policy: str, length: int, start: int, stop: int) -> tuple[range, bool]:
    """Positions fed at an ordinary step of the block [start, stop), and whether its first step feeds the whole canvas.

    none: every step feeds the whole canvas.
    prefix (Fast-dLLM): the first step of a block feeds the whole canvas, later ones the block and all after it.
    dual (Fast-dLLM): the first step of a block feeds the whole canvas, later ones the block alone.
    free (FreeCache): the first step of the first block feeds the whole canvas, later ones the block and all after it;
    the window shrinks, and the cache of finished blocks is not renewed.
    """
    if policy == "none":
        return range(length), True
    if policy == "prefix":
        return range(start, length), True
    if policy == "dual":
        return range(start, stop), True
    if policy == "free":
        return range(start, length), False
    raise ValueError(f"policy={policy!r} is unknown; use one of {', '.join(POLICIES)}")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How `decode` fills a canvas.

    Args:
      block: block size.
      method: max_prob, margin, entropy, random, left_to_right, candidate or drawn with `steps` in all (a multiple of
        the blocks), or threshold or factor, which use `confidence`: as in `canvas.diffusion.sample`, with the same
        keys. Or guided: the longest prefix of the block's drafts (argmax) that the guide accepts, and at least the
        first draft.
      policy: see `windows`.
      commit: with "free", one more call on each finished block, so that its frozen keys and values are those of its
        final tokens. Without it they are those of the block's last denoising call, in which the tokens it revealed were
        masks: cheaper and stale, as released. Other policies renew the whole canvas and ignore it.
      refresh: feed the whole canvas every so many steps of a block; 1 is no cache at all, None follows the policy.
      prompt_length: columns before the first block.
      prefill: one more call at the start, on the whole canvas. It is needed where the first block of some row may have
        no masks, since a cache holds nothing until the whole canvas was fed once.
      steps: in all; not used by threshold, factor and guided.
      threshold: of method threshold.
      factor: of method factor.
      confidence: of methods threshold and factor.
      temperature: of the drawn tokens, 0 is argmax.
    """

    block: int
    method: str = "max_prob"
    policy: str = "dual"
    commit: bool = True
    refresh: int | None = None
    prompt_length: int = 0
    prefill: bool = False
    steps: int | None = None
    threshold: float = 0.9
    factor: float = 1.0
    confidence: str = "max_prob"
    temperature: float = 1.0

    @property
    def parallel(self) -> bool:
        """Whether confidences decide how many tokens a call reveals."""
        return self.method in ("threshold", "factor")

    def count(self, length: int) -> int:
        """Blocks of a canvas of `length` columns."""
        return -(-(length - self.prompt_length) // self.block)

    def each(self, length: int) -> int:
        """Steps of a block; where their number is not known, as many as it has columns."""
        blocks, steps = self.count(length), self.steps
        if self.parallel or self.method == "guided":
            return self.block
        if steps is None or steps < blocks or steps % blocks:
            raise ValueError(
                f"steps={steps} must be a positive multiple of the {blocks} blocks, for example {4 * blocks}"
            )
        return steps // blocks


def decode(
    network: Network,
    cache: Any,
    canvas: Canvas,
    settings: Settings,
    guide: Guide | None = None,
    batch_axis: int = 0,
) -> Decoded:
    """Fills the masked positions of a canvas [B, T], block after block; safe under jit.

    Args:
      network: see the module's docstring.
      cache: an empty cache, a pytree whose leaves have the batch at `batch_axis`; every position is written before it
        is read.
      canvas: what is filled in.
      settings: how.
      guide: of method guided.
      batch_axis: dimension of the batch in every leaf of the caches.

    Returns:
      A `Decoded`. A row that has finished a block makes no calls while other rows work on it, and its cache is not
      written, so that no row depends on its neighbours.
    """
    if (settings.method == "guided") != (guide is not None):
        raise ValueError(f"method={settings.method!r} with guide={guide}: a guide and method='guided' go together")
    rows, length = canvas.tokens.shape
    none = jnp.zeros(rows, int)
    run = _Run(network, guide, canvas, settings, settings.each(length), batch_axis)
    state = _State(canvas.tokens, cache, None if guide is None else guide.cache, none, none, none)
    if settings.prefill and settings.policy == "free":
        state = run.read(state)
    if settings.prefill and guide is not None:
        state = run.introduce(state, length)
    for number in range(settings.count(length)):
        state = run.block(state, run.place(number))
    return Decoded(state.z, state.calls, state.fed, state.guided, state.cache)


class _State(NamedTuple):
    z: Array
    cache: Any
    guide_cache: Any
    calls: Array
    fed: Array
    guided: Array


class _Block(NamedTuple):
    """Columns start .. stop - 1; an ordinary step feeds `window`, the first one all columns where `renew` is true."""

    number: int
    start: int
    stop: int
    window: range
    renew: bool

    def of(self, x: Array) -> Array:
        """These columns of x [B, T, ..]."""
        return x[:, self.start : self.stop]


class _Run(NamedTuple):
    """One call of `decode`. each: steps of a block; axis: that of the batch in caches."""

    network: Network
    guide: Guide | None
    canvas: Canvas
    settings: Settings
    each: int
    axis: int

    def place(self, number: int) -> _Block:
        """Block `number` and what is fed for it."""
        s, length = self.settings, self.canvas.tokens.shape[1]
        start = s.prompt_length + number * s.block
        stop = min(start + s.block, length)
        window, renew = windows(s.policy, length, start, stop)
        return _Block(number, start, stop, window, renew or (number == 0 and not s.prefill))

    def block(self, state: _State, at: _Block) -> _State:
        """Fills a block of every row."""
        s, mask_id, length = self.settings, self.canvas.mask_id, self.canvas.tokens.shape[1]
        open_ = (at.of(state.z) == mask_id).any(-1)
        if self.guide is not None and at.start:
            if at.number == 0 and not s.prefill:
                state = self.introduce(state, at.start)
            # Given tokens after a masked gap are read again, now with the gap filled.
            changed = ~open_ & self.canvas.masked[:, : at.start].any(-1)
            state = self.follow(state, at.start - 1, at.stop, changed)
        total = (at.of(state.z) == mask_id).sum(-1)

        def unfinished(carry):
            return (at.of(carry[1].z) == mask_id).any()

        _, state = jax.lax.while_loop(unfinished, lambda carry: self.step(*carry, at, total), (0, state))
        if s.policy == "free" and s.commit and at.stop < length:
            state = self.commit(state, at, open_)
        return state

    def step(self, j: Array, state: _State, at: _Block, total: Array) -> tuple[Array, _State]:
        """Step j of a block that had `total` [B] masks."""
        z, length = state.z, state.z.shape[1]
        masked = at.of(z) == self.canvas.mask_id
        active = masked.any(-1)
        whole = self._whole(j, at)
        logits, cache = self._logits(state, at, active, whole)
        logits = mask_logits(logits, self.canvas.mask_id)
        guide_cache, guided = state.guide_cache, state.guided
        if self.guide is None:
            new = self.reveal(j, at, at.of(z), logits, total)
        else:
            drafts = jnp.where(masked, jnp.argmax(logits, -1).astype(z.dtype), at.of(z))
            good, guide_cache, read = self.judge(state, at, drafts, at.number * self.each + j, active)
            new = jnp.where(guided_rules.kept(good, masked), drafts, at.of(z))
            guided = guided + active * read
        z = z.at[:, at.start : at.stop].set(new)
        fed = state.fed + active * jnp.where(whole, length, len(at.window))
        return j + 1, _State(z, cache, guide_cache, state.calls + active, fed, guided)

    def _whole(self, j: Array, at: _Block) -> Array:
        """Whether step j feeds all columns."""
        first, refresh = (j == 0) & at.renew, self.settings.refresh
        return first if refresh is None else first | (j % refresh == 0)

    def _logits(self, state: _State, at: _Block, active: Array, whole: Array) -> tuple[Array, Any]:
        """The network's logits of the block, and its cache."""
        length, window, refresh = state.z.shape[1], at.window, self.settings.refresh

        def full():
            logits, new = self.feed(state.z, state.cache, range(length), active)
            return at.of(logits), new

        def partial():
            logits, new = self.feed(state.z, state.cache, window, active)
            return logits[:, at.start - window.start : at.stop - window.start], new

        if refresh == 1 or len(window) == length:
            return full()
        if refresh is None and not at.renew:
            return partial()
        return jax.lax.cond(whole, full, partial)

    def reveal(self, j: Array, at: _Block, z: Array, logits: Array, total: Array) -> Array:
        """The tokens of a block after step j: [B, block] from z [B, block]."""
        s, keys, masked = self.settings, self.canvas.keys, z == self.canvas.mask_id
        when = at.number * self.each + j
        drawn = key_scheme.sample(key_scheme.fold(keys, when, key_scheme.TOKEN), logits, s.temperature, at.start)
        places = key_scheme.fold(keys, when, key_scheme.PLACE)
        kind = s.confidence if s.parallel else s.method
        conf = reveal.confidence(kind, logits, s.temperature, candidates=drawn, keys=places)
        if kind == "random":  # by position on the canvas, as the sampler without a cache draws it
            conf = key_scheme.uniform(places, (at.start + z.shape[1],), logits.dtype)[:, at.start :]
        if s.method == "threshold":
            count = reveal.threshold_count(jnp.where(masked, conf, -jnp.inf), s.threshold)
        elif s.method == "factor":
            count = reveal.factor_count(jnp.where(masked, conf, -jnp.inf), s.factor)
        else:
            count = total // self.each + (j < total % self.each)
        return jnp.where(reveal.choose(conf, masked, count), drawn.astype(z.dtype), z)

    def judge(self, state: _State, at: _Block, drafts: Array, when: Array, active: Array) -> tuple[Array, Any, int]:
        """Whether the guide accepts each draft, bool [B, block]; its cache; and the tokens that each row fed to it."""
        begin = max(at.start - 1, 0)  # No token predicts position 0, so a draft there is always accepted.
        guide, filled = self.guide, state.z.at[:, at.start : at.stop].set(drafts)
        logits, cache = self.ask(filled, state.guide_cache, range(begin, at.stop), active)
        options = {"top_k": guide.top_k, "threshold": guide.threshold, "ratio": guide.ratio}
        judged = filled[:, begin + 1 : at.stop]
        good = guided_rules.accepts(guide.rule, logits[:, :-1], judged, self.canvas.keys, when, **options)
        missing = drafts.shape[1] - good.shape[1]
        return jnp.pad(good, ((0, 0), (missing, 0)), constant_values=True), cache, at.stop - begin

    def introduce(self, state: _State, stop: int) -> _State:
        """The guide reads the canvas before `stop`; masks among it are read again once they are filled."""
        z, everyone = jnp.where(state.z == self.canvas.mask_id, 0, state.z), jnp.ones(len(state.z), bool)
        _, cache = self.ask(z, state.guide_cache, range(stop), everyone)
        return state._replace(guide_cache=cache, guided=state.guided + stop)

    def read(self, state: _State) -> _State:
        """The network reads the whole canvas."""
        length = state.z.shape[1]
        _, cache = self.feed(state.z, state.cache, range(length), jnp.ones(len(state.z), bool))
        return state._replace(cache=cache, calls=state.calls + 1, fed=state.fed + length)

    def follow(self, state: _State, start: int, stop: int, rows: Array) -> _State:
        """The guide reads [start, stop) of some rows [B]."""

        def some(cache):
            return self.ask(state.z, cache, range(start, stop), rows)[1]

        cache = jax.lax.cond(rows.any(), some, lambda cache: cache, state.guide_cache)
        return state._replace(guide_cache=cache, guided=state.guided + rows * (stop - start))

    def commit(self, state: _State, at: _Block, open_: Array) -> _State:
        """One call on the finished block, for its keys and values alone, in rows where it was open [B]."""

        def some(cache):
            return self.feed(state.z, cache, range(at.start, at.stop), open_)[1]

        cache = jax.lax.cond(open_.any(), some, lambda cache: cache, state.cache)
        fed = state.fed + open_ * (at.stop - at.start)
        return state._replace(cache=cache, calls=state.calls + open_, fed=fed)

    def feed(self, z: Array, cache: Any, window: range, active: Array) -> tuple[Array, Any]:
        """One call of the network."""
        return _feed(self.network, z, cache, window, active, self.axis)

    def ask(self, z: Array, cache: Any, window: range, active: Array) -> tuple[Array, Any]:
        """One call of the guide."""
        return _feed(self.guide.network, z, cache, window, active, self.axis)


def _feed(network: Network, z: Array, cache: Any, window: range, active: Array, axis: int) -> tuple[Array, Any]:
    """One call of a network on the window; the cache of rows that are not active is not written."""
    positions = jnp.arange(window.start, window.stop)
    logits, new = network(z[:, window.start : window.stop], positions, cache)

    def keep(old: Array, fresh: Array) -> Array:
        shape = [1] * fresh.ndim
        shape[axis] = -1
        return jnp.where(active.reshape(shape), fresh, old)

    return logits, jax.tree.map(keep, cache, new)
