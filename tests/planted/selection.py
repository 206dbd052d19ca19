"""Bugs in choices that are used again, in rows a query, and in bounds of pages. What the fields are: `Bug`."""

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
)
