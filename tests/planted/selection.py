"""Bugs in choices that are used again, in rows a query, in bounds of pages, sums of columns, and in guesses of devices.

What the fields are: `Bug`.
"""

from tests.planted import Bug

BUGS = (
    Bug(
        "ems: what the last token of a slot got counts for the next one",
        "models/mixers/memory/ring.py",
        "jnp.where(at[i] >= position, rows[:, i], 0)",
        "rows[:, i]",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "ems: rows stay where they were when tokens move",
        "models/mixers/memory/ems.py",
        "order[:, :, None], axis=3)",
        "jnp.sort(order)[:, :, None], axis=3)",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "token_select again: copies keep their last choice",
        "models/mixers/memory/token_select.py",
        "best = jnp.where(again[b], chosen[b], best)",
        "best = chosen[b]",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "token_select again: the query stands one further",
        "models/mixers/memory/token_select.py",
        "(chosen >= 0).sum(-1) + local - 1)",
        "(chosen >= 0).sum(-1) + local)",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "token_select again: copies are not made anew behind a piece",
        "models/mixers/memory/token_select.py",
        "built=self.built & ~rows",
        "built=self.built",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "token_select again: any query uses the choice again",
        "models/mixers/memory/token_select.py",
        "again = few | ((self.chosen >= 0).any(-1) & alike)",
        "again = few | (self.chosen >= 0).any(-1)",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "token_select again: a key is turned by its rank in the ring",
        "models/mixers/memory/token_select.py",
        "place = jnp.maximum(jnp.concatenate([last, jnp.arange",
        "place = jnp.maximum(jnp.concatenate([last % local, jnp.arange",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "quest: the least of a page counts against it",
        "models/mixers/memory/selection.py",
        "dot(jnp.maximum(grouped, 0), greatest) + dot(jnp.minimum(grouped, 0), least)",
        "dot(jnp.maximum(grouped, 0), greatest) - dot(jnp.minimum(grouped, 0), least)",
        ("tests/models/memory/formulas_test.py",),
    ),
    Bug(
        "the n-th largest: its lowest digit is not found",
        "models/mixers/memory/selection.py",
        "fori_loop(0, bits // DIGIT, digit",
        "fori_loop(0, bits // DIGIT - 1, digit",
        ("tests/models/memory/formulas_test.py",),
    ),
    Bug(
        "the n-th largest: minus zero is less than zero",
        "models/mixers/memory/selection.py",
        "jnp.where(x == 0, 0, x).astype(x.dtype)",
        "x",
        ("tests/models/memory/formulas_test.py",),
    ),
    Bug(
        "the n-th largest: as many as n are not enough",
        "models/mixers/memory/selection.py",
        'precision="highest") >= n\n',
        'precision="highest") > n\n',
        ("tests/models/memory/formulas_test.py",),
    ),
    Bug(
        "counts up to a place: of those behind it in its block",
        "models/mixers/memory/selection.py",
        "np.triu(np.ones((BLOCK, BLOCK)",
        "np.tril(np.ones((BLOCK, BLOCK)",
        ("tests/models/memory/formulas_test.py",),
    ),
    Bug(
        "counts up to a place: a block's own count twice",
        "models/mixers/memory/selection.py",
        "before = jnp.cumsum(whole, axis=-1) - whole",
        "before = jnp.cumsum(whole, axis=-1)",
        ("tests/models/memory/formulas_test.py",),
    ),
    Bug(
        "token_select: no row chooses where one has few tokens",
        "models/mixers/memory/token_select.py",
        "jax.lax.cond(few.all(), ",
        "jax.lax.cond(few.any(), ",
        ("tests/models/memory/engine_test.py",),
    ),
    Bug(
        "products with keys that are rotated: sines turn the other way",
        "models/rope.py",
        "(first * d - second * c) * sin",
        "(second * c - first * d) * sin",
        ("tests/models/products_test.py",),
    ),
    Bug(
        "products with keys: divided by the root of their own number",
        "kernels/attention/cached.py",
        'math.sqrt(q.shape[-1])\n    return _weighed(score, "bkms"',
        'math.sqrt(products.shape[-1])\n    return _weighed(score, "bkms"',
        ("tests/kernels/cached_test.py",),
    ),
    Bug(
        "products with keys: heads that share a key meet those of another",
        "models/rope.py",
        "x = jnp.repeat(x, along.shape[2] // x.shape[2], axis=2)",
        "x = jnp.tile(x, (1, 1, along.shape[2] // x.shape[2], 1))",
        ("tests/models/products_test.py",),
    ),
    Bug(
        "speculation: the least sure move first",
        "experiments/routing/speculative.py",
        'np.argsort(-sure, kind="stable")',
        'np.argsort(sure, kind="stable")',
        ("tests/experiments/routing/placement_test.py::test_tables_and_guesses_are_plain_counts",),
    ),
    Bug(
        "speculation: what is no choice is sent",
        "experiments/routing/speculative.py",
        "!= at[:, None]) & (index >= 0)",
        "!= at[:, None])",
        ("tests/experiments/routing/placement_test.py::test_tables_guess_the_device_and_perfect_guesses_send_nothing",),
    ),
    Bug(
        "column sums: a query without a sum has its weight",
        "kernels/column_sums/__init__.py",
        "jnp.where(some, weights[:, None], 0)",
        "jnp.broadcast_to(weights[:, None], lse.shape)",
        ("tests/kernels/column_sums_test.py::test_a_query_whose_sum_is_nothing_adds_nothing",),
    ),
)
