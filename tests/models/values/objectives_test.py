"""Every objective's loss, whole: a batch as it was corrupted, the plain model, and the sum written out by hand."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.objectives import schedules
from models.objectives.score_entropy import ScoreEntropy
from tests.plain import layers, losses, tiny

pytestmark = pytest.mark.usefixtures("x64")
V, T, D = tiny.V, tiny.T, tiny.N * tiny.H


def case(objective, seed=0, rows=4, **groups):
    """(the corrupted batch, parameters, loss and sums, a reader of features of row b) as numpy."""
    made = tiny.program(tiny.config(objective, **groups))
    rng = np.random.default_rng(seed + 5)
    draw = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape) + (x.ndim == 1), jnp.float64)  # noqa: E731
    params = jax.tree.map(draw, made.abstract["params"])
    batch = jax.jit(made.objective.corrupt)(tiny.batch(rows, seed, bidirectional=True), jax.random.key(seed))
    wide = lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    batch = jax.tree.map(wide, batch)  # Times are drawn in float32; their features turn a thousand times as fast.
    total, means, _ = jax.jit(lambda p, b: made.objective.loss(made.merge(p), b, None))(params, batch)
    b, p = jax.tree.map(np.asarray, batch), jax.tree.map(np.asarray, params)

    def read(row, x, sees=layers.everything, segments=None, positions=None, **told):
        twice = lambda name: np.tile(b[name][row], len(x) // T)  # noqa: E731
        segments = twice("segment_ids") if segments is None else segments
        positions = twice("positions") if positions is None else positions
        return tiny.features(p, x, segments=segments, positions=positions, sees=sees, **told)

    assert all(mean.weight == b["scored"].sum() for mean in means.values())
    return b, p, float(total), {name: float(mean.total) for name, mean in means.items()}, read, made


def close(got, want):
    # Sums over the batch are float32; eps is 1.2e-7.
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_masked_diffusion(schedule):
    """Of a model that is told the time."""
    b, p, loss, sums, read, _ = case("masked_diffusion", masked_diffusion__schedule=schedule, model__time_features=4)
    total = 0.0
    for row in range(4):
        z, x, t = b["noised"][row], b["tokens"][row], float(b["time"][row])
        weight = np.where(z == V, losses.WEIGHTS[schedule](t), 0)
        np.testing.assert_allclose(b["weight"][row], weight, rtol=1e-3 if schedule == "geometric" else 1e-5)
        assert not (z == V)[~b["scored"][row]].any() and np.array_equal(z[z != V], x[z != V])
        log_p = tiny.log_probs(p, read(row, z, time=np.full(T, t)), V)
        total += losses.weighted(log_p, x, b["weight"][row])
    assert total > 0
    close([loss, sums["nll"]], [total, total])


@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_the_table_of_a_schedule(schedule):
    made = schedules.get(schedule)
    for t in (0.01, 0.2, 0.5, 0.83, 1.0):
        rate, weight, slope = losses.RATES[schedule](t), losses.WEIGHTS[schedule](t), 1e-6
        close = {"rtol": 1e-9, "atol": 1e-12}  # The weight of cosine_md4 ends at 0.
        np.testing.assert_allclose([made.mask(t), made.alpha(t), made.weight(t)], [rate, 1 - rate, weight], **close)
        np.testing.assert_allclose(made.sigma(t), np.inf if rate == 1 else -math.log(1 - rate), rtol=1e-7)
        np.testing.assert_allclose(made.time(rate), t, rtol=1e-6)
        ends = [losses.RATES[schedule](t + d) for d in (-slope, 0 if t == 1 else slope)]
        np.testing.assert_allclose(-made.dalpha(t), (ends[1] - ends[0]) / (slope if t == 1 else 2 * slope), atol=1e-4)


@pytest.mark.parametrize("schedule", schedules.NAMES)
def test_the_share_of_masks(schedule):
    """Of 6000 rows at their own times: off from the sum of their rates by 4.5 standard errors at most."""
    made = tiny.program(tiny.config("masked_diffusion", masked_diffusion__schedule=schedule))
    batch = {"tokens": jnp.zeros((6000, 4), int), "scored": jnp.ones((6000, 4), bool)}
    drawn = jax.jit(made.objective.corrupt)(batch, jax.random.key(2))
    t = np.asarray(drawn["time"], np.float64)
    assert t.min() > 1e-3 and t.max() <= 1 and abs(t.mean() - 0.5005) < 1e-3  # stratified: far nearer than iid times
    rate = np.array([losses.RATES[schedule](s) for s in t])
    masked = np.asarray(drawn["noised"] == V)
    assert abs(masked.sum() - 4 * rate.sum()) < 4.5 * math.sqrt(4 * (rate * (1 - rate)).sum())
    first = rate < np.median(rate)  # and where they are few
    assert abs(masked[first].sum() - 4 * rate[first].sum()) < 4.5 * math.sqrt(4 * (rate * (1 - rate))[first].sum())


@pytest.mark.parametrize("options", [{"block": 2}, {"block": 3, "weighting": "ones"}], ids=str)
def test_block_diffusion(options):
    b, p, loss, _, read, _ = case("block_diffusion", block_diffusion=options)
    total, sees = 0.0, losses.block_sees(T, options["block"])
    for row in range(4):
        z, x, t = b["noised"][row], b["tokens"][row], b["time"][row]
        weight = np.where(z == V, 1 if options.get("weighting") == "ones" else 1 / t, 0)
        np.testing.assert_allclose(b["weight"][row], weight, rtol=1e-5)
        assert len(set(t[: options["block"]])) == 1 != len(set(t))
        features = read(row, np.concatenate([z, x]), sees)[:T]
        total += losses.weighted(tiny.log_probs(p, features, V), x, b["weight"][row])
    assert total > 0
    close(loss, total)


def test_score_entropy_of_masks():
    b, p, loss, _, read, _ = case("score_entropy", score_entropy__schedule="loglinear", model__time_features=4)
    total = 0.0
    for row in range(4):
        z, x, t = b["noised"][row], b["tokens"][row], float(b["time"][row])
        logits = layers.logits(p, read(row, z, time=np.full(T, t)))[:, :V]
        rate = 0.999 / (1 - 0.999 * t)  # sigma' of sigma = -log(1 - 0.999 t)
        np.testing.assert_allclose(b["weight"][row], np.where(b["scored"][row], rate, 0), rtol=1e-3)
        total += b["weight"][row].max() * losses.score_absorbing(logits, -math.log(1 - 0.999 * t), z, x, V)
    assert loss != 0
    # sigma is computed from a time in float32, near t = 1 of a small difference.
    np.testing.assert_allclose(loss, total, rtol=1e-4)


def test_score_entropy_of_uniform_noise():
    groups = {"score_entropy": {"graph": "uniform", "head": "probs", "t_max": 0.9}}
    b, p, loss, _, read, made = case("score_entropy", **groups)
    assert made.spec.V == V
    total = 0.0
    for row in range(4):
        z, x, t = b["noised"][row], b["tokens"][row], float(b["time"][row])
        logits = layers.logits(p, read(row, z))[:, :V]
        density = losses.score_uniform(logits, 1 - 0.999 * t, z, x, b["scored"][row])
        total += 0.999 / (1 - 0.999 * t) * density
    np.testing.assert_allclose(loss, total, rtol=1e-4)


def test_any_subset():
    b, p, loss, sums, read, _ = case("any_subset", any_subset={"rate_min": 0.5, "rate_max": 0.9}, seed=1)
    total = 0.0
    for row in range(4):
        x, rank, prompt = b["tokens"][row], b["rank"][row], b["prompt_length"][row]
        targets = b["scored"][row]
        assert sorted(rank) == list(range(T)) and targets.sum() == T - prompt >= 1
        assert (np.diff(rank[targets]) > 0).all() and (np.diff(rank[~targets]) > 0).all()  # Both from left to right.
        assert rank[~targets].max(initial=-1) < rank[targets].min()
        features = read(row, np.concatenate([np.full(T, V), x]), losses.subset_sees(T, rank, prompt))[:T]
        total += losses.weighted(tiny.log_probs(p, features, V), x, 1.0 * targets)
    close([loss, sums["nll"]], [total, total])


@pytest.mark.parametrize("weighting", ["length", "constant"])
def test_insertion(weighting):
    b, p, loss, _, read, _ = case("insertion", insertion__weighting=weighting, seed=2)
    total = 0.0
    for row in range(4):
        x, dropped, z, count = (b[name][row] for name in ("tokens", "dropped", "noised", "count"))
        kept = x[(b["segment_ids"][row] > 0) & ~dropped]
        assert z.tolist() == [V, *kept, *[V + 1] * (T - len(kept))] and count == len(kept)
        logits = layers.logits(p, read(row, z, segments=np.arange(T + 1) <= count, positions=np.arange(T + 1)))
        weight = b["scored"][row].sum() + 1 if weighting == "length" else T + 1
        assert b["weight"][row] == weight
        total += weight * losses.insertion(logits, count, x, dropped, V)
    assert b["dropped"].any()
    close(loss, total)


@pytest.mark.parametrize("conditioned", [False, True])
def test_neodiff(conditioned):
    K, s = 5, 0.2
    groups = {"neodiff": {"levels": K, "smoothing": s, "noise_factor": 0.7, "conditioned": 0.5}}
    groups |= {"model__time_features": 4, "model__self_condition": conditioned}
    b, p, loss, sums, read, _ = case("neodiff", seed=3, **groups)
    want = np.zeros(3)
    for row in range(4):
        x, free, tau = b["tokens"][row], b["scored"][row], b["tau"][row]
        clean = layers.rmsnorm(p["embedding"][x], 0)
        noise = np.asarray(jax.random.normal(jax.random.wrap_key_data(b["noise"][row]), (T, D), float))
        keep = np.maximum(1 - np.sqrt(tau / K + 1e-4), 0)[:, None]
        z = np.where(free[:, None], np.sqrt(keep) * clean + 0.7 * np.sqrt(1 - keep) * noise, clean)
        found = read(row, z, time=tau / K)
        if conditioned:
            earlier = np.where(free[:, None], found, clean) * b["conditioned"][row]
            found = read(row, z, time=tau / K, condition=earlier)
        error, anchor = losses.neodiff(found, clean, tiny.log_probs(p, found, V), x, s)
        label = np.zeros(T, int)
        label[free] = losses.poisson_labels((error + anchor)[free], float(b["next"][row]), K)
        again = read(row, np.where(free[:, None], found, clean), time=np.full(T, float(b["next"][row])))
        late = layers.log_softmax(layers.logits(p, again)[:, V : V + K + 1])
        want += [error[free].sum(), anchor[free].sum(), -sum(late[i, label[i]] for i in np.flatnonzero(free))]
    close([sums[name] for name in ("error", "nll", "time")], want)
    close(loss, want.sum())


def evaluated(made, params, key):
    """(nats of each row, the batch that was evaluated) of two documents a row."""
    batch = tiny.batch(bidirectional=True)
    nats = jax.jit(lambda p: made.objective.row_nll(made.merge(p), batch, key))(params)
    return np.asarray(nats), batch


def prepared(objective, **groups):
    """(program, parameters that are nowhere zero, the same as numpy)."""
    made, rng = tiny.program(tiny.config(objective, **groups)), np.random.default_rng(11)
    draw = lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape) + (x.ndim == 1), jnp.float64)  # noqa: E731
    params = jax.tree.map(draw, made.abstract["params"])
    return made, params, jax.tree.map(np.asarray, params)


def row(b, p, x, i, sees=layers.everything, **told):
    twice = lambda name: np.tile(b[name][i], len(x) // T)  # noqa: E731
    return tiny.features(p, x, segments=twice("segment_ids"), positions=twice("positions"), sees=sees, **told)


@pytest.mark.parametrize("objective", ["masked_diffusion", "block_diffusion"])
def test_evaluation_is_the_mean_of_its_draws(objective):
    """Two draws of fixed counts, whatever the training draws: weight n / k at k masks of n free tokens."""
    groups = {objective: {"draws": 2}, f"{objective}__t_max": 0.5}
    made, params, p = prepared(objective, **groups)
    key = jax.random.key(4)
    nats, b = evaluated(made, params, key)
    want = np.zeros(4)
    keys = [jax.random.split(each, 2) for each in jax.random.split(key, 4)]  # Of every row, its draws.
    noise = jax.jit(lambda k, x, frozen: made.objective.noise(k, x, frozen, training=False))
    for draw in range(2):
        alone = [noise(keys[i][draw], b["tokens"][i : i + 1], ~b["scored"][i : i + 1]).z for i in range(4)]
        z = np.concatenate([np.asarray(x) for x in alone])
        for i in range(4):
            x, free = b["tokens"][i], b["scored"][i]
            if objective == "masked_diffusion":
                weight = np.full(T, free.sum() / (z[i] == V).sum())
                features = row(b, p, z[i], i)
            else:
                blocks = np.arange(T) // 4
                weight = np.array([free[blocks == n].sum() / max(1, (z[i] == V)[blocks == n].sum()) for n in blocks])
                features = row(b, p, np.concatenate([z[i], x]), i, losses.block_sees(T, 4))[:T]
            want[i] += losses.weighted(tiny.log_probs(p, features, V), x, np.where(z[i] == V, weight, 0)) / 2
    assert want.min() > 0
    close(nats, want)


def test_evaluation_of_any_subset_reads_what_is_given_first():
    made, params, p = prepared("any_subset")
    nats, b = evaluated(made, params, None)
    for i in range(4):
        x, free = b["tokens"][i], b["scored"][i]
        rank, prompt = np.zeros(T, int), int((~free).sum())
        rank[~free], rank[free] = np.arange(prompt), np.arange(prompt, T)
        features = row(b, p, np.concatenate([np.full(T, V), x]), i, losses.subset_sees(T, rank, prompt))[:T]
        close(nats[i], losses.weighted(tiny.log_probs(p, features, V), x, 1.0 * free))


def test_evaluation_of_neodiff_is_conditioned_and_not_smoothed():
    K = 5
    made, params, p = prepared(
        "neodiff", neodiff={"levels": K, "draws": 1, "conditioned": 0.0}, model__time_features=4,
        model__self_condition=True,
    )  # fmt: skip
    key = jax.random.key(6)
    nats, b = evaluated(made, params, key)
    corrupt = jax.jit(made.objective.corrupt)
    keys = [jax.random.split(each, 1)[0] for each in jax.random.split(key, 4)]
    rows = [corrupt({name: x[i : i + 1] for name, x in b.items()}, keys[i]) for i in range(4)]
    noised = {name: np.concatenate([np.asarray(row[name]) for row in rows]) for name in ("tau", "noise")}
    for i in range(4):
        x, free, tau = b["tokens"][i], b["scored"][i], noised["tau"][i]
        clean = layers.rmsnorm(p["embedding"][x], 0)
        noise = np.asarray(jax.random.normal(jax.random.wrap_key_data(noised["noise"][i]), (T, D), float))
        keep = np.maximum(1 - np.sqrt(tau / K + 1e-4), 0)[:, None]
        z = np.where(free[:, None], np.sqrt(keep) * clean + np.sqrt(1 - keep) * noise, clean)
        earlier = np.where(free[:, None], row(b, p, z, i, time=tau / K), clean)
        log_p = tiny.log_probs(p, row(b, p, z, i, time=tau / K, condition=earlier), V)
        close(nats[i], losses.weighted(log_p, x, 1.0 * free))


def test_intrinsic_times_follow_their_law():
    """The stretched Poisson over a uniform time, counted over 60,000 tokens."""
    made = tiny.program(tiny.config("neodiff", neodiff={"levels": 9}))
    batch = {"tokens": jnp.zeros((20_000, 3), int), "scored": jnp.ones((20_000, 3), bool)}
    b = jax.tree.map(np.asarray, jax.jit(made.objective.corrupt)(batch, jax.random.key(0)))
    assert b["next"].mean() == pytest.approx(0.25, abs=0.01)  # Uniform below a uniform one.
    # t is the next time over another uniform one and is not in the batch: the law is that of its mean over t.
    want = np.zeros(10)
    grid = (np.arange(2000) + 0.5) / 2000
    for t in grid:
        mean = 18 * t
        s = np.arange(90)
        mass = np.exp(s * math.log(mean) - mean - np.array([math.lgamma(n + 1) for n in s]))
        tau = np.clip(np.round((s - mean) * math.sqrt(mean) + mean), 0, 9).astype(int)
        want += np.bincount(np.full(90, 9) if t > 0.99 else tau, mass, 10) / len(grid)
    counts = np.bincount(b["tau"].ravel(), minlength=10)
    # Tokens of a row share its time, and rows its strata: their spread is below that of 60,000 draws of one law.
    assert (np.abs(counts - 60_000 * want) < 4.5 * np.sqrt(60_000 * want * 3)).all()


class Loud(ScoreEntropy):
    """One whose prior would be seen."""

    def prior(self):
        return jnp.ones(())


def test_the_prior_of_uniform_noise_counts_once_a_token():
    """KL of what alpha(1) = 0.001 leaves of a token from the uniform law; evaluation adds it to every free token."""
    made, params, _ = prepared("score_entropy", score_entropy={"graph": "uniform", "head": "probs", "draws": 1})
    left = np.full(V, 0.999 / V)
    left[3] += 0.001
    np.testing.assert_allclose(made.objective.prior(), (left * np.log(left * V)).sum(), rtol=1e-6)
    batch, key = tiny.batch(bidirectional=True), jax.random.key(0)
    nats = [
        jax.jit(lambda p, goal=goal: goal.row_nll(made.merge(p), batch, key))(params)
        for goal in (Loud(**dataclasses.asdict(made.objective)), made.objective)
    ]
    np.testing.assert_allclose(nats[0] - nats[1], batch["scored"].sum(-1), rtol=1e-4)
