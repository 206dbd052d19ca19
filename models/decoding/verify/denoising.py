"""A flow model that is drawn step by step: a smaller one drafts steps, the larger verifies several of them in a call.

x_t = t x_1 + (1 - t) e, from noise e at t = 0 to data x_1 at t = 1 (Lipman et al. 2023, arXiv:2210.02747). A model's
velocity v at (x_t, t) is a guess of data and noise: x_1 = x_t + (1 - t) v, e = x_t - t v. The step from t to s > t is
the posterior of x_s given x_t and the guess, a Gaussian (Ho et al. 2020; Song et al. 2021, arXiv:2010.02502, eta = 1):

    x_s ~ N(s x_1 + sqrt((1 - s)^2 - scale^2) e, scale^2)
    scale = (1 - s) / (1 - t) sqrt((1 - t)^2 - (t (1 - s) / s)^2)

Both models have the same scale, so that a drafted step is accepted with chance 2 Phi(-d / 2), means d scales apart
(`continuous.overlap`), and the chain of all steps has the larger model's law (Wang et al. 2024, arXiv:2411.11925, for
vectors; here each step of one vector is a draft, as a token is).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from models.decoding.verify import continuous

Array = jax.Array
Velocity = Callable[[Array, Array], Array]  # (x [M, D], t [M]) -> [M, D]


class Steps(NamedTuple):
    """A round of each row: value `[B, D]` it ended at, count `[B]` steps that it went; of each of the g drafts `[B, g]`
    whether it was looked at, whether it was accepted, and the chance 2 Phi(-d / 2) it had; exhausted `[B]`."""

    value: Array
    count: Array
    looked: Array
    accepted: Array
    chance: Array
    exhausted: Array


def scale(t: Array, s: Array) -> Array:
    """Standard deviation of the step from t to s > t: `[...]`; 1 - s at t = 0, 0 at s = 1."""
    rest = (1 - t) ** 2 - (t * (1 - s) / s) ** 2
    return (1 - s) / (1 - t) * jnp.sqrt(jnp.maximum(rest, 0))


def mean(x: Array, velocity: Array, t: Array, s: Array) -> Array:
    """Mean of the step from t to s > t: x, velocity `[..., D]`, times `[...]` -> `[..., D]`."""
    t, s = t[..., None], s[..., None]
    data, noise = x + (1 - t) * velocity, x - t * velocity
    return s * data + jnp.sqrt(jnp.maximum((1 - s) ** 2 - scale(t, s) ** 2, 0)) * noise


def drafted(key: Array, x: Array, at: Array, draft: Velocity, times: Array, g: int) -> tuple[Array, Array]:
    """(states `[B, g + 1, D]`, the first is x; means `[B, g, D]` they were drawn from) of g steps of the draft.

    Args:
      key: of the round.
      x, at: `[B, D]` states and `[B]` steps that they have gone, below K.
      draft: the smaller model.
      times: `[K + 1]`, rising. Beyond the last one nothing moves.
      g: drafts.
    """
    states, means, last = [x], [], len(times) - 1
    for i in range(g):
        t, s = times[jnp.minimum(at + i, last - 1)], times[jnp.minimum(at + i, last - 1) + 1]
        means.append(mean(states[-1], draft(states[-1], t), t, s))
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape, x.dtype)
        states.append(means[-1] + scale(t, s)[:, None] * noise)
    return jnp.stack(states, axis=1), jnp.stack(means, axis=1)


def verified(key: Array, states: Array, means: Array, at: Array, target: Velocity, times: Array) -> Steps:
    """One call of the target on all states: drafts stay from the first on, and one step of its own follows them.

    Args: as of `drafted`, which gives states `[B, g + 1, D]` and means `[B, g, D]`.
    """
    B, n, D = states.shape
    g, K = n - 1, len(times) - 1
    place = jnp.minimum(at[:, None] + jnp.arange(n), K - 1)
    t, s = times[place], times[place + 1]
    velocity = target(states.reshape(B * n, D), t.reshape(-1)).reshape(B, n, D)
    mine, width = mean(states, velocity, t, s), scale(t, s)

    def one(key: Array, y: Array, p: Array, q: Array, width: Array) -> continuous.Drawn:
        propose = lambda key: p + width * jax.random.normal(key, p.shape, p.dtype)  # noqa: E731
        log = lambda centre: lambda x: continuous.log_normal(x, centre, width)  # noqa: E731
        return continuous.speculative(key, y, log(p), log(q), propose)

    keys = jax.random.split(key, (B, n))
    drawn = jax.vmap(jax.vmap(one))(keys[:, :g], states[:, 1:], mine[:, :g], means, width[:, :g])
    there = at[:, None] + jnp.arange(g) < K  # drafts within the chain
    stays = jnp.cumprod(drawn.accepted & there, axis=1).astype(bool)
    kept = jnp.sum(stays, axis=1, dtype=at.dtype)
    noise = jax.vmap(lambda key: jax.random.normal(key, (D,), states.dtype))(keys[:, g])
    own = mine[:, g] + width[:, g, None] * noise
    follows = jnp.concatenate([drawn.value, own[:, None]], axis=1)
    room = K - at
    pick = lambda x, i: jnp.take_along_axis(x, i[:, None, None], axis=1)[:, 0]  # noqa: E731
    value = jnp.where((kept < room)[:, None], pick(follows, kept), pick(states, jnp.minimum(kept, g)))
    looked = jnp.concatenate([jnp.ones((B, 1), bool), stays[:, :-1]], axis=1) & there
    chance = continuous.overlap(mine[:, :g], means, width[:, :g, None])
    lost = jnp.any(drawn.exhausted & looked, axis=1)
    return Steps(value, jnp.minimum(kept + 1, room), looked, drawn.accepted & looked, chance, lost)


def chains(key: Array, x: Array, target: Velocity, draft: Velocity, times: Array, g: int) -> tuple[Array, Steps, Array]:
    """(samples `[B, D]`, sums over rounds, calls of the target `[B]`) of chains that begin at x `[B, D]`, times[0].

    In `Steps` looked, accepted and chance `[B, g]` are sums over the drafts that were looked at.
    """
    B, K = len(x), len(times) - 1
    zero = jnp.zeros((B, g), x.dtype)
    first = (
        jnp.int32(0),
        jnp.zeros((B,), jnp.int32),
        x,
        (zero, zero, zero),
        jnp.zeros((B,), bool),
        jnp.zeros((B,), jnp.int32),
    )

    def turn(carry: tuple) -> tuple:
        n, at, x, sums, lost, calls = carry
        draws, judges = jax.random.split(jax.random.fold_in(key, n))
        live = at < K
        states, means = drafted(draws, x, at, draft, times, g)
        found = verified(judges, states, means, at, target, times)
        on = live[:, None] & found.looked
        more = (on, on & found.accepted, jnp.where(on, found.chance, 0))
        sums = tuple(a + b for a, b in zip(sums, more, strict=True))
        x = jnp.where(live[:, None], found.value, x)
        return n + 1, at + jnp.where(live, found.count, 0), x, sums, lost | (live & found.exhausted), calls + live

    _, at, x, sums, lost, calls = jax.lax.while_loop(lambda carry: jnp.any(carry[1] < K), turn, first)
    return x, Steps(x, at, *sums, lost), calls
