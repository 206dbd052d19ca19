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

from models.decoding import categorical, reveal
from models.objectives.masked_diffusion import mask_logits

Array = jax.Array
Network = Callable[[Array, Array, Any], tuple[Array, Any]]
POLICIES = ("none", "prefix", "dual", "free")


class Decoded(NamedTuple):
    """tokens [B, T]; calls [B] of the network; fed [B], the query tokens of those calls: cost is close to
    proportional."""

    tokens: Array
    calls: Array
    fed: Array


def windows(policy: str, length: int, start: int, stop: int) -> tuple[range, bool]:
    """Positions fed at an ordinary step of the block [start, stop), and whether its first step feeds the whole canvas.

    none: everything, always. prefix and dual (Fast-dLLM): the first step of a block feeds everything; then the block
    and all after it, or the block alone. free (FreeCache): only the very first step of all feeds everything; then
    the block and all after it, so the window shrinks and what is left behind stays as it was.
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
    requests: Array | None = None,
    batch_axis: int = 0,
) -> Decoded:
    """Fills the masked positions of `init` [B, T], block after block from `prompt_length` on; safe under jit.

    Args:
      cache: an empty cache, a pytree whose leaves have the batch at `batch_axis`; every position is written before
      it is
        read. block: block size. policy: see `windows`.
      commit: with "free", one more call on each finished block, so that its frozen keys and values are those of its
      final
        tokens. Without it they are those of the block's last denoising call, in which the tokens it revealed were
        masks: cheaper and stale, as released. Other policies renew the whole canvas and ignore it.
      refresh: feed the whole canvas every so many steps of a block; 1 is no cache at all, None is the policy's own way.
      method: max_prob, margin, entropy, random, left_to_right or candidate with `steps` in all (a multiple of the
      blocks),
        or threshold or factor, which use `confidence`: as in `models.decoding.diffusion.sample`, with the same keys.

    Returns:
      tokens, calls and fed tokens of each row. A row that has finished a block makes no calls while others work on
      it, and its cache is left alone, so that no row depends on its neighbours.
    """
    rows, length = init.shape
    blocks = -(-(length - prompt_length) // block)
    parallel = method in ("threshold", "factor")
    if not parallel and (steps is None or steps < blocks or steps % blocks):
        raise ValueError(f"steps={steps} must be a positive multiple of the {blocks} blocks, for example {4 * blocks}")
    each = block if parallel else steps // blocks
    keys = categorical.row_keys(key, rows, requests)
    rule = _Rule(method, confidence, threshold, factor, temperature, each)
    state = (jnp.asarray(init), cache, jnp.zeros(rows, int), jnp.zeros(rows, int))
    for number in range(blocks):
        start = prompt_length + number * block
        stop = min(start + block, length)
        window, renew = windows(policy, length, start, stop)
        state = _block(
            network, state, keys, rule, mask_id, number, start, stop, window, renew or number == 0, refresh, batch_axis
        )
        if policy == "free" and commit and stop < length:
            state = _commit(network, state, start, stop, batch_axis)
    tokens, _, calls, fed = state
    return Decoded(tokens, calls, fed)


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
        drawn = categorical.sample(categorical.fold(keys, when, categorical.TOKEN), logits, self.temperature, start)
        places = categorical.fold(keys, when, categorical.PLACE)
        parallel = self.method in ("threshold", "factor")
        kind = self.confidence if parallel else self.method
        conf = reveal.confidence(kind, logits, self.temperature, candidates=drawn, keys=places)
        if kind == "random":  # by position on the canvas, as the sampler without a cache draws it
            conf = categorical.uniform(places, (start + z.shape[1],), logits.dtype)[:, start:]
        if self.method == "threshold":
            count = reveal.threshold_count(jnp.where(masked, conf, -jnp.inf), self.threshold)
        elif self.method == "factor":
            count = reveal.factor_count(jnp.where(masked, conf, -jnp.inf), self.factor)
        else:
            count = total // self.each + (j < total % self.each)
        return jnp.where(reveal.choose(conf, masked, count), drawn.astype(z.dtype), z)


def _feed(network: Network, z: Array, cache: Any, window: range, active: Array, axis: int) -> tuple[Array, Any]:
    """Feeds the window; rows that are not active keep their cache."""
    positions = jnp.arange(window.start, window.stop)
    logits, new = network(z[:, window.start : window.stop], positions, cache)

    def keep(old: Array, fresh: Array) -> Array:
        shape = [1] * fresh.ndim
        shape[axis] = -1
        return jnp.where(active.reshape(shape), fresh, old)

    return logits, jax.tree.map(keep, cache, new)


def _block(network, state, keys, rule, mask_id, number, start, stop, window, renew, refresh, axis):
    """Decodes the block [start, stop) of every row."""
    length = state[0].shape[1]
    everything = range(length)
    total = (state[0][:, start:stop] == mask_id).sum(-1)

    def body(carry):
        j, z, cache, calls, fed = carry
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
        new = rule.reveal(keys, j, z[:, start:stop], logits, masked, total, number, start)
        z = z.at[:, start:stop].set(new)
        return j + 1, z, cache, calls + active, fed + active * jnp.where(whole, length, len(window))

    def unfinished(carry):
        return (carry[1][:, start:stop] == mask_id).any()

    _, z, cache, calls, fed = jax.lax.while_loop(unfinished, body, (0, *state))
    return z, cache, calls, fed


def _commit(network, state, start, stop, axis):
    """One call on the finished block, for its keys and values alone."""
    z, cache, calls, fed = state
    _, cache = _feed(network, z, cache, range(start, stop), jnp.ones(z.shape[0], bool), axis)
    return z, cache, calls + 1, fed + (stop - start)
