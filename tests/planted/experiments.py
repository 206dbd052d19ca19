"""Optimizers, the step, evaluation, counting, fits, claims, sweeps, plans and the files of a workdir."""

from tests.planted import Bug

OPTIMIZERS, OPTIMIZER_TESTS = (
    "experiments/program/optimizers.py",
    ("tests/experiments/program/optimizer_values_test.py",),
)
PROGRAM, STEP = "experiments/program/__init__.py", ("tests/experiments/program/step_values_test.py",)
EVALUATE, COUNTING = "experiments/training/evaluate.py", "experiments/program/counting.py"
FLOPS = ("tests/experiments/program/flops_values_test.py",)
FIT, FITS = "experiments/scaling/fit.py", ("tests/experiments/scaling/values_test.py",)
SCALING = tuple(
    f"tests/experiments/scaling/scaling_test.py::test_{name}"
    for name in (
        "compute_optimal_is_the_minimum",
        "extrapolation_by_share_holds_out_the_largest_compute",
    )
)
PLANNING = "tests/experiments/planning/planning_test.py"

BUGS = (
    Bug(
        "muon: the scale by the smaller side",
        OPTIMIZERS,
        "jnp.sqrt(max(update.shape[-2:]))",
        "jnp.sqrt(min(update.shape[-2:]))",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "muon: momentum of another length",
        OPTIMIZERS,
        "beta=0.95, weight_dimension_numbers",
        "beta=0.9, weight_dimension_numbers",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "muon: kernels decay where they should not",
        OPTIMIZERS,
        'o.weight_decay if "kernel" in o.decay_roles else 0.0',
        "o.weight_decay",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "decay of what is not named",
        OPTIMIZERS,
        "lambda role: role in options.decay_roles, roles",
        "lambda role: role not in options.decay_roles, roles",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "adafactor: updates are not clipped", OPTIMIZERS, "        optax.clip_by_block_rms(1.0),\n", "", OPTIMIZER_TESTS
    ),
    Bug(
        "lion: its two momenta swapped",
        OPTIMIZERS,
        "optax.scale_by_lion(o.b1, o.b2)",
        "optax.scale_by_lion(o.b2, o.b1)",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "schedule-free: Adam's momentum beside its own",
        OPTIMIZERS,
        "optax.scale_by_adam(b1=0.0, b2=o.b2, eps=o.eps)",
        "optax.scale_by_adam(b1=o.b1, b2=o.b2, eps=o.eps)",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "frozen parameters move",
        OPTIMIZERS,
        "lambda role, n, o: o if role in UNTRAINED else n",
        "lambda role, n, o: n",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "the gradient is clipped entry by entry",
        OPTIMIZERS,
        "optax.clip_by_global_norm(options.clip)",
        "optax.clip(options.clip)",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "rates by size are squared",
        OPTIMIZERS,
        "u * jnp.asarray(r, u.dtype)",
        "u * jnp.asarray(r * r, u.dtype)",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "wsd: the whole rest decays",
        OPTIMIZERS,
        "decay = max(1, round(share * steps))",
        "decay = max(1, steps)",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "schedule-free: an update weighed by the rate of the next",
        OPTIMIZERS,
        "lambda count: rate(count - 1)",
        "lambda count: rate(count)",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "an average that its count does not correct",
        OPTIMIZERS,
        "share = jnp.minimum(1.0, (1 - decay) / -jnp.expm1(",
        "share = jnp.minimum(1.0, (1 - decay) + 0 * jnp.expm1(",
        STEP,
    ),
    Bug(
        "the first update has the rate of none",
        OPTIMIZERS,
        "lambda index: curve(index + 1)",
        "lambda index: curve(index)",
        OPTIMIZER_TESTS,
    ),
    Bug(
        "an average of the parameters before the step",
        PROGRAM,
        'state.get("averaged"), wide)',
        'state.get("averaged"), self._wide(state))',
        STEP,
    ),
    Bug(
        "the loss by all tokens",
        PROGRAM,
        'jnp.sum(batch["scored"], dtype=jnp.float32)',
        'jnp.sum(jnp.ones_like(batch["scored"]), dtype=jnp.float32)',
        STEP,
    ),
    Bug(
        "an average that evaluation does not use",
        PROGRAM,
        'precision.like(state["ema"], state["params"])',
        'state["params"]',
        STEP,
    ),
    Bug(
        "the standard error by n",
        EVALUATE,
        "math.sqrt(n / (n - 1) * np.sum(residual**2))",
        "math.sqrt(np.sum(residual**2))",
        STEP,
    ),
    Bug(
        "the standard error of independent sums",
        EVALUATE,
        "residual = numerator - numerator.sum() / total * denominator",
        "residual = numerator - numerator.mean()",
        STEP,
    ),
    Bug("bits of nats", EVALUATE, "bits = nats.sum() / math.log(2) /", "bits = nats.sum() /", STEP),
    Bug(
        "one noise for all batches",
        EVALUATE,
        'first += len(batch["tokens"]) * program.rows[1]',
        "first += 0 * program.rows[1]",
        STEP,
    ),
    Bug("rows without a target count", EVALUATE, "rows[rows[:, 1] > 0].T", "rows[rows[:, 1] >= 0].T", STEP),
    Bug(
        "FLOPs: copies of a token are not counted",
        COUNTING,
        "(copies * each",
        "(each",
        FLOPS,
    ),
    Bug(
        "FLOPs: the head reads every copy",
        COUNTING,
        "3 * (copies * each",
        "3 * copies * (each",
        FLOPS,
    ),
    Bug(
        "FLOPs: keys of one copy",
        COUNTING,
        "program.objective.keys(length) / length if copies > 1",
        "1.0 if copies > 1",
        FLOPS,
    ),
    Bug(
        "FLOPs: attention forward only",
        COUNTING,
        "parts[kind] += 3 * share * flops",
        "parts[kind] += share * flops",
        FLOPS,
    ),
    Bug(
        "FLOPs: a window's first tokens see it whole",
        "models/mixers/attention.py",
        "window - window * (window - 1) / (2 * length) if causal",
        "window if causal",
        FLOPS,
    ),
    Bug(
        "frozen numbers count as parameters",
        COUNTING,
        "sum(size for size, role in pairs if role not in UNTRAINED)",
        "sum(size for size, role in pairs)",
        FLOPS,
    ),
    Bug(
        "the bootstrap without its widening",
        FIT,
        "return theta + math.sqrt(groups / max(groups - free, 1)) * (np.array(drawn) - theta)",
        "return np.array(drawn)",
        FITS,
    ),
    Bug(
        "the bootstrap of rows, not of groups",
        FIT,
        "minlength=groups)[labels].astype(float)",
        "minlength=groups)[np.arange(len(labels)) % groups].astype(float)",
        FITS,
    ),
    Bug("intervals of half the level", FIT, "tail = 50 * (1 - level)", "tail = 100 * (1 - level)", FITS),
    Bug(
        "Huber: linear from twice delta on",
        FIT,
        "inside = np.abs(r) <= bend",
        "inside = np.abs(r) <= 2 * bend",
        FITS,
    ),
    Bug(
        "compute-optimal sizes: a for b",
        "experiments/scaling/laws.py",
        "a, b = beta / (alpha + beta), alpha / (alpha + beta)",
        "b, a = beta / (alpha + beta), alpha / (alpha + beta)",
        SCALING,
    ),
    Bug(
        "isoFLOP: tokens by N",
        "experiments/scaling/isoflop.py",
        "np.exp(logs - best) / flops_per,",
        "np.exp(logs - best),",
        FITS,
    ),
    Bug(
        "bytes of an all-reduce in one direction",
        "experiments/planning/hlo.py",
        "return 2 * (n - 1) / n * payload",
        "return (n - 1) / n * payload",
        (f"{PLANNING}::test_collectives_in_a_loop_count_as_often_as_it_turns",),
    ),
    Bug(
        "a loop's body counts once",
        "experiments/planning/hlo.py",
        "repeat = int(trips[1])",
        "repeat = 1",
        (f"{PLANNING}::test_collectives_in_a_loop_count_as_often_as_it_turns",),
    ),
    Bug(
        "booleans of the command line are all true",
        "experiments/settings/overrides.py",
        "return True if text is None else _word(text)",
        "return True",
        ("tests/experiments/cli_test.py::test_a_value_takes_the_type_of_its_key",),
    ),
    Bug(
        "a claim's pairs the other way",
        "experiments/claims/contrast.py",
        "score.sign * (b - w)",
        "score.sign * (w - b)",
        ("tests/experiments/claims/claims_test.py::test_a_contrast_is_paired_by_seed_and_judged_by_its_interval",),
    ),
    Bug(
        "trials: worst first",
        "experiments/sweep/table.py",
        'key=lambda row: row.get(key, float("inf"))',
        'key=lambda row: -row.get(key, float("inf"))',
        ("tests/experiments/sweep/table_test.py",),
    ),
    Bug(
        "infinity written as minus infinity",
        "experiments/workdir/__init__.py",
        '("Infinity" if value > 0 else "-Infinity")',
        '("Infinity" if value < 0 else "-Infinity")',
        ("tests/experiments/workdir/not_finite_test.py",),
    ),
    Bug(
        "processes: a key that only one of them has is not compared",
        "experiments/settings/agreement.py",
        "for name in {**main, **here} if",
        "for name in main if",
        ("tests/experiments/settings/agreement_test.py",),
    ),
    Bug(
        "processes: any folder that ends alike is the workdir",
        "experiments/settings/agreement.py",
        "rest == mark[1] and os.path.exists(place / mark[0])",
        "rest == mark[1]",
        ("tests/experiments/settings/agreement_test.py",),
    ),
    Bug(
        "processes: the outcome is not waited for by those who should hear it",
        "experiments/settings/processes.py",
        "[i for i in said if i not in silent], HEARD",
        "[], HEARD",
        ("tests/experiments/settings/agreement_test.py",),
    ),
)
