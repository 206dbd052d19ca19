"""Any-subset speculative decoding (ASSD): a model drafts for itself, then checks its drafts in one more pass.

Draft pass: the next k ranks, each predicted from the committed tokens alone. Oracle pass: the same ranks, each
predicted from all lower ranks with the drafts filled in. Drafts are accepted in rank order with chance min(1,
oracle/draft); the first rejection is replaced by a draw from (oracle - draft)_+. The law is that of sequential
decoding for ANY conditionals.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from models.decoding import keys as key_scheme
from models.objectives.masked_diffusion import mask_logits

Array = jax.Array


def sample(
    conditionals: Callable[..., Array],
    key: Array,
    *,
    order: Array,
    draft: int,
    prompt: Array | None = None,
    batch: int,
    vocab_size: int | None = None,
    mask_id: int | None = None,
    temperature: float = 1.0,
    requests: Array | None = None,
    two_stream: bool = False,
) -> tuple[Array, Array]:
    """Draws sequences in `order`; safe under jit; rows do not wait for one another.

    Args:
      conditionals: (z [B, T], t [B]) -> logits [B, T, C], masks in z where a position must not be seen; the oracle pass
        is then one call on k canvases per row. With two_stream=True: (tokens [B, T], order [B, T], seen [B, T]) ->
        logits [B, T, C] in ONE pass, position l seeing only tokens of rank below seen[l].
      order: [T] or [B, T], positions by rank.
      draft: k >= 1, drafts of a round; from 2 on calls never exceed the tokens drawn.
      prompt: [m] or [B, m] tokens of the first m ranks; or a canvas [T] or [B, T] with `mask_id` where tokens are
        drawn, whose given positions are then moved to the front of the order.
      vocab_size: ids that are drawn; by default the logits' number of columns.
      mask_id: the mask; by default vocab_size.
      temperature: of both passes (0: argmax).

    Returns:
      tokens [B, T]; calls [B], draft and oracle passes both counted (a draft of the very last rank needs no oracle).

    Raises:
      ValueError: draft below 1.
    """
    if draft < 1:
        raise ValueError(f"draft={draft} must be at least 1, for example 4")
    order = jnp.broadcast_to(jnp.asarray(order), (batch, np.shape(order)[-1]))
    length = order.shape[1]
    mask_id = _mask_of(conditionals, order, vocab_size, mask_id, two_stream)
    z, order, n = _start(order, prompt, mask_id)
    rank = jnp.argsort(order, -1)
    # A row's draws are numbered by its own targets; given tokens and padding are not counted.
    keys, begun = key_scheme.row_keys(key, batch, requests), n
    first_pass, second_pass = _passes(conditionals, order, rank, mask_id, draft, two_stream)

    def round_(state):
        z, n, calls = state
        left = length - n
        places = jnp.take_along_axis(order, jnp.minimum(n[:, None] + jnp.arange(draft), length - 1), 1)
        log_q = _at_temperature(first_pass(z, n, places), temperature)
        drafts = key_scheme.sample(key_scheme.fold(keys, n - begun, key_scheme.TOKEN), log_q).astype(z.dtype)
        log_p = _at_temperature(second_pass(z, n, drafts, places), temperature)
        accepted, repair = verify(keys, n - begun, log_q, log_p, drafts, left)
        # Ranks n .. n+accepted-1 take their drafts, rank n+accepted (if there is one) the repaired token.
        ahead = rank - n[:, None]
        index = jnp.clip(ahead, 0, draft - 1)
        new = jnp.where((ahead >= 0) & (ahead < accepted[:, None]), jnp.take_along_axis(drafts, index, 1), z)
        rejected = accepted < jnp.minimum(draft, left)
        new = jnp.where((ahead == accepted[:, None]) & rejected[:, None], repair[:, None].astype(z.dtype), new)
        return new, jnp.where(left > 0, n + accepted + rejected, n), calls + jnp.clip(left, 0, 2)

    z, _, calls = jax.lax.while_loop(lambda s: (s[1] < length).any(), round_, (z, n, jnp.zeros(batch, int)))
    return z, calls


def _at_temperature(logits: Array, temperature: float) -> Array:
    """Log-probabilities [..., V]; at temperature 0 the largest logit has probability 1."""
    if temperature:
        return jax.nn.log_softmax(logits / temperature, -1)
    return jnp.where(jnp.arange(logits.shape[-1]) == jnp.argmax(logits, -1)[..., None], 0.0, -jnp.inf)


def _passes(conditionals, order: Array, rank: Array, mask_id: int, draft: int, two_stream: bool) -> tuple:
    """The draft pass (z, n, places) and the oracle pass (z, n, drafts, places), both -> logits [B, k, C] at
    `places`."""
    batch, length = order.shape
    slots = jnp.arange(draft)

    def at(out: Array, places: Array) -> Array:
        return mask_logits(jnp.take_along_axis(out, places[..., None], 1), mask_id)

    def first(z: Array, n: Array, places: Array) -> Array:
        if two_stream:
            return at(conditionals(z, order, jnp.broadcast_to(n[:, None], order.shape)), places)
        visible = jnp.where(rank < n[:, None], z, mask_id)
        return at(conditionals(visible, (visible == mask_id).mean(-1)), places)

    def second(z: Array, n: Array, drafts: Array, places: Array) -> Array:
        ahead = jnp.clip(rank - n[:, None], 0, draft - 1)
        tokens = jnp.where(rank < n[:, None], z, jnp.take_along_axis(drafts, ahead, 1))
        if two_stream:
            return at(conditionals(tokens, order, rank), places)
        seen = rank[:, None] < (n[:, None] + slots)[..., None]  # one canvas per slot: [B, k, T]
        canvases = jnp.where(seen, tokens[:, None], mask_id).reshape(-1, length)
        out = conditionals(canvases, (canvases == mask_id).mean(-1))
        return at(out, places.reshape(-1, 1)).reshape(batch, draft, -1)

    return first, second


def verify(keys: Array, n: Array, log_q: Array, log_p: Array, drafts: Array, left: Array) -> tuple[Array, Array]:
    """Accepted drafts [B] and the token [B] that replaces the first rejected one; n [B]: tokens drawn before.

    log_q (draft) and log_p (oracle) are [B, k, V], drafts [B, k], left [B] the ranks that remain. The first draft is
    drawn from the oracle's own law and is always accepted, even where the two passes round differently.
    """
    width = drafts.shape[1]
    slots = jnp.arange(width)
    at_draft = lambda rows: jnp.take_along_axis(rows, drafts[..., None], -1)[..., 0]  # noqa: E731
    u = key_scheme.uniform(key_scheme.fold(keys, n, key_scheme.ACCEPT), (width,), log_q.dtype)
    good = (u < jnp.exp(at_draft(log_p) - at_draft(log_q))) | (slots == 0)
    good = good & (slots < left[:, None])
    accepted = jnp.cumprod(good, -1).sum(-1)
    where = jnp.minimum(accepted, width - 1)[:, None, None]
    p, q = (jnp.exp(jnp.take_along_axis(rows, where, 1)[:, 0]) for rows in (log_p, log_q))
    excess = jnp.maximum(p - q, 0.0)
    # Where both laws differ by rounding only there is no excess: the token is then drawn from the oracle's law.
    excess = jnp.where(excess.sum(-1, keepdims=True) > 0, excess, p)
    return accepted, key_scheme.sample(key_scheme.fold(keys, n, key_scheme.RESIDUAL), jnp.log(excess))


def exact_law(
    conditionals: Callable[[Array, Array], Array],
    *,
    order: np.ndarray,
    draft: int,
    prompt: np.ndarray | None = None,
    vocab_size: int,
) -> tuple[np.ndarray, float]:
    """Law of the drawn strings, float64 [V] * T, and the expected calls, by walking every round (tiny alphabets).

    In a round, slot j keeps its draft v with chance min(q_v, p_v) and is repaired to v with chance (p_v - q_v)_+, given
    that the slots before it were kept.

    order: [T], positions by rank.
    prompt: [m] tokens of the first m ranks.
    """
    order, length = np.asarray(order), len(order)
    given = [] if prompt is None else list(np.asarray(prompt))
    probs = _table(conditionals, vocab_size, length)
    layers = [dict() for _ in range(length + 1)]
    layers[len(given)][tuple(given)] = 1.0
    calls = 0.0
    for n in range(len(given), length):
        for head, mass in layers[n].items():
            calls += mass * (1 if n == length - 1 else 2)
            q, kept = probs(order, head), {head: mass}
            for j in range(min(draft, length - n)):
                place, following = order[n + j], {}
                for path, weight in kept.items():
                    p = probs(order, path)[place]
                    for v in range(vocab_size):
                        following[(*path, v)] = weight * min(p[v], q[place][v])
                        repaired = weight * max(p[v] - q[place][v], 0.0)
                        layers[n + j + 1][(*path, v)] = layers[n + j + 1].get((*path, v), 0.0) + repaired
                kept = following
            for path, weight in kept.items():
                layers[len(path)][path] = layers[len(path)].get(path, 0.0) + weight
    law = np.zeros((vocab_size,) * length)
    for path, mass in layers[length].items():
        law[tuple(np.array(path)[np.argsort(order)])] += mass
    return law, calls


def _table(conditionals, size: int, length: int) -> Callable[[np.ndarray, tuple], np.ndarray]:
    """(order, tokens of the first ranks) -> probabilities [T, V] of every position given those tokens."""
    states = np.array(list(itertools.product(range(size + 1), repeat=length)))
    logits = conditionals(jnp.asarray(states), jnp.asarray((states == size).mean(-1)))
    p = np.asarray(jax.nn.softmax(mask_logits(logits, size), -1), np.float64)[..., :size]
    p = p.reshape((size + 1,) * length + (length, size))

    def probs(order: np.ndarray, head: tuple) -> np.ndarray:
        z = np.full(length, size)
        z[order[: len(head)]] = head
        return p[tuple(z)]

    return probs


def _start(order: Array, prompt: Array | None, mask_id: int) -> tuple[Array, Array, Array]:
    """Canvas [B, T], order [B, T] with the prompt in front, and its length [B]."""
    batch, length = order.shape
    empty = jnp.full((batch, length), mask_id)
    if prompt is None:
        return empty, order, jnp.zeros(batch, int)
    prompt = jnp.broadcast_to(jnp.asarray(prompt), (batch, np.shape(prompt)[-1])).astype(empty.dtype)
    width = prompt.shape[1]
    if width < length:
        canvas = jnp.put_along_axis(empty, order[:, :width], prompt, 1, inplace=False)
        return canvas, order, jnp.full(batch, width)
    open_ = jnp.take_along_axis(prompt == mask_id, order, 1)
    front = jnp.take_along_axis(order, jnp.argsort(open_, -1, stable=True), 1)
    return prompt, front, (prompt != mask_id).sum(-1)


def _mask_of(conditionals, order, vocab_size, mask_id, two_stream) -> int:
    if mask_id is not None or vocab_size is not None:
        return vocab_size if mask_id is None else mask_id
    row = order[:1]
    args = (row, row, row) if two_stream else (row, jnp.zeros(1))
    return jax.eval_shape(conditionals, *args).shape[-1]
