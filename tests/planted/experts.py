"""Bugs of mixtures of experts and of what is done with their traces."""

from tests.planted import Bug

FOLDER = "models/experts"
TESTS = ("tests/models/experts",)

BUGS = (
    Bug(
        "balance: the fractions carry a gradient",
        f"{FOLDER}/balance.py",
        "return P.shape[-1] * jnp.sum(jax.lax.stop_gradient(wide(f)) * P, axis=-1)",
        "return P.shape[-1] * jnp.sum(wide(f) * P, axis=-1) + 0 * jnp.sum(P)",
        TESTS,
    ),
    Bug(
        "balance: padding is counted",
        f"{FOLDER}/balance.py",
        "chosen = chosen * jnp.asarray(valid)[..., None]",
        "chosen = chosen * (jnp.asarray(valid)[..., None] >= 0)",
        TESTS,
    ),
    Bug(
        "balance: Megatron's loss by tokens and not by their square",
        f"{FOLDER}/balance.py",
        "(k * tokens * tokens)",
        "(k * tokens)",
        TESTS,
    ),
    Bug(
        "MoE++: experts without cost count as the others",
        f"{FOLDER}/balance.py",
        "return jnp.sum(wide(eta) * jax.lax.stop_gradient(f)",
        "return jnp.sum(jax.lax.stop_gradient(f)",
        TESTS,
    ),
    Bug(
        "MoE++: the standard deviation of all, not of a sample",
        f"{FOLDER}/mixed.py",
        "jnp.std(z, axis=-1, ddof=1, keepdims=True)",
        "jnp.std(z, axis=-1, keepdims=True)",
        TESTS,
    ),
    Bug(
        "capacity: one token too many",
        f"{FOLDER}/capacity.py",
        "return jnp.where(places < limit, index, -1)",
        "return jnp.where(places <= limit, index, -1)",
        TESTS,
    ),
    Bug(
        "capacity: the least probable first",
        f"{FOLDER}/capacity.py",
        "jnp.argsort(-gate.reshape(-1), stable=True)",
        "jnp.argsort(gate.reshape(-1), stable=True)",
        TESTS,
    ),
    Bug(
        "BlockFFN: the loss of locality looks at the first token of a document",
        f"{FOLDER}/sparsity.py",
        "return same if positions is None else same & (jnp.asarray(positions)[..., 1:] != 0)",
        "return same",
        TESTS,
    ),
    Bug(
        "BlockFFN: the warm-up is one step late",
        f"{FOLDER}/sparsity.py",
        "self.start * (done + 1) / max(1, self.warmup)",
        "self.start * done / max(1, self.warmup)",
        TESTS,
    ),
    Bug(
        "upcycling: three products scaled as two",
        f"{FOLDER}/upcycling.py",
        "return float(s ** (1 / 3 if gated else 1 / 2))",
        "return float(s ** (1 / 2))",
        TESTS,
    ),
    Bug(
        "a bank mixes with gates of one",
        f"{FOLDER}/routing.py",
        "dtype=gate.dtype) * gate[..., None], axis=-2)",
        "dtype=gate.dtype), axis=-2)",
        TESTS,
    ),
    Bug(
        "groups: the sum of one expert too few",
        f"{FOLDER}/routers.py",
        "jax.lax.top_k(inside, min(count, inside.shape[-1]))[0]",
        "jax.lax.top_k(inside, max(1, min(count, inside.shape[-1]) - 1))[0]",
        TESTS,
    ),
    Bug(
        "the best cache lets go of what comes next",
        "experiments/routing/caches.py",
        "del held[max(held, key=lambda r: (held[r], r))]",
        "del held[min(held, key=lambda r: (held[r], r))]",
        ("tests/experiments/routing",),
    ),
)
