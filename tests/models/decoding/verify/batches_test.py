"""A request's text is its own under every verifier, whatever stands beside it; of `same_draw` whatever is drafted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.decoding import parts as sockets
from models.decoding import stream
from tests.models.decoding.tables import Table
from tests.models.decoding.verify.rules_test import DEFAULTS, DRAFT, MODEL, RUNS, START, TARGET

N, LENGTH = 40, 9


@functools.cache
def written(verifier, drafter, options, rows=tuple(range(N))):
    """Texts of the requests `rows` of N, each with its own key, behind START."""
    asked = DEFAULTS | {"drafter": drafter, "verifier": verifier, drafter: dict(options)}
    parts = sockets.make([asked], DEFAULTS)

    @jax.jit
    def go(keys):
        small, B = Table(jnp.log(DRAFT)), len(rows)
        models = {"model": Table(jnp.log(TARGET)), "model_draft.workdir": small, "model_tree.workdir": small}
        dials = {name: jnp.repeat(jnp.asarray(value), B) for name, value in sockets.dials([asked], parts).items()}
        ones = jnp.ones((B,), jnp.int32)
        p = stream.begin(models, parts, jnp.full((B, 1 + LENGTH), START), ones, ones + LENGTH, keys, dials)
        return stream.extend(models, p, parts, LENGTH).text[:, : 1 + LENGTH]

    keys = jax.vmap(jax.random.key_data)(jax.random.split(jax.random.key(7), N))
    return np.asarray(go(keys[np.array(rows)]))


@pytest.mark.parametrize("run", ["token", "kseq", "recursive, dyspec", "children, chain", "same_draw, dyspec"])
def test_what_stands_beside_a_request_does_not_change_its_text(run):
    verifier, drafter, options = RUNS[run]
    given = tuple(options.items())
    some = (31, 4, 17)
    np.testing.assert_array_equal(
        written(verifier, drafter, given)[np.array(some)], written(verifier, drafter, given, some)
    )


def test_what_is_drafted_changes_no_text_of_same_draw_and_those_of_rules_that_are_equal_in_law():
    plain = written("same_draw", "none", ())
    for length in (1, 2, 4):
        given = tuple((MODEL | {"length": length}).items())
        np.testing.assert_array_equal(written("same_draw", "model_draft", given), plain)
    short, long = (written("token", "model_draft", tuple((MODEL | {"length": n}).items())) for n in (1, 4))
    assert (short != long).any(axis=1).mean() > 0.2
