"""Check: attention mass that columns of keys keep, found on a prompt's last queries and otherwise, and reading times.

The claim has `base`, which is trained with every seed, and `arms` with it alone; `lengths` of prompts, in tokens;
`columns` V and `window` W; `contrasts` with `statement`, `published`, `measure` ("mass" or "seconds"), `better` and
`worse`, each (way, length); and `seeds`. Every way sees the W nearest keys and, of a head: the V columns that
`vertical_slash` finds (`found`), the first V (`first`), 30 first ones and others by lot (`random`), or the V that keep
the most of the queries that are asked (`best`); `oracle` is the V + W keys of the largest weight of each query alone.
`room` is what `best` is ahead of `random`. The queries that are asked lie in the second half of held-out rows, none
among those that columns are found on. Seconds are CPU seconds of a compiled pass over one row, `dense` and within the
patterns (`sparse`), in turn.
"""

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claims import arms, method
from experiments.claims.evidence import Evidence
from experiments.claims.memories import draw
from experiments.generation.patterns import queries_and_keys
from experiments.program import inputs
from experiments.workdir import trained
from kernels import masks
from kernels.attention.patterns import last_rows, vertical_slash
from models.mixers.prefill import Prefill, parsed

WAYS = ("found", "first", "random", "best", "oracle")
FORCED, LAST = 30, 64  # first columns that are always among those found; last queries that they are found on
MEASURES = {"mass": "share of attention that is kept", "seconds": "CPU seconds of a prompt"}


def run(claim: Mapping[str, Any], workdir: pathlib.Path, *, jobs: int, quiet: bool) -> list[Evidence]:
    """Trains the base with every seed, and reads held-out rows of every length in every way."""
    seeds, lengths = claim["seeds"], [str(length) for length in claim["lengths"]]
    found = arms.train(claim["base"], {"base": {}}, seeds, workdir, jobs=jobs, quiet=quiet)
    mass = {way: {length: [] for length in lengths} for way in (*WAYS, "room")}
    seconds = {way: {length: [] for length in lengths} for way in ("dense", "sparse")}
    columns, window = claim["columns"], claim["window"]
    sizes = {"columns": columns, "window": window}
    for seed, row in zip(seeds, found["base"], strict=True):
        model = trained.load(row["workdir"])
        for length in lengths:
            rows = rows_of(model, int(length))
            kept = [masses(model, tokens, seed=seed, asked=claim["asked"], **sizes) for tokens in rows]
            for way in WAYS:
                mass[way][length].append(float(np.mean([each[way] for each in kept])))
            mass["room"][length].append(mass["best"][length][-1] - mass["random"][length][-1])
            for way, value in timed(model, rows[0], parsed(f"vertical_slash:{columns}:{window}")).items():
                seconds[way][length].append(value)
    numbers = {"seeds": list(seeds), "mass": mass, "seconds": seconds}
    cells = {("base", way, length): values for way in WAYS for length, values in mass[way].items()}
    draw(claim, "kept_mass", cells, workdir / "patterns-mass")
    scale = (
        f"{arms.scale(found, seeds)}; {claim['base'].eval.rows} held-out rows of up to {max(claim['lengths'])} tokens"
    )
    return [judged(claim, contrast, numbers, scale) for contrast in claim["contrasts"]]


def rows_of(model: Any, length: int) -> list[np.ndarray]:
    """`eval.rows` held-out rows of `length` tokens."""
    config = model.config.copy_and_resolve_references().unlock()
    config.data.length, config.data.batch_size = length, 1
    batches = inputs.eval_batches(config, model.corpus, model.program.rows)
    return [np.asarray(row) for batch in batches for row in batch["tokens"]][: config.eval.rows]


def masses(model: Any, tokens: np.ndarray, *, columns: int, window: int, asked: int, seed: int) -> dict[str, float]:
    """Kept mass of every way, a mean over layers, heads and `asked` queries of one row `[T]`."""
    kept: dict[str, list[float]] = {way: [] for way in WAYS}
    for layer, (q, k) in enumerate(queries_and_keys(model.program, model.params, tokens)):
        lot = jax.random.fold_in(jax.random.key(seed), layer)
        made = jax.jit(_masses, static_argnums=(3, 4, 5))(q, k, lot, columns, window, asked)
        for way in WAYS:
            kept[way].append(float(made[way]))
    return {way: float(np.mean(values)) for way, values in kept.items()}


def _masses(q: jax.Array, k: jax.Array, lot: jax.Array, columns: int, window: int, asked: int) -> dict[str, jax.Array]:
    (T, N, _), at = q.shape, jnp.linspace(q.shape[0] // 2, q.shape[0] - LAST - 1, asked).astype(jnp.int32)
    p = probabilities(q, k, at)  # [N, R, T]
    near = at[:, None] - jnp.arange(T) < window
    far = jnp.where(near, 0, p)
    forced, drawn = jnp.arange(T) < FORCED, jax.random.uniform(lot, (N, T))
    top = lambda x: jax.lax.top_k(x, columns)[1]  # noqa: E731
    found, _ = vertical_slash(last_rows(q, k, LAST), columns, window, first=FORCED)
    of_way = {
        "found": found,
        "first": jnp.broadcast_to(jnp.arange(columns), (N, columns)),
        "random": top(jnp.where(forced, jnp.inf, drawn)),
        "best": top(far.sum(1)),
    }
    mass = {
        way: p.sum(-1, where=near).mean() + jnp.take_along_axis(far, index[:, None], axis=2).sum(-1).mean()
        for way, index in of_way.items()
    }
    return mass | {"oracle": jax.lax.top_k(p, columns + window)[0].sum(-1).mean()}


def probabilities(q: jax.Array, k: jax.Array, at: jax.Array) -> jax.Array:
    """`[N, R, T]`: causal probabilities of the queries at `at [R]`; q `[T, N, H]`, k `[T, K, H]`."""
    (T, N, H), K = q.shape, k.shape[1]
    x = jnp.einsum("rkgh,skh->kgrs", q[at].reshape(-1, K, N // K, H), k, precision="highest").reshape(N, -1, T)
    return jax.nn.softmax(jnp.where(jnp.arange(T) <= at[:, None], x * H**-0.5, -jnp.inf), axis=-1)


def timed(model: Any, tokens: np.ndarray, patterns: Prefill, rounds: int = 7) -> dict[str, float]:
    """The median CPU seconds of a pass over one row `[T]`, by way; passes in turn."""
    T = len(tokens)

    def reading(prefill: Prefill | None) -> Any:
        def run(params: Any, tokens: jax.Array) -> Any:
            made = model.program.decoder(params).for_decoding()
            where = {"positions": jnp.arange(T)[None], "mask": masks.Causal(), "fresh": True}
            return made(tokens, state=made.init_state(1, T), prefill=prefill, **where).state

        return jax.jit(run)

    runs, took = {"dense": reading(None), "sparse": reading(patterns)}, {"dense": [], "sparse": []}
    for turn in range(rounds + 1):
        for way, each in runs.items():
            began = time.process_time()
            jax.block_until_ready(each(model.params, jnp.asarray(tokens)[None]))
            if turn:
                took[way].append(time.process_time() - began)
    return {way: float(np.median(values)) for way, values in took.items()}


def judged(
    claim: Mapping[str, Any], contrast: Mapping[str, Any], numbers: Mapping[str, Any], scale: str
) -> Evidence:  # fmt: skip
    """The row of a contrast: differences of mass, or of how often seconds double, by seed."""
    measure = contrast["measure"]
    better, worse = (numbers[measure][way][length] for way, length in (contrast["better"], contrast["worse"]))
    ahead = differences(measure, better, worse)
    found = method.judge(claim, ahead, pair=contrast)
    sides = ((*contrast["better"], better), (*contrast["worse"], worse))
    shown = "; ".join(f"{way}, {length} tokens: {np.mean(values):.4f}" for way, length, values in sides)
    unit = "" if measure == "mass" else " times as fast, as a power of two"
    return found.row(contrast, f"{MEASURES[measure]}: {shown}; the first ahead by {found.text()}{unit}", scale, numbers)


def differences(measure: str, better: Sequence[float], worse: Sequence[float]) -> list[float]:
    """By how much mass the first is ahead, or log2 of how many times as fast it is."""
    return (np.log2(worse) - np.log2(better) if measure == "seconds" else np.subtract(better, worse)).tolist()
