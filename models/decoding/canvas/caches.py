"""Block-by-block decoding of masked diffusion with key/value caches that may be stale, and what staleness costs.

The network is a plain function `network(tokens [B, Q], positions [Q], cache) -> logits [B, Q, C], cache`: it
computes keys and values of the Q tokens, writes them into the cache at `positions`, then attends to the whole cache
under its own mask. A step that feeds fewer tokens than the canvas sees the others as they were when last fed. Shapes
are static: one compiled loop per block, since the windows of different blocks have different widths.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from models.decoding import keys as key_scheme
from models.decoding.canvas import guided as guided_rules
from models.decoding.canvas import reveal
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


def decode(
    network: Network,
    cache: Any,
    key: Array,
    *,
    init: Array,
    block: int,
    mask_id: int,
    policy: str = "dual",
    commit: bool = True,
    refresh: int | None = None,
    prompt_length: int = 0,
    method: str = "max_prob",
    steps: int | None = None,
    threshold: float = 0.9,
    factor: float = 1.0,
    confidence: str = "max_prob",
    temperature: float = 1.0,
    guide: Guide | None = None,
    prefill: bool = False,
    requests: Array | None = None,
    batch_axis: int = 0,
) -> Decoded:
    """Fills the masked positions of `init` [B, T], block after block from `prompt_length` on; safe under jit.

    Args:
      network: see the module's docstring.
      cache: an empty cache, a pytree whose leaves have the batch at `batch_axis`; every position is written before it
        is read.
      key: of the whole batch; each row folds its request number into it.
      init: [B, T] canvas, `mask_id` where tokens are to be filled in.
      block: block size.
      mask_id: the mask.
      policy: see `windows`.
      commit: with "free", one more call on each finished block, so that its frozen keys and values are those of its
        final tokens. Without it they are those of the block's last denoising call, in which the tokens it revealed were
        masks: cheaper and stale, as released. Other policies renew the whole canvas and ignore it.
      refresh: feed the whole canvas every so many steps of a block; 1 is no cache at all, None follows the policy.
      prompt_length: columns before the first block.
      method: max_prob, margin, entropy, random, left_to_right, candidate or drawn with `steps` in all (a multiple of
        the blocks), or threshold or factor, which use `confidence`: as in `canvas.diffusion.sample`, with the
        same keys. Or guided: the longest prefix of the block's drafts (argmax) that `guide` accepts, and at least the
        first draft.
      steps: in all; not used by threshold, factor and guided.
      threshold: of method threshold.
      factor: of method factor.
      confidence: of methods threshold and factor.
      temperature: of the drawn tokens, 0 is argmax.
      guide: of method guided.
      prefill: one more call at the start, on the whole canvas. It is needed where the first block of some row may have
        no masks, since a cache holds nothing until the whole canvas was fed once.
      requests: [B] numbers from which the rows' keys are folded; by default the row's index.
      batch_axis: dimension of the batch in every leaf of the caches.

    Returns:
      A `Decoded`. A row that has finished a block makes no calls while other rows work on it, and its cache is not
      written, so that no row depends on its neighbours.
    """
    rows, length = init.shape
    blocks = -(-(length - prompt_length) // block)
    parallel = method in ("threshold", "factor", "guided")
    if (method == "guided") != (guide is not None):
        raise ValueError(f"method={method!r} with guide={guide}: a guide and method='guided' go together")
    if not parallel and (steps is None or steps < blocks or steps % blocks):
        raise ValueError(f"steps={steps} must be a positive multiple of the {blocks} blocks, for example {4 * blocks}")
    each = block if parallel else steps // blocks
    keys = key_scheme.row_keys(key, rows, requests)
    rule = _Rule(method, confidence, threshold, factor, temperature, each)
    none, z = jnp.zeros(rows, int), jnp.asarray(init)
    held = (cache, None if guide is None else guide.cache)
    state = _State(z, *held, none, none, none)
    if prefill and policy == "free":
        state = _read(network, state, batch_axis)
    if prefill and guide is not None:
        state = _introduce(guide, state, length, mask_id, batch_axis)
    for number in range(blocks):
        start = prompt_length + number * block
        stop = min(start + block, length)
        window, renew = windows(policy, length, start, stop)
        first = number == 0 and not prefill
        open_ = (state.z[:, start:stop] == mask_id).any(-1)
        if guide is not None and first and start:
            state = _introduce(guide, state, start, mask_id, batch_axis)
        if guide is not None and start:  # Given tokens after a masked gap are read again, now with the gap filled.
            changed = ~open_ & (z[:, :start] == mask_id).any(-1)
            state = _follow(guide, state, start - 1, stop, changed, batch_axis)
        state = _block(
            network, state, keys, rule, guide, mask_id, number, start, stop, window, renew or first, refresh, batch_axis
        )
        if policy == "free" and commit and stop < length:
            state = _commit(network, state, start, stop, open_, batch_axis)
    return Decoded(state.z, state.calls, state.fed, state.guided, state.cache)


class _State(NamedTuple):
    z: Array
    cache: Any
    guide_cache: Any
    calls: Array
    fed: Array
    guided: Array


class _Rule(NamedTuple):
    method: str
    confidence: str
    threshold: float
    factor: float
    temperature: float
    each: int

    def reveal(
        self, keys: Array, j: Array, z: Array, logits: Array, masked: Array, total: Array, number: int, start: int
    ):
        """The tokens [B, block] of block `number`, which begins at `start`, after its step j."""
        when = number * self.each + j
        drawn = key_scheme.sample(key_scheme.fold(keys, when, key_scheme.TOKEN), logits, self.temperature, start)
        places = key_scheme.fold(keys, when, key_scheme.PLACE)
        parallel = self.method in ("threshold", "factor")
        kind = self.confidence if parallel else self.method
        conf = reveal.confidence(kind, logits, self.temperature, candidates=drawn, keys=places)
        if kind == "random":  # by position on the canvas, as the sampler without a cache draws it
            conf = key_scheme.uniform(places, (start + z.shape[1],), logits.dtype)[:, start:]
        if self.method == "threshold":
            count = reveal.threshold_count(jnp.where(masked, conf, -jnp.inf), self.threshold)
        elif self.method == "factor":
            count = reveal.factor_count(jnp.where(masked, conf, -jnp.inf), self.factor)
        else:
            count = total // self.each + (j < total % self.each)
        return jnp.where(reveal.choose(conf, masked, count), drawn.astype(z.dtype), z)


def _feed(network: Network, z: Array, cache: Any, window: range, active: Array, axis: int) -> tuple[Array, Any]:
    """One call of the network on the window; the cache of rows that are not active is not written."""
    positions = jnp.arange(window.start, window.stop)
    logits, new = network(z[:, window.start : window.stop], positions, cache)

    def keep(old: Array, fresh: Array) -> Array:
        shape = [1] * fresh.ndim
        shape[axis] = -1
        return jnp.where(active.reshape(shape), fresh, old)

    return logits, jax.tree.map(keep, cache, new)


def _block(network, state, keys, rule, guide, mask_id, number, start, stop, window, renew, refresh, axis):
    """Decodes the block [start, stop) of every row."""
    length = state.z.shape[1]
    everything = range(length)
    total = (state.z[:, start:stop] == mask_id).sum(-1)

    def body(carry):
        j, s = carry
        z, cache = s.z, s.cache
        masked = z[:, start:stop] == mask_id
        active = masked.any(-1)

        def full():
            logits, new = _feed(network, z, cache, everything, active, axis)
            return logits[:, start:stop], new

        def partial():
            logits, new = _feed(network, z, cache, window, active, axis)
            return logits[:, start - window.start : stop - window.start], new

        whole = (j == 0) & renew
        whole = whole if refresh is None else whole | (j % refresh == 0)
        if refresh == 1 or len(window) == length:
            logits, cache = full()
        elif refresh is None and not renew:
            logits, cache = partial()
        else:
            logits, cache = jax.lax.cond(whole, full, partial)
        logits = mask_logits(logits, mask_id)
        guide_cache, guided = s.guide_cache, s.guided
        if guide is None:
            new = rule.reveal(keys, j, z[:, start:stop], logits, masked, total, number, start)
        else:
            drafts = jnp.where(masked, jnp.argmax(logits, -1).astype(z.dtype), z[:, start:stop])
            good, guide_cache, read = _judge(guide, s, drafts, keys, number * rule.each + j, start, stop, active, axis)
            new = jnp.where(guided_rules.kept(good, masked), drafts, z[:, start:stop])
            guided = guided + active * read
        z = z.at[:, start:stop].set(new)
        fed = s.fed + active * jnp.where(whole, length, len(window))
        return j + 1, _State(z, cache, guide_cache, s.calls + active, fed, guided)

    def unfinished(carry):
        return (carry[1].z[:, start:stop] == mask_id).any()

    return jax.lax.while_loop(unfinished, body, (0, state))[1]


def _judge(guide, state, drafts, keys, when, start, stop, active, axis):
    """Whether the guide accepts each draft, bool [B, block]; its cache; and the tokens that each row fed to it."""
    begin = max(start - 1, 0)  # No token predicts position 0, so a draft there is always accepted.
    filled = state.z.at[:, start:stop].set(drafts)
    logits, cache = _feed(guide.network, filled, state.guide_cache, range(begin, stop), active, axis)
    judged = logits[:, :-1]
    options = {"top_k": guide.top_k, "threshold": guide.threshold, "ratio": guide.ratio}
    good = guided_rules.accepts(guide.rule, judged, filled[:, begin + 1 : stop], keys, when, **options)
    return jnp.pad(good, ((0, 0), (drafts.shape[1] - good.shape[1], 0)), constant_values=True), cache, stop - begin


def _introduce(guide, state, stop, mask_id, axis):
    """The guide reads the canvas before `stop`; masks among it are read again once they are filled."""
    z, everyone = jnp.where(state.z == mask_id, 0, state.z), jnp.ones(len(state.z), bool)
    _, cache = _feed(guide.network, z, state.guide_cache, range(stop), everyone, axis)
    return state._replace(guide_cache=cache, guided=state.guided + stop)


def _read(network, state, axis):
    """The network reads the whole canvas."""
    length = state.z.shape[1]
    _, cache = _feed(network, state.z, state.cache, range(length), jnp.ones(len(state.z), bool), axis)
    return state._replace(cache=cache, calls=state.calls + 1, fed=state.fed + length)


def _follow(guide, state, start, stop, rows, axis):
    """The guide reads [start, stop) of some rows [B]."""

    def feed(cache):
        return _feed(guide.network, state.z, cache, range(start, stop), rows, axis)[1]

    cache = jax.lax.cond(rows.any(), feed, lambda cache: cache, state.guide_cache)
    return state._replace(guide_cache=cache, guided=state.guided + rows * (stop - start))


def _commit(network, state, start, stop, open_, axis):
    """One call on the finished block, for its keys and values alone, in rows where it was open [B]."""

    def feed(cache):
        return _feed(network, state.z, cache, range(start, stop), open_, axis)[1]

    cache = jax.lax.cond(open_.any(), feed, lambda cache: cache, state.cache)
    return state._replace(cache=cache, calls=state.calls + open_, fed=state.fed + open_ * (stop - start))
