"""Check: a small flow model of images drafts the denoising steps of a larger one, and the images stay the larger one's.

The claim has `target` and `draft` ({"width", "layers", "steps"}: networks and training steps), `denoise` (K, steps of
a chain), `last` (the time at which it ends), `drafts` (g, a round), `images` (chains of each kind), `contrasts`, each
with `statement`, `published` and `measure` (a name in MEASURES), and `seeds`. Images are scikit-learn's digits. How far
apart two sets of images are is the mean of Kolmogorov-Smirnov's distance in 64 random directions.
"""

import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from data import sources
from experiments.claims import method
from experiments.claims.evidence import Evidence
from models.decoding.verify import continuous, denoising

BATCH, RATE, FEATURES, DIRECTIONS = 256, 2e-3, 16, 64
MEASURES: dict[str, tuple[str, Callable[[Mapping[str, Any]], float]]] = {
    "steps": ("steps a call of the larger model", lambda one: one["steps_a_call"] - 1),
    "chance": ("accepted share less the mean of 2 Phi(-d / 2)", lambda one: one["accepted"] - one["chance"]),
    "law": ("distance to the larger model's images, less that of two sets of these",
            lambda one: one["distance_drafted"] - one["distance_same"]),
    "released": ("distance to the larger model's images, less that of two sets of these",
                 lambda one: one["distance_released"] - one["distance_same"]),
}  # fmt: skip


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains both networks with every seed, draws images in four ways, and compares; keeps nothing in `workdir`."""
    images = digits()
    found = [measured(claim, images, seed) for seed in claim["seeds"]]
    table = {name: [one[name] for one in found] for name in found[0]}
    size = [sum(x.size for x in jax.tree.leaves(network(jax.random.key(0), **sizes(claim[name]))))
            for name in ("draft", "target")]  # fmt: skip
    scale = (
        f"{size[0] / 1e3:.0f} and {size[1] / 1e3:.0f} thousand parameters, 1,797 images, {len(found)} seeds; "
        f"{claim['denoise']} steps, {claim['drafts']} drafts a round, {claim['images']} images"
    )
    return [_row(claim, contrast, found, table, scale) for contrast in claim["contrasts"]]


def _row(claim: Mapping, contrast: Mapping, found: list[dict], table: Mapping[str, list], scale: str) -> Evidence:
    label, value = MEASURES[contrast["measure"]]
    judged = method.judge(claim, [value(one) for one in found], pair=contrast)
    shown = "; ".join(f"{name.replace('_', ' ')} {np.mean(values):.3f}" for name, values in table.items())
    what = f"{label}, beyond 1" if contrast["measure"] == "steps" else label
    return judged.row(contrast, f"{what}: {judged.text(3)} ({shown})", scale, {"seeds": list(claim["seeds"]), **table})


def digits() -> np.ndarray:
    """The images `[1797, 64]`, of mean 0 and deviation 1 over all."""
    images = np.asarray(sources.digits(sources.Request("digits")).documents, np.float32).reshape(-1, 64)
    return (images - images.mean()) / images.std()


def sizes(options: Mapping[str, Any]) -> dict[str, int]:
    """What `network` reads of `target` or `draft`."""
    return {"width": options["width"], "layers": options["layers"]}


def network(key: jax.Array, *, width: int, layers: int) -> list[jax.Array]:
    """Kernels `[inputs + 1, outputs]`, their last rows the biases, of `layers` hidden layers."""
    shape = [64 + FEATURES, *[width] * layers, 64]
    pairs = zip(shape, shape[1:], strict=False)
    keys = jax.random.split(key, len(shape))
    return [jax.random.normal(k, (a + 1, b)) / np.sqrt(a) for k, (a, b) in zip(keys, pairs, strict=False)]


def velocity(kernels: list[jax.Array], x: jax.Array, t: jax.Array) -> jax.Array:
    """v at x `[M, 64]`, t `[M]`."""
    angles = t[:, None] * np.pi * 2.0 ** np.arange(FEATURES // 2 - 2, -2, -1)
    h = jnp.concatenate([x, jnp.cos(angles), jnp.sin(angles)], axis=1)
    for i, kernel in enumerate(kernels):
        h = h @ kernel[:-1] + kernel[-1]
        h = jax.nn.gelu(h) if i + 1 < len(kernels) else h
    return h


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def learned(key: jax.Array, images: jax.Array, width: int, layers: int, steps: int) -> list[jax.Array]:
    """A network after `steps` of Adam on mean |v(x_t, t) - (x_1 - e)|^2, the rate falling to 0: images `[n, 64]`."""
    kernels = network(jax.random.fold_in(key, 0), width=width, layers=layers)

    def loss(kernels: list[jax.Array], key: jax.Array) -> jax.Array:
        which, noise, time = jax.random.split(key, 3)
        data = images[jax.random.randint(which, (BATCH,), 0, len(images))]
        e, t = jax.random.normal(noise, data.shape), jax.random.uniform(time, (BATCH,))
        x = t[:, None] * data + (1 - t[:, None]) * e
        return jnp.mean((velocity(kernels, x, t) - (data - e)) ** 2)

    made = optax.adam(optax.linear_schedule(RATE, 0.0, steps), b2=0.99)

    def step(carry: tuple, i: jax.Array) -> tuple[tuple, None]:
        kernels, state = carry
        updates, state = made.update(jax.grad(loss)(kernels, jax.random.fold_in(key, i + 1)), state)
        return (optax.apply_updates(kernels, updates), state), None

    return jax.lax.scan(step, (kernels, made.init(kernels)), jnp.arange(steps))[0][0]


def plain(key: jax.Array, x: jax.Array, model: denoising.Velocity, times: jax.Array) -> jax.Array:
    """Images `[B, 64]` by the steps of `model` alone."""

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        t, s = jnp.full(len(x), times[i]), jnp.full(len(x), times[i + 1])
        noise = jax.random.normal(jax.random.fold_in(key, i), x.shape)
        return denoising.mean(x, model(x, t), t, s) + denoising.scale(t, s)[:, None] * noise, None

    return jax.lax.scan(step, x, jnp.arange(len(times) - 1))[0]


def released(
    key: jax.Array, x: jax.Array, target: denoising.Velocity, draft: denoising.Velocity, times: jax.Array
) -> jax.Array:
    """Images `[B, 64]` by the released rule: a step of the draft stays with `continuous.released_chance`, else it is
    the target's. `x [B, 64]` is noise, `times [S + 1]` begins at 0."""

    def step(x: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
        t, s = jnp.full(len(x), times[i]), jnp.full(len(x), times[i + 1])
        draws, coins, own = jax.random.split(jax.random.fold_in(key, i), 3)
        width = denoising.scale(t, s)[:, None]
        p, q = (denoising.mean(x, model(x, t), t, s) for model in (target, draft))
        y = q + width * jax.random.normal(draws, x.shape)
        chance = continuous.released_chance(y, p, width, q, width)
        stays = jax.random.uniform(coins, (len(x),)) < chance
        return jnp.where(stays[:, None], y, p + width * jax.random.normal(own, x.shape)), None

    return jax.lax.scan(step, x, jnp.arange(len(times) - 1))[0]


def far(a: np.ndarray, b: np.ndarray) -> float:
    """Mean Kolmogorov-Smirnov distance of images `[n, 64]` and `[m, 64]` in DIRECTIONS random directions."""
    directions = np.random.default_rng(0).normal(size=(a.shape[1], DIRECTIONS))
    return float(np.mean([stats.ks_2samp(*pair).statistic for pair in zip((a @ directions).T, (b @ directions).T,
                                                                          strict=True)]))  # fmt: skip


def measured(claim: Mapping[str, Any], images: np.ndarray, seed: int) -> dict[str, float]:
    """Acceptance, calls and distances of one seed, by name; images `[n, 64]` to learn from."""
    key, many = jax.random.key(seed), claim["images"]
    nets = [
        learned(jax.random.fold_in(key, i), jnp.asarray(images), options["width"], options["layers"], options["steps"])
        for i, options in enumerate((claim["target"], claim["draft"]))
    ]
    times = jnp.linspace(0.0, claim["last"], claim["denoise"] + 1)

    @jax.jit
    def drawn(nets: list) -> tuple:
        target, draft = (functools.partial(velocity, net) for net in nets)
        begin = lambda i: jax.random.normal(jax.random.fold_in(key, 10 + i), (many, 64))  # noqa: E731
        keys = [jax.random.fold_in(key, 20 + i) for i in range(5)]
        made = denoising.chains(keys[0], begin(0), target, draft, times, claim["drafts"])
        sets = [plain(keys[1], begin(1), target, times), plain(keys[2], begin(2), target, times),
                plain(keys[3], begin(3), draft, times), released(keys[4], begin(4), target, draft, times)]  # fmt: skip
        return made, sets

    (images_, sums, calls), sets = drawn(nets)
    own, again, small, code = (np.asarray(each) for each in sets)
    looked = float(sums.looked.sum())
    assert not bool(sums.exhausted.any())
    return {
        "steps_a_call": claim["denoise"] * many / float(calls.sum()),
        "accepted": float(sums.accepted.sum()) / looked,
        "chance": float(sums.chance.sum()) / looked,
        "distance_drafted": far(np.asarray(images_), own),
        "distance_same": far(again, own),
        "distance_draft": far(small, own),
        "distance_released": far(code, own),
    }
