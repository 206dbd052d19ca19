"""What every objective of the table says of itself is something that the rest of the house has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from experiments import preflight
from experiments.generation import GENERATORS
from experiments.settings.errors import ConfigError
from kernels import masks
from models import objectives
from tests.experiments.program import program_test


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_it_names_a_generator_and_a_mask_that_goes_with_it(name):
    made = objectives.make(name, base.get_config().to_dict().get(name, {}), vocab_size=11)
    assert made.generator in GENERATORS
    assert made.causal == (made.mask == masks.Causal()), "a causal objective reads a row from left to right"
    assert made.bound in ("=", "<=", "~") and made.extra_tokens >= 0 and made.copies >= 1


def test_no_generator_is_named_by_nobody():
    assert {entry.generator for entry in objectives.OBJECTIVES.values()} == set(GENERATORS)


def apart(name: str) -> bool:
    """Whether the documents of a row do not see each other; some objectives read a row as one string."""
    try:
        preflight.check(program_test.config(objective=name, data__isolate=True), num_devices=1)
    except ConfigError as error:
        return not any("data.isolate" in problem for problem in error.problems)
    return True


@pytest.mark.parametrize("name", objectives.OBJECTIVES)
def test_it_learns_from_what_it_may_see(name):
    """Nats of one document, in training and in evaluation, do not change with another one in its row.

    A causal objective's nats of the first half of one document do not change with the second half, either.
    """
    made = program_test.program(objective=name, model__num_layers=1)
    params, T, half = made.init()["params"], program_test.T, program_test.T // 2
    rng = np.random.default_rng(0)
    at = np.arange(T)[None]
    whole = rng.integers(0, program_test.V, (2, T + 1)).astype(np.int32)

    @jax.jit
    def nats(params, whole, scored, segments, positions):
        targets = whole[:, 1:] if made.objective.causal else whole[:, :-1]
        batch = {"tokens": whole[:, :-1], "targets": targets, "positions": positions, "segment_ids": segments}
        batch["scored"] = jnp.broadcast_to(scored, targets.shape)
        drawn = made.objective.corrupt(batch, jax.random.key(0))
        model = made.merge(params)
        other = made.merge(jax.tree.map(lambda x: 1.5 * x, params))  # What it says is not what the model says.
        beside = {name: other for name in objectives.companions(made.objective)}
        loss = made.objective.loss(model, drawn, jax.random.key(1), **({"companions": beside} if beside else {}))
        return loss.total, made.objective.row_nll(model, batch, jax.random.key(2))

    def seen(scored, changed, documents):
        """Whether the tokens where `changed` make a difference to those where `scored`."""
        other = np.where(np.pad(changed, ((0, 0), (0, 1))), (whole + 1) % program_test.V, whole)
        rows = (2, T)
        segments = np.broadcast_to(np.where(documents == 2, 1 + at // half, 1), rows).astype(np.int32)
        positions = np.broadcast_to(np.where(documents == 2, at % half, at), rows).astype(np.int32)
        a, b = (nats(params, tokens, scored, segments, positions) for tokens in (whole, other))
        return [not np.array_equal(x, y) for x, y in zip(a, b, strict=True)]

    inner = at % half < half - 1  # The target of a document's last token stands in the next one.
    first, second = (at < half) & inner, (at >= half) & inner
    assert seen(first, at < half, 2) == seen(second, at >= half, 2) == [True, True]
    if apart(name):
        assert seen(first, at >= half, 2) == seen(second, at < half, 2) == [False, False]
    if made.objective.causal:
        assert seen(first, at >= half, 1) == [False, False] and seen(second, at < half, 1) == [True, True]
